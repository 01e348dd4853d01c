// Winograd's convolution on NEON of ARMv8.0 (kernels.h). SMLAL adds four products of int16 to four int32: half as many
// as of bytes, but its sums are never widened, and it takes one operand for all lanes.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <utility>

#include "int7/winograd.h"

namespace facetrain::int7 {
namespace {

struct Vectors {
  using Words = int16x8_t;
  using Sums = int32x4_t;
  static constexpr int kWords = 8, kSums = 4;

  // Signed bytes: kernels_neon.cc.
  static Words operands(const uint8_t* x, int zero) {
    return vsubw_s8(vmovl_s8(vreinterpret_s8_u8(vld1_u8(x))), vdup_n_s8(static_cast<int8_t>(zero)));
  }
  static Sums load(const int32_t* x) { return vld1q_s32(x); }
  static void store(int16_t* y, Words x) { vst1q_s16(y, x); }
  static void store(int32_t* y, Sums x) { vst1q_s32(y, x); }
  static Words add(Words a, Words b) { return vaddq_s16(a, b); }
  static Words sub(Words a, Words b) { return vsubq_s16(a, b); }
  static Sums add(Sums a, Sums b) { return vaddq_s32(a, b); }
  static Sums sub(Sums a, Sums b) { return vsubq_s32(a, b); }
  template <int S>
  static Words shift(Words a) {
    return vshlq_n_s16(a, S);
  }
  template <int S>
  static Sums shift(Sums a) {
    return vshlq_n_s32(a, S);
  }
  template <int S>
  static Sums shift_right(Sums a) {
    return vshrq_n_s32(a, S);
  }
  static Sums mul(Sums a, int32_t b) { return vmulq_n_s32(a, b); }
};

// Adds the products of channel `Lane` of each tile's eight and its weights.
template <int P, int Lane>
inline void add_products(const int16x8_t (&x)[P], const int16_t* weights, int32x4_t (&sum)[P][4]) {
  const int16x8_t low = vld1q_s16(weights + Lane * kVector), high = vld1q_s16(weights + Lane * kVector + 8);
#pragma GCC unroll 5
  for (int tile = 0; tile < P; ++tile) {
    sum[tile][0] = vmlal_laneq_s16(sum[tile][0], vget_low_s16(low), x[tile], Lane);
    sum[tile][1] = vmlal_high_laneq_s16(sum[tile][1], low, x[tile], Lane);
    sum[tile][2] = vmlal_laneq_s16(sum[tile][2], vget_low_s16(high), x[tile], Lane);
    sum[tile][3] = vmlal_high_laneq_s16(sum[tile][3], high, x[tile], Lane);
  }
}

template <int P, int... Lanes>
inline void add_all(const int16x8_t (&x)[P], const int16_t* weights, int32x4_t (&sum)[P][4],
                    std::integer_sequence<int, Lanes...>) {
  (add_products<P, Lanes>(x, weights, sum), ...);
}

// The sums of P tiles for 16 output channels take 4 * P of the 32 registers, operands P, weights two.
template <int P>
void multiply_some(const int16_t* x, int channels, const int16_t* weights, int32_t* products) {
  constexpr int kLanes = 8;
  int32x4_t sum[P][4];
#pragma GCC unroll 5
  for (auto& each : sum) each[0] = each[1] = each[2] = each[3] = vdupq_n_s32(0);
  const int64_t stride = channels;
  for (int c = 0; c < channels; c += kLanes, x += kLanes, weights += kLanes * kVector) {
    int16x8_t operands[P];
#pragma GCC unroll 5
    for (int tile = 0; tile < P; ++tile) operands[tile] = vld1q_s16(x + tile * stride);
    add_all(operands, weights, sum, std::make_integer_sequence<int, kLanes>());
  }
#pragma GCC unroll 5
  for (int tile = 0; tile < P; ++tile) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) vst1q_s32(products + tile * kVector + part * 4, sum[tile][part]);
  }
}

void multiply(const int16_t* x, int tiles, int channels, const int16_t* weights, int32_t* products) {
  constexpr WinogradProducts kSome[] = {multiply_some<1>, multiply_some<2>, multiply_some<3>, multiply_some<4>,
                                        multiply_some<5>};
  winograd_multiply(kSome, x, tiles, channels, weights, products);
}

// Cycles of a Cortex-A53, by llvm-mca (decision 0063). Its memory was not measured: a cycle for each byte of weights
// that its second-level cache does not hold, which is read several times, is on the safe side.
constexpr WinogradCost cost(double transform) {
  return {.direct_product = 0.251, .product = 0.335, .transform = transform, .far_byte = 1, .near_bytes = 256 << 10};
}

constexpr Winograd kTwo = winograd_way<Two, Vectors>(20, 1, cost(251), multiply);
constexpr Winograd kFour = winograd_way<Four, Vectors>(10, 1, cost(1240), multiply);

}  // namespace

const Winograd* neon_winograd(int outputs) { return outputs == 2 ? &kTwo : &kFour; }

}  // namespace facetrain::int7
#endif
