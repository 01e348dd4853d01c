// The integers of a quantized tensor: real = q * scale.
#pragma once

namespace facetrain {

// A file holds q + zero point, within [-limit, limit]. We compute with q itself, so zeros are 0 everywhere, also in the
// padding of a convolution; a zero point only moves the range that q is saturated at.
struct IntegerRange {
  int low, high;

  // Of [-limit, limit], or of that less the zero point. Implicit: a tensor without a zero point is known by its limit.
  constexpr IntegerRange(int limit, int zero_point = 0)  // NOLINT(google-explicit-constructor)
      : low(-limit - zero_point), high(limit - zero_point) {}

  constexpr int size() const { return high - low + 1; }
  constexpr bool contains(const IntegerRange& other) const { return low <= other.low && other.high <= high; }
};

}  // namespace facetrain
