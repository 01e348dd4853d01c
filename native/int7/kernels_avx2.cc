// AVX2: vpmaddubsw sums two products in an int16. Sums of several steps stay in int16, as many as the weights prove
// safe, before they are widened (EasyQuant's acceleration, arXiv 2006.16669 section 3.4: seven bits leave the room).
// This file alone is compiled for that instruction set (CMakeLists.txt).
#if defined(__x86_64__)
#include <algorithm>
#include <utility>

#include "int7/vector_avx2.h"

namespace facetrain::int7 {
namespace {

// The int16 sums of P pixels and 16 output channels take 2 * P of the sixteen registers; the int32 sums wait in memory
// until a chunk ends. Four pixels leave GCC the registers to multiply for all of them before it adds: 1.4 times as fast
// as six, whose sums it keeps in memory.
template <int P, int V>
void conv_tile(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
               const int8_t* weights, const int32_t* bias, const int32_t* chunks, int32_t* sums) {
  static_assert(V == 1);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int p = 0; p < P; ++p) {
    for (int half = 0; half < 2; ++half) store32(sums + p * 16 + half * 8, load32(bias + half * 8));
  }
  for (int s = 0; s < segment_count; ++s) {
    const uint8_t* first = x + segments[s];
    const uint8_t* fourth = first + 3 * pixel_stride;
    asm("" : "+r"(fourth));  // hides that it depends on the other: see kernels_avx512vnni.cc
    for (int begin = 0, end; begin < steps; begin = end) {
      end = begin + *chunks++;
      __m256i sum[P][2];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
      for (int step = begin; step < end; ++step) {
        const __m256i low = load32(weights), high = load32(weights + 32);
        weights += 64;
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          const __m256i a = broadcast4((p < 3 ? first : fourth) + p % 3 * pixel_stride);
          sum[p][0] = _mm256_add_epi16(sum[p][0], _mm256_maddubs_epi16(a, low));
          sum[p][1] = _mm256_add_epi16(sum[p][1], _mm256_maddubs_epi16(a, high));
        }
        first += 4;
        fourth += 4;
      }
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        for (int half = 0; half < 2; ++half) {
          int32_t* y = sums + p * 16 + half * 8;
          store32(y, _mm256_add_epi32(load32(y), _mm256_madd_epi16(sum[p][half], ones)));
        }
      }
    }
  }
}

// The same without sums in int16: what INT8 has to do, since two of its products fill an int16. P * 2 sums stay in
// registers.
template <int P, int V>
void conv_tile_int32(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
                     const int8_t* weights, const int32_t* bias, const int32_t*, int32_t* sums) {
  static_assert(V == 1);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[P][2];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    for (int half = 0; half < 2; ++half) sum[p][half] = load32(bias + half * 8);
  }
  for (int s = 0; s < segment_count; ++s) {
    const uint8_t* first = x + segments[s];
    const uint8_t* fourth = first + 3 * pixel_stride;
    asm("" : "+r"(fourth));  // as above
    for (int step = 0; step < steps; ++step) {
      const __m256i low = load32(weights), high = load32(weights + 32);
      weights += 64;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const __m256i a = broadcast4((p < 3 ? first : fourth) + p % 3 * pixel_stride);
        sum[p][0] = _mm256_add_epi32(sum[p][0], _mm256_madd_epi16(_mm256_maddubs_epi16(a, low), ones));
        sum[p][1] = _mm256_add_epi32(sum[p][1], _mm256_madd_epi16(_mm256_maddubs_epi16(a, high), ones));
      }
      first += 4;
      fourth += 4;
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    for (int half = 0; half < 2; ++half) store32(sums + p * 16 + half * 8, sum[p][half]);
  }
}

inline void add_widened(__m256i words, int32_t* y) {
  store32(y, _mm256_add_epi32(load32(y), _mm256_cvtepi16_epi32(_mm256_castsi256_si128(words))));
  store32(y + 8, _mm256_add_epi32(load32(y + 8), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(words, 1))));
}

// Two taps of 32 channels are interleaved byte by byte, so that vpmaddubsw sums them. Their low halves of each 128-bit
// lane give channels 0-7 and 16-23, their high halves 8-15 and 24-31.
void depthwise(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count, const int8_t* weights,
               const int32_t* bias, int chunk, int pixels, int32_t* sums) {
  for (int p = 0; p < pixels; ++p, x += pixel_stride, sums += kBlock) {
    std::copy_n(bias, kBlock, sums);
    for (int part = 0; part < kBlock; part += 32) {
      const int8_t* w = weights + int64_t{part} * tap_count;
      int32_t* y = sums + part;
      for (int begin = 0; begin < tap_count; begin += 2 * chunk) {
        __m256i low = _mm256_setzero_si256(), high = low;
        for (int t = begin; t < std::min(begin + 2 * chunk, tap_count); t += 2, w += 64) {
          const __m256i a = load32(x + taps[t] + part), b = load32(x + taps[t + 1] + part);
          low = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), load32(w)));
          high = _mm256_add_epi16(high, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), load32(w + 32)));
        }
        add_widened(_mm256_permute2x128_si256(low, high, 0x20), y);
        add_widened(_mm256_permute2x128_si256(low, high, 0x31), y + 16);
      }
    }
  }
}

void depthwise_int32(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count, const int8_t* weights,
                     const int32_t* bias, int, int pixels, int32_t* sums) {
  depthwise(x, pixel_stride, taps, tap_count, weights, bias, 1, pixels, sums);
}

int64_t bare_products(int64_t rounds) {
  return bare_products_of(rounds,
                          [](__m256i sum, __m256i a) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, a)); });
}

Kernels without_sums() {
  Kernels kernels{};
  kernels.depthwise_taps = 2;
  kernels.depthwise_lanes = 2;
  kernels.epilogue = epilogue_of<Vector>;
  kernels.bare_products = bare_products;
  return kernels;
}

template <int... P>
Kernels make_kernels(std::integer_sequence<int, P...>) {
  Kernels kernels = without_sums();
  ((kernels.tiles[0][P] = conv_tile<P + 1, 1>), ...);
  kernels.depthwise = depthwise;
  kernels.int16_products = 2;
  // On an AMD EPYC, chunks of two steps take 1.3 times as long as int32 sums, five to six as long, twelve 0.87 times.
  kernels.int32_sums = &avx2int32_kernels();
  kernels.shortest_chunks = 6;
  kernels.winograd[0] = avx2_winograd(2);
  kernels.winograd[1] = avx2_winograd(4);
  return kernels;
}

Kernels make_direct_kernels() {
  Kernels kernels = avx2_kernels();
  kernels.winograd[0] = kernels.winograd[1] = nullptr;
  return kernels;
}

template <int... P>
Kernels make_int32_kernels(std::integer_sequence<int, P...>) {
  Kernels kernels = without_sums();
  ((kernels.tiles[0][P] = conv_tile_int32<P + 1, 1>), ...);
  kernels.depthwise = depthwise_int32;
  return kernels;
}

}  // namespace

const Kernels& avx2_kernels() {
  static const Kernels kernels = make_kernels(std::make_integer_sequence<int, 4>());
  return kernels;
}

const Kernels& avx2direct_kernels() {
  static const Kernels kernels = make_direct_kernels();
  return kernels;
}

const Kernels& avx2int32_kernels() {
  static const Kernels kernels = make_int32_kernels(std::make_integer_sequence<int, 6>());
  return kernels;
}

}  // namespace facetrain::int7
#endif
