// Runs and trains an ONNX graph with ATen and its autograd, channels-last.
//
// Float initializers that a layer learns (weights, biases, slopes, gamma and beta) are parameters; a batch norm's
// running mean and variance are buffers. The graph that comes out again is the one that went in, with new values.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/graph.h"

namespace facetrain {

class Executor {
 public:
  virtual ~Executor() = default;
  // images [N, C, H, W] float32 -> embeddings [N, d] float32. `training`: batch statistics, autograd recorded; running
  // statistics move with momentum 0.1.
  virtual at::Tensor forward(const at::Tensor& images, bool training) = 0;
  // By ONNX name, in the order of the graph; the tensors themselves, to be changed in place (or by set_data). `fixed`
  // ones are used but not learned: constants of arithmetic, and gamma of a batch norm that ends the graph (see
  // partial_fc.md §4).
  struct Named {
    std::string name;
    at::Tensor tensor;
  };
  virtual std::vector<Named>& parameters() = 0;
  virtual std::vector<Named>& buffers() = 0;
  virtual std::vector<Named>& fixed() = 0;
};

// Throws Error(UnsupportedOperator) with the operator and the node's name, Error(InvalidModel) for anything else that
// is wrong with the graph, weights that are not finite included.
std::unique_ptr<Executor> make_executor(const Graph& graph, at::Device device);

}  // namespace facetrain
