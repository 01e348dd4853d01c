// The margin of the target logit: CosFace (arXiv 1801.09414), ArcFace (arXiv 1801.07698), SphereFace (arXiv
// 1704.08063), or all three combined. Compiles for CPU and CUDA.
#pragma once

#include <cmath>

#include "host_device.h"

namespace facetrain {

// target(cos θ) = cos(m1 θ + m2) - m3. CosFace: (1, 0, m3); ArcFace: (1, m2, 0). m2 is in radians.
struct Margin {
  float m1, m2, m3;
};

// The target for one cosine, and its derivative with respect to that cosine.
template <class T>
struct MarginTarget {
  T value;
  T slope;
};

// Computes the target in `cosine` = cos θ. Three ranges need special treatment:
// - θ >= θ* = (π - m2) / m1, where m1 θ + m2 exceeds π. Its cosine would rise again there and reward a larger angle.
//   So the target is cos θ - m3 - p with a constant p, and the slope is 1. With m = π - θ* (= m2 for m1 = 1), p is
//   m sin m, the value of the reference (arcface_torch of 2022: m2 sin(π - m2)), but at least 1 - cos m, so that the
//   target never rises with θ.
// - θ near 0 with m2 > 0, where the slope m1 sin(m1 θ + m2) / sin θ has a pole. A feature's gradient is the slope
//   times a vector of length sin θ, so it is bounded, but with rounding errors the quotient is not. The divisor is at
//   least kSmallestSine, about the smallest angle that float32 cosines resolve. The value is not affected.
// - |cosine| > 1 by rounding. It is clamped.
template <class T>
FT_HD MarginTarget<T> apply_margin(const Margin& margin, T cosine) {
  constexpr T kPi = T(3.14159265358979323846), kSmallestSine = T(1e-3);
  const T m1 = margin.m1, m2 = margin.m2, m3 = margin.m3;
  if (m1 == T(1) && m2 == T(0)) return {cosine - m3, T(1)};
  cosine = cosine > T(1) ? T(1) : cosine < T(-1) ? T(-1) : cosine;
  const T angle = std::acos(cosine);
  const T missing = kPi - (kPi - m2) / m1;
  if (kPi - angle <= missing) {
    const T reference = missing * std::sin(missing), smallest = T(1) - std::cos(missing);
    return {cosine - m3 - (reference > smallest ? reference : smallest), T(1)};
  }
  const T sine = std::sqrt((T(1) - cosine) * (T(1) + cosine));
  const T moved = m1 * angle + m2;
  return {std::cos(moved) - m3, m1 * std::sin(moved) / (sine > kSmallestSine ? sine : kSmallestSine)};
}

}  // namespace facetrain
