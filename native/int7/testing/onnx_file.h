// Writes a small model.int7.onnx for tests: conv, PRelu, an addition of both, Flatten and Gemm, behind a head.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace facetrain::int7::testing {

// A protocol buffer that is being written.
class Message {
 public:
  Message& bytes(int number, const std::string& value) {
    varint(number << 3 | 2);
    varint(value.size());
    text_ += value;
    return *this;
  }
  Message& message(int number, const Message& value) { return bytes(number, value.text_); }
  Message& integer(int number, uint64_t value) {
    varint(number << 3);
    varint(value);
    return *this;
  }
  Message& fixed(int number, uint32_t value) {
    varint(number << 3 | 5);
    for (int byte = 0; byte < 4; ++byte) text_ += static_cast<char>(value >> 8 * byte);
    return *this;
  }
  // Adds the fields of another.
  Message& fields(const Message& other) {
    text_ += other.text_;
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  void varint(uint64_t value) {
    for (; value > 127; value >>= 7) text_ += static_cast<char>(value | 128);
    text_ += static_cast<char>(value);
  }

  std::string text_;
};

template <typename T>
Message constant(const std::string& name, int type, const std::vector<int>& dims, const std::vector<T>& values) {
  Message result;
  for (const int dim : dims) result.integer(1, dim);
  return result.integer(2, type).bytes(8, name).bytes(
      9, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
}

inline Message node(const std::string& name, const std::string& op, const std::vector<std::string>& inputs,
                    const std::string& output) {
  Message result;
  for (const auto& input : inputs) result.bytes(1, input);
  return result.bytes(2, output).bytes(3, name).bytes(4, op);
}

inline Message integers(const std::string& name, const std::vector<int>& values) {
  Message result;
  result.bytes(1, name);
  for (const int value : values) result.integer(8, value);
  return result.integer(20, 7);
}

// Sizes and names of the file's input or output.
inline Message value_info(const std::string& name, const std::vector<int>& dims, int type = 1) {
  Message shape;
  for (const int dim : dims) shape.message(1, Message().integer(1, dim));
  const Message tensor = Message().integer(1, type).message(2, shape);
  return Message().bytes(1, name).message(2, Message().message(1, tensor));
}

// What differs from a file that can be read.
struct Changes {
  int weight = 63;
  std::string op = "PRelu";
  int stride = 2;
  int height = 7;
  int zero_point = 128;        // of what convolutions multiply
  int zero_point_behind = 0;   // of one DequantizeLinear of those, if not 0
  int other_zero_point = 128;  // of the rest
  int channels = 3;
  std::vector<int> bias_dims{10};  // of the convolution
  int scale_axis = 0;              // of the weights
  int bias_axis = 0;               // -1: what convolutions multiply has eight bits
  float input_scale = 1.0f / 128;
  float slope = 0.25f;
  int slope_layers = 1;          // PRelu layers that share their slopes
  Message conv = {}, gemm = {};  // more attributes
  std::string late_head = {};    // operator on the picture after its quantization
  int heads = 1;                 // nodes that scale the same picture
};

// A number or a word as an attribute of a node.
inline Message real(const std::string& name, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return Message().message(5, Message().bytes(1, name).fixed(2, bits).integer(20, 1));
}
inline Message number(const std::string& name, int value) {
  return Message().message(5, Message().bytes(1, name).integer(3, value).integer(20, 2));
}
inline Message word(const std::string& name, const std::string& value) {
  return Message().message(5, Message().bytes(1, name).bytes(4, value).integer(20, 3));
}

// The pair of quantization of a value, with a scale of its own name and the constant `zero` as zero point.
inline void add_pair(Message& graph, const std::string& value, float scale, const std::string& zero = "zero") {
  graph.message(5, constant<float>(value + ".scale", 1, {}, {scale}));
  graph.message(1, node("", "QuantizeLinear", {value, value + ".scale", zero}, value + ".q"));
  graph.message(1, node("", "DequantizeLinear", {value + ".q", value + ".scale", zero}, value + ".dq"));
}

// Integers NAME.weight with a scale of 0.01 and NAME.bias for inputs of `input_scale`.
inline void add_weights(Message& graph, const std::string& name, std::vector<int> dims, float input_scale,
                        const Changes& changes = {}, std::vector<int> bias_dims = {}) {
  if (bias_dims.empty()) bias_dims = {dims[0]};
  size_t count = 1;
  for (const int dim : dims) count *= dim;
  std::vector<int8_t> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<int8_t>(i * 37 % 127 - 63);
  values[0] = static_cast<int8_t>(changes.weight);
  const std::vector<float> scales(dims[0], 0.01f);
  std::vector<int32_t> bias(dims[0]);
  for (int o = 0; o < dims[0]; ++o) bias[o] = o * 100 - 300;
  graph.message(5, constant<int8_t>(name + ".w", 3, dims, values));
  graph.message(5, constant<float>(name + ".s", 1, {dims[0]}, scales));
  graph.message(5, constant<int32_t>(name + ".b", 6, bias_dims, bias));
  graph.message(
      5, constant<float>(name + ".bs", 1, {bias_dims[0]}, std::vector<float>(bias_dims[0], input_scale * 0.01f)));
  const Message axis = number("axis", changes.scale_axis);
  graph.message(1, node("", "DequantizeLinear", {name + ".w", name + ".s"}, name + ".weight").fields(axis));
  const Message bias_axis = number("axis", changes.scale_axis == 0 ? changes.bias_axis : changes.scale_axis);
  graph.message(1, node("", "DequantizeLinear", {name + ".b", name + ".bs"}, name + ".bias").fields(bias_axis));
}

// A file of a graph with the metadata of an INT7 model.
inline std::string int7_file(const Message& graph, const std::vector<std::pair<std::string, std::string>>& more = {}) {
  Message model;
  model.integer(1, 8).message(7, graph);
  std::vector<std::pair<std::string, std::string>> metadata = more;
  metadata.emplace_back("facetrain.format", "int7");
  for (const auto& [key, value] : metadata) model.message(14, Message().bytes(1, key).bytes(2, value));
  return model.text();
}

inline std::string onnx_file(const Changes& changes = {}) {
  Message graph;
  const auto weights = [&](const std::string& name, std::vector<int> dims, std::vector<int> bias_dims,
                           float input_scale) {
    add_weights(graph, name, std::move(dims), input_scale, changes, std::move(bias_dims));
  };
  graph.message(11, value_info("data", {1, changes.channels, changes.height, 9}));
  graph.message(12, value_info("embedding", {1, 6}));
  const auto zero = [&](const std::string& name, int value) {
    graph.message(5, constant<uint8_t>(name, 2, {}, {static_cast<uint8_t>(value)}));
  };
  zero("zero", changes.other_zero_point);
  zero("operand_zero", changes.zero_point);
  graph.message(5, constant<float>("half", 1, {1, 3, 1, 1}, {0.5f, 0.5f, 0.5f}));
  graph.message(5, constant<float>("slope", 1, {10, 1, 1}, std::vector<float>(10, changes.slope)));
  for (int head = 0; head < changes.heads; ++head) graph.message(1, node("head", "Mul", {"data", "half"}, "x"));
  add_pair(graph, "x", changes.input_scale, "operand_zero");
  if (!changes.late_head.empty()) graph.message(1, node("late", changes.late_head, {"x", "half"}, "late"));
  weights("to_c", {10, 3, 3, 3}, changes.bias_dims, changes.input_scale);
  graph.message(1, node("to_c", "Conv", {"x.dq", "to_c.weight", "to_c.bias"}, "c")
                       .message(5, integers("strides", {changes.stride, 2}))
                       .message(5, integers("pads", {1, 1, 1, 1}))
                       .fields(changes.conv));
  add_pair(graph, "c", 0.03f);
  for (int layer = 0; layer < changes.slope_layers; ++layer)
    graph.message(1, node("to_p", changes.op, {"c.dq", "slope"}, "p"));
  add_pair(graph, "p", 0.02f);
  graph.message(1, node("to_a", "Add", {"p.dq", "c.dq"}, "a"));
  add_pair(graph, "a", 0.04f, "operand_zero");
  graph.message(1, node("flat", "Flatten", {"a.dq"}, "f"));
  graph.message(5, constant<float>("f.scale", 1, {}, {0.04f}));
  graph.message(1, node("", "QuantizeLinear", {"f", "f.scale", "operand_zero"}, "f.q"));
  const std::string behind = changes.zero_point_behind == 0 ? "operand_zero" : "behind";
  if (behind == "behind") zero(behind, changes.zero_point_behind);
  graph.message(1, node("from_f", "DequantizeLinear", {"f.q", "f.scale", behind}, "f.dq"));
  weights("to_e", {6, 200}, {6}, 0.04f);
  graph.message(1, node("to_e", "Gemm", {"f.dq", "to_e.weight", "to_e.bias"}, "embedding")
                       .message(5, Message().bytes(1, "transB").integer(3, 1))
                       .fields(changes.gemm));
  return int7_file(graph, {{"facetrain.input.mean", "[127.5,127.5,127.5]"},
                           {"facetrain.input.std", "[128,128,128]"},
                           {"facetrain.channelOrder", "bgr"}});
}

// A file that reads bytes with channels last, and has what detectors have: a HardSwish of four nodes, MaxPool, Slice,
// Resize and Concat of integers, a Softmax in FP32, and an output that layers read as integers. `zero_point` is that of
// what convolutions multiply, and `bias_axis` as in Changes. With a tail, what other runtimes compute is behind the
// outputs.
inline std::string detector_file(int zero_point = 128, int bias_axis = 0, bool has_tail = false) {
  Message graph;
  const auto add = [&](const std::string& op, std::vector<std::string> inputs, const std::string& y,
                       const Message& attributes = {}) {
    graph.message(1, node("to_" + y, op, inputs, y).fields(attributes));
  };
  const auto lists = [](const std::string& name, const std::vector<int>& values) {
    return Message().message(5, integers(name, values));
  };
  const auto whole = [&](const std::string& name, std::vector<int64_t> values) {
    graph.message(5, constant<int64_t>(name, 7, {static_cast<int>(values.size())}, values));
  };
  graph.message(11, value_info("data", {1, 24, 20, 3}, 2));
  if (!has_tail) graph.message(12, value_info("scores", {1, 2, 12, 10}));
  graph.message(12, value_info("map", {1, 16, 12, 10}));
  graph.message(5, constant<uint8_t>("zero", 2, {}, {128}));
  graph.message(5, constant<uint8_t>("operand_zero", 2, {}, {static_cast<uint8_t>(zero_point)}));
  for (const auto& [name, value] : {std::pair{"three", 3.0f}, {"low", 0.0f}, {"six", 6.0f}})
    graph.message(5, constant<float>(name, 1, {}, {value}));
  add("Cast", {"data"}, "float", number("to", 1));
  add("Transpose", {"float"}, "x", lists("perm", {0, 3, 1, 2}));
  add_pair(graph, "x", 4.0f, "operand_zero");
  const Changes weights{.bias_axis = bias_axis};
  add_weights(graph, "to_c", {8, 3, 3, 3}, 4.0f, weights);
  add("Conv", {"x.dq", "to_c.weight", "to_c.bias"}, "c", lists("strides", {2, 2}).fields(lists("pads", {1, 1, 1, 1})));
  add_pair(graph, "c", 0.1f);
  // HardSwish: c * clip(c + 3, 0, 6) / 6.
  add("Add", {"c.dq", "three"}, "h1");
  add("Clip", {"h1", "low", "six"}, "h2");
  add("Mul", {"c.dq", "h2"}, "h3");
  add("Div", {"h3", "six"}, "h");
  add_pair(graph, "h", 0.1f, "operand_zero");
  add("MaxPool", {"h.dq"}, "p", lists("kernel_shape", {2, 2}).fields(lists("strides", {2, 2})));
  add_pair(graph, "p", 0.1f, "operand_zero");
  whole("starts", {2});
  whole("ends", {6});
  whole("axes", {1});
  add("Slice", {"p.dq", "starts", "ends", "axes"}, "s");
  add_pair(graph, "s", 0.1f, "operand_zero");
  graph.message(5, constant<float>("factors", 1, {4}, {1, 1, 2, 2}));
  add("Resize", {"s.dq", "", "factors"}, "r",
      word("mode", "nearest")
          .fields(word("coordinate_transformation_mode", "asymmetric"))
          .fields(word("nearest_mode", "floor")));
  add_pair(graph, "r", 0.1f, "operand_zero");
  add_weights(graph, "to_d", {4, 8, 1, 1}, 0.1f, weights);
  add("Conv", {"h.dq", "to_d.weight", "to_d.bias"}, "d");
  add_pair(graph, "d", 0.05f);
  add("Concat", {"h.dq", "r.dq", "d.dq"}, "map", number("axis", 1));
  add_pair(graph, "map", 0.1f, "operand_zero");
  add_weights(graph, "to_e", {2, 16, 1, 1}, 0.1f, weights);
  add("Conv", {"map.dq", "to_e.weight", "to_e.bias"}, "e");
  add("Softmax", {"e"}, "scores", number("axis", 1));
  std::vector<std::pair<std::string, std::string>> metadata = {{"facetrain.input.mean", "[0,0,0]"},
                                                               {"facetrain.input.std", "[1,1,1]"},
                                                               {"facetrain.input.layout", "NHWC"},
                                                               {"facetrain.input.elementType", "uint8"},
                                                               {"facetrain.channelOrder", "rgb"}};
  if (has_tail) {
    // A type, a rank and attributes that nothing in front of it may have.
    graph.message(5, constant<int64_t>("many", 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {0}));
    add("Mystery", {"scores", "many", "data"}, "found", lists("list", std::vector<int>(100)));
    add("Softmax", {"found", "map"}, "likely");
    graph.message(12, value_info("found", {1, 5}, 7));
    metadata.emplace_back("facetrain.version", "2");
    metadata.emplace_back("facetrain.outputs", "scores\nmap");
    metadata.emplace_back("facetrain.tail", "Mystery 1, Softmax 1");
  }
  return int7_file(graph, metadata);
}

}  // namespace facetrain::int7::testing
