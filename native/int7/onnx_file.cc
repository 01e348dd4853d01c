#include "int7/onnx_file.h"

#include <charconv>
#include <set>

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
        if (constant.dims.size() == kMostAxes) {
          constant.unreadable = true;
        } else {
          constant.dims.push_back(dim);
        }
      });
    if (field.number() == 2) constant.type = static_cast<int>(field.integer());
    if (field.number() == 8) name = field.bytes();
    if (field.number() == 9) constant.raw = field.bytes();
    if (field.number() == 14 && field.integer() != 0) constant.unreadable = true;
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

// Without its attributes.
OnnxNode read_node(std::string_view bytes) {
  OnnxNode node;
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 1) node.inputs.push_back(field.bytes());
    if (field.number() == 2) node.outputs.push_back(field.bytes());
    if (field.number() == 3) node.name = field.bytes();
    if (field.number() == 4) node.op = field.bytes();
  }
  return node;
}

void read_attributes(std::string_view bytes, OnnxNode& node) {
  for (Protobuf field(bytes); field.next();) {
    if (field.number() == 5) read_attribute(field.bytes(), node);
  }
}

// What computes the outputs: the other nodes are a tail, of operators for other runtimes, which may be anything.
std::vector<bool> needed_nodes(const OnnxFile& file) {
  std::vector<bool> needed(file.nodes.size());
  std::set<std::string_view> values(file.outputs.begin(), file.outputs.end());
  for (size_t i = needed.size(); i-- > 0;) {
    for (const std::string_view output : file.nodes[i].outputs) needed[i] = needed[i] || values.count(output) > 0;
    if (needed[i]) values.insert(file.nodes[i].inputs.begin(), file.nodes[i].inputs.end());
  }
  return needed;
}

// The names of the values in front of the tail, a line each; empty for a file without one.
std::vector<std::string_view> outputs_of_metadata(const OnnxFile& file) {
  std::vector<std::string_view> names;
  const auto found = file.metadata.find("facetrain.outputs");
  if (found == file.metadata.end()) return names;
  std::string_view rest = found->second;
  for (size_t end = 0; end != std::string_view::npos && names.size() <= kMostNodes;) {
    end = rest.find('\n');
    names.push_back(rest.substr(0, end));
    if (end != std::string_view::npos) rest.remove_prefix(end + 1);
  }
  return names;
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
  file.outputs = outputs_of_metadata(file);
  const bool has_tail = !file.outputs.empty();
  std::vector<std::string_view> bytes;  // of the nodes
  int inputs = 0;
  for (Protobuf field(graph); field.next();) {
    if (field.number() == 1) {
      if (file.nodes.size() == kMostNodes) refuse("the graph", "has more than 65536 nodes");
      bytes.push_back(field.bytes());
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
    if (field.number() == 12 && !has_tail) {
      std::vector<int64_t> dims;
      int type = kFloat;
      file.outputs.push_back(read_value_info(field.bytes(), dims, type));
      if (type != kFloat) refuse(file.outputs.back(), "is not of float32");
    }
  }
  if (inputs == 0) refuse("the graph", "has no input");
  const std::vector<bool> needed = has_tail ? needed_nodes(file) : std::vector<bool>(bytes.size(), true);
  size_t kept = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (!needed[i]) continue;
    read_attributes(bytes[i], file.nodes[i]);
    std::swap(file.nodes[kept++], file.nodes[i]);
  }
  file.nodes.resize(kept);
}

// A newer format may mean something else by the same nodes. The first files did not say theirs.
void read_version(OnnxFile& file) {
  constexpr int kNewest = 2;
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
