// Reads a backbone that dump-graph.ts has written, and draws its weights.
#pragma once

#include <cmath>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model/graph.h"

namespace facetrain::bench {

inline std::vector<std::string> read_words(std::istringstream& in) {
  size_t count = 0;
  in >> count;
  std::vector<std::string> words(count);
  for (std::string& word : words) in >> word;
  return words;
}

inline std::vector<double> to_numbers(const std::vector<std::string>& words) {
  std::vector<double> numbers;
  for (const std::string& word : words) numbers.push_back(std::stod(word));
  return numbers;
}

inline Node read_node(std::istringstream& in) {
  Node node;
  in >> node.name >> node.op;
  node.inputs = read_words(in);
  node.outputs = read_words(in);
  size_t attributes = 0;
  in >> attributes;
  for (size_t i = 0; i < attributes; ++i) {
    std::string name, type, text;
    in >> name >> type;
    if (type == "list") {
      node.attributes[name] = to_numbers(read_words(in));
    } else if (in >> text; type == "number") {
      node.attributes[name] = std::stod(text);
    } else {
      node.attributes[name] = text;
    }
  }
  return node;
}

// Gives the constants that a node reads the values of an untrained network: He's normal distribution (arXiv 1502.01852)
// for products, the identity for batch norms, 0.25 for PReLU.
inline void draw_weights(const Node& node, std::map<std::string, Constant>& constants, std::mt19937_64& random) {
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const auto found = constants.find(node.inputs[i]);
    if (found == constants.end()) continue;
    const std::vector<int64_t>& dims = found->second.dims;
    std::vector<float>& values = found->second.floats;
    const bool product = node.op == "Conv" || node.op == "Gemm";
    if (product && i == 1) {
      double inputs = 1;
      for (size_t d = 1; d < dims.size(); ++d) inputs *= static_cast<double>(dims[d]);
      std::normal_distribution<float> normal(0, static_cast<float>(std::sqrt(2 / inputs)));
      for (float& value : values) value = normal(random);
    } else if (node.op == "BatchNormalization") {  // scale, shift, mean, variance
      values.assign(values.size(), i == 1 || i == 4 ? 1.0F : 0.0F);
    } else if (node.op == "PRelu") {
      values.assign(values.size(), 0.25F);
    } else if (!product) {
      throw std::runtime_error(node.op + ": no rule for its weights");
    }
  }
}

// Throws std::runtime_error that names the file.
inline Graph read_graph(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be read");
  Graph graph;
  for (std::string line; std::getline(file, line);) {
    std::istringstream in(line);
    std::string kind, name;
    in >> kind;
    if (kind == "input") {
      in >> graph.input.name >> graph.input.channels >> graph.input.height >> graph.input.width;
    } else if (kind == "output") {
      in >> graph.output.name >> graph.output.dim;
    } else if (kind == "floats") {
      in >> name;
      Constant& constant = graph.initializers[name];
      size_t count = 1;
      for (const double extent : to_numbers(read_words(in))) {
        constant.dims.push_back(static_cast<int64_t>(extent));
        count *= static_cast<size_t>(extent);
      }
      constant.floats.resize(count);
    } else if (kind == "node") {
      graph.nodes.push_back(read_node(in));
    } else {
      throw std::runtime_error(path + ": no line of a graph: " + line);
    }
    if (!in) throw std::runtime_error(path + ": an incomplete line: " + line);
  }
  std::mt19937_64 random(1);
  for (const Node& node : graph.nodes) draw_weights(node, graph.initializers, random);
  return graph;
}

}  // namespace facetrain::bench
