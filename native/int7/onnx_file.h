// What an ONNX file holds, read from memory that is not trusted, without copying weights. Knows the format, and nothing
// of what the nodes mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace facetrain::int7 {

// Numbers of TensorProto.DataType.
enum OnnxType { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7 };

// Throws InvalidModel: "<part>: <found>; a model.int7.onnx of Facetrain is wanted".
[[noreturn]] void refuse(std::string_view part, const std::string& found);
// The same about the whole file, without a name: the caller knows it.
[[noreturn]] void refuse_file(const std::string& found);

struct OnnxConstant {
  int type = 0;
  std::vector<int64_t> dims;
  std::string_view raw;
  bool unreadable = false;  // in another file, or of more than eight dimensions
};

struct OnnxNode {
  std::string_view name, op;
  std::vector<std::string_view> inputs, outputs;
  std::map<std::string_view, std::vector<double>> numbers;  // attributes: numbers, and lists of them
  std::map<std::string_view, std::string_view> texts;       // attributes: strings
};

// The views are into the file's memory.
struct OnnxFile {
  int version = 1;              // of the format
  std::vector<OnnxNode> nodes;  // as the file has them, but for those of its tail
  std::map<std::string_view, OnnxConstant> constants;
  std::string_view input;
  std::vector<int64_t> input_dims;  // -1: free
  int input_type = 0;
  std::vector<std::string_view> outputs;  // in front of the tail
  std::map<std::string_view, std::string_view> metadata;
};

// Throws InvalidModel for a damaged file, or one without exactly one input.
OnnxFile parse_onnx(const uint8_t* data, size_t size);

}  // namespace facetrain::int7
