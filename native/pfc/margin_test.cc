// Compares the margin's value with its definition and its slope with finite differences, and tests the three special
// ranges.
#include "pfc/margin.h"

#include <cmath>
#include <vector>

#include "test/check.h"

using facetrain::apply_margin;
using facetrain::Margin;

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

int main() {
  test_value();
  test_slope();
  test_the_target_never_rises_with_the_angle();
  test_reference_guard_of_arcface();
  test_ends();
  test_float_equals_double();
  return TEST_RESULT();
}
