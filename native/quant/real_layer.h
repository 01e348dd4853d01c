// FP32 forward of a layer: what the integers are measured against.
#pragma once

#include <vector>

#include "quant/layer_graph.h"

namespace facetrain {

// A convolution in float32. Sums run over taps and channels in order, on every machine alike.
class RealConv {
 public:
  RealConv() = default;
  // weights as in Layer.
  RealConv(const ConvShape& shape, const std::vector<float>& weights, const std::vector<float>& bias);

  // taps: for each pixel shape.taps() pointers to in_channels values; y [pixels, O].
  void run(const float* const* taps, int pixels, float* y) const;
  void run_image(const float* x, float* y) const;

 private:
  ConvShape shape_;
  std::vector<float> panels_;  // [group][panel][tap][I/group][16]
  std::vector<float> bias_;    // padded to whole panels: [group][panel][16]
  std::vector<float> zeros_;
};

class RealLayer {
 public:
  RealLayer(const LayerGraph& graph, int layer);

  // `second` is read by add only.
  void run(const float* input, const float* second, float* output) const;
  const RealConv& conv() const { return conv_; }

 private:
  const Layer* layer_;
  int channels_, area_;  // of the input
  RealConv conv_;
};

}  // namespace facetrain
