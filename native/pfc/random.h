// Random numbers that are a function of what they are for, not of who draws them or in which order: any rank, and any
// number of ranks, finds the same number for the same class.
#pragma once

#include <cstdint>

namespace facetrain {

// The `counter`-th number of the SplitMix64 sequence (Steele, Lea, Flood: "Fast splittable pseudorandom number
// generators", 2014) that starts at `key`. A number is a key in turn: hash64(hash64(seed, a), b).
constexpr uint64_t hash64(uint64_t key, uint64_t counter) {
  uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace facetrain
