// The scales of a network and the integers that follow from them (src/types.ts's Scales).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quant/layer_graph.h"

namespace facetrain {

// Real = integer * scale.
struct ConvScales {
  std::vector<float> weight;    // [O]
  std::vector<int8_t> weights;  // [O, I/group, kh, kw] in [-63, 63]
  std::vector<int32_t> bias;    // [O] at weight scale * input scale
};

struct Scales {
  std::vector<float> tensors;     // by tensor; 0 for the graph's output, which stays real
  std::vector<ConvScales> convs;  // by layer; empty but for convolutions
};

// Scales as files have them.
struct NamedScales {
  struct TensorScale {
    float scale;
    int limit;
  };
  std::map<std::string, TensorScale> tensors;
  std::map<std::string, ConvScales> convs;  // by layer
};

// Throws Error(InvalidArtifact) naming the tensor or layer whose scales are missing, of another length or limit, or out
// of range: the kernels rely on all of that.
Scales resolve_scales(const LayerGraph& graph, const NamedScales& named);

// Scales from the maximum: largest |weight| / 63 of each output channel, maxima[tensor] / limit. This is where the
// search starts.
Scales scales_from_maximum(const LayerGraph& graph, const std::vector<float>& maxima);

// Rounds half to even and saturates at +-63. Weights of one output channel.
void quantize_weights(const float* weights, int64_t count, float scale, int8_t* integers);
int32_t quantize_bias(float bias, float weight_scale, float input_scale);

// The integers of a convolution, from scales.convs[layer].weight and the scale of its input.
void quantize_conv(const LayerGraph& graph, int layer, Scales& scales);
// The bias alone, after the scale of the layer's input has changed.
void quantize_conv_bias(const LayerGraph& graph, int layer, Scales& scales);

}  // namespace facetrain
