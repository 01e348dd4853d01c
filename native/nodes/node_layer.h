// A layer of ONNX operators between integers and real numbers: DequantizeLinear, the operators in FP32, QuantizeLinear.
//
// Where that can be computed faster with the same result, it is: a function of single numbers by a table of 256
// entries; pools, Concat and choices without leaving [height, width, channels], and on integers where numbers are only
// moved.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "kernels/integer_range.h"
#include "nodes/float_steps.h"

namespace facetrain {

// A tensor that a layer reads or writes: [height, width, channels] of int8 integers or of float32; one that is no map
// has its numbers in ONNX's order, as channels.
struct NodeTensor {
  int channels = 0, height = 1, width = 1;
  bool real = false;
  float scale = 0;  // of integers: real = integer * scale
  IntegerRange range = 127;

  int64_t area() const { return int64_t{height} * width; }
  int64_t size() const { return channels * area(); }
};

// What a layer computes. Dimensions begin with a batch of 1. Four of them, [1, channels, height, width], are a map.
struct NodeSpec {
  std::vector<FloatStep> steps;
  std::vector<ArrayDims> input_dims;  // an entry for each input
  ArrayDims output_dims;
};

class NodeLayer {
 public:
  // `spec` must outlive it. Throws Error(InvalidModel) with `subject` where the operators are unknown, do not fit, or
  // give other dimensions than the output's.
  NodeLayer(const NodeSpec& spec, const std::vector<NodeTensor>& inputs, const NodeTensor& output,
            const std::string& subject);
  ~NodeLayer();
  NodeLayer(NodeLayer&&) noexcept;
  NodeLayer& operator=(NodeLayer&&) noexcept;

  // Of a function of single numbers that reads and writes integers in the same order: its result for each integer from
  // -128 on. Else null.
  const std::array<int8_t, 256>* table() const;
  // Bytes that a run needs.
  int64_t scratch_bytes() const;
  // Computes y of the inputs, each of int8_t or float as its tensor says. Allocates nothing. `scratch` is aligned to 64
  // bytes. Runs with different scratches may overlap.
  void run(const void* const* inputs, void* y, void* scratch) const;
  // The same, with a scratch that it allocates.
  void run(const void* const* inputs, void* y) const;

  // How a layer is computed (node_layer.cc).
  class Form;

 private:
  std::unique_ptr<Form> form_;
};

}  // namespace facetrain
