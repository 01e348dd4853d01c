// What a run of the graph is for.
#pragma once

namespace facetrain {

enum class Pass {
  evaluation,     // batch norms normalize by their running statistics
  training,       // by the statistics of the batch, and move the running ones towards them
  recomputation,  // the values of a training pass over the same inputs once more: running statistics stay as they are
};

}  // namespace facetrain
