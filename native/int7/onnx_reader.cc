#include "int7/onnx_reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

#include "int7/onnx_file.h"
#include "int7/prelu_parts.h"
#include "kernels/conv.h"

namespace facetrain::int7 {
namespace {

using Constant = OnnxConstant;
using Node = OnnxNode;

// As quant/layer_graph.cc: with these, no size or sum of the runtime overflows.
constexpr int64_t kLargestExtent = 1 << 14, kLargestArea = 1 << 24;
constexpr int kActivationZero = 128;
constexpr size_t kMostLayers = 4096;
// Of all nodes: operands; and rows, columns and channels of what they compute, for which lists of indices may be made.
constexpr int64_t kMostOperands = 1 << 14, kMostExtents = 1 << 26;
constexpr size_t kMostOutputs = 1024;
constexpr size_t kLongestFunction = 64;  // nodes that are one function of single numbers
constexpr int64_t kMostColors = 4;       // channels of a picture: ft_int7_info has room for their means

// Integers of weights or biases with a scale for each output channel.
struct Weights {
  const Constant* values;
  std::vector<float> scales;
  bool from_end;  // their only axis is counted from the end
};

// A value that nodes read: a tensor with the dimensions that it has for them; or a function of an integer tensor, of
// which no tensor is made until something needs it.
struct Value {
  int tensor = -1;  // of a function: what it reads
  ArrayDims dims;
  bool dequantized = false;        // read behind its pair of quantization
  std::vector<int> function = {};  // ascending indices of the nodes; empty: the tensor itself
  std::string_view name = {};      // of the function's node

  bool is_map() const { return dims.size() == 4 && dims[0] == 1; }
  bool is_flat() const { return dims.size() == 2 && dims[0] == 1; }
};

// A node of a function: its operator, and what its operands are: a node's index, kRoot or a constant's value.
struct FunctionNode {
  static constexpr int kRoot = -1;
  FloatStep step;
  std::vector<int> operands;
};

int64_t count_of_constant(std::string_view name, const Constant& constant) {
  int64_t count = 1;
  for (const int64_t dim : constant.dims) {
    if (dim < 0 || dim > INT32_MAX || (dim > 0 && count > INT32_MAX / dim)) refuse(name, "has impossible sizes");
    count *= dim;
  }
  return count;
}

size_t bytes_of(int type) {
  if (type == kFloat || type == kInt32) return 4;
  return type == kInt64 ? 8 : 1;
}

int64_t attribute_bytes(const FloatStep& step) {
  size_t bytes = 0;
  for (const auto& [name, values] : step.numbers) bytes += name.size() + values.size();
  for (const auto& [name, text] : step.texts) bytes += name.size() + text.size();
  return static_cast<int64_t>(bytes);
}

template <typename T>
std::vector<T> numbers(const Constant& constant) {
  std::vector<T> result(constant.raw.size() / sizeof(T));
  if (!result.empty()) std::memcpy(result.data(), constant.raw.data(), result.size() * sizeof(T));
  return result;
}

class Reader {
 public:
  Reader(const OnnxFile& file, size_t size, PictureSize picture)
      : file_(file),
        bytes_left_(static_cast<int64_t>(size)),
        scale_bytes_left_(bytes_left_),
        node_bytes_left_(bytes_left_) {
    add_picture(picture);
    for (const Node& node : file.nodes) {
      if (node.op != "QuantizeLinear") real_reads_of_.insert(node.inputs.begin(), node.inputs.end());
    }
    real_reads_of_.insert(file.outputs.begin(), file.outputs.end());
    for (const Node& node : join_prelus(file)) read_node(node);
    for (const std::string_view name : file.outputs) add_output(name);
    if (network_.outputs.empty()) refuse("the graph", "has no output");
    check_real_reads();
    set_ranges();
    read_pixels();
  }

  OnnxModel take() && {
    const auto order = file_.metadata.find("facetrain.channelOrder");
    if (order != file_.metadata.end() && (order->second == "rgb" || order->second == "bgr"))
      model_.color_order = std::string(order->second);
    for (const auto& [key, value] : file_.metadata) model_.metadata[std::string(key)] = std::string(value);
    model_.version = file_.version;
    model_.input = std::string(file_.input);
    model_.network = std::move(network_);
    return std::move(model_);
  }

 private:
  void add_picture(PictureSize picture) {
    std::vector<int64_t> dims = file_.input_dims;
    lacks_batch_ = dims.size() == 3;
    if (lacks_batch_) dims.insert(dims.begin(), 1);
    if (dims.size() != 4) refuse("the input", "is not [N, channels, height, width]");
    if (file_.input_type != kFloat && file_.input_type != kUint8) refuse("the input", "is neither float32 nor uint8");
    const auto layout = file_.metadata.find("facetrain.input.layout");
    channels_last_ = !lacks_batch_ && layout != file_.metadata.end() && layout->second == "NHWC";
    const int color = channels_last_ ? 3 : 1, row = channels_last_ ? 1 : 2;
    if (picture.height > 0) dims[row] = picture.height;
    if (picture.width > 0) dims[row + 1] = picture.width;
    if (dims[color] > kMostColors) refuse("the input", "has more than four channels");
    if (dims[row] == -1 || dims[row + 1] == -1) refuse("the input", "has a free height or width, and none was given");
    dims[0] = 1;
    picture_ = file_.input;
    add_tensor(picture_, {1, dims[color], dims[row], dims[row + 1]});
    channels_ = network_.tensors[0].channels;
    scale_.assign(channels_, 1);
    offset_.assign(channels_, 0);
    values_[picture_] = {.tensor = 0, .dims = dims};
  }

  int add_tensor(std::string_view name, const ArrayDims& dims) {
    const bool is_map = dims.size() == 4 && dims[0] == 1;
    const int64_t channels = is_map ? dims[1] : count_of(dims), height = is_map ? dims[2] : 1,
                  width = is_map ? dims[3] : 1;
    const bool fits = channels >= 1 && height >= 1 && width >= 1 && channels <= INT32_MAX / 8 &&
                      height <= kLargestExtent && width <= kLargestExtent && height * width <= kLargestArea &&
                      height * width <= INT32_MAX / 8 / channels;
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

  bool is_constant(std::string_view name) const { return file_.constants.count(name) > 0; }
  const Constant& constant(std::string_view name, int type, int64_t count = -1) const {
    const auto found = file_.constants.find(name);
    if (found == file_.constants.end() || found->second.unreadable)
      refuse(name, "is no constant inside the file, of at most eight dimensions");
    const Constant& result = found->second;
    const int64_t numbers = count_of_constant(name, result);
    if (result.type != type || (count >= 0 && numbers != count) ||
        result.raw.size() != static_cast<size_t>(numbers) * bytes_of(type))
      refuse(name, "has another type or number of values");
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

  // Of an activation, less the 128 that makes a byte of it.
  int zero_point(const Node& node) const {
    return numbers<uint8_t>(constant(input(node, 2), kUint8, 1))[0] - kActivationZero;
  }

  // An attribute that the runtime computes with one value alone, which is also its default.
  static void refuse_other(const Node& node, const char* name, double computed) {
    const auto found = node.numbers.find(name);
    if (found == node.numbers.end()) return;
    const double value = found->second.empty() ? 0 : found->second[0];
    if (value != computed) refuse(node.name, "has " + std::string(name) + " " + std::to_string(value));
  }

  void read_node(const Node& node) {
    if (node.op == "QuantizeLinear") return quantize(node);
    if (node.op == "DequantizeLinear") return dequantize(node);
    const auto picture = values_.find(input(node, 0));
    if (picture != values_.end() && picture->second.tensor == 0 && !picture->second.dequantized &&
        picture->second.function.empty()) {
      const Value value = picture->second;
      if (reads_picture(node, value)) {
        values_.erase(picture);  // One chain of nodes: none reads what another has read.
        return read_head(node, value);
      }
      refuse_file_layout(node);
    }
    if (!view(node)) add_layer(node);
  }

  // ---- Between the picture and the first layer ----

  bool reads_picture(const Node& node, const Value& picture) const {
    if (node.op == "Cast") return true;
    if (node.op == "Transpose" && channels_last_) return true;
    if (node.op == "Unsqueeze" && lacks_batch_) return true;
    if (node.op != "Mul" && node.op != "Add") return false;
    // A number for each pixel is no part of the range.
    const auto by = file_.constants.find(input(node, 1));
    if (by == file_.constants.end() || count_of_constant(by->first, by->second) > channels_) return false;
    // The layers read the quantized picture, so this would not reach them.
    if (!network_.tensors[0].real) refuse(node.name, "computes with the picture after its quantization");
    return picture.tensor == 0;
  }

  // What reads the picture as the network does.
  void refuse_file_layout(const Node& node) const {
    if (channels_last_) refuse(node.name, "reads a picture whose channels are last");
    if (lacks_batch_) refuse(node.name, "reads a picture without a batch");
  }

  void read_head(const Node& node, Value value) {
    if (node.op == "Cast") {
      refuse_other(node, "to", kFloat);
    } else if (node.op == "Transpose") {
      const auto order = node.numbers.find("perm");
      if (order == node.numbers.end() || order->second != std::vector<double>{0, 3, 1, 2})
        refuse(node.name, "is no Transpose to channels first");
      const TensorSpec& picture = network_.tensors[0];
      value.dims = {1, picture.channels, picture.height, picture.width};
      channels_last_ = false;
    } else if (node.op == "Unsqueeze") {
      if (numbers<int64_t>(constant(input(node, 1), kInt64, 1))[0] != 0)
        refuse(node.name, "is no Unsqueeze to a batch of one");
      lacks_batch_ = false;
    } else {
      refuse_file_layout(node);
      const std::vector<float> values = bounded(input(node, 1), channels_);
      for (int c = 0; c < channels_; ++c) {
        if (node.op == "Mul") scale_[c] *= values[c], offset_[c] *= values[c];
        if (node.op == "Add") offset_[c] += values[c];
      }
    }
    values_[output(node)] = value;
  }

  // ---- Pairs of quantization ----

  void quantize(const Node& node) {
    Value& value = tensor_value(node, input(node, 0));
    if (value.tensor == 0) refuse_file_layout(node);
    const float scale = this->scale(input(node, 1));
    const int zero_point = this->zero_point(node);
    if (std::abs(zero_point) > kLargestOperand) refuse(node.name, "has a zero point outside 65 to 191");
    TensorSpec& tensor = network_.tensors[value.tensor];
    zero_points_.resize(network_.tensors.size());
    if (!tensor.real && (tensor.scale != scale || zero_points_[value.tensor] != zero_point))
      refuse(node.name, "gives a tensor a second scale or zero point");
    tensor.real = false;
    tensor.scale = scale;
    zero_points_[value.tensor] = zero_point;
    integers_[output(node)] = value;
  }

  void dequantize(const Node& node) {
    const auto value = integers_.find(input(node, 0));
    if (value != integers_.end()) {
      const int tensor = value->second.tensor;
      if (scale(input(node, 1)) != network_.tensors[tensor].scale || zero_point(node) != zero_points_[tensor])
        refuse(node.name, "has another scale or zero point than the quantization");
      values_[output(node)] = {.tensor = value->second.tensor, .dims = value->second.dims, .dequantized = true};
      return;
    }
    const auto found = file_.constants.find(input(node, 0));
    if (found == file_.constants.end() || found->second.dims.empty())
      refuse(node.name, "reads neither integers nor a constant");
    const Constant& values = constant(input(node, 0), found->second.type == kInt32 ? kInt32 : kInt8);
    // As for weights: every constant has its own scales.
    scale_bytes_left_ -= int64_t{4} * values.dims[0];
    if (scale_bytes_left_ < 0) refuse(node.name, "has the scales of other weights");
    if (node.inputs.size() > 2) {
      for (const char zero : constant(input(node, 2), values.type, values.dims[0]).raw) {
        if (zero != 0) refuse(node.name, "has a zero point that is not 0");
      }
    }
    const auto found_axis = node.numbers.find("axis");
    if (found_axis == node.numbers.end()) refuse(node.name, "has scales along another axis than that of the outputs");
    const double axis = found_axis->second.empty() ? 0 : found_axis->second[0];
    const bool from_end = axis == -1 && values.dims.size() == 1;
    if (axis != 0 && !from_end) refuse(node.name, "has scales along another axis than that of the outputs");
    weights_[output(node)] = {&values, scales(input(node, 1), values.dims[0]), from_end};
  }

  // ---- Values ----

  Value& value(const Node& node, std::string_view name) {
    const auto found = values_.find(name);
    if (found == values_.end()) refuse(node.name, "reads '" + std::string(name) + "', which no earlier node computes");
    return found->second;
  }
  // The same, of which a tensor is made if it is a function.
  Value& tensor_value(const Node& node, std::string_view name) {
    Value& result = value(node, name);
    if (!result.function.empty()) make_tensor(result);
    return result;
  }
  // What a layer of integers reads.
  Value operand(const Node& node, size_t index) {
    const Value& result = tensor_value(node, input(node, index));
    if (!result.dequantized) refuse(node.name, "reads '" + std::string(input(node, index)) + "' unquantized");
    return result;
  }
  // Whether an operand is a tensor of integers, a map or flat.
  bool has_integers(const Node& node, size_t index) const {
    const auto found = index < node.inputs.size() ? values_.find(node.inputs[index]) : values_.end();
    return found != values_.end() && found->second.dequantized && found->second.function.empty() &&
           (found->second.is_map() || found->second.is_flat());
  }

  // A node that gives a tensor other dimensions, as a map or flat. Its numbers stay where they are.
  bool view(const Node& node) {
    if (node.op != "Flatten" && node.op != "Reshape") return false;
    const Value from = tensor_value(node, input(node, 0));
    if (!from.is_map() && !from.is_flat()) return false;
    const TensorSpec& tensor = network_.tensors[from.tensor];
    const int64_t size = tensor.size();
    ArrayDims dims{1, size};
    if (node.op == "Flatten") {
      const auto axis = node.numbers.find("axis");
      if (axis != node.numbers.end() && axis->second != std::vector<double>{1}) return false;
    } else {
      if (!is_constant(input(node, 1))) return false;
      const Constant& given = file_.constants.at(input(node, 1));
      if (given.type != kInt64 || given.raw.size() > 4 * sizeof(int64_t)) return false;
      const std::vector<int64_t> target = numbers<int64_t>(constant(input(node, 1), kInt64));
      const bool first = !target.empty() && (target[0] == 0 || target[0] == 1 || target[0] == -1);
      const bool flat = first && target.size() == 2 && (target[1] == size || (target[1] == -1 && target[0] != -1));
      const bool map = first && target.size() == 4 && target[1] == size && target[2] == 1 && target[3] == 1 &&
                       tensor.channels == size;
      if (!flat && !map) return false;
      if (map) dims = {1, size, 1, 1};
    }
    values_[output(node)] = {.tensor = from.tensor, .dims = dims, .dequantized = from.dequantized};
    return true;
  }

  // ---- Layers ----

  LayerSpec& new_layer(std::string_view name) {
    if (network_.layers.size() == kMostLayers) refuse("the graph", "has more than 4096 layers");
    network_.layers.emplace_back();
    network_.layers.back().name = std::string(name);
    return network_.layers.back();
  }
  // Gives the last layer its output.
  Value finish_layer(const ArrayDims& dims) {
    LayerSpec& layer = network_.layers.back();
    layer.output = add_tensor(layer.name, dims);
    return {.tensor = layer.output, .dims = dims};
  }

  void add_layer(const Node& node) {
    const bool weighs =
        (node.op == "Conv" || node.op == "Gemm") && node.inputs.size() > 1 && weights_.count(node.inputs[1]) > 0;
    if (weighs) {
      const Value x = operand(node, 0);
      LayerSpec layer;
      read_convolution(node, x, layer);
      layer.inputs = {x.tensor};
      const ConvShape s = layer.shape;
      const ArrayDims dims = node.op == "Gemm" ? ArrayDims{1, s.out_channels}
                                               : ArrayDims{1, s.out_channels, s.out_height(), s.out_width()};
      new_layer(node.name);
      layer.name = std::string(node.name);
      network_.layers.back() = std::move(layer);
      wide_reads_.resize(network_.layers.size());
      wide_reads_.back() = weights_.at(input(node, 2)).from_end;
      values_[output(node)] = finish_layer(dims);
      return;
    }
    if (node.op == "PRelu" || node.op == "BatchNormalization" ||
        (node.op == "Relu" && real_reads_of_.count(output(node)) == 0)) {
      if (read_pointwise(node)) return;
    } else if (node.op == "Add" && has_integers(node, 0) && has_integers(node, 1)) {
      const Value a = operand(node, 0), b = operand(node, 1);
      if (a.dims == b.dims && a.tensor != b.tensor && is_whole(a) && is_whole(b)) {
        LayerSpec& layer = new_layer(node.name);
        layer.kind = LayerSpec::Kind::add;
        layer.inputs = {a.tensor, b.tensor};
        values_[output(node)] = finish_layer(a.dims);
        return;
      }
    } else if (node.op == "GlobalAveragePool" && has_integers(node, 0)) {
      const Value x = operand(node, 0);
      if (x.is_map() && is_whole(x)) {
        LayerSpec& layer = new_layer(node.name);
        layer.kind = LayerSpec::Kind::pool;
        layer.inputs = {x.tensor};
        values_[output(node)] = finish_layer({1, network_.tensors[x.tensor].channels, 1, 1});
        return;
      }
    }
    add_node(node);
  }

  // Whether a value has the rows, columns and channels of its tensor, in their order.
  bool is_whole(const Value& value) const {
    const TensorSpec& tensor = network_.tensors[value.tensor];
    return value.is_map() ? value.dims == ArrayDims{1, tensor.channels, tensor.height, tensor.width}
                          : value.is_flat() && tensor.area() == 1;
  }

  // A constant operand of a node.
  FloatArray array(std::string_view name) {
    const Constant& from = file_.constants.at(name);
    const bool known =
        from.type == kFloat || from.type == kInt64 || from.type == kInt32 || from.type == kInt8 || from.type == kUint8;
    if (!known) refuse(name, "has a type that no node reads");
    const Constant& checked = constant(name, from.type);
    // Every node has its own constants, so a small file cannot ask for many copies.
    node_bytes_left_ -= static_cast<int64_t>(checked.raw.size());
    if (node_bytes_left_ < 0) refuse(name, "is a constant of too many nodes");
    FloatArray result;
    result.dims = checked.dims;
    const auto read = [&](const auto& integers) { result.integers.assign(integers.begin(), integers.end()); };
    if (from.type == kFloat) {
      result.values = floats(name);
      return result;
    }
    if (from.type == kInt64) read(numbers<int64_t>(checked));
    if (from.type == kInt32) read(numbers<int32_t>(checked));
    if (from.type == kInt8) read(numbers<int8_t>(checked));
    if (from.type == kUint8) read(numbers<uint8_t>(checked));
    result.values.assign(result.integers.begin(), result.integers.end());
    return result;
  }

  // The operator of a node, its constants read, its computed operands named `input` in order of their names.
  FloatStep step_of(const Node& node, std::vector<std::string_view>& names) {
    using Operand = FloatStep::Operand;
    FloatStep step;
    step.op = std::string(node.op);
    for (const auto& [name, values] : node.numbers) step.numbers[std::string(name)] = values;
    for (const auto& [name, text] : node.texts) step.texts[std::string(name)] = std::string(text);
    operands_left_ -= static_cast<int64_t>(node.inputs.size());
    if (operands_left_ < 0) refuse("the graph", "has more than 16384 operands");
    for (const std::string_view name : node.inputs) {
      Operand operand;
      if (is_constant(name)) {
        operand.from = Operand::From::constant;
        operand.constant = array(name);
      } else if (!name.empty()) {
        const auto known = std::find(names.begin(), names.end(), name);
        operand.from = Operand::From::input;
        operand.index = static_cast<int>(known - names.begin());
        if (known == names.end()) names.push_back(name);
      }
      step.operands.push_back(std::move(operand));
    }
    return step;
  }

  // A layer of one ONNX operator, or a part of a function.
  void add_node(const Node& node) {
    std::vector<std::string_view> names;
    FloatStep step = step_of(node, names);
    if (names.empty()) refuse(node.name, "reads constants alone");
    if (join_function(node, step, names)) return;
    NodeSpec spec;
    std::vector<int> inputs;
    for (const std::string_view name : names) {
      const Value& read = tensor_value(node, name);
      if (!read.dequantized) real_reads_.push_back({read.tensor, node.name, name});
      inputs.push_back(read.tensor);
      spec.input_dims.push_back(read.dims);
    }
    spec.steps.push_back(std::move(step));
    values_[output(node)] = add_node_layer(node.name, std::move(spec), std::move(inputs));
  }

  Value add_node_layer(std::string_view name, NodeSpec spec, std::vector<int> inputs) {
    spec.output_dims = FloatProgram(spec.steps, spec.input_dims, "layer '" + std::string(name) + "'").dims();
    for (const int64_t dim : spec.output_dims) extents_left_ -= dim;
    if (extents_left_ < 0) refuse(name, "makes the tensors of the graph too large");
    const ArrayDims dims = spec.output_dims;
    LayerSpec& layer = new_layer(name);
    layer.kind = LayerSpec::Kind::node;
    layer.node = std::move(spec);
    layer.inputs = std::move(inputs);
    return finish_layer(dims);
  }

  // Adds a node to the function of single integers that its operands are. Returns false where it is none: an operator
  // of another kind, or operands of several tensors.
  bool join_function(const Node& node, const FloatStep& step, const std::vector<std::string_view>& names) {
    FloatStep single = step;
    for (auto& operand : single.operands) operand.index = 0;
    if (!elementwise({single})) return false;
    std::vector<const Value*> read;
    for (const std::string_view name : names) read.push_back(&value(node, name));
    const Value root = *read[0];
    std::vector<int> nodes;
    for (const Value* each : read) {
      const bool same =
          each->tensor == root.tensor && each->dims == root.dims && (each->dequantized || !each->function.empty());
      if (!same) return false;
      nodes.insert(nodes.end(), each->function.begin(), each->function.end());
    }
    std::sort(nodes.begin(), nodes.end());
    nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
    if (nodes.size() >= kLongestFunction) return false;
    // A constant of more dimensions would give the function more, too.
    if (FloatProgram({single}, {root.dims}, "layer '" + std::string(node.name) + "'").dims() != root.dims) return false;
    FunctionNode added{.step = step, .operands = {}};
    for (const auto& operand : step.operands) {
      const bool computed = operand.from == FloatStep::Operand::From::input;
      const Value* from = computed ? read[operand.index] : nullptr;
      added.operands.push_back(from && !from->function.empty() ? from->function.back() : FunctionNode::kRoot);
    }
    nodes.push_back(static_cast<int>(functions_.size()));
    functions_.push_back(std::move(added));
    values_[output(node)] = {.tensor = root.tensor, .dims = root.dims, .function = std::move(nodes), .name = node.name};
    return true;
  }

  // Makes a function a layer that computes real numbers.
  void make_tensor(Value& value) {
    using From = FloatStep::Operand::From;
    NodeSpec spec;
    spec.input_dims = {value.dims};
    for (const int index : value.function) {
      const FunctionNode& from = functions_[index];
      // Functions may have nodes in common, so a small file could ask for many copies.
      node_bytes_left_ -= attribute_bytes(from.step);
      if (node_bytes_left_ < 0) refuse(value.name, "has the attributes of too many functions");
      FloatStep step = from.step;
      for (size_t i = 0; i < step.operands.size(); ++i) {
        if (step.operands[i].from != From::input) continue;
        step.operands[i].index = 0;
        if (from.operands[i] == FunctionNode::kRoot) continue;
        const auto at = std::lower_bound(value.function.begin(), value.function.end(), from.operands[i]);
        step.operands[i].from = From::step;
        step.operands[i].index = static_cast<int>(at - value.function.begin());
      }
      spec.steps.push_back(std::move(step));
    }
    value = add_node_layer(value.name, std::move(spec), {value.tensor});
  }

  // ---- Convolutions and what is like them ----

  void read_convolution(const Node& node, const Value& x, LayerSpec& layer) {
    const TensorSpec& from = network_.tensors[x.tensor];
    const auto weight = weights_.find(input(node, 1)), bias = weights_.find(input(node, 2));
    if (weight == weights_.end() || bias == weights_.end() || weight->second.values->type != kInt8 ||
        bias->second.values->type != kInt32)
      refuse(node.name, "has no integer weights and bias");
    const auto& dims = weight->second.values->dims;
    for (const int64_t dim : dims) {
      if (dim < 1) refuse(node.name, "has weights without numbers");
    }
    ConvShape& s = layer.shape;
    s.in_channels = from.channels;
    s.in_height = from.height;
    s.in_width = from.width;
    const auto set = [&](const char* name, auto& values, int64_t least) {
      const auto found = node.numbers.find(name);
      if (found == node.numbers.end()) return;
      if (found->second.size() != values.size()) refuse(node.name, std::string("has a wrong number of ") + name);
      for (size_t i = 0; i < values.size(); ++i) {
        const double value = found->second[i];
        if (!(value >= static_cast<double>(least) && value <= kLargestExtent))
          refuse(node.name, std::string("has impossible ") + name);
        values[i] = static_cast<int>(value);
      }
    };
    if (node.op == "Gemm") {
      const auto transposed = node.numbers.find("transB");
      if (!x.is_flat() && from.area() != 1) refuse(node.name, "reads a map that is not flattened");
      if (dims.size() != 2 || dims[1] != from.size() || transposed == node.numbers.end() ||
          transposed->second != std::vector<double>{1})
        refuse(node.name, "has weights that do not fit its input");
      refuse_other(node, "transA", 0);
      refuse_other(node, "alpha", 1);
      refuse_other(node, "beta", 1);
      s.kernel = {from.height, from.width};
    } else {
      if (dims.size() != 4 || !x.is_map() || !is_whole(x)) refuse(node.name, "has weights that do not fit its input");
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
      const auto padding = node.texts.find("auto_pad");
      if (padding != node.texts.end() && padding->second != "NOTSET")
        refuse(node.name, "has auto_pad " + std::string(padding->second));
    }
    s.out_channels = static_cast<int>(dims[0]);
    if (s.filter() > kLargestFilter || s.out_height() < 1 || s.out_width() < 1)
      refuse(node.name, "has a filter that is too large");
    layer.kind = LayerSpec::Kind::conv;
    // Every layer has its own weights, so a small file cannot ask for many copies.
    bytes_left_ -= static_cast<int64_t>(weight->second.values->raw.size());
    if (bytes_left_ < 0) refuse(node.name, "has the weights of another layer");
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

  // A PRelu with a slope for each channel, a Relu or a batch norm, of integers. Returns false for another one.
  bool read_pointwise(const Node& node) {
    if (!has_integers(node, 0)) return false;
    const Value x = operand(node, 0);
    if (!is_whole(x)) return false;
    const int channels = network_.tensors[x.tensor].channels;
    const bool slopes = node.op == "PRelu", relu = node.op == "Relu";
    if (slopes) {
      if (!is_constant(input(node, 1))) return false;
      ArrayDims dims = file_.constants.at(input(node, 1)).dims;
      if (dims.size() == x.dims.size() && dims[0] == 1) dims.erase(dims.begin());
      if (dims != (x.is_map() ? ArrayDims{channels, 1, 1} : ArrayDims{channels})) return false;
    }
    if (relu) {
      extents_left_ -= int64_t{3} * channels;
      if (extents_left_ < 0) refuse(node.name, "makes the tensors of the graph too large");
    } else {
      // As for weights: every layer has its own slopes.
      bytes_left_ -= int64_t{4} * channels;
      if (bytes_left_ < 0) refuse(node.name, "has the slopes of another layer");
    }
    LayerSpec& layer = new_layer(node.name);
    layer.kind = LayerSpec::Kind::pointwise;
    layer.inputs = {x.tensor};
    if (slopes || relu) {
      layer.positive.assign(channels, 1);
      layer.negative = relu ? std::vector<float>(channels) : bounded(input(node, 1), channels);
      layer.offset.assign(channels, 0);
    } else {
      refuse_other(node, "training_mode", 0);
      layer.positive = layer.negative = bounded(input(node, 1), channels);
      layer.offset = bounded(input(node, 2), channels);
      const std::vector<float> mean = floats(input(node, 3), channels), variance = floats(input(node, 4), channels);
      const auto epsilon = node.numbers.find("epsilon");
      const bool plain = std::all_of(mean.begin(), mean.end(), [](float v) { return v == 0; }) &&
                         std::all_of(variance.begin(), variance.end(), [](float v) { return v == 1; }) &&
                         epsilon != node.numbers.end() && epsilon->second == std::vector<double>{0};
      if (!plain) refuse(node.name, "has statistics, which Facetrain folds");
    }
    values_[output(node)] = finish_layer(x.dims);
    return true;
  }

  // ---- The whole network ----

  // Gives an output as real numbers: of a tensor that layers read as integers, a node makes them.
  void add_output(std::string_view name) {
    const auto found = values_.find(name);
    if (found == values_.end() || (found->second.tensor == 0 && found->second.function.empty()))
      refuse(name, "is an output that no layer computes");
    if (!found->second.function.empty()) make_tensor(found->second);
    Value value = found->second;
    if (value.dims.empty() || value.dims[0] != 1) refuse(name, "is an output whose first dimension is no batch");
    if (network_.outputs.size() == kMostOutputs) refuse("the graph", "has more than 1024 outputs");
    if (!network_.tensors[value.tensor].real) {
      NodeSpec spec;
      spec.input_dims = {value.dims};
      FloatStep step;
      step.op = "Identity";
      step.operands.push_back({FloatStep::Operand::From::input, 0, {}});
      spec.steps.push_back(std::move(step));
      value = add_node_layer(name, std::move(spec), {value.tensor});
    }
    network_.outputs.push_back(value.tensor);
    model_.outputs.push_back({std::string(name), {value.dims.begin() + 1, value.dims.end()}});
  }

  void check_real_reads() const {
    for (const auto& [tensor, node, value] : real_reads_) {
      if (!network_.tensors[tensor].real) refuse(node, "reads '" + std::string(value) + "' unquantized");
    }
    for (const LayerSpec& layer : network_.layers) {
      for (const int tensor : layer.inputs) {
        if (layer.kind != LayerSpec::Kind::node && network_.tensors[tensor].real)
          refuse(layer.name, "reads a tensor that is not quantized");
      }
    }
  }

  // As LayerGraph::share_scales: what only moves numbers reads and writes integers of one scale and one range.
  void set_ranges() {
    zero_points_.resize(network_.tensors.size());
    wide_reads_.resize(network_.layers.size());
    std::vector<int> first(network_.tensors.size());
    for (size_t t = 0; t < first.size(); ++t) first[t] = static_cast<int>(t);
    std::vector<int> bits(first.size());  // of what convolutions multiply, by its first tensor; 0: none does
    for (const LayerSpec& layer : network_.layers) {
      const int x = layer.inputs[0], y = layer.output;
      const bool moves = layer.kind == LayerSpec::Kind::node && layer.inputs.size() == 1 &&
                         std::all_of(layer.node.steps.begin(), layer.node.steps.end(), moves_numbers);
      if (moves && !network_.tensors[x].real && !network_.tensors[y].real) {
        first[y] = first[x];
        if (network_.tensors[x].scale != network_.tensors[y].scale || zero_points_[x] != zero_points_[y])
          refuse(layer.name, "moves numbers, and changes their scale or zero point");
      }
    }
    for (size_t l = 0; l < network_.layers.size(); ++l) {
      const LayerSpec& layer = network_.layers[l];
      if (layer.kind != LayerSpec::Kind::conv) continue;
      const bool zero_point = zero_points_[layer.inputs[0]] != 0;
      int& known = bits[first[layer.inputs[0]]];
      const int read = wide_reads_[l] ? 8 : 7;
      if (known != 0 && known != read) refuse(layer.name, "reads integers of other bits than another layer");
      known = read;
      if (read == 8 && zero_point) refuse(layer.name, "reads integers of 8 bits with a zero point");
      if ((read == 8 || zero_point) && layer.shape.filter() > kLargestFilterOfWideOperand)
        refuse(layer.name, "has a filter that is too large for an input with a zero point or of 8 bits");
    }
    for (size_t t = 0; t < first.size(); ++t) {
      if (bits[first[t]] == 8) {
        network_.tensors[t].range = kLargestWideOperand;
      } else if (bits[first[t]] == 7) {
        network_.tensors[t].range = {kLargestOperand, zero_points_[t]};
      } else if (zero_points_[t] != 0) {
        refuse("the graph", "has a zero point of a tensor that no convolution reads");
      }
    }
  }

  std::vector<double> from_metadata(const char* key) const {
    std::vector<double> values;
    const auto found = file_.metadata.find(key);
    if (found == file_.metadata.end()) return std::vector<double>(channels_, 127.5);
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
        const float real = static_cast<float>(byte) / std - mean / std;
        if (std::isnan(real)) refuse("the input", "has a range without numbers");
        if (picture.real) {
          network_.real_pixels.push_back(real);
          continue;
        }
        const float value = real / picture.scale;
        const auto low = static_cast<float>(picture.range.low), high = static_cast<float>(picture.range.high);
        if (std::isnan(value)) refuse("the input", "has a range without numbers");
        network_.pixels.push_back(static_cast<int8_t>(std::nearbyint(std::clamp(value, low, high))));
      }
    }
  }

  struct RealRead {
    int tensor;
    std::string_view node, value;
  };

  const OnnxFile& file_;
  OnnxModel model_;
  Network network_;
  std::string_view picture_;
  bool channels_last_ = false;  // of the picture's value, until a Transpose
  bool lacks_batch_ = false;    // the same, until an Unsqueeze; its dims here have the batch
  int channels_ = 0;
  std::vector<double> scale_, offset_;  // of the head
  // What the rest of the file may ask for.
  int64_t bytes_left_, scale_bytes_left_, node_bytes_left_;
  int64_t operands_left_ = kMostOperands, extents_left_ = kMostExtents;
  std::map<std::string_view, Weights> weights_;
  // Values by name: quantized, and all others.
  std::map<std::string_view, Value> integers_, values_;
  std::set<std::string_view> real_reads_of_;  // values that other nodes than QuantizeLinear read, and outputs
  std::vector<FunctionNode> functions_;
  std::vector<RealRead> real_reads_;
  std::vector<int> zero_points_;  // by tensor; those of the last tensors may lack
  // By layer, of convolutions: what a file says by the axis of the bias (qdq.ts). Those of the last layers may lack.
  std::vector<bool> wide_reads_;
};

}  // namespace

OnnxModel read_onnx(const uint8_t* data, size_t size, PictureSize picture) {
  const OnnxFile file = parse_onnx(data, size);
  return Reader(file, size, picture).take();
}

}  // namespace facetrain::int7
