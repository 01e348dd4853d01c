#include "quant/equalize.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "error.h"
#include "quant/layerwise_pass.h"

namespace facetrain {
namespace {

// The exponent of a_c in t_c. At 1, all channels of a tensor get the same range, and the weights that read them take
// all the differences. It is near 1 because activations share one scale for all channels, while weights have one for
// each output channel.
constexpr float kActivationShare = 0.85f;
// Channels whose maximum is below this share of their tensor's largest are treated as if it were this share: a channel
// that is near zero on the calibration pictures may not be on others.
constexpr float kLeastShare = 1e-3f;

// Groups of tensors whose channels must be divided by the same numbers: those that pointwise, add and pool layers
// connect. A union-find structure; find() returns the representative of a tensor's group.
class Groups {
 public:
  explicit Groups(const LayerGraph& graph) : parent_(graph.tensors.size()) {
    std::iota(parent_.begin(), parent_.end(), 0);
    for (const Layer& layer : graph.layers) {
      if (layer.kind == Layer::Kind::conv) continue;
      parent_[find(layer.output)] = find(layer.input);
      if (layer.second >= 0) parent_[find(layer.second)] = find(layer.input);
    }
  }
  int find(int tensor) {
    while (parent_[tensor] != tensor) tensor = parent_[tensor] = parent_[parent_[tensor]];
    return tensor;
  }

 private:
  std::vector<int> parent_;
};

// Largest |x| of each channel, over all pictures.
std::vector<float> channel_maxima(const LayerwisePass& pass, const Tensor& tensor, int index) {
  std::vector<float> result(tensor.channels);
  const float* x = pass.real(index, 0);
  for (int64_t p = 0; p < pass.pictures() * tensor.area(); ++p, x += tensor.channels) {
    for (int c = 0; c < tensor.channels; ++c) result[c] = std::max(result[c], std::abs(x[c]));
  }
  return result;
}

// By channel, over all tensors of a group.
struct Channels {
  std::vector<float> activation;  // a_c
  std::vector<float> weight;      // w_c; 0 where only depthwise convolutions read the channel
};

// Makes a convolution read a tensor divided by `in` [I] and write one divided by `out` [O].
void scale_weights(Layer& layer, const std::vector<float>& in, const std::vector<float>& out) {
  const ConvShape& s = layer.shape;
  for (int o = 0; o < s.out_channels; ++o) {
    for (int i = 0; i < s.group_in(); ++i) {
      const int c = o / s.group_out() * s.group_in() + i;
      for (int t = 0; t < s.taps(); ++t) layer.weight[s.weight_index(o, i, t)] *= in[c] / out[o];
    }
    layer.bias[o] /= out[o];
  }
}

// Raises maxima[c] to the largest |weight| of the layer that reads input channel c.
void raise_weight_maxima(const Layer& layer, std::vector<float>& maxima) {
  const ConvShape& s = layer.shape;
  if (s.depthwise()) return;
  for (int o = 0; o < s.out_channels; ++o) {
    for (int i = 0; i < s.group_in(); ++i) {
      float& maximum = maxima[o / s.group_out() * s.group_in() + i];
      for (int t = 0; t < s.taps(); ++t) maximum = std::max(maximum, std::abs(layer.weight[s.weight_index(o, i, t)]));
    }
  }
}

// t_c of equalize.h for each channel of a group.
std::vector<float> divisors(const Channels& channels) {
  const auto& [activation, weight] = channels;
  const float largest = *std::max_element(activation.begin(), activation.end());
  std::vector<float> result(activation.size(), 1.0f);
  if (!(largest > 0)) return result;
  for (size_t c = 0; c < result.size(); ++c) {
    const float a = std::max(activation[c], largest * kLeastShare);
    result[c] = weight[c] > 0 ? std::pow(a, kActivationShare) / std::pow(weight[c], 1 - kActivationShare) : a;
  }
  return result;
}

}  // namespace

void equalize(LayerGraph& graph, const PictureView& pictures, ThreadPool& pool, const ActivationSpace& space,
              const std::atomic<bool>& cancelled, const std::function<void(int)>& on_layer) {
  Groups groups(graph);
  const int tensors = static_cast<int>(graph.tensors.size());
  std::vector<Channels> channels(tensors);  // by representative of the group
  for (int t = 0; t < tensors; ++t) {
    Channels& group = channels[groups.find(t)];
    group.activation.resize(graph.tensors[t].channels);
    group.weight.resize(graph.tensors[t].channels);
  }
  for (const Layer& layer : graph.layers) {
    if (layer.kind == Layer::Kind::conv) raise_weight_maxima(layer, channels[groups.find(layer.input)].weight);
  }

  LayerwisePass pass(graph, pictures, pool, space);
  pass.start_real();
  for (int l = 0; l < static_cast<int>(graph.layers.size()); ++l) {
    if (cancelled) throw Cancelled();
    pass.run_real(l);
    const int output = graph.layers[l].output;
    auto& activation = channels[groups.find(output)].activation;
    pass.largest(output);  // throws if a value is not finite, before it gets into a divisor
    const auto maxima = channel_maxima(pass, graph.tensors[output], output);
    for (size_t c = 0; c < maxima.size(); ++c) activation[c] = std::max(activation[c], maxima[c]);
    pass.release(l);
    on_layer(l + 1);
  }

  std::vector<std::vector<float>> by_group(tensors);
  for (int t = 0; t < tensors; ++t) {
    if (groups.find(t) == t) by_group[t] = divisors(channels[t]);
  }
  for (const int fixed : {0, graph.output}) {
    auto& divisor = by_group[groups.find(fixed)];
    std::fill(divisor.begin(), divisor.end(), 1.0f);
  }
  for (Layer& layer : graph.layers) {
    const auto &in = by_group[groups.find(layer.input)], &out = by_group[groups.find(layer.output)];
    if (layer.kind == Layer::Kind::conv) scale_weights(layer, in, out);
    if (layer.kind == Layer::Kind::pointwise) {
      for (size_t c = 0; c < out.size(); ++c) layer.offset[c] /= out[c];
    }
  }
}

}  // namespace facetrain
