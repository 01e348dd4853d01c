// The innermost loops of conv.h: one function for each instruction set, all with the same results. conv.cc picks one.
// Their names end in the instruction set. Conv packs the layouts that they read.
#pragma once

#include <cstdint>

namespace facetrain {

inline constexpr int kTilePixels = 8;   // pixels that a call computes at most
inline constexpr int kPanel = 16;       // output channels that a call computes
inline constexpr int kWeightBias = 64;  // added to weights, which makes them unsigned

// Sums of `pixels` (at most kTilePixels) pixels for one panel: y[p][o] = sum over tap and channel of
// taps[p * tap_count + tap][offset + channel] * weights[tap][channel / 4][o][channel % 4]. `offset` is the group's
// first channel, `channels` the number of channels in the group.
using ConvTile = void (*)(const int8_t* const* taps, int tap_count, int64_t offset, int channels,
                          const uint8_t* weights, int pixels, int32_t (*y)[kPanel]);

// y [channels] = bias [channels] + the sums of one pixel of a depthwise convolution; weights [tap][channel].
using DepthwisePixel = void (*)(const int8_t* const* taps, int tap_count, int channels, const int16_t* weights,
                                const int32_t* bias, int32_t* y);

inline constexpr int kTapsInInt16 = 4;  // products that fit an int16: floor((2^15 - 1) / (63 * 127))

void conv_tile_portable(const int8_t* const* taps, int tap_count, int64_t offset, int channels, const uint8_t* weights,
                        int pixels, int32_t (*y)[kPanel]);
void depthwise_pixel_portable(const int8_t* const* taps, int tap_count, int channels, const int16_t* weights,
                              const int32_t* bias, int32_t* y);
#if defined(__x86_64__)
void conv_tile_avx2(const int8_t* const* taps, int tap_count, int64_t offset, int channels, const uint8_t* weights,
                    int pixels, int32_t (*y)[kPanel]);
void conv_tile_avx512vnni(const int8_t* const* taps, int tap_count, int64_t offset, int channels,
                          const uint8_t* weights, int pixels, int32_t (*y)[kPanel]);
void depthwise_pixel_avx2(const int8_t* const* taps, int tap_count, int channels, const int16_t* weights,
                          const int32_t* bias, int32_t* y);
#endif

}  // namespace facetrain
