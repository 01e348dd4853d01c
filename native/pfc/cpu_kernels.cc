#include "pfc/cpu_kernels.h"

#include <cmath>
#include <cstring>

#include "clones.h"
#include "pfc/cpu_products.h"

namespace facetrain::cpu {
namespace {

// Sixteen numbers: a register of AVX-512, two of AVX2, four of SSE2. The order of a sum over them does not depend on
// the instruction set.
constexpr int kLanes = 16;
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));
using Longs = uint64_t __attribute__((vector_size(8 * kLanes)));

#define FT_INLINE __attribute__((always_inline)) inline

constexpr float kShortest = 1e-12F;  // shorter rows are treated as zero
// The smallest argument of an exponential that is a normal number of float32.
constexpr float kSmallestArgument = -87.0F;

// The `count` <= kLanes numbers at `from`, and zeros.
template <class Vector, class T>
FT_INLINE Vector load(const T* from, int64_t count = kLanes) {
  Vector v{};
  if (count >= kLanes) {
    std::memcpy(&v, from, sizeof v);
  } else {
    std::memcpy(&v, from, static_cast<size_t>(count) * sizeof(T));
  }
  return v;
}
template <class Vector, class T>
FT_INLINE void store(const Vector& v, T* to, int64_t count = kLanes) {
  if (count >= kLanes) {
    std::memcpy(to, &v, sizeof v);
  } else {
    std::memcpy(to, &v, static_cast<size_t>(count) * sizeof(T));
  }
}

FT_INLINE Words bits_of(Floats v) {
  Words bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
FT_INLINE Floats floats_of(Words bits) {
  Floats v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
// To bfloat16, to the nearest, ties to even. Not for NaN.
FT_INLINE Halves narrow(Floats v) {
  const Words bits = bits_of(v);
  return __builtin_convertvector((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16, Halves);
}
FT_INLINE Floats widen(Halves v) { return floats_of(__builtin_convertvector(v, Words) << 16); }

FT_INLINE double sum_of(Floats v) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += double{v[i]};
  return sum;
}

// Calls body(i, count) for each `count` <= kLanes numbers from i on.
template <class Body>
FT_INLINE void for_lanes(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, int64_t{kLanes});
  if (i < n) body(i, n - i);
}

FT_INLINE double dot(const float* a, const float* b, int64_t n) {
  Floats sums{};
  for_lanes(
      n, [&](int64_t i, int64_t k)
             __attribute__((always_inline)) { sums += load<Floats>(a + i, k) * load<Floats>(b + i, k); });
  return sum_of(sums);
}

// e^x within 2 units in the last place for kSmallestArgument <= x <= 88: e^x = 2^n e^r with |r| <= log(2) / 2, and the
// Taylor series of e^r, whose remainder is below 1e-8.
FT_INLINE Floats exponential(Floats x) {
  constexpr float kLog2E = 1.44269504F, kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;  // the former has 9 bits
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: its sum with a number below 2^22 is rounded to an integer
  const Floats n = (x * kLog2E + kRound) - kRound;
  const Floats r = (x - n * kLn2High) - n * kLn2Low;
  Floats p = r * (1.0F / 5040) + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r * r + r + 1.0F;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats power;
  std::memcpy(&power, &exponent, sizeof power);
  return p * power;
}

// Rows whose exponentials are added in float32, before their sum is added in float64.
constexpr int64_t kRowsOfSum = 16;

template <class T>
FT_INLINE void exponentials_of(const float* logits, int64_t rows, const float* shifts, float filter, T* out,
                               double* sums) {
  static_assert(kPanel % kLanes == 0);
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    const Floats shift = shifts == nullptr ? Floats{} : load<Floats>(shifts + j);
    for (int64_t begin = 0; begin < rows; begin += kRowsOfSum) {
      const int64_t end = begin + kRowsOfSum < rows ? begin + kRowsOfSum : rows;
      Floats sum{};
      for (int64_t i = begin; i < end; ++i) {
        const Floats logit = load<Floats>(logits + i * kPanel + j), zero{};
        const auto filtered = logit > filter;
        const Floats x = (filtered ? zero : logit) - shift;
        const auto vanishes = x < kSmallestArgument;
        const Floats e = vanishes ? zero : exponential(vanishes ? zero + kSmallestArgument : x);
        sum += e;
        const Floats kept = filtered ? zero : e;
        if constexpr (sizeof(T) == 2) {
          store(narrow(kept), out + i * kPanel + j);
        } else {
          store(kept, out + i * kPanel + j);
        }
      }
      for (int lane = 0; lane < kLanes; ++lane) sums[j + lane] += double{sum[lane]};
    }
  }
}

// Calls body(i, count, place) for each `count` <= kLanes numbers of a row from i on, which are at `place` in panels.
// Those beyond the last column count as numbers.
template <class Body>
FT_INLINE void for_panels(int64_t dim, int64_t panel, Body body) {
  for (int64_t i = 0; i < panels(dim) * kPanel; i += kLanes) {
    const int64_t left = dim - i;
    body(i, left > kLanes ? int64_t{kLanes} : left > 0 ? left : 0, i / kPanel * panel + i % kPanel);
  }
}

FT_INLINE void project_row(float* gradient, const float* row, int64_t dim, float inverse_norm) {
  const auto along = static_cast<float>(dot(gradient, row, dim) * double{inverse_norm} * double{inverse_norm});
  for_lanes(
      dim, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        store((load<Floats>(gradient + i, k) - load<Floats>(row + i, k) * along) * inverse_norm, gradient + i, k);
      });
}

// ---- initial_rows.h on kLanes pairs at once: the same operations in the same order, so the same bits ----

// Those of initial_rows.h, where they are local to functions: a GPU's code cannot use arrays of a namespace.
constexpr float kLogSeries[] = {2.0F, 2.0F / 3, 2.0F / 5, 2.0F / 7, 2.0F / 9, 2.0F / 11};
constexpr float kCosineSeries[] = {1.0F, -1.0F / 2, 1.0F / 24, -1.0F / 720, 1.0F / 40320};
constexpr float kSineSeries[] = {1.0F, -1.0F / 6, 1.0F / 120, -1.0F / 5040, 1.0F / 362880};
constexpr float kQuarterTurn = 1.57079633F / (1 << 22);

// splitmix64.
FT_INLINE Longs mixed(Longs x) {
  x += kGoldenGamma;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// polynomial.
template <int kTerms>
FT_INLINE Floats series(const float (&c)[kTerms], Floats x) {
  Floats sum = x * c[kTerms - 1] + c[kTerms - 2];
  for (int i = kTerms - 3; i >= 0; --i) sum = x * sum + c[i];
  return sum;
}

// log_of_fraction.
FT_INLINE Floats logs_of_fractions(Words k) {
  Words bits = bits_of(__builtin_convertvector(k, Floats));
  Ints exponent = __builtin_convertvector(bits >> 23, Ints) - 127;
  Floats mantissa = floats_of((bits & 0x7fffff) | 0x3f800000);
  const auto is_large = mantissa > 1.41421356F;
  mantissa = is_large ? mantissa * 0.5F : mantissa;
  exponent -= is_large;  // which is -1 where it is true
  const Floats t = (mantissa - 1.0F) / (mantissa + 1.0F);
  return __builtin_convertvector(exponent - 24, Floats) * 0.693147181F + t * series(kLogSeries, t * t);
}

// normal_pair.
FT_INLINE void normal_pairs(Longs bits, Floats* first, Floats* second) {
  Floats radius = logs_of_fractions(__builtin_convertvector(bits >> 40, Words) + 1) * -2.0F;
  for (int i = 0; i < kLanes; ++i) radius[i] = std::sqrt(radius[i]);
  radius = radius * kInitDeviation;

  const Words k = __builtin_convertvector(bits & 0xffffff, Words);
  const Words quarter = (k + (1U << 21)) >> 22;
  const Floats rest = __builtin_convertvector(__builtin_convertvector(k - (quarter << 22), Ints), Floats);
  const Floats x = rest * kQuarterTurn, square = x * x;
  const Floats cosine = series(kCosineSeries, square), sine = x * series(kSineSeries, square);
  const auto swaps = (quarter & 1) == 1;
  // Of (cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos).
  const Words first_sign = ((quarter + 1) & 2) << 30, second_sign = (quarter & 2) << 30;
  *first = radius * floats_of(bits_of(swaps ? sine : cosine) ^ first_sign);
  *second = radius * floats_of(bits_of(swaps ? cosine : sine) ^ second_sign);
}

FT_INLINE void widen_row(const uint16_t* row, int64_t dim, float* out) {
  for_lanes(
      dim, [&](int64_t i, int64_t k)
               __attribute__((always_inline)) { store(widen(load<Halves>(row + i, k)), out + i, k); });
}

}  // namespace

FACETRAIN_CLONES void initial_row(uint64_t seed, int64_t class_id, int64_t dim, float* out) {
  const uint64_t key = sequence_number(sequence_number(seed, kInitStream), static_cast<uint64_t>(class_id));
  Longs lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = 2 * kGoldenGamma * static_cast<uint64_t>(i);
  for (int64_t begin = 0; begin < dim; begin += 2 * int64_t{kLanes}) {
    Floats first, second;
    normal_pairs(mixed(key + static_cast<uint64_t>(begin) * kGoldenGamma + lanes), &first, &second);
    float pairs[2 * kLanes];
    for (int i = 0; i < kLanes; ++i) {
      pairs[2 * i] = first[i];
      pairs[2 * i + 1] = second[i];
    }
    const int64_t count = dim - begin < 2 * kLanes ? dim - begin : 2 * kLanes;
    std::memcpy(out + begin, pairs, static_cast<size_t>(count) * sizeof(float));
  }
}

FACETRAIN_CLONES float inverse_norm(const float* row, int64_t dim) {
  const auto norm = static_cast<float>(std::sqrt(dot(row, row, dim)));
  return norm < kShortest ? 0.0F : 1.0F / norm;
}

FACETRAIN_CLONES void scale(const float* row, int64_t dim, float factor, float* out, int64_t panel) {
  for_panels(
      dim, panel, [&](int64_t i, int64_t k, int64_t place) __attribute__((always_inline)) {
        store(load<Floats>(row + i, k) * factor, out + place);
      });
}

FACETRAIN_CLONES void scale(const float* row, int64_t dim, float factor, uint16_t* out, int64_t panel) {
  for_panels(
      dim, panel, [&](int64_t i, int64_t k, int64_t place) __attribute__((always_inline)) {
        store(narrow(load<Floats>(row + i, k) * factor), out + place);
      });
}

FACETRAIN_CLONES void pair_rows(const uint16_t* panel, int64_t rows, uint16_t* out) {
  for (int64_t i = 0; i < rows; i += 2) {
    for (int64_t j = 0; j < kPanel; j += kLanes) {
      const auto first = load<Halves>(panel + i * kPanel + j);
      const auto second = i + 1 < rows ? load<Halves>(panel + (i + 1) * kPanel + j) : Halves{};
      const Words pairs = __builtin_convertvector(first, Words) | (__builtin_convertvector(second, Words) << 16);
      std::memcpy(out + i * kPanel + 2 * j, &pairs, sizeof pairs);
    }
  }
}

FACETRAIN_CLONES void round(const float* row, int64_t dim, uint16_t* out) {
  for_lanes(
      dim, [&](int64_t i, int64_t k)
               __attribute__((always_inline)) { store(narrow(load<Floats>(row + i, k)), out + i, k); });
}

FACETRAIN_CLONES void widen(const uint16_t* row, int64_t dim, float* out) { widen_row(row, dim, out); }

FACETRAIN_CLONES void exponentials(const float* logits, int64_t rows, const float* shifts, float filter, float* out,
                                   double* sums) {
  exponentials_of(logits, rows, shifts, filter, out, sums);
}

FACETRAIN_CLONES void exponentials(const float* logits, int64_t rows, const float* shifts, float filter, uint16_t* out,
                                   double* sums) {
  exponentials_of(logits, rows, shifts, filter, out, sums);
}

FACETRAIN_CLONES void add_integers(const float* values, int64_t count, double factor, int64_t* sums) {
  constexpr double kMost = int64_t{1} << 61;
  for (int64_t i = 0; i < count; ++i) {
    double value = values[i] * factor;
    value = value < kMost ? value : kMost;
    value = value > -kMost ? value : -kMost;
    sums[i] += static_cast<int64_t>(value);
  }
}

FACETRAIN_CLONES void largest(const float* logits, int64_t rows, float filter, float* out) {
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    const Floats zero{};
    Floats most = zero - INFINITY;
    for (int64_t i = 0; i < rows; ++i) {
      Floats logit = load<Floats>(logits + i * kPanel + j);
      logit = logit > filter ? zero : logit;
      most = logit > most ? logit : most;
    }
    store(most, out + j);
  }
}

FACETRAIN_CLONES void project(float* gradient, const float* row, int64_t dim, float inverse_norm) {
  project_row(gradient, row, dim, inverse_norm);
}

FACETRAIN_CLONES void update_sgd(const RowRates& rates, const float* gradient, int64_t dim, float* row,
                                 float* momentum) {
  const RowSgd sgd = RowSgd::of(rates);
  for_lanes(
      dim, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        Floats w = load<Floats>(row + i, k), m = load<Floats>(momentum + i, k);
        sgd.apply(w, m, load<Floats>(gradient + i, k));
        store(m, momentum + i, k);
        store(w, row + i, k);
      });
}

FACETRAIN_CLONES void update_adamw(const RowRates& rates, double updates, const float* gradient, int64_t dim,
                                   float* row, float* first_moment, float* second_moment) {
  const RowAdamW adamw = RowAdamW::of(rates, updates);
  for (int64_t i = 0; i < dim; ++i) adamw.apply(row[i], first_moment[i], second_moment[i], gradient[i]);
}

FACETRAIN_CLONES void update_adagrad(const RowRates& rates, const float* gradient, int64_t dim, float* row,
                                     float* squares) {
  *squares += static_cast<float>(dot(gradient, gradient, dim) / static_cast<double>(dim));
  const RowAdaGrad adagrad = RowAdaGrad::of(rates, *squares);
  for_lanes(
      dim, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        Floats w = load<Floats>(row + i, k);
        adagrad.apply(w, load<Floats>(gradient + i, k));
        store(w, row + i, k);
      });
}

FACETRAIN_CLONES void apply_pending(const PendingUpdates& pending, int64_t dim, float* row, float* momentum) {
  for_lanes(
      dim, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        Floats w = load<Floats>(row + i, k), m = load<Floats>(momentum + i, k);
        pending.apply(w, m);
        store(w, row + i, k);
        store(m, momentum + i, k);
      });
}

FACETRAIN_CLONES void apply_pending(const PendingUpdates& pending, int64_t dim, float* row) {
  for_lanes(
      dim, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        Floats w = load<Floats>(row + i, k);
        pending.apply(w);
        store(w, row + i, k);
      });
}

FACETRAIN_CLONES void round_row(const float* row, int64_t dim, uint64_t key, int first_bit, uint16_t* out) {
  const int64_t pairs = dim / 2;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const uint64_t bits = rounding_bits(key, pair) >> first_bit;
    out[2 * pair] = round_stochastically(row[2 * pair], static_cast<uint16_t>(bits));
    out[2 * pair + 1] = round_stochastically(row[2 * pair + 1], static_cast<uint16_t>(bits >> 16));
  }
  if (dim % 2 != 0) {
    out[dim - 1] = round_stochastically(row[dim - 1], static_cast<uint16_t>(rounding_bits(key, pairs) >> first_bit));
  }
}

FACETRAIN_CLONES int64_t negatives(const ClassSample& sample, int64_t first, int64_t count, int64_t* out) {
  constexpr int64_t kBlock = 1024;
  uint8_t chosen[kBlock];
  int64_t found = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = count - begin < kBlock ? count - begin : kBlock;
    for (int64_t i = 0; i < n; ++i) chosen[i] = sample.has(first + begin + i);
    for (int64_t i = 0; i < n; ++i) {
      out[found] = first + begin + i;
      found += chosen[i];
    }
  }
  return found;
}

}  // namespace facetrain::cpu
