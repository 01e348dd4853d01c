// Partial FC (An et al., arXiv 2010.05222 and 2203.15565): softmax over class centres that are sharded by rows over the
// ranks, on a sample of the classes.
//
// Each rank holds rows [first, first + count) of the matrix of class centres W [C, d]. A step gathers the features and
// labels of all ranks, computes their logits for the sampled rows of this rank, and sums two numbers per picture over
// the ranks. Logits never leave their rank.
//
// Cost of a step on a rank, with B pictures in the global batch and n sampled rows: three products of B x n x d, 4 d
// bytes a row for each of W, momentum and gradient, and B (d + 2) floats of gathered features. The B x n logits are
// computed in tiles (tile_rows). Up to kept_logits of them are kept between the forward and the backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "comm/comm.h"
#include "pfc/margin.h"

namespace facetrain {

struct RowRange {
  int64_t first = 0;  // global class
  int64_t count = 0;
};

// The contiguous split of the reference (arcface_torch): num_classes / size rows each, and one more on the first
// num_classes % size ranks.
RowRange row_range(int64_t num_classes, int rank, int size);

// No defaults for what users set: those are in api/src/facetrainjob.ts.
struct PfcOptions {
  int64_t num_classes;
  int64_t embedding_dim;
  double sample_rate;  // r: the share of the negative classes in a step; 1: all
  uint64_t seed;       // of the initial rows and of the choice of classes
  float scale;         // s, at most 512
  Margin margin;
  // A negative whose cosine exceeds this is taken for label noise (arXiv 2203.15565): its logit is 0 and has no
  // gradient.
  std::optional<float> interclass_filter;
  int64_t tile_rows = 0;  // class centres in a tile; 0: chosen from batch size, dimension and device
  // How many logits to keep from the forward to the backward pass (2^24: 64 MiB). The others are computed twice. The
  // result is the same.
  int64_t kept_logits = int64_t{1} << 24;
  at::Device device = at::kCPU;  // of the rows, the embeddings and the collectives
};

class PartialFc {
 public:
  // Rows are drawn from N(0, 0.01^2). A row depends on seed and class only: it is the same for every number of ranks.
  PartialFc(Comm& comm, const PfcOptions& options);

  // Takes this rank's part of the batch: embeddings [b, d] float32, not normalized; labels [b] int64 in [0, C). b is
  // the same on every rank. Returns the mean loss over the global batch, the same on every rank, and d loss / d
  // embeddings [b, d]. A vector shorter than 1e-12 is treated as zero: its cosines and its gradient are 0. `step`
  // seeds the choice of classes. Throws Error(InvalidDataset), on every rank, for a label outside [0, C), and
  // CommError.
  struct Result {
    double loss = 0;
    at::Tensor grad_embeddings;
  };
  Result forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step);

  // Lazy SGD on the rows that the last forward_backward sampled: m <- momentum m + (g + weight_decay w),
  // w <- w - learning_rate m. Other rows and their momentum do not change.
  void apply_sgd(double learning_rate, double momentum, double weight_decay);

  RowRange rows() const { return rows_; }
  // For checkpoints: values may be written, the tensors must not be replaced.
  at::Tensor& weight() { return weight_; }      // [count, d]
  at::Tensor& momentum() { return momentum_; }  // [count, d]
  // The rows that the last step used: int64 [n], ascending, counted from this rank's first row.
  const at::Tensor& sampled() const { return sampled_; }
  // d loss / d (those rows) [n, d]. The next step overwrites it.
  const at::Tensor& sampled_gradient() const { return gradient_; }

 private:
  std::vector<int64_t> sample(uint64_t step, const std::vector<int64_t>& positives);
  at::Tensor sampled_rows(const at::Tensor& matrix, int64_t first, int64_t count) const;

  Comm& comm_;
  PfcOptions options_;
  RowRange rows_;
  at::Tensor weight_, momentum_, sampled_, gradient_;
};

}  // namespace facetrain
