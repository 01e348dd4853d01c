// The kernel of sgd.h.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "train/sgd.h"

namespace facetrain {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 2048;  // enough for every GPU that there is; a thread then takes several elements

// Four elements at once; the last ones alone.
__global__ void __launch_bounds__(kThreads) step_kernel(const float* gradient, const double* factor, RowSgd sgd,
                                                        int64_t count, float* weight, float* momentum) {
  if (!isfinite(*factor)) return;
  const auto times = static_cast<float>(*factor);
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x, threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = thread; i < count / 4; i += threads) {
    const float4 g = reinterpret_cast<const float4*>(gradient)[i];
    float4 w = reinterpret_cast<const float4*>(weight)[i], m = reinterpret_cast<const float4*>(momentum)[i];
    sgd.apply(w.x, m.x, times * g.x);
    sgd.apply(w.y, m.y, times * g.y);
    sgd.apply(w.z, m.z, times * g.z);
    sgd.apply(w.w, m.w, times * g.w);
    reinterpret_cast<float4*>(weight)[i] = w;
    reinterpret_cast<float4*>(momentum)[i] = m;
  }
  for (int64_t i = count / 4 * 4 + thread; i < count; i += threads)
    sgd.apply(weight[i], momentum[i], times * gradient[i]);
}

bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % sizeof(float4) == 0;
}

}  // namespace

void cuda::sgd_step(const at::Tensor& weights, const at::Tensor& momentum, const at::Tensor& gradients,
                    const at::Tensor& factor, const RowSgd& sgd) {
  const int64_t count = weights.numel();
  if (count == 0) return;
  TORCH_CHECK(is_aligned(weights) && is_aligned(momentum) && is_aligned(gradients),
              "flat buffers start at multiples of 16 bytes");
  const c10::cuda::CUDAGuard guard(weights.device());
  const int64_t blocks = std::min(kMostBlocks, (count + 4 * kThreads - 1) / (4 * kThreads));
  step_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      gradients.const_data_ptr<float>(), factor.const_data_ptr<double>(), sgd, count, weights.mutable_data_ptr<float>(),
      momentum.mutable_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace facetrain
