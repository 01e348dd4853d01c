#include "train/sgd.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "model/rows.h"

namespace facetrain {
namespace {

constexpr int64_t kGrain = 32768;  // elements for which a thread is worth waking

FACETRAIN_CLONES void step_part(const float* FT_RESTRICT gradient, float factor, RowSgd sgd, int64_t count,
                                float* FT_RESTRICT weight, float* FT_RESTRICT momentum) {
  for (int64_t i = 0; i < count; ++i) sgd.apply(weight[i], momentum[i], factor * gradient[i]);
}

}  // namespace

void sgd_step(const at::Tensor& weights, const at::Tensor& momentum, const at::Tensor& gradients,
              const at::Tensor& factor, const RowSgd& sgd) {
  if (weights.is_cuda()) return cuda::sgd_step(weights, momentum, gradients, factor, sgd);
  const auto times = factor.item<double>();
  if (!std::isfinite(times)) return;
  at::parallel_for(0, weights.numel(), kGrain,
                   [&, from = gradients.const_data_ptr<float>(), to = weights.mutable_data_ptr<float>(),
                    kept = momentum.mutable_data_ptr<float>()](int64_t first, int64_t last) {
                     step_part(from + first, static_cast<float>(times), sgd, last - first, to + first, kept + first);
                   });
}

#ifndef FACETRAIN_CUDA
void cuda::sgd_step(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const RowSgd&) {
  TORCH_CHECK(false, "a build without CUDA");
}
#endif

}  // namespace facetrain
