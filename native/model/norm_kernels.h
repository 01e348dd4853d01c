// The kernels of batch_norm_prelu.cc on CUDA (batch_norm_prelu.cu). Those of the CPU are in batch_norm_prelu.cc itself.
//
// All tensors of one value per channel are float32 [C] without gaps. x, y and gradients are rows (rows.h) of one type:
// float32, bfloat16 or float16.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/batch_norm_prelu.h"

namespace facetrain {

// By channel: y = (x - mean) scale + beta, where scale is gamma times the inverse deviation.
struct Scaling {
  at::Tensor mean, inverse_deviation, scale;
};

// What follows the normalization; one of the two or none is defined.
struct Then {
  at::Tensor slope;     // [C]: PReLU
  at::Tensor residual;  // rows, of x's type and shape: added
};

struct NormGradients {
  at::Tensor x, gamma, beta;
  at::Tensor slope;  // undefined without PReLU
};

// Replaces the means over this rank's rows by those over the rows of all ranks.
inline void average(const JoinedRanks& ranks, at::Tensor& means) {
  means.mul_(ranks.own_share());
  ranks.comm->all_reduce_sum(means);
}

namespace cuda {

// Whether the kernels can compute with x. False in a build without CUDA.
bool has_norm_rows(const at::Tensor& x);

// In training from the batch's statistics, and moves the running ones by `momentum` towards them; otherwise from the
// running statistics.
Scaling norm_scaling(const at::Tensor& x, const BatchNorm& norm, double momentum, bool training);
at::Tensor norm_forward(const at::Tensor& x, const Scaling& scaling, const at::Tensor& beta, const Then& then);
// With `ranks`, the statistics through which a part of the gradient goes are those of all ranks.
NormGradients norm_backward(const at::Tensor& x, const at::Tensor& gradient, const Scaling& scaling,
                            const at::Tensor& beta, const Then& then, bool training, const JoinedRanks* ranks);

}  // namespace cuda
}  // namespace facetrain
