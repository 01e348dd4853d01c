// The transforms of Winograd's convolution along rows (RowWinograd in kernels.h), for the vectors of any instruction
// set. As in epilogue.h, everything is in an anonymous namespace.
#pragma once

#include <cstdint>

#include "int7/kernels.h"

namespace facetrain::int7 {
namespace {

// V has
//   Bytes, of kBytes uint8_t, and Sums, of kSums int32_t; load, store, all(number), and add and sub, which wrap
//   half(Sums): shifted right by one

template <class V, int kShift>
void row_transform(const uint8_t* x, int64_t pitch, int tiles, int channels, int64_t stride, uint8_t* to) {
  const auto between = V::all(static_cast<uint8_t>(kLargestStored + kShift)), both = V::all(uint8_t{kShift & 255});
  for (int tile = 0; tile < tiles; ++tile, x += 2 * pitch, to += channels) {
    for (int c = 0; c < channels; c += V::kBytes) {
      const auto b0 = V::load(x + c), b1 = V::load(x + pitch + c);
      const auto b2 = V::load(x + 2 * pitch + c), b3 = V::load(x + 3 * pitch + c);
      V::store(to + c, V::add(V::sub(b0, b2), between));
      V::store(to + stride + c, V::add(V::add(b1, b2), both));
      V::store(to + 2 * stride + c, V::add(V::sub(b2, b1), between));
      V::store(to + 3 * stride + c, V::add(V::sub(b1, b3), between));
    }
  }
}

template <class V>
void row_finish(const int32_t* products, const RowWinograd::More& more, int tiles, int width, int32_t* sums) {
  const int64_t stride = int64_t{tiles} * width;
  for (int c = 0; c < width; c += V::kSums) {
    const int32_t* const m = products + c;
    const int32_t* const more1 = more[0][c / kVector];
    const int32_t* const more2 = more[1][c / kVector];
    for (int tile = 0; tile < tiles; ++tile) {
      const int64_t at = int64_t{tile} * width, at_more = int64_t{tile} * kVector + c % kVector;
      auto m1 = V::load(m + stride + at), m2 = V::load(m + 2 * stride + at);
      if (more1) m1 = V::add(m1, V::load(more1 + at_more));
      if (more2) m2 = V::add(m2, V::load(more2 + at_more));
      V::store(sums + 2 * at + c, V::add(V::load(m + at), V::half(V::add(m1, m2))));
      V::store(sums + 2 * at + width + c, V::sub(V::half(V::sub(m1, m2)), V::load(m + 3 * stride + at)));
    }
  }
}

// kShift: 0, or -128 where products are of signed bytes.
template <class V, int kShift>
constexpr RowWinograd kRowWinograd{
    .operand_shift = kShift, .transform = row_transform<V, kShift>, .finish = row_finish<V>};

}  // namespace
}  // namespace facetrain::int7
