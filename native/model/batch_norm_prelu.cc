#include "model/batch_norm_prelu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <vector>

#include "model/rows.h"

namespace facetrain {
namespace {

constexpr double kMomentum = 0.1;  // of the running statistics

// Mean and sum of squared distances from it, by channel; both start at 0. Two passes, the second over rows that are
// still in the cache, because the one-pass formula E[x^2] - E[x]^2 loses digits by cancellation.
FT_VECTORIZED void statistics_of_rows(const float* FT_RESTRICT x, int64_t rows, int64_t channels,
                                      float* FT_RESTRICT mean, float* FT_RESTRICT squares) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) mean[c] += x[row * channels + c];
  }
  for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<float>(rows);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      const float distance = x[row * channels + c] - mean[c];
      squares[c] += distance * distance;
    }
  }
}

// The operator's values by channel: y = PReLU((x - mean) scale + beta), where scale is gamma / deviation. The mean is
// subtracted first, because folding it into beta would lose digits if it is large.
struct ByChannel {
  ByChannel(const at::Tensor& mean, const at::Tensor& scale, const at::Tensor& beta, const at::Tensor& slope)
      : mean(mean.const_data_ptr<float>()),
        scale(scale.const_data_ptr<float>()),
        beta(beta.const_data_ptr<float>()),
        slope(slope.const_data_ptr<float>()) {}
  const float *FT_RESTRICT mean, *FT_RESTRICT scale, *FT_RESTRICT beta, *FT_RESTRICT slope;
};

FT_VECTORIZED void forward_rows(const float* FT_RESTRICT x, ByChannel by, int64_t rows, int64_t channels,
                                float* FT_RESTRICT y) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float normed = (x[c] - by.mean[c]) * by.scale[c] + by.beta[c], negative = normed * by.slope[c];
      y[c] = normed > 0 ? normed : negative;
    }
  }
}

// Adds the rows' part to the gradients of slope, beta and gamma; the latter is still to be divided by the deviation.
FT_VECTORIZED void sums_of_rows(const float* FT_RESTRICT x, const float* FT_RESTRICT gradient, ByChannel by,
                                int64_t rows, int64_t channels, float* FT_RESTRICT slope_gradient,
                                float* FT_RESTRICT beta_gradient, float* FT_RESTRICT gamma_gradient) {
  for (int64_t row = 0; row < rows; ++row, x += channels, gradient += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float centred = x[c] - by.mean[c], normed = centred * by.scale[c] + by.beta[c];
      const float product = gradient[c] * normed, scaled = gradient[c] * by.slope[c];
      const float through = normed > 0 ? gradient[c] : scaled;
      slope_gradient[c] += normed > 0 ? 0.f : product;
      beta_gradient[c] += through;
      gamma_gradient[c] += through * centred;
    }
  }
}

// dx = scale (dz - constant - (x - mean) linear), where dz is the gradient after the normalization. `constant` and
// `linear` are the derivatives through the batch's mean and variance.
FT_VECTORIZED void backward_rows(const float* FT_RESTRICT x, const float* FT_RESTRICT gradient, ByChannel by,
                                 const float* FT_RESTRICT constant, const float* FT_RESTRICT linear, int64_t rows,
                                 int64_t channels, float* FT_RESTRICT x_gradient) {
  for (int64_t row = 0; row < rows; ++row, x += channels, gradient += channels, x_gradient += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float centred = x[c] - by.mean[c], normed = centred * by.scale[c] + by.beta[c],
                  scaled = gradient[c] * by.slope[c];
      const float through = normed > 0 ? gradient[c] : scaled;
      x_gradient[c] = by.scale[c] * (through - constant[c] - centred * linear[c]);
    }
  }
}

struct Statistics {
  at::Tensor mean, variance;  // [C], variance without Bessel's correction
};

Statistics batch_statistics(const at::Tensor& x) {
  const Rows rows(x);
  const int64_t channels = rows.channels;
  at::Tensor means = at::zeros({rows.chunks, channels}, x.options()),
             squares = at::zeros({rows.chunks, channels}, x.options());
  rows.for_each_chunk([&, from = x.const_data_ptr<float>(), means_to = means.mutable_data_ptr<float>(),
                       squares_to = squares.mutable_data_ptr<float>()](int64_t chunk, int64_t offset, int64_t count) {
    statistics_of_rows(from + offset, count, channels, means_to + chunk * channels, squares_to + chunk * channels);
  });
  // Joins the chunks by the update of Chan, Golub and LeVeque (1979).
  Statistics result{at::empty({channels}, x.options()), at::empty({channels}, x.options())};
  for (int64_t c = 0; c < channels; ++c) {
    double mean = 0, square = 0, count = 0;
    for (int64_t chunk = 0; chunk < rows.chunks; ++chunk) {
      const auto rows_of_chunk = static_cast<double>(std::min(Rows::kChunk, rows.count - chunk * Rows::kChunk));
      const double distance = means.const_data_ptr<float>()[chunk * channels + c] - mean;
      count += rows_of_chunk;
      mean += distance * rows_of_chunk / count;
      square += squares.const_data_ptr<float>()[chunk * channels + c] +
                distance * distance * rows_of_chunk * (count - rows_of_chunk) / count;
    }
    result.mean.mutable_data_ptr<float>()[c] = static_cast<float>(mean);
    result.variance.mutable_data_ptr<float>()[c] = static_cast<float>(square / count);
  }
  return result;
}

class BatchNormPRelu : public torch::autograd::Function<BatchNormPRelu> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& gamma,
                            const at::Tensor& beta, const at::Tensor& slope, const Statistics& statistics,
                            double epsilon, bool training) {
    const at::Tensor inverse_deviation = (statistics.variance + epsilon).rsqrt();
    const at::Tensor scale = gamma * inverse_deviation;
    context->save_for_backward({x, statistics.mean, scale, beta, slope, inverse_deviation});
    context->saved_data["training"] = training;
    at::Tensor y = at::empty_like(x);
    const Rows rows(x);
    const ByChannel by(statistics.mean, scale, beta, slope);
    rows.for_each_chunk([&, from = x.const_data_ptr<float>(), to = y.mutable_data_ptr<float>()](int64_t, int64_t offset,
                                                                                                int64_t count) {
      forward_rows(from + offset, by, count, rows.channels, to + offset);
    });
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &inverse_deviation = saved[5];
    const at::Tensor gradient = gradients[0].contiguous(x.suggest_memory_format());
    const ByChannel by(saved[1], saved[2], saved[3], saved[4]);
    const Rows rows(x);
    const int64_t channels = rows.channels;
    const float *x_from = x.const_data_ptr<float>(), *gradient_from = gradient.const_data_ptr<float>();

    at::Tensor partial = at::zeros({rows.chunks, 3, channels}, x.options());
    rows.for_each_chunk([&, to = partial.mutable_data_ptr<float>()](int64_t chunk, int64_t offset, int64_t count) {
      float* const sums = to + chunk * 3 * channels;
      sums_of_rows(x_from + offset, gradient_from + offset, by, count, channels, sums, sums + channels,
                   sums + 2 * channels);
    });
    const at::Tensor sums = partial.sum(0);
    const at::Tensor slope_gradient = sums[0], beta_gradient = sums[1], gamma_gradient = sums[2] * inverse_deviation;

    // Running statistics do not depend on x.
    const double share = context->saved_data["training"].toBool() ? 1.0 / static_cast<double>(rows.count) : 0;
    const at::Tensor constant = beta_gradient * share, linear = gamma_gradient * inverse_deviation * share;
    at::Tensor x_gradient = at::empty_like(x);
    rows.for_each_chunk([&, constants = constant.const_data_ptr<float>(), linears = linear.const_data_ptr<float>(),
                         to = x_gradient.mutable_data_ptr<float>()](int64_t, int64_t offset, int64_t count) {
      backward_rows(x_from + offset, gradient_from + offset, by, constants, linears, count, channels, to + offset);
    });
    return {x_gradient, gamma_gradient, beta_gradient, slope_gradient, {}, {}, {}};
  }
};

}  // namespace

at::Tensor batch_norm(const at::Tensor& x, const BatchNorm& norm, bool training) {
  return at::batch_norm(x, norm.gamma, norm.beta, norm.running_mean, norm.running_variance, training, kMomentum,
                        norm.epsilon,
                        /*cudnn_enabled=*/true);
}

at::Tensor batch_norm_prelu(const at::Tensor& x, const BatchNorm& norm, const at::Tensor& slope, bool training) {
  if (!is_rows(x) || norm.gamma.numel() != x.size(1) || slope.numel() != x.size(1))
    return at::prelu(batch_norm(x, norm, training), slope);
  Statistics statistics{norm.running_mean, norm.running_variance};
  if (training) {
    statistics = batch_statistics(x.detach());
    const auto count = static_cast<double>(Rows(x).count);
    norm.running_mean.lerp_(statistics.mean, kMomentum);
    norm.running_variance.lerp_(statistics.variance * (count / (count - 1)), kMomentum);
  }
  return BatchNormPRelu::apply(x, norm.gamma, norm.beta, slope, statistics, norm.epsilon, training);
}

}  // namespace facetrain
