#include "quant/real_layer.h"

#include <algorithm>

#include "quant/real_tile.h"

namespace facetrain {

RealConv::RealConv(const ConvShape& shape, const std::vector<float>& weights, const std::vector<float>& bias)
    : shape_(shape), zeros_(shape.in_channels) {
  // A depthwise convolution has one panel that is as wide as all channels.
  const int width = shape.depthwise() ? shape.out_channels : kRealPanel;
  const int groups = shape.depthwise() ? 1 : shape.group, outputs = shape.out_channels / groups;
  const int panels = (outputs + width - 1) / width;
  panels_.resize(int64_t{groups} * panels * shape.taps() * shape.group_in() * width);
  bias_.resize(int64_t{groups} * panels * width);
  for (int o = 0; o < shape.out_channels; ++o) {
    const int64_t panel = int64_t{o / outputs} * panels + o % outputs / width;
    const int lane = o % outputs % width;
    bias_[panel * width + lane] = bias[o];
    for (int t = 0; t < shape.taps(); ++t) {
      for (int i = 0; i < shape.group_in(); ++i) {
        panels_[((panel * shape.taps() + t) * shape.group_in() + i) * width + lane] =
            weights[shape.weight_index(o, i, t)];
      }
    }
  }
}

void RealConv::run(const float* const* taps, int pixels, float* y) const {
  const FlushDenormals flush;
  const int tap_count = shape_.taps();
  if (shape_.depthwise()) {
    for (int p = 0; p < pixels; ++p) {
      real_depthwise_pixel(taps + int64_t{p} * tap_count, tap_count, shape_.in_channels, panels_.data(), bias_.data(),
                           y + int64_t{p} * shape_.out_channels);
    }
    return;
  }
  const RealTile tile_function = best_real_tile();
  const int outputs = shape_.group_out(), panels = (outputs + kRealPanel - 1) / kRealPanel;
  const int64_t panel_size = int64_t{tap_count} * shape_.group_in() * kRealPanel;
  std::vector<const float*> padded(int64_t{kRealPixels} * tap_count);
  for (int first = 0; first < pixels; first += kRealPixels) {
    const int count = std::min(kRealPixels, pixels - first);
    const float* const* tile = taps + int64_t{first} * tap_count;
    if (count < kRealPixels) {  // repeats the last pixel to fill the tile; its results are discarded
      for (int p = 0; p < kRealPixels; ++p) {
        std::copy_n(tile + int64_t{std::min(p, count - 1)} * tap_count, tap_count,
                    padded.begin() + int64_t{p} * tap_count);
      }
      tile = padded.data();
    }
    for (int g = 0; g < shape_.group; ++g) {
      for (int panel = 0; panel < panels; ++panel) {
        const int64_t index = int64_t{g} * panels + panel;
        float sums[kRealPixels][kRealPanel];
        tile_function(tile, tap_count, int64_t{g} * shape_.group_in(), shape_.group_in(),
                      panels_.data() + index * panel_size, bias_.data() + index * kRealPanel, sums);
        const int o = g * outputs + panel * kRealPanel, n = std::min(kRealPanel, outputs - panel * kRealPanel);
        for (int p = 0; p < count; ++p) std::copy_n(sums[p], n, y + int64_t{first + p} * shape_.out_channels + o);
      }
    }
  }
}

void RealConv::run_image(const float* x, float* y) const {
  constexpr int kChunk = 64;
  std::vector<const float*> taps(int64_t{kChunk} * shape_.taps());
  for (int first = 0; first < shape_.out_area(); first += kChunk) {
    const int count = std::min(kChunk, shape_.out_area() - first);
    for (int p = 0; p < count; ++p) {
      tap_pointers(shape_, first + p, x, zeros_.data(), taps.data() + int64_t{p} * shape_.taps());
    }
    run(taps.data(), count, y + int64_t{first} * shape_.out_channels);
  }
}

RealLayer::RealLayer(const LayerGraph& graph, int layer)
    : graph_(&graph),
      layer_(&graph.layers[layer]),
      channels_(graph.tensors[layer_->input].channels),
      area_(graph.tensors[layer_->input].area()) {
  if (layer_->kind == Layer::Kind::conv) conv_ = RealConv(layer_->shape, layer_->weight, layer_->bias);
  if (layer_->kind != Layer::Kind::node) return;
  std::vector<NodeTensor> tensors;
  for (const int input : layer_->inputs) tensors.push_back(graph.tensors[input].real_node());
  node_.emplace(layer_->node, tensors, graph.tensors[layer_->output].real_node(), "layer '" + layer_->name + "'");
}

void RealLayer::run(const std::vector<const float*>& inputs, float* y) const {
  const float* x = inputs[0];
  switch (layer_->kind) {
    case Layer::Kind::conv:
      conv_.run_image(x, y);
      break;
    case Layer::Kind::pointwise:
      real_pointwise(x, channels_, area_, layer_->positive.data(), layer_->negative.data(), layer_->offset.data(), y);
      break;
    case Layer::Kind::add:
      for (int64_t i = 0; i < int64_t{channels_} * area_; ++i) y[i] = x[i] + inputs[1][i];
      break;
    case Layer::Kind::pool:
      for (int c = 0; c < channels_; ++c) {
        float sum = 0;
        for (int64_t p = 0; p < area_; ++p) sum += x[p * channels_ + c];
        y[c] = sum / static_cast<float>(area_);
      }
      break;
    case Layer::Kind::node:
      node_->run(std::vector<const void*>(inputs.begin(), inputs.end()).data(), y);
      break;
  }
}

}  // namespace facetrain
