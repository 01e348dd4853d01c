// What exact integer Winograd would bring to a 3x3 convolution on AVX2: F(2x2,3x3) and F(4x4,3x3) (Lavin and Gray,
// arXiv 1509.09308) beside native/int7's direct convolution, by turns, for layers of IResNet-50. Transformed operands
// and weights are int16, products are summed in int32 by vpmaddwd. Transforms are linear over the integers, so int32
// may wrap as long as the scaled result fits; that result is then divided without a remainder. Every way has to give
// the same sums bit for bit. Prints a table and JSON. Built for AVX2 (native/CMakeLists.txt).
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <vector>

#include "int7/kernels.h"

namespace {

using facetrain::int7::kVector;

constexpr int kTiles = 6;         // that are multiplied together: their sums of 16 channels fill the registers
constexpr int kRounds = 25;       // of which the fastest counts
constexpr int kChunk = 12;        // steps that the direct convolution sums in int16, a usual length
constexpr int kOperandZero = 64;  // the byte of the integer 0, with zero point 0

// A layer of stride 1 with padding 1. Memory is as in native/int7: operands [height + 2][width + 2][in] of q + 64.
struct Layer {
  int size, in, out;
  std::vector<uint8_t> x;
  std::vector<int8_t> weights;  // [out][3][3][in]

  int64_t row() const { return int64_t{size + 2} * in; }
  double macs() const { return 9.0 * size * size * in * out; }
};

Layer random_layer(int size, int channels) {
  std::mt19937 source(5);
  std::uniform_int_distribution<int> operand(-63, 63), weight(-20, 20);
  Layer layer{size, channels, channels, {}, {}};
  // Tiles beyond the last row and column read further rows; their results are discarded.
  layer.x.assign(layer.row() * (size + 6) + 64, kOperandZero);
  for (int y = 1; y <= size; ++y) {
    for (int i = 0; i < size * channels; ++i) {
      layer.x[y * layer.row() + channels + i] = static_cast<uint8_t>(operand(source) + kOperandZero);
    }
  }
  layer.weights.resize(int64_t{9} * channels * channels);
  for (auto& w : layer.weights) w = static_cast<int8_t>(weight(source));
  return layer;
}

// Packed weights and biases of the direct convolution, and its loop over tiles. sums [pixel][out].
class Direct {
 public:
  explicit Direct(const Layer& layer) : layer_(layer), steps_(3 * layer.in / 4), bias_(layer.out) {
    weights_.resize(layer.weights.size());
    for (int o = 0; o < layer.out; ++o) {
      int sum = 0;
      for (int i = 0; i < 9 * layer.in; ++i) {
        const int8_t w = layer.weights[int64_t{o} * 9 * layer.in + i];
        sum += w;
        weights_[((int64_t{o} / kVector * steps_ * 3 + i / 4) * kVector + o % kVector) * 4 + i % 4] = w;
      }
      bias_[o] = -kOperandZero * sum;
    }
    for (int r = 0; r < 3; ++r) segments_[r] = static_cast<int32_t>(r * layer.row());
  }

  void run(int chunk, int32_t* sums) const {
    std::vector<int32_t> chunks;
    for (int segment = 0; segment < 3; ++segment) {
      for (int step = 0; step < steps_; step += chunk) chunks.push_back(std::min(chunk, steps_ - step));
    }
    const auto& tiles = facetrain::int7::avx2_kernels().tiles[0];
    for (int o = 0; o < layer_.out; o += kVector) {
      for (int y = 0; y < layer_.size; ++y) {
        for (int x = 0; x < layer_.size; x += 4) {
          const int pixels = std::min(4, layer_.size - x);
          int32_t tile[4 * kVector];
          tiles[pixels - 1](layer_.x.data() + y * layer_.row() + int64_t{x} * layer_.in, layer_.in, segments_, 3,
                            steps_, weights_.data() + int64_t{o} * 9 * layer_.in, bias_.data() + o, chunks.data(),
                            tile);
          for (int p = 0; p < pixels; ++p) {
            std::memcpy(sums + (int64_t{y} * layer_.size + x + p) * layer_.out + o, tile + p * kVector,
                        kVector * sizeof(int32_t));
          }
        }
      }
    }
  }

 private:
  const Layer& layer_;
  int steps_;
  int32_t segments_[3];
  std::vector<int8_t> weights_;
  std::vector<int32_t> bias_;
};

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

// One axis of F(2,3). Operands of 63 become at most 252 in both axes, weights 567; results are times 4.
struct TwoByThree {
  static constexpr int kOutputs = 2, kInputs = 4;
  static constexpr int kFilter[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
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

// One axis of F(4,3). Operands of 63 become at most 6300 in both axes, weights 9072: the last row of the filter is a
// quarter of the others' scale, which output() makes up for, else it would exceed an int16. Results are times 576.
struct FourByThree {
  static constexpr int kOutputs = 4, kInputs = 6;
  static constexpr int kFilter[6][3] = {{6, 0, 0}, {-4, -4, -4}, {-4, 4, -4}, {1, 2, 4}, {1, -2, 4}, {0, 0, 6}};
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
class Winograd {
 public:
  static constexpr int kPositions = F::kInputs * F::kInputs;

  explicit Winograd(const Layer& layer) : layer_(layer) {
    // [panel][position][in / 2][16][2]
    weights_.resize(int64_t{kPositions} * layer.in * layer.out);
    for (int o = 0; o < layer.out; ++o) {
      for (int i = 0; i < layer.in; ++i) {
        for (int position = 0; position < kPositions; ++position) {
          int sum = 0;
          for (int t = 0; t < 9; ++t) {
            sum += F::kFilter[position / F::kInputs][t / 3] * F::kFilter[position % F::kInputs][t % 3] *
                   layer.weights[(int64_t{o} * 9 + t) * layer.in + i];
          }
          const int64_t pair = (int64_t{o} / kVector * kPositions + position) * layer.in / 2 + i / 2;
          weights_[(pair * kVector + o % kVector) * 2 + i % 2] = static_cast<int16_t>(sum);
        }
      }
    }
    transformed_.resize(int64_t{kPositions} * kTiles * layer.in);
    products_.resize(kPositions * kTiles * kVector);
  }

  void run(int32_t* sums) {
    const int across = (layer_.size + F::kOutputs - 1) / F::kOutputs;
    for (int row = 0; row < across; ++row) {
      for (int first = 0; first < across; first += kTiles) {
        const int count = std::min(kTiles, across - first);
        for (int tile = 0; tile < count; ++tile) transform(row, first + tile, tile);
        for (int o = 0; o < layer_.out; o += kVector) {
          for (int position = 0; position < kPositions; ++position) multiply(o, position);
          for (int tile = 0; tile < count; ++tile) finish(row, first + tile, tile, o, sums);
        }
      }
    }
  }

 private:
  void transform(int row, int column, int tile) {
    const uint8_t* x = layer_.x.data() + row * F::kOutputs * layer_.row() + int64_t{column} * F::kOutputs * layer_.in;
    const __m256i zero = _mm256_set1_epi16(kOperandZero);
    for (int c = 0; c < layer_.in; c += 16) {
      __m256i by_row[F::kInputs][F::kInputs], columns[F::kInputs], result[F::kInputs];
      for (int j = 0; j < F::kInputs; ++j) {
        __m256i d[F::kInputs];
        for (int i = 0; i < F::kInputs; ++i) {
          const auto* from = reinterpret_cast<const __m128i*>(x + i * layer_.row() + j * layer_.in + c);
          d[i] = sub16(_mm256_cvtepu8_epi16(_mm_loadu_si128(from)), zero);
        }
        F::input(d, columns);
        for (int i = 0; i < F::kInputs; ++i) by_row[i][j] = columns[i];
      }
      for (int i = 0; i < F::kInputs; ++i) {
        F::input(by_row[i], result);
        for (int j = 0; j < F::kInputs; ++j) {
          int16_t* to = transformed_.data() + (int64_t{i * F::kInputs + j} * kTiles + tile) * layer_.in + c;
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), result[j]);
        }
      }
    }
  }

  // The products of all tiles at one position for 16 output channels.
  void multiply(int channel, int position) {
    const int16_t* x = transformed_.data() + int64_t{position} * kTiles * layer_.in;
    const int16_t* w = weights_.data() + (int64_t{channel} * kPositions + int64_t{position} * kVector) * layer_.in;
    __m256i sum[kTiles][2];
#pragma GCC unroll 6
    for (auto& each : sum) each[0] = each[1] = _mm256_setzero_si256();
    for (int pair = 0; pair < layer_.in / 2; ++pair, w += 2 * kVector) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + kVector));
#pragma GCC unroll 6
      for (int tile = 0; tile < kTiles; ++tile) {
        int32_t two;
        std::memcpy(&two, x + int64_t{tile} * layer_.in + 2 * pair, sizeof two);
        const __m256i a = _mm256_set1_epi32(two);
        sum[tile][0] = add32(sum[tile][0], _mm256_madd_epi16(a, low));
        sum[tile][1] = add32(sum[tile][1], _mm256_madd_epi16(a, high));
      }
    }
#pragma GCC unroll 6
    for (int tile = 0; tile < kTiles; ++tile) {
      auto* to = reinterpret_cast<__m256i*>(products_.data() + (position * kTiles + tile) * kVector);
      _mm256_storeu_si256(to, sum[tile][0]);
      _mm256_storeu_si256(to + 1, sum[tile][1]);
    }
  }

  void finish(int row, int column, int tile, int channel, int32_t* sums) const {
    const int top = row * F::kOutputs, left = column * F::kOutputs;
    for (int half = 0; half < 2; ++half) {
      __m256i by_row[F::kOutputs][F::kInputs], m[F::kInputs], y[F::kOutputs];
      for (int j = 0; j < F::kInputs; ++j) {
        for (int i = 0; i < F::kInputs; ++i) {
          const int32_t* from = products_.data() + ((i * F::kInputs + j) * kTiles + tile) * kVector + half * 8;
          m[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        }
        F::output(m, y);
        for (int i = 0; i < F::kOutputs; ++i) by_row[i][j] = y[i];
      }
      for (int i = 0; i < std::min(F::kOutputs, layer_.size - top); ++i) {
        F::output(by_row[i], y);
        for (int j = 0; j < std::min(F::kOutputs, layer_.size - left); ++j) {
          int32_t* to = sums + (int64_t{top + i} * layer_.size + left + j) * layer_.out + channel + half * 8;
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), F::unscaled(y[j]));
        }
      }
    }
  }

  const Layer& layer_;
  std::vector<int16_t> weights_, transformed_;
  std::vector<int32_t> products_;
};

// The processor time of this thread, so that other work on the machine takes less part in it.
double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// GMAC/s of the direct convolution's products; the fastest of rounds, in which all ways run by turns.
bool measure(int size, int channels, bool last) {
  const Layer layer = random_layer(size, channels);
  const Direct direct(layer);
  Winograd<TwoByThree> two(layer);
  Winograd<FourByThree> four(layer);
  const size_t count = int64_t{size} * size * channels;
  std::vector<int32_t> expected(count), actual(count);
  direct.run(1, expected.data());
  const std::function<void()> ways[] = {[&] { direct.run(kChunk, actual.data()); }, [&] { two.run(actual.data()); },
                                        [&] { four.run(actual.data()); }};
  double fastest[3] = {1e9, 1e9, 1e9}, speed[3];
  for (int round = 0; round < kRounds; ++round) {
    for (int way = 0; way < 3; ++way) {
      std::fill(actual.begin(), actual.end(), 0);
      const double start = seconds();
      ways[way]();
      fastest[way] = std::min(fastest[way], seconds() - start);
      if (actual != expected) return std::fprintf(stderr, "way %d: wrong sums\n", way), false;
    }
  }
  for (int way = 0; way < 3; ++way) speed[way] = layer.macs() / fastest[way] / 1e9;
  std::fprintf(stderr,
               "%3d x %3d x %3d   direct %6.1f   F(2x2,3x3) %6.1f   F(4x4,3x3) "
               "%6.1f GMAC/s\n",
               size, size, channels, speed[0], speed[1], speed[2]);
  std::printf(R"({"size":%d,"channels":%d,"direct":%.1f,"f2":%.1f,"f4":%.1f}%s)", size, channels, speed[0], speed[1],
              speed[2], last ? "]\n" : ",");
  return true;
}

}  // namespace

int main() {
  if (!__builtin_cpu_supports("avx2")) return std::fprintf(stderr, "this processor has no AVX2\n"), 1;
  std::printf("[");
  return measure(56, 64, false) && measure(28, 128, false) && measure(14, 256, false) && measure(7, 512, true) ? 0 : 1;
}
