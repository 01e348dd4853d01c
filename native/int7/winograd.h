// The transforms of Winograd's convolution (kernels.h), for the vectors of any instruction set. They are linear over
// the integers, so int32 may wrap as long as the scaled result fits; that result is then divided without a remainder.
#pragma once

#include <cstdint>

#include "int7/kernels.h"

namespace facetrain::int7 {

// V has
//   Words, of kWords int16, and Sums, of kSums int32; add, sub, and shift<S> to the left, of both
//   operands(x, zero): integers of kWords stored bytes; load and store
//   shift_right<S>(Sums), mul(Sums, int32_t)

// One axis of F(2,3).
template <class V>
struct Two {
  static constexpr int kOutputs = 2, kInputs = 4;
  static constexpr int kFilter[kInputs][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
  static constexpr int kOperandGain = 2, kFilterGain = 3, kScale = 2;

  using Words = typename V::Words;
  using Sums = typename V::Sums;
  static void input(const Words* d, Words* t) {
    t[0] = V::sub(d[0], d[2]);
    t[1] = V::add(d[1], d[2]);
    t[2] = V::sub(d[2], d[1]);
    t[3] = V::sub(d[1], d[3]);
  }
  static void output(const Sums* m, Sums* y) {
    y[0] = V::add(V::add(m[0], m[1]), m[2]);
    y[1] = V::sub(V::sub(m[1], m[2]), m[3]);
  }
  static Sums unscaled(Sums y) { return V::template shift_right<2>(y); }
};

// One axis of F(4,3). The last row of the filter has a quarter of the others' scale, which output() makes up for: else
// weights of 127 would exceed an int16.
template <class V>
struct Four {
  static constexpr int kOutputs = 4, kInputs = 6;
  static constexpr int kFilter[kInputs][3] = {{6, 0, 0}, {-4, -4, -4}, {-4, 4, -4}, {1, 2, 4}, {1, -2, 4}, {0, 0, 6}};
  static constexpr int kOperandGain = 10, kFilterGain = 12, kScale = 24;

  using Words = typename V::Words;
  using Sums = typename V::Sums;
  static void input(const Words* d, Words* t) {
    const Words even = V::sub(d[4], V::template shift<2>(d[2])), odd = V::sub(d[3], V::template shift<2>(d[1]));
    const Words near = V::sub(d[4], d[2]), far = V::template shift<1>(V::sub(d[3], d[1]));
    t[0] = V::add(V::template shift<2>(V::sub(d[0], d[2])), near);
    t[1] = V::add(even, odd);
    t[2] = V::sub(even, odd);
    t[3] = V::add(near, far);
    t[4] = V::sub(near, far);
    t[5] = V::add(V::template shift<2>(V::sub(d[1], d[3])), V::sub(d[5], d[3]));
  }
  static void output(const Sums* m, Sums* y) {
    const Sums even = V::add(m[1], m[2]), odd = V::sub(m[1], m[2]);
    const Sums far_even = V::add(m[3], m[4]), far_odd = V::sub(m[3], m[4]);
    y[0] = V::add(V::add(m[0], even), far_even);
    y[1] = V::add(odd, V::template shift<1>(far_odd));
    y[2] = V::add(even, V::template shift<2>(far_even));
    y[3] = V::add(V::add(odd, V::template shift<3>(far_odd)), V::template shift<2>(m[5]));
  }
  // 576 is 64 * 9; 954437177 is the inverse of 9 modulo 2^32.
  static Sums unscaled(Sums y) { return V::mul(V::template shift_right<6>(y), 954437177); }
};

// Axis is Two or Four.
template <template <class> class Axis, class V>
void winograd_transform(const uint8_t* x, int64_t row, int64_t pitch, int channels, int zero, int64_t position_stride,
                        int16_t* to) {
  using Along = Axis<V>;
  for (int c = 0; c < channels; c += V::kWords) {
    typename V::Words by_row[Along::kInputs][Along::kInputs], columns[Along::kInputs], result[Along::kInputs];
    for (int j = 0; j < Along::kInputs; ++j) {
      typename V::Words d[Along::kInputs];
      for (int i = 0; i < Along::kInputs; ++i) d[i] = V::operands(x + i * row + j * pitch + c, zero);
      Along::input(d, columns);
      for (int i = 0; i < Along::kInputs; ++i) by_row[i][j] = columns[i];
    }
    for (int i = 0; i < Along::kInputs; ++i) {
      Along::input(by_row[i], result);
      for (int j = 0; j < Along::kInputs; ++j) V::store(to + (i * Along::kInputs + j) * position_stride + c, result[j]);
    }
  }
}

template <template <class> class Axis, class V>
void winograd_finish(const int32_t* products, int64_t position_stride, const int32_t* bias, int32_t* sums,
                     int64_t sums_row) {
  using Along = Axis<V>;
  using Sums = typename V::Sums;
  for (int part = 0; part < kVector; part += V::kSums) {
    const Sums first = V::load(bias + part);
    Sums by_row[Along::kOutputs][Along::kInputs], m[Along::kInputs], y[Along::kOutputs];
    for (int j = 0; j < Along::kInputs; ++j) {
      for (int i = 0; i < Along::kInputs; ++i)
        m[i] = V::load(products + (i * Along::kInputs + j) * position_stride + part);
      Along::output(m, y);
      for (int i = 0; i < Along::kOutputs; ++i) by_row[i][j] = y[i];
    }
    for (int i = 0; i < Along::kOutputs; ++i) {
      Along::output(by_row[i], y);
      for (int j = 0; j < Along::kOutputs; ++j)
        V::store(sums + i * sums_row + j * kVector + part, V::add(Along::unscaled(y[j]), first));
    }
  }
}

// A number of tiles that are multiplied with the same weights in registers.
using WinogradProducts = void (*)(const int16_t* x, int channels, const int16_t* weights, int32_t* products);

// Winograd::multiply by `some`, of which entry P - 1 multiplies P tiles: as even parts as possible.
template <int N>
void winograd_multiply(const WinogradProducts (&some)[N], const int16_t* x, int tiles, int channels,
                       const int16_t* weights, int32_t* products) {
  const int parts = (tiles + N - 1) / N;
  for (int part = 0; part < parts; ++part) {
    const int begin = tiles * part / parts, end = tiles * (part + 1) / parts;
    some[end - begin - 1](x + int64_t{begin} * channels, channels, weights, products + begin * kVector);
  }
}

template <template <class> class Axis, class V>
constexpr Winograd winograd_way(int tiles, int channels_together, const WinogradCost& cost,
                                decltype(Winograd::multiply) multiply) {
  using Along = Axis<V>;
  return {.outputs = Along::kOutputs,
          .filter = Along::kFilter,
          .operand_gain = Along::kOperandGain * Along::kOperandGain,
          .filter_gain = Along::kFilterGain * Along::kFilterGain,
          .scale = Along::kScale * Along::kScale,
          .tiles = tiles,
          .channels_together = channels_together,
          .cost = cost,
          .transform = winograd_transform<Axis, V>,
          .multiply = multiply,
          .finish = winograd_finish<Axis, V>};
}

}  // namespace facetrain::int7
