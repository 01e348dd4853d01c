// The innermost loops of the FP32 convolution. Multiplications and additions are not fused, so that every machine gets
// the same numbers, and the search the same scales.
#pragma once

#include <cstdint>

namespace facetrain {

inline constexpr int kRealPanel = 16;  // output channels
inline constexpr int kRealPixels = 4;

// y[p][o] = bias[o] + sum over tap and channel of taps[p * tap_count + tap][offset + channel] *
// weights[tap][channel][o].
using RealTile = void (*)(const float* const* taps, int tap_count, int64_t offset, int channels, const float* weights,
                          const float* bias, float (*y)[kRealPanel]);

// The fastest for this machine.
RealTile best_real_tile();

// weights [tap][channel]
void real_depthwise_pixel(const float* const* taps, int tap_count, int channels, const float* weights,
                          const float* bias, float* y);

// real[c] = offset[c] + (x > 0 ? positive[c] : negative[c]) * x, for each of `area` pixels.
void real_pointwise(const float* x, int channels, int64_t area, const float* positive, const float* negative,
                    const float* offset, float* y);

// While it lives, this thread takes numbers below 1e-38 for zero. Trained networks are full of them (weights that
// decayed for epochs), and x86 computes with them a hundred times slower.
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
