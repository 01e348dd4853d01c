#include "int7/onnx_file.h"

#include <charconv>

#include "int7/protobuf.h"

namespace facetrain::int7 {
namespace {

constexpr size_t kMostAxes = 8;
constexpr size_t kLongestList = 64;  // of an attribute: the pads of eight axes have 16 entries
// Of one file, with which every later step takes less than a second.
constexpr size_t kMostNodes = 1 << 16;

OnnxConstant read_constant(std::string_view bytes, std::string_view& name) {
  OnnxConstant constant;
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 1)
      field.integers([&](int64_t dim) {
        if (constant.dims.size() == kMostAxes) refuse("a constant", "has more than eight dimensions");
        constant.dims.push_back(dim);
      });
    if (field.number() == 2) constant.type = static_cast<int>(field.integer());
    if (field.number() == 8) name = field.bytes();
    if (field.number() == 9) constant.raw = field.bytes();
    if (field.number() == 14) constant.external = field.integer() != 0;
  }
  return constant;
}

void read_attribute(std::string_view bytes, OnnxNode& node) {
  std::string_view name, text;
  std::vector<double> numbers;
  bool is_text = false;
  int64_t type = 0;
  const auto add = [&](double number) {
    if (numbers.size() == kLongestList) refuse(node.name, "has an attribute of more than 64 numbers");
    numbers.push_back(number);
  };
  for (Protobuf part(bytes); part.next();) {
    if (part.number() == 1) name = part.bytes();
    if (part.number() == 2) add(part.real());
    if (part.number() == 3) add(static_cast<double>(part.integer()));
    if (part.number() == 4) {
      text = part.bytes();
      is_text = true;
    }
    if (part.number() == 7) part.reals(add);
    if (part.number() == 20) type = part.integer();
    if (part.number() == 8) part.integers([&](int64_t value) { add(static_cast<double>(value)); });
  }
  // A number of zero may be left out: it is the default of protocol buffers.
  constexpr int64_t kReal = 1, kInteger = 2;
  if (numbers.empty() && (type == kReal || type == kInteger)) numbers.push_back(0);
  if (is_text) {
    node.texts[name] = text;
  } else {
    node.numbers[name] = std::move(numbers);
  }
}

OnnxNode read_node(std::string_view bytes) {
  OnnxNode node;
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 1) node.inputs.push_back(field.bytes());
    if (field.number() == 2) node.outputs.push_back(field.bytes());
    if (field.number() == 3) node.name = field.bytes();
    if (field.number() == 4) node.op = field.bytes();
    if (field.number() == 5) read_attribute(field.bytes(), node);
  }
  return node;
}

// Name, type and sizes of a graph's input or output; a size that is free is -1.
std::string_view read_value_info(std::string_view bytes, std::vector<int64_t>& dims, int& type_number) {
  std::string_view name;
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 1) name = field.bytes();
    if (field.number() != 2) continue;
    for (Protobuf type(field.bytes()); type.next();) {
      if (type.number() != 1) continue;
      for (Protobuf tensor(type.bytes()); tensor.next();) {
        if (tensor.number() == 1) type_number = static_cast<int>(tensor.integer());
        if (tensor.number() != 2) continue;
        for (Protobuf shape(tensor.bytes()); shape.next();) {
          if (shape.number() != 1) continue;
          int64_t size = -1;
          for (Protobuf dim(shape.bytes()); dim.next();) {
            if (dim.number() == 1) size = dim.integer();
          }
          if (dims.size() == kMostAxes) refuse(name, "has more than eight dimensions");
          dims.push_back(size);
        }
      }
    }
  }
  return name;
}

void read_graph(std::string_view graph, OnnxFile& file) {
  int inputs = 0;
  for (Protobuf field(graph); field.next();) {
    if (field.number() == 1) {
      if (file.nodes.size() == kMostNodes) refuse("the graph", "has more than 65536 nodes");
      file.nodes.push_back(read_node(field.bytes()));
    }
    if (field.number() == 5) {
      std::string_view name;
      OnnxConstant constant = read_constant(field.bytes(), name);
      file.constants[name] = std::move(constant);
    }
    if (field.number() == 11) {
      if (inputs++ > 0) refuse("the graph", "has several inputs");
      file.input = read_value_info(field.bytes(), file.input_dims, file.input_type);
    }
    if (field.number() == 12) {
      std::vector<int64_t> dims;
      int type = kFloat;
      file.outputs.push_back(read_value_info(field.bytes(), dims, type));
      if (type != kFloat) refuse(file.outputs.back(), "is not of float32");
    }
  }
  if (inputs == 0) refuse("the graph", "has no input");
}

// A newer format may mean something else by the same nodes. The first files did not say theirs.
void read_version(OnnxFile& file) {
  constexpr int kNewest = 1;
  const auto found = file.metadata.find("facetrain.version");
  if (found == file.metadata.end()) return;
  const std::string_view text = found->second.substr(0, 20);
  const char* const end = text.data() + text.size();
  const auto [last, error] = std::from_chars(text.data(), end, file.version);
  if (error != std::errc() || last != end || file.version < 1)
    refuse_file("has metadata facetrain.version that is no number from 1 on");
  if (file.version > kNewest) {
    throw InvalidModel("of version " + std::to_string(file.version) + " of the format",
                       "at most " + std::to_string(kNewest) + ", so a newer Facetrain is needed");
  }
}

}  // namespace

void refuse(std::string_view part, const std::string& found) { refuse_file(std::string(part) + ": " + found); }

void refuse_file(const std::string& found) { throw InvalidModel(found, "a model.int7.onnx of Facetrain is wanted"); }

OnnxFile parse_onnx(const uint8_t* data, size_t size) {
  OnnxFile file;
  std::string_view graph;
  for (Protobuf field(data, size); field.next();) {
    if (field.number() == 7) graph = field.bytes();
    if (field.number() != 14) continue;
    std::string_view key, value;
    for (Protobuf pair(field.bytes()); pair.next();) {
      if (pair.number() == 1) key = pair.bytes();
      if (pair.number() == 2) value = pair.bytes();
    }
    file.metadata[key] = value;
  }
  const auto format = file.metadata.find("facetrain.format");
  if (size == 0) refuse_file("empty");
  if (format == file.metadata.end()) refuse_file("has no metadata facetrain.format, so no INT7 network");
  if (format->second == "int7-tensorrt")
    throw InvalidModel("of the form for TensorRT",
                       "the model.int7.onnx of the same folder is wanted, which has the same weights and scales");
  if (format->second != "int7") refuse_file("in another form");
  read_version(file);
  read_graph(graph, file);
  return file;
}

}  // namespace facetrain::int7
