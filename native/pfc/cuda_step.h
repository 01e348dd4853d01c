// The Partial FC step on a CUDA device. PartialFc uses it there; partial_fc.cc has the step on CPUs, and the
// mathematics of both. Included by pfc/*.cc only.
//
// The host only queues work. What it must know before, the number of sampled rows, is counted a step ahead: the
// negatives of a step depend on its number alone, so they are drawn at the end of the step before, and their number is
// on the host long before it is needed. With the B positives at most it bounds the rows of the step, and the buffers
// have that many rows; the true number stays on the device, where kernels skip what is beyond it. (A fixed capacity
// would overflow once in a while, and need a way out.) Only a step that does not follow the last one waits for the
// device.
//
// In one pass over tiles of the sample, with cosines in float32 by cuBLAS: e^(s cos) of a tile, in the type of the
// products, its sum for each picture, and its product with the tile's rows. Division by Z, which is known after the
// last tile, is put off: the features' gradient is divided by Z_i in the end, and the rows' gradient is the product of
// the exponentials with features divided by Z_i. So no logit is computed twice, except those beyond kept_logits. The
// targets' terms are added in float32, not in the products' type. e^(s cos) must be in the products' range of
// exponents: with float16, or s above kLargestScale, two passes are made instead, and the second computes each tile's
// logits again, relative to log Z.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "comm/comm.h"
#include "pfc/partial_fc.h"
#include "pfc/row_update.h"

namespace facetrain {

class CudaStep {
 public:
  virtual ~CudaStep() = default;
  virtual PfcResult forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) = 0;
  virtual void apply_sgd(const RowSgd& sgd, const at::Tensor& skip) = 0;
  // As PartialFc's. They wait for the device.
  virtual at::Tensor sampled() const = 0;
  virtual at::Tensor sampled_gradient() const = 0;
  virtual void set_precision(Precision precision) = 0;
  // To be called before anybody else writes to the rows.
  virtual void rows_change() = 0;
  // Of the global batch of the last step [B] int64, on the host.
  virtual at::Tensor labels() const = 0;
};

// Draws the initial rows in `weight`, on its device. Throws Error(InvalidConfig) in a build without CUDA.
std::unique_ptr<CudaStep> make_cuda_step(Comm& comm, const PfcOptions& options, RowRange rows, const at::Tensor& weight,
                                         const at::Tensor& momentum);

}  // namespace facetrain
