#include "model/batch_norm_prelu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/add.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <cmath>
#include <iterator>
#include <optional>

#include "model/norm_kernels.h"
#include "model/norm_math.h"
#include "model/rows.h"

namespace facetrain {
namespace {

constexpr double kMomentum = 0.1;  // of the running statistics

// Sums by channel have their addends in the order of the rows. The kernels take this many rows in each pass over the
// channels, because such a pass also reads and writes the sums.
constexpr int64_t kRowsAtOnce = 4;

template <int64_t kRows, class T>
FT_ALWAYS_INLINE inline void add_to_sums(const T* FT_RESTRICT x, int64_t channels, float* FT_RESTRICT sums) {
  for (int64_t c = 0; c < channels; ++c) {
    float sum = sums[c];
    for (int64_t row = 0; row < kRows; ++row) sum += widened(x[row * channels + c]);
    sums[c] = sum;
  }
}

template <int64_t kRows, class T>
FT_ALWAYS_INLINE inline void add_to_squares(const T* FT_RESTRICT x, int64_t channels, const float* FT_RESTRICT mean,
                                            float* FT_RESTRICT squares) {
  for (int64_t c = 0; c < channels; ++c) {
    float sum = squares[c];
    for (int64_t row = 0; row < kRows; ++row) {
      const float distance = widened(x[row * channels + c]) - mean[c];
      sum += distance * distance;
    }
    squares[c] = sum;
  }
}

// Mean and sum of squared distances from it, by channel; both start at 0. Two passes, the second over rows that are
// still in the cache.
template <class T>
FACETRAIN_CLONES void statistics_of_rows(const T* FT_RESTRICT x, int64_t rows, int64_t channels,
                                         float* FT_RESTRICT mean, float* FT_RESTRICT squares) {
  int64_t row = 0;
  for (; row + kRowsAtOnce <= rows; row += kRowsAtOnce) add_to_sums<kRowsAtOnce>(x + row * channels, channels, mean);
  for (; row < rows; ++row) add_to_sums<1>(x + row * channels, channels, mean);
  for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<float>(rows);
  for (row = 0; row + kRowsAtOnce <= rows; row += kRowsAtOnce)
    add_to_squares<kRowsAtOnce>(x + row * channels, channels, mean, squares);
  for (; row < rows; ++row) add_to_squares<1>(x + row * channels, channels, mean, squares);
}

// The operator's values by channel. Without PReLU the slope is 1.
struct ByChannel {
  ByChannel(const Scaling& scaling, const at::Tensor& beta, const at::Tensor& slope)
      : mean(scaling.mean.const_data_ptr<float>()),
        scale(scaling.scale.const_data_ptr<float>()),
        beta(beta.const_data_ptr<float>()),
        slope(slope.const_data_ptr<float>()) {}
  const float *FT_RESTRICT mean, *FT_RESTRICT scale, *FT_RESTRICT beta, *FT_RESTRICT slope;
};

template <class T>
FACETRAIN_CLONES void prelu_rows(const T* FT_RESTRICT x, ByChannel by, int64_t rows, int64_t channels,
                                 T* FT_RESTRICT y) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c)
      store(prelu_value(normalized(widened(x[c]) - by.mean[c], by.scale[c], by.beta[c]), by.slope[c]), y[c]);
  }
}

template <class T>
FACETRAIN_CLONES void add_rows(const T* FT_RESTRICT x, const T* FT_RESTRICT residual, ByChannel by, int64_t rows,
                               int64_t channels, T* FT_RESTRICT y) {
  for (int64_t row = 0; row < rows; ++row, x += channels, residual += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c)
      store(normalized(widened(x[c]) - by.mean[c], by.scale[c], by.beta[c]) + widened(residual[c]), y[c]);
  }
}

// Adds the rows' part to the gradients of slope, beta and gamma; the latter is still to be divided by the deviation.
template <int64_t kRows, class T>
FT_ALWAYS_INLINE inline void add_to_gradients(const T* FT_RESTRICT x, const T* FT_RESTRICT gradient,
                                              const ByChannel& by, int64_t channels, float* FT_RESTRICT slope_gradient,
                                              float* FT_RESTRICT beta_gradient, float* FT_RESTRICT gamma_gradient) {
  for (int64_t c = 0; c < channels; ++c) {
    float of_slope = slope_gradient[c], of_beta = beta_gradient[c], of_gamma = gamma_gradient[c];
    for (int64_t row = 0; row < kRows; ++row) {
      const float above = widened(gradient[row * channels + c]);
      const float centred = widened(x[row * channels + c]) - by.mean[c];
      const float z = normalized(centred, by.scale[c], by.beta[c]);
      const float through = prelu_gradient(z, above, by.slope[c]);
      of_slope += prelu_slope_gradient(z, above);
      of_beta += through;
      of_gamma += through * centred;
    }
    slope_gradient[c] = of_slope;
    beta_gradient[c] = of_beta;
    gamma_gradient[c] = of_gamma;
  }
}

template <class T>
FACETRAIN_CLONES void sums_of_rows(const T* FT_RESTRICT x, const T* FT_RESTRICT gradient, ByChannel by, int64_t rows,
                                   int64_t channels, float* FT_RESTRICT slope_gradient,
                                   float* FT_RESTRICT beta_gradient, float* FT_RESTRICT gamma_gradient) {
  int64_t row = 0;
  for (; row + kRowsAtOnce <= rows; row += kRowsAtOnce) {
    add_to_gradients<kRowsAtOnce>(x + row * channels, gradient + row * channels, by, channels, slope_gradient,
                                  beta_gradient, gamma_gradient);
  }
  for (; row < rows; ++row) {
    add_to_gradients<1>(x + row * channels, gradient + row * channels, by, channels, slope_gradient, beta_gradient,
                        gamma_gradient);
  }
}

template <class T>
FACETRAIN_CLONES void backward_rows(const T* FT_RESTRICT x, const T* FT_RESTRICT gradient, ByChannel by,
                                    const float* FT_RESTRICT constant, const float* FT_RESTRICT linear, int64_t rows,
                                    int64_t channels, T* FT_RESTRICT x_gradient) {
  for (int64_t row = 0; row < rows; ++row, x += channels, gradient += channels, x_gradient += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float centred = widened(x[c]) - by.mean[c], z = normalized(centred, by.scale[c], by.beta[c]);
      const float through = prelu_gradient(z, widened(gradient[c]), by.slope[c]);
      store(norm_gradient(through, centred, by.scale[c], constant[c], linear[c]), x_gradient[c]);
    }
  }
}

struct Statistics {
  at::Tensor mean, variance;  // [C], variance without Bessel's correction
};

Statistics batch_statistics(const at::Tensor& x, const at::TensorOptions& options) {
  const Rows rows(x);
  const int64_t channels = rows.channels;
  at::Tensor means = at::zeros({rows.chunks, channels}, options), squares = at::zeros({rows.chunks, channels}, options);
  with_type_of(x, [&]<class T>(T) {
    rows.for_each_chunk([&, from = values_of<T>(x), means_to = means.mutable_data_ptr<float>(),
                         squares_to = squares.mutable_data_ptr<float>()](int64_t chunk, int64_t offset, int64_t count) {
      statistics_of_rows(from + offset, count, channels, means_to + chunk * channels, squares_to + chunk * channels);
    });
  });
  Statistics result{at::empty({channels}, options), at::empty({channels}, options)};
  for (int64_t c = 0; c < channels; ++c) {
    Moments<double> all{0, 0, 0};
    for (int64_t chunk = 0; chunk < rows.chunks; ++chunk) {
      const auto rows_of_chunk = static_cast<double>(std::min(Rows::kChunk, rows.count - chunk * Rows::kChunk));
      all = joined(all, {rows_of_chunk, means.const_data_ptr<float>()[chunk * channels + c],
                         squares.const_data_ptr<float>()[chunk * channels + c]});
    }
    result.mean.mutable_data_ptr<float>()[c] = static_cast<float>(all.mean);
    result.variance.mutable_data_ptr<float>()[c] = static_cast<float>(all.squares / all.count);
  }
  return result;
}

Scaling scaling_of(const Statistics& statistics, const BatchNorm& norm) {
  const at::Tensor inverse_deviation = (statistics.variance + norm.epsilon).rsqrt();
  return {statistics.mean, inverse_deviation, norm.gamma * inverse_deviation};
}

// Towards the statistics of `count` values by channel.
void move_running(const BatchNorm& norm, const Statistics& statistics, int64_t count) {
  const auto n = static_cast<double>(count);
  norm.running_mean.lerp_(statistics.mean, kMomentum);
  norm.running_variance.lerp_(statistics.variance * (n / (n - 1)), kMomentum);
}

namespace cpu {

Scaling norm_scaling(const at::Tensor& x, const BatchNorm& norm, Pass pass) {
  if (pass == Pass::evaluation) return scaling_of({norm.running_mean, norm.running_variance}, norm);
  const Statistics statistics = batch_statistics(x, norm.running_mean.options());
  if (pass == Pass::training) move_running(norm, statistics, Rows(x).count);
  return scaling_of(statistics, norm);
}

at::Tensor norm_forward(const at::Tensor& x, const Scaling& scaling, const at::Tensor& beta, const Then& then) {
  at::Tensor y = at::empty_like(x);
  const Rows rows(x);
  const at::Tensor slope = then.slope.defined() ? then.slope : at::ones_like(beta);
  const ByChannel by(scaling, beta, slope);
  with_type_of(x, [&]<class T>(T) {
    const T* const residual = then.residual.defined() ? values_of<T>(then.residual) : nullptr;
    rows.for_each_chunk(
        [&, from = values_of<T>(x), to = mutable_values_of<T>(y)](int64_t, int64_t offset, int64_t count) {
          if (residual) {
            add_rows(from + offset, residual + offset, by, count, rows.channels, to + offset);
          } else {
            prelu_rows(from + offset, by, count, rows.channels, to + offset);
          }
        });
  });
  return y;
}

NormGradients norm_backward(const at::Tensor& x, const at::Tensor& gradient, const Scaling& scaling,
                            const at::Tensor& beta, const Then& then, bool training, const JoinedRanks* ranks) {
  const Rows rows(x);
  const int64_t channels = rows.channels;
  const at::Tensor slope = then.slope.defined() ? then.slope : at::ones_like(beta);
  const ByChannel by(scaling, beta, slope);
  at::Tensor partial = at::zeros({rows.chunks, 3, channels}, beta.options());
  with_type_of(x, [&]<class T>(T) {
    rows.for_each_chunk([&, from = values_of<T>(x), above = values_of<T>(gradient),
                         to = partial.mutable_data_ptr<float>()](int64_t chunk, int64_t offset, int64_t count) {
      float* const sums = to + chunk * 3 * channels;
      sums_of_rows(from + offset, above + offset, by, count, channels, sums, sums + channels, sums + 2 * channels);
    });
  });
  const at::Tensor sums = partial.sum(0);
  const at::Tensor beta_gradient = sums[1], gamma_gradient = sums[2] * scaling.inverse_deviation;

  // Running statistics do not depend on x.
  const double share = training ? 1.0 / static_cast<double>(rows.count) : 0;
  at::Tensor by_rows = at::stack({beta_gradient, gamma_gradient * scaling.inverse_deviation}).mul_(share);
  if (ranks) average(*ranks, by_rows);
  at::Tensor x_gradient = at::empty_like(x);
  with_type_of(x, [&]<class T>(T) {
    rows.for_each_chunk([&, from = values_of<T>(x), above = values_of<T>(gradient),
                         to = mutable_values_of<T>(x_gradient), constants = by_rows.const_data_ptr<float>(),
                         linears = by_rows.const_data_ptr<float>() + channels](int64_t, int64_t offset, int64_t count) {
      backward_rows(from + offset, above + offset, by, constants, linears, count, channels, to + offset);
    });
  });
  return {x_gradient, gamma_gradient, beta_gradient, then.slope.defined() ? sums[0] : at::Tensor()};
}

}  // namespace cpu

// Of the x of all ranks, from each rank's own. The ranks are joined in float64 and in their order, so that every rank
// has the same numbers.
Statistics joined_statistics(const JoinedRanks& ranks, const Statistics& own) {
  const auto size = std::ssize(ranks.shares);
  const at::Tensor mine = at::stack({own.mean, own.variance});
  at::Tensor all = at::empty({2 * size, mine.size(1)}, mine.options());
  ranks.comm->all_gather(all, mine);
  all = all.view({size, 2, -1}).to(at::kDouble);
  const at::Tensor means = all.select(1, 0), variances = all.select(1, 1);
  at::Tensor mean = at::zeros_like(means[0]), variance = at::zeros_like(means[0]);
  for (int64_t rank = 0; rank < size; ++rank) mean.add_(means[rank], ranks.shares[rank]);
  for (int64_t rank = 0; rank < size; ++rank)
    variance.add_(variances[rank] + (means[rank] - mean).square(), ranks.shares[rank]);
  return {mean.to(at::kFloat), variance.to(at::kFloat)};
}

// As norm_scaling of a training pass or a recomputation, over all ranks.
Scaling scaling_over_ranks(const JoinedRanks& ranks, const at::Tensor& x, const BatchNorm& norm, Pass pass) {
  const int64_t count = x.numel() / x.size(1);
  Statistics own;
  if (x.is_cuda()) {
    // The kernel moves running statistics. With momentum 1 they become those of the batch.
    own = {at::zeros_like(norm.running_mean), at::zeros_like(norm.running_variance)};
    cuda::norm_scaling(x, {norm.gamma, norm.beta, own.mean, own.variance, norm.epsilon}, /*momentum=*/1, true);
    // The kernel divides by count - 1, also where a rank has a single value.
    if (count > 1) {
      own.variance.mul_(static_cast<double>(count - 1) / static_cast<double>(count));
    } else {
      own.variance.zero_();
    }
  } else {
    own = batch_statistics(x, norm.running_mean.options());
  }
  const Statistics statistics = joined_statistics(ranks, own);
  if (pass == Pass::training)
    move_running(norm, statistics, std::llround(static_cast<double>(count) / ranks.own_share()));
  return scaling_of(statistics, norm);
}

// The ranks of a backward pass, as autograd keeps them.
struct RanksOfNorm : torch::CustomClassHolder {
  explicit RanksOfNorm(const JoinedRanks* ranks) : ranks(ranks) {}
  const JoinedRanks* const ranks;
};

class FusedBatchNorm : public torch::autograd::Function<FusedBatchNorm> {
 public:
  // `slope` and `residual` are optional, because autograd takes no undefined tensors.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& gamma,
                            const at::Tensor& beta, const std::optional<at::Tensor>& slope,
                            const std::optional<at::Tensor>& residual, const at::Tensor& running_mean,
                            const at::Tensor& running_variance, double epsilon, Pass pass, const JoinedRanks* ranks) {
    const BatchNorm norm{gamma, beta, running_mean, running_variance, epsilon};
    const Then then{slope.value_or(at::Tensor()), residual.value_or(at::Tensor())};
    const bool training = pass != Pass::evaluation;
    const double momentum = pass == Pass::training ? kMomentum : 0;
    const Scaling by = training && ranks ? scaling_over_ranks(*ranks, x, norm, pass)
                       : x.is_cuda()     ? cuda::norm_scaling(x, norm, momentum, training)
                                         : cpu::norm_scaling(x, norm, pass);
    context->save_for_backward({x, by.mean, by.inverse_deviation, by.scale, beta, then.slope});
    context->saved_data["training"] = training;
    context->saved_data["ranks"] =
        at::IValue::make_capsule(c10::make_intrusive<RanksOfNorm>(training ? ranks : nullptr));
    context->saved_data["residual"] = residual.has_value();
    return x.is_cuda() ? cuda::norm_forward(x, by, beta, then) : cpu::norm_forward(x, by, beta, then);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &beta = saved[4];
    const Scaling by{saved[1], saved[2], saved[3]};
    const bool training = context->saved_data["training"].toBool();
    const JoinedRanks* const ranks = static_cast<RanksOfNorm*>(context->saved_data["ranks"].toCapsule().get())->ranks;
    const at::Tensor gradient = gradients[0].contiguous(x.suggest_memory_format());
    const NormGradients to = x.is_cuda() ? cuda::norm_backward(x, gradient, by, beta, {saved[5], {}}, training, ranks)
                                         : cpu::norm_backward(x, gradient, by, beta, {saved[5], {}}, training, ranks);
    const at::Tensor residual = context->saved_data["residual"].toBool() ? gradient : at::Tensor();
    return {to.x, to.gamma, to.beta, to.slope, residual, {}, {}, {}, {}, {}};
  }
};

at::Tensor fused(const at::Tensor& x, const BatchNorm& norm, const Then& then, Pass pass, const JoinedRanks* ranks) {
  const auto given = [](const at::Tensor& tensor) { return tensor.defined() ? std::optional(tensor) : std::nullopt; };
  return FusedBatchNorm::apply(x, norm.gamma, norm.beta, given(then.slope), given(then.residual), norm.running_mean,
                               norm.running_variance, norm.epsilon, pass, ranks);
}

// Whether there are kernels of our own for x.
bool has_kernels(const at::Tensor& x, const BatchNorm& norm) {
  return (has_cpu_rows(x) || cuda::has_norm_rows(x)) && norm.gamma.scalar_type() == at::kFloat &&
         norm.gamma.numel() == x.size(1);
}

}  // namespace

at::Tensor batch_norm(const at::Tensor& x, const BatchNorm& norm, Pass pass, const JoinedRanks* ranks) {
  const bool joins = pass != Pass::evaluation && ranks;
  const at::Tensor rows =
      joins ? x.contiguous(x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous) : x;
  if ((joins || x.is_cuda()) && has_kernels(rows, norm)) return fused(rows, norm, {}, pass, ranks);
  TORCH_CHECK(!joins, "no batch norm over all ranks for activations of ", x.sizes(), ", ", x.scalar_type(), ", on ",
              x.device());
  // A recomputation has no running statistics to move.
  const bool moves = pass != Pass::recomputation;
  return at::batch_norm(x, norm.gamma, norm.beta, moves ? norm.running_mean : at::Tensor(),
                        moves ? norm.running_variance : at::Tensor(), pass != Pass::evaluation, kMomentum, norm.epsilon,
                        /*cudnn_enabled=*/true);
}

at::Tensor batch_norm_prelu(const at::Tensor& x, const BatchNorm& norm, const at::Tensor& slope, Pass pass,
                            const JoinedRanks* ranks) {
  if (!has_kernels(x, norm) || slope.numel() != x.size(1))
    return at::prelu(batch_norm(x, norm, pass, ranks), slope.to(x.scalar_type()));
  return fused(x, norm, {slope, {}}, pass, ranks);
}

at::Tensor batch_norm_add(const at::Tensor& x, const BatchNorm& norm, const at::Tensor& residual, Pass pass,
                          const JoinedRanks* ranks) {
  if (!has_kernels(x, norm) || residual.sizes() != x.sizes() || residual.scalar_type() != x.scalar_type())
    return at::add(batch_norm(x, norm, pass, ranks), residual);
  return fused(x, norm, {{}, residual.contiguous(x.suggest_memory_format())}, pass, ranks);
}

#ifndef FACETRAIN_CUDA
namespace cuda {

bool has_norm_rows(const at::Tensor&) { return false; }
Scaling norm_scaling(const at::Tensor&, const BatchNorm&, double, bool) { TORCH_CHECK(false, "a build without CUDA"); }
at::Tensor norm_forward(const at::Tensor&, const Scaling&, const at::Tensor&, const Then&) {
  TORCH_CHECK(false, "a build without CUDA");
}
NormGradients norm_backward(const at::Tensor&, const at::Tensor&, const Scaling&, const at::Tensor&, const Then&, bool,
                            const JoinedRanks*) {
  TORCH_CHECK(false, "a build without CUDA");
}

}  // namespace cuda
#endif

}  // namespace facetrain
