// Partial FC (arXiv 2010.05222): softmax over class centres that are sharded by rows over the ranks, on a sample of the classes.
//
// Each rank holds rows [first, first + count) of the class centre matrix W [C, d]. A step gathers features and labels of all ranks,
// scores them against the sampled local rows, and shares only two numbers per sample; logits never leave their rank.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "comm/comm.h"
#include "pfc/margin.h"

namespace facetrain {

struct RowRange {
  int64_t first = 0;
  int64_t count = 0;
};

// The reference's contiguous split: C / W rows each, the first C % W ranks one more.
RowRange row_range(int64_t num_classes, int rank, int size);

struct PfcOptions {
  int64_t num_classes = 0;
  int64_t embedding_dim = 512;
  double sample_rate = 1.0;
  uint64_t seed = 0;
  float scale = 64.0f;
  Margin margin;
  std::optional<float> interclass_filter;
};

class PartialFc {
 public:
  PartialFc(Comm& comm, const PfcOptions& options);

  // embeddings [b, d] float32 (not normalised), labels [b] int64 in [0, C): this rank's part; the same b on every rank.
  // Returns d loss / d embeddings [b, d] where loss is the mean over the global batch; `loss` is the same on every rank.
  struct Result {
    double loss = 0;
    at::Tensor grad_embeddings;
  };
  Result forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step);

  // Lazy SGD on the rows sampled by the last forward_backward: m <- mu m + (g + wd w); w <- w - lr m. Other rows do not move.
  void apply_sgd(double learning_rate, double momentum, double weight_decay);

  RowRange rows() const { return rows_; }
  at::Tensor& weight() { return weight_; }      // [count, d]
  at::Tensor& momentum() { return momentum_; }  // [count, d]
  const at::Tensor& sampled() const { return sampled_; }            // local row indices of the last step, ascending, int64
  const at::Tensor& sampled_gradient() const { return gradient_; }  // [sampled, d], of the last step

 private:
  Comm& comm_;
  PfcOptions options_;
  RowRange rows_;
  at::Tensor weight_, momentum_, sampled_, gradient_;
};

}  // namespace facetrain
