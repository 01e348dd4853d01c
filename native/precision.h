// The types in which products (convolutions, matrix products) are computed. Sums, statistics and weights stay float32
// in all of them.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

namespace facetrain {

enum class Precision {
  fp32,  // IEEE float32
  tf32,  // float32 operands rounded to 10 bits of mantissa, by the tensor cores of NVIDIA's GPUs since Ampere
  bf16,  // bfloat16: the exponents of float32, 7 bits of mantissa
  fp16,  // IEEE half: 5 bits of exponent, 10 of mantissa; small gradients need a loss scale
};

inline constexpr std::array kPrecisions{Precision::fp32, Precision::tf32, Precision::bf16, Precision::fp16};

// The name in config.json and in checkpoints.
constexpr std::string_view name_of(Precision precision) {
  constexpr std::array<std::string_view, kPrecisions.size()> kNames{"fp32", "tf32", "bf16", "fp16"};
  return kNames[static_cast<std::size_t>(precision)];
}

// The precision of that name; nothing for another text.
constexpr std::optional<Precision> precision_of(std::string_view name) {
  for (const Precision precision : kPrecisions) {
    if (name_of(precision) == name) return precision;
  }
  return std::nullopt;
}

static_assert(precision_of("bf16") == Precision::bf16 && precision_of("fp32") == Precision::fp32 &&
              precision_of("tf32") == Precision::tf32 && precision_of("fp16") == Precision::fp16 &&
              !precision_of("BF16"));

}  // namespace facetrain
