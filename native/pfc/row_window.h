// The rows of a step on the device, when all rows of class centres are in host memory.
//
// The negatives of a step are a function of seed and step alone (class_sample.h). So the rows that a step uses are
// known a step ahead, except those of its positives, which are at most as many as the batch has pictures. They are
// copied to the device while the step before computes: no row is guessed, and there is no cache that could miss. On the
// device are the rows of two steps at most, with what their optimizer keeps:
//
//   open(t)      the rows of step t, and what step t - 1 made of its rows goes back to the host
//   prefetch     the negatives of step t + 1 are copied while step t computes. Of those that step t uses too, the
//                copy is old as soon as step t updates them
//   open(t + 1)  replaces the old copies by the rows of step t, adds the positives, and writes step t's rows back
//
// So an open window has the only valid copy of its rows; close() before anybody reads the rows in host memory.
//
// This is the window of CPUs, in whose memory both are. It computes what that of a device would, without the overlap.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace facetrain {

class RowWindow {
 public:
  // `host`: tensors [count, n], of which number i of the first dimension belongs to row i. They must not be replaced.
  explicit RowWindow(std::vector<at::Tensor> host);

  // Copies these rows, ascending, for open(step, ...). The window is open, and stays as it is.
  void prefetch(uint64_t step, std::vector<int64_t> rows);
  // Makes it the window of rows[0], rows[1], ..., ascending. Those that were prefetched for the step must be among
  // them.
  void open(uint64_t step, const int64_t* rows, int64_t count);
  // Writes the rows back. Those that were prefetched are forgotten: their originals may be changed now.
  void close();

  bool is_open() const { return open_; }
  // While open: the place of each of its rows in tensors().
  const std::vector<int64_t>& slots() const { return slots_; }
  // As `host`, but [capacity, n], in the order of slots().
  const std::vector<at::Tensor>& tensors() const { return current_; }

 private:
  void write_back() const;

  const std::vector<at::Tensor> host_;
  bool open_ = false;
  std::vector<int64_t> rows_, slots_;       // of the window
  std::vector<at::Tensor> current_, next_;  // of the window, and of the one that is prefetched
  std::optional<uint64_t> prefetched_for_;  // a step
  std::vector<int64_t> prefetched_;         // number i is in place i of next_
};

}  // namespace facetrain
