// Partial FC (arXiv 2010.05222): softmax over class centres that are sharded by rows over the ranks, on a sample of the
// classes.
//
// Each rank holds rows [first, first + count) of the class centre matrix W [C, d]. A step gathers features and labels
// of all ranks, scores them against the sampled local rows, and shares only two numbers per sample; logits never leave
// their rank.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

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
  float scale = 64.0f;  // s, at most 512
  Margin margin;
  // A cosine above this that is not the target's counts as noise in the labels: its logit is 0, and it has no gradient.
  std::optional<float> interclass_filter;
  int64_t tile_rows = 0;  // class centres scored at a time; 0: as many as the cache holds
  // Logits that the backward pass finds kept (64 MiB); those beyond are computed a second time. The result is the same.
  int64_t kept_logits = int64_t{1} << 24;
  at::Device device = at::kCPU;  // of the rows, the embeddings and the collectives
};

class PartialFc {
 public:
  // Rows are drawn from N(0, 0.01^2), keyed by seed and class: the same for every number of ranks.
  PartialFc(Comm& comm, const PfcOptions& options);

  // embeddings [b, d] float32 (not normalised), labels [b] int64 in [0, C): this rank's part; the same b on every rank.
  // Returns d loss / d embeddings [b, d] where loss is the mean over the global batch; `loss` is the same on every
  // rank. A vector shorter than 1e-12 has no direction: its cosines and its gradient are 0. Throws Error
  // InvalidDataset, on every rank, for a label that is no class.
  struct Result {
    double loss = 0;
    at::Tensor grad_embeddings;
  };
  Result forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step);

  // Lazy SGD on the rows sampled by the last forward_backward: m <- mu m + (g + wd w); w <- w - lr m. Other rows do not
  // move.
  void apply_sgd(double learning_rate, double momentum, double weight_decay);

  RowRange rows() const { return rows_; }
  // For checkpoints: write into them, do not replace them.
  at::Tensor& weight() { return weight_; }                // [count, d]
  at::Tensor& momentum() { return momentum_; }            // [count, d]
  const at::Tensor& sampled() const { return sampled_; }  // local row indices of the last step, ascending, int64
  const at::Tensor& sampled_gradient() const { return gradient_; }  // [sampled, d]; the next step overwrites it

 private:
  std::vector<int64_t> sample(uint64_t step, const std::vector<int64_t>& positives);
  at::Tensor sampled_rows(const at::Tensor& matrix, int64_t first, int64_t count) const;

  Comm& comm_;
  PfcOptions options_;
  RowRange rows_;
  at::Tensor weight_, momentum_, sampled_, gradient_;
};

}  // namespace facetrain
