// The precision in which an executor computes, and over which pictures its batch norms take their statistics.
//
// Weights are float32 whatever the precision. Convolutions and matrix products cast them, and their other operand, to
// the precision's type; the activations between them keep that type. The cast is an operation of autograd, so a
// weight's gradient arrives in float32. What needs more digits stays float32: the statistics and parameters of batch
// norms, slopes of PReLU, arithmetic with constants of the graph, the batch norm that ends the graph, and the
// embedding.
//
// The casts are written out in operators.cc. ATen's autocast would decide by lists of its own, and keeps a cache of
// casted weights that is not ours to clear.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/joined_ranks.h"
#include "precision.h"

namespace facetrain {

// Shared by an executor and its operators, which read it in every pass.
struct Compute {
  Precision precision = Precision::fp32;
  // The ranks over whose pictures the batch norms of a training pass take their statistics; null: each rank's own.
  const JoinedRanks* norm_ranks = nullptr;

  // Of activations, and of the operands of products.
  at::ScalarType type() const {
    return precision == Precision::bf16 ? at::kBFloat16 : precision == Precision::fp16 ? at::kHalf : at::kFloat;
  }
  // An operand of a product: `tensor` in that type, with the same strides; undefined if it is.
  at::Tensor operand(const at::Tensor& tensor) const {
    return tensor.defined() && tensor.scalar_type() != type() ? tensor.to(type()) : tensor;
  }
};

// Sets libtorch's switches of this process, so that products of float32 numbers are computed as `precision` says: in
// TF32 for tf32 and in IEEE float32 for all others, both in cuDNN (whose default is TF32) and in cuBLAS; and so that
// cuBLAS never adds up products of 16-bit numbers in 16 bits (which is its default in split sums).
void use_precision(Precision precision);

}  // namespace facetrain
