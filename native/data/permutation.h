// A random order of 0 .. size - 1, computed element by element: an epoch of 10^8 pictures needs neither memory nor time
// in advance, and every rank computes the same order.
//
// A Feistel network permutes the numbers below the next power of four. A result of `size` or more is permuted again
// until it is below `size` ("cycle walking": Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method
// 2). An element costs at most four passes of 8 rounds on average.
#pragma once

#include <bit>
#include <cstdint>

#include "random.h"

namespace facetrain {

class Permutation {
 public:
  // `size` is 1 or more. The order depends on the key.
  Permutation(int64_t size, uint64_t key)
      : size_(static_cast<uint64_t>(size)), key_(key), half_bits_((std::bit_width(size_ - 1) + 1) / 2) {
    if (half_bits_ == 0) half_bits_ = 1;
  }

  // The element at place `index`, which is below `size`.
  int64_t operator()(int64_t index) const {
    auto x = static_cast<uint64_t>(index);
    do x = encrypt(x);
    while (x >= size_);
    return static_cast<int64_t>(x);
  }

 private:
  static constexpr uint64_t kRounds = 8;  // four suffice for long words; short ones need more

  uint64_t encrypt(uint64_t x) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = x >> half_bits_, right = x & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (hash_words({key_, round, right}) & mask);
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  uint64_t size_, key_;
  int half_bits_;
};

}  // namespace facetrain
