#include "kernels/elementwise.h"

#include <algorithm>
#include <vector>

#include "clones.h"

namespace facetrain {
namespace {

// A float of this size has no bits for fractions, so adding it to a value below 2^22 and subtracting it again rounds
// the value half to even. Every instruction set gives the same result, and the loop needs no call of nearbyint.
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23

// Saturates before it rounds, which gives the same result because the bounds are integers. `value` is never NaN: scales
// are positive and weights finite.
inline int8_t saturate(float value, float low, float high) {
  const float clamped = std::max(low, std::min(high, value));
  return static_cast<int8_t>(static_cast<int32_t>((clamped + kRound) - kRound));
}

}  // namespace

FACETRAIN_CLONES void quantize(const float* x, int64_t count, float scale, IntegerRange range, int8_t* y) {
  const auto low = static_cast<float>(range.low), high = static_cast<float>(range.high);
  for (int64_t i = 0; i < count; ++i) y[i] = saturate(x[i] / scale, low, high);
}

FACETRAIN_CLONES void requantize(const int32_t* x, int channels, int64_t area, const float* multipliers,
                                 IntegerRange range, int8_t* y) {
  const auto low = static_cast<float>(range.low), high = static_cast<float>(range.high);
  for (int64_t p = 0; p < area; ++p, x += channels, y += channels) {
    for (int c = 0; c < channels; ++c) y[c] = saturate(static_cast<float>(x[c]) * multipliers[c], low, high);
  }
}

FACETRAIN_CLONES void dequantize(const int32_t* x, int channels, int64_t area, const float* scales, float* y) {
  for (int64_t p = 0; p < area; ++p, x += channels, y += channels) {
    for (int c = 0; c < channels; ++c) y[c] = static_cast<float>(x[c]) * scales[c];
  }
}

FACETRAIN_CLONES void pointwise(const int8_t* x, int channels, int64_t area, const float* positive,
                                const float* negative, const float* offset, float x_scale, float* y) {
  for (int64_t p = 0; p < area; ++p, x += channels, y += channels) {
    for (int c = 0; c < channels; ++c) {
      const float real = static_cast<float>(x[c]) * x_scale;
      const float up = positive[c], down = negative[c];  // reads both, so that the compiler makes a blend
      y[c] = (real > 0 ? up : down) * real + offset[c];
    }
  }
}

FACETRAIN_CLONES void add(const int8_t* a, float a_scale, const int8_t* b, float b_scale, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] = static_cast<float>(a[i]) * a_scale + static_cast<float>(b[i]) * b_scale;
  }
}

void pool(const int8_t* x, int channels, int64_t area, float x_scale, float* y) {
  std::vector<int32_t> sums(channels);
  for (int64_t p = 0; p < area; ++p) {
    for (int c = 0; c < channels; ++c) sums[c] += x[p * channels + c];
  }
  for (int c = 0; c < channels; ++c) y[c] = static_cast<float>(sums[c]) * x_scale / static_cast<float>(area);
}

}  // namespace facetrain
