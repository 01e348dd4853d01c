#include "model/prelu.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/norm_math.h"
#include "model/rows.h"

namespace facetrain {
namespace {

FT_VECTORIZED void forward_rows(const float* FT_RESTRICT x, const float* FT_RESTRICT slope, int64_t rows,
                                int64_t channels, float* FT_RESTRICT y) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) y[c] = prelu_value(x[c], slope[c]);
  }
}

// Sets the rows of x_gradient, and adds their part to slope_gradient [C].
FT_VECTORIZED void backward_rows(const float* FT_RESTRICT x, const float* FT_RESTRICT gradient,
                                 const float* FT_RESTRICT slope, int64_t rows, int64_t channels,
                                 float* FT_RESTRICT x_gradient, float* FT_RESTRICT slope_gradient) {
  for (int64_t row = 0; row < rows; ++row, x += channels, gradient += channels, x_gradient += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      x_gradient[c] = prelu_gradient(x[c], gradient[c], slope[c]);
      slope_gradient[c] += prelu_slope_gradient(x[c], gradient[c]);
    }
  }
}

class PRelu : public torch::autograd::Function<PRelu> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& slope) {
    context->save_for_backward({x, slope});
    if (x.scalar_type() == slope.scalar_type()) return at::prelu(x, slope);
    at::Tensor y = at::empty_like(x);
    const Rows rows(x);
    rows.for_each_chunk([&](int64_t, int64_t offset, int64_t count) {
      const FloatRows from(FloatRows::kX, x, offset, count * rows.channels),
          to(FloatRows::kResult, y, offset, count * rows.channels);
      forward_rows(from.read(), slope.const_data_ptr<float>(), count, rows.channels, to.write());
      to.store();
    });
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &slope = saved[1];
    const at::Tensor gradient = gradients[0].contiguous(x.suggest_memory_format());
    const Rows rows(x);
    at::Tensor x_gradient = at::empty_like(x), sums = at::zeros({rows.chunks, rows.channels}, slope.options());
    rows.for_each_chunk([&, sums_to = sums.mutable_data_ptr<float>()](int64_t chunk, int64_t offset, int64_t count) {
      const int64_t values = count * rows.channels;
      const FloatRows from(FloatRows::kX, x, offset, values), above(FloatRows::kGradient, gradient, offset, values),
          to(FloatRows::kResult, x_gradient, offset, values);
      backward_rows(from.read(), above.read(), slope.const_data_ptr<float>(), count, rows.channels, to.write(),
                    sums_to + chunk * rows.channels);
      to.store();
    });
    return {x_gradient, sums.sum(0)};
  }
};

}  // namespace

at::Tensor prelu(const at::Tensor& x, const at::Tensor& slope) {
  const bool own = has_cpu_rows(x) && slope.scalar_type() == at::kFloat && slope.numel() == x.size(1);
  return own ? PRelu::apply(x, slope) : at::prelu(x, slope.to(x.scalar_type()));
}

}  // namespace facetrain
