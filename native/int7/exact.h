// Multipliers that replace the divisions of kernels/reference.h without changing a single result.
//
// The definition of a layer without weights divides by the output's scale: round((slope * (q * x_scale) + offset) /
// y_scale). q is one of at most 255 integers, so whether round(m * q + b) gives the same for all of them can be tried
// out. m and b are first the exact quotients; near a tie they may round to the other side, so their neighbors among
// the floats are tried, too. If none does, the layer divides.
#pragma once

#include <vector>

#include "int7/kernels.h"
#include "kernels/integer_range.h"

namespace facetrain::int7 {

// round_half_even(x), saturated at the range; x is not NaN.
float round_saturated(float x, IntegerRange range);

// A pointwise layer, by channel: positive, negative, offset as LayerSpec has them; q lies in x_range.
struct ExactPointwise {
  std::vector<float> positive, negative;
  std::vector<float> offset;  // empty: all zero
  bool divides = false;       // the numbers are those of the layer, and PointwiseStage has to divide
};
ExactPointwise exact_pointwise(const std::vector<float>& positive, const std::vector<float>& negative,
                               const std::vector<float>& offset, float x_scale, IntegerRange x_range, float y_scale,
                               IntegerRange y_range);

// The scales of AddStage for round((a * a_scale + b * b_scale) / y_scale); a and b lie in their ranges.
struct ExactAdd {
  float a, b;
  bool divides;
};
ExactAdd exact_add(float a_scale, IntegerRange a_range, float b_scale, IntegerRange b_range, float y_scale,
                   IntegerRange y_range);

}  // namespace facetrain::int7
