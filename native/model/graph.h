// A face backbone as plain data: the C++ counterpart of native/src/types.ts's Graph. Knows no torch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "pixel_range.h"

namespace facetrain {

using Attribute = std::variant<int64_t, double, std::string, std::vector<int64_t>, std::vector<double>>;

struct Node {
  std::string name, op;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, Attribute> attributes;
};

struct Constant {
  enum class Type { float32, int64 } type = Type::float32;
  std::vector<int64_t> dims;
  // The one of the type holds the values, row-major; the other is empty.
  std::vector<float> floats;
  std::vector<int64_t> ints;
};

struct Graph {
  struct {
    std::string name;
    int64_t channels = 0, height = 0, width = 0;
    PixelRange range = {};
  } input;
  struct {
    std::string name;
    int64_t dim = 0;
  } output;
  std::vector<Node> nodes;  // in topological order
  std::map<std::string, Constant> initializers;
};

}  // namespace facetrain
