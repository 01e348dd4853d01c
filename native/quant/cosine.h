// The cosine between a layer's output and its FP32 output, the search's measure of quality.
//
// Sums are float32 per channel over a few pixels, which the compiler can vectorize, and float64 beyond, for precision.
// The order of summation is fixed, so every instruction set gives the same numbers.
#pragma once

#include <cstdint>

namespace facetrain {

// dot / sqrt(a * b), where a and b are the squared lengths. Two vectors of length 0 have cosine 1, one has cosine 0.
double cosine(double dot, double a, double b);

// For x and target [pixels, channels]: dot [channels] = sum over pixels of x * target, square [channels] = of x * x.
void channel_products(const int32_t* x, const float* target, int64_t pixels, int channels, float* dot, float* square);
void channel_products(const int8_t* x, const float* target, int64_t pixels, int channels, float* dot, float* square);
void channel_products(const float* x, const float* target, int64_t pixels, int channels, float* dot, float* square);

// The cosine of two tensors [pixels, channels], each taken as one vector.
double tensor_cosine(const int8_t* x, const float* target, int64_t pixels, int channels);
double tensor_cosine(const float* x, const float* target, int64_t pixels, int channels);

}  // namespace facetrain
