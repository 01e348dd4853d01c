#include "quant/operand_bits.h"

#include <algorithm>
#include <cstdint>

namespace facetrain {
namespace {

// Eight bits are worth their time where they make an operand's steps a tenth finer, as zero points are (scales.cc).
constexpr float kFinerSteps = 0.9f;

// An operand that may have eight bits, with all tensors that share its scale.
struct Candidate {
  int tensor;  // the first of them
  int64_t macs;
  double gain;  // share of its error that eight bits take away
};

}  // namespace

std::vector<int> choose_limits(const LayerGraph& graph, const Scales& narrow, const Scales& wide, double budget) {
  std::vector<int64_t> macs(graph.tensors.size());  // by the first tensor of a scale
  int64_t all = 0;
  for (const Layer& layer : graph.layers) {
    if (layer.kind != Layer::Kind::conv) continue;
    macs[graph.tensors[layer.input].scale_of] += layer.shape.macs();
    all += layer.shape.macs();
  }
  std::vector<Candidate> candidates;
  for (int t = 0; t < static_cast<int>(graph.tensors.size()); ++t) {
    if (graph.tensors[t].scale_of != t || wide.limits[t] == narrow.limits[t]) continue;
    const double step = double{wide.tensors[t]} / narrow.tensors[t];
    if (step < kFinerSteps) candidates.push_back({t, macs[t], 1 - step * step});
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.gain * static_cast<double>(b.macs) > b.gain * static_cast<double>(a.macs);
  });
  auto left = static_cast<int64_t>(budget * static_cast<double>(all));
  std::vector<int> limits = narrow.limits;
  for (const Candidate& one : candidates) {
    if (one.macs > left) continue;
    left -= one.macs;
    for (size_t t = 0; t < limits.size(); ++t) {
      if (graph.tensors[t].scale_of == one.tensor) limits[t] = wide.limits[t];
    }
  }
  return limits;
}

}  // namespace facetrain
