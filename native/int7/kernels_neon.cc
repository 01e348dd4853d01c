// NEON of ARMv8.0: SMLAL adds eight products of bytes to eight int16. Sums of several steps stay in int16, as many as
// the weights prove safe, before SADDLP widens them (EasyQuant, arXiv 2006.16669 section 3.4, where eight products of
// seven-bit operands are summed before SADALP). The operand of seven bits as it lies in memory, 1 to 127, is a signed
// byte, too; one of eight bits is stored as its integer.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>
#include <utility>

#include "int7/epilogue.h"
#include "int7/kernels.h"

namespace facetrain::int7 {
namespace {

inline int8x16_t load16(const void* x) { return vld1q_s8(static_cast<const int8_t*>(x)); }

// Two vectors of four: a vector of eight bytes is stored at once.
struct Vector {
  struct Real {
    float32x4_t low, high;
  };
  static constexpr int kLanes = 8;

  static Real all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static Real load(const float* x) { return {vld1q_f32(x), vld1q_f32(x + 4)}; }
  static Real load_sums(const int32_t* x) { return {vcvtq_f32_s32(vld1q_s32(x)), vcvtq_f32_s32(vld1q_s32(x + 4))}; }
  static Real load_bytes(const uint8_t* x, int zero) {
    const int16x8_t q = vsubw_s8(vmovl_s8(vreinterpret_s8_u8(vld1_u8(x))), vdup_n_s8(static_cast<int8_t>(zero)));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))), vcvtq_f32_s32(vmovl_high_s16(q))};
  }
  static void store_bytes(uint8_t* y, Real q, int zero) {
    const int16x8_t words = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(q.low)), vmovn_s32(vcvtnq_s32_f32(q.high)));
    vst1_u8(y, vreinterpret_u8_s8(vmovn_s16(vaddq_s16(words, vdupq_n_s16(static_cast<int16_t>(zero))))));
  }
  static Real mul(Real a, Real b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
  static Real add(Real a, Real b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
  static Real div(Real a, Real b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
  static Real min(Real a, Real b) { return {vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)}; }
  static Real max(Real a, Real b) { return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)}; }
  static Real round(Real x) { return {vrndnq_f32(x.low), vrndnq_f32(x.high)}; }
  static Real select_positive(Real x, Real positive, Real negative) {
    return {vbslq_f32(vcgtzq_f32(x.low), positive.low, negative.low),
            vbslq_f32(vcgtzq_f32(x.high), positive.high, negative.high)};
  }
};

inline int8x16_t broadcast4(const uint8_t* x) {
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

// An int16 holds the products of one of a step's four bytes for one output channel, so P pixels and 16 channels take
// 8 * P of the 32 registers, beside four of weights and one of activations. The int32 sums wait in memory until a chunk
// ends: the four of a channel are added then.
template <int P, int V>
void conv_tile(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
               const int8_t* weights, const int32_t* bias, const int32_t* chunks, int32_t* sums) {
  static_assert(V == 1);
  for (int p = 0; p < P; ++p) std::memcpy(sums + p * kVector, bias, kVector * sizeof(int32_t));
  for (int s = 0; s < segment_count; ++s) {
    const uint8_t* first = x + segments[s];
    for (int begin = 0, end; begin < steps; begin = end) {
      end = begin + *chunks++;
      int16x8_t sum[P][8];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) sum[p][i] = vdupq_n_s16(0);
      }
      for (int step = begin; step < end; ++step) {
        int8x16_t w[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) w[v] = load16(weights + v * 16);
        weights += 64;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const int8x16_t a = broadcast4(first + p * pixel_stride);
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            sum[p][2 * v] = vmlal_s8(sum[p][2 * v], vget_low_s8(w[v]), vget_low_s8(a));
            sum[p][2 * v + 1] = vmlal_high_s8(sum[p][2 * v + 1], w[v], a);
          }
        }
        first += 4;
      }
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          int32_t* y = sums + p * kVector + v * 4;
          const int32x4_t four = vpaddq_s32(vpaddlq_s16(sum[p][2 * v]), vpaddlq_s16(sum[p][2 * v + 1]));
          vst1q_s32(y, vaddq_s32(vld1q_s32(y), four));
        }
      }
    }
  }
}

// Sums of P pixels for 16 channels, one int16 for each: a tap adds one product to it. SDOT would sum four taps, but
// they would have to be interleaved first, which takes more instructions than it saves.
template <int P>
void depthwise_pixels(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count, const int8_t* weights,
                      const int32_t* bias, int chunk, int32_t* sums) {
  int32x4_t sum[P][4];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[p][v] = vld1q_s32(bias + v * 4);
  }
  for (int begin = 0; begin < tap_count; begin += chunk) {
    const int end = begin + chunk < tap_count ? begin + chunk : tap_count;
    int16x8_t low[P], high[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) low[p] = high[p] = vdupq_n_s16(0);
    for (int t = begin; t < end; ++t) {
      const int8x16_t w = load16(weights + t * kVector);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const int8x16_t a = load16(x + taps[t] + p * pixel_stride);
        low[p] = vmlal_s8(low[p], vget_low_s8(a), vget_low_s8(w));
        high[p] = vmlal_high_s8(high[p], a, w);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      sum[p][0] = vaddw_s16(sum[p][0], vget_low_s16(low[p]));
      sum[p][1] = vaddw_high_s16(sum[p][1], low[p]);
      sum[p][2] = vaddw_s16(sum[p][2], vget_low_s16(high[p]));
      sum[p][3] = vaddw_high_s16(sum[p][3], high[p]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vst1q_s32(sums + p * kBlock + v * 4, sum[p][v]);
  }
}

void depthwise(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count, const int8_t* weights,
               const int32_t* bias, int chunk, int pixels, int32_t* sums) {
  constexpr int kPixels = 4;
  for (int part = 0; part < kBlock; part += kVector) {
    const int8_t* w = weights + int64_t{part} * tap_count;
    int p = 0;
    for (; p + kPixels <= pixels; p += kPixels) {
      depthwise_pixels<kPixels>(x + p * pixel_stride + part, pixel_stride, taps, tap_count, w, bias + part, chunk,
                                sums + p * kBlock + part);
    }
    for (; p < pixels; ++p) {
      depthwise_pixels<1>(x + p * pixel_stride + part, pixel_stride, taps, tap_count, w, bias + part, chunk,
                          sums + p * kBlock + part);
    }
  }
}

int64_t bare_products(int64_t rounds) {
  constexpr int kSums = 24;
  int16x8_t sum[kSums];
#pragma GCC unroll 24
  for (auto& each : sum) each = vdupq_n_s16(0);
  int8x8_t a = vdup_n_s8(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (auto& each : sum) {
      asm volatile("" : "+w"(a));  // else the compiler would see that all sums are equal
      each = vmlal_s8(each, a, a);
    }
  }
#pragma GCC unroll 24
  for (auto& each : sum) asm volatile("" ::"w"(each));
  return rounds * kSums * 8;
}

template <int... P>
Kernels make_kernels(std::integer_sequence<int, P...>) {
  Kernels kernels{};
  ((kernels.tiles[0][P] = conv_tile<P + 1, 1>), ...);
  kernels.depthwise_taps = 1;
  kernels.depthwise_lanes = 1;
  kernels.depthwise = depthwise;
  kernels.int16_products = 1;
  kernels.signed_bytes = true;
  kernels.winograd[0] = neon_winograd(2);
  kernels.winograd[1] = neon_winograd(4);
  kernels.epilogue = epilogue_of<Vector>;
  kernels.bare_products = bare_products;
  return kernels;
}

}  // namespace

const Kernels& neon_kernels() {
  static const Kernels kernels = make_kernels(std::make_integer_sequence<int, 3>());
  return kernels;
}

}  // namespace facetrain::int7
#endif
