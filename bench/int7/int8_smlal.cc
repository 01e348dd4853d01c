// A tile of int8 without the bound of seven bits, to compare native/int7/kernels_neon.cc with: an int16 holds two
// products of signed bytes, so SADALP follows every second SMLAL (EasyQuant, arXiv 2006.16669 section 3.4). The layouts
// are those of native/int7/kernels.h, and the int32 sums, two for each channel, stay in registers. arm-cycles.ts
// compiles it; no program links it.
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

inline int8x16_t broadcast4(const uint8_t* x) {
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

}  // namespace

// Sums of two pixels for 16 output channels; `steps` is even. See ConvTile in native/int7/kernels.h.
extern "C" void int8_tile(const uint8_t* x, int64_t pixel_stride, int steps, const int8_t* weights, int32_t* sums) {
  constexpr int kPixels = 2;
  int32x4_t sum[kPixels][8];
#pragma GCC unroll 2
  for (auto& pixel : sum) {
#pragma GCC unroll 8
    for (auto& each : pixel) each = vdupq_n_s32(0);
  }
  for (int step = 0; step < steps; step += 2, x += 8, weights += 128) {
    int8x16_t a[kPixels][2];
#pragma GCC unroll 2
    for (int p = 0; p < kPixels; ++p) {
      a[p][0] = broadcast4(x + p * pixel_stride);
      a[p][1] = broadcast4(x + p * pixel_stride + 4);
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int8x16_t w = vld1q_s8(weights + v * 16), next = vld1q_s8(weights + 64 + v * 16);
#pragma GCC unroll 2
      for (int p = 0; p < kPixels; ++p) {
        int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a[p][0])), high = vmull_high_s8(w, a[p][0]);
        low = vmlal_s8(low, vget_low_s8(next), vget_low_s8(a[p][1]));
        high = vmlal_high_s8(high, next, a[p][1]);
        sum[p][2 * v] = vpadalq_s16(sum[p][2 * v], low);
        sum[p][2 * v + 1] = vpadalq_s16(sum[p][2 * v + 1], high);
      }
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vst1q_s32(sums + (p * 4 + v) * 4, vpaddq_s32(sum[p][2 * v], sum[p][2 * v + 1]));
  }
}
