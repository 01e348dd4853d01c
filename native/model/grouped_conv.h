// Convolution in groups of one, two or four channels on CPUs, channels-last, in float32 and bfloat16, with gradients.
//
// Such a convolution is bound by memory bandwidth: its products are few. oneDNN's kernels for it are as fast as that
// only where a group has one channel and numbers are float32. With two channels they took 105 ms of a MobileFaceNet's
// step of 700 ms, for a thousandth of its products; the backward pass in bfloat16 was slower still, and casts around
// float32's read and write each activation twice more.
//
// Here one row of pixels at a time is copied to float32, once for each channel of a group: copy j has, at channel c,
// the j-th channel of the group of c. With one channel of weights for each copy the convolution is then a depthwise
// one, sum over j and over the kernel of copy_j[pixel][c] weight_j[c], whatever the group's size. The gradient of the
// input is the same function of the gradient of the output, with the kernel turned around, and with zeros between the
// pixels where the stride is larger than 1.
//
// Products are exact, and sums are float32, in an order that does not depend on the number of threads. Threads share
// the pictures of a batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

namespace facetrain {

struct GroupedWindow {
  int64_t stride;               // in both directions
  std::array<int64_t, 4> pads;  // top, left, bottom, right
};

// Whether grouped_conv computes with these: x [N, C, H, W] channels-last, weight [C, C / groups, K, K] of x's type, on
// a CPU, no pad as large as the kernel.
bool has_grouped_conv(const at::Tensor& x, const at::Tensor& weight, const GroupedWindow& window, int64_t groups);

// y [N, C, H', W'] of x's type, channels-last. `bias` [C] of x's type may be undefined. Differentiable in all three.
at::Tensor grouped_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        const GroupedWindow& window);

}  // namespace facetrain
