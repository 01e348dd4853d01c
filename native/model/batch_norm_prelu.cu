// The kernels of norm_kernels.h. What a thread does is in norm_threads.h; here are the joins in a block and the
// launches.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "model/norm_kernels.h"
#include "model/norm_threads.h"
#include "model/rows.h"

namespace facetrain::cuda {
namespace {

__device__ Part part_of(const Tiling& tiling, int vector) {
  return Part(tiling, vector, blockIdx.x, blockIdx.y, threadIdx.x, threadIdx.y);
}

// Joins the values of the threads of a block along y, in the same order always; those of y = 0 are the result. Every
// thread of the block calls it, and blockDim.y is a power of two. `shared` has a value for each thread.
template <class Value, class Join>
__device__ void join_block(Value& value, Value* shared, Join join) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int step = blockDim.y / 2; step > 0; step /= 2) {
    __syncthreads();  // the values of the step, or the call, before have been read
    shared[thread] = value;
    __syncthreads();
    if (threadIdx.y < step) value = join(value, shared[thread + step * blockDim.x]);
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(const T* x, Tiling tiling, float* means, float* squares) {  // both [chunks, channels]
  __shared__ Moments<float> shared[kThreads];
  const Part part = part_of(tiling, kWidth);
  Moments<float> moments[kWidth] = {};
  add_moments<T, kWidth>(x, tiling.channels, part, moments);
  for (int c = 0; c < kWidth; ++c)
    join_block(moments[c], shared, [](const auto& a, const auto& b) { return joined(a, b); });
  if (threadIdx.y > 0 || part.channel >= tiling.channels) return;
  for (int c = 0; c < kWidth; ++c) {
    const int64_t at = blockIdx.y * tiling.channels + part.channel + c;
    means[at] = moments[c].mean;
    squares[at] = moments[c].squares;
  }
}

struct RunningStatistics {
  float *mean, *variance;
  double momentum;
};

// A thread for each channel and kJoiners of them for its chunks.
constexpr int kChannelsAtOnce = 32;

__global__ void scaling_kernel(const float* means, const float* squares, Tiling tiling, const float* gamma,
                               double epsilon, RunningStatistics running, float* mean, float* inverse_deviation,
                               float* scale) {
  __shared__ Moments<double> shared[kChannelsAtOnce * kJoiners];
  const int64_t channel = int64_t{blockIdx.x} * kChannelsAtOnce + threadIdx.x;
  const bool inside = channel < tiling.channels;
  Moments<double> moments{0, 0, 0};
  if (inside) moments = moments_of_chunks(tiling, means, squares, channel, threadIdx.y);
  join_block(moments, shared, [](const auto& a, const auto& b) { return joined(a, b); });
  if (threadIdx.y > 0 || !inside) return;
  const double variance = moments.squares / moments.count, inverse = 1 / sqrt(variance + epsilon);
  mean[channel] = static_cast<float>(moments.mean);
  inverse_deviation[channel] = static_cast<float>(inverse);
  scale[channel] = static_cast<float>(gamma[channel] * inverse);
  const auto move = [&](float& value, double towards) {
    value = static_cast<float>(value + (towards - value) * running.momentum);
  };
  move(running.mean[channel], moments.mean);
  move(running.variance[channel], moments.squares / (moments.count - 1));
}

template <class T, int kWidth, After kAfter>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* x, const T* residual, ByChannel by, Tiling tiling, T* y) {
  forward_part<T, kWidth, kAfter>(x, residual, by, tiling.channels, part_of(tiling, kWidth), y);
}

template <class T, int kWidth, bool kPRelu>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(const T* x, const T* gradient, ByChannel by, Tiling tiling, float* partial) {  // [chunks, 3, channels]
  __shared__ float shared[kThreads];
  const Part part = part_of(tiling, kWidth);
  float sums[kSums][kWidth] = {};
  add_sums<T, kWidth, kPRelu>(x, gradient, by, tiling.channels, part, sums);
  for (int sum = 0; sum < (kPRelu ? 3 : 2); ++sum) {
    for (int c = 0; c < kWidth; ++c) join_block(sums[sum][c], shared, [](float a, float b) { return a + b; });
  }
  if (threadIdx.y > 0 || part.channel >= tiling.channels) return;
  for (int sum = 0; sum < kSums; ++sum) {
    for (int c = 0; c < kWidth; ++c)
      partial[(int64_t{blockIdx.y} * kSums + sum) * tiling.channels + part.channel + c] = sums[sum][c];
  }
}

// `share`: 1 / rows, or 0 when running statistics normalized.
__global__ void gradients_kernel(const float* partial, Tiling tiling, const float* inverse_deviation, double share,
                                 float* beta, float* gamma, float* slope, float* constant, float* linear) {
  __shared__ double shared[kChannelsAtOnce * kJoiners];
  const int64_t channel = int64_t{blockIdx.x} * kChannelsAtOnce + threadIdx.x;
  const bool inside = channel < tiling.channels;
  double sums[kSums] = {};
  for (int sum = 0; sum < kSums; ++sum) {
    if (inside) sums[sum] = sum_of_chunks(tiling, partial, sum, channel, threadIdx.y);
    join_block(sums[sum], shared, [](double a, double b) { return a + b; });
  }
  if (threadIdx.y > 0 || !inside) return;
  const double inverse = inverse_deviation[channel], of_gamma = sums[1] * inverse;
  beta[channel] = static_cast<float>(sums[0]);
  gamma[channel] = static_cast<float>(of_gamma);
  slope[channel] = static_cast<float>(sums[2]);
  constant[channel] = static_cast<float>(sums[0] * share);
  linear[channel] = static_cast<float>(of_gamma * inverse * share);
}

template <class T, int kWidth, bool kPRelu>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* x, const T* gradient, ByChannel by, Tiling tiling, T* x_gradient) {
  backward_part<T, kWidth, kPRelu>(x, gradient, by, tiling.channels, part_of(tiling, kWidth), x_gradient);
}

// A kernel's launch: the grid of a tiling, or one block for 32 channels.
struct Launch {
  dim3 blocks, threads;
  cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  explicit Launch(const Tiling& tiling) : blocks(tiling.columns, tiling.chunks), threads(tiling.width, tiling.height) {}
  static Launch by_channel(const Tiling& tiling) {
    Launch launch(tiling);
    launch.blocks = dim3(static_cast<unsigned>((tiling.channels + kChannelsAtOnce - 1) / kChannelsAtOnce));
    launch.threads = dim3(kChannelsAtOnce, kJoiners);
    return launch;
  }
};

// Whether threads may load vectors of `tensor`, if it is defined: its memory may begin anywhere if it is a part of
// another.
bool takes_vectors(const at::Tensor& tensor) {
  if (!tensor.defined()) return true;
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return tensor.size(1) % kVector == 0 && address % (tensor.element_size() * kVector) == 0;
}

// Calls function(T, std::integral_constant<int, vector>, tiling) for the type of x; `vector` is 1 unless all tensors
// allow kVector.
template <class Function>
void with_type(const at::Tensor& x, std::initializer_list<at::Tensor> others, Function function) {
  const bool vectors = takes_vectors(x) && std::all_of(others.begin(), others.end(), takes_vectors);
  const int64_t channels = x.size(1), rows = x.numel() / channels;
  const auto with_vector = [&](auto type) {
    if (vectors) {
      function(type, std::integral_constant<int, kVector>(), Tiling(rows, channels, kVector));
    } else {
      function(type, std::integral_constant<int, 1>(), Tiling(rows, channels, 1));
    }
  };
  switch (x.scalar_type()) {
    case at::kFloat:
      return with_vector(float());
    case at::kBFloat16:
      return with_vector(c10::BFloat16());
    default:
      return with_vector(c10::Half());
  }
}

template <class T>
const T* values_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

const float* floats_of(const at::Tensor& tensor) { return values_of<float>(tensor); }

}  // namespace

bool has_norm_rows(const at::Tensor& x) {
  const auto type = x.scalar_type();
  if (!x.is_cuda() || (type != at::kFloat && type != at::kBFloat16 && type != at::kHalf) || x.numel() == 0 ||
      !facetrain::has_rows(x))
    return false;
  // On an H100 the statistics of 1,045 rows of 8 channels, where the last block has 21 rows for 128 threads, were off
  // by what one row of zeros adds. Why was not found, and the same code on a CPU is right: ATen computes such shapes.
  // The convolutions of a backbone have others, but for a few sizes of a batch.
  const int64_t channels = x.size(1), rows = x.numel() / channels;
  return Tiling(rows, channels, 1).all_busy() &&
         (channels % kVector != 0 || Tiling(rows, channels, kVector).all_busy());
}

Scaling norm_scaling(const at::Tensor& x, const BatchNorm& norm, double momentum, bool training) {
  if (!training) {
    const at::Tensor inverse_deviation = (norm.running_variance + norm.epsilon).rsqrt();
    return {norm.running_mean, inverse_deviation, norm.gamma * inverse_deviation};
  }
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t channels = x.size(1);
  const at::TensorOptions options = norm.running_mean.options();
  const at::Tensor by_channel = at::empty({3, channels}, options);
  const Scaling result{by_channel[0], by_channel[1], by_channel[2]};
  with_type(x, {}, [&]<class T, int kWidth>(T, std::integral_constant<int, kWidth>, const Tiling& tiling) {
    const at::Tensor partial = at::empty({2, tiling.chunks, channels}, options);
    float* const means = partial.mutable_data_ptr<float>();
    float* const squares = means + tiling.chunks * channels;
    const Launch rows(tiling), joins = Launch::by_channel(tiling);
    moments_kernel<T, kWidth><<<rows.blocks, rows.threads, 0, rows.stream>>>(values_of<T>(x), tiling, means, squares);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    scaling_kernel<<<joins.blocks, joins.threads, 0, joins.stream>>>(
        means, squares, tiling, floats_of(norm.gamma), norm.epsilon,
        {norm.running_mean.mutable_data_ptr<float>(), norm.running_variance.mutable_data_ptr<float>(), momentum},
        result.mean.mutable_data_ptr<float>(), result.inverse_deviation.mutable_data_ptr<float>(),
        result.scale.mutable_data_ptr<float>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

at::Tensor norm_forward(const at::Tensor& x, const Scaling& scaling, const at::Tensor& beta, const Then& then) {
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor y = at::empty_like(x);
  const ByChannel by{
      floats_of(scaling.mean), floats_of(scaling.scale), floats_of(beta), floats_of(then.slope), nullptr, nullptr};
  with_type(x, {y, then.residual},
            [&]<class T, int kWidth>(T, std::integral_constant<int, kWidth>, const Tiling& tiling) {
              const Launch launch(tiling);
              const auto run = [&](auto kernel) {
                kernel<<<launch.blocks, launch.threads, 0, launch.stream>>>(
                    values_of<T>(x), values_of<T>(then.residual), by, tiling, static_cast<T*>(y.mutable_data_ptr()));
                C10_CUDA_KERNEL_LAUNCH_CHECK();
              };
              if (then.slope.defined()) {
                run(forward_kernel<T, kWidth, After::prelu>);
              } else if (then.residual.defined()) {
                run(forward_kernel<T, kWidth, After::residual>);
              } else {
                run(forward_kernel<T, kWidth, After::nothing>);
              }
            });
  return y;
}

NormGradients norm_backward(const at::Tensor& x, const at::Tensor& gradient, const Scaling& scaling,
                            const at::Tensor& beta, const Then& then, bool training, const JoinedRanks* ranks) {
  const c10::cuda::CUDAGuard guard(x.device());
  const bool prelu = then.slope.defined();
  const int64_t channels = x.size(1);
  at::Tensor x_gradient = at::empty_like(x);
  const at::Tensor by_channel = at::empty({5, channels}, beta.options());
  float* const first = by_channel.mutable_data_ptr<float>();
  const auto row = [&](int i) { return first + i * channels; };
  const ByChannel by{
      floats_of(scaling.mean), floats_of(scaling.scale), floats_of(beta), floats_of(then.slope), row(3), row(4)};
  with_type(x, {gradient, x_gradient},
            [&]<class T, int kWidth>(T, std::integral_constant<int, kWidth>, const Tiling& tiling) {
              const at::Tensor partial = at::empty({tiling.chunks, kSums, channels}, beta.options());
              const Launch rows(tiling), joins = Launch::by_channel(tiling);
              const auto sums = [&](auto kernel) {
                kernel<<<rows.blocks, rows.threads, 0, rows.stream>>>(values_of<T>(x), values_of<T>(gradient), by,
                                                                      tiling, partial.mutable_data_ptr<float>());
                C10_CUDA_KERNEL_LAUNCH_CHECK();
              };
              const auto gradients = [&](auto kernel) {
                kernel<<<rows.blocks, rows.threads, 0, rows.stream>>>(values_of<T>(x), values_of<T>(gradient), by,
                                                                      tiling,
                                                                      static_cast<T*>(x_gradient.mutable_data_ptr()));
                C10_CUDA_KERNEL_LAUNCH_CHECK();
              };
              if (prelu) {
                sums(sums_kernel<T, kWidth, true>);
              } else {
                sums(sums_kernel<T, kWidth, false>);
              }
              const double share = training ? 1 / static_cast<double>(tiling.rows) : 0;
              gradients_kernel<<<joins.blocks, joins.threads, 0, joins.stream>>>(
                  partial.const_data_ptr<float>(), tiling, floats_of(scaling.inverse_deviation), share, row(0), row(1),
                  row(2), row(3), row(4));
              C10_CUDA_KERNEL_LAUNCH_CHECK();
              at::Tensor by_rows = by_channel.narrow(0, 3, 2);  // rows 3 and 4: constant and linear
              if (ranks) average(*ranks, by_rows);
              if (prelu) {
                gradients(backward_kernel<T, kWidth, true>);
              } else {
                gradients(backward_kernel<T, kWidth, false>);
              }
            });
  return {x_gradient, by_channel[1], by_channel[0], prelu ? by_channel[2] : at::Tensor()};
}

}  // namespace facetrain::cuda
