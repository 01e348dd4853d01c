// AVX512-VNNI: 64 products in one vpdpbusd. This file alone is compiled for that instruction set (CMakeLists.txt).
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "int7/epilogue.h"
#include "int7/kernels.h"
#include "int7/row_winograd.h"

namespace facetrain::int7 {
namespace {

struct Vector {
  using Real = __m512;
  static constexpr int kLanes = 16;

  static Real all(float x) { return _mm512_set1_ps(x); }
  static Real load(const float* x) { return _mm512_loadu_ps(x); }
  static Real load_sums(const int32_t* x) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(x)); }
  static Real load_bytes(const uint8_t* x, int zero) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    const __m128i q = _mm_sub_epi8(bytes, _mm_set1_epi8(static_cast<char>(zero)));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
  }
  static void store_bytes(uint8_t* y, Real q, int zero) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(q), _mm512_set1_epi32(zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_cvtepi32_epi8(biased));
  }
  static Real mul(Real a, Real b) { return _mm512_mul_ps(a, b); }
  static Real add(Real a, Real b) { return _mm512_add_ps(a, b); }
  static Real div(Real a, Real b) { return _mm512_div_ps(a, b); }
  static Real min(Real a, Real b) { return _mm512_min_ps(a, b); }
  static Real max(Real a, Real b) { return _mm512_max_ps(a, b); }
  static Real round(Real x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Real select_positive(Real x, Real positive, Real negative) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), negative, positive);
  }
};

inline __m512i broadcast4(const uint8_t* x) {
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return _mm512_set1_epi32(value);
}

// P * V sums stay in registers, V weights beside them. Pixels are addressed from every third one, since an address is
// a base and once or twice the stride: fourteen bases would not fit the general registers.
template <int P, int V>
void conv_tile(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
               const int8_t* weights, const int32_t* bias, const int32_t*, int32_t* sums) {
  constexpr int kBases = (P + 2) / 3;
  __m512i sum[P][V];
#pragma GCC unroll 24
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[p][v] = _mm512_loadu_si512(bias + v * 16);
  }
  for (int s = 0; s < segment_count; ++s) {
    const uint8_t* base[kBases];
#pragma GCC unroll 8
    for (int b = 0; b < kBases; ++b) {
      base[b] = x + segments[s] + 3 * b * pixel_stride;
      asm("" : "+r"(base[b]));  // hides that the bases differ by a constant
    }
    for (int step = 0; step < steps; ++step) {
      __m512i w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_si512(weights + v * 64);
      weights += V * 64;
#pragma GCC unroll 24
      for (int p = 0; p < P; ++p) {
        const __m512i a = broadcast4(base[p / 3] + p % 3 * pixel_stride);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[p][v] = _mm512_dpbusd_epi32(sum[p][v], a, w[v]);
      }
#pragma GCC unroll 8
      for (int b = 0; b < kBases; ++b) base[b] += 4;
    }
  }
#pragma GCC unroll 24
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_si512(sums + (p * V + v) * 16, sum[p][v]);
  }
}

// The same 64 channels of four taps, as four vectors in which the four bytes of a channel are neighbors. Vector j has
// in its 128-bit lane l the channels 16 * l + 4 * j and the three after it.
struct Quad {
  __m512i v[4];
};

inline Quad interleave(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
  return {{_mm512_unpacklo_epi16(ab_low, cd_low), _mm512_unpackhi_epi16(ab_low, cd_low),
           _mm512_unpacklo_epi16(ab_high, cd_high), _mm512_unpackhi_epi16(ab_high, cd_high)}};
}

// Stores the sums of those vectors by ascending channel, plus the bias: lane l of vector j goes to lane j of vector l.
inline void store_quad(const __m512i* sum, const int32_t* bias, int32_t* y) {
  const __m512i a = _mm512_shuffle_i32x4(sum[0], sum[1], 0x44), b = _mm512_shuffle_i32x4(sum[0], sum[1], 0xee);
  const __m512i c = _mm512_shuffle_i32x4(sum[2], sum[3], 0x44), d = _mm512_shuffle_i32x4(sum[2], sum[3], 0xee);
  const __m512i ordered[4] = {_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xdd),
                              _mm512_shuffle_i32x4(b, d, 0x88), _mm512_shuffle_i32x4(b, d, 0xdd)};
  for (int v = 0; v < 4; ++v) {
    _mm512_storeu_si512(y + v * 16, _mm512_add_epi32(ordered[v], _mm512_loadu_si512(bias + v * 16)));
  }
}

void depthwise(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count, const int8_t* weights,
               const int32_t* bias, int, int pixels, int32_t* sums) {
  for (int p = 0; p < pixels; ++p, x += pixel_stride, sums += kBlock) {
    __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int t = 0; t < tap_count; t += 4) {
      const Quad quad = interleave(_mm512_loadu_si512(x + taps[t]), _mm512_loadu_si512(x + taps[t + 1]),
                                   _mm512_loadu_si512(x + taps[t + 2]), _mm512_loadu_si512(x + taps[t + 3]));
      const int8_t* w = weights + t * kBlock;
      for (int v = 0; v < 4; ++v) sum[v] = _mm512_dpbusd_epi32(sum[v], quad.v[v], _mm512_loadu_si512(w + v * 64));
    }
    store_quad(sum, bias, sums);
  }
}

// Goes over the columns once. A column of three taps is interleaved once and multiplied for the three pixels that read
// it. Here a group of taps is a column: (row 0, row 1, row 2, none).
void depthwise3x3(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int, const int8_t* weights,
                  const int32_t* bias, int, int pixels, int32_t* sums) {
  __m512i w[3][4];
  for (int column = 0; column < 3; ++column) {
    for (int v = 0; v < 4; ++v) w[column][v] = _mm512_loadu_si512(weights + (column * 4 + v) * 64);
  }
  const uint8_t* rows[3] = {x + taps[0], x + taps[3], x + taps[6]};
  const __m512i zero = _mm512_setzero_si512();
  __m512i before[4] = {zero, zero, zero, zero}, now[4] = {zero, zero, zero, zero};
  for (int column = 0; column < pixels + 2; ++column) {
    const __m512i low = _mm512_loadu_si512(rows[2]);
    const Quad quad = interleave(_mm512_loadu_si512(rows[0]), _mm512_loadu_si512(rows[1]), low, low);
    for (auto& row : rows) row += pixel_stride;
    __m512i done[4];
    for (int v = 0; v < 4; ++v) {
      done[v] = _mm512_dpbusd_epi32(before[v], quad.v[v], w[2][v]);
      before[v] = _mm512_dpbusd_epi32(now[v], quad.v[v], w[1][v]);
      now[v] = _mm512_dpbusd_epi32(zero, quad.v[v], w[0][v]);
    }
    if (column < 2) continue;
    store_quad(done, bias, sums);
    sums += kBlock;
  }
}

// For row_winograd.h: of bytes and int32 alike, but of different types, so that operations have one name.
template <class Number>
struct Lanes {
  __m512i value;
};

struct Integers {
  using Bytes = Lanes<uint8_t>;
  using Sums = Lanes<int32_t>;
  static constexpr int kBytes = 64, kSums = 16;

  template <class Number>
  static Lanes<Number> load(const Number* x) {
    return {_mm512_loadu_si512(x)};
  }
  template <class Number>
  static void store(Number* y, Lanes<Number> x) {
    _mm512_storeu_si512(y, x.value);
  }
  static Bytes all(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
  static Bytes add(Bytes a, Bytes b) { return {_mm512_add_epi8(a.value, b.value)}; }
  static Bytes sub(Bytes a, Bytes b) { return {_mm512_sub_epi8(a.value, b.value)}; }
  static Sums add(Sums a, Sums b) { return {_mm512_add_epi32(a.value, b.value)}; }
  static Sums sub(Sums a, Sums b) { return {_mm512_sub_epi32(a.value, b.value)}; }
  static Sums half(Sums a) { return {_mm512_srai_epi32(a.value, 1)}; }
};

int64_t bare_products(int64_t rounds) {
  constexpr int kSums = 24;
  __m512i sum[kSums];
#pragma GCC unroll 24
  for (auto& each : sum) each = _mm512_setzero_si512();
  __m512i a = _mm512_set1_epi8(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (auto& each : sum) {
      asm volatile("" : "+v"(a));  // else the compiler would see that all sums are equal
      each = _mm512_dpbusd_epi32(each, a, a);
    }
  }
#pragma GCC unroll 24
  for (auto& each : sum) asm volatile("" ::"v"(each));
  return rounds * kSums * 64;
}

template <int V, int... P>
void set_tiles(Kernels& kernels, std::integer_sequence<int, P...>) {
  ((kernels.tiles[V / 2][P] = conv_tile<P + 1, V>), ...);
}

Kernels make_kernels() {
  Kernels kernels{};
  set_tiles<1>(kernels, std::make_integer_sequence<int, 24>());
  set_tiles<2>(kernels, std::make_integer_sequence<int, 14>());
  set_tiles<4>(kernels, std::make_integer_sequence<int, 6>());
  kernels.depthwise_taps = 4;
  kernels.depthwise_lanes = 4;
  kernels.depthwise = depthwise;
  kernels.depthwise3x3 = depthwise3x3;
  kernels.row_winograd = &kRowWinograd<Integers, 0>;
  kernels.epilogue = epilogue_of<Vector>;
  kernels.bare_products = bare_products;
  return kernels;
}

}  // namespace

const Kernels& avx512vnni_kernels() {
  static const Kernels kernels = make_kernels();
  return kernels;
}

}  // namespace facetrain::int7
#endif
