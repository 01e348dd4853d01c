// The runtime's layers without weights, and requantisation: results are reference.h's bit for bit, tensors
// [area, channels].
#pragma once

#include <cstdint>

namespace facetrain {

void quantize(const float* x, int64_t count, float scale, int limit, int8_t* y);
void requantize(const int32_t* x, int channels, int64_t area, const float* multipliers, int limit, int8_t* y);

// Real values, before any quantisation of the result. `pointwise` and `add` may be followed by quantize().
void dequantize(const int32_t* x, int channels, int64_t area, const float* scales, float* y);
void pointwise(const int8_t* x, int channels, int64_t area, const float* positive, const float* negative,
               const float* offset, float x_scale, float* y);
void add(const int8_t* a, float a_scale, const int8_t* b, float b_scale, int64_t count, float* y);
void pool(const int8_t* x, int channels, int64_t area, float x_scale, float* y);

}  // namespace facetrain
