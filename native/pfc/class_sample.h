// Which classes a step samples, as words of 32 bits: bit i of word w is the class in row 32 w + i of this rank.
// Compiles for CPU and CUDA.
//
// A negative class is chosen if the hash of (seed, step, class) is below sample_rate * 2^64. The decision needs no
// other class and no other rank, so the choice is the same for every number of ranks and needs no collective. Each
// negative is chosen with probability sample_rate, independently of the others. The number of negatives is binomial,
// with mean C r and deviation sqrt(C r (1 - r)): 100 000 and 300 for a million classes at r = 0.1. The reference
// (arcface_torch) instead draws a sample of fixed size that includes the positives, and is larger if these are more.
//
// Classes that are retired are left out of the choice, whose other classes stay: it is a function of seed, step and the
// set of live classes.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "pfc/initial_rows.h"
#include "random.h"

namespace facetrain {

struct ClassSample {
  uint64_t key, threshold;
  bool all;  // 2^64 is no number of 64 bits

  // 0 <= rate <= 1.
  ClassSample(uint64_t seed, uint64_t step, double rate)
      : key(sequence_number(sequence_number(seed, kSampleStream), step)),
        threshold(rate < 1 ? static_cast<uint64_t>(std::ldexp(rate, 64)) : 0),
        all(rate >= 1) {}

  FT_HD bool has(int64_t class_id) const {
    return all || sequence_number(key, static_cast<uint64_t>(class_id)) < threshold;
  }

  // The negatives among rows [32 word, 32 word + 32) of the `count` rows that start with class `first`.
  FT_HD uint32_t word(int64_t word, int64_t first, int64_t count) const {
    uint32_t bits = 0;
    const int64_t row = 32 * word, end = count - row < 32 ? count - row : 32;
    for (int i = 0; i < end; ++i) bits |= uint32_t{has(first + row + i)} << i;
    return bits;
  }
};

}  // namespace facetrain
