#include "quant/cosine.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "clones.h"

namespace facetrain {
namespace {

template <typename Value>
inline void add_products(const Value* x, const float* target, int64_t pixels, int channels, float* dot, float* square) {
  std::fill_n(dot, channels, 0.0f);
  std::fill_n(square, channels, 0.0f);
  for (int64_t p = 0; p < pixels; ++p, x += channels, target += channels) {
    for (int c = 0; c < channels; ++c) {
      const auto value = static_cast<float>(x[c]);
      dot[c] += value * target[c];
      square[c] += value * value;
    }
  }
}

template <typename Value>
double cosine_of_tensors(const Value* x, const float* target, int64_t pixels, int channels) {
  constexpr int64_t kChunk = 64;  // pixels that are summed in float32
  std::vector<float> sums(int64_t{4} * channels);
  float *dot = sums.data(), *square = dot + channels, *target_square = square + channels,
        *same = target_square + channels;
  double all_dot = 0, all_square = 0, all_target = 0;
  for (int64_t p = 0; p < pixels; p += kChunk) {
    const int64_t count = std::min(kChunk, pixels - p);
    channel_products(x + p * channels, target + p * channels, count, channels, dot, square);
    channel_products(target + p * channels, target + p * channels, count, channels, target_square, same);
    for (int c = 0; c < channels; ++c) {
      all_dot += dot[c];
      all_square += square[c];
      all_target += target_square[c];
    }
  }
  return cosine(all_dot, all_square, all_target);
}

}  // namespace

double cosine(double dot, double a, double b) {
  if (a == 0 && b == 0) return 1;
  return a == 0 || b == 0 ? 0 : dot / std::sqrt(a * b);
}

FACETRAIN_CLONES void channel_products(const int32_t* x, const float* target, int64_t pixels, int channels, float* dot,
                                       float* square) {
  add_products(x, target, pixels, channels, dot, square);
}
FACETRAIN_CLONES void channel_products(const int8_t* x, const float* target, int64_t pixels, int channels, float* dot,
                                       float* square) {
  add_products(x, target, pixels, channels, dot, square);
}
FACETRAIN_CLONES void channel_products(const float* x, const float* target, int64_t pixels, int channels, float* dot,
                                       float* square) {
  add_products(x, target, pixels, channels, dot, square);
}

double tensor_cosine(const int8_t* x, const float* target, int64_t pixels, int channels) {
  return cosine_of_tensors(x, target, pixels, channels);
}
double tensor_cosine(const float* x, const float* target, int64_t pixels, int channels) {
  return cosine_of_tensors(x, target, pixels, channels);
}

}  // namespace facetrain
