// Randomness without state: every number is a function of its key and its place, so any rank, any thread and any
// resumed run finds the same one.
#pragma once

#include <bit>
#include <cstdint>
#include <initializer_list>

namespace facetrain {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words whose every output bit depends on
// every input bit.
inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

inline uint64_t keyed(std::initializer_list<uint64_t> key) {
  uint64_t hash = 0;
  for (const uint64_t word : key) hash = mix(hash ^ word);
  return hash;
}

// A random order of 0 .. size-1 that is computed where it is asked for, so that an epoch of 10^8 pictures needs neither
// memory nor time up front: a Feistel network over the next power of four, walked until it is back inside the range
// (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
class Permutation {
 public:
  Permutation(int64_t size, uint64_t key)
      : size_(static_cast<uint64_t>(size)), key_(key), half_((std::bit_width(size_ - 1) + 1) / 2) {
    if (half_ == 0) half_ = 1;
  }

  int64_t operator()(int64_t index) const {
    auto x = static_cast<uint64_t>(index);
    do x = encrypt(x);
    while (x >= size_);
    return static_cast<int64_t>(x);
  }

 private:
  static constexpr uint64_t kRounds = 8;  // four make a good cipher of long words; short ones need more

  uint64_t encrypt(uint64_t x) const {
    const uint64_t mask = (uint64_t{1} << half_) - 1;
    uint64_t left = x >> half_, right = x & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (keyed({key_, round, right}) & mask);
      left = right;
      right = next;
    }
    return left << half_ | right;
  }

  uint64_t size_, key_;
  int half_;  // bits of half a word
};

}  // namespace facetrain
