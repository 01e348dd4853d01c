#include "quant/scales.h"

#include <algorithm>
#include <cmath>

#include "counted.h"
#include "error.h"
#include "int7/network.h"
#include "kernels/elementwise.h"

namespace facetrain {
namespace {

constexpr double kBiasLimit = kLargestBias;
// Of a filter of zeros. Its product with the scale of any tensor is no denormal number, which is 0 in some runtimes.
constexpr float kLeastWeightScale = 1e-20f;

// Scale of one output channel's weights. If all are zero, the bias determines the scale: it keeps twenty bits.
float weight_scale_from_maximum(const float* weights, int64_t count, float bias, float input_scale) {
  float maximum = 0;
  for (int64_t i = 0; i < count; ++i) maximum = std::max(maximum, std::abs(weights[i]));
  const float least = std::abs(bias) / input_scale / (1 << 20);
  return bounded_weight_scale(std::max(maximum / kOperandLimit, least));
}

// With which both sides just fit. 0 where that saves less than a tenth of the scale.
int zero_point_of(const Extent& extent) {
  const float sum = extent.high - extent.low;
  if (sum <= 0) return 0;
  const auto result = static_cast<int>(std::nearbyint(-kOperandLimit * ((extent.high + extent.low) / sum)));
  return 10 * std::abs(result) < kOperandLimit ? 0 : result;
}

}  // namespace

float bounded_scale(float scale) { return std::clamp(scale, int7::kLeastScale, int7::kLargestNumber); }

float bounded_weight_scale(float scale) { return std::clamp(scale, kLeastWeightScale, int7::kLargestNumber); }

void quantize_weights(const float* weights, int64_t count, float scale, int8_t* integers) {
  quantize(weights, count, scale, kOperandLimit, integers);
}

int32_t quantize_bias(float bias, float weight_scale, float input_scale) {
  const double value = std::nearbyint(bias / (double{weight_scale} * input_scale));
  return static_cast<int32_t>(std::clamp(value, -kBiasLimit, kBiasLimit));
}

void quantize_conv_bias(const LayerGraph& graph, int l, Scales& scales) {
  const Layer& layer = graph.layers[l];
  ConvScales& conv = scales.convs[l];
  conv.bias.resize(layer.shape.out_channels);
  for (int o = 0; o < layer.shape.out_channels; ++o) {
    conv.bias[o] = quantize_bias(layer.bias[o], conv.weight[o], scales.tensors[layer.input]);
  }
}

void quantize_conv(const LayerGraph& graph, int l, Scales& scales) {
  const Layer& layer = graph.layers[l];
  ConvScales& conv = scales.convs[l];
  const int64_t filter = layer.shape.weights() / layer.shape.out_channels;
  conv.weights.resize(layer.weight.size());
  for (int o = 0; o < layer.shape.out_channels; ++o) {
    quantize_weights(layer.weight.data() + o * filter, filter, conv.weight[o], conv.weights.data() + o * filter);
  }
  quantize_conv_bias(graph, l, scales);
}

Scales resolve_scales(const LayerGraph& graph, const NamedScales& named) {
  Scales scales;
  const auto refuse = [](const std::string& subject, const std::string& found, const std::string& allowed) {
    throw Error("InvalidArtifact", "scales of " + subject, found, allowed);
  };
  const auto positive = [](float scale) { return scale > 0 && std::isfinite(scale); };
  scales.tensors.resize(graph.tensors.size());
  scales.limits = narrow_limits(graph);
  scales.zero_points.resize(graph.tensors.size());
  for (size_t t = 0; t < graph.tensors.size(); ++t) {
    if (!graph.quantized(t)) continue;
    const Tensor& tensor = graph.tensors[t];
    const std::string subject = "tensor '" + tensor.name + "'";
    const auto found = named.tensors.find(tensor.name);
    if (found == named.tensors.end()) refuse(subject, "missing", "one scale");
    const auto& [scale, limit, zero_point] = found->second;
    if (!positive(scale)) refuse(subject, std::to_string(scale), "a positive number");
    const bool may_be_wide = may_be_wide_operand(graph, static_cast<int>(t));
    const bool is_wide = may_be_wide && limit == kWideOperandLimit;
    if (!is_wide && limit != tensor.limit())
      refuse(subject, "limit " + std::to_string(limit),
             std::to_string(tensor.limit()) + (may_be_wide ? " or " + std::to_string(kWideOperandLimit) : ""));
    const int largest = may_be_wide && !is_wide ? kOperandLimit : 0;
    if (std::abs(zero_point) > largest)
      refuse(subject, "zero point " + std::to_string(zero_point), largest == 0 ? "0" : "-63 to 63");
    scales.tensors[t] = scale;
    scales.limits[t] = limit;
    scales.zero_points[t] = zero_point;
    if (scale != scales.tensors[tensor.scale_of] || zero_point != scales.zero_points[tensor.scale_of] ||
        limit != scales.limits[tensor.scale_of])
      refuse(subject,
             std::to_string(scale) + " with limit " + std::to_string(limit) + " and zero point " +
                 std::to_string(zero_point),
             "the scale, limit and zero point of '" + graph.tensors[tensor.scale_of].name + "'");
  }
  scales.convs.resize(graph.layers.size());
  for (size_t l = 0; l < graph.layers.size(); ++l) {
    const Layer& layer = graph.layers[l];
    if (layer.kind != Layer::Kind::conv) continue;
    const std::string subject = "layer '" + layer.name + "'";
    const auto found = named.convs.find(layer.name);
    if (found == named.convs.end()) refuse(subject, "missing", "scales, weights and biases");
    const ConvScales& conv = found->second;
    const auto outputs = static_cast<size_t>(layer.shape.out_channels);
    if (conv.weight.size() != outputs || conv.bias.size() != outputs || conv.weights.size() != layer.weight.size()) {
      refuse(subject,
             counted(conv.weight.size(), "scale") + ", " + counted(conv.bias.size(), "bias") + " and " +
                 counted(conv.weights.size(), "weight"),
             std::to_string(outputs) + ", as many, and " + std::to_string(layer.weight.size()));
    }
    if (!std::all_of(conv.weight.begin(), conv.weight.end(), positive))
      refuse(subject, "a scale of zero or less", "positive numbers");
    for (const int32_t bias : conv.bias) {
      if (std::abs(int64_t{bias}) > kLargestBias)
        refuse(subject, "bias " + std::to_string(bias), "-2^30 to 2^30, so that sums fit 32 bits");
    }
    for (const int8_t weight : conv.weights) {
      if (std::abs(int{weight}) > kOperandLimit) refuse(subject, "weight " + std::to_string(weight), "-63 to 63");
    }
    scales.convs[l] = conv;
  }
  return scales;
}

bool may_be_wide_operand(const LayerGraph& graph, int tensor) {
  if (!graph.tensors[tensor].operand) return false;
  for (const Tensor& shared : graph.tensors) {
    if (shared.scale_of != graph.tensors[tensor].scale_of) continue;
    for (const int reader : shared.readers) {
      const Layer& layer = graph.layers[reader];
      if (layer.kind == Layer::Kind::conv && layer.shape.filter() > kLargestFilterOfWideOperand) return false;
    }
  }
  return true;
}

std::vector<int> narrow_limits(const LayerGraph& graph) {
  std::vector<int> limits;
  for (const Tensor& tensor : graph.tensors) limits.push_back(tensor.limit());
  return limits;
}

std::vector<int> wide_limits(const LayerGraph& graph) {
  std::vector<int> limits = narrow_limits(graph);
  for (size_t t = 0; t < limits.size(); ++t) {
    if (may_be_wide_operand(graph, static_cast<int>(t))) limits[t] = kWideOperandLimit;
  }
  return limits;
}

float extent_scale(const Extent& extent, int limit, int zero_point) {
  const bool up = extent.high >= -extent.low;
  const float largest = up ? extent.high : -extent.low;
  // A tensor of zeros is exact at any scale.
  return bounded_scale((largest > 0 ? largest : 1.0f) / static_cast<float>(limit - (up ? zero_point : -zero_point)));
}

Scales tensor_scales_from_extents(const LayerGraph& graph, const std::vector<Extent>& extents, std::vector<int> limits,
                                  bool zero_points) {
  Scales scales;
  scales.limits = std::move(limits);
  scales.tensors.resize(graph.tensors.size());
  scales.zero_points.resize(graph.tensors.size());
  for (size_t t = 0; t < graph.tensors.size(); ++t) {
    if (!graph.quantized(t)) continue;
    if (zero_points && scales.limits[t] == kOperandLimit && may_be_wide_operand(graph, static_cast<int>(t)))
      scales.zero_points[t] = zero_point_of(extents[t]);
    scales.tensors[t] = extent_scale(extents[t], scales.limits[t], scales.zero_points[t]);
  }
  return scales;
}

Scales scales_from_extents(const LayerGraph& graph, const std::vector<Extent>& extents, std::vector<int> limits,
                           bool zero_points) {
  Scales scales = tensor_scales_from_extents(graph, extents, std::move(limits), zero_points);
  scales.convs.resize(graph.layers.size());
  for (size_t l = 0; l < graph.layers.size(); ++l) {
    const Layer& layer = graph.layers[l];
    if (layer.kind != Layer::Kind::conv) continue;
    const int64_t filter = layer.shape.weights() / layer.shape.out_channels;
    for (int o = 0; o < layer.shape.out_channels; ++o) {
      scales.convs[l].weight.push_back(weight_scale_from_maximum(layer.weight.data() + o * filter, filter,
                                                                 layer.bias[o], scales.tensors[layer.input]));
    }
    quantize_conv(graph, l, scales);
  }
  return scales;
}

}  // namespace facetrain
