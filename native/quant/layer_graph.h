// The network that is quantised, as src/types.ts's LayerGraph has it, with shapes worked out and names resolved.
//
// A fully connected layer is a convolution here, with a kernel as large as its input. Values of a tensor lie in
// [height, width, channels] order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/conv_shape.h"

namespace facetrain {

// Integers of an operand of a multiplication lie in [-63, 63], any other's in [-127, 127].
inline constexpr int kOperandLimit = 63;
inline constexpr int kOtherLimit = 127;

struct Layer {
  enum class Kind { conv, pointwise, add, pool };
  Kind kind = Kind::conv;
  bool fully_connected = false;
  std::string name;
  std::vector<std::string> input_names;  // two for add
  std::string output_name;
  // conv. The caller gives weight's first dimension as shape.out_channels, kernel (not of a fully connected layer),
  // strides, pads, dilations, group; LayerGraph adds the rest.
  ConvShape shape;
  std::vector<float> weight, bias;  // [O, I/group, kh, kw], [O]
  // pointwise
  std::vector<float> positive, negative, offset;

  // Set by LayerGraph: indices of tensors. `second` is -1 but for add.
  int input = -1, second = -1, output = -1;
};

struct Tensor {
  std::string name;
  int channels = 0, height = 0, width = 0;
  int producer = -1;         // layer; -1: the graph's input
  std::vector<int> readers;  // layers
  bool operand = false;      // some convolution reads it

  int area() const { return height * width; }
  int64_t size() const { return int64_t{channels} * area(); }
  int limit() const { return operand ? kOperandLimit : kOtherLimit; }
  int last_reader() const { return readers.empty() ? -1 : readers.back(); }
};

class LayerGraph {
 public:
  // Layers in topological order. Throws Error(InvalidModel) naming the layer whose inputs or sizes do not fit.
  LayerGraph(Tensor input, std::vector<Layer> layers, const std::string& output_name);

  std::vector<Tensor> tensors;  // the first is the graph's input
  std::vector<Layer> layers;
  int output = -1;  // its tensor stays real

  bool quantised(int tensor) const { return tensor != output; }
};

}  // namespace facetrain
