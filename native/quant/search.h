// EasyQuant (Wu et al. 2020, arXiv 2006.16669, Algorithm 1): scales that keep each layer's output close in direction to
// its FP32 output.
//
// From scales of the maximum, a round looks at all layers' weights, then at all activations, in topological order; each
// scale tries `candidates` values evenly spread over [lower, upper] times its first one (of the paper's S, the
// reciprocal of ours) and takes the one with the best cosine, averaged over the pictures, or stays where it is. A
// layer's input comes from the network as it is quantised so far, so later layers make up for earlier ones' errors.
// All filters of a layer are searched at once, for an output channel depends on its own filter alone.
//
// Candidates are scored by the runtime's kernels on integers. What makes that cheap: a candidate runs one layer, on
// kept inputs; and of each picture only a sample of a layer's output pixels, as neighbours say much the same.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "quant/model.h"

namespace facetrain {

struct SearchOptions {
  int rounds = 1, candidates = 100;
  float lower = 0.5f, upper = 2.0f;
  bool equalize = true, bias_correction = true;
};

enum class SearchStage { equalizing, searching };

struct SearchControl {
  const std::atomic<bool>& cancelled;
  std::function<void(SearchStage stage, int done, int total)> on_progress;
};

struct LayerResult {
  double cosine_start = 0, cosine = 0;  // of its output with FP32, mean over the pictures
  double saturation = 0;                // share of its input's values that were clipped
};

struct SearchResult {
  Scales scales;
  std::vector<LayerResult> layers;
};

// Rewrites `graph` when it equalises. Where activations of more than kSearchBytes would have to be kept at once, only
// the first pictures, as many as fit, are looked at. Throws Error(NotANumber) when the network yields no finite
// numbers, and Cancelled.
SearchResult search_scales(LayerGraph& graph, const PictureView& pictures, const SearchOptions& options,
                           ThreadPool& pool, const SearchControl& control);

inline constexpr int64_t kSearchBytes = int64_t{1} << 30;

}  // namespace facetrain
