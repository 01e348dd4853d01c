// The innermost loops of the INT7 runtime, one set of functions for each instruction set. All sets give the results of
// kernels/reference.h bit for bit.
//
// Tensors in memory are [rows][columns][channels] of bytes, channels padded to whole vectors of 16. A tensor that a
// convolution multiplies holds q + zero, an unsigned byte: from 1 to 127 with seven bits (zero: 64 and the tensor's
// zero point), from 1 to 255 with eight (zero: 128). So the unsigned operand of vpdpbusd and vpmaddubsw is the
// activation as it lies in memory, and the signed one the weight. The zero adds zero * (sum of the filter's weights) to
// each sum; the packed bias is less by that. Other tensors hold q as a signed byte, and so do operands of eight bits
// where products are those of signed bytes (`signed_bytes`): their zero is 0. What reads q takes the byte less the
// zero, modulo 256, as a signed byte.
#pragma once

#include <cstdint>

#include "kernels/conv.h"

namespace facetrain::int7 {

inline constexpr int kVector = 16;      // channels that tensors are padded to
inline constexpr int kBlock = 64;       // channels that a call for a depthwise convolution computes
inline constexpr int kTilePixels = 24;  // pixels that any tile computes at most
inline constexpr int kLargestStored = 2 * kLargestOperand + 1;  // byte of an operand of seven bits

// What an int16 sum of products may have: the weights of each sign may add up to `each`, those of both to `both`.
//
// The byte of seven bits reaches 127, so 258 of one sign keep a sum of products within an int16: four products of
// weights of 63. Without the 64 eight would fit (EasyQuant, arXiv 2006.16669, section 3.4), and weights of both signs
// might add up to 520; 258 of each are nearly the same for real filters. The byte of eight bits reaches 255 if it is
// unsigned: two products of weights of 63. As a signed byte it reaches 127 either way, so signs do not matter.
struct Int16Weights {
  int each, both;

  static constexpr Int16Weights of(int zero, int largest) {
    return zero == 0 ? Int16Weights{INT16_MAX, INT16_MAX / largest}
                     : Int16Weights{INT16_MAX / (zero + largest), INT16_MAX};
  }
  bool allow(int up, int down) const { return up <= each && down <= each && up + down <= both; }
};

// Sums of P pixels for V * 16 output channels (P and V belong to the function): sums [P][V * 16] = bias [V * 16] + sum
// over segments and steps of four bytes * four weights. Segment s of pixel p begins at x + segments[s] + p *
// pixel_stride and has 4 * `steps` bytes. Weights [segment][step][V * 16][4]. `chunks`: for every
// segment the lengths of stretches of steps whose sums fit an int16 (AVX2 and NEON alone).
using ConvTile = void (*)(const uint8_t* x, int64_t pixel_stride, const int32_t* segments, int segment_count, int steps,
                          const int8_t* weights, const int32_t* bias, const int32_t* chunks, int32_t* sums);

// Sums of `pixels` pixels of a depthwise convolution for kBlock channels: sums [pixels][kBlock]. Tap t of pixel p
// begins at x + taps[t] + p * pixel_stride; `tap_count` is a multiple of depthwise_taps. `chunk`: groups of
// depthwise_taps whose sums fit an int16. Reads kBlock bytes at each tap.
using Depthwise = void (*)(const uint8_t* x, int64_t pixel_stride, const int32_t* taps, int tap_count,
                           const int8_t* weights, const int32_t* bias, int chunk, int pixels, int32_t* sums);

// An activation or an affine map for each channel. q becomes round((q > 0 ? positive : negative)[c] * q + offset[c]),
// if those numbers are proven to give the defined result for every q (exact.h). Otherwise the definition is followed:
// round(((q > 0 ? positive : negative)[c] * (q * x_scale) + offset[c]) / y_scale).
struct PointwiseStage {
  const float *positive = nullptr, *negative = nullptr;
  const float* offset = nullptr;  // null: none
  bool divides = false;
  float x_scale = 0, y_scale = 0;
  float low = 0, high = 0;
};

// q becomes round(q * scale + second * second_scale), proven in the same way, or with the division by y_scale.
struct AddStage {
  float scale = 0, second_scale = 0;
  bool divides = false;
  float y_scale = 0;
  float low = 0, high = 0;
  int second_zero = 0;  // the byte of the second's integer 0
};

// What happens to a convolution's sums, or to a tensor that is read, before it is stored. Every stage rounds and
// saturates, as if its result were stored. Arrays are by channel, padded to kBlock.
struct Epilogue {
  const float* multipliers = nullptr;  // of sums; null if a tensor is read
  float low = 0, high = 0;
  int source_zero = 0;  // of that tensor
  bool has_first = false, has_add = false, has_last = false;
  PointwiseStage first;
  AddStage add;
  PointwiseStage last;
  int middle_zero = 0, zero = 0;  // of `middle` and `y` below
};

// The addresses for `pixels` pixels and `channels` (a multiple of kVector) channels from `channel` on. Pointers are to
// the first of these channels, strides between pixels.
struct EpilogueRow {
  int pixels = 0, channel = 0, channels = 0;
  const int32_t* sums = nullptr;
  int64_t sums_stride = 0;
  const uint8_t* source = nullptr;
  int64_t source_stride = 0;
  const uint8_t* second = nullptr;
  int64_t second_stride = 0;
  uint8_t* middle = nullptr;  // the result of the addition; null if nothing else reads it
  int64_t middle_stride = 0;
  uint8_t* y = nullptr;
  int64_t y_stride = 0;
};

// What Winograd's convolution takes, beside the direct one, in any unit of time.
struct WinogradCost {
  double direct_product, product;  // of the direct convolution, and of transformed operands
  double transform;                // of a tile for 16 channels
  double far_byte;                 // of weights, if they have more than near_bytes
  int64_t near_bytes;              // that the second-level cache holds
};

// Winograd's convolution of 3x3 taps and stride 1 (Lavin and Gray, arXiv 1509.09308; EasyQuant's second acceleration),
// exact in integers: tiles of outputs * outputs pixels read inputs * inputs, which a transform makes as many positions
// of. Sums of products at a position are those of a 1x1 convolution, 36 instead of 144 for a tile of 4x4 pixels; a
// transform of them gives the tile's sums, times `scale`.
struct Winograd {
  int outputs;             // pixels of a tile on each side
  const int (*filter)[3];  // [inputs][3]: what the rows of a filter become, and then the columns
  // How much larger than an operand or a weight what is made of them may be.
  int operand_gain, filter_gain;
  int scale;
  int tiles;              // that are multiplied together: their operands fit the second-level cache
  int channels_together;  // of input, whose weights of an output channel are neighbors
  WinogradCost cost;

  int inputs() const { return outputs + 2; }
  int positions() const { return inputs() * inputs(); }

  // The operands of a tile, [positions][channels] with a stride between positions, from the integers `byte - zero` of
  // inputs * inputs pixels. `channels` is a multiple of 16.
  void (*transform)(const uint8_t* x, int64_t row, int64_t pitch, int channels, int zero, int64_t position_stride,
                    int16_t* to);
  // products [tiles][16] of x [tiles][channels] and weights [channels / T][16][T], T = channels_together.
  void (*multiply)(const int16_t* x, int tiles, int channels, const int16_t* weights, int32_t* products);
  // A tile's sums [outputs][outputs][16] with `sums_row` numbers from row to row, from products [positions][16].
  void (*finish)(const int32_t* products, int64_t position_stride, const int32_t* bias, int32_t* sums,
                 int64_t sums_row);
};

// Winograd's F(2,3) along the rows alone, whose operands are bytes again: two neighboring pixels take four products for
// the three taps of a row, not six. That is what seven bits are good for: their differences and sums of two fit eight.
struct RowWinograd {
  int operand_shift;  // that transform() adds: 0, or -128 where products are of signed bytes

  // The operands of `tiles` neighboring tiles of two pixels, [4][tiles][channels] with a stride between the four, from
  // the bytes b of 2 * tiles + 2 pixels: b0 - b2 + 127, b1 + b2, b2 - b1 + 127, b1 - b3 + 127, each plus
  // operand_shift. `channels` is a multiple of 16. Reads and writes whole vectors, up to 48 bytes more.
  void (*transform)(const uint8_t* x, int64_t pitch, int tiles, int channels, int64_t stride, uint8_t* to);

  // The sums [tiles][2][width] of m0 + (m1 + m2) / 2 and (m1 - m2) / 2 - m3, from products m [4][tiles][width], of
  // which `width` is a multiple of 16. `more` is added to m1 and m2, [tiles][16] for each 16 of their channels, unless
  // null.
  using More = const int32_t* [2][kBlock / kVector];
  void (*finish)(const int32_t* products, const More& more, int tiles, int width, int32_t* sums);
};

struct Kernels {
  // tiles[V / 2][P - 1] for V = 1, 2 and 4; null where there is none.
  ConvTile tiles[3][kTilePixels];
  // Layout of depthwise weights: for each `depthwise_lanes` * 16 channels, for each group of T = depthwise_taps taps:
  // [T vectors][lane][16 / T channels][T taps], vector j and lane l starting at channel 16 * l + 16 / T * j.
  int depthwise_taps, depthwise_lanes;
  Depthwise depthwise;
  Depthwise depthwise3x3;  // for stride 1 and taps in three rows of three neighbors, in that order; null: none
  int int16_products;      // that a tile's step adds to one int16; 0: sums are int32, and chunks do not matter
  bool signed_bytes;       // products are of signed bytes: operands of eight bits are stored without a zero
  // Whose tiles have int32 sums, and are faster where the chunks of int16 sums have fewer than `shortest_chunks` steps
  // on average; null: none.
  const Kernels* int32_sums;
  double shortest_chunks;
  const Winograd* winograd[2];      // of fewer bytes of weights first; null: none
  const RowWinograd* row_winograd;  // with `tiles`; null: none
  void (*epilogue)(const Epilogue&, const EpilogueRow&);
  // Products of registers alone, `rounds` times; returns their number. For measurements; null if there is none.
  int64_t (*bare_products)(int64_t rounds);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx2direct_kernels();
const Kernels& avx2int32_kernels();
const Winograd* avx2_winograd(int outputs);  // 2 or 4
const Kernels& avxvnni_kernels();
const Kernels& emulated_avxvnni_kernels();  // for tests: the same, and AVX2 is enough
const Kernels& avx512vnni_kernels();
#elif defined(__aarch64__)
const Kernels& neon_kernels();
const Winograd* neon_winograd(int outputs);  // 2 or 4
const Kernels& neondot_kernels();
#endif
const Kernels& kernels_for(Isa isa);

}  // namespace facetrain::int7
