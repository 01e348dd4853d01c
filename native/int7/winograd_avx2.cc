// Winograd's convolution on AVX2 (kernels.h). Operands and weights are int16, products are summed in int32 by vpmaddwd.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "int7/winograd.h"

namespace facetrain::int7 {
namespace {

// Of int16 and int32 alike, but of different types, so that operations have one name.
template <class Number>
struct Lanes {
  __m256i value;
};

struct Vectors {
  using Words = Lanes<int16_t>;
  using Sums = Lanes<int32_t>;
  static constexpr int kWords = 16, kSums = 8;

  static Words operands(const uint8_t* x, int zero) {
    const __m256i words = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return {_mm256_sub_epi16(words, _mm256_set1_epi16(static_cast<int16_t>(zero)))};
  }
  static Sums load(const int32_t* x) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))}; }
  static void store(int16_t* y, Words x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), x.value); }
  static void store(int32_t* y, Sums x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), x.value); }
  static Words add(Words a, Words b) { return {_mm256_add_epi16(a.value, b.value)}; }
  static Words sub(Words a, Words b) { return {_mm256_sub_epi16(a.value, b.value)}; }
  static Sums add(Sums a, Sums b) { return {_mm256_add_epi32(a.value, b.value)}; }
  static Sums sub(Sums a, Sums b) { return {_mm256_sub_epi32(a.value, b.value)}; }
  template <int S>
  static Words shift(Words a) {
    return {_mm256_slli_epi16(a.value, S)};
  }
  template <int S>
  static Sums shift(Sums a) {
    return {_mm256_slli_epi32(a.value, S)};
  }
  template <int S>
  static Sums shift_right(Sums a) {
    return {_mm256_srai_epi32(a.value, S)};
  }
  static Sums mul(Sums a, int32_t b) { return {_mm256_mullo_epi32(a.value, _mm256_set1_epi32(b))}; }
};

// The sums of P tiles for 16 output channels take 2 * P registers, the weights two.
template <int P>
void multiply_some(const int16_t* x, int channels, const int16_t* weights, int32_t* products) {
  __m256i sum[P][2];
#pragma GCC unroll 6
  for (auto& each : sum) each[0] = each[1] = _mm256_setzero_si256();
  const int64_t stride = channels;
  for (int pair = 0; pair < channels / 2; ++pair, weights += 2 * kVector, x += 2) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + kVector));
#pragma GCC unroll 6
    for (int tile = 0; tile < P; ++tile) {
      int32_t two;
      std::memcpy(&two, x + tile * stride, sizeof two);
      const __m256i a = _mm256_set1_epi32(two);
      sum[tile][0] = _mm256_add_epi32(sum[tile][0], _mm256_madd_epi16(a, low));
      sum[tile][1] = _mm256_add_epi32(sum[tile][1], _mm256_madd_epi16(a, high));
    }
  }
#pragma GCC unroll 6
  for (int tile = 0; tile < P; ++tile) {
    Vectors::store(products + tile * kVector, Vectors::Sums{sum[tile][0]});
    Vectors::store(products + tile * kVector + 8, Vectors::Sums{sum[tile][1]});
  }
}

void multiply(const int16_t* x, int tiles, int channels, const int16_t* weights, int32_t* products) {
  constexpr WinogradProducts kSome[] = {multiply_some<1>, multiply_some<2>, multiply_some<3>,
                                        multiply_some<4>, multiply_some<5>, multiply_some<6>};
  winograd_multiply(kSome, x, tiles, channels, weights, products);
}

// Nanoseconds, measured on an AMD Zen core at 3 GHz.
constexpr WinogradCost cost(double transform) {
  return {.direct_product = 1 / 110.0,
          .product = 1 / 75.0,
          .transform = transform,
          .far_byte = 1 / 23.0,
          .near_bytes = 512 << 10};
}

constexpr Winograd kTwo = winograd_way<Two, Vectors>(24, 2, cost(38), multiply);
constexpr Winograd kFour = winograd_way<Four, Vectors>(12, 2, cost(145), multiply);

}  // namespace

const Winograd* avx2_winograd(int outputs) { return outputs == 2 ? &kTwo : &kFour; }

}  // namespace facetrain::int7
#endif
