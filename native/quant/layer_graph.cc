#include "quant/layer_graph.h"

#include <cmath>
#include <cstdint>
#include <map>

#include "error.h"

namespace facetrain {
namespace {

[[noreturn]] void refuse(const std::string& layer, const std::string& found, const std::string& allowed) {
  throw Error("InvalidModel", "layer '" + layer + "'", found, allowed);
}

void expect_size(const Layer& layer, const char* what, const std::vector<float>& values, int64_t size) {
  if (static_cast<int64_t>(values.size()) != size) {
    refuse(layer.name, std::string(what) + " has " + std::to_string(values.size()) + " values",
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

// Completes a convolution's shape, checks the layer's numbers, and returns the output tensor.
Tensor infer_output(Layer& layer, const Tensor& input) {
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
                   std::to_string(s.group) + " groups",
               "groups must divide both");
      }
      expect_window(layer);
      if (const int64_t filter = int64_t{s.group_in()} * s.taps(); filter > kLargestFilter) {
        refuse(layer.name, "filters of " + std::to_string(filter) + " weights",
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
  }
  return result;
}

}  // namespace

LayerGraph::LayerGraph(Tensor input, std::vector<Layer> ordered_layers, const std::string& output_name)
    : layers(std::move(ordered_layers)) {
  expect_area(input.name, input);
  std::map<std::string, int> by_name{{input.name, 0}};
  tensors.push_back(std::move(input));
  for (int l = 0; l < static_cast<int>(layers.size()); ++l) {
    Layer& layer = layers[l];
    const auto resolve = [&](const std::string& name) {
      const auto found = by_name.find(name);
      if (found == by_name.end()) refuse(layer.name, "reads '" + name + "'", "an output of an earlier layer");
      tensors[found->second].readers.push_back(l);
      if (layer.kind == Layer::Kind::conv) tensors[found->second].operand = true;
      return found->second;
    };
    layer.input = resolve(layer.input_names.at(0));
    if (layer.kind == Layer::Kind::add) {
      layer.second = resolve(layer.input_names.at(1));
      const Tensor &a = tensors[layer.input], &b = tensors[layer.second];
      if (a.channels != b.channels || a.height != b.height || a.width != b.width) {
        refuse(layer.name, "adds '" + a.name + "' and '" + b.name + "' of different shapes", "one shape");
      }
    }
    Tensor result = infer_output(layer, tensors[layer.input]);
    expect_area(layer.name, result);
    result.producer = l;
    layer.output = static_cast<int>(tensors.size());
    if (!by_name.emplace(result.name, layer.output).second) {
      refuse(layer.name, "writes '" + result.name + "', which exists already", "a name that no other tensor has");
    }
    tensors.push_back(std::move(result));
  }
  const auto found = by_name.find(output_name);
  if (found == by_name.end() || found->second == 0) {
    throw Error("InvalidModel", "output '" + output_name + "'", "no layer writes it", "the output of a layer");
  }
  output = found->second;
  if (!tensors[output].readers.empty()) {
    throw Error("InvalidModel", "output '" + output_name + "'", "a layer reads it", "an output that no layer reads");
  }
}

}  // namespace facetrain
