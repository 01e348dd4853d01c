#include "model/prelu.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/norm_math.h"
#include "model/rows.h"

namespace facetrain {
namespace {

template <class T>
FACETRAIN_CLONES void forward_rows(const T* FT_RESTRICT x, const float* FT_RESTRICT slope, int64_t rows,
                                   int64_t channels, T* FT_RESTRICT y) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) store(prelu_value(widened(x[c]), slope[c]), y[c]);
  }
}

// Sets the rows of x_gradient, and adds their part to slope_gradient [C].
template <class T>
FACETRAIN_CLONES void backward_rows(const T* FT_RESTRICT x, const T* FT_RESTRICT gradient,
                                    const float* FT_RESTRICT slope, int64_t rows, int64_t channels,
                                    T* FT_RESTRICT x_gradient, float* FT_RESTRICT slope_gradient) {
  for (int64_t row = 0; row < rows; ++row, x += channels, gradient += channels, x_gradient += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float z = widened(x[c]), above = widened(gradient[c]);
      store(prelu_gradient(z, above, slope[c]), x_gradient[c]);
      slope_gradient[c] += prelu_slope_gradient(z, above);
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
    with_type_of(x, [&]<class T>(T) {
      rows.for_each_chunk(
          [&, from = values_of<T>(x), to = mutable_values_of<T>(y)](int64_t, int64_t offset, int64_t count) {
            forward_rows(from + offset, slope.const_data_ptr<float>(), count, rows.channels, to + offset);
          });
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
    with_type_of(x, [&]<class T>(T) {
      rows.for_each_chunk([&, from = values_of<T>(x), above = values_of<T>(gradient),
                           to = mutable_values_of<T>(x_gradient),
                           sums_to = sums.mutable_data_ptr<float>()](int64_t chunk, int64_t offset, int64_t count) {
        backward_rows(from + offset, above + offset, slope.const_data_ptr<float>(), count, rows.channels, to + offset,
                      sums_to + chunk * rows.channels);
      });
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
