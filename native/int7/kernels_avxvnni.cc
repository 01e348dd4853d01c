// AVX-VNNI: 32 products in one vpdpbusd, on processors without AVX512 (Intel's since Alder Lake). This file alone is
// compiled for that instruction set (CMakeLists.txt).
//
// With FACETRAIN_EMULATES_AVXVNNI it is compiled for AVX2, a second time: the same kernels with that one instruction
// computed by others. int7_test runs these where the processor has no AVX-VNNI.
#if defined(__x86_64__)
#include <utility>

#include "int7/row_winograd.h"
#include "int7/vector_avx2.h"

namespace facetrain::int7 {
namespace {

// sum + the four products of unsigned bytes of `a` and signed bytes of `w` in each int32.
inline __m256i add_products(__m256i sum, __m256i a, __m256i w) {
#if defined(FACETRAIN_EMULATES_AVXVNNI)
  // In int16, of the even bytes and of the odd ones. vpmaddubsw would saturate.
  const __m256i even =
      _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(w, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#else
  return _mm256_dpbusd_avx_epi32(sum, a, w);
#endif
}

// The sums of P pixels for 16 output channels take 2 * P of the sixteen registers, beside two of weights and one of
// activations.
template <int P>
void conv_tile(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
               const int8_t* weights, const int32_t* bias, const int32_t*, int32_t* sums) {
  __m256i sum[P][2];
#pragma GCC unroll 6
  for (auto& each : sum) {
    each[0] = load32(bias);
    each[1] = load32(bias + 8);
  }
  for (int s = 0; s < segment_count; ++s) {
    const uint8_t* first = x + segments[s];
    const uint8_t* fourth = first + 3 * pixel_stride;
    asm("" : "+r"(fourth));  // hides that it depends on the other: see kernels_avx512vnni.cc
    for (int step = 0; step < steps; ++step) {
      const __m256i low = load32(weights), high = load32(weights + 32);
      weights += 64;
#pragma GCC unroll 6
      for (int p = 0; p < P; ++p) {
        const __m256i a = broadcast4((p < 3 ? first : fourth) + p % 3 * pixel_stride);
        sum[p][0] = add_products(sum[p][0], a, low);
        sum[p][1] = add_products(sum[p][1], a, high);
      }
      first += 4;
      fourth += 4;
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p) {
    store32(sums + p * kVector, sum[p][0]);
    store32(sums + p * kVector + 8, sum[p][1]);
  }
}

// The same 32 channels of four taps, as four vectors in which the four bytes of a channel are neighbors. Vector j has
// in its 128-bit lane l the channels 16 * l + 4 * j and the three after it.
struct Quad {
  __m256i v[4];
};

inline Quad interleave(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
  return {{_mm256_unpacklo_epi16(ab_low, cd_low), _mm256_unpackhi_epi16(ab_low, cd_low),
           _mm256_unpacklo_epi16(ab_high, cd_high), _mm256_unpackhi_epi16(ab_high, cd_high)}};
}

// Stores the sums of those vectors by ascending channel, plus the bias.
inline void store_quad(const __m256i* sum, const int32_t* bias, int32_t* y) {
  const __m256i ordered[4] = {
      _mm256_permute2x128_si256(sum[0], sum[1], 0x20), _mm256_permute2x128_si256(sum[2], sum[3], 0x20),
      _mm256_permute2x128_si256(sum[0], sum[1], 0x31), _mm256_permute2x128_si256(sum[2], sum[3], 0x31)};
  for (int v = 0; v < 4; ++v) store32(y + v * 8, _mm256_add_epi32(ordered[v], load32(bias + v * 8)));
}

constexpr int kTogether = 32;  // channels

void depthwise(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count, const int8_t* weights,
               const int32_t* bias, int, int pixels, int32_t* sums) {
  const __m256i zero = _mm256_setzero_si256();
  for (int p = 0; p < pixels; ++p, x += pixel_stride, sums += kBlock) {
    for (int part = 0; part < kBlock; part += kTogether) {
      const int8_t* w = weights + int64_t{part} * tap_count;
      const uint8_t* from = x + part;
      __m256i sum[4] = {zero, zero, zero, zero};
      for (int t = 0; t < tap_count; t += 4, w += 4 * kTogether) {
        const Quad quad = interleave(load32(from + taps[t]), load32(from + taps[t + 1]), load32(from + taps[t + 2]),
                                     load32(from + taps[t + 3]));
        for (int v = 0; v < 4; ++v) sum[v] = add_products(sum[v], quad.v[v], load32(w + v * kTogether));
      }
      store_quad(sum, bias + part, sums + part);
    }
  }
}

// Goes over the columns once, as on AVX512-VNNI; here a group of taps is a column: (row 0, row 1, row 2, none). The
// twelve vectors of weights do not fit the registers beside the sums.
void depthwise3x3(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int, const int8_t* weights,
                  const int32_t* bias, int, int pixels, int32_t* sums) {
  const __m256i zero = _mm256_setzero_si256();
  for (int part = 0; part < kBlock; part += kTogether) {
    const int8_t* const w = weights + int64_t{part} * 12;
    const auto weight = [&](int column, int v) { return load32(w + (column * 4 + v) * kTogether); };
    const uint8_t* rows[3] = {x + taps[0] + part, x + taps[3] + part, x + taps[6] + part};
    int32_t* y = sums + part;
    __m256i before[4] = {zero, zero, zero, zero}, now[4] = {zero, zero, zero, zero};
    for (int column = 0; column < pixels + 2; ++column) {
      const __m256i low = load32(rows[2]);
      const Quad quad = interleave(load32(rows[0]), load32(rows[1]), low, low);
      for (auto& row : rows) row += pixel_stride;
      __m256i done[4];
      for (int v = 0; v < 4; ++v) {
        done[v] = add_products(before[v], quad.v[v], weight(2, v));
        before[v] = add_products(now[v], quad.v[v], weight(1, v));
        now[v] = add_products(zero, quad.v[v], weight(0, v));
      }
      if (column < 2) continue;
      store_quad(done, bias + part, y);
      y += kBlock;
    }
  }
}

// For row_winograd.h: of bytes and int32 alike, but of different types, so that operations have one name.
template <class Number>
struct Lanes {
  __m256i value;
};

struct Integers {
  using Bytes = Lanes<uint8_t>;
  using Sums = Lanes<int32_t>;
  static constexpr int kBytes = 32, kSums = 8;

  template <class Number>
  static Lanes<Number> load(const Number* x) {
    return {load32(x)};
  }
  template <class Number>
  static void store(Number* y, Lanes<Number> x) {
    store32(y, x.value);
  }
  static Bytes all(uint8_t x) { return {_mm256_set1_epi8(static_cast<char>(x))}; }
  static Bytes add(Bytes a, Bytes b) { return {_mm256_add_epi8(a.value, b.value)}; }
  static Bytes sub(Bytes a, Bytes b) { return {_mm256_sub_epi8(a.value, b.value)}; }
  static Sums add(Sums a, Sums b) { return {_mm256_add_epi32(a.value, b.value)}; }
  static Sums sub(Sums a, Sums b) { return {_mm256_sub_epi32(a.value, b.value)}; }
  static Sums half(Sums a) { return {_mm256_srai_epi32(a.value, 1)}; }
};

int64_t bare_products(int64_t rounds) {
  return bare_products_of(rounds, [](__m256i sum, __m256i a) { return add_products(sum, a, a); });
}

template <int... P>
Kernels make_kernels(std::integer_sequence<int, P...>) {
  Kernels kernels{};
  ((kernels.tiles[0][P] = conv_tile<P + 1>), ...);
  kernels.depthwise_taps = 4;
  kernels.depthwise_lanes = 2;
  kernels.depthwise = depthwise;
  kernels.depthwise3x3 = depthwise3x3;
  kernels.row_winograd = &kRowWinograd<Integers, 0>;
  kernels.epilogue = epilogue_of<Vector>;
  kernels.bare_products = bare_products;
  return kernels;
}

}  // namespace

#if defined(FACETRAIN_EMULATES_AVXVNNI)
const Kernels& emulated_avxvnni_kernels() {
#else
const Kernels& avxvnni_kernels() {
#endif
  static const Kernels kernels = make_kernels(std::make_integer_sequence<int, 6>());
  return kernels;
}

}  // namespace facetrain::int7
#endif
