// The geometry of a convolution: its extents, and the addresses that each output pixel reads.
//
// A "tap" is one of the kernel's height x width positions. Tensors are NHWC without the N, [height, width, channels],
// so the channels that a tap reads are contiguous; only reference.h has [channels, height, width]. A fully connected
// layer is a convolution whose kernel is as large as its input.
//
// Attributes mean what they mean in ONNX's Conv. Knows neither weights nor element types; both the INT7 and the FP32
// convolution use it.
#pragma once

#include <array>
#include <cstdint>

namespace facetrain {

// Output height or width of a convolution or pooling window, as ONNX defines it:
//   floor((in + pad_before + pad_after - dilation * (kernel - 1) - 1) / stride) + 1,
// and 0 where the dilated kernel is larger than the padded input.
constexpr int conv_output_extent(int in, int kernel, int stride, int dilation, int pad_before, int pad_after) {
  const int last_start = in + pad_before + pad_after - dilation * (kernel - 1) - 1;
  return last_start < 0 ? 0 : last_start / stride + 1;
}

struct ConvShape {
  int in_channels = 0, in_height = 0, in_width = 0;
  int out_channels = 0;
  int group = 1;
  std::array<int, 2> kernel{1, 1}, strides{1, 1}, dilations{1, 1};  // height, width
  std::array<int, 4> pads{0, 0, 0, 0};                              // top, left, bottom, right

  int out_height() const { return out_extent(in_height, 0); }
  int out_width() const { return out_extent(in_width, 1); }
  int out_area() const { return out_height() * out_width(); }
  int taps() const { return kernel[0] * kernel[1]; }
  int group_in() const { return in_channels / group; }
  int group_out() const { return out_channels / group; }
  bool depthwise() const { return group_in() == 1 && group_out() == 1; }
  // Number of weights: of one output channel, and of all.
  int64_t filter() const { return int64_t{group_in()} * taps(); }
  int64_t weights() const { return out_channels * filter(); }
  // Multiply-accumulates for one image.
  int64_t macs() const { return weights() * out_area(); }
  // Position in a weight tensor [O, I/group, kh, kw] of output channel o, input channel i of its group, tap t.
  int64_t weight_index(int o, int i, int t) const { return (int64_t{o} * group_in() + i) * taps() + t; }

 private:
  int out_extent(int in, int axis) const {
    return conv_output_extent(in, kernel[axis], strides[axis], dilations[axis], pads[axis], pads[axis + 2]);
  }
};

// Writes shape.taps() pointers, one for each tap of output pixel `pixel` (row-major): to the tap's channels in the
// image x [height, width, channels], or to `zeros` (in_channels zeros) where the tap lies in the padding.
template <typename T>
void tap_pointers(const ConvShape& shape, int pixel, const T* x, const T* zeros, const T** taps) {
  const int y0 = pixel / shape.out_width() * shape.strides[0] - shape.pads[0];
  const int x0 = pixel % shape.out_width() * shape.strides[1] - shape.pads[1];
  for (int ky = 0; ky < shape.kernel[0]; ++ky) {
    const int iy = y0 + ky * shape.dilations[0];
    for (int kx = 0; kx < shape.kernel[1]; ++kx) {
      const int ix = x0 + kx * shape.dilations[1];
      const bool inside = iy >= 0 && iy < shape.in_height && ix >= 0 && ix < shape.in_width;
      *taps++ = inside ? x + (int64_t{iy} * shape.in_width + ix) * shape.in_channels : zeros;
    }
  }
}

}  // namespace facetrain
