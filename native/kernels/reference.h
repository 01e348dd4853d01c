// What the INT7 runtime computes, naively: the oracle of every faster kernel.
//
// Values are integers q with real value q * scale. An operand of a multiplication lies in [-63, 63], any other tensor
// in [-127, 127] (`limit`). Products are summed in int32, the bias is an int32 at weight scale * input scale; then one
// float32 multiplication, rounding half to even, saturation at +-limit. That is ONNX Runtime's QLinearConv exactly, and
// what it computes for pointwise, add and pool between DequantizeLinear and QuantizeLinear.
//
// Tensors here are [channels, height, width], as in ONNX; `area` is height * width.
#pragma once

#include <cstdint>

#include "kernels/conv_shape.h"

namespace facetrain::reference {

// round_half_even(real / scale), saturated.
int8_t quantize(float real, float scale, int limit);

// weights [O, I/group, kh, kw], bias [O], y [O, out height, out width]. The padding is the integer zero.
void conv(const ConvShape& shape, const int8_t* x, const int8_t* weights, const int32_t* bias, int32_t* y);

// y = round_half_even(x * multiplier[c]), saturated. For a convolution the multiplier is input scale * weight scale /
// output scale, in float32 and in this order.
void requantize(const int32_t* x, int channels, int area, const float* multipliers, int limit, int8_t* y);

// real = offset[c] + (x > 0 ? positive[c] : negative[c]) * x
void pointwise(const int8_t* x, int channels, int area, const float* positive, const float* negative,
               const float* offset, float x_scale, float y_scale, int limit, int8_t* y);

void add(const int8_t* a, float a_scale, const int8_t* b, float b_scale, int count, float y_scale, int limit,
         int8_t* y);

// Mean over the area; y [channels].
void pool(const int8_t* x, int channels, int area, float x_scale, float y_scale, int limit, int8_t* y);

}  // namespace facetrain::reference
