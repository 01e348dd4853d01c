// The update of one number of a class centre: SGD with momentum, and stochastic rounding for centres in bfloat16.
// Compiles for CPU and CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "pfc/initial_rows.h"
#include "random.h"

namespace facetrain {

// momentum <- factor momentum + (gradient + weight_decay weight), weight <- weight - learning_rate momentum.
struct RowSgd {
  float learning_rate, momentum, weight_decay;

  FT_HD void apply(float& weight, float& velocity, float gradient) const {
    velocity = momentum * velocity + (gradient + weight_decay * weight);
    weight -= learning_rate * velocity;
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
FT_HD inline uint64_t rounding_key(uint64_t seed, uint64_t step, int64_t class_id) {
  return sequence_number(sequence_number(sequence_number(seed, kRoundingStream), step),
                         static_cast<uint64_t>(class_id));
}

// The random bits of numbers 2 pair and 2 pair + 1 of the row with that key: 16 for each weight, then 16 for each
// momentum.
FT_HD inline uint64_t rounding_bits(uint64_t key, int64_t pair) {
  return sequence_number(key, static_cast<uint64_t>(pair));
}

}  // namespace facetrain
