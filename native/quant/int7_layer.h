// One layer of the INT7 runtime: integers in, integers out.
#pragma once

#include <vector>

#include "kernels/conv.h"
#include "quant/scales.h"

namespace facetrain {

class Int7Layer {
 public:
  // Copies what it needs of `scales`; `graph` must outlive it.
  Int7Layer(const LayerGraph& graph, int layer, const Scales& scales);

  // The quantised output. `second` is read by add only. Inputs are readable for kOverread bytes past their end.
  // Not for the layer that writes the graph's output, which stays real.
  void run(const int8_t* input, const int8_t* second, int8_t* output) const;
  // The output before it is quantised.
  void run_real(const int8_t* input, const int8_t* second, float* output) const;

 private:
  const Layer* layer_;
  int channels_, area_;  // of the input
  int limit_;            // of the output
  float input_scale_, second_scale_, output_scale_;
  Conv conv_;
  std::vector<int32_t> bias_;
  std::vector<float> scales_, multipliers_;  // of a convolution's sums: to real values, to integers of the output
};

}  // namespace facetrain
