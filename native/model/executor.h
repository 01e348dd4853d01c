// Runs and trains an ONNX graph with ATen and its autograd; activations are channels-last in memory.
//
// Initializers that a layer learns (weights, biases, slopes, gamma and beta) are parameters; a batch norm's running
// mean and variance are buffers. Training changes their values only, so an export is the same graph with new
// initializers.
//
// operators.h defines the operators; how to add one is in native/README.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/graph.h"
#include "model/joined_ranks.h"
#include "model/pass.h"
#include "precision.h"

namespace facetrain {

class Executor {
 public:
  virtual ~Executor() = default;
  // Computes embeddings [N, d] float32 of images [N, C, H, W] float32. In a training pass, batch norms use the
  // statistics of the batch and move their running statistics with momentum 0.1. Autograd records training passes and
  // recomputations, unless the caller's at::GradMode is off; then no activation is kept.
  virtual at::Tensor forward(const at::Tensor& images, Pass pass) = 0;
  // Runs the graph in evaluation mode and shows the output of every node, in the order of the graph: a node is named as
  // in messages, "node 'conv1' (Conv)". A batch norm whose only reader is a PRelu or an Add is computed with it and not
  // shown.
  using Observer = std::function<void(const std::string& node, const at::Tensor& value)>;
  virtual void observe(const at::Tensor& images, const Observer& observer) = 0;
  // The executor's own tensors with their ONNX names, in the order of the graph. Change them in place, or by set_data.
  // `fixed` tensors are used but not learned: constants of arithmetic, and gamma of a batch norm that ends the graph,
  // which the reference (arcface_torch) freezes as well.
  struct Named {
    std::string name;
    at::Tensor tensor;
  };
  virtual std::vector<Named>& parameters() = 0;
  virtual std::vector<Named>& buffers() = 0;
  virtual std::vector<Named>& fixed() = 0;
  // Of the graph's input.
  virtual const PixelRange& range() const = 0;
  // Of later passes; at first fp32. What it means for each operator is in compute.h. Also sets the switches of
  // use_precision, which are the whole process's: executors that run by turns must have the same precision.
  virtual Precision precision() const = 0;
  virtual void set_precision(Precision precision) = 0;
  // Whether later passes keep few activations for the backward pass, which computes the others again (checkpoint.h):
  // the same gradients bit for bit, for a third more arithmetic. At first false.
  virtual void checkpoint_activations(bool on) = 0;
  // The ranks over whose images the batch norms of later passes take their statistics (batch_norm_prelu.h): forward
  // and backward are then collectives. `ranks` must outlive those passes. At first null: each rank's own.
  virtual void join_norms(const JoinedRanks* ranks) = 0;
};

// Plans the graph on `device` and runs it once on two blank pictures. Throws Error(UnsupportedOperator) with the
// operator and the node's name, and Error(InvalidModel) for any other defect of the graph: names, shapes, weights that
// are not finite.
std::unique_ptr<Executor> make_executor(const Graph& graph, at::Device device);

}  // namespace facetrain
