// The kernels in plain C++, for any machine.
#include <algorithm>
#include <cstring>
#include <utility>

#include "int7/epilogue.h"
#include "int7/kernels.h"

namespace facetrain::int7 {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: see kernels/elementwise.cc

struct Number {
  using Real = float;
  static constexpr int kLanes = 1;

  static Real all(float x) { return x; }
  static Real load(const float* x) { return *x; }
  static Real load_sums(const int32_t* x) { return static_cast<float>(*x); }
  static Real load_bytes(const uint8_t* x, int zero) { return static_cast<float>(static_cast<int8_t>(*x - zero)); }
  static void store_bytes(uint8_t* y, Real q, int zero) {
    *y = static_cast<uint8_t>(static_cast<int>(round(q)) + zero);
  }
  static Real mul(Real a, Real b) { return a * b; }
  static Real add(Real a, Real b) { return a + b; }
  static Real div(Real a, Real b) { return a / b; }
  static Real min(Real a, Real b) { return std::min(a, b); }
  static Real max(Real a, Real b) { return std::max(a, b); }
  static Real round(Real x) { return (x + kRound) - kRound; }
  static Real select_positive(Real x, Real positive, Real negative) { return x > 0 ? positive : negative; }
};

// Sums wrap as those of the vector instructions do.
void add_product(int32_t& sum, int product) {
  sum = static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(product));
}

template <int P, int V>
void conv_tile(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
               const int8_t* weights, const int32_t* bias, const int32_t*, int32_t* sums) {
  constexpr int kWidth = V * kVector;
  for (int p = 0; p < P; ++p) std::copy_n(bias, kWidth, sums + p * kWidth);
  for (int s = 0; s < segment_count; ++s) {
    for (int step = 0; step < steps; ++step, weights += kWidth * 4) {
      for (int p = 0; p < P; ++p) {
        const uint8_t* a = x + segments[s] + p * pixel_stride + int64_t{4} * step;
        for (int o = 0; o < kWidth; ++o) {
          const int8_t* w = weights + o * 4;
          add_product(sums[p * kWidth + o], a[0] * w[0] + a[1] * w[1] + a[2] * w[2] + a[3] * w[3]);
        }
      }
    }
  }
}

void depthwise(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count, const int8_t* weights,
               const int32_t* bias, int, int pixels, int32_t* sums) {
  for (int p = 0; p < pixels; ++p, x += pixel_stride, sums += kBlock) {
    std::copy_n(bias, kBlock, sums);
    for (int part = 0; part < kBlock; part += kVector) {
      const int8_t* w = weights + int64_t{part} * tap_count;
      for (int t = 0; t < tap_count; ++t, w += kVector) {
        for (int c = 0; c < kVector; ++c) add_product(sums[part + c], x[taps[t] + part + c] * w[c]);
      }
    }
  }
}

template <int... P>
Kernels make_kernels(std::integer_sequence<int, P...>) {
  Kernels kernels{};
  ((kernels.tiles[0][P] = conv_tile<P + 1, 1>), ...);
  kernels.depthwise_taps = 1;
  kernels.depthwise_lanes = 1;
  kernels.depthwise = depthwise;
  kernels.epilogue = epilogue_of<Number>;
  return kernels;
}

}  // namespace

const Kernels& portable_kernels() {
  static const Kernels kernels = make_kernels(std::make_integer_sequence<int, 4>());
  return kernels;
}

}  // namespace facetrain::int7
