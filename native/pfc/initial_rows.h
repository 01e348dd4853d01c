// The normal numbers that class centres start from. Compiles for CPU and CUDA, and gives the same bits on both: it uses
// additions, multiplications, divisions and square roots only, which IEEE 754 rounds correctly, and never joins two of
// them into one (FT_ROUNDED).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "random.h"

namespace facetrain {

inline constexpr float kInitDeviation = 0.01f;

// The streams of random numbers that one seed gives. Changing the order changes every training run.
enum PfcStream : uint64_t { kInitStream, kSampleStream, kRoundingStream, kMomentsStream, kPendingStream };

// On CUDA a compiler may join a product and a sum into one operation, which rounds once. On CPUs -ffp-contract=off
// forbids it.
#if defined(__CUDA_ARCH__)
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float rounded_sum(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float rounded_quotient(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float rounded_root(float a) { return __fsqrt_rn(a); }
#else
inline float rounded_product(float a, float b) { return a * b; }
inline float rounded_sum(float a, float b) { return a + b; }
inline float rounded_quotient(float a, float b) { return a / b; }
inline float rounded_root(float a) { return std::sqrt(a); }
#endif

// c[0] + x (c[1] + x (c[2] + ...)).
template <int kTerms>
FT_HD float polynomial(const float (&c)[kTerms], float x) {
  float sum = c[kTerms - 1];
  for (int i = kTerms - 2; i >= 0; --i) sum = rounded_sum(c[i], rounded_product(x, sum));
  return sum;
}

// The natural logarithm of k / 2^24 for 1 <= k <= 2^24, within 3 units in the last place. With k = m 2^e and m in
// [sqrt(1/2), sqrt(2)): log m = 2 artanh((m - 1) / (m + 1)), by its series.
FT_HD inline float log_of_fraction(uint32_t k) {
  // k is exact as a float, and its bits have e and the mantissa in [1, 2).
  const auto exact = static_cast<float>(k);
  uint32_t bits;
  memcpy(&bits, &exact, sizeof bits);
  int exponent = static_cast<int>(bits >> 23) - 127;
  bits = (bits & 0x7fffff) | 0x3f800000;
  float mantissa;
  memcpy(&mantissa, &bits, sizeof mantissa);
  if (mantissa > 1.41421356f) {
    mantissa = rounded_product(mantissa, 0.5f);
    ++exponent;
  }
  const float t = rounded_quotient(rounded_sum(mantissa, -1.0f), rounded_sum(mantissa, 1.0f));
  constexpr float kSeries[] = {2.0f, 2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9, 2.0f / 11};
  return rounded_sum(rounded_product(static_cast<float>(exponent - 24), 0.693147181f),
                     rounded_product(t, polynomial(kSeries, rounded_product(t, t))));
}

struct Pair {
  float first, second;
};

// cos and sin of 2 pi k / 2^24 for 0 <= k < 2^24, within 2^-22. The nearest quarter turn is exact; the rest, at most
// pi / 4, is by the Taylor series.
FT_HD inline Pair cosine_and_sine(uint32_t k) {
  const uint32_t quarter = (k + (1u << 21)) >> 22;
  const auto rest = static_cast<float>(static_cast<int32_t>(k) - static_cast<int32_t>(quarter << 22));
  const float x = rounded_product(rest, 1.57079633f / (1 << 22)), square = rounded_product(x, x);
  constexpr float kCosine[] = {1.0f, -1.0f / 2, 1.0f / 24, -1.0f / 720, 1.0f / 40320};
  constexpr float kSine[] = {1.0f, -1.0f / 6, 1.0f / 120, -1.0f / 5040, 1.0f / 362880};
  const float cosine = polynomial(kCosine, square), sine = rounded_product(x, polynomial(kSine, square));
  switch (quarter & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

// Two independent numbers from N(0, kInitDeviation^2), from 48 of the bits (Box and Muller, 1958).
FT_HD inline Pair normal_pair(uint64_t bits) {
  const float squared = rounded_product(-2.0f, log_of_fraction(static_cast<uint32_t>(bits >> 40) + 1));
  const float radius = rounded_product(kInitDeviation, rounded_root(squared));
  const Pair unit = cosine_and_sine(static_cast<uint32_t>(bits & 0xffffff));
  return {rounded_product(radius, unit.first), rounded_product(radius, unit.second)};
}

// Numbers 2 pair and 2 pair + 1 of the initial row of a class.
FT_HD inline Pair initial_pair(uint64_t seed, int64_t class_id, int64_t pair) {
  const uint64_t key = sequence_number(sequence_number(seed, kInitStream), static_cast<uint64_t>(class_id));
  return normal_pair(sequence_number(key, static_cast<uint64_t>(2 * pair)));
}

}  // namespace facetrain
