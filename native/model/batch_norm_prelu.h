// Batch norm and the PReLU after it as one operator: nearly every convolution of a face backbone is followed by these
// two.
//
// Both are bound by memory bandwidth. Separately, they read or write an activation five times in the forward pass and
// eight times in the backward pass, and keep two tensors of its size for the backward pass. As one operator these
// numbers are three, five and one.
#pragma once

#include <ATen/core/Tensor.h>

namespace facetrain {

struct BatchNorm {
  at::Tensor gamma, beta, running_mean, running_variance;  // [C]
  double epsilon;                                          // added to the variance
};

// PReLU(BN(x)), x [N, C, ...], slope [C] or [1]. Differentiable in x, gamma, beta and slope.
//
// In training, normalizes by the statistics of the batch and moves the running statistics towards them by 0.1 (the
// variance with Bessel's correction), as torch does. Otherwise normalizes by the running statistics. If x is not
// float32 and channels-last on a CPU, calls ATen's two operators.
at::Tensor batch_norm_prelu(const at::Tensor& x, const BatchNorm& norm, const at::Tensor& slope, bool training);

// ATen's batch norm, with the same meaning of `training`.
at::Tensor batch_norm(const at::Tensor& x, const BatchNorm& norm, bool training);

}  // namespace facetrain
