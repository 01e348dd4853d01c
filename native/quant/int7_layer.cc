#include "quant/int7_layer.h"

#include <algorithm>
#include <array>

#include "kernels/elementwise.h"
#include "quant/node_layer.h"

namespace facetrain {
namespace {

constexpr int kChunk = 64;  // pixels

}  // namespace

Int7Layer::Int7Layer(const LayerGraph& graph, int l, const Scales& scales)
    : graph_(&graph),
      layer_(&graph.layers[l]),
      input_channels_(graph.tensors[layer_->input].channels),
      input_area_(graph.tensors[layer_->input].area()),
      output_channels_(graph.tensors[layer_->output].channels),
      output_area_(graph.tensors[layer_->output].area()),
      output_limit_(graph.tensors[layer_->output].limit()),
      input_scale_(scales.tensors[layer_->input]),
      second_scale_(layer_->second < 0 ? 0 : scales.tensors[layer_->second]),
      output_scale_(scales.tensors[layer_->output]) {
  if (layer_->kind == Layer::Kind::node) {
    for (const int input : layer_->inputs) input_scales_.push_back(scales.tensors[input]);
    if (!layer_->elementwise || !graph.quantized(layer_->input)) return;
    std::vector<float> values(256);
    for (int i = 0; i < 256; ++i) values[i] = static_cast<float>(i - 128) * input_scale_;
    real_table_.resize(256);
    run_elementwise(*layer_, values.data(), 256, real_table_.data());
    table_.resize(256);
    if (graph.quantized(layer_->output)) quantize(real_table_.data(), 256, output_scale_, output_limit_, table_.data());
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

template <typename T>
void Int7Layer::look_up(const int8_t* x, const std::vector<T>& table, T* y) const {
  const int64_t count = int64_t{output_area_} * output_channels_;
  for (int64_t i = 0; i < count; ++i) y[i] = table[x[i] + 128];
}

// Computes a node that only moves numbers, after its inputs got the scale of the output. Returns whether it is one.
bool Int7Layer::move_integers(const std::vector<Operand>& inputs, int8_t* y) const {
  std::vector<std::vector<int8_t>> rescaled(inputs.size());
  std::vector<const int8_t*> integers;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].integers == nullptr) return false;
    integers.push_back(inputs[i].integers);
    if (input_scales_[i] == output_scale_) continue;
    if (layer_->steps[0].op != "Concat") return false;
    std::array<float, 256> values{};
    std::array<int8_t, 256> table{};
    for (int q = 0; q < 256; ++q) values[q] = static_cast<float>(q - 128) * input_scales_[i];
    quantize(values.data(), 256, output_scale_, output_limit_, table.data());
    rescaled[i].resize(graph_->tensors[layer_->inputs[i]].size());
    for (size_t k = 0; k < rescaled[i].size(); ++k) rescaled[i][k] = table[inputs[i].integers[k] + 128];
    integers[i] = rescaled[i].data();
  }
  return run_moves(*graph_, *layer_, integers, y);
}

// The real values of a node: of its dequantized inputs.
void Int7Layer::node_values(const std::vector<Operand>& inputs, float* y) const {
  if (!real_table_.empty()) return look_up(inputs[0].integers, real_table_, y);
  std::vector<std::vector<float>> dequantized(inputs.size());
  std::vector<const float*> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].real == nullptr) {
      const int64_t size = graph_->tensors[layer_->inputs[i]].size();
      dequantized[i].resize(size);
      for (int64_t k = 0; k < size; ++k)
        dequantized[i][k] = static_cast<float>(inputs[i].integers[k]) * input_scales_[i];
    }
    values.push_back(inputs[i].real == nullptr ? dequantized[i].data() : inputs[i].real);
  }
  run_node(*graph_, *layer_, values, y);
}

void Int7Layer::run(const std::vector<Operand>& inputs, int8_t* y) const {
  const int8_t* x = inputs[0].integers;
  if (layer_->kind == Layer::Kind::conv) {
    return convolve(x, [&](const int32_t* sums, int first, int pixels) {
      requantize(sums, output_channels_, pixels, multipliers_.data(), output_limit_,
                 y + int64_t{first} * output_channels_);
    });
  }
  if (layer_->kind == Layer::Kind::node) {
    if (!table_.empty()) return look_up(x, table_, y);
    if (move_integers(inputs, y)) return;
    std::vector<float> real(int64_t{output_area_} * output_channels_);
    node_values(inputs, real.data());
    return quantize(real.data(), static_cast<int64_t>(real.size()), output_scale_, output_limit_, y);
  }
  const int8_t* second = inputs.size() > 1 ? inputs[1].integers : nullptr;
  std::vector<float> real(int64_t{std::min(kChunk, output_area_)} * output_channels_);
  for (int first = 0; first < output_area_; first += kChunk) {
    const int pixels = std::min(kChunk, output_area_ - first);
    real_values(x, second, first, pixels, real.data());
    quantize(real.data(), int64_t{pixels} * output_channels_, output_scale_, output_limit_,
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
  if (layer_->kind == Layer::Kind::node) return node_values(inputs, y);
  real_values(x, inputs.size() > 1 ? inputs[1].integers : nullptr, 0, output_area_, y);
}

}  // namespace facetrain
