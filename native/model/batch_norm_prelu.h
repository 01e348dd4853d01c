// Batch norm and the PReLU behind it as one operator, as nearly every convolution of a face backbone has them.
//
// Both are bound by memory. One after the other they read and write an activation five times on the way forth and eight
// on the way back, and keep two of its size for the way back; together it is three, five and one.
#pragma once

#include <ATen/core/Tensor.h>

namespace facetrain {

struct BatchNorm {
  at::Tensor gamma, beta, running_mean, running_variance;  // [C]
  double epsilon = 1e-5;
};

// PReLU(BN(x)), x [N, C, ...], slope [C] or [1]. In training: statistics of the batch, and running ones move towards
// them by 0.1, variance with Bessel's correction, as torch has it; else the running ones. Differentiable in x, gamma,
// beta and slope. Where x is not channels-last on a CPU, this is ATen's operators one after the other.
at::Tensor batch_norm_prelu(const at::Tensor& x, const BatchNorm& norm, const at::Tensor& slope, bool training);

// ATen's, with the same meaning of `training`.
at::Tensor batch_norm(const at::Tensor& x, const BatchNorm& norm, bool training);

}  // namespace facetrain
