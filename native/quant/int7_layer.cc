#include "quant/int7_layer.h"

#include <algorithm>

#include "kernels/elementwise.h"

namespace facetrain {
namespace {

constexpr int kChunk = 64;  // pixels

std::vector<const void*> addresses_of(const std::vector<Operand>& inputs) {
  std::vector<const void*> result;
  for (const Operand& input : inputs)
    result.push_back(input.integers ? static_cast<const void*>(input.integers) : input.real);
  return result;
}

}  // namespace

Int7Layer::Int7Layer(const LayerGraph& graph, int l, const Scales& scales)
    : graph_(&graph),
      layer_(&graph.layers[l]),
      input_channels_(graph.tensors[layer_->input].channels),
      input_area_(graph.tensors[layer_->input].area()),
      output_channels_(graph.tensors[layer_->output].channels),
      output_area_(graph.tensors[layer_->output].area()),
      output_range_(scales.range(layer_->output)),
      input_scale_(scales.tensors[layer_->input]),
      second_scale_(layer_->second < 0 ? 0 : scales.tensors[layer_->second]),
      output_scale_(scales.tensors[layer_->output]) {
  if (layer_->kind == Layer::Kind::node) {
    const auto described = [&](int tensor) {
      NodeTensor result = graph.tensors[tensor].real_node();
      result.real = !graph.quantized(tensor);
      result.scale = scales.tensors[tensor];
      result.range = scales.range(tensor);
      return result;
    };
    std::vector<NodeTensor> inputs;
    for (const int input : layer_->inputs) inputs.push_back(described(input));
    const std::string subject = "layer '" + layer_->name + "'";
    real_node_.emplace(layer_->node, inputs, graph.tensors[layer_->output].real_node(), subject);
    if (graph.quantized(layer_->output)) node_.emplace(layer_->node, inputs, described(layer_->output), subject);
    return;
  }
  if (layer_->kind != Layer::Kind::conv) return;
  const ConvScales& conv = scales.convs[l];
  conv_ = Conv(layer_->shape, conv.weights.data());
  bias_ = conv.bias;
  for (const float weight_scale : conv.weight) {
    sum_scales_.push_back(input_scale_ * weight_scale);
    multipliers_.push_back(sum_scales_.back() / output_scale_);
  }
}

// Calls write(sums, first, pixels) for each chunk: sums [pixels, O] of the output pixels from `first` on.
template <typename Write>
void Int7Layer::convolve(const int8_t* x, Write write) const {
  std::vector<int32_t> sums(int64_t{kChunk} * output_channels_);
  for (int first = 0; first < output_area_; first += kChunk) {
    const int pixels = std::min(kChunk, output_area_ - first);
    conv_.run_image(x, first, pixels, bias_.data(), sums.data());
    write(sums.data(), first, pixels);
  }
}

// Real values of the output pixels from `first` on, for all layers but convolutions. The one pixel of a pool depends on
// the whole input.
void Int7Layer::real_values(const int8_t* x, const int8_t* second, int first, int pixels, float* y) const {
  const int64_t begin = int64_t{first} * input_channels_;
  switch (layer_->kind) {
    case Layer::Kind::conv:
    case Layer::Kind::node:
      break;
    case Layer::Kind::pointwise:
      pointwise(x + begin, input_channels_, pixels, layer_->positive.data(), layer_->negative.data(),
                layer_->offset.data(), input_scale_, y);
      break;
    case Layer::Kind::add:
      add(x + begin, input_scale_, second + begin, second_scale_, int64_t{pixels} * input_channels_, y);
      break;
    case Layer::Kind::pool:
      pool(x, input_channels_, input_area_, input_scale_, y);
      break;
  }
}

void Int7Layer::run(const std::vector<Operand>& inputs, int8_t* y) const {
  const int8_t* x = inputs[0].integers;
  if (layer_->kind == Layer::Kind::conv) {
    return convolve(x, [&](const int32_t* sums, int first, int pixels) {
      requantize(sums, output_channels_, pixels, multipliers_.data(), output_range_,
                 y + int64_t{first} * output_channels_);
    });
  }
  if (layer_->kind == Layer::Kind::node) {
    return node_->run(addresses_of(inputs).data(), y);
  }
  const int8_t* second = inputs.size() > 1 ? inputs[1].integers : nullptr;
  std::vector<float> real(int64_t{std::min(kChunk, output_area_)} * output_channels_);
  for (int first = 0; first < output_area_; first += kChunk) {
    const int pixels = std::min(kChunk, output_area_ - first);
    real_values(x, second, first, pixels, real.data());
    quantize(real.data(), int64_t{pixels} * output_channels_, output_scale_, output_range_,
             y + int64_t{first} * output_channels_);
  }
}

void Int7Layer::run_real(const std::vector<Operand>& inputs, float* y) const {
  const int8_t* x = inputs[0].integers;
  if (layer_->kind == Layer::Kind::conv) {
    return convolve(x, [&](const int32_t* sums, int first, int pixels) {
      dequantize(sums, output_channels_, pixels, sum_scales_.data(), y + int64_t{first} * output_channels_);
    });
  }
  if (layer_->kind == Layer::Kind::node) return real_node_->run(addresses_of(inputs).data(), y);
  real_values(x, inputs.size() > 1 ? inputs[1].integers : nullptr, 0, output_area_, y);
}

}  // namespace facetrain
