// Batch norm and what follows it in a face backbone, a PReLU or the addition that ends a residual block, as one
// operator. Nearly every convolution is followed by one of these.
//
// All are bound by memory bandwidth. Separately, batch norm and PReLU read or write an activation five times in the
// forward pass and eight times in the backward pass, and keep two tensors of its size for the backward pass. As one
// operator these numbers are three, five and one. Addition saves two passes.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/joined_ranks.h"
#include "model/pass.h"

namespace facetrain {

struct BatchNorm {
  at::Tensor gamma, beta, running_mean, running_variance;  // [C] float32
  double epsilon;                                          // added to the variance
};

// BN(x), PReLU(BN(x)) and BN(x) + residual, of x's type, for x [N, C, ...], slope [C] or [1], and a residual of x's
// shape. Differentiable in all tensors but the running statistics. Statistics, their gradients and all sums are
// float32 also if x is of 16 bits.
//
// In training, normalizes by the statistics of the batch and moves the running statistics towards them by 0.1 (the
// variance with Bessel's correction), as torch does. Otherwise normalizes by the running statistics. Calls ATen's
// operators where there are no kernels of our own: for a plain batch norm on a CPU, and for an x that is not
// channels-last or [N, C], or of a type other than float32 and bfloat16 (on CUDA also float16).
//
// With `ranks`, the statistics of a batch, and their gradients, are those of the x of all ranks together, which have
// one shape. Forward and backward are then collectives; every rank calls them in the same order, and gets the same
// statistics bit for bit. The gradients of gamma, beta and slope are sums over the rank's own x. (As
// torch.nn.SyncBatchNorm.) Throws c10::Error for an x that only ATen's operators take.
at::Tensor batch_norm(const at::Tensor& x, const BatchNorm& norm, Pass pass, const JoinedRanks* ranks = nullptr);
at::Tensor batch_norm_prelu(const at::Tensor& x, const BatchNorm& norm, const at::Tensor& slope, Pass pass,
                            const JoinedRanks* ranks = nullptr);
at::Tensor batch_norm_add(const at::Tensor& x, const BatchNorm& norm, const at::Tensor& residual, Pass pass,
                          const JoinedRanks* ranks = nullptr);

}  // namespace facetrain
