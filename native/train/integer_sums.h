// Sums of float32 numbers that do not depend on the order of the addends, bit for bit, and so not on which rank has
// which: every addend becomes an integer, a multiple of 2^-44, and sums of integers have no order. (The simplest of the
// reproducible sums of Demmel and Nguyen, doi:10.1109/TC.2014.2345391, who choose the unit by the largest addend. Here
// it is fixed: gradients of a mean over a batch are far below 2^18 and of no interest below 2^-44.)
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace facetrain {

class IntegerSums {
 public:
  // `count` sums of `addends` numbers each, on the CPU.
  IntegerSums(int64_t count, int64_t addends);

  void clear();
  // Adds values [count] float32. An absolute value above 2^18 / addends, or one that is not finite, sets overflowed().
  void add(const at::Tensor& values);
  bool overflowed() const { return overflowed_; }

  at::Tensor& values() { return values_; }  // [count] int64, to be summed over ranks
  // Writes the sums to `out` [count] float32.
  void read(at::Tensor& out) const;

 private:
  const double most_;  // of an addend
  at::Tensor values_;
  bool overflowed_ = false;
};

}  // namespace facetrain
