#include "quant/real_tile.h"

#include <algorithm>

#include "clones.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace facetrain {
namespace {

void real_tile_portable(const float* const* taps, int tap_count, int64_t offset, int channels, const float* weights,
                        const float* bias, float (*y)[kRealPanel]) {
  for (int p = 0; p < kRealPixels; ++p) {
    const float* w = weights;
    std::copy_n(bias, kRealPanel, y[p]);
    for (int tap = 0; tap < tap_count; ++tap) {
      const float* x = taps[p * tap_count + tap] + offset;
      for (int c = 0; c < channels; ++c, w += kRealPanel) {
        for (int o = 0; o < kRealPanel; ++o) y[p][o] += x[c] * w[o];
      }
    }
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void real_tile_avx2(const float* const* taps, int tap_count, int64_t offset,
                                                    int channels, const float* weights, const float* bias,
                                                    float (*y)[kRealPanel]) {
  __m256 sums[kRealPixels][2];
  for (auto& sum : sums) {
    sum[0] = _mm256_loadu_ps(bias);
    sum[1] = _mm256_loadu_ps(bias + 8);
  }
  for (int tap = 0; tap < tap_count; ++tap) {
    const float* x[kRealPixels];
    for (int p = 0; p < kRealPixels; ++p) x[p] = taps[p * tap_count + tap] + offset;
    for (int c = 0; c < channels; ++c, weights += kRealPanel) {
      const __m256 low = _mm256_loadu_ps(weights), high = _mm256_loadu_ps(weights + 8);
      for (int p = 0; p < kRealPixels; ++p) {
        const __m256 value = _mm256_set1_ps(x[p][c]);
        sums[p][0] = _mm256_add_ps(sums[p][0], _mm256_mul_ps(value, low));
        sums[p][1] = _mm256_add_ps(sums[p][1], _mm256_mul_ps(value, high));
      }
    }
  }
  for (int p = 0; p < kRealPixels; ++p) {
    _mm256_storeu_ps(y[p], sums[p][0]);
    _mm256_storeu_ps(y[p] + 8, sums[p][1]);
  }
}

__attribute__((target("avx512f"))) void real_tile_avx512(const float* const* taps, int tap_count, int64_t offset,
                                                         int channels, const float* weights, const float* bias,
                                                         float (*y)[kRealPanel]) {
  __m512 sums[kRealPixels];
  for (auto& sum : sums) sum = _mm512_loadu_ps(bias);
  for (int tap = 0; tap < tap_count; ++tap) {
    const float* x[kRealPixels];
    for (int p = 0; p < kRealPixels; ++p) x[p] = taps[p * tap_count + tap] + offset;
    for (int c = 0; c < channels; ++c, weights += kRealPanel) {
      const __m512 w = _mm512_loadu_ps(weights);
      for (int p = 0; p < kRealPixels; ++p) {
        sums[p] = _mm512_add_ps(sums[p], _mm512_mul_ps(_mm512_set1_ps(x[p][c]), w));
      }
    }
  }
  for (int p = 0; p < kRealPixels; ++p) _mm512_storeu_ps(y[p], sums[p]);
}
#endif

}  // namespace

RealTile best_real_tile() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return real_tile_avx512;
  if (__builtin_cpu_supports("avx2")) return real_tile_avx2;
#endif
  return real_tile_portable;
}

FACETRAIN_CLONES void real_depthwise_pixel(const float* const* taps, int tap_count, int channels, const float* weights,
                                           const float* bias, float* y) {
  std::copy_n(bias, channels, y);
  for (int tap = 0; tap < tap_count; ++tap, weights += channels) {
    const float* x = taps[tap];
    for (int c = 0; c < channels; ++c) y[c] += x[c] * weights[c];
  }
}

FACETRAIN_CLONES void real_pointwise(const float* x, int channels, int64_t area, const float* positive,
                                     const float* negative, const float* offset, float* y) {
  for (int64_t p = 0; p < area; ++p, x += channels, y += channels) {
    for (int c = 0; c < channels; ++c) {
      const float up = positive[c], down = negative[c];
      y[c] = (x[c] > 0 ? up : down) * x[c] + offset[c];
    }
  }
}

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // results and operands
FlushDenormals::~FlushDenormals() { _mm_setcsr(before_); }
#else
FlushDenormals::FlushDenormals() = default;
FlushDenormals::~FlushDenormals() = default;
#endif

}  // namespace facetrain
