#include "data/align.h"

#include <cmath>
#include <cstddef>

namespace facetrain {
namespace {

// insightface's arcface_dst.
constexpr Landmarks kTemplate = {38.2946, 51.6963, 73.5318, 51.5014, 56.0252,
                                 71.7366, 41.5493, 92.3655, 70.7299, 92.2041};
constexpr int kTemplateSide = 112, kPoints = 5;
// Of the squared distances from the mean, in pixels: of points that are all the same, rounding may leave more than 0.
constexpr double kLeastSquares = 1e-6;

}  // namespace

Similarity fit_to_template(const Landmarks& points, int side) {
  const double scale = static_cast<double>(side) / kTemplateSide;
  double x = 0, y = 0, u = 0, v = 0;  // means
  for (size_t i = 0; i < kPoints; ++i) {
    x += points[2 * i] / kPoints;
    y += points[2 * i + 1] / kPoints;
    u += scale * kTemplate[2 * i] / kPoints;
    v += scale * kTemplate[2 * i + 1] / kPoints;
  }
  // In the plane the least squares have a closed form: as complex numbers, a + ib = sum(conj(p) q) / sum(|p|^2).
  double real = 0, imaginary = 0, squares = 0;
  for (size_t i = 0; i < kPoints; ++i) {
    const double px = points[2 * i] - x, py = points[2 * i + 1] - y;
    const double qx = scale * kTemplate[2 * i] - u, qy = scale * kTemplate[2 * i + 1] - v;
    real += px * qx + py * qy;
    imaginary += px * qy - py * qx;
    squares += px * px + py * py;
  }
  if (!(squares > kLeastSquares)) squares = std::nan("");
  const double a = real / squares, b = imaginary / squares;
  return {a, b, u - (a * x - b * y), v - (b * x + a * y)};
}

void warp(const uint8_t* picture, int height, int width, const Similarity& similarity, int side, uint8_t* out) {
  const auto [a, b, dx, dy] = similarity;
  const double square = a * a + b * b;
  for (int v = 0; v < side; ++v) {
    for (int u = 0; u < side; ++u) {
      // Where the pixel comes from.
      const double x = (a * (u - dx) + b * (v - dy)) / square, y = (a * (v - dy) - b * (u - dx)) / square;
      const double left = std::floor(x), top = std::floor(y), right_part = x - left, lower_part = y - top;
      double sums[3] = {};
      for (const int lower : {0, 1}) {
        for (const int right : {0, 1}) {
          const double column = left + right, row = top + lower;
          if (!(column >= 0 && column < width && row >= 0 && row < height)) continue;
          const double weight = (right == 0 ? 1 - right_part : right_part) * (lower == 0 ? 1 - lower_part : lower_part);
          const uint8_t* const pixel = picture + 3 * (static_cast<int64_t>(row) * width + static_cast<int64_t>(column));
          for (int c = 0; c < 3; ++c) sums[c] += weight * pixel[c];
        }
      }
      for (const double sum : sums) *out++ = static_cast<uint8_t>(std::lround(sum));
    }
  }
}

}  // namespace facetrain
