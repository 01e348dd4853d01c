// Random numbers without state: a number is a function of its key and its place (seed, epoch, step, picture, class), so
// every rank, every thread and every resumed run computes the same one, in any order. (Counter-based generators: Salmon
// et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.)
//
// The mixing function is SplitMix64's (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA
// 2014; constants as in Vigna's splitmix64.c). It costs two multiplications and three shifts a number. It is not for
// cryptography.
//
// Trained models and checkpoints depend on every bit: the epoch's order, the augmentation, the class sample and the
// initial class centres all come from here. random_test.cc pins the values.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace facetrain {

// 2^64 / golden ratio, odd: the step between the states of a SplitMix64 sequence.
inline constexpr uint64_t kGoldenGamma = 0x9e3779b97f4a7c15;

// SplitMix64's output for the state `x`: a bijection of 64-bit words whose every output bit depends on every input bit.
constexpr uint64_t splitmix64(uint64_t x) {
  x += kGoldenGamma;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// The `counter`-th number (from 0) of the SplitMix64 sequence that starts at `key`. A number can be a key in turn:
// sequence_number(sequence_number(seed, a), b).
constexpr uint64_t sequence_number(uint64_t key, uint64_t counter) { return splitmix64(key + counter * kGoldenGamma); }

// A hash of all words in their order. Another count of words gives another hash: use one count for one purpose.
constexpr uint64_t hash_words(std::initializer_list<uint64_t> words) {
  uint64_t hash = 0;
  for (const uint64_t word : words) hash = splitmix64(hash ^ word);
  return hash;
}

}  // namespace facetrain
