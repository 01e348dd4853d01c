// The ONNX operators that a backbone may consist of, each as a function from ATen tensors to one ATen tensor.
//
// A node is bound once, when its graph is loaded: its attributes are read and validated and its weights become tensors.
// The result is a closure that the executor calls in every pass. Values are NCHW for the graph and channels-last in
// memory. Knows nothing of the order of nodes: that is executor.cc's.
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
#include "model/compute.h"
#include "model/executor.h"
#include "model/graph.h"

namespace facetrain {

// The role of a float initializer in training: learned; a running statistic; or neither (operands of arithmetic, and
// the gamma that executor.h describes).
enum class Role { parameter, buffer, fixed };

// The graph's initializers as tensors on the device, made when the first node requests them. Nodes that share an
// initializer get the same tensor.
class Constants {
 public:
  Constants(const Graph& graph, at::Device device, std::shared_ptr<const Compute> compute)
      : compute(std::move(compute)), graph_(graph), device_(device) {}

  // Null when `name` is not an initializer.
  const Constant* find(const std::string& name) const;
  // `name` must be an initializer. Throws Error(InvalidModel) when its numbers are not float32, not finite or do not
  // fit its shape, or when another node has requested it in another role.
  at::Tensor tensor(const std::string& name, Role role);

  // In the order of the first requests.
  std::vector<Executor::Named> parameters, buffers, fixed;

  const std::shared_ptr<const Compute> compute;  // of the executor that the operators belong to

 private:
  const Graph& graph_;
  at::Device device_;
  std::map<std::string, std::pair<Role, at::Tensor>> made_;
};

// A node and its constants, while it is bound. Reads attributes and inputs, and throws errors that name the node.
class Binding {
 public:
  Binding(const Node& node, Constants& constants, bool ends_graph)
      : ends_graph(ends_graph), node_(node), constants_(constants) {}

  // Attributes, or `otherwise` if the node does not have them. JavaScript does not distinguish 1 from 1.0, so the
  // readers of integers and of floats accept both. Throw Error(InvalidModel) for another type.
  int64_t integer(const std::string& name, int64_t otherwise);
  double number(const std::string& name, double otherwise);
  std::string text(const std::string& name, const std::string& otherwise);
  std::vector<int64_t> integers(const std::string& name, std::vector<int64_t> otherwise);
  std::vector<int64_t> required(const std::string& name);
  bool has(const std::string& name) const { return node_.attributes.contains(name); }
  // Reads an attribute of which only one value is supported. Throws Error(UnsupportedOperator) for another.
  void only(const std::string& name, int64_t value);
  // Throws Error(UnsupportedOperator) when the node has an attribute that was not read, because it would be ignored.
  void all_read() const;

  // Inputs. An optional input that is left out has an empty name, or is missing at the end of the list.
  bool given(size_t index) const { return index < node_.inputs.size() && !node_.inputs[index].empty(); }
  size_t inputs() const { return node_.inputs.size(); }
  // Throws Error(InvalidModel) unless there are `least` to `most` inputs, and the first `least` are given.
  void arity(size_t least, size_t most) const;
  // The input as a constant. Throw Error(UnsupportedOperator) when another node computes it.
  const Constant& constant(size_t index) const;
  at::Tensor tensor(size_t index, Role role) const;
  bool is_constant(size_t index) const { return given(index) && constants_.find(node_.inputs[index]); }

  [[noreturn]] void invalid(const std::string& found, const std::string& allowed) const;
  [[noreturn]] void unsupported(const std::string& found, const std::string& allowed) const;

  const std::shared_ptr<const Compute>& compute() const { return constants_.compute; }

  const bool ends_graph;  // whether this node's output is the graph's

 private:
  const Attribute* attribute(const std::string& name);

  const Node& node_;
  Constants& constants_;
  std::set<std::string> read_;  // attributes
};

// Computes a node's output from its inputs, in order; inputs that are constants are undefined tensors.
using Operator = std::function<at::Tensor(std::span<const at::Tensor> inputs, Pass pass)>;

// Binds a node. Throws Error(UnsupportedOperator) and Error(InvalidModel), both naming the node.
Operator bind(const Node& node, Constants& constants, bool ends_graph);

// Binds a BatchNormalization and the PRelu that alone reads its output as one operator on the input of the former.
Operator bind_norm_prelu(const Node& norm, const Node& prelu, Constants& constants);

// Binds a BatchNormalization and the Add that alone reads its output as one operator on the inputs of the former and,
// last, the other summand.
Operator bind_norm_add(const Node& norm, Constants& constants);

// The node's name in messages: "node 'conv1' (Conv)".
std::string describe(const Node& node);

}  // namespace facetrain
