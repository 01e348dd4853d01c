// A picture that was turned, scaled and moved comes back.
#include "data/align.h"

#include <cmath>
#include <vector>

#include "test/check.h"

using namespace facetrain;

static const Landmarks kWanted = {38.2946, 51.6963, 73.5318, 51.5014, 56.0252,
                                  71.7366, 41.5493, 92.3655, 70.7299, 92.2041};

// Points that this similarity moves to the template.
static Landmarks before(const Similarity& to, double scale = 1) {
  const double square = to.a * to.a + to.b * to.b;
  Landmarks points{};
  for (size_t i = 0; i < 10; i += 2) {
    const double u = scale * kWanted[i] - to.dx, v = scale * kWanted[i + 1] - to.dy;
    points[i] = (to.a * u + to.b * v) / square;
    points[i + 1] = (to.a * v - to.b * u) / square;
  }
  return points;
}

static void check_same(const Similarity& found, const Similarity& wanted) {
  CHECK_NEAR(found.a, wanted.a, 1e-9);
  CHECK_NEAR(found.b, wanted.b, 1e-9);
  CHECK_NEAR(found.dx, wanted.dx, 1e-7);
  CHECK_NEAR(found.dy, wanted.dy, 1e-7);
}

static double sum_of_squares(const Landmarks& points, const Similarity& s) {
  double sum = 0;
  for (size_t i = 0; i < 10; i += 2) {
    sum += std::pow(s.a * points[i] - s.b * points[i + 1] + s.dx - kWanted[i], 2) +
           std::pow(s.b * points[i] + s.a * points[i + 1] + s.dy - kWanted[i + 1], 2);
  }
  return sum;
}

static void test_fit() {
  for (const Similarity& wanted : {Similarity{1, 0, 0, 0}, {0.3, 0.4, -20, 55}, {-1.2, 0.1, 300, 4}}) {
    check_same(fit_to_template(before(wanted), 112), wanted);
    check_same(fit_to_template(before(wanted, 2), 224), wanted);
  }
  // Points that no similarity moves to the template: none near the one that is found is better.
  Landmarks points = before({0.5, 0.2, 10, -3});
  for (size_t i = 0; i < 10; ++i) points[i] += i % 3 == 0 ? 3.0 : -1.5;
  const Similarity best = fit_to_template(points, 112);
  const double least = sum_of_squares(points, best);
  CHECK(least > 1);
  for (double Similarity::*part : {&Similarity::a, &Similarity::b, &Similarity::dx, &Similarity::dy}) {
    for (const double step : {-1e-3, 1e-3}) {
      Similarity other = best;
      other.*part += step;
      CHECK(sum_of_squares(points, other) > least);
    }
  }
  CHECK(std::isnan(fit_to_template({7, 7, 7, 7, 7, 7, 7, 7, 7, 7}, 112).a));
  // The mean of these is not exactly 0.021.
  CHECK(std::isnan(fit_to_template({7, 0.021, 7, 0.021, 7, 0.021, 7, 0.021, 7, 0.021}, 112).a));
}

static void test_warp() {
  constexpr int kHeight = 90, kWidth = 130, kSide = 112;
  // A plane of colors, which linear interpolation keeps.
  const auto plane = [](double x, double y, int c) { return 20 + (c == 0 ? x : c == 1 ? y : 0.5 * (x + y)); };
  std::vector<uint8_t> picture;
  for (int y = 0; y < kHeight; ++y) {
    for (int x = 0; x < kWidth; ++x) {
      for (int c = 0; c < 3; ++c) picture.push_back(static_cast<uint8_t>(std::lround(plane(x, y, c))));
    }
  }
  for (const Similarity& to : {Similarity{1, 0, 0, 0}, {0.8, 0.3, 5, -20}, {2, -0.5, -60, 3}}) {
    std::vector<uint8_t> out(size_t{3} * kSide * kSide);
    warp(picture.data(), kHeight, kWidth, to, kSide, out.data());
    const double square = to.a * to.a + to.b * to.b;
    int inside = 0, outside = 0;
    for (int v = 0; v < kSide; ++v) {
      for (int u = 0; u < kSide; ++u) {
        const double x = (to.a * (u - to.dx) + to.b * (v - to.dy)) / square,
                     y = (to.a * (v - to.dy) - to.b * (u - to.dx)) / square;
        const uint8_t* const pixel = out.data() + 3 * (v * kSide + u);
        if (x >= 0 && x <= kWidth - 1 && y >= 0 && y <= kHeight - 1) {
          ++inside;
          for (int c = 0; c < 3; ++c) CHECK_NEAR(pixel[c], plane(x, y, c), 1.01);
        } else if (x <= -1 || x >= kWidth || y <= -1 || y >= kHeight) {
          ++outside;
          CHECK(pixel[0] == 0 && pixel[1] == 0 && pixel[2] == 0);
        }
      }
    }
    CHECK(inside > 1000);
    CHECK(to.a == 2 || outside > 100);
  }
}

int main() {
  test_fit();
  test_warp();
  return TEST_RESULT();
}
