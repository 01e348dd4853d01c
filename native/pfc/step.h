// A step of Partial FC on one kind of device: partial_fc.h has the mathematics, cpu_step.cc and cuda_step.cc the two
// implementations. Included by pfc/*.cc only.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/comm.h"
#include "pfc/partial_fc.h"
#include "pfc/row_update.h"

namespace facetrain {

// Up to it, e^s and the sum of 10^8 of them are in the range of float32: a step exponentiates a logit once, relative
// to 1.
inline constexpr float kLargestScale = 70;

// The least multiple of `step` that is n or more.
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

class RowWindow;

class HeadStep {
 public:
  virtual ~HeadStep() = default;
  // As PartialFc's.
  virtual PfcResult forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) = 0;
  virtual void update_rows(const RowRates& rates, const at::Tensor& skip) = 0;
  // As PartialFc's. On CUDA they wait for the device.
  virtual at::Tensor sampled() const = 0;
  virtual at::Tensor sampled_gradient() const = 0;
  // The window that has the only valid copies of the rows in sampled(); null: they are where the constructor has been
  // told.
  virtual const RowWindow* window() const { return nullptr; }
  virtual void set_precision(Precision precision) = 0;
  // `rows`: of this rank, ascending, each once.
  virtual void retire(std::vector<int64_t> rows) = 0;
  // To be called before anybody else reads or writes the rows and their state.
  virtual void release_rows() = 0;
  // As PartialFc's.
  virtual NormStatistics norm_statistics() const = 0;
  virtual void set_norm_statistics(const NormStatistics& statistics) = 0;
  // Of the global batch of the last step [B] int64, on the host.
  virtual at::Tensor labels() const = 0;
};

// `tensors`: the rows, and what their optimizer keeps, as PartialFc::row_tensors. Both draw the initial rows.
// make_cuda_step throws Error(InvalidConfig) in a build without CUDA.
std::unique_ptr<HeadStep> make_cpu_step(Comm& comm, const PfcOptions& options, RowRange rows,
                                        const std::vector<RowTensor>& tensors);
std::unique_ptr<HeadStep> make_cuda_step(Comm& comm, const PfcOptions& options, RowRange rows,
                                         const std::vector<RowTensor>& tensors);

// Throws Error(InvalidDataset), on every rank, if a label of the global batch [B] int64 is outside [0, num_classes).
// `parts` as PfcOptions's.
void check_labels(const at::Tensor& labels, int64_t num_classes, int ranks, const std::vector<int64_t>& parts);

}  // namespace facetrain
