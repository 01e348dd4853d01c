#include "kernels/reference.h"

#include <algorithm>
#include <cmath>

namespace facetrain::reference {
namespace {

// nearbyint rounds half to even in the default rounding mode.
int8_t saturate(float value, IntegerRange range) {
  return static_cast<int8_t>(
      std::clamp(std::nearbyint(value), static_cast<float>(range.low), static_cast<float>(range.high)));
}

}  // namespace

int8_t quantize(float real, float scale, IntegerRange range) { return saturate(real / scale, range); }

void conv(const ConvShape& s, const int8_t* x, const int8_t* weights, const int32_t* bias, int32_t* y) {
  for (int o = 0; o < s.out_channels; ++o) {
    const int first = o / s.group_out() * s.group_in();
    for (int oy = 0; oy < s.out_height(); ++oy) {
      for (int ox = 0; ox < s.out_width(); ++ox) {
        int32_t sum = bias[o];
        for (int i = 0; i < s.group_in(); ++i) {
          for (int ky = 0; ky < s.kernel[0]; ++ky) {
            for (int kx = 0; kx < s.kernel[1]; ++kx) {
              const int iy = oy * s.strides[0] - s.pads[0] + ky * s.dilations[0];
              const int ix = ox * s.strides[1] - s.pads[1] + kx * s.dilations[1];
              if (iy < 0 || iy >= s.in_height || ix < 0 || ix >= s.in_width) continue;
              sum += x[((first + i) * s.in_height + iy) * s.in_width + ix] *
                     weights[s.weight_index(o, i, ky * s.kernel[1] + kx)];
            }
          }
        }
        y[(o * s.out_height() + oy) * s.out_width() + ox] = sum;
      }
    }
  }
}

void requantize(const int32_t* x, int channels, int area, const float* multipliers, IntegerRange range, int8_t* y) {
  for (int c = 0; c < channels; ++c) {
    for (int i = 0; i < area; ++i) {
      y[c * area + i] = saturate(static_cast<float>(x[c * area + i]) * multipliers[c], range);
    }
  }
}

void pointwise(const int8_t* x, int channels, int area, const float* positive, const float* negative,
               const float* offset, float x_scale, float y_scale, IntegerRange range, int8_t* y) {
  for (int c = 0; c < channels; ++c) {
    for (int i = 0; i < area; ++i) {
      const float real = static_cast<float>(x[c * area + i]) * x_scale;
      y[c * area + i] = quantize((real > 0 ? positive[c] : negative[c]) * real + offset[c], y_scale, range);
    }
  }
}

void add(const int8_t* a, float a_scale, const int8_t* b, float b_scale, int count, float y_scale, IntegerRange range,
         int8_t* y) {
  for (int i = 0; i < count; ++i) {
    y[i] = quantize(static_cast<float>(a[i]) * a_scale + static_cast<float>(b[i]) * b_scale, y_scale, range);
  }
}

void pool(const int8_t* x, int channels, int area, float x_scale, float y_scale, IntegerRange range, int8_t* y) {
  for (int c = 0; c < channels; ++c) {
    int32_t sum = 0;
    for (int i = 0; i < area; ++i) sum += x[c * area + i];
    y[c] = quantize(static_cast<float>(sum) * x_scale / static_cast<float>(area), y_scale, range);
  }
}

}  // namespace facetrain::reference
