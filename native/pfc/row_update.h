// The updates of a class centre, and stochastic rounding for centres in bfloat16: the arithmetic of CPUs and CUDA. T is
// float or, on CPUs, a vector of them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "host_device.h"
#include "pfc/initial_rows.h"
#include "random.h"

namespace facetrain {

// With g the gradient of a row in a step that samples it, and 0 in a dense update of the others:
enum class RowOptimizer {
  // m <- momentum m + (g + weight_decay w), w <- w - learning_rate m.
  sgd,
  // Loshchilov and Hutter, arXiv 1711.05101, with t the number of updates of this row: m <- 0.9 m + 0.1 g,
  // v <- 0.999 v + 0.001 g^2,
  // w <- (1 - learning_rate weight_decay) w - learning_rate (m / (1 - 0.9^t)) / (sqrt(v / (1 - 0.999^t)) + 1e-8).
  adamw,
  // Duchi et al., JMLR 2011, with one sum for a row (as FBGEMM's and TorchRec's): s <- s + mean(g^2),
  // w <- (1 - learning_rate weight_decay) w - learning_rate g / (sqrt(s) + 1e-8).
  adagrad,
};

inline constexpr std::array kRowOptimizers{RowOptimizer::sgd, RowOptimizer::adamw, RowOptimizer::adagrad};

// The name in config.json and in checkpoints.
constexpr std::string_view name_of(RowOptimizer optimizer) {
  constexpr std::array<std::string_view, kRowOptimizers.size()> kNames{"sgd", "adamw", "adagrad"};
  return kNames[static_cast<std::size_t>(optimizer)];
}

// The optimizer of that name; nothing for another text.
constexpr std::optional<RowOptimizer> row_optimizer_of(std::string_view name) {
  for (const RowOptimizer optimizer : kRowOptimizers) {
    if (name_of(optimizer) == name) return optimizer;
  }
  return std::nullopt;
}

inline constexpr double kAdamBeta1 = 0.9, kAdamBeta2 = 0.999;
inline constexpr float kAdamEpsilon = 1e-8F, kAdaGradEpsilon = 1e-8F;

// What is the same for all rows in an update.
struct RowRates {
  double learning_rate, momentum, weight_decay;
};

// The effect of updates without a gradient on a number of a row and its momentum: w <- a w + b m, m <- c w + d m.
// Each update without a gradient is linear, and the same for all rows, so the product of their matrices brings a row up
// to date that several dense updates have left out.
struct PendingUpdates {
  double a = 1, b = 0, c = 0, d = 1;

  // Of one update. Not for AdamW, whose second moments would need more.
  FT_HD static constexpr PendingUpdates of(RowOptimizer optimizer, const RowRates& rates) {
    const double decay = rates.learning_rate * rates.weight_decay;
    if (optimizer != RowOptimizer::sgd) return {1 - decay, 0, 0, 1};
    return {1 - decay, -rates.learning_rate * rates.momentum, rates.weight_decay, rates.momentum};
  }

  // First `earlier`, then these.
  FT_HD constexpr PendingUpdates after(const PendingUpdates& earlier) const {
    return {a * earlier.a + b * earlier.c, a * earlier.b + b * earlier.d, c * earlier.a + d * earlier.c,
            c * earlier.b + d * earlier.d};
  }

  template <class T>
  FT_HD void apply(T& weight, T& velocity) const {
    const T before = weight;
    weight = before * static_cast<float>(a) + velocity * static_cast<float>(b);
    velocity = before * static_cast<float>(c) + velocity * static_cast<float>(d);
  }
  // Without a momentum.
  template <class T>
  FT_HD void apply(T& weight) const {
    weight = weight * static_cast<float>(a);
  }
};

// RowOptimizer::sgd, of one number of a row.
struct RowSgd {
  float learning_rate, momentum, weight_decay;

  static RowSgd of(const RowRates& rates) {
    return {static_cast<float>(rates.learning_rate), static_cast<float>(rates.momentum),
            static_cast<float>(rates.weight_decay)};
  }

  template <class T>
  FT_HD void apply(T& weight, T& velocity, T gradient) const {
    velocity = momentum * velocity + (gradient + weight_decay * weight);
    weight -= learning_rate * velocity;
  }
};

// RowOptimizer::adamw, of one number of a row.
struct RowAdamW {
  float keep, step, root;

  // `updates`: of this row, this one included.
  FT_HD static RowAdamW of(const RowRates& rates, double updates) {
    return {static_cast<float>(1 - rates.learning_rate * rates.weight_decay),
            static_cast<float>(rates.learning_rate / (1 - pow(kAdamBeta1, updates))),
            static_cast<float>(1 / sqrt(1 - pow(kAdamBeta2, updates)))};
  }

  FT_HD void apply(float& weight, float& first_moment, float& second_moment, float gradient) const {
    first_moment = first_moment * static_cast<float>(kAdamBeta1) + gradient * static_cast<float>(1 - kAdamBeta1);
    second_moment =
        second_moment * static_cast<float>(kAdamBeta2) + gradient * gradient * static_cast<float>(1 - kAdamBeta2);
    weight = weight * keep - step * first_moment / (sqrtf(second_moment) * root + kAdamEpsilon);
  }
};

// RowOptimizer::adagrad, of one number of a row.
struct RowAdaGrad {
  float keep, step;

  // `squares`: the sum of mean squares of this row, with those of this gradient.
  FT_HD static RowAdaGrad of(const RowRates& rates, float squares) {
    return {static_cast<float>(1 - rates.learning_rate * rates.weight_decay),
            static_cast<float>(rates.learning_rate) / (sqrtf(squares) + kAdaGradEpsilon)};
  }

  template <class T>
  FT_HD void apply(T& weight, T gradient) const {
    weight = weight * keep - gradient * step;
  }
};

// The bfloat16 next to `value`, below or above, each with a probability by its distance: 16 random bits are added below
// the last bit that stays. Rounding to the nearest would lose every update that is smaller than 2^-9 of its number.
FT_HD inline uint16_t round_stochastically(float value, uint16_t random) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + random) >> 16);
}

// The key of the random bits for a class's row in a step.
FT_HD inline uint64_t rounding_key(uint64_t seed, uint64_t step, int64_t class_id, PfcStream stream = kRoundingStream) {
  return sequence_number(sequence_number(sequence_number(seed, stream), step), static_cast<uint64_t>(class_id));
}

// The random bits of numbers 2 pair and 2 pair + 1 of the row with that key: 16 for each weight, then 16 for each
// momentum or first moment. Second moments have a key of their own, and its first bits.
FT_HD inline uint64_t rounding_bits(uint64_t key, int64_t pair) {
  return sequence_number(key, static_cast<uint64_t>(pair));
}

}  // namespace facetrain
