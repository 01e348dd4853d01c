// The loops in which FP32 nodes spend their time. Sums have a fixed order, without fused multiply-add.
#pragma once

#include <cstdint>

namespace facetrain {

inline constexpr int64_t kProductColumns = 16;

// y [m, n] = x [m, k] * w [k, n]; the sums run in the order of k. `packed`: k * kProductColumns numbers, where the last
// columns lie that are fewer than those.
void multiply(const float* x, const float* w, float* y, int64_t m, int64_t k, int64_t n, float* packed);

// y[i] += x[i * stride] * weight.
void add_product(const float* x, int64_t stride, float weight, int64_t count, float* y);

}  // namespace facetrain
