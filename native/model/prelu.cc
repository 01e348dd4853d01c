#include "model/prelu.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/rows.h"

namespace facetrain {
namespace {

// Sets the rows of x_gradient, and adds their part to slope_gradient [C].
FT_VECTORIZED void backward_rows(const float* FT_RESTRICT x, const float* FT_RESTRICT gradient,
                                 const float* FT_RESTRICT slope, int64_t rows, int64_t channels,
                                 float* FT_RESTRICT x_gradient, float* FT_RESTRICT slope_gradient) {
  for (int64_t row = 0; row < rows; ++row, x += channels, gradient += channels, x_gradient += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float scaled = gradient[c] * slope[c], product = gradient[c] * x[c];
      x_gradient[c] = x[c] > 0 ? gradient[c] : scaled;
      slope_gradient[c] += x[c] > 0 ? 0.f : product;
    }
  }
}

class PRelu : public torch::autograd::Function<PRelu> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& slope) {
    context->save_for_backward({x, slope});
    return at::prelu(x, slope);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &slope = saved[1];
    const at::Tensor gradient = gradients[0].contiguous(x.suggest_memory_format());
    const Rows rows(x);
    at::Tensor x_gradient = at::empty_like(x), sums = at::zeros({rows.chunks, rows.channels}, x.options());
    rows.for_each_chunk([&, x_from = x.const_data_ptr<float>(), gradient_from = gradient.const_data_ptr<float>(),
                         x_to = x_gradient.mutable_data_ptr<float>(),
                         sums_to = sums.mutable_data_ptr<float>()](int64_t chunk, int64_t offset, int64_t count) {
      backward_rows(x_from + offset, gradient_from + offset, slope.const_data_ptr<float>(), count, rows.channels,
                    x_to + offset, sums_to + chunk * rows.channels);
    });
    return {x_gradient, sums.sum(0)};
  }
};

}  // namespace

at::Tensor prelu(const at::Tensor& x, const at::Tensor& slope) {
  return is_rows(x) && slope.numel() == x.size(1) ? PRelu::apply(x, slope) : at::prelu(x, slope);
}

}  // namespace facetrain
