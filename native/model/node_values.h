// What the values of every node are on a few pictures: a look at a model before work that takes hours.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/executor.h"

namespace facetrain {

// The output of a node over all pictures. A channel is one of a map [N, C, H, W], or one number of a vector [N, d].
struct NodeValues {
  std::string node;                  // "node 'conv1' (Conv)"
  double smallest = 0, largest = 0;  // of the finite values
  int64_t not_finite = 0;
  int64_t samples = 0;  // values in each channel
  // `constant_channels` have the same value, up to rounding, at every pixel of all pictures.
  int64_t channels = 0, constant_channels = 0;
};

// In the order of the graph. images [n, C, H, W] float32; runs them a few at a time, as a network's values for many
// pictures may not fit into memory.
std::vector<NodeValues> node_values(Executor& executor, const at::Tensor& images);

}  // namespace facetrain
