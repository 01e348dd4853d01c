// The integer convolution of the INT7 runtime: weights in [-63, 63], activations of seven or eight bits, int32 sums.
// Every instruction set gives the sums of reference.h exactly.
//
// Activations of seven bits are integers less their tensor's zero point, so 127 neighboring integers within [-126, 126]
// (all [-63, 63] if that is 0). Those of eight bits have no zero point: [-127, 127]. Padding is the integer 0.
//
// Why seven bits: an int16 holds the sum of eight products of 63 * 63, and the sum of two products of an unsigned and a
// signed byte (127 * 63 each). So the fast x86 instructions cannot overflow (EasyQuant, arXiv 2006.16669, on INT7
// inference). Here, less the zero point or with eight bits, four products fit; int7/ has the zero point in its bytes.
//
// Two kinds of loop:
// - Depthwise (one channel per group): one vector holds the channels of a pixel. Products of four taps are summed in
//   int16 before they are widened to int32.
// - All others: a matrix product that reads the input in place. For each pixel the kernel follows a list of pointers to
//   its taps ("indirect convolution": Dukhan, arXiv 1907.02129), so there is no im2col copy. Weights are stored
//   as unsigned w + 64, in panels of 16 output channels by 4 input channels. Four bytes of activations are broadcast
//   and multiplied with 16 channels at once, by vpdpbusd (AVX512-VNNI) or vpmaddubsw (AVX2). The latter's 16-bit pair
//   sums cannot saturate: 2 * 127 * 127 < 2^15. The offset of 64 adds 64 times the sum of the pixel's activations,
//   which is subtracted at the end.
//
// Cost: AVX512-VNNI does 64 multiply-accumulates in one instruction, AVX2 32 in three. One more pass over the
// activations computes the sum to subtract. Weights are packed once, by the constructor.
//
// Memory after `x` must be readable for kOverread bytes: channels are read four at a time, and a last group of fewer is
// multiplied with weights of zero.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/conv_shape.h"

namespace facetrain {

// The largest integer of a weight, and of an operand of seven bits before its zero point is subtracted; and how many
// products of two of them a sum may have: with a bias of up to 2^30 it fits an int32. LayerGraph (quant/layer_graph.h)
// refuses convolutions with more weights in a filter.
inline constexpr int kLargestOperand = 63;
inline constexpr int64_t kLargestFilter = 1 << 18;
inline constexpr int64_t kLargestBias = 1 << 30;
static_assert(kLargestFilter * kLargestOperand * kLargestOperand + kLargestBias <= INT32_MAX);
// run() with weights of w + 64, and the sum that it subtracts for them.
static_assert(kLargestFilter * kLargestOperand * (kLargestOperand + 64) <= INT32_MAX);
// The same for activations that reach farther: with a zero point, which may be up to 63, or of eight bits. Convolutions
// with larger filters read only tensors of seven bits without a zero point.
inline constexpr int kLargestWideOperand = 127;
inline constexpr int64_t kLargestFilterOfWideOperand = 1 << 17;
static_assert(kLargestFilterOfWideOperand * kLargestOperand * kLargestWideOperand + kLargestBias <= INT32_MAX);
static_assert(kLargestFilterOfWideOperand * kLargestWideOperand * (kLargestOperand + 64) <= INT32_MAX);

// Instruction sets that have their own kernel, the better ones of a processor last. `portable` runs on every machine;
// `avx2direct` is AVX2 without Winograd's convolution, and `avx2int32` also widens every sum of two products, as INT8
// has to: int7/ has them to compare with, and never chooses them by itself, but `avx2` takes the latter's tiles where
// they are faster. `avxvnni` is AVX2 with the dot product of AVX512-VNNI. `neondot` is NEON with the dot product of
// ARMv8.2. In this folder `portable` computes for ARM too, and `avx2` for AVX-VNNI: only int7/ has kernels for them.
enum class Isa { portable, avx2int32, avx2direct, avx2, avxvnni, avx512vnni, neon, neondot };
inline constexpr Isa kIsas[] = {Isa::portable, Isa::avx2int32,  Isa::avx2direct, Isa::avx2,
                                Isa::avxvnni,  Isa::avx512vnni, Isa::neon,       Isa::neondot};

// The name in lower case, as it is above.
const char* name_of(Isa isa);
// Whether this machine has the instruction set.
bool supported(Isa isa);
// The fastest that this machine supports.
Isa best_isa();

// Bytes past the end of an activation tensor that the kernels may read.
inline constexpr int kOverread = 3;

class Conv {
 public:
  Conv() = default;
  // Packs weights [O, I/group, kh, kw], each in [-63, 63]. `isa` must be supported.
  Conv(const ConvShape& shape, const int8_t* weights, Isa isa = best_isa());

  const ConvShape& shape() const { return shape_; }

  // y [pixels, O] = bias [O] + the sums of products. `taps` holds shape().taps() pointers for each pixel, each to
  // in_channels values (see tap_pointers).
  void run(const int8_t* const* taps, int pixels, const int32_t* bias, int32_t* y) const;

  // The same for output pixels first_pixel to first_pixel + pixels - 1 (row-major) of the image x [height, width,
  // channels].
  void run_image(const int8_t* x, int first_pixel, int pixels, const int32_t* bias, int32_t* y) const;

 private:
  void run_panels(const int8_t* const* taps, int pixels, const int32_t* bias, int32_t* y) const;

  ConvShape shape_;
  Isa isa_ = Isa::portable;
  std::vector<uint8_t> panels_;     // [group][panel][tap][I/group / 4][16][4]; empty if depthwise
  std::vector<int16_t> depthwise_;  // [tap][channel]; empty otherwise
  std::vector<int8_t> zeros_;       // a pixel of the padding
};

}  // namespace facetrain
