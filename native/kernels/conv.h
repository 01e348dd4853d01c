// The integer convolution of the INT7 runtime: int8 operands in [-63, 63], int32 sums, exactly those of reference.h.
//
// Two shapes of loop:
// - Depthwise: the channels of a pixel side by side in one vector. Eight products of 63 * 63 fit 16 bits, so taps are
//   summed eight at a time in int16 and widened then (EasyQuant, section "INT7").
// - All else: a product of matrices without ever copying patches together: for each pixel the kernel follows a list of
//   pointers to its taps (XNNPACK's indirection). Weights are stored as unsigned w + 64, in panels of 16 output
//   channels by four input channels; so four bytes of activations, broadcast, meet 16 channels at once in vpdpbusd
//   (AVX512-VNNI) or in vpmaddubsw (AVX2), whose 16-bit pairs cannot saturate: 2 * 127 * 63 < 2^15. What the 64 adds,
//   64 * the sum of the pixel's activations, is taken off again.
//
// Memory behind `x` must be readable for 3 bytes past its end: the last four of a pixel's channels are read together,
// and weights of zero meet what is too much.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/conv_shape.h"

namespace facetrain {

// Instruction sets with a kernel of their own; `portable` is there on every machine.
enum class Isa { portable, avx2, avx512vnni };

bool supported(Isa isa);
Isa best_isa();

inline constexpr int kOverread = 3;

class Conv {
 public:
  Conv() = default;
  // weights [O, I/group, kh, kw] in [-63, 63].
  Conv(const ConvShape& shape, const int8_t* weights, Isa isa = best_isa());

  const ConvShape& shape() const { return shape_; }

  // taps: for each pixel shape.taps() pointers to in_channels values; bias [O]; y [pixels, O].
  void run(const int8_t* const* taps, int pixels, const int32_t* bias, int32_t* y) const;

  // The same for consecutive pixels of the image x [height, width, channels].
  void run_image(const int8_t* x, int first_pixel, int pixels, const int32_t* bias, int32_t* y) const;

 private:
  void run_panels(const int8_t* const* taps, int pixels, const int32_t* bias, int32_t* y) const;

  ConvShape shape_;
  Isa isa_ = Isa::portable;
  std::vector<uint8_t> panels_;     // [group][panel][tap][I/group / 4][16][4], or
  std::vector<int16_t> depthwise_;  // [tap][channel]
  std::vector<int8_t> zeros_;       // a pixel of the padding
};

}  // namespace facetrain
