// Which operands of convolutions have eight bits instead of seven.
//
// Eight bits halve the steps of an operand that has no zero point, and cost time where sums of its products fit an
// int16 less often (int7/). So a budget bounds the share of the network's multiply-accumulates (MACs) whose operands
// may have them. They go where they gain the most for each MAC, and an operand's gain is the share of its error that
// they take away: errors of rounding go with the square of the step. To measure what each operand's error does to the
// outputs chooses no better (docs/decisions/0062).
//
// An operand of eight bits has no zero point, so one that is all positive has 127 steps either way. Those whose steps
// would hardly be finer keep seven bits, whatever the budget.
#pragma once

#include <vector>

#include "quant/layer_graph.h"
#include "quant/scales.h"

namespace facetrain {

// Limits by index of the tensor. `narrow` are scales at the limits of seven bits, `wide` those where all operands have
// eight, both of the same largest values. `budget` is a share, 0 to 1.
std::vector<int> choose_limits(const LayerGraph& graph, const Scales& narrow, const Scales& wide, double budget);

}  // namespace facetrain
