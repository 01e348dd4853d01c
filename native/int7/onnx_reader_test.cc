// Tests the reader of files on one that is written here, and on damaged copies of it. Also built with the address and
// undefined-behavior sanitizers (CMakeLists.txt).
#include "int7/onnx_reader.h"

#include <algorithm>
#include <optional>
#include <random>
#include <stdexcept>

#include "error.h"
#include "int7/testing/onnx_file.h"
#include "test/check.h"

namespace facetrain::int7 {
namespace {

OnnxModel read(const std::string& file) {
  // A copy of the exact size, so that a sanitizer sees a byte beyond it.
  const std::vector<uint8_t> bytes(file.begin(), file.end());
  return read_onnx(bytes.data(), bytes.size());
}

void test_reads() {
  const OnnxModel model = read(testing::onnx_file());
  const Network& network = model.network;
  CHECK_EQ(model.color_order, std::string("bgr"));
  CHECK(model.mean == std::vector<double>(3, 127.5));
  CHECK(model.std == std::vector<double>(3, 128));
  CHECK_EQ(network.layers.size(), size_t{4});
  CHECK_EQ(network.tensors.size(), size_t{5});
  CHECK(network.layers[0].kind == LayerSpec::Kind::conv);
  CHECK(network.layers[1].kind == LayerSpec::Kind::pointwise);
  CHECK(network.layers[2].kind == LayerSpec::Kind::add);
  CHECK(network.layers[2].inputs == (std::vector<int>{2, 1}));
  CHECK_EQ(network.layers[3].shape.in_height, 4);
  CHECK(network.layers[3].shape.kernel == (std::array{4, 5}));
  CHECK_EQ(network.tensors[0].range.high, 63);
  CHECK_EQ(network.tensors[1].range.high, 127);
  CHECK_EQ(network.tensors[3].range.high, 63);
  CHECK(network.tensors[4].real);
  // Byte 255 is (255 - 127.5) / 128, of which the head takes half, at a scale of 1/128.
  CHECK_EQ(int{network.pixels[255]}, 63);
  CHECK_EQ(int{network.pixels[0]}, -63);
  CHECK_EQ(int{network.pixels[130]}, 1);
}

// The integers of a network are those of the file less the zero point; so only the ranges differ.
void test_zero_points() {
  const Network network = read(testing::onnx_file({.zero_point = 128 - 28})).network;
  for (const int operand : {0, 3}) {
    CHECK_EQ(network.tensors[operand].range.low, -63 + 28);
    CHECK_EQ(network.tensors[operand].range.high, 63 + 28);
  }
  for (const int other : {1, 2}) CHECK_EQ(network.tensors[other].range.high, 127);
  CHECK_EQ(int{network.pixels[255]}, 64);
  CHECK_EQ(int{network.pixels[0]}, -35);
  CHECK_EQ(int{network.pixels[130]}, 1);
  for (const int zero_point : {65, 191}) read(testing::onnx_file({.zero_point = zero_point}));
}

// A file of a picture and of these nodes and constants.
std::string file_of(const testing::Message& nodes, const std::vector<std::string>& outputs = {"y"},
                    const std::vector<int>& picture = {1, 1, 4, 4}) {
  testing::Message graph;
  graph.message(11, testing::value_info("data", picture));
  for (const std::string& output : outputs) graph.message(12, testing::value_info(output, {}));
  graph.message(5, testing::constant<uint8_t>("zero", 2, {}, {128}));
  return testing::int7_file(graph.fields(nodes));
}

// A PRelu in parts is the one layer of a PRelu, its operands in any order; parts that others read, too, are none.
void test_prelu_in_parts() {
  using testing::constant, testing::Message, testing::node;
  const auto network_of = [](bool swapped, float zero, const std::vector<std::string>& outputs) {
    Message nodes;
    testing::add_pair(nodes, "data", 0.1f);
    nodes.message(5, constant<float>("slope", 1, {1, 1, 1}, {0.25f}));
    nodes.message(5, constant<float>("least", 1, {}, {zero}));
    const auto add = [&](const std::string& op, std::vector<std::string> inputs, const std::string& y) {
      if (swapped) std::reverse(inputs.begin(), inputs.end());
      nodes.message(1, node("to_" + y, op, inputs, y));
    };
    add("Relu", {"data.dq"}, "positive");
    add("Min", {"data.dq", "least"}, "below");
    add("Mul", {"below", "slope"}, "negative");
    add("Add", {"positive", "negative"}, "p");
    testing::add_pair(nodes, "p", 0.1f);
    nodes.message(1, node("to_y", "GlobalAveragePool", {"p.dq"}, "y"));
    return read(file_of(nodes, outputs)).network;
  };
  for (const bool swapped : {false, true}) {
    const Network network = network_of(swapped, 0, {"y"});
    CHECK_EQ(network.layers.size(), size_t{2});
    CHECK(network.layers[0].kind == LayerSpec::Kind::pointwise);
    CHECK_EQ(network.layers[0].name, std::string("to_p"));
    CHECK(network.layers[0].positive == std::vector<float>{1});
    CHECK(network.layers[0].negative == std::vector<float>{0.25f});
    CHECK(network_of(swapped, 0.5f, {"y"}).layers[0].kind == LayerSpec::Kind::node);
    for (const char* part : {"positive", "below", "negative"})
      CHECK(network_of(swapped, 0, {"y", part}).layers[0].kind == LayerSpec::Kind::node);
  }
}

// A Relu between pairs of quantization is a layer without slopes; before a node that reads it as it is, a function.
void test_relu() {
  using testing::Message, testing::node;
  for (const bool quantized : {true, false}) {
    Message nodes;
    testing::add_pair(nodes, "data", 0.1f);
    nodes.message(1, node("to_r", "Relu", {"data.dq"}, "r"));
    if (quantized) testing::add_pair(nodes, "r", 0.1f);
    nodes.message(1, node("to_y", "GlobalAveragePool", {quantized ? "r.dq" : "r"}, "y"));
    const Network network = read(file_of(nodes)).network;
    CHECK((network.layers[0].kind == LayerSpec::Kind::pointwise) == quantized);
    if (quantized) CHECK(network.layers[0].negative == std::vector<float>{0});
  }
}

// The network has the batch that the file's input lacks.
void test_without_batch() {
  using testing::Message, testing::node;
  const auto network_of = [](std::optional<int64_t> axis) {
    Message nodes;
    const std::string x = axis ? "x" : "data";
    if (axis) {
      nodes.message(5, testing::constant<int64_t>("axis", 7, {1}, {*axis}));
      nodes.message(1, node("to_x", "Unsqueeze", {"data", "axis"}, "x"));
    }
    testing::add_pair(nodes, x, 0.1f);
    nodes.message(1, node("to_y", "GlobalAveragePool", {x + ".dq"}, "y"));
    return read(file_of(nodes, {"y"}, {2, 4, 5})).network;
  };
  const TensorSpec picture = network_of(0).tensors[0];
  CHECK(picture.channels == 2 && picture.height == 4 && picture.width == 5 && !picture.real);
  CHECK_THROWS(network_of(1), std::invalid_argument, "to_x: is no Unsqueeze to a batch of one");
  CHECK_THROWS(network_of(std::nullopt), std::invalid_argument, "reads a picture without a batch");
}

// The axis of a bias says that what it is added to are products of eight bits.
void test_eight_bits() {
  const Network network = read(testing::onnx_file({.bias_axis = -1})).network;
  for (const TensorSpec& tensor : network.tensors) {
    if (tensor.real) continue;
    CHECK_EQ(tensor.range.low, -127);
    CHECK_EQ(tensor.range.high, 127);
  }
  // As in test_reads, without the bound of seven bits.
  CHECK_EQ(int{network.pixels[255]}, 64);
  CHECK_THROWS(read(testing::onnx_file({.zero_point = 127, .bias_axis = -1})), std::invalid_argument,
               "to_c: reads integers of 8 bits with a zero point");
  for (const int axis : {-2, 1}) {
    CHECK_THROWS(read(testing::onnx_file({.bias_axis = axis})), std::invalid_argument, "scales along another axis");
  }
  // Two convolutions that read one tensor, after a Slice the second.
  const auto two_readers = [](int first, int second) {
    testing::Message graph;
    graph.message(11, testing::value_info("data", {1, 3, 4, 4}));
    for (const char* output : {"a", "b"}) graph.message(12, testing::value_info(output, {1, 2, 4, 4}));
    graph.message(5, testing::constant<uint8_t>("zero", 2, {}, {128}));
    testing::add_pair(graph, "data", 1.0f / 128);
    const auto whole = [&](const std::string& name, int64_t value) {
      graph.message(5, testing::constant<int64_t>(name, 7, {1}, {value}));
    };
    whole("begin", 0);
    whole("end", 2);
    whole("axes", 1);
    graph.message(1, testing::node("slice", "Slice", {"data.dq", "begin", "end", "axes"}, "s"));
    testing::add_pair(graph, "s", 1.0f / 128);
    testing::add_weights(graph, "v", {2, 3, 1, 1}, 1.0f / 128, {.bias_axis = first});
    testing::add_weights(graph, "w", {2, 2, 1, 1}, 1.0f / 128, {.bias_axis = second});
    graph.message(1, testing::node("to_a", "Conv", {"data.dq", "v.weight", "v.bias"}, "a"));
    graph.message(1, testing::node("to_b", "Conv", {"s.dq", "w.weight", "w.bias"}, "b"));
    return testing::int7_file(graph);
  };
  for (const int axis : {0, -1}) {
    CHECK_EQ(read(two_readers(axis, axis)).network.tensors[1].range.high, axis == 0 ? 63 : 127);
    CHECK_THROWS(read(two_readers(axis, -1 - axis)), std::invalid_argument,
                 "to_b: reads integers of other bits than another layer");
  }
}

// Whatever a file holds, it is read or refused.
void test_damaged() {
  const std::string file = testing::onnx_file();
  for (size_t size = 0; size < file.size(); ++size) {
    // What is left out at the end is the metadata, without which a file is refused.
    CHECK_THROWS(read(file.substr(0, size)), std::invalid_argument, "");
  }
  std::mt19937 source(5);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = file;
    for (int change = static_cast<int>(source() % 3); change >= 0; --change) {
      const size_t at = source() % damaged.size();
      switch (source() % 4) {
        case 0:
          damaged[at] = static_cast<char>(source());
          break;
        case 1:
          damaged[at] = static_cast<char>(damaged[at] ^ (1 << source() % 8));
          break;
        case 2:
          damaged.erase(at, source() % 9);
          break;
        default:
          damaged.insert(at, 1 + source() % 9, static_cast<char>(source()));
      }
    }
    try {
      read(damaged);
    } catch (const std::invalid_argument&) {
      ++refused;
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > 10000);
  CHECK(refused < 20000);
}

void test_refusals() {
  using testing::Message, testing::onnx_file;
  CHECK_THROWS(read(""), std::invalid_argument, "empty; a model.int7.onnx");
  const std::string only_version = Message().integer(1, 8).text();
  CHECK_THROWS(read(only_version), std::invalid_argument, "has no metadata facetrain.format");
  const Message format = Message().bytes(1, "facetrain.format").bytes(2, "int7-tensorrt");
  CHECK_THROWS(read(onnx_file() + Message().message(14, format).text()), std::invalid_argument,
               "of the form for TensorRT");
  const auto of_version = [](const std::string& version) {
    const Message entry = Message().bytes(1, "facetrain.version").bytes(2, version);
    return onnx_file() + Message().message(14, entry).text();
  };
  CHECK_EQ(read(onnx_file()).version, 1);
  CHECK_EQ(read(of_version("1")).version, 1);
  CHECK_EQ(read(of_version("2")).version, 2);
  CHECK_THROWS(read(of_version("3")), std::invalid_argument, "of version 3 of the format; at most 2, so a newer");
  for (const char* version : {"", "0", "-1", "1.0", "99999999999999999999999"})
    CHECK_THROWS(read(of_version(version)), std::invalid_argument, "has metadata facetrain.version that is no number");
  CHECK_THROWS(read(onnx_file({.weight = 64})), std::invalid_argument, "to_c: has a weight beyond 63");
  CHECK_THROWS(read(onnx_file({.op = "Mystery"})), Error, "layer 'to_p': operator Mystery; one of Abs, Add");
  CHECK_THROWS(read(onnx_file({.stride = 0})), std::invalid_argument, "has impossible strides");
  CHECK_THROWS(read(onnx_file({.height = 1 << 15})), std::invalid_argument, "too large");
  for (const int zero_point : {0, 64, 192}) {
    CHECK_THROWS(read(onnx_file({.zero_point = zero_point})), std::invalid_argument,
                 "has a zero point outside 65 to 191");
  }
  CHECK_THROWS(read(onnx_file({.zero_point_behind = 127})), std::invalid_argument,
               "from_f: has another scale or zero point than the quantization");
  CHECK_THROWS(read(onnx_file({.other_zero_point = 127})), std::invalid_argument,
               "has a zero point of a tensor that no convolution reads");
  CHECK_THROWS(read(onnx_file({.channels = 5})), std::invalid_argument, "the input: has more than four channels");
  CHECK_THROWS(read(onnx_file({.bias_dims = {1, 10}})), std::invalid_argument, "to_c: has a bias of another size");
  CHECK_THROWS(read(onnx_file({.scale_axis = 1})), std::invalid_argument, "scales along another axis");
  CHECK_THROWS(read(onnx_file({.input_scale = 1e-13f})), std::invalid_argument, "a scale outside 1e-12 to 1e12");
  CHECK_THROWS(read(onnx_file({.input_scale = 1e13f})), std::invalid_argument, "a scale outside 1e-12 to 1e12");
  CHECK_THROWS(read(onnx_file({.slope = -1e13f})), std::invalid_argument, "slope: has a value beyond 1e12");
  CHECK_THROWS(read(onnx_file({.slope_layers = 1000})), std::invalid_argument, "to_p: has the slopes of another layer");
  // Attributes that the runtime does not compute with, and their defaults.
  using testing::number, testing::real, testing::word;
  CHECK_THROWS(read(onnx_file({.conv = word("auto_pad", "SAME_UPPER")})), std::invalid_argument,
               "to_c: has auto_pad SAME_UPPER");
  CHECK_THROWS(read(onnx_file({.conv = Message().message(5, testing::integers("kernel_shape", {3, 5}))})),
               std::invalid_argument, "to_c: has another kernel_shape than its weights");
  CHECK_THROWS(read(onnx_file({.gemm = real("alpha", 2)})), std::invalid_argument, "to_e: has alpha 2");
  CHECK_THROWS(read(onnx_file({.gemm = real("beta", 0)})), std::invalid_argument, "to_e: has beta 0");
  CHECK_THROWS(read(onnx_file({.gemm = number("transA", 1)})), std::invalid_argument, "to_e: has transA 1");
  // A number of zero that the file leaves out.
  const auto left_out = [](const char* name, int type) {
    return Message().message(5, Message().bytes(1, name).integer(20, type));
  };
  CHECK_THROWS(read(onnx_file({.gemm = left_out("beta", 1)})), std::invalid_argument, "to_e: has beta 0");
  read(onnx_file({.gemm = left_out("transA", 2)}));
  read(onnx_file({.conv = word("auto_pad", "NOTSET"),
                  .gemm = real("alpha", 1).fields(real("beta", 1)).fields(number("transA", 0))}));
  for (const char* op : {"Mul", "Add"}) {
    CHECK_THROWS(read(onnx_file({.late_head = op})), std::invalid_argument, "late: computes with the picture after");
  }
  for (const char* op : {"Sub", "Div"}) {
    CHECK_THROWS(read(onnx_file({.late_head = op})), std::invalid_argument, "late: reads 'x' unquantized");
  }
  CHECK_THROWS(read(onnx_file({.heads = 2})), std::invalid_argument,
               "head: reads 'data', which no earlier node computes");
}

// Operators of other runtimes behind the outputs.
void test_tail() {
  const OnnxModel with = read(testing::detector_file(128, 0, true)), without = read(testing::detector_file());
  CHECK_EQ(with.version, 2);
  CHECK_EQ(with.metadata.at("facetrain.tail"), std::string("Mystery 1, Softmax 1"));
  CHECK_EQ(with.network.layers.size(), without.network.layers.size());
  CHECK_EQ(with.outputs.size(), size_t{2});
  for (size_t i = 0; i < with.outputs.size(); ++i) {
    CHECK_EQ(with.outputs[i].name, without.outputs[i].name);
    CHECK(with.outputs[i].dims == without.outputs[i].dims);
    CHECK_EQ(with.network.outputs[i], without.network.outputs[i]);
  }
  const auto of_outputs = [](const std::string& outputs) {
    return testing::onnx_file() +
           testing::Message().message(14, testing::Message().bytes(1, "facetrain.outputs").bytes(2, outputs)).text();
  };
  CHECK_EQ(read(of_outputs("a")).outputs[0].name, std::string("a"));
  CHECK_THROWS(read(of_outputs("")), std::invalid_argument, ": is an output that no layer computes");
  CHECK_THROWS(read(of_outputs("a\n")), std::invalid_argument, ": is an output that no layer computes");
  CHECK_THROWS(read(of_outputs("data")), std::invalid_argument, "data: is an output that no layer computes");
}

// Nodes of which a file may ask for more than it has.
void test_nodes() {
  using testing::constant, testing::Message, testing::node;
  Message empty;
  std::vector<float> none;
  none.reserve(1);
  empty.message(5, constant<float>("none", 1, {1, 1, 0, 0}, none));
  empty.message(5, constant<int64_t>("sizes", 7, {4}, {1, 1, 2, 2}));
  empty.message(5, constant<int64_t>("pads", 7, {8}, {0, 0, 1, 1, 0, 0, 1, 1}));
  const auto of_none = [&](const std::string& op, const std::vector<std::string>& inputs, const Message& attributes) {
    Message nodes = empty;
    return file_of(nodes.message(1, node("to_y", op, inputs, "y").fields(attributes)));
  };
  CHECK_THROWS(read(of_none("Resize", {"none", "data", "", "sizes"}, {})), Error, "Resize with an empty operand");
  CHECK_THROWS(read(of_none("Pad", {"none", "pads", "", "data"}, testing::word("mode", "edge"))), Error,
               "Pad with an empty operand");
  const Message window = Message().message(5, testing::integers("kernel_shape", {2, 2}));
  read(of_none("MaxPool", {"data"}, window));
  CHECK_THROWS(read(of_none("MaxPool", {"data"}, Message(window).fields(testing::word("auto_pad", "SAME_UPPER")))),
               Error, "MaxPool with auto_pad SAME_UPPER; explicit pads");

  // A function of the quantized picture is no head.
  Message function;
  testing::add_pair(function, "data", 0.1f);
  function.message(5, constant<float>("one", 1, {}, {1}));
  function.message(1, node("a", "Abs", {"data.dq"}, "a"));
  function.message(1, node("b", "Add", {"a", "one"}, "y"));
  CHECK_EQ(read(file_of(function)).network.layers.size(), size_t{1});

  // Functions that share a node with long attributes.
  Message shared;
  testing::add_pair(shared, "data", 0.1f);
  shared.message(1, node("a", "Abs", {"data.dq"}, "a").fields(testing::word("note", std::string(10000, 'x'))));
  std::vector<std::string> outputs;
  for (int i = 0; i < 10; ++i) {
    outputs.push_back("y" + std::to_string(i));
    shared.message(1, node(outputs.back(), "Neg", {"a"}, outputs.back()));
  }
  CHECK_THROWS(read(file_of(shared, outputs)), std::invalid_argument, "has the attributes of too many functions");

  // Weights that share their scales.
  Message weights;
  weights.message(5, constant<int8_t>("w", 3, {1000}, std::vector<int8_t>(1000)));
  weights.message(5, constant<float>("s", 1, {1000}, std::vector<float>(1000, 1)));
  for (int i = 0; i < 10; ++i) {
    const std::string name = "w" + std::to_string(i);
    weights.message(1, node(name, "DequantizeLinear", {"w", "s"}, name).fields(testing::number("axis", 0)));
  }
  CHECK_THROWS(read(file_of(weights)), std::invalid_argument, "has the scales of other weights");
}

}  // namespace
}  // namespace facetrain::int7

int main() {
  using namespace facetrain::int7;
  test_reads();
  test_zero_points();
  test_prelu_in_parts();
  test_relu();
  test_without_batch();
  test_eight_bits();
  test_damaged();
  test_refusals();
  test_tail();
  test_nodes();
  return TEST_RESULT();
}
