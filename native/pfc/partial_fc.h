// Partial FC (An et al., arXiv 2010.05222 and 2203.15565): softmax over class centres that are sharded by rows over the
// ranks, on a sample of the classes.
//
// Each rank holds rows [first, first + count) of the matrix of class centres W [C, d]. A step gathers the features and
// labels of all ranks, computes their logits for the sampled rows of this rank, and sums two numbers per picture over
// the ranks. Logits never leave their rank.
//
// Cost of a step on a rank, with B pictures in the global batch and n sampled rows: three products of B x n x d, d
// numbers a row for each of W, momentum and gradient, and B (d + 3) floats of gathered features. The B x n logits are
// computed in tiles (tile_rows). Up to kept_logits of them are kept between the forward and the backward pass.
//
// cpu_step.cc has the step on CPUs, cuda_step.cc that on CUDA, which queues its work and returns.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/comm.h"
#include "pfc/margin.h"
#include "pfc/row_update.h"
#include "precision.h"

namespace facetrain {

struct RowRange {
  int64_t first = 0;  // global class
  int64_t count = 0;
};

// The contiguous split of the reference (arcface_torch): num_classes / size rows each, and one more on the first
// num_classes % size ranks.
RowRange row_range(int64_t num_classes, int rank, int size);

// The classes are cut into so many blocks as even as possible, of which a rank has whole ones with
// PfcOptions::reproducible.
inline constexpr int64_t kClassBlocks = 128;
// The first class of a block; of block kClassBlocks the number of classes.
inline int64_t block_start(int64_t num_classes, int64_t block) { return num_classes * block / kClassBlocks; }
// The blocks of a rank.
inline std::pair<int64_t, int64_t> rank_blocks(int rank, int size) {
  return {kClassBlocks * rank / size, kClassBlocks * (rank + 1) / size};
}

// Another sample rate, from a step on.
struct SampleRateChange {
  uint64_t from_step;
  double rate;
};

// No defaults for what users set: those are in api/src/facetrainjob.ts.
struct PfcOptions {
  int64_t num_classes;
  int64_t embedding_dim;
  // Pictures of each rank in a step, by rank; empty: each has as many.
  std::vector<int64_t> parts = {};
  double sample_rate;  // r: the share of the negative classes in a step; 1: all. Until the first of sample_rate_changes
  uint64_t seed;       // of the initial rows and of the choice of classes
  float scale;         // s, at most 512
  Margin margin;
  // A negative whose cosine exceeds this is taken for label noise (arXiv 2203.15565): its logit is 0 and has no
  // gradient.
  std::optional<float> interclass_filter;
  int64_t tile_rows = 0;  // class centres in a tile; 0: chosen from batch size, dimension and device
  // How many logits to keep from the forward to the backward pass; negative: chosen by device. The others are computed
  // twice. The result is the same.
  int64_t kept_logits = -1;
  at::Device device = at::kCPU;  // of the embeddings and the collectives, and of the rows without host_rows
  // Of the products; a CPU computes those of TF32 and FP16 in float32. Sums, targets and updates are in float32 or
  // float64.
  Precision precision = Precision::fp32;
  // Rows, momentum and moments in bfloat16, which are updated in float32 and rounded stochastically; else in float32.
  bool bf16_rows = false;
  // Rows and what their optimizer keeps are in host memory; results are the same. A step on a CPU computes in copies of
  // the rows that it uses, at most two steps' (row_window.h); one on CUDA reaches the rows over the bus (cuda_step.cc).
  bool host_rows = false;
  // Results do not depend on the number of ranks, bit for bit, nor, with products in float32, on that of threads. Only
  // on CPUs. It costs an all-reduce of 8 B kClassBlocks bytes and one of 8 B d, and gathers the rows twice.
  bool reproducible = false;
  RowOptimizer row_optimizer = RowOptimizer::sgd;
  // Every update changes every row, also those that the step has not sampled: as if the gradient of these were 0. (They
  // are changed when they are sampled next.) Not with AdamW.
  bool dense_update = false;
  std::vector<SampleRateChange> sample_rate_changes = {};  // by ascending step

  // By the step's number alone, as sampleRateAt in api/src/sample-rates.ts.
  double sample_rate_at(uint64_t step) const {
    double rate = sample_rate;
    for (const SampleRateChange& change : sample_rate_changes) {
      if (change.from_step <= step) rate = change.rate;
    }
    return rate;
  }
};

// The rows of class centres, or a part of what the optimizer keeps for each.
struct RowTensor {
  // `weight`; of SGD `momentum`; of AdamW `first_moment`, `second_moment` and `updates`, the number of updates of a
  // row; of AdaGrad `squares`, its sum of mean squares.
  std::string name;
  at::Tensor values;  // [count, n]. n is d, or 1: these are float32 also with bf16_rows.
};

// Rows of class centres, and what their optimizer keeps for them.
struct SampledRows {
  at::Tensor rows;                  // int64 [n], ascending, counted from this rank's first row
  std::vector<at::Tensor> tensors;  // as row_tensors(): number i of the rows is in place places[i] of each
  at::Tensor places;                // int64 [n]
};

struct PfcResult {
  at::Tensor loss;             // [] float64: the mean over the global batch, the same on every rank
  at::Tensor grad_embeddings;  // d loss / d embeddings [b, d] float32
};

class HeadStep;

class PartialFc {
 public:
  // Rows are drawn from N(0, 0.01^2). A row depends on seed and class only: it is the same for every number of ranks.
  PartialFc(Comm& comm, const PfcOptions& options);

  ~PartialFc();

  // Takes this rank's part of the batch: embeddings [b, d] float32, not normalized; labels [b] int64 in [0, C). b is
  // as PfcOptions::parts says. A vector shorter than 1e-12 is treated as zero: its cosines and its gradient are 0.
  // `step` seeds the choice of classes. If the loss is finite, so is the gradient of the rows, which are not shorter
  // than 1e-12 or have none. Throws CommError, and on CPUs what check_labels throws.
  using Result = PfcResult;
  Result forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step);
  // Throws Error(InvalidDataset), on every rank, if the last step's batch had a label outside [0, C). On CUDA the step
  // itself does not know, and such a label makes the loss NaN; this waits for the device.
  void check_labels() const;

  // Updates the rows by the gradient of the last forward_backward, as row_update.h defines it: those that it sampled,
  // or with dense_update all. On CUDA nothing changes if `skip` [1] float32, on the device, is not 0.
  void update_rows(double learning_rate, double momentum, double weight_decay, const at::Tensor& skip = {});

  // For the steps to come; the rows stay.
  void set_precision(Precision precision);
  // From the next step on, these classes are no negatives; any order, those of other ranks too. They replace the former
  // ones. A picture of such a class would count as any other: its loader has to leave it out.
  void retire(const std::vector<int64_t>& classes);

  // What the margin AdaFace has made of the lengths of features, of all ranks' batches; the same on every rank. For
  // checkpoints. On CUDA it waits for the device.
  NormStatistics norm_statistics() const;
  void set_norm_statistics(const NormStatistics& statistics);

  RowRange rows() const { return rows_; }
  // For checkpoints: `weight` first. On the device, or with host_rows on the host. Values may be written, the tensors
  // must not be replaced. Call it anew for each read or write: a step on CUDA keeps what it made of the rows, and dense
  // updates of rows may be pending.
  const std::vector<RowTensor>& row_tensors();
  at::Tensor& weight() { return find("weight"); }      // [count, d], as of row_tensors()
  at::Tensor& momentum() { return find("momentum"); }  // of SGD
  // The rows that the last step used: int64 [n], ascending, counted from this rank's first row. Waits for the device.
  at::Tensor sampled() const;
  // Those rows as the update has left them, all on the host; valid until the next step. Not with dense_update, which
  // changes all rows, some of them later. Waits for the device.
  SampledRows sampled_rows() const;
  // d loss / d (those rows) [n, d] float32, of the last step and before the update of the rows. Waits for the device.
  at::Tensor sampled_gradient() const;

 private:
  at::Tensor& find(const std::string& name);

  const int ranks_;
  const std::vector<int64_t> parts_;
  const int64_t num_classes_;
  const RowRange rows_;
  std::vector<RowTensor> tensors_;
  std::unique_ptr<HeadStep> step_;
};

}  // namespace facetrain
