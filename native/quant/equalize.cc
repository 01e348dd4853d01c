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
// Bounds of t_c. Weights change by the quotient of two, offsets by one.
constexpr float kLeastDivisor = 1e-6f, kLargestDivisor = 1e6f;

// Sets of numbers that are joined: a union-find structure. find() returns the representative of a number's set.
class Sets {
 public:
  explicit Sets(int count) : parent_(count) { std::iota(parent_.begin(), parent_.end(), 0); }
  int find(int x) {
    while (parent_[x] != x) x = parent_[x] = parent_[parent_[x]];
    return x;
  }
  void join(int a, int b) { parent_[find(a)] = find(b); }

 private:
  std::vector<int> parent_;
};

// What must be divided by the same numbers: channels that a layer connects, and groups of tensors whose channels are
// compared with each other. All layers but convolutions connect the channels of their inputs with those of their
// output.
class Groups {
 public:
  explicit Groups(const LayerGraph& graph)
      : first_(first_channels(graph)), channels_(first_.back()), tensors_(static_cast<int>(graph.tensors.size())) {
    fixed_.resize(first_.back());
    fix(graph, 0);
    for (const int output : graph.outputs) fix(graph, output);
    for (const Layer& layer : graph.layers) {
      switch (layer.kind) {
        case Layer::Kind::conv:
          break;
        case Layer::Kind::node:
          join_node(graph, layer);
          break;
        default:
          for (const int input : layer.inputs) join_all(graph, input, layer.output);
      }
    }
    std::vector<char> by_representative(fixed_.size());
    for (size_t i = 0; i < fixed_.size(); ++i) by_representative[channels_.find(static_cast<int>(i))] |= fixed_[i];
    for (size_t i = 0; i < fixed_.size(); ++i) fixed_[i] = by_representative[channels_.find(static_cast<int>(i))];
  }

  int channels() const { return first_.back(); }
  int channel(int tensor, int c) { return channels_.find(first_[tensor] + c); }
  int tensor(int tensor) { return tensors_.find(tensor); }
  // Whether the channel's numbers must not be divided.
  bool fixed(int tensor, int c) const { return fixed_[first_[tensor] + c] != 0; }

 private:
  static std::vector<int> first_channels(const LayerGraph& graph) {
    std::vector<int> result{0};
    for (const Tensor& tensor : graph.tensors) result.push_back(result.back() + tensor.channels);
    return result;
  }
  void fix(const LayerGraph& graph, int tensor) {
    for (int c = 0; c < graph.tensors[tensor].channels; ++c) fixed_[first_[tensor] + c] = 1;
  }
  void join(int input, int c, int output, int d) {
    channels_.join(first_[input] + c, first_[output] + d);
    tensors_.join(input, output);
  }
  void join_all(const LayerGraph& graph, int input, int output) {
    for (int c = 0; c < graph.tensors[output].channels; ++c) join(input, c, output, c);
  }
  void join_node(const LayerGraph& graph, const Layer& layer);
  bool join_concat(const LayerGraph& graph, const Layer& layer);

  std::vector<int> first_;  // by tensor: index of its first channel among those of all; last their number
  Sets channels_, tensors_;
  std::vector<char> fixed_;
};

// Joins the channels that a node keeps apart and scales; fixes those of all others, which may compute anything.
void Groups::join_node(const LayerGraph& graph, const Layer& layer) {
  const FloatStep& step = layer.node.steps.front();
  const Tensor &in = graph.tensors[layer.input], &out = graph.tensors[layer.output];
  const auto is_map = [](const std::vector<int64_t>& dims) { return dims.size() == 4 && dims[0] == 1; };
  const auto number = [&](const char* name, double otherwise) {
    const auto found = step.numbers.find(name);
    return found == step.numbers.end() || found->second.empty() ? otherwise : found->second[0];
  };
  const bool maps =
      is_map(layer.node.output_dims) && std::all_of(layer.node.input_dims.begin(), layer.node.input_dims.end(), is_map);
  if (maps && layer.node.steps.size() == 1) {
    // A Pad that adds channels in front and removes as many behind keeps their number, not their places.
    const bool pads_maps = step.op == "Pad" && moves_numbers(step) && step.operands.size() > 1 &&
                           step.operands[1].constant.integers.size() == 8 && step.operands[1].constant.integers[1] == 0;
    const bool windows = step.op == "MaxPool" || step.op == "AveragePool" || step.op == "LpPool" ||
                         step.op == "GlobalMaxPool" || step.op == "GlobalAveragePool" || step.op == "Resize" ||
                         pads_maps;
    if (windows && in.channels == out.channels) return join_all(graph, layer.input, layer.output);
    if (step.op == "Concat" && number("axis", 0) == 1 && join_concat(graph, layer)) return;
    if (step.op == "Gather" && number("axis", 0) == 1 && step.operands.size() == 2 &&
        static_cast<int>(step.operands[1].constant.integers.size()) == out.channels) {
      const auto& index = step.operands[1].constant.integers;
      for (int c = 0; c < out.channels; ++c) {
        const int64_t from = index[c] < 0 ? index[c] + in.channels : index[c];
        if (from < 0 || from >= in.channels) return fix(graph, layer.output);  // its run refuses it
        join(layer.input, static_cast<int>(from), layer.output, c);
      }
      return;
    }
    // A product scales with its first factor, if the second is not scaled.
    if (step.op == "Mul" && layer.inputs.size() == 2 && layer.inputs[0] != layer.inputs[1] &&
        step.operands.at(0).index == 0 && in.channels == out.channels) {
      fix(graph, layer.inputs[1]);
      return join_all(graph, layer.input, layer.output);
    }
  }
  for (const int input : layer.inputs) fix(graph, input);
  fix(graph, layer.output);
}

// Joins the channels of a Concat's operands with those of its output. An input that is read twice is one of the layer's
// inputs and two operands; nothing divides the channels of a constant. Returns false, and joins nothing, where the
// channels do not fit: its run refuses it.
bool Groups::join_concat(const LayerGraph& graph, const Layer& layer) {
  using From = FloatStep::Operand::From;
  struct Part {
    int input, channels;  // input: -1 of a constant
  };
  std::vector<Part> parts;
  int64_t channels = 0;
  for (const auto& [from, index, constant] : layer.node.steps.front().operands) {
    if (from == From::input && index >= 0 && index < static_cast<int>(layer.inputs.size())) {
      const int input = layer.inputs[index];
      parts.push_back({input, graph.tensors[input].channels});
    } else if (from == From::constant && constant.dims.size() == 4 && constant.dims[1] >= 0 &&
               constant.dims[1] <= graph.tensors[layer.output].channels) {
      parts.push_back({-1, static_cast<int>(constant.dims[1])});
    } else {
      return false;
    }
    channels += parts.back().channels;
  }
  if (channels != graph.tensors[layer.output].channels) return false;
  int first = 0;
  for (const auto& [input, count] : parts) {
    for (int c = 0; c < count; ++c) {
      if (input < 0)
        fixed_[first_[layer.output] + first + c] = 1;
      else
        join(input, c, layer.output, first + c);
    }
    first += count;
  }
  return true;
}

// Largest |x| of each channel, over all pictures.
std::vector<float> channel_maxima(const LayerwisePass& pass, const Tensor& tensor, int index,
                                  const CancellablePool& pool) {
  std::vector<float> result(tensor.channels);
  for (int64_t n = 0; n < pass.pictures(); ++n) {
    pool.check();
    const float* x = pass.real(index, n);
    for (int p = 0; p < tensor.area(); ++p, x += tensor.channels) {
      for (int c = 0; c < tensor.channels; ++c) result[c] = std::max(result[c], std::abs(x[c]));
    }
  }
  return result;
}

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

// Calls raise(c, the largest |weight| of the layer that reads input channel c).
template <typename Raise>
void for_each_weight_maximum(const Layer& layer, const Raise& raise) {
  const ConvShape& s = layer.shape;
  if (s.depthwise()) return;
  for (int o = 0; o < s.out_channels; ++o) {
    for (int i = 0; i < s.group_in(); ++i) {
      float maximum = 0;
      for (int t = 0; t < s.taps(); ++t) maximum = std::max(maximum, std::abs(layer.weight[s.weight_index(o, i, t)]));
      raise(o / s.group_out() * s.group_in() + i, maximum);
    }
  }
}

// t_c of equalize.h.
float divisor(float activation, float weight, float largest) {
  const float a = std::max(activation, largest * kLeastShare);
  const float t = weight > 0 ? std::pow(a, kActivationShare) / std::pow(weight, 1 - kActivationShare) : a;
  return std::clamp(t, kLeastDivisor, kLargestDivisor);
}

}  // namespace

void equalize(LayerGraph& graph, const PictureView& pictures, const CancellablePool& pool, const ActivationSpace& space,
              const std::function<void(int)>& on_layer) {
  Groups groups(graph);
  const int tensors = static_cast<int>(graph.tensors.size());
  // By representative of the channel: a_c, and w_c, which is 0 where only depthwise convolutions read the channel. By
  // that of the group of tensors: the largest a_c.
  std::vector<float> activation(groups.channels()), weight(groups.channels()), largest(tensors);
  for (const Layer& layer : graph.layers) {
    if (layer.kind != Layer::Kind::conv) continue;
    for_each_weight_maximum(layer, [&](int c, float maximum) {
      float& w = weight[groups.channel(layer.input, c)];
      w = std::max(w, maximum);
    });
  }

  LayerwisePass pass(graph, pictures, pool, space);
  pass.start_real();
  for (int l = 0; l < static_cast<int>(graph.layers.size()); ++l) {
    pass.run_real(l);
    const int output = graph.layers[l].output;
    pass.extent(output);  // throws if a value is not finite, before it gets into a divisor
    const auto maxima = channel_maxima(pass, graph.tensors[output], output, pool);
    for (size_t c = 0; c < maxima.size(); ++c) {
      float& a = activation[groups.channel(output, static_cast<int>(c))];
      a = std::max(a, maxima[c]);
    }
    pass.release(l);
    on_layer(l + 1);
  }
  for (int t = 0; t < tensors; ++t) {
    float& most = largest[groups.tensor(t)];
    for (int c = 0; c < graph.tensors[t].channels; ++c) most = std::max(most, activation[groups.channel(t, c)]);
  }

  const auto divisors = [&](int t) {
    std::vector<float> result(graph.tensors[t].channels, 1.0f);
    const float most = largest[groups.tensor(t)];
    for (int c = 0; c < graph.tensors[t].channels && most > 0; ++c) {
      const int channel = groups.channel(t, c);
      if (!groups.fixed(t, c)) result[c] = divisor(activation[channel], weight[channel], most);
    }
    return result;
  };
  for (Layer& layer : graph.layers) {
    if (layer.kind != Layer::Kind::conv && layer.kind != Layer::Kind::pointwise) continue;
    const auto in = divisors(layer.input), out = divisors(layer.output);
    if (layer.kind == Layer::Kind::conv) scale_weights(layer, in, out);
    if (layer.kind == Layer::Kind::pointwise) {
      for (size_t c = 0; c < out.size(); ++c) layer.offset[c] /= out[c];
    }
  }
}

}  // namespace facetrain
