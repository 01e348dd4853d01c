// The FP32 forward pass of one layer: the reference that the quantized layer is compared with.
#pragma once

#include <optional>
#include <vector>

#include "quant/layer_graph.h"

namespace facetrain {

// A convolution in float32. Sums run over taps and then channels in that order, without fused multiply-add, so every
// machine computes the same numbers. Layouts as in kernels/conv.h, with float weights.
class RealConv {
 public:
  RealConv() = default;
  // weights [O, I/group, kh, kw], bias [O].
  RealConv(const ConvShape& shape, const std::vector<float>& weights, const std::vector<float>& bias);

  // taps: for each pixel shape.taps() pointers to in_channels values; y [pixels, O].
  void run(const float* const* taps, int pixels, float* y) const;
  // All output pixels of the image x [height, width, channels].
  void run_image(const float* x, float* y) const;

 private:
  ConvShape shape_;
  std::vector<float> panels_;  // [group][panel][tap][I/group][16]; depthwise: [tap][channel]
  std::vector<float> bias_;    // padded to whole panels: [group][panel][16]
  std::vector<float> zeros_;   // a pixel of the padding
};

class RealLayer {
 public:
  // `graph` must outlive it.
  RealLayer(const LayerGraph& graph, int layer);

  // Computes the output y of the layer's inputs, all [height, width, channels].
  void run(const std::vector<const float*>& inputs, float* y) const;
  const RealConv& conv() const { return conv_; }

 private:
  const LayerGraph* graph_;
  const Layer* layer_;
  int channels_, area_;  // of the input
  RealConv conv_;
  std::optional<NodeLayer> node_;
};

}  // namespace facetrain
