#include "quant/real_layer.h"

#include <algorithm>

#include "kernels/clones.h"

namespace facetrain {
namespace detail {

constexpr int kRealPanel = 16;
constexpr int kRealPixels = 4;
using Vector = float __attribute__((vector_size(kRealPanel * sizeof(float)), aligned(4), may_alias));

// One panel of output channels for kRealPixels pixels.
FACETRAIN_CLONES void real_tile(const float* const* taps, int tap_count, int64_t offset, int channels,
                                const float* weights, const float* bias, float (*y)[kRealPanel]) {
  const Vector start = *reinterpret_cast<const Vector*>(bias);
  Vector s0 = start, s1 = start, s2 = start, s3 = start;
  for (int tap = 0; tap < tap_count; ++tap) {
    const float *x0 = taps[tap] + offset, *x1 = taps[tap_count + tap] + offset;
    const float *x2 = taps[2 * tap_count + tap] + offset, *x3 = taps[3 * tap_count + tap] + offset;
    for (int c = 0; c < channels; ++c, weights += kRealPanel) {
      const Vector w = *reinterpret_cast<const Vector*>(weights);
      s0 += x0[c] * w;
      s1 += x1[c] * w;
      s2 += x2[c] * w;
      s3 += x3[c] * w;
    }
  }
  *reinterpret_cast<Vector*>(y[0]) = s0;
  *reinterpret_cast<Vector*>(y[1]) = s1;
  *reinterpret_cast<Vector*>(y[2]) = s2;
  *reinterpret_cast<Vector*>(y[3]) = s3;
}

FACETRAIN_CLONES void real_depthwise_pixel(const float* const* taps, int tap_count, int channels, const float* weights,
                                           const float* bias, float* y) {
  std::copy(bias, bias + channels, y);
  for (int tap = 0; tap < tap_count; ++tap) {
    const float *x = taps[tap], *w = weights + int64_t{tap} * channels;
    for (int c = 0; c < channels; ++c) y[c] += x[c] * w[c];
  }
}

}  // namespace detail

using detail::kRealPanel;
using detail::kRealPixels;

RealConv::RealConv(const ConvShape& shape, const std::vector<float>& weights, const std::vector<float>& bias)
    : shape_(shape), zeros_(shape.in_channels) {
  // Depthwise: one panel as wide as all channels.
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
        panels_[((panel * shape.taps() + t) * shape.group_in() + i) * width + lane] = weights[shape.weight_index(o, i, t)];
      }
    }
  }
}

void RealConv::run(const float* const* taps, int pixels, float* y) const {
  const int tap_count = shape_.taps();
  if (shape_.depthwise()) {
    for (int p = 0; p < pixels; ++p) {
      detail::real_depthwise_pixel(taps + int64_t{p} * tap_count, tap_count, shape_.in_channels, panels_.data(),
                                   bias_.data(), y + int64_t{p} * shape_.out_channels);
    }
    return;
  }
  const int outputs = shape_.group_out(), panels = (outputs + kRealPanel - 1) / kRealPanel;
  const int64_t panel_size = int64_t{tap_count} * shape_.group_in() * kRealPanel;
  std::vector<const float*> padded(int64_t{kRealPixels} * tap_count);
  for (int first = 0; first < pixels; first += kRealPixels) {
    const int count = std::min(kRealPixels, pixels - first);
    const float* const* tile = taps + int64_t{first} * tap_count;
    if (count < kRealPixels) {  // the last pixel again, for nobody
      for (int p = 0; p < kRealPixels; ++p) {
        std::copy_n(tile + int64_t{std::min(p, count - 1)} * tap_count, tap_count, padded.begin() + int64_t{p} * tap_count);
      }
      tile = padded.data();
    }
    for (int g = 0; g < shape_.group; ++g) {
      for (int panel = 0; panel < panels; ++panel) {
        const int64_t index = int64_t{g} * panels + panel;
        float sums[kRealPixels][kRealPanel];
        detail::real_tile(tile, tap_count, int64_t{g} * shape_.group_in(), shape_.group_in(),
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
    : layer_(&graph.layers[layer]),
      channels_(graph.tensors[layer_->input].channels),
      area_(graph.tensors[layer_->input].area()) {
  if (layer_->kind == Layer::Kind::conv) conv_ = RealConv(layer_->shape, layer_->weight, layer_->bias);
}

void RealLayer::run(const float* x, const float* second, float* y) const {
  switch (layer_->kind) {
    case Layer::Kind::conv:
      conv_.run_image(x, y);
      break;
    case Layer::Kind::pointwise:
      for (int64_t p = 0; p < area_; ++p) {
        for (int c = 0; c < channels_; ++c) {
          const float value = x[p * channels_ + c];
          y[p * channels_ + c] =
              (value > 0 ? layer_->positive[c] : layer_->negative[c]) * value + layer_->offset[c];
        }
      }
      break;
    case Layer::Kind::add:
      for (int64_t i = 0; i < int64_t{channels_} * area_; ++i) y[i] = x[i] + second[i];
      break;
    case Layer::Kind::pool:
      for (int c = 0; c < channels_; ++c) {
        float sum = 0;
        for (int64_t p = 0; p < area_; ++p) sum += x[p * channels_ + c];
        y[c] = sum / static_cast<float>(area_);
      }
      break;
  }
}

}  // namespace facetrain
