// The margin of the target logit, by form: CosFace (arXiv 1801.09414), ArcFace (arXiv 1801.07698) or both combined;
// SphereFace (arXiv 1704.08063); AdaFace (arXiv 2204.00964). Compiles for CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace facetrain {

enum class MarginForm : uint8_t {
  combined,    // cos(m1 θ + m2) - m3. CosFace: (1, 0, m3); ArcFace: (1, m2, 0). m2 is in radians
  sphereface,  // ψ(θ) with m1: sphereface_target
  adaface,     // cos(θ - m q) - (m + m q), with the quality q of the picture, of -1 to 1: NormStatistics
};

struct Margin {
  float m1, m2, m3;
  MarginForm form = MarginForm::combined;
  float m = 0, h = 0;  // of AdaFace: the margin, and the concentration of qualities
  // The gradient is that of cos θ plus a constant: the slope is 1. So insightface (arcface_torch since December 2022)
  // and OpenSphere train ("characteristic gradient detachment", arXiv 2109.05565, section 3.6).
  bool straight_through = false;
};

// The target for one cosine, and its derivative with respect to that cosine.
template <class T>
struct MarginTarget {
  T value;
  T slope;
};

// The divisor of a slope is at least this, about the smallest angle that float32 cosines resolve: see combined_target.
inline constexpr double kSmallestSine = 1e-3;

// cos(m1 θ + m2) - m3 for `cosine` = cos θ, which must be in [-1, 1]. Three ranges need special treatment:
// - θ >= θ* = (π - m2) / m1, where m1 θ + m2 exceeds π. Its cosine would rise again there and reward a larger angle.
//   So the target is cos θ - m3 - p with a constant p, and the slope is 1. With m = π - θ* (= m2 for m1 = 1), p is
//   m sin m, the value of the reference (arcface_torch of 2022: m2 sin(π - m2)), but at least 1 - cos m, so that the
//   target never rises with θ.
// - θ near 0 with m2 > 0, where the slope m1 sin(m1 θ + m2) / sin θ has a pole. A feature's gradient is the slope
//   times a vector of length sin θ, so it is bounded, but with rounding errors the quotient is not. Hence
//   kSmallestSine. The value is not affected.
// - m1 θ + m2 < 0, with a negative m2 (AdaFace). Its cosine would fall again there. The target is that of 0, and the
//   slope 0, as in AdaFace's code.
template <class T>
FT_HD MarginTarget<T> combined_target(T m1, T m2, T m3, T cosine) {
  constexpr T kPi = T(3.14159265358979323846);
  if (m1 == T(1) && m2 == T(0)) return {cosine - m3, T(1)};
  const T angle = std::acos(cosine);
  const T missing = kPi - (kPi - m2) / m1;
  if (kPi - angle <= missing) {
    const T reference = missing * std::sin(missing), smallest = T(1) - std::cos(missing);
    return {cosine - m3 - (reference > smallest ? reference : smallest), T(1)};
  }
  const T sine = std::sqrt((T(1) - cosine) * (T(1) + cosine));
  const T moved = m1 * angle + m2;
  if (moved <= T(0)) return {T(1) - m3, T(0)};
  return {std::cos(moved) - m3, m1 * std::sin(moved) / (sine > T(kSmallestSine) ? sine : T(kSmallestSine))};
}

// ψ(θ) = (-1)^k cos(m θ) - 2k with k = floor(m θ / π), for `cosine` = cos θ in [-1, 1] and any m > 0. Of the paper's
// forms it is the one that falls over all of [0, π], also for an m that is not an integer, and so has a gradient
// everywhere but at its borders θ = kπ / m, where its pieces meet with slope 0 (the forms v1 and v2 of arXiv 2109.05565
// are constant from π / m on, or change the other logits). The paper averages ψ with cos θ while it trains; here, as
// in arXiv 2109.05565, features have length s and ψ alone is the target.
//
// At θ = 0 the slope's limit is m^2. At θ = π it has a pole, if m is not an integer: kSmallestSine.
template <class T>
FT_HD MarginTarget<T> sphereface_target(T m, T cosine) {
  constexpr T kPi = T(3.14159265358979323846);
  const T moved = m * std::acos(cosine);
  const int k = static_cast<int>(moved / kPi);
  const T sign = k % 2 == 0 ? T(1) : T(-1);
  const T sine = std::sqrt((T(1) - cosine) * (T(1) + cosine));
  const T value = sign * std::cos(moved) - T(2 * k);
  if (sine > T(kSmallestSine)) return {value, sign * m * std::sin(moved) / sine};
  return {value, cosine > T(0) ? m * m : sign * m * std::sin(moved) / T(kSmallestSine)};
}

// Running values of the lengths of features, by which AdaFace takes a picture's quality. They begin, follow the batch
// (with the weight kNormWeight) and are clamped as in the paper's code.
struct NormStatistics {
  double mean = 20, deviation = 100;
};

inline constexpr double kNormWeight = 0.01, kDeviationFloor = 1e-3;

// Also of a length that is not finite: such a step is refused or skipped, and must leave no trace in the statistics.
FT_HD inline double clamp_norm(double norm) { return norm > 1e-3 ? (norm < 100 ? norm : 100) : 1e-3; }

// After a batch of `count` features, whose clamped lengths have this mean and sum of squared differences from it. One
// feature has no deviation, and leaves it.
FT_HD inline NormStatistics next_statistics(const NormStatistics& before, double mean, double squares, int64_t count) {
  const double deviation = count > 1 ? std::sqrt(squares / static_cast<double>(count - 1)) : before.deviation;
  return {before.mean + kNormWeight * (mean - before.mean),
          before.deviation + kNormWeight * (deviation - before.deviation)};
}

// Of a picture whose feature has this length, -1 to 1. A constant to the gradient.
FT_HD inline double quality_of(double norm, const NormStatistics& statistics, double h) {
  const double quality = h * (clamp_norm(norm) - statistics.mean) / (statistics.deviation + kDeviationFloor);
  return quality < -1 ? -1 : quality > 1 ? 1 : quality;
}

// The target for `cosine` = cos θ, which rounding may have moved beyond 1. `quality`: of AdaFace.
template <class T>
FT_HD MarginTarget<T> apply_margin(const Margin& margin, T cosine, T quality = T(0)) {
  if (margin.form == MarginForm::combined && margin.m1 == 1 && margin.m2 == 0) return {cosine - T(margin.m3), T(1)};
  cosine = cosine > T(1) ? T(1) : cosine < T(-1) ? T(-1) : cosine;
  MarginTarget<T> target{};
  switch (margin.form) {
    case MarginForm::combined:
      target = combined_target<T>(margin.m1, margin.m2, margin.m3, cosine);
      break;
    case MarginForm::sphereface:
      target = sphereface_target<T>(margin.m1, cosine);
      break;
    case MarginForm::adaface: {
      const T m = margin.m;
      target = combined_target<T>(T(1), -m * quality, m + m * quality, cosine);
      break;
    }
  }
  if (margin.straight_through) target.slope = T(1);
  return target;
}

}  // namespace facetrain
