// Fuzzes what the C library does with a file that is not trusted (libFuzzer, https://llvm.org/docs/LibFuzzer.html): it
// is read or refused; what is read is planned for every instruction set of the machine, all of which compute the same.
// `npm run fuzz` builds this with Clang and the address and undefined-behavior sanitizers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "error.h"
#include "int7/onnx_reader.h"
#include "int7/runtime.h"
#include "int7/testing/mutate.h"
#include "int7/testing/onnx_file.h"

namespace {

using namespace facetrain;
using namespace facetrain::int7;

constexpr int64_t kLargestMemory = int64_t{1} << 24;
constexpr int64_t kMostWork = 1 << 22;  // multiplications, and numbers of tensors; what takes longer is not run

int64_t work_of(const Network& network) {
  int64_t work = 0;
  for (const TensorSpec& tensor : network.tensors) work += tensor.size();
  for (const LayerSpec& layer : network.layers) {
    if (layer.kind == LayerSpec::Kind::conv) work += layer.shape.macs();
  }
  return work;
}

// The numbers of all outputs, or nothing where the plan is refused.
std::optional<std::vector<float>> compute(const Network& network, Isa isa, const std::vector<uint8_t>& picture,
                                          bool runs) {
  try {
    const Runtime runtime(network, isa, kLargestMemory);
    std::vector<float> output(runtime.output_size());
    if (runs) {
      Runtime::Context context(runtime);
      runtime.run(context, picture.data(), output.data());
    }
    return output;
  } catch (const InvalidModel&) {
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

void check(const Network& network) {
  const int64_t work = work_of(network);
  const bool runs = work <= kMostWork;
  std::mt19937 source(3);
  std::vector<uint8_t> picture(runs ? network.tensors[0].size() : 0);
  for (uint8_t& byte : picture) byte = static_cast<uint8_t>(source());
  const auto expected = compute(network, Isa::portable, picture, runs);
  for (const Isa isa : kIsas) {
    if (isa == Isa::portable || !supported(isa)) continue;
    const auto found = compute(network, isa, picture, runs);
    // Packed weights differ in size, so one of the two may be refused for its memory.
    if (!expected || !found) continue;
    if (std::memcmp(expected->data(), found->data(), expected->size() * sizeof(float)) != 0) {
      std::fprintf(stderr, "%s computes other numbers than the portable kernels\n", name_of(isa));
      std::abort();
    }
  }
}

// Of what convolutions multiply.
uint8_t random_zero_point(testing::Source& source) { return static_cast<uint8_t>(65 + testing::below(source, 127)); }
// Of biases: seven or eight bits.
int random_axis(testing::Source& source) { return -static_cast<int>(testing::below(source, 2)); }

// A file that can be read. What convolutions multiply has a zero point, or eight bits without one.
std::string readable_file(testing::Source& source) {
  const int axis = random_axis(source);
  const int zero_point = axis == 0 ? random_zero_point(source) : 128;
  if (testing::below(source, 2) == 0) return testing::onnx_file({.zero_point = zero_point, .bias_axis = axis});
  return testing::detector_file(zero_point, axis, testing::below(source, 2) == 0);
}

// A file of one to five random nodes on a picture [1, 2, 6, 5] and on constants. Most are refused, and libFuzzer goes
// on from those that reach further.
std::string random_nodes(testing::Source& source) {
  using testing::below, testing::constant, testing::Message;
  static const char* const operators[] = {"Add",
                                          "AveragePool",
                                          "BatchNormalization",
                                          "Clip",
                                          "Concat",
                                          "Conv",
                                          "ConvTranspose",
                                          "DepthToSpace",
                                          "Expand",
                                          "Gather",
                                          "Gemm",
                                          "GlobalAveragePool",
                                          "GlobalMaxPool",
                                          "HardSwish",
                                          "LRN",
                                          "LayerNormalization",
                                          "LpPool",
                                          "MatMul",
                                          "Max",
                                          "MaxPool",
                                          "Mul",
                                          "PRelu",
                                          "Pad",
                                          "ReduceMean",
                                          "Reshape",
                                          "Resize",
                                          "Sigmoid",
                                          "Slice",
                                          "Softmax",
                                          "SpaceToDepth",
                                          "Split",
                                          "Squeeze",
                                          "Sub",
                                          "Tile",
                                          "Transpose",
                                          "Unsqueeze"};
  const auto few = [&] { return static_cast<int>(below(source, 4)); };
  const auto list = [&](const char* name, int count, int least) {
    std::vector<int> values;
    for (int i = 0; i < count; ++i) values.push_back(least + static_cast<int>(below(source, 3)));
    return Message().message(5, testing::integers(name, values));
  };
  Message graph;
  graph.message(11, testing::value_info("data", {1, 2, 6, 5}));
  graph.message(5, constant<uint8_t>("zero", 2, {}, {128}));
  graph.message(5, constant<uint8_t>("other_zero", 2, {}, {random_zero_point(source)}));
  const auto add_pair = [&](const std::string& value, float scale) {
    testing::add_pair(graph, value, scale, below(source, 2) == 0 ? "zero" : "other_zero");
  };
  add_pair("data", 1.0f / 128);
  std::vector<std::string> values = {"data", "data.dq", "data.dq"};
  const std::vector<int> shapes[] = {{}, {2}, {1, 2, 6, 5}, {1, 2, 1, 1}, {2, 1, 1}, {1, 1, 6, 5}, {2, 2, 3, 3}};
  for (const std::vector<int>& shape : shapes) {
    size_t size = 1;
    for (const int dim : shape) size *= dim;
    const std::string name = "c" + std::to_string(values.size());
    graph.message(5, constant<float>(name, 1, shape, std::vector<float>(size, 0.5f)));
    values.push_back(name);
  }
  for (const int count : {1, 2, 4, 8}) {
    std::vector<int64_t> numbers;
    for (int i = 0; i < count; ++i) numbers.push_back(few());
    values.push_back("i" + std::to_string(count));
    graph.message(5, constant<int64_t>(values.back(), 7, {count}, numbers));
  }
  testing::add_weights(graph, "w", {2, 2, 3, 3}, 1.0f / 128, {.bias_axis = random_axis(source)});
  values.emplace_back("w.weight");
  const size_t constants = values.size();
  for (uint64_t nodes = 1 + below(source, 5); nodes > 0; --nodes) {
    const char* op = operators[below(source, std::size(operators))];
    std::vector<std::string> inputs;
    for (uint64_t operands = 1 + below(source, 3); operands > 0; --operands) {
      // Every second one is the newest value.
      inputs.push_back(below(source, 2) == 0 ? values[below(source, values.size())]
                                             : (values.size() == constants ? "data.dq" : values.back()));
    }
    const std::string output = "y" + std::to_string(values.size());
    Message node = testing::node(output, op, inputs, output);
    if (below(source, 2) == 0) node.fields(list("kernel_shape", 2, 1));
    if (below(source, 3) == 0) node.fields(list("strides", 2, 1));
    if (below(source, 3) == 0) node.fields(list("pads", 4, 0));
    if (below(source, 3) == 0) node.fields(list("axes", 1 + few(), -1));
    if (below(source, 3) == 0) node.fields(testing::number("axis", few() - 1));
    if (below(source, 6) == 0) node.fields(testing::number("group", few()));
    graph.message(1, node);
    values.push_back(output);
    if (below(source, 2) == 0) {
      add_pair(output, 0.05f);
      values.push_back(output + ".dq");
    }
  }
  graph.message(12, testing::value_info(values.back(), {}));
  if (below(source, 4) != 0) return testing::int7_file(graph);
  const std::string& output = values[constants + below(source, values.size() - constants)];
  return testing::int7_file(graph, {{"facetrain.outputs", output + "\n" + values.back()}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy of the exact size, so that a sanitizer sees a byte beyond it.
  const std::vector<uint8_t> bytes(data, data + size);
  try {
    check(read_onnx(bytes.data(), bytes.size()).network);
  } catch (const InvalidModel&) {
  } catch (const Error&) {
  }
  return 0;
}

// libFuzzer begins with an empty input, for which this gives a file; so no corpus is needed.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  testing::Source source(seed);
  std::string file(reinterpret_cast<const char*>(data), size);
  const uint64_t choice = testing::below(source, 8);
  if (size < 8 || choice == 0) {
    file = choice < 5 ? random_nodes(source) : readable_file(source);
  } else {
    file = testing::mutated(file, source);
  }
  if (file.size() > most) return size;
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
