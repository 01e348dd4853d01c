// Vectors of 256 bits for the kernels of AVX2 and of AVX-VNNI, and their type for epilogue.h. As there, everything is
// in an anonymous namespace.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "int7/epilogue.h"
#include "int7/kernels.h"

namespace facetrain::int7 {
namespace {

inline __m256i load32(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
inline void store32(void* y, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(y), x); }

struct Vector {
  using Real = __m256;
  static constexpr int kLanes = 8;

  static Real all(float x) { return _mm256_set1_ps(x); }
  static Real load(const float* x) { return _mm256_loadu_ps(x); }
  static Real load_sums(const int32_t* x) { return _mm256_cvtepi32_ps(load32(x)); }
  static Real load_bytes(const uint8_t* x, int zero) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    const __m128i q = _mm_sub_epi8(bytes, _mm_set1_epi8(static_cast<char>(zero)));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
  }
  static void store_bytes(uint8_t* y, Real q, int zero) {
    const __m256i integers = _mm256_cvtps_epi32(q);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
    const __m128i bytes = _mm_add_epi8(_mm_packs_epi16(words, words), _mm_set1_epi8(static_cast<char>(zero)));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(y), bytes);
  }
  static Real mul(Real a, Real b) { return _mm256_mul_ps(a, b); }
  static Real add(Real a, Real b) { return _mm256_add_ps(a, b); }
  static Real div(Real a, Real b) { return _mm256_div_ps(a, b); }
  static Real min(Real a, Real b) { return _mm256_min_ps(a, b); }
  static Real max(Real a, Real b) { return _mm256_max_ps(a, b); }
  static Real round(Real x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Real select_positive(Real x, Real positive, Real negative) {
    return _mm256_blendv_ps(negative, positive, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ));
  }
};

inline __m256i broadcast4(const uint8_t* x) {
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return _mm256_set1_epi32(value);
}

// Kernels::bare_products, with add(sum, a): `sum` and the products of 32 bytes `a` with themselves.
template <class Add>
int64_t bare_products_of(int64_t rounds, Add add) {
  constexpr int kSums = 12;
  __m256i sum[kSums];
#pragma GCC unroll 12
  for (auto& each : sum) each = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi8(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (auto& each : sum) {
      asm volatile("" : "+x"(a));  // else the compiler would see that all sums are equal, and compute one product
      each = add(each, a);
    }
  }
#pragma GCC unroll 12
  for (auto& each : sum) asm volatile("" ::"x"(each));
  return rounds * kSums * 32;
}

}  // namespace
}  // namespace facetrain::int7
