// NEON with the dot product of ARMv8.2: SDOT adds 16 products to four int32, so convolutions need no int16 sums. All
// else is that of kernels_neon.cc. This file alone is compiled for that instruction set (CMakeLists.txt).
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>
#include <utility>

#include "int7/kernels.h"
#include "int7/row_winograd.h"

namespace facetrain::int7 {
namespace {

inline int8x16_t load16(const void* x) { return vld1q_s8(static_cast<const int8_t*>(x)); }

// One step: four bytes of each pixel, those of lane I, for 16 output channels.
template <int I, int P>
inline void add_step(int32x4_t (&sum)[P][4], const int8x16_t (&a)[P], const int8_t* weights) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const int8x16_t w = load16(weights + (I * 4 + v) * 16);
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p) sum[p][v] = vdotq_laneq_s32(sum[p][v], w, a[p], I);
  }
}

// P * 4 sums of four channels stay in registers. 16 bytes of each pixel serve four steps: SDOT takes one lane of them
// for all of its channels.
template <int P, int V>
void conv_tile(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
               const int8_t* weights, const int32_t* bias, const int32_t*, int32_t* sums) {
  static_assert(V == 1);
  int32x4_t sum[P][4];
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[p][v] = vld1q_s32(bias + v * 4);
  }
  for (int s = 0; s < segment_count; ++s) {
    const uint8_t* first = x + segments[s];
    int step = 0;
    for (; step + 4 <= steps; step += 4, first += 16, weights += 256) {
      int8x16_t a[P];
#pragma GCC unroll 6
      for (int p = 0; p < P; ++p) a[p] = load16(first + p * pixel_stride);
      add_step<0, P>(sum, a, weights);
      add_step<1, P>(sum, a, weights);
      add_step<2, P>(sum, a, weights);
      add_step<3, P>(sum, a, weights);
    }
    for (; step < steps; ++step, first += 4, weights += 64) {
      int8x16_t a[P];
#pragma GCC unroll 6
      for (int p = 0; p < P; ++p) {
        int32_t value;
        std::memcpy(&value, first + p * pixel_stride, sizeof value);
        a[p] = vreinterpretq_s8_s32(vdupq_n_s32(value));
      }
      add_step<0, P>(sum, a, weights);
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vst1q_s32(sums + p * kVector + v * 4, sum[p][v]);
  }
}

struct Integers {
  using Bytes = uint8x16_t;
  using Sums = int32x4_t;
  static constexpr int kBytes = 16, kSums = 4;

  static Bytes load(const uint8_t* x) { return vld1q_u8(x); }
  static Sums load(const int32_t* x) { return vld1q_s32(x); }
  static void store(uint8_t* y, Bytes x) { vst1q_u8(y, x); }
  static void store(int32_t* y, Sums x) { vst1q_s32(y, x); }
  static Bytes all(uint8_t x) { return vdupq_n_u8(x); }
  static Bytes add(Bytes a, Bytes b) { return vaddq_u8(a, b); }
  static Bytes sub(Bytes a, Bytes b) { return vsubq_u8(a, b); }
  static Sums add(Sums a, Sums b) { return vaddq_s32(a, b); }
  static Sums sub(Sums a, Sums b) { return vsubq_s32(a, b); }
  static Sums half(Sums a) { return vshrq_n_s32(a, 1); }
};

int64_t bare_products(int64_t rounds) {
  constexpr int kSums = 24;
  int32x4_t sum[kSums];
#pragma GCC unroll 24
  for (auto& each : sum) each = vdupq_n_s32(0);
  int8x16_t a = vdupq_n_s8(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (auto& each : sum) {
      asm volatile("" : "+w"(a));  // else the compiler would see that all sums are equal
      each = vdotq_s32(each, a, a);
    }
  }
#pragma GCC unroll 24
  for (auto& each : sum) asm volatile("" ::"w"(each));
  return rounds * kSums * 16;
}

template <int... P>
Kernels make_kernels(std::integer_sequence<int, P...>) {
  Kernels kernels = neon_kernels();
  ((kernels.tiles[0][P] = conv_tile<P + 1, 1>), ...);
  kernels.winograd[0] = kernels.winograd[1] = nullptr;
  kernels.row_winograd = &kRowWinograd<Integers, -128>;
  kernels.bare_products = bare_products;
  return kernels;
}

}  // namespace

const Kernels& neondot_kernels() {
  static const Kernels kernels = make_kernels(std::make_integer_sequence<int, 5>());
  return kernels;
}

}  // namespace facetrain::int7
#endif
