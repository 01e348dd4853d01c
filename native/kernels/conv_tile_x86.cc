// The convolution's innermost loops for AVX2 and AVX512-VNNI. Sums stay in registers over all taps and channels.
#include "kernels/conv_tile.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace facetrain {
namespace {

inline int32_t load4(const int8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <int Pixels>
__attribute__((target("avx512f,avx512vnni"))) void tile_avx512vnni(const int8_t* const* taps, int tap_count,
                                                                   int64_t offset, int channels, const uint8_t* weights,
                                                                   int32_t (*y)[kPanel]) {
  __m512i sums[Pixels];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (int tap = 0; tap < tap_count; ++tap) {
    const int8_t* x[Pixels];
    for (int p = 0; p < Pixels; ++p) x[p] = taps[p * tap_count + tap] + offset;
    for (int c = 0; c < channels; c += 4, weights += 4 * kPanel) {
      const __m512i w = _mm512_loadu_si512(weights);
      for (int p = 0; p < Pixels; ++p) sums[p] = _mm512_dpbusd_epi32(sums[p], w, _mm512_set1_epi32(load4(x[p] + c)));
    }
  }
  for (int p = 0; p < Pixels; ++p) _mm512_storeu_si512(y[p], sums[p]);
}

template <int Pixels>
__attribute__((target("avx2"))) void tile_avx2(const int8_t* const* taps, int tap_count, int64_t offset, int channels,
                                               const uint8_t* weights, int32_t (*y)[kPanel]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[Pixels][2];
  for (auto& sum : sums) sum[0] = sum[1] = _mm256_setzero_si256();
  for (int tap = 0; tap < tap_count; ++tap) {
    const int8_t* x[Pixels];
    for (int p = 0; p < Pixels; ++p) x[p] = taps[p * tap_count + tap] + offset;
    for (int c = 0; c < channels; c += 4, weights += 4 * kPanel) {
      for (int half = 0; half < 2; ++half) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + half * 32));
        for (int p = 0; p < Pixels; ++p) {
          const __m256i pairs = _mm256_maddubs_epi16(w, _mm256_set1_epi32(load4(x[p] + c)));
          sums[p][half] = _mm256_add_epi32(sums[p][half], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
  }
  for (int p = 0; p < Pixels; ++p) {
    for (int half = 0; half < 2; ++half) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y[p] + half * 8), sums[p][half]);
    }
  }
}

}  // namespace

void conv_tile_avx512vnni(const int8_t* const* taps, int tap_count, int64_t offset, int channels,
                          const uint8_t* weights, int pixels, int32_t (*y)[kPanel]) {
  if (pixels == kTilePixels) return tile_avx512vnni<kTilePixels>(taps, tap_count, offset, channels, weights, y);
  for (int p = 0; p < pixels; ++p) {
    tile_avx512vnni<1>(taps + p * tap_count, tap_count, offset, channels, weights, y + p);
  }
}

// AVX2 has sixteen registers; the sums of four pixels take eight of them, weights and activations the others.
void conv_tile_avx2(const int8_t* const* taps, int tap_count, int64_t offset, int channels, const uint8_t* weights,
                    int pixels, int32_t (*y)[kPanel]) {
  int p = 0;
  for (; p + 4 <= pixels; p += 4) tile_avx2<4>(taps + p * tap_count, tap_count, offset, channels, weights, y + p);
  for (; p < pixels; ++p) tile_avx2<1>(taps + p * tap_count, tap_count, offset, channels, weights, y + p);
}

__attribute__((target("avx2"))) void depthwise_pixel_avx2(const int8_t* const* taps, int tap_count, int channels,
                                                          const int16_t* weights, const int32_t* bias, int32_t* y) {
  int c = 0;
  for (; c + 16 <= channels; c += 16) {
    __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bias + c));
    __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bias + c + 8));
    for (int first = 0; first < tap_count; first += kTapsInInt16) {
      __m256i part = _mm256_setzero_si256();
      for (int tap = first; tap < std::min(first + kTapsInInt16, tap_count); ++tap) {
        const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(taps[tap] + c)));
        const auto* w = reinterpret_cast<const __m256i*>(weights + int64_t{tap} * channels + c);
        part = _mm256_add_epi16(part, _mm256_mullo_epi16(x, _mm256_loadu_si256(w)));
      }
      low = _mm256_add_epi32(low, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(part)));
      high = _mm256_add_epi32(high, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(part, 1)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + c), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + c + 8), high);
  }
  for (; c < channels; ++c) {
    y[c] = bias[c];
    for (int tap = 0; tap < tap_count; ++tap) y[c] += taps[tap][c] * weights[int64_t{tap} * channels + c];
  }
}

}  // namespace facetrain
#endif
