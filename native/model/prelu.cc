#include "model/prelu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

namespace facetrain {
namespace {

// Sums are made over chunks of as many rows, whatever the number of threads, so that it does not change them.
constexpr int64_t kChunkRows = 512;

// `rows` rows of C values each; slope_gradient [C] is added to.
__attribute__((target_clones("avx512f", "avx2", "default"))) void backward_rows(const float* x, const float* gradient, const float* slope,
                                                                               int64_t rows, int64_t channels, float* x_gradient,
                                                                               float* slope_gradient) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      const float g = gradient[c], scaled = g * slope[c], product = g * x[c];
      x_gradient[c] = x[c] > 0 ? g : scaled;
      slope_gradient[c] += x[c] > 0 ? 0.f : product;
    }
    x += channels;
    gradient += channels;
    x_gradient += channels;
  }
}

bool is_rows(const at::Tensor& x) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat &&
         (x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast) : x.dim() == 2 && x.is_contiguous());
}

class PRelu : public torch::autograd::Function<PRelu> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& slope) {
    context->save_for_backward({x, slope});
    return at::prelu(x, slope);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &slope = saved[1];
    const at::Tensor gradient = gradients[0].contiguous(x.suggest_memory_format());
    at::Tensor x_gradient = at::empty_like(x);
    const int64_t channels = x.size(1), rows = x.numel() / channels, chunks = (rows + kChunkRows - 1) / kChunkRows;
    at::Tensor sums = at::zeros({chunks, channels}, x.options());
    at::parallel_for(0, chunks, /*grain_size=*/1, [&, x_from = x.const_data_ptr<float>(), gradient_from = gradient.const_data_ptr<float>(),
                                                   slopes = slope.const_data_ptr<float>(), x_to = x_gradient.mutable_data_ptr<float>(),
                                                   sums_to = sums.mutable_data_ptr<float>()](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t row = chunk * kChunkRows, at = row * channels;
        backward_rows(x_from + at, gradient_from + at, slopes, std::min(kChunkRows, rows - row), channels, x_to + at,
                      sums_to + chunk * channels);
      }
    });
    return {x_gradient, sums.sum(0)};
  }
};

}  // namespace

at::Tensor prelu(const at::Tensor& x, const at::Tensor& slope) {
  return is_rows(x) && slope.numel() == x.size(1) ? PRelu::apply(x, slope) : at::prelu(x, slope);
}

}  // namespace facetrain
