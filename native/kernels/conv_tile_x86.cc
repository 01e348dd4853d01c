// The convolution's innermost loop for AVX2 and AVX512-VNNI. A tile's sums stay in registers over the whole depth.
#include "kernels/conv_tile.h"

#if defined(__x86_64__)
#include <immintrin.h>

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

// Sixteen registers: four pixels' sums are eight of them.
void conv_tile_avx2(const int8_t* const* taps, int tap_count, int64_t offset, int channels, const uint8_t* weights,
                    int pixels, int32_t (*y)[kPanel]) {
  int p = 0;
  for (; p + 4 <= pixels; p += 4) tile_avx2<4>(taps + p * tap_count, tap_count, offset, channels, weights, y + p);
  for (; p < pixels; ++p) tile_avx2<1>(taps + p * tap_count, tap_count, offset, channels, weights, y + p);
}

}  // namespace facetrain
#endif
