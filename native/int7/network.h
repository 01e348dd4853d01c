// What the INT7 runtime runs: a network of integers with their scales, and of real numbers where a layer needs them;
// without names of files, without torch.
//
// Real value = integer * scale. The integers of operands, which convolutions multiply, are 127 neighboring ones around
// 0: [-63, 63] less the zero point that a file has; or [-127, 127], of eight bits, as those of other tensors. The
// arithmetic is that of kernels/reference.h and nodes/: every tensor that is not real is rounded to integers, whether
// it is ever written to memory or not.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/conv_shape.h"
#include "nodes/node_layer.h"

namespace facetrain::int7 {

// Scales of tensors lie between these, and scales of weights, slopes, factors and offsets up to the larger: with them,
// no product or quotient is infinite. A filter of zeros may have a smaller scale. Whoever writes files keeps to them
// (quant/scales.h).
inline constexpr float kLeastScale = 1e-12f, kLargestNumber = 1e12f;

struct TensorSpec {
  int channels = 0, height = 0, width = 0;
  float scale = 0;
  IntegerRange range = 127;
  bool real = false;  // not quantized: float32, which nodes and the caller read

  int area() const { return height * width; }
  int64_t size() const { return int64_t{channels} * area(); }
  NodeTensor for_node() const {
    return {.channels = channels, .height = height, .width = width, .real = real, .scale = scale, .range = range};
  }
};

struct LayerSpec {
  enum class Kind { conv, pointwise, add, pool, node };
  Kind kind = Kind::node;
  std::string name;
  std::vector<int> inputs;  // indices of tensors; two for add, one or more for node
  int output = -1;
  // conv: sums of products, from an int32 bias at weight scale * input scale on. Every filter has at most
  // kLargestFilter weights (kernels/conv.h).
  ConvShape shape;
  std::vector<int8_t> weights;       // [O, I/group, kh, kw]
  std::vector<int32_t> bias;         // [O]
  std::vector<float> weight_scales;  // [O]
  // pointwise: y = offset[c] + (x > 0 ? positive[c] : negative[c]) * x.
  std::vector<float> positive, negative, offset;
  NodeSpec node;  // the operators of a node
};

struct Network {
  std::vector<TensorSpec> tensors;  // the first is the picture
  std::vector<LayerSpec> layers;    // in topological order
  std::vector<int> outputs;         // real tensors that no layer reads
  // What a byte of the picture becomes, [channels of the picture][256]: one of the two.
  std::vector<int8_t> pixels;
  std::vector<float> real_pixels;

  // Bytes of all numbers above.
  int64_t bytes() const;
};

}  // namespace facetrain::int7
