// Compares the margin's value with its definition and its slope with finite differences, and tests the special ranges
// and the borders between pieces.
#include "pfc/margin.h"

#include <cmath>
#include <vector>

#include "test/check.h"

using facetrain::apply_margin;
using facetrain::clamp_norm;
using facetrain::Margin;
using facetrain::MarginForm;
using facetrain::next_statistics;
using facetrain::NormStatistics;
using facetrain::quality_of;

static constexpr double kPi = 3.14159265358979323846;
// Central differences with a step of 1e-6 in float64: a truncation of about 1e-12 f''', a rounding of about 1e-10.
static constexpr double kStep = 1e-6, kDifferenceError = 1e-5;
static constexpr double kFloatValueError = 1e-6, kFloatSlopeError = 1e-4;

static const std::vector<Margin> kMargins = {{1, 0, 0}, {1, 0, 0.4f},       {1, 0.5f, 0},       {1.35f, 0, 0},
                                             {4, 0, 0}, {1.1f, 0.3f, 0.2f}, {0.9f, 0.4f, 0.15f}};

// θ* of margin.h, from which on the target is no longer cos(m1 θ + m2) - m3.
static double turning_angle(const Margin& margin) { return (kPi - double{margin.m2}) / double{margin.m1}; }

static void test_value() {
  for (const Margin& margin : kMargins) {
    for (double angle = 0; angle < std::min(kPi, turning_angle(margin)) - 1e-3; angle += 0.01) {
      const double expected = std::cos(margin.m1 * angle + margin.m2) - margin.m3;
      CHECK_NEAR(apply_margin(margin, std::cos(angle)).value, expected, 1e-9);
    }
  }
  CHECK_NEAR(apply_margin(Margin{1, 0, 0.4f}, 0.25).value, 0.25 - 0.4f, 0);
}

static void test_slope() {
  for (const Margin& margin : kMargins) {
    const double turn = turning_angle(margin);
    for (double angle = 0.05; angle < kPi - 0.05; angle += 0.01) {
      if (std::abs(angle - turn) < 0.01) continue;  // the target is not continuous there
      const double cosine = std::cos(angle);
      const double difference =
          (apply_margin(margin, cosine + kStep).value - apply_margin(margin, cosine - kStep).value) / (2 * kStep);
      CHECK_NEAR(apply_margin(margin, cosine).slope, difference, kDifferenceError * std::max(1.0, difference));
    }
  }
}

static void test_the_target_never_rises_with_the_angle() {
  for (const Margin& margin : kMargins) {
    double last = 2;
    for (double angle = 0; angle <= kPi; angle += 1e-3) {
      const double value = apply_margin(margin, std::cos(angle)).value;
      CHECK(value <= last + 1e-12);
      CHECK(apply_margin(margin, std::cos(angle)).slope >= 0);
      last = value;
    }
  }
}

// arcface_torch of 2022: cos θ - m sin(π - m) where cos θ <= cos(π - m).
static void test_reference_guard_of_arcface() {
  const double m = 0.5f;
  for (const double cosine : {-0.88, -0.95, -1.0}) {
    const auto target = apply_margin(Margin{1, 0.5f, 0}, cosine);
    CHECK_NEAR(target.value, cosine - m * std::sin(kPi - m), 1e-12);
    CHECK_EQ(target.slope, 1.0);
  }
  CHECK_NEAR(apply_margin(Margin{1, 0.5f, 0}, -0.87).value, std::cos(std::acos(-0.87) + m), 1e-12);
}

static void test_ends() {
  for (const Margin& margin : kMargins) {
    for (const double cosine : {1.0, -1.0, 1 + 1e-7, -1 - 1e-7}) {
      const auto target = apply_margin(margin, cosine);
      CHECK(std::isfinite(target.value) && std::isfinite(target.slope));
      const auto in_float = apply_margin(margin, static_cast<float>(cosine));
      CHECK(std::isfinite(in_float.value) && std::isfinite(in_float.slope));
    }
    // The gradient of a feature, slope * sin θ, is bounded near the pole.
    for (double angle = 1e-9; angle < 0.1; angle *= 2) {
      const double cosine = std::cos(angle), sine = std::sin(angle);
      CHECK(apply_margin(margin, cosine).slope * sine <= margin.m1 + 1e-6);
    }
  }
}

static void test_float_equals_double() {
  for (const Margin& margin : kMargins) {
    for (double angle = 0.1; angle < kPi - 0.1; angle += 0.01) {
      if (std::abs(angle - turning_angle(margin)) < 0.01) continue;
      const float cosine = static_cast<float>(std::cos(angle));
      const auto in_float = apply_margin(margin, cosine);
      const auto in_double = apply_margin(margin, double{cosine});
      CHECK_NEAR(in_float.value, in_double.value, kFloatValueError * std::max(1.0f, margin.m1));
      CHECK_NEAR(in_float.slope, in_double.slope, kFloatSlopeError);
    }
  }
}

// ---- SphereFace ----

static Margin sphereface(float m) { return {.m1 = m, .m2 = 0, .m3 = 0, .form = MarginForm::sphereface}; }

static const std::vector<float> kSphereMargins = {0.7f, 1, 1.35f, 1.5f, 2, 3, 4};

// The paper's definition, piece by piece: (-1)^k cos(m θ) - 2k for θ in [kπ/m, (k + 1)π/m].
static void test_sphereface() {
  for (const float m : kSphereMargins) {
    const Margin margin = sphereface(m);
    double last = 2;
    for (double angle = 0; angle <= kPi; angle += 1e-3) {
      int k = 0;
      while ((k + 1) * kPi / double{m} <= angle) ++k;
      const double expected = std::pow(-1, k) * std::cos(m * angle) - 2 * k;
      const auto target = apply_margin(margin, std::cos(angle));
      CHECK_NEAR(target.value, expected, 1e-9);
      CHECK(target.value <= last + 1e-12 && target.slope >= -1e-9);
      last = target.value;
    }
    for (double angle = 0.05; angle < kPi - 0.05; angle += 0.01) {
      const double cosine = std::cos(angle);
      const double difference =
          (apply_margin(margin, cosine + kStep).value - apply_margin(margin, cosine - kStep).value) / (2 * kStep);
      CHECK_NEAR(apply_margin(margin, cosine).slope, difference, kDifferenceError * std::max(1.0, difference));
    }
    // Pieces meet with one value, and with the slope 0 on both sides.
    for (int k = 1; k * kPi / double{m} < kPi - 0.05; ++k) {
      const double border = k * kPi / double{m};
      for (const double side : {-1e-7, 0.0, 1e-7}) {
        const auto target = apply_margin(margin, std::cos(border + side));
        CHECK_NEAR(target.value, 1 - 2 * k, 1e-9);
        CHECK_NEAR(target.slope, 0, 1e-5);
      }
    }
    // The ends: no pole at θ = 0, and a bounded gradient of a feature at θ = π.
    const double square = double{m} * double{m};
    CHECK_NEAR(apply_margin(margin, 1.0).slope, square, 1e-9);
    CHECK_NEAR(apply_margin(margin, std::cos(1.1e-3)).slope, square, 1e-4);
    for (double rest = 1e-9; rest < 0.1; rest *= 2)
      CHECK(apply_margin(margin, std::cos(kPi - rest)).slope * std::sin(rest) <= m + 1e-6);
    for (const double cosine : {1 + 1e-7, -1 - 1e-7}) CHECK(std::isfinite(apply_margin(margin, cosine).slope));
  }
}

// ---- AdaFace ----

static void test_adaface() {
  const Margin margin = {.m1 = 1, .m2 = 0, .m3 = 0, .form = MarginForm::adaface, .m = 0.4f, .h = 0.333f};
  const double m = margin.m;
  for (const double quality : {-1.0, -0.6, 0.0, 0.3, 1.0}) {
    double last = 2;
    for (double angle = 0.01; angle < kPi - 0.05; angle += 0.01) {
      const double cosine = std::cos(angle), moved = angle - m * quality;
      const auto target = apply_margin(margin, cosine, quality);
      if (moved < kPi) {
        // arXiv 2204.00964, equation 16, with the angle clamped as in its code.
        CHECK_NEAR(target.value, std::cos(std::max(moved, 0.0)) - (m + m * quality), 1e-9);
      }
      CHECK(target.value <= last + 1e-12 && target.slope >= 0);
      last = target.value;
      // The borders, of which the lower one is tested below, and the pole.
      if (std::abs(moved) < 0.01 || std::abs(moved - kPi) < 0.01 || angle < 0.05) continue;
      const double difference =
          (apply_margin(margin, cosine + kStep, quality).value - apply_margin(margin, cosine - kStep, quality).value) /
          (2 * kStep);
      CHECK_NEAR(target.slope, difference, kDifferenceError * std::max(1.0, difference));
    }
  }
  // Where the angle reaches 0, value and slope of the pieces meet.
  for (const double side : {-1e-7, 0.0, 1e-7}) {
    const auto target = apply_margin(margin, std::cos(m + side), 1.0);
    CHECK_NEAR(target.value, 1 - 2 * m, 1e-12);
    CHECK_NEAR(target.slope, 0, 1e-6);
  }
}

static void test_qualities() {
  // Lengths 10, 20, 30: mean 20, deviation 10.
  NormStatistics statistics;
  statistics = next_statistics(statistics, 20, 200, 3);
  CHECK_NEAR(statistics.mean, 20, 1e-12);
  CHECK_NEAR(statistics.deviation, 0.99 * 100 + 0.01 * 10, 1e-12);
  statistics = next_statistics(statistics, 50, 0, 1);  // one picture has no deviation
  CHECK_NEAR(statistics.mean, 20.3, 1e-12);
  CHECK_NEAR(statistics.deviation, 99.1, 1e-12);

  const NormStatistics some{20, 5};
  CHECK_NEAR(quality_of(20, some, 0.333), 0, 0);
  CHECK_NEAR(quality_of(25, some, 0.333), 0.333 * 5 / 5.001, 1e-12);
  CHECK_NEAR(quality_of(1e9, some, 0.333), 1, 0);
  CHECK_NEAR(quality_of(0, some, 0.333), -1, 0);
  // What an overflow leaves is a length as any other.
  for (const double bad : {NAN, -INFINITY}) CHECK_EQ(clamp_norm(bad), 1e-3);
  CHECK_EQ(clamp_norm(INFINITY), 100.0);
}

// The value stays, and the slope is that of cos θ.
static void test_straight_through() {
  std::vector<Margin> margins = kMargins;
  margins.push_back(sphereface(1.5f));
  margins.push_back({.m1 = 1, .m2 = 0, .m3 = 0, .form = MarginForm::adaface, .m = 0.4f, .h = 0.333f});
  for (const Margin& margin : margins) {
    Margin straight = margin;
    straight.straight_through = true;
    for (double angle = 0; angle <= kPi; angle += 0.1) {
      const auto target = apply_margin(straight, std::cos(angle), 0.5);
      CHECK_EQ(target.value, apply_margin(margin, std::cos(angle), 0.5).value);
      CHECK_EQ(target.slope, 1.0);
    }
  }
}

int main() {
  test_value();
  test_slope();
  test_the_target_never_rises_with_the_angle();
  test_reference_guard_of_arcface();
  test_ends();
  test_float_equals_double();
  test_sphereface();
  test_adaface();
  test_qualities();
  test_straight_through();
  return TEST_RESULT();
}
