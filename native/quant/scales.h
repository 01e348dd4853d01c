// The scales of a network and the integers that follow from them: native/src/types.ts's Scales. Real = integer * scale;
// a file holds an operand's integers plus its zero point.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quant/layer_graph.h"

namespace facetrain {

struct ConvScales {
  std::vector<float> weight;    // [O]: the scale of each output channel's weights
  std::vector<int8_t> weights;  // [O, I/group, kh, kw] in [-63, 63]
  std::vector<int32_t> bias;    // [O] at weight scale * input scale
};

struct Scales {
  std::vector<float> tensors;     // by index of the tensor; 0 for one that stays real
  std::vector<int> limits;        // by index of the tensor: see layer_graph.h; those with one scale have one limit
  std::vector<int> zero_points;   // by index of the tensor: -63 to 63 of an operand of seven bits, else 0
  std::vector<ConvScales> convs;  // by index of the layer; empty except for convolutions

  // The integers of a quantized tensor.
  IntegerRange range(int tensor) const { return {limits[tensor], zero_points[tensor]}; }
};

// Scales by name, as files contain them; not validated.
struct NamedScales {
  struct TensorScale {
    float scale;
    int limit, zero_point;
  };
  std::map<std::string, TensorScale> tensors;
  std::map<std::string, ConvScales> convs;  // by name of the layer
};

// A tensor's scale, or the nearest that readers of a file take (int7/network.h). A tensor whose values are all smaller
// than the least is one of zeros: such tensors are behind dead Relu layers of real networks. Larger values than the
// largest allows saturate.
float bounded_scale(float scale);
// The same of a filter's weights, for which readers take all that is positive up to the largest.
float bounded_weight_scale(float scale);

// Whether the tensor may reach beyond [-63, 63], by a zero point or by eight bits: an operand, and not of a filter so
// large that sums would not fit an int32.
bool may_be_wide_operand(const LayerGraph& graph, int tensor);
// Limits by index of the tensor: operands have seven bits, or eight where they may.
std::vector<int> narrow_limits(const LayerGraph& graph);
std::vector<int> wide_limits(const LayerGraph& graph);

// Validates scales and resolves their names. Throws Error(InvalidArtifact) naming the tensor or layer whose scales are
// missing, have another length, limit or zero point than allowed, or are out of range; the kernels rely on all of that.
Scales resolve_scales(const LayerGraph& graph, const NamedScales& named);

// The least and the largest of some numbers and 0.
struct Extent {
  float low = 0, high = 0;

  void add(float x) {
    low = std::min(low, x);
    high = std::max(high, x);
  }
};

// The scale at which a tensor's larger side just fits.
float extent_scale(const Extent& extent, int limit, int zero_point);

// Scales from the maximum, from which the search starts: for weights the largest |weight| of an output channel / 63,
// for tensors the largest |x| / limit. With `zero_points`, an operand of seven bits whose sides differ gets the zero
// point with which both just fit.
Scales scales_from_extents(const LayerGraph& graph, const std::vector<Extent>& extents, std::vector<int> limits,
                           bool zero_points);
// Those of tensors alone, without convolutions: `convs` is empty.
Scales tensor_scales_from_extents(const LayerGraph& graph, const std::vector<Extent>& extents, std::vector<int> limits,
                                  bool zero_points);

// The integers of one output channel's weights: round_half_even(weight / scale), saturated at +-63.
void quantize_weights(const float* weights, int64_t count, float scale, int8_t* integers);
// round_half_even(bias / (weight scale * input scale)), saturated at +-2^30.
int32_t quantize_bias(float bias, float weight_scale, float input_scale);

// Sets the integers of a convolution's weights and bias from scales.convs[layer].weight and the scale of its input.
void quantize_conv(const LayerGraph& graph, int layer, Scales& scales);
// Sets the bias only, after the scale of the layer's input has changed.
void quantize_conv_bias(const LayerGraph& graph, int layer, Scales& scales);

}  // namespace facetrain
