// One layer of the INT7 runtime: integers in, integers out. Its results are those of kernels/reference.h.
//
// Works on kChunk pixels at a time, so that the intermediate sums or real values stay in the second-level cache.
#pragma once

#include <optional>
#include <vector>

#include "kernels/conv.h"
#include "quant/scales.h"

namespace facetrain {

// A tensor as the layers of an INT7 network read it: integers if the graph quantizes it, else real numbers.
struct Operand {
  const int8_t* integers = nullptr;
  const float* real = nullptr;
};

class Int7Layer {
 public:
  // Copies what it needs of `scales`; `graph` must outlive it.
  Int7Layer(const LayerGraph& graph, int layer, const Scales& scales);

  // Computes the quantized output y of the layer's inputs. Tensors are [height, width, channels]; integers are readable
  // for kOverread bytes past their end. Not for a layer whose output stays real.
  void run(const std::vector<Operand>& inputs, int8_t* y) const;
  // Computes the same output in FP32, before it is quantized.
  void run_real(const std::vector<Operand>& inputs, float* y) const;

 private:
  template <typename Write>
  void convolve(const int8_t* x, Write write) const;
  void real_values(const int8_t* x, const int8_t* second, int first, int pixels, float* y) const;

  const LayerGraph* graph_;
  const Layer* layer_;
  int input_channels_, input_area_, output_channels_, output_area_;
  IntegerRange output_range_;
  float input_scale_, second_scale_, output_scale_;
  // Of a convolution.
  Conv conv_;
  std::vector<int32_t> bias_;       // [O]
  std::vector<float> sum_scales_;   // [O]: real value = sum * scale
  std::vector<float> multipliers_;  // [O]: integer of the output = round(sum * multiplier)
  // Of a node: with an output of real numbers, and with the quantized one if the graph has that.
  std::optional<NodeLayer> real_node_, node_;
};

}  // namespace facetrain
