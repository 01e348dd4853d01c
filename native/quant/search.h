// EasyQuant (Wu et al. 2020, arXiv 2006.16669, Algorithm 1): searches scales that keep each layer's output close in
// direction to its FP32 output.
//
// The search starts from scales of the maximum. A round optimizes the weight scales of all layers, then the activation
// scales of all tensors, in topological order. Each scale tries `candidates` values, evenly spread over [lower, upper]
// times its initial value (in terms of the paper's S, the reciprocal of ours), and takes the one with the largest
// cosine between the layer's output and its FP32 output, averaged over the pictures; or it keeps its value. The input
// of a layer comes from the network as it is quantized so far, so later layers compensate for the errors of earlier
// ones. All filters of a layer are searched at the same time, because an output channel depends on its own filter only.
//
// Operands of convolutions have a zero point, too, with `zero_points`: their values are mostly positive behind a PReLU,
// and would use half of the integers. For each tensor the scale is chosen first, and then how far its shorter side
// reaches, while the bound of its longer side stays. A network starts with the zero points of the least and largest
// values, or without any, whichever gives its outputs the better cosine.
//
// With a `budget`, some operands have eight bits instead of seven. Which ones is decided first, by the scales of the
// maximum (operand_bits.h).
//
// After each half of a round the whole network is evaluated, and the scales with the best cosine of the output are
// kept.
//
// A search that was interrupted goes on from its decisions: the scales that it chose, in order, and what it measured.
// They replace the work that they came from, and all else is computed again, so the result is the same.
//
// Candidates are scored with the runtime's integer kernels. Cost: a round runs each layer 2 * (candidates + 1) times,
// on a sample of its output pixels (neighboring pixels are similar), and the whole network a few times.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "quant/activations.h"
#include "quant/model.h"

namespace facetrain {

// No defaults: those that users see are in api/src/quantizejob.ts.
struct SearchOptions {
  int rounds;            // 0: keeps the scales of the maximum
  int candidates;        // values tried for each scale in a round, 2 or more
  float lower, upper;    // range of the candidates, as multiples of the initial value of 1 / scale
  bool zero_points;      // search zero points of operands, too
  bool equalize;         // first equalize the channels (equalize.h)
  bool bias_correction;  // last correct the mean error of each output channel by its bias
  double budget;         // share of the multiply-accumulates whose operands may have eight bits (operand_bits.h)
};

enum class SearchStage { equalizing, searching };

// The scales of a layer's filters, a tensor's scale and zero point, a layer's corrected biases, or figures of the whole
// network.
using Decision = std::vector<double>;

struct SearchControl {
  const std::atomic<bool>& cancelled;  // checked between pictures
  std::function<void(SearchStage stage, int done, int total)> on_progress;
  // Of an interrupted search of the same graph, pictures and options, in order; and what hears of each new one.
  const std::vector<Decision>& decided;
  std::function<void(const Decision&)> on_decision;
};

struct LayerResult {
  double cosine_start = 0, cosine = 0;  // of the output with FP32, mean over the pictures; before and after the search
  double saturation = 0;                // share of the input's values that are clipped
};

struct SearchResult {
  Scales scales;
  std::vector<LayerResult> layers;  // by index of the layer
};

// Searches the scales of `graph`, and rewrites its weights when it equalizes. The result depends neither on the number
// of threads nor on `space`. Throws Error(NotANumber) when an activation is not finite, Error(InsufficientMemory),
// Error(InvalidArgument) for decisions of another search, and Cancelled.
SearchResult search_scales(LayerGraph& graph, const PictureView& pictures, const SearchOptions& options,
                           const ActivationSpace& space, ThreadPool& pool, const SearchControl& control);

}  // namespace facetrain
