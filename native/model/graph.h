// A face backbone as plain data: native/src/types.ts's Graph on the C++ side. Knows no torch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

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
  std::vector<float> floats;
  std::vector<int64_t> ints;
};

struct Graph {
  struct {
    std::string name;
    int64_t channels = 3, height = 112, width = 112;
  } input;
  struct {
    std::string name;
    int64_t dim = 512;
  } output;
  std::vector<Node> nodes;  // in topological order
  std::map<std::string, Constant> initializers;
};

}  // namespace facetrain
