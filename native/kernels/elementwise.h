// The INT7 runtime's layers without weights, and the steps between int32 sums, real values and int8: quantize,
// requantize, dequantize. Every instruction set gives the results of reference.h bit for bit.
//
// Tensors are [area, channels] (NHWC), area = height * width; real = integer * scale. One pass over memory each, so a
// caller that chains two of them should do so on chunks that stay in the cache.
#pragma once

#include <cstdint>

#include "kernels/integer_range.h"

namespace facetrain {

// y = round_half_even(x / scale), saturated at the range.
void quantize(const float* x, int64_t count, float scale, IntegerRange range, int8_t* y);
// y = round_half_even(x * multipliers[channel]), saturated at the range.
void requantize(const int32_t* x, int channels, int64_t area, const float* multipliers, IntegerRange range, int8_t* y);

// The following compute real values; quantize() makes integers of them.

// y = x * scales[channel].
void dequantize(const int32_t* x, int channels, int64_t area, const float* scales, float* y);
// y = offset[c] + (real > 0 ? positive[c] : negative[c]) * real, where real = x * x_scale.
void pointwise(const int8_t* x, int channels, int64_t area, const float* positive, const float* negative,
               const float* offset, float x_scale, float* y);
// y = a * a_scale + b * b_scale.
void add(const int8_t* a, float a_scale, const int8_t* b, float b_scale, int64_t count, float* y);
// y [channels]: the mean over the area.
void pool(const int8_t* x, int channels, int64_t area, float x_scale, float* y);

}  // namespace facetrain
