#include "quant/layer_graph.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>

#include "counted.h"
#include "error.h"

namespace facetrain {
namespace {

[[noreturn]] void refuse(const std::string& layer, const std::string& found, const std::string& allowed) {
  throw Error("InvalidModel", "layer '" + layer + "'", found, allowed);
}

void expect_size(const Layer& layer, const char* what, const std::vector<float>& values, int64_t size) {
  if (static_cast<int64_t>(values.size()) != size) {
    refuse(layer.name, std::string(what) + " has " + counted(values.size(), "value"),
           "its input and output want " + std::to_string(size));
  }
  for (const float value : values) {
    if (!std::isfinite(value))
      refuse(layer.name, std::string(what) + " holds " + std::to_string(value), "finite numbers only");
  }
}

// Bounds of the integers with which the kernels compute sizes and sums. The extents keep every sum of a position, a pad
// and a dilated kernel within an int. A pool sums `area` integers of up to 127.
constexpr int64_t kLargestExtent = 1 << 14, kLargestArea = 1 << 24;
static_assert(kLargestArea * kOtherLimit <= INT32_MAX);
static_assert(kLargestExtent * kLargestExtent + 3 * kLargestExtent <= INT32_MAX);

void expect_window(const Layer& layer) {
  const auto check = [&](const char* what, const auto& values, int64_t least) {
    for (const int value : values) {
      if (value < least || value > kLargestExtent)
        refuse(layer.name, std::string(what) + " of " + std::to_string(value),
               std::to_string(least) + " to " + std::to_string(kLargestExtent));
    }
  };
  check("a kernel", layer.shape.kernel, 1);
  check("a stride", layer.shape.strides, 1);
  check("a dilation", layer.shape.dilations, 1);
  check("a pad", layer.shape.pads, 0);
}

void expect_area(const std::string& name, const Tensor& tensor) {
  const int64_t area = int64_t{tensor.height} * tensor.width;
  if (tensor.height > kLargestExtent || tensor.width > kLargestExtent || area > kLargestArea ||
      area * tensor.channels > INT32_MAX)
    refuse(name,
           "a tensor of " + std::to_string(tensor.channels) + " x " + std::to_string(tensor.height) + " x " +
               std::to_string(tensor.width),
           "at most " + std::to_string(kLargestExtent) + " rows and columns, 2^24 pixels and 2^31 numbers");
}

int64_t product(const std::vector<int64_t>& dims) {
  int64_t count = 1;
  for (const int64_t dim : dims) count = dim < 1 || dim > INT32_MAX || count > INT32_MAX ? -1 : count * dim;
  return count;
}

// Sets the output's sizes from those that the node declares. What the operators compute is compared with it where they
// run (NodeRunner).
void infer_node(Layer& layer, const std::vector<Tensor>& tensors, Tensor& result) {
  if (layer.node.steps.empty() || layer.node.input_dims.size() != layer.inputs.size())
    refuse(layer.name, "dimensions of " + counted(layer.node.input_dims.size(), "input"), "those of all its inputs");
  for (size_t i = 0; i < layer.inputs.size(); ++i) {
    const Tensor& tensor = tensors[layer.inputs[i]];
    if (product(layer.node.input_dims[i]) != tensor.size())
      refuse(layer.name, "other dimensions of '" + tensor.name + "' than it has", "as many numbers");
  }
  const auto& dims = layer.node.output_dims;
  if (product(dims) < 1 || dims.empty() || (!layer.real && dims.size() != 4 && dims.size() != 2))
    refuse(layer.name, "an output of " + counted(dims.size(), "dimension"), "[1, C, H, W] or [1, d]");
  const bool is_map = dims.size() == 4 && dims[0] == 1;
  result.channels = static_cast<int>(is_map ? dims[1] : product(dims));
  result.height = static_cast<int>(is_map ? dims[2] : 1);
  result.width = static_cast<int>(is_map ? dims[3] : 1);
}

// Completes a convolution's shape, checks the layer's numbers, and returns the output tensor.
Tensor infer_output(Layer& layer, const std::vector<Tensor>& tensors) {
  const Tensor& input = tensors[layer.input];
  Tensor result{.name = layer.output_name,
                .channels = input.channels,
                .height = input.height,
                .width = input.width,
                .producer = -1,
                .readers = {},
                .operand = false};
  switch (layer.kind) {
    case Layer::Kind::conv: {
      ConvShape& s = layer.shape;
      s.in_channels = input.channels;
      s.in_height = input.height;
      s.in_width = input.width;
      if (layer.fully_connected) s.kernel = {input.height, input.width};
      if (s.group < 1 || s.in_channels % s.group != 0 || s.out_channels < 1 || s.out_channels % s.group != 0) {
        refuse(layer.name,
               std::to_string(s.in_channels) + " input and " + std::to_string(s.out_channels) + " output channels in " +
                   counted(s.group, "group"),
               "groups must divide both");
      }
      expect_window(layer);
      if (s.filter() > kLargestFilter) {
        refuse(layer.name, "filters of " + std::to_string(s.filter()) + " weights",
               "at most " + std::to_string(kLargestFilter) + ", so that the sum of their products fits 32 bits");
      }
      if (s.out_height() < 1 || s.out_width() < 1) {
        refuse(layer.name, "its kernel is larger than its padded input", "an output of one pixel at least");
      }
      expect_size(layer, "weight", layer.weight, s.weights());
      expect_size(layer, "bias", layer.bias, s.out_channels);
      result.channels = s.out_channels;
      result.height = s.out_height();
      result.width = s.out_width();
      break;
    }
    case Layer::Kind::pointwise:
      expect_size(layer, "positive", layer.positive, input.channels);
      expect_size(layer, "negative", layer.negative, input.channels);
      expect_size(layer, "offset", layer.offset, input.channels);
      break;
    case Layer::Kind::add:
      break;
    case Layer::Kind::pool:
      result.height = result.width = 1;
      break;
    case Layer::Kind::node:
      infer_node(layer, tensors, result);
      break;
  }
  return result;
}

}  // namespace

LayerGraph::LayerGraph(Tensor input, std::vector<Layer> ordered_layers, const std::vector<std::string>& output_names)
    : layers(std::move(ordered_layers)) {
  expect_area(input.name, input);
  std::map<std::string, int> by_name{{input.name, 0}};
  tensors.push_back(std::move(input));
  for (int l = 0; l < static_cast<int>(layers.size()); ++l) {
    Layer& layer = layers[l];
    layer.inputs.clear();  // of a layer of another graph
    for (const std::string& name : layer.input_names) {
      const auto found = by_name.find(name);
      if (found == by_name.end()) refuse(layer.name, "reads '" + name + "'", "an output of an earlier layer");
      auto& readers = tensors[found->second].readers;
      if (readers.empty() || readers.back() != l) readers.push_back(l);
      if (layer.kind == Layer::Kind::conv) tensors[found->second].operand = true;
      layer.inputs.push_back(found->second);
    }
    layer.input = layer.inputs.at(0);
    if (layer.kind == Layer::Kind::add) {
      layer.second = layer.inputs.at(1);
      const Tensor &a = tensors[layer.input], &b = tensors[layer.second];
      if (a.channels != b.channels || a.height != b.height || a.width != b.width) {
        refuse(layer.name, "adds '" + a.name + "' and '" + b.name + "' of different shapes", "one shape");
      }
    }
    Tensor result = infer_output(layer, tensors);
    expect_area(layer.name, result);
    result.producer = l;
    layer.output = static_cast<int>(tensors.size());
    if (!by_name.emplace(result.name, layer.output).second) {
      refuse(layer.name, "writes '" + result.name + "', which exists already", "a name that no other tensor has");
    }
    tensors.push_back(std::move(result));
  }
  for (const std::string& name : output_names) {
    const auto found = by_name.find(name);
    if (found == by_name.end() || found->second == 0) {
      throw Error("InvalidModel", "output '" + name + "'", "no layer writes it", "the output of a layer");
    }
    if (!tensors[found->second].readers.empty()) {
      throw Error("InvalidModel", "output '" + name + "'", "a layer reads it", "an output that no layer reads");
    }
    outputs.push_back(found->second);
  }
  if (output_size() > INT32_MAX) throw Error("InvalidModel", "outputs", "more than 2^31 numbers a picture", "fewer");
  mark_quantized();
  share_scales();
}

bool LayerGraph::is_output(int tensor) const {
  return std::find(outputs.begin(), outputs.end(), tensor) != outputs.end();
}

int64_t LayerGraph::output_size() const {
  int64_t size = 0;
  for (const int output : outputs) size += tensors[output].size();
  return size;
}

void LayerGraph::mark_quantized() {
  for (Tensor& tensor : tensors) {
    tensor.quantized =
        std::any_of(tensor.readers.begin(), tensor.readers.end(), [&](int l) { return !layers[l].real; });
  }
}

// Gives the input and the output of a layer that only moves numbers one scale, so that it rounds nothing, and one
// limit.
void LayerGraph::share_scales() {
  for (size_t t = 0; t < tensors.size(); ++t) tensors[t].scale_of = static_cast<int>(t);
  for (const Layer& layer : layers) {
    const bool moves = layer.kind == Layer::Kind::node && layer.inputs.size() == 1 &&
                       std::all_of(layer.node.steps.begin(), layer.node.steps.end(), moves_numbers);
    if (moves && quantized(layer.input) && quantized(layer.output))
      tensors[layer.output].scale_of = tensors[layer.input].scale_of;
  }
  for (const Tensor& tensor : tensors) {
    if (tensor.operand) tensors[tensor.scale_of].operand = true;
  }
  for (Tensor& tensor : tensors) tensor.operand = tensors[tensor.scale_of].operand;
}

}  // namespace facetrain
