// The definition of the INT7 runtime's arithmetic, in loops that are easy to check: the tests compare every faster
// kernel with it. Slow; not part of the runtime.
//
// A tensor holds integers q; the real value is q * scale. Weights lie in [-63, 63], operands that they multiply in 127
// neighboring integers around 0 or, with eight bits, in [-127, 127], as other tensors. A convolution sums products in
// int32, from an int32 bias at weight scale * input scale on; one float32 multiplication, rounding half to even and
// saturation at the output's range follow. These are the results of ONNX Runtime's QLinearConv, and of its float
// operators between DequantizeLinear and QuantizeLinear for pointwise, add and pool.
//
// Tensors here are [channels, height, width], as in ONNX; `area` is height * width.
#pragma once

#include <cstdint>

#include "kernels/conv_shape.h"
#include "kernels/integer_range.h"

namespace facetrain::reference {

// round_half_even(real / scale), saturated.
int8_t quantize(float real, float scale, IntegerRange range);

// x [I, height, width], weights [O, I/group, kh, kw], bias [O], y [O, out height, out width]. Padding is the integer 0.
void conv(const ConvShape& shape, const int8_t* x, const int8_t* weights, const int32_t* bias, int32_t* y);

// y = round_half_even(x * multipliers[c]), saturated. For a convolution the multiplier is (input scale * weight scale)
// / output scale, in float32 and in this order.
void requantize(const int32_t* x, int channels, int area, const float* multipliers, IntegerRange range, int8_t* y);

// y quantizes offset[c] + (real > 0 ? positive[c] : negative[c]) * real, where real = x * x_scale.
void pointwise(const int8_t* x, int channels, int area, const float* positive, const float* negative,
               const float* offset, float x_scale, float y_scale, IntegerRange range, int8_t* y);

// y quantizes a * a_scale + b * b_scale.
void add(const int8_t* a, float a_scale, const int8_t* b, float b_scale, int count, float y_scale, IntegerRange range,
         int8_t* y);

// y [channels] quantizes the mean over the area.
void pool(const int8_t* x, int channels, int area, float x_scale, float y_scale, IntegerRange range, int8_t* y);

}  // namespace facetrain::reference
