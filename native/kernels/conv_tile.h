// The innermost loop of conv.h, one function an instruction set.
#pragma once

#include <cstdint>

namespace facetrain {

inline constexpr int kTilePixels = 8;
inline constexpr int kPanel = 16;  // output channels
inline constexpr int kWeightBias = 64;

// Sums of `pixels` (at most kTilePixels) pixels for one panel: y[p][o] = sum over tap and channel of
// taps[p * tap_count + tap][offset + channel] * weights[tap][channel / 4][o][channel % 4].
using ConvTile = void (*)(const int8_t* const* taps, int tap_count, int64_t offset, int channels,
                          const uint8_t* weights, int pixels, int32_t (*y)[kPanel]);

void conv_tile_portable(const int8_t* const* taps, int tap_count, int64_t offset, int channels, const uint8_t* weights,
                        int pixels, int32_t (*y)[kPanel]);
#if defined(__x86_64__)
void conv_tile_avx2(const int8_t* const* taps, int tap_count, int64_t offset, int channels, const uint8_t* weights,
                    int pixels, int32_t (*y)[kPanel]);
void conv_tile_avx512vnni(const int8_t* const* taps, int tap_count, int64_t offset, int channels,
                          const uint8_t* weights, int pixels, int32_t (*y)[kPanel]);
#endif

}  // namespace facetrain
