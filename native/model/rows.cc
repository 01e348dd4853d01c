#include "model/rows.h"

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

namespace facetrain {
namespace {

static_assert(sizeof(c10::BFloat16) == sizeof(uint16_t));

FT_VECTORIZED void widen(const uint16_t* FT_RESTRICT from, int64_t count, float* FT_RESTRICT to) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

// To the nearest, ties to even, as c10 rounds. NaN stays NaN.
FT_VECTORIZED void round(const float* FT_RESTRICT from, int64_t count, uint16_t* FT_RESTRICT to) {
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(from[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

thread_local std::array<std::vector<float>, FloatRows::kSlots> copies;

}  // namespace

FloatRows::FloatRows(Slot slot, const at::Tensor& tensor, int64_t offset, int64_t count)
    : floats_(nullptr), rounded_(nullptr), count_(count) {
  void* const data = const_cast<void*>(tensor.const_data_ptr());
  if (tensor.scalar_type() == at::kFloat) {
    floats_ = static_cast<float*>(data) + offset;
    return;
  }
  rounded_ = static_cast<c10::BFloat16*>(data) + offset;
  std::vector<float>& copy = copies[slot];
  if (static_cast<int64_t>(copy.size()) < count) copy.resize(static_cast<size_t>(count));
  floats_ = copy.data();
}

const float* FloatRows::read() const {
  if (rounded_) widen(reinterpret_cast<const uint16_t*>(rounded_), count_, floats_);
  return floats_;
}

void FloatRows::store() const {
  if (rounded_) round(floats_, count_, reinterpret_cast<uint16_t*>(rounded_));
}

}  // namespace facetrain
