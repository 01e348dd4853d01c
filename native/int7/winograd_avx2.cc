// Winograd's convolution on AVX2 (kernels.h). Operands and weights are int16, products are summed in int32 by vpmaddwd.
// Transforms are linear over the integers, so int32 may wrap as long as the scaled result fits; that result is then
// divided without a remainder.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "int7/kernels.h"

namespace facetrain::int7 {
namespace {

inline __m256i load(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
inline void store(void* y, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(y), x); }
inline __m256i add16(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
inline __m256i sub16(__m256i a, __m256i b) { return _mm256_sub_epi16(a, b); }
inline __m256i add32(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
inline __m256i sub32(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }
template <int S>
inline __m256i shift16(__m256i a) {
  return _mm256_slli_epi16(a, S);
}
template <int S>
inline __m256i shift32(__m256i a) {
  return _mm256_slli_epi32(a, S);
}

// One axis of F(2,3).
struct Two {
  static constexpr int kOutputs = 2, kInputs = 4;
  static constexpr int kFilter[kInputs][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
  static constexpr int kOperandGain = 2, kFilterGain = 3, kScale = 2;
  static void input(const __m256i* d, __m256i* t) {
    t[0] = sub16(d[0], d[2]);
    t[1] = add16(d[1], d[2]);
    t[2] = sub16(d[2], d[1]);
    t[3] = sub16(d[1], d[3]);
  }
  static void output(const __m256i* m, __m256i* y) {
    y[0] = add32(add32(m[0], m[1]), m[2]);
    y[1] = sub32(sub32(m[1], m[2]), m[3]);
  }
  static __m256i unscaled(__m256i y) { return _mm256_srai_epi32(y, 2); }
};

// One axis of F(4,3). The last row of the filter has a quarter of the others' scale, which output() makes up for: else
// weights of 127 would exceed an int16.
struct Four {
  static constexpr int kOutputs = 4, kInputs = 6;
  static constexpr int kFilter[kInputs][3] = {{6, 0, 0}, {-4, -4, -4}, {-4, 4, -4}, {1, 2, 4}, {1, -2, 4}, {0, 0, 6}};
  static constexpr int kOperandGain = 10, kFilterGain = 12, kScale = 24;
  static void input(const __m256i* d, __m256i* t) {
    const __m256i even = sub16(d[4], shift16<2>(d[2])), odd = sub16(d[3], shift16<2>(d[1]));
    const __m256i near = sub16(d[4], d[2]), far = shift16<1>(sub16(d[3], d[1]));
    t[0] = add16(shift16<2>(sub16(d[0], d[2])), near);
    t[1] = add16(even, odd);
    t[2] = sub16(even, odd);
    t[3] = add16(near, far);
    t[4] = sub16(near, far);
    t[5] = add16(shift16<2>(sub16(d[1], d[3])), sub16(d[5], d[3]));
  }
  static void output(const __m256i* m, __m256i* y) {
    const __m256i even = add32(m[1], m[2]), odd = sub32(m[1], m[2]);
    const __m256i far_even = add32(m[3], m[4]), far_odd = sub32(m[3], m[4]);
    y[0] = add32(add32(m[0], even), far_even);
    y[1] = add32(odd, shift32<1>(far_odd));
    y[2] = add32(even, shift32<2>(far_even));
    y[3] = add32(add32(odd, shift32<3>(far_odd)), shift32<2>(m[5]));
  }
  // 576 is 64 * 9; 954437177 is the inverse of 9 modulo 2^32.
  static __m256i unscaled(__m256i y) {
    return _mm256_mullo_epi32(_mm256_srai_epi32(y, 6), _mm256_set1_epi32(954437177));
  }
};

template <class F>
void transform(const uint8_t* x, int64_t row, int64_t pitch, int channels, int zero, int64_t position_stride,
               int16_t* to) {
  const __m256i zeros = _mm256_set1_epi16(static_cast<int16_t>(zero));
  for (int c = 0; c < channels; c += kVector) {
    __m256i by_row[F::kInputs][F::kInputs], columns[F::kInputs], result[F::kInputs];
    for (int j = 0; j < F::kInputs; ++j) {
      __m256i d[F::kInputs];
      for (int i = 0; i < F::kInputs; ++i) {
        const auto* from = reinterpret_cast<const __m128i*>(x + i * row + j * pitch + c);
        d[i] = sub16(_mm256_cvtepu8_epi16(_mm_loadu_si128(from)), zeros);
      }
      F::input(d, columns);
      for (int i = 0; i < F::kInputs; ++i) by_row[i][j] = columns[i];
    }
    for (int i = 0; i < F::kInputs; ++i) {
      F::input(by_row[i], result);
      for (int j = 0; j < F::kInputs; ++j) store(to + (i * F::kInputs + j) * position_stride + c, result[j]);
    }
  }
}

// The sums of P tiles for 16 output channels take 2 * P registers, the weights two.
constexpr int kTogether = 6;

template <int P>
void multiply_some(const int16_t* x, int channels, const int16_t* weights, int32_t* products) {
  __m256i sum[P][2];
#pragma GCC unroll 6
  for (auto& each : sum) each[0] = each[1] = _mm256_setzero_si256();
  const int64_t stride = channels;
  for (int pair = 0; pair < channels / 2; ++pair, weights += 2 * kVector, x += 2) {
    const __m256i low = load(weights), high = load(weights + kVector);
#pragma GCC unroll 6
    for (int tile = 0; tile < P; ++tile) {
      int32_t two;
      std::memcpy(&two, x + tile * stride, sizeof two);
      const __m256i a = _mm256_set1_epi32(two);
      sum[tile][0] = add32(sum[tile][0], _mm256_madd_epi16(a, low));
      sum[tile][1] = add32(sum[tile][1], _mm256_madd_epi16(a, high));
    }
  }
#pragma GCC unroll 6
  for (int tile = 0; tile < P; ++tile) {
    store(products + tile * kVector, sum[tile][0]);
    store(products + tile * kVector + 8, sum[tile][1]);
  }
}

void multiply(const int16_t* x, int tiles, int channels, const int16_t* weights, int32_t* products) {
  using Some = void (*)(const int16_t*, int, const int16_t*, int32_t*);
  constexpr Some kSome[kTogether] = {multiply_some<1>, multiply_some<2>, multiply_some<3>,
                                     multiply_some<4>, multiply_some<5>, multiply_some<6>};
  const int parts = (tiles + kTogether - 1) / kTogether;
  for (int part = 0; part < parts; ++part) {
    const int begin = tiles * part / parts, end = tiles * (part + 1) / parts;
    kSome[end - begin - 1](x + int64_t{begin} * channels, channels, weights, products + begin * kVector);
  }
}

template <class F>
void finish(const int32_t* products, int64_t position_stride, const int32_t* bias, int32_t* sums, int64_t sums_row) {
  for (int half = 0; half < kVector; half += 8) {
    const __m256i first = load(bias + half);
    __m256i by_row[F::kOutputs][F::kInputs], m[F::kInputs], y[F::kOutputs];
    for (int j = 0; j < F::kInputs; ++j) {
      for (int i = 0; i < F::kInputs; ++i) m[i] = load(products + (i * F::kInputs + j) * position_stride + half);
      F::output(m, y);
      for (int i = 0; i < F::kOutputs; ++i) by_row[i][j] = y[i];
    }
    for (int i = 0; i < F::kOutputs; ++i) {
      F::output(by_row[i], y);
      for (int j = 0; j < F::kOutputs; ++j)
        store(sums + i * sums_row + j * kVector + half, add32(F::unscaled(y[j]), first));
    }
  }
}

template <class F>
constexpr Winograd make(int tiles, double transform_cost) {
  return {.outputs = F::kOutputs,
          .filter = F::kFilter,
          .operand_gain = F::kOperandGain * F::kOperandGain,
          .filter_gain = F::kFilterGain * F::kFilterGain,
          .scale = F::kScale * F::kScale,
          .tiles = tiles,
          .transform_cost = transform_cost,
          .transform = transform<F>,
          .multiply = multiply,
          .finish = finish<F>};
}

constexpr Winograd kTwo = make<Two>(24, 38), kFour = make<Four>(12, 145);

}  // namespace

const Winograd* avx2_winograd(int outputs) { return outputs == 2 ? &kTwo : &kFour; }

}  // namespace facetrain::int7
#endif
