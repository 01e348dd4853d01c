// The ONNX operators that a backbone may be made of, each as a function from ATen tensors to one ATen tensor.
//
// Binding happens once, when a graph is loaded: attributes are read, learned weights become tensors, and what is left
// is a closure that a step of the plan calls. Values are NCHW to the graph and channels-last in memory. Knows no plan:
// see executor.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "error.h"
#include "model/executor.h"
#include "model/graph.h"

namespace facetrain {

// What a float initializer is to training. `fixed` ones are used but not learned: operands of arithmetic, the frozen
// gamma.
enum class Role { parameter, buffer, fixed };

// The graph's constants as tensors on the device, made when a node asks for them. Asked for twice it gives the same
// tensor, so a weight that two nodes share is learned once.
class Constants {
 public:
  Constants(const Graph& graph, at::Device device) : graph_(graph), device_(device) {}

  // Null when `name` is no initializer.
  const Constant* find(const std::string& name) const;
  // Throws Error(InvalidModel) when its numbers are not finite, not of its shape, or when another node uses it in
  // another role.
  at::Tensor tensor(const std::string& name, Role role);

  // In the order in which nodes asked.
  std::vector<Executor::Named> parameters, buffers, fixed;

 private:
  const Graph& graph_;
  at::Device device_;
  std::map<std::string, std::pair<Role, at::Tensor>> made_;
};

// A node as its binder sees it.
class Binding {
 public:
  Binding(const Node& node, Constants& constants, bool ends_graph)
      : ends_graph(ends_graph), node_(node), constants_(constants) {}

  // Attributes. Numbers come from JavaScript, which does not tell 1 from 1.0: each reader takes both.
  int64_t integer(const std::string& name, int64_t otherwise);
  double number(const std::string& name, double otherwise);
  std::string text(const std::string& name, const std::string& otherwise);
  std::vector<int64_t> integers(const std::string& name, std::vector<int64_t> otherwise);
  std::vector<int64_t> required(const std::string& name);
  bool has(const std::string& name) const { return node_.attributes.contains(name); }
  // Reads an attribute of which only one value means something to us. Throws Error(UnsupportedOperator) for another.
  void only(const std::string& name, int64_t value);
  // Throws Error(UnsupportedOperator) when an attribute was not read: it would silently not be obeyed.
  void all_read() const;

  // Inputs. An optional one that is left out has an empty name in ONNX, or is missing at the end.
  bool given(size_t index) const { return index < node_.inputs.size() && !node_.inputs[index].empty(); }
  size_t inputs() const { return node_.inputs.size(); }
  void arity(size_t least, size_t most) const;
  // Throw Error(UnsupportedOperator) when the input is computed by another node.
  const Constant& constant(size_t index) const;
  at::Tensor tensor(size_t index, Role role) const;
  bool is_constant(size_t index) const { return given(index) && constants_.find(node_.inputs[index]); }

  [[noreturn]] void invalid(const std::string& found, const std::string& allowed) const;
  [[noreturn]] void unsupported(const std::string& found, const std::string& allowed) const;

  const bool ends_graph;  // this node's output is the graph's

 private:
  const Attribute* attribute(const std::string& name);

  const Node& node_;
  Constants& constants_;
  std::set<std::string> read_;
};

// What a node does at run time, given its inputs in order (an undefined tensor for one that the binding already holds).
using Operator = std::function<at::Tensor(std::span<const at::Tensor> inputs, bool training)>;

// Throws Error(UnsupportedOperator) and Error(InvalidModel), both naming the node.
Operator bind(const Node& node, Constants& constants, bool ends_graph);

// A BatchNormalization and the PRelu that alone reads it, as one operator on the first one's input.
Operator bind_norm_prelu(const Node& norm, const Node& prelu, Constants& constants);

// "node 'conv1' (Conv)"
std::string describe(const Node& node);

}  // namespace facetrain
