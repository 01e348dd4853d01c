#include "int7/exact.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace facetrain::int7 {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: see kernels/elementwise.cc
constexpr int kNeighbors = 6;          // floats tried on either side

// The float `steps` floats away from x.
float neighbor(float x, int steps) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (; steps > 0; --steps) x = std::nextafter(x, infinity);
  for (; steps < 0; ++steps) x = std::nextafter(x, -infinity);
  return x;
}

// 0, 1, -1, 2, -2, ...
int offset_of(int attempt) { return attempt % 2 ? (attempt + 1) / 2 : -attempt / 2; }

// Calls found(m, b) for pairs near (slope, offset), nearest first, until it returns true.
template <typename Found>
bool any_neighbor(float slope, float offset, Found found) {
  constexpr int kAttempts = 2 * kNeighbors + 1;
  const int offsets = offset == 0 ? 1 : kAttempts;
  for (int j = 0; j < offsets; ++j) {
    for (int i = 0; i < kAttempts; ++i) {
      if (found(neighbor(slope, offset_of(i)), neighbor(offset, offset_of(j)))) return true;
    }
  }
  return false;
}

}  // namespace

float round_saturated(float x, IntegerRange range) {
  const auto low = static_cast<float>(range.low), high = static_cast<float>(range.high);
  return (std::max(std::min(x, high), low) + kRound) - kRound;
}

ExactPointwise exact_pointwise(const std::vector<float>& positive, const std::vector<float>& negative,
                               const std::vector<float>& offset, float x_scale, IntegerRange x_range, float y_scale,
                               IntegerRange y_range) {
  const bool has_offset = std::any_of(offset.begin(), offset.end(), [](float o) { return o != 0; });
  const size_t channels = positive.size();
  ExactPointwise result{.positive = std::vector<float>(channels),
                        .negative = std::vector<float>(channels),
                        .offset = std::vector<float>(has_offset ? channels : 0)};
  std::vector<float> wanted(x_range.size());  // by q - x_range.low
  for (size_t c = 0; c < channels && !result.divides; ++c) {
    for (int q = x_range.low; q <= x_range.high; ++q) {
      const float real = static_cast<float>(q) * x_scale;
      wanted[q - x_range.low] =
          round_saturated(((real > 0 ? positive[c] : negative[c]) * real + offset[c]) / y_scale, y_range);
    }
    const auto equal = [&](float slope, float shift, int first, int last) {
      for (int q = first; q <= last; ++q) {
        if (round_saturated(slope * static_cast<float>(q) + shift, y_range) != wanted[q - x_range.low]) return false;
      }
      return true;
    };
    const auto quotient = [&](float slope) {
      return static_cast<float>(static_cast<double>(slope) * x_scale / y_scale);
    };
    // One offset serves both signs: found for the negative numbers and zero, then tried for the positive ones.
    const auto shift = static_cast<float>(static_cast<double>(offset[c]) / y_scale);
    const bool found = any_neighbor(quotient(negative[c]), shift, [&](float down, float b) {
      if (!equal(down, b, x_range.low, 0)) return false;
      return any_neighbor(quotient(positive[c]), 0, [&](float up, float) {
        if (!equal(up, b, 1, x_range.high)) return false;
        result.positive[c] = up;
        result.negative[c] = down;
        if (has_offset) result.offset[c] = b;
        return true;
      });
    });
    result.divides = !found;
  }
  if (result.divides) {
    result.positive = positive;
    result.negative = negative;
    if (has_offset) result.offset = offset;
  }
  return result;
}

ExactAdd exact_add(float a_scale, IntegerRange a_range, float b_scale, IntegerRange b_range, float y_scale,
                   IntegerRange y_range) {
  std::vector<float> wanted;
  for (int a = a_range.low; a <= a_range.high; ++a) {
    for (int b = b_range.low; b <= b_range.high; ++b) {
      const float sum = static_cast<float>(a) * a_scale + static_cast<float>(b) * b_scale;
      wanted.push_back(round_saturated(sum / y_scale, y_range));
    }
  }
  const auto equal = [&](float first, float second) {
    size_t i = 0;
    for (int a = a_range.low; a <= a_range.high; ++a) {
      for (int b = b_range.low; b <= b_range.high; ++b, ++i) {
        if (round_saturated(static_cast<float>(a) * first + static_cast<float>(b) * second, y_range) != wanted[i])
          return false;
      }
    }
    return true;
  };
  const auto first = static_cast<float>(static_cast<double>(a_scale) / y_scale);
  const auto second = static_cast<float>(static_cast<double>(b_scale) / y_scale);
  ExactAdd result{a_scale, b_scale, true};
  any_neighbor(first, second, [&](float a, float b) {
    if (!equal(a, b)) return false;
    result = {a, b, false};
    return true;
  });
  return result;
}

}  // namespace facetrain::int7
