// The margin of the target logit, as one functor that the CPU and the CUDA code share.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FT_HD __host__ __device__
#else
#define FT_HD
#endif

namespace facetrain {

// target(cos θ) = cos(m1 θ + m2) - m3. CosFace: (1, 0, m3); ArcFace: (1, m2, 0).
struct Margin {
  float m1 = 1.0f;
  float m2 = 0.0f;
  float m3 = 0.4f;
};

// The target at one cosine, and its true derivative with respect to that cosine.
template <class T>
struct MarginTarget {
  T value;
  T slope;
};

// Three places need care:
// - m1 θ + m2 beyond π, where the cosine would rise again and reward a larger angle. From there on, that is for
//   θ >= θ* = (π - m2) / m1, the target is cos θ - m3 - p with a constant p and slope 1. For m1 = 1 the reference's
//   p = m2 sin(π - m2) is taken (arcface_torch of 2022); with any m1 the angle that
//   θ* lacks to π, m = π - θ*, stands in for m2, and p is at least 1 - cos m, so that the target never rises with θ.
// - θ near 0, where the slope m1 sin(m1 θ + m2) / sin θ of m2 > 0 has a pole. A feature's gradient is the slope times a
//   vector of length sin θ, so it stays bounded, but the quotient of two roundings does not: sin θ is taken as at least
//   kSmallestSine, about the angle that float32 can still tell from 0. The value is not affected.
// - |cos θ| a rounding above 1, which is clamped.
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
