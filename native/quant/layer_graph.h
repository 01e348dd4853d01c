// The network that is quantized: native/src/types.ts's LayerGraph with shapes inferred, names resolved to indices and
// everything validated. All other parts of quant/ rely on that.
//
// A fully connected layer is a convolution whose kernel is as large as its input. Tensors are [height, width,
// channels].
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/conv.h"
#include "nodes/node_layer.h"
#include "pixel_range.h"

namespace facetrain {

// Of a tensor that a convolution multiplies: integers in [-63, 63], less its zero point. With eight bits: [-127, 127],
// without a zero point.
inline constexpr int kOperandLimit = kLargestOperand, kWideOperandLimit = kLargestWideOperand;
// Of any other tensor, which has no zero point: integers in [-127, 127].
inline constexpr int kOtherLimit = 127;

struct Layer {
  enum class Kind { conv, pointwise, add, pool, node };
  Kind kind = Kind::conv;
  bool fully_connected = false;
  std::string name;
  std::vector<std::string> input_names;  // two for add, one or more for node
  std::string output_name;
  // conv. The caller sets out_channels (the weight's first dimension), strides, pads, dilations, group and, unless the
  // layer is fully connected, kernel; LayerGraph sets the rest.
  ConvShape shape;
  std::vector<float> weight, bias;  // [O, I/group, kh, kw], [O]
  // pointwise: y = offset[c] + (x > 0 ? positive[c] : negative[c]) * x.
  std::vector<float> positive, negative, offset;
  // node: ONNX operators that are computed in FP32, from dequantized inputs. The arrays' dimensions begin with a batch
  // of 1. A node that is `real` reads real numbers where no other layer needs integers, and may have arrays of any
  // rank; one that is not is [1, C, H, W] or [1, d], and its output is quantized like that of any other layer.
  NodeSpec node;
  bool real = false;

  // Set by LayerGraph: indices of tensors. `input` is the first of `inputs`; `second` is -1 except for add.
  std::vector<int> inputs;
  int input = -1, second = -1, output = -1;
};

struct Tensor {
  std::string name;
  int channels = 0, height = 0, width = 0;
  int producer = -1;         // index of the layer that writes it; -1: the graph's input
  std::vector<int> readers;  // indices of the layers that read it, ascending
  bool operand = false;      // whether a convolution reads it, or a tensor that shares its scale
  bool quantized = true;     // whether a layer reads it as integers
  int scale_of = -1;         // index of the first tensor with the same scale, or its own

  int area() const { return height * width; }
  int64_t size() const { return int64_t{channels} * area(); }
  // Unless the tensor is an operand of eight bits.
  int limit() const { return operand ? kOperandLimit : kOtherLimit; }
  // Unquantized: how nodes in FP32 read it.
  NodeTensor real_node() const { return {.channels = channels, .height = height, .width = width, .real = true}; }
  int last_reader() const { return readers.empty() ? -1 : readers.back(); }
};

class LayerGraph {
 public:
  // Layers are in topological order; `input` has name, channels, height and width. Throws Error(InvalidModel) naming
  // the layer whose inputs or sizes do not fit, exceed what the kernels' integers hold (layer_graph.cc), or whose
  // numbers are not finite, or an output that no layer writes.
  LayerGraph(Tensor input, std::vector<Layer> ordered_layers, const std::vector<std::string>& output_names);

  std::vector<Tensor> tensors;  // the first is the graph's input
  std::vector<Layer> layers;
  // Indices of the output tensors. The network gives them as real numbers, one after the other.
  std::vector<int> outputs;
  PixelRange range;

  // Tensors that layers read as integers. The others, which nodes in FP32 and the caller read, stay real.
  bool quantized(int tensor) const { return tensors[tensor].quantized; }
  bool is_output(int tensor) const;
  // Numbers of all outputs.
  int64_t output_size() const;

 private:
  void mark_quantized();
  void share_scales();
};

}  // namespace facetrain
