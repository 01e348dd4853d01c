// The innermost loops of the FP32 convolution. Multiplications and additions are not fused, so every machine computes
// the same numbers and the search finds the same scales.
#pragma once

#include <cstdint>

namespace facetrain {

inline constexpr int kRealPanel = 16;  // output channels that a call computes
inline constexpr int kRealPixels = 4;  // pixels that a call computes

// y[p][o] = bias[o] + sum over tap and channel of taps[p * tap_count + tap][offset + channel] *
// weights[tap][channel][o].
using RealTile = void (*)(const float* const* taps, int tap_count, int64_t offset, int channels, const float* weights,
                          const float* bias, float (*y)[kRealPanel]);

// The fastest version for this machine.
RealTile best_real_tile();

// y [channels] = bias + the sums of one pixel of a depthwise convolution; weights [tap][channel].
void real_depthwise_pixel(const float* const* taps, int tap_count, int channels, const float* weights,
                          const float* bias, float* y);

// real[c] = offset[c] + (x > 0 ? positive[c] : negative[c]) * x, for each of `area` pixels.
void real_pointwise(const float* x, int channels, int64_t area, const float* positive, const float* negative,
                    const float* offset, float* y);

// While an object exists, its thread treats denormal numbers (below 1.2e-38) as zero. Trained networks contain many of
// them, weights that decayed for epochs, and x86 computes with them a hundred times slower. Does nothing elsewhere.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned before_ = 0;
};

}  // namespace facetrain
