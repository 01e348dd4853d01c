// Activation checkpointing (Chen et al., arXiv 1604.06174): of a graph that is cut into blocks, a training pass keeps
// the value between two blocks, and the backward pass computes what is inside a block again before it needs it.
//
// The second computation is the first one with the same inputs, so gradients are the same bit for bit. Running
// statistics of batch norms stay as the first one left them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/pass.h"

namespace facetrain {

// Steps first to end - 1 of a plan.
struct StepRange {
  size_t first, end;
};

// A step of a plan, as far as its activation is concerned.
struct ActivationStep {
  int64_t bytes = 0;    // of its output; 0 if it is a view
  bool is_cut = false;  // whether all later steps read its output and nothing that was made before it
};

// Divides the steps, which are kept by a training pass, into consecutive blocks that end at cuts. Of all divisions, one
// with the smallest peak: while the backward pass is in a block, memory holds what is inside it, and what is kept
// between the blocks before it.
std::vector<StepRange> choose_blocks(std::span<const ActivationStep> steps);

// A block that is computed again.
struct Recomputed {
  std::function<at::Tensor(const at::Tensor& value, Pass pass)> run;
  std::vector<at::Tensor> parameters;  // leaves that `run` uses
};

// block->run(value, pass), which autograd records as one operation that keeps `value` alone. Its backward pass runs the
// block again, as Pass::recomputation. Differentiable in `value` and in the parameters.
at::Tensor checkpoint(const at::Tensor& value, const std::shared_ptr<const Recomputed>& block, Pass pass);

}  // namespace facetrain
