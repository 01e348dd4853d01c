#include "int7/onnx_reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>

#include "int7/protobuf.h"
#include "kernels/conv.h"

namespace facetrain::int7 {
namespace {

// As quant/layer_graph.cc: with these, no size or sum of the runtime overflows.
constexpr int64_t kLargestExtent = 1 << 14, kLargestArea = 1 << 24;
constexpr int kActivationZero = 128;
constexpr size_t kMostLayers = 4096;
constexpr int64_t kMostColors = 4;  // channels of a picture: ft_int7_info has room for their means
// With these, no product or quotient of scales, slopes and offsets is infinite. A filter of zeros may have a smaller
// scale.
constexpr float kLeastScale = 1e-12f, kLargestNumber = 1e12f;
enum DataType { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6 };

[[noreturn]] void refuse(std::string_view subject, const std::string& found) {
  throw std::invalid_argument(std::string(subject) + ": " + found + "; a model.int7.onnx of Facetrain is wanted");
}

struct Constant {
  int type = 0;
  std::vector<int64_t> dims;
  std::string_view raw;
  bool external = false;

  int64_t count(std::string_view name) const {
    int64_t count = 1;
    for (const int64_t dim : dims) {
      if (dim < 1 || dim > INT32_MAX || count > INT32_MAX / dim) refuse(name, "has impossible sizes");
      count *= dim;
    }
    return count;
  }
};

struct Node {
  std::string_view name, op;
  std::vector<std::string_view> inputs, outputs;
  std::map<std::string_view, std::vector<int64_t>> integers;
  std::map<std::string_view, float> reals;
  std::map<std::string_view, std::string_view> strings;
};

// Integers of weights or biases with a scale for each output channel.
struct Weights {
  const Constant* values;
  std::vector<float> scales;
};

// A value of the graph: a tensor of the network, or its flattened form.
struct Value {
  int tensor = -1;
  bool flat = false;
};

Constant read_constant(std::string_view bytes, std::string_view& name) {
  Constant constant;
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 1)
      field.integers([&](int64_t dim) {
        if (constant.dims.size() == 8) refuse("a constant", "has more than eight dimensions");
        constant.dims.push_back(dim);
      });
    if (field.number() == 2) constant.type = static_cast<int>(field.integer());
    if (field.number() == 8) name = field.bytes();
    if (field.number() == 9) constant.raw = field.bytes();
    if (field.number() == 14) constant.external = field.integer() != 0;
  }
  return constant;
}

Node read_node(std::string_view bytes) {
  Node node;
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 1) node.inputs.push_back(field.bytes());
    if (field.number() == 2) node.outputs.push_back(field.bytes());
    if (field.number() == 3) node.name = field.bytes();
    if (field.number() == 4) node.op = field.bytes();
    if (field.number() != 5) continue;
    std::string_view name, text;
    std::vector<int64_t> integers;
    float real = 0;
    for (Protobuf part(field.bytes()); part.next();) {
      if (part.number() == 1) name = part.bytes();
      if (part.number() == 2) real = part.real();
      if (part.number() == 3) integers.push_back(part.integer());
      if (part.number() == 4) text = part.bytes();
      if (part.number() == 8)
        part.integers([&](int64_t value) {
          if (integers.size() < 16) integers.push_back(value);
        });
    }
    node.integers[name] = std::move(integers);
    node.reals[name] = real;
    node.strings[name] = text;
  }
  return node;
}

// Name and sizes of a graph's input or output; a size that is free is -1.
std::string_view read_value_info(std::string_view bytes, std::vector<int64_t>& dims) {
  std::string_view name;
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 1) name = field.bytes();
    if (field.number() != 2) continue;
    for (Protobuf type(field.bytes()); type.next();) {
      if (type.number() != 1) continue;
      for (Protobuf tensor(type.bytes()); tensor.next();) {
        if (tensor.number() == 1 && tensor.integer() != kFloat) refuse(name, "is not of float32");
        if (tensor.number() != 2) continue;
        for (Protobuf shape(tensor.bytes()); shape.next();) {
          if (shape.number() != 1) continue;
          int64_t size = -1;
          for (Protobuf dim(shape.bytes()); dim.next();) {
            if (dim.number() == 1) size = dim.integer();
          }
          if (dims.size() == 8) refuse(name, "has more than eight dimensions");
          dims.push_back(size);
        }
      }
    }
  }
  return name;
}

class Reader {
 public:
  OnnxModel read(const uint8_t* data, size_t size) {
    weights_left_ = static_cast<int64_t>(size);
    std::string_view graph;
    for (Protobuf field(data, size); field.next();) {
      if (field.number() == 7) graph = field.bytes();
      if (field.number() != 14) continue;
      std::string_view key, value;
      for (Protobuf pair(field.bytes()); pair.next();) {
        if (pair.number() == 1) key = pair.bytes();
        if (pair.number() == 2) value = pair.bytes();
      }
      metadata_[key] = value;
    }
    if (metadata_["facetrain.format"] != "int7") refuse("the file", "has no metadata facetrain.format = int7");
    if (metadata_.count("facetrain.input.layout") || metadata_.count("facetrain.input.elementType"))
      refuse("the file", "reads channels last or bytes, which the C library does not know");
    read_graph(graph);
    network_.tensors[0].limit = 127;
    for (const LayerSpec& layer : network_.layers) {
      if (layer.kind == LayerSpec::Kind::conv) network_.tensors[layer.inputs[0]].limit = kLargestOperand;
    }
    finish_tensors();
    read_pixels();
    model_.color_order = metadata_["facetrain.channelOrder"];
    if (model_.color_order != "rgb" && model_.color_order != "bgr") model_.color_order.clear();
    model_.network = std::move(network_);
    return std::move(model_);
  }

 private:
  void read_graph(std::string_view graph) {
    std::vector<std::string_view> nodes, outputs;
    std::string_view input;
    for (Protobuf field(graph); field.next();) {
      if (field.number() == 1) nodes.push_back(field.bytes());
      if (field.number() == 5) {
        std::string_view name;
        Constant constant = read_constant(field.bytes(), name);
        constants_[name] = std::move(constant);
      }
      if (field.number() == 11) {
        std::vector<int64_t> dims;
        if (!input.empty()) refuse("the graph", "has several inputs");
        input = read_value_info(field.bytes(), dims);
        if (dims.size() != 4) refuse("the input", "is not [N, channels, height, width]");
        if (dims[1] > kMostColors) refuse("the input", "has more than four channels");
        add_tensor(input, dims[1], dims[2], dims[3]);
      }
      if (field.number() == 12) {
        std::vector<int64_t> dims;
        outputs.push_back(read_value_info(field.bytes(), dims));
      }
    }
    if (network_.tensors.empty() || outputs.size() != 1) refuse("the graph", "has not one input and one output");
    channels_ = network_.tensors[0].channels;
    scale_.assign(channels_, 1);
    offset_.assign(channels_, 0);
    real_[input] = {0, false};
    for (const std::string_view bytes : nodes) read_node_into(read_node(bytes));
    const auto output = real_.find(outputs[0]);
    if (output == real_.end() || output->second.tensor == 0) refuse("the output", "is not computed by a layer");
    network_.outputs = {output->second.tensor};
  }

  int add_tensor(std::string_view name, int64_t channels, int64_t height, int64_t width) {
    const bool fits = channels >= 1 && height >= 1 && width >= 1 && channels <= INT32_MAX && height <= kLargestExtent &&
                      width <= kLargestExtent && height * width <= kLargestArea &&
                      height * width * channels <= INT32_MAX / 8;
    if (!fits) refuse(name, "has sizes that are too large or less than one");
    network_.tensors.push_back({.channels = static_cast<int>(channels),
                                .height = static_cast<int>(height),
                                .width = static_cast<int>(width),
                                .real = true});
    return static_cast<int>(network_.tensors.size()) - 1;
  }

  const std::string_view& input(const Node& node, size_t index) const {
    if (index >= node.inputs.size()) refuse(node.name, "lacks an input");
    return node.inputs[index];
  }
  std::string_view output(const Node& node) const {
    if (node.outputs.size() != 1) refuse(node.name, "has not one output");
    return node.outputs[0];
  }

  const Constant& constant(std::string_view name, int type, int64_t count = -1) const {
    const auto found = constants_.find(name);
    if (found == constants_.end() || found->second.external) refuse(name, "is no constant inside the file");
    const Constant& result = found->second;
    const int64_t numbers = result.count(name), bytes = numbers * (type == kFloat || type == kInt32 ? 4 : 1);
    if (result.type != type || (count >= 0 && numbers != count) || static_cast<int64_t>(result.raw.size()) != bytes)
      refuse(name, "has another type or number of values");
    return result;
  }
  template <typename T>
  static std::vector<T> numbers(const Constant& constant) {
    std::vector<T> result(constant.raw.size() / sizeof(T));
    std::memcpy(result.data(), constant.raw.data(), result.size() * sizeof(T));
    return result;
  }
  std::vector<float> floats(std::string_view name, int64_t count = -1) const {
    std::vector<float> result = numbers<float>(constant(name, kFloat, count));
    if (!std::all_of(result.begin(), result.end(), [](float x) { return std::isfinite(x); }))
      refuse(name, "has a value that is not finite");
    return result;
  }
  // Of slopes, factors and offsets.
  std::vector<float> bounded(std::string_view name, int64_t count) const {
    std::vector<float> result = floats(name, count);
    if (!std::all_of(result.begin(), result.end(), [](float x) { return std::abs(x) <= kLargestNumber; }))
      refuse(name, "has a value beyond 1e12");
    return result;
  }
  // Of weights and biases.
  std::vector<float> scales(std::string_view name, int64_t count) const {
    std::vector<float> result = floats(name, count);
    if (!std::all_of(result.begin(), result.end(), [](float x) { return x > 0; }))
      refuse(name, "has a scale that is not positive");
    return result;
  }
  // Of a tensor.
  float scale(std::string_view name) const {
    const float result = scales(name, 1)[0];
    if (result < kLeastScale || result > kLargestNumber) refuse(name, "is a scale outside 1e-12 to 1e12");
    return result;
  }

  // An attribute that the runtime computes with one value alone, which is also its default.
  static void refuse_integer(const Node& node, const char* name, int64_t computed) {
    const auto found = node.integers.find(name);
    if (found == node.integers.end()) return;
    const int64_t value = found->second.empty() ? 0 : found->second[0];
    if (value != computed) refuse(node.name, "has " + std::string(name) + " " + std::to_string(value));
  }
  static void refuse_real(const Node& node, const char* name, float computed) {
    const auto found = node.reals.find(name);
    if (found != node.reals.end() && found->second != computed)
      refuse(node.name, "has " + std::string(name) + " " + std::to_string(found->second));
  }

  void read_node_into(const Node& node) {
    if (node.op == "QuantizeLinear") return quantize(node);
    if (node.op == "DequantizeLinear") return dequantize(node);
    if (node.op == "Flatten") return flatten(node);
    const auto head = real_.find(input(node, 0));
    if ((node.op == "Mul" || node.op == "Add") && head != real_.end() && head->second.tensor == 0) {
      // The layers read the quantized picture, so this would not reach them.
      if (!network_.tensors[0].real) refuse(node.name, "computes with the picture after its quantization");
      real_.erase(head);  // One chain of nodes: none reads what another has read.
      return read_head(node);
    }
    add_layer(node);
  }

  // A factor or an offset between the picture and the first layer.
  void read_head(const Node& node) {
    const std::vector<float> values = bounded(input(node, 1), channels_);
    for (int c = 0; c < channels_; ++c) {
      if (node.op == "Mul") scale_[c] *= values[c], offset_[c] *= values[c];
      if (node.op == "Add") offset_[c] += values[c];
    }
    real_[output(node)] = {0, false};
  }

  void quantize(const Node& node) {
    const auto value = real_.find(input(node, 0));
    if (value == real_.end()) refuse(node.name, "quantizes what no layer computes");
    const float scale = this->scale(input(node, 1));
    if (numbers<uint8_t>(constant(input(node, 2), kUint8, 1))[0] != kActivationZero)
      refuse(node.name, "has another zero point than 128");
    TensorSpec& tensor = network_.tensors[value->second.tensor];
    if (!tensor.real && tensor.scale != scale) refuse(node.name, "gives a tensor a second scale");
    tensor.real = false;
    tensor.scale = scale;
    integers_[output(node)] = value->second;
  }

  void dequantize(const Node& node) {
    const auto value = integers_.find(input(node, 0));
    if (value != integers_.end()) {
      if (scale(input(node, 1)) != network_.tensors[value->second.tensor].scale)
        refuse(node.name, "has another scale than the quantization");
      dequantized_[output(node)] = value->second;
      return;
    }
    const auto found = constants_.find(input(node, 0));
    if (found == constants_.end() || found->second.dims.empty())
      refuse(node.name, "reads neither integers nor a constant");
    const Constant& values = constant(input(node, 0), found->second.type == kInt32 ? kInt32 : kInt8);
    if (node.inputs.size() > 2) {
      for (const char zero : constant(input(node, 2), values.type, values.dims[0]).raw) {
        if (zero != 0) refuse(node.name, "has a zero point that is not 0");
      }
    }
    const auto axis = node.integers.find("axis");  // The default is 1.
    if (axis == node.integers.end() || (!axis->second.empty() && axis->second[0] != 0))
      refuse(node.name, "has scales along another axis than that of the outputs");
    weights_[output(node)] = {&values, scales(input(node, 1), values.dims[0])};
  }

  void flatten(const Node& node) {
    refuse_integer(node, "axis", 1);
    for (auto* values : {&dequantized_, &real_}) {
      const auto found = values->find(input(node, 0));
      if (found == values->end()) continue;
      // Behind it comes another pair of quantization with the same scale, so the value counts as real again.
      real_[output(node)] = {found->second.tensor, true};
      return;
    }
    refuse(node.name, "reads what no layer computes");
  }

  Value operand(const Node& node, size_t index) const {
    const auto found = dequantized_.find(input(node, index));
    if (found == dequantized_.end()) refuse(node.name, "reads '" + std::string(input(node, index)) + "' unquantized");
    return found->second;
  }

  void add_layer(const Node& node) {
    if (network_.layers.size() == kMostLayers) refuse("the graph", "has more than 4096 layers");
    const Value x = operand(node, 0);
    const TensorSpec from = network_.tensors[x.tensor];
    LayerSpec layer;
    layer.name = std::string(node.name);
    layer.inputs = {x.tensor};
    int64_t channels = from.channels, height = from.height, width = from.width;
    bool flat = x.flat;
    if (node.op == "Conv" || node.op == "Gemm") {
      read_convolution(node, from, flat, layer);
      channels = layer.shape.out_channels;
      height = layer.shape.out_height();
      width = layer.shape.out_width();
    } else if (node.op == "PRelu" || node.op == "BatchNormalization") {
      if (flat && from.area() != 1) refuse(node.name, "reads a flattened map");
      read_pointwise(node, from, layer);
    } else if (node.op == "Add") {
      const TensorSpec other = network_.tensors[operand(node, 1).tensor];
      if (other.channels != from.channels || other.height != from.height || other.width != from.width)
        refuse(node.name, "adds tensors of different sizes");
      layer.kind = LayerSpec::Kind::add;
      layer.inputs.push_back(operand(node, 1).tensor);
    } else if (node.op == "GlobalAveragePool") {
      layer.kind = LayerSpec::Kind::pool;
      height = width = 1;
    } else {
      refuse(node.name, "is a " + std::string(node.op) + ", which the C library does not know");
    }
    layer.output = add_tensor(node.name, channels, height, width);
    real_[output(node)] = {layer.output, flat};
    network_.layers.push_back(std::move(layer));
  }

  void read_convolution(const Node& node, const TensorSpec& from, bool& flat, LayerSpec& layer) {
    const auto weight = weights_.find(input(node, 1)), bias = weights_.find(input(node, 2));
    if (weight == weights_.end() || bias == weights_.end() || weight->second.values->type != kInt8 ||
        bias->second.values->type != kInt32)
      refuse(node.name, "has no integer weights and bias");
    const auto& dims = weight->second.values->dims;
    ConvShape& s = layer.shape;
    s.in_channels = from.channels;
    s.in_height = from.height;
    s.in_width = from.width;
    const auto set = [&](const char* name, auto& values, int64_t least) {
      const auto found = node.integers.find(name);
      if (found == node.integers.end()) return;
      if (found->second.size() != values.size()) refuse(node.name, std::string("has a wrong number of ") + name);
      for (size_t i = 0; i < values.size(); ++i) {
        const int64_t value = found->second[i];
        if (value < least || value > kLargestExtent) refuse(node.name, std::string("has impossible ") + name);
        values[i] = static_cast<int>(value);
      }
    };
    if (node.op == "Gemm") {
      const auto transposed = node.integers.find("transB");
      if (!flat && from.area() != 1) refuse(node.name, "reads a map that is not flattened");
      if (dims.size() != 2 || dims[1] != from.size() || transposed == node.integers.end() ||
          transposed->second != std::vector<int64_t>{1})
        refuse(node.name, "has weights that do not fit its input");
      refuse_integer(node, "transA", 0);
      refuse_real(node, "alpha", 1);
      refuse_real(node, "beta", 1);
      s.kernel = {from.height, from.width};
      flat = true;
    } else {
      if (dims.size() != 4 || flat) refuse(node.name, "has weights that do not fit its input");
      std::array<int, 1> group{1};
      set("group", group, 1);
      set("strides", s.strides, 1);
      set("dilations", s.dilations, 1);
      set("pads", s.pads, 0);
      s.group = group[0];
      if (s.in_channels % s.group != 0 || dims[0] % s.group != 0 || dims[1] != s.in_channels / s.group ||
          dims[2] > kLargestExtent || dims[3] > kLargestExtent)
        refuse(node.name, "has weights that do not fit its input");
      s.kernel = {static_cast<int>(dims[2]), static_cast<int>(dims[3])};
      std::array<int, 2> kernel = s.kernel;
      set("kernel_shape", kernel, 1);
      if (kernel != s.kernel) refuse(node.name, "has another kernel_shape than its weights");
      const auto padding = node.strings.find("auto_pad");
      if (padding != node.strings.end() && padding->second != "NOTSET")
        refuse(node.name, "has auto_pad " + std::string(padding->second));
    }
    s.out_channels = static_cast<int>(dims[0]);
    if (int64_t{s.group_in()} * s.kernel[0] * s.kernel[1] > kLargestFilter || s.out_height() < 1 || s.out_width() < 1)
      refuse(node.name, "has a filter that is too large");
    layer.kind = LayerSpec::Kind::conv;
    // Every layer has its own weights, so a small file cannot ask for many copies.
    weights_left_ -= static_cast<int64_t>(weight->second.values->raw.size());
    if (weights_left_ < 0) refuse(node.name, "has the weights of another layer");
    layer.weights = numbers<int8_t>(*weight->second.values);
    layer.bias = numbers<int32_t>(*bias->second.values);
    layer.weight_scales = weight->second.scales;
    if (!std::all_of(layer.weight_scales.begin(), layer.weight_scales.end(),
                     [](float x) { return x <= kLargestNumber; }))
      refuse(node.name, "has a scale of weights beyond 1e12");
    // One scale for each bias: a bias of [1, outputs] has one in all.
    if (bias->second.values->dims.size() != 1 || static_cast<int64_t>(layer.bias.size()) != dims[0] ||
        bias->second.scales.size() != layer.bias.size())
      refuse(node.name, "has a bias of another size");
    for (const int8_t w : layer.weights) {
      if (std::abs(int{w}) > kLargestOperand) refuse(node.name, "has a weight beyond 63");
    }
    for (const int32_t b : layer.bias) {
      if (std::abs(int64_t{b}) > kLargestBias) refuse(node.name, "has a bias beyond 2^30");
    }
    for (size_t o = 0; o < layer.bias.size(); ++o) {
      if (bias->second.scales[o] != from.scale * layer.weight_scales[o])
        refuse(node.name, "has a bias of another scale than its products");
    }
  }

  void read_pointwise(const Node& node, const TensorSpec& from, LayerSpec& layer) {
    layer.kind = LayerSpec::Kind::pointwise;
    // As for weights: every layer has its own slopes.
    weights_left_ -= int64_t{4} * from.channels;
    if (weights_left_ < 0) refuse(node.name, "has the slopes of another layer");
    if (node.op == "PRelu") {
      layer.positive.assign(from.channels, 1);
      layer.negative = bounded(input(node, 1), from.channels);
      layer.offset.assign(from.channels, 0);
      return;
    }
    refuse_integer(node, "training_mode", 0);
    layer.positive = layer.negative = bounded(input(node, 1), from.channels);
    layer.offset = bounded(input(node, 2), from.channels);
    const std::vector<float> mean = floats(input(node, 3), from.channels),
                             variance = floats(input(node, 4), from.channels);
    const auto epsilon = node.reals.find("epsilon");
    const bool plain = std::all_of(mean.begin(), mean.end(), [](float x) { return x == 0; }) &&
                       std::all_of(variance.begin(), variance.end(), [](float x) { return x == 1; }) &&
                       epsilon != node.reals.end() && epsilon->second == 0;
    if (!plain) refuse(node.name, "has statistics, which Facetrain folds");
  }

  // Layers without weights that write the output compute real numbers.
  void finish_tensors() {
    for (size_t t = 0; t < network_.tensors.size(); ++t) {
      if (network_.tensors[t].real && static_cast<int>(t) != network_.outputs[0])
        refuse("the graph", "has a tensor that is not quantized, and not its output");
    }
    if (!network_.tensors[network_.outputs[0]].real) refuse("the output", "is read by a layer");
    LayerSpec& last = *std::find_if(network_.layers.begin(), network_.layers.end(),
                                    [&](const LayerSpec& layer) { return layer.output == network_.outputs[0]; });
    if (last.kind != LayerSpec::Kind::conv)
      refuse(last.name, "ends the network without weights, which the C library does not know");
  }

  std::vector<double> from_metadata(const char* key) const {
    std::vector<double> values;
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) return std::vector<double>(channels_, 127.5);
    const std::string_view text = found->second.substr(0, 1000);
    for (const char *at = text.data(), *last = at + text.size(); at != last;) {
      double value = std::numeric_limits<double>::infinity();  // kept if the number is too large
      const char* end = std::from_chars(at, last, value).ptr;  // the same in every locale
      if (end != at) values.push_back(value);
      at = end != at ? end : at + 1;
    }
    if (values.size() == 1) values.assign(channels_, values[0]);
    const bool finite = std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
    if (static_cast<int>(values.size()) != channels_ || !finite) refuse(key, "is not a number for each channel");
    return values;
  }

  // As api/src/input-range.ts's rangeBehind and pixel_range.h.
  void read_pixels() {
    model_.mean = from_metadata("facetrain.input.mean");
    model_.std = from_metadata("facetrain.input.std");
    const TensorSpec& picture = network_.tensors[0];
    for (int c = 0; c < channels_; ++c) {
      if (scale_[c] == 0 || model_.std[c] == 0) refuse("the input", "has a range of zero");
      const auto mean = static_cast<float>(model_.mean[c] - offset_[c] * model_.std[c] / scale_[c]);
      const auto std = static_cast<float>(model_.std[c] / scale_[c]);
      for (int byte = 0; byte < 256; ++byte) {
        const float value = (static_cast<float>(byte) / std - mean / std) / picture.scale;
        const auto limit = static_cast<float>(picture.limit);
        if (std::isnan(value)) refuse("the input", "has a range without numbers");
        network_.pixels.push_back(static_cast<int8_t>(std::nearbyint(std::clamp(value, -limit, limit))));
      }
    }
  }

  OnnxModel model_;
  Network network_;
  int64_t weights_left_ = 0;  // bytes
  int channels_ = 0;
  std::vector<double> scale_, offset_;  // of the head
  std::map<std::string_view, std::string_view> metadata_;
  std::map<std::string_view, Constant> constants_;
  std::map<std::string_view, Weights> weights_;
  // Values by name: as layers compute them, quantized, and dequantized.
  std::map<std::string_view, Value> real_, integers_, dequantized_;
};

}  // namespace

OnnxModel read_onnx(const uint8_t* data, size_t size) { return Reader().read(data, size); }

}  // namespace facetrain::int7
