#include "data/degrade.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "random.h"

namespace facetrain {
namespace {

constexpr double kLeast = 0.2;           // share of the area, or of the sides, that stays
constexpr double kMostAspect = 4.0 / 3;  // of a crop; the least is its reciprocal
constexpr int kCropTries = 10;           // of a crop that may not fit; then the whole picture stays
constexpr double kJitter = 0.5;

// Numbers from one key, one after the other.
class Draws {
 public:
  explicit Draws(uint64_t key) : key_(key) {}
  // In [from, to).
  double uniform(double from, double to) {
    return from + (to - from) * std::ldexp(static_cast<double>(next() >> 11), -53);
  }
  // In [0, count).
  int below(int count) { return static_cast<int>(next() % static_cast<uint64_t>(count)); }

 private:
  uint64_t next() { return sequence_number(key_, place_++); }
  const uint64_t key_;
  uint64_t place_ = 0;
};

uint8_t to_byte(double value) { return static_cast<uint8_t>(std::clamp(value + 0.5, 0.0, 255.0)); }

// The inputs of one output, with their weights; places beyond the border are clamped.
struct Taps {
  int first = 0;
  std::vector<float> weights;
};

// OpenCV's, A = -0.75.
double cubic_weight(double x) {
  constexpr double kA = -0.75;
  x = std::abs(x);
  if (x <= 1) return ((kA + 2) * x - (kA + 3)) * x * x + 1;
  return x < 2 ? ((kA * x - 5 * kA) * x + 8 * kA) * x - 4 * kA : 0;
}

double lanczos_weight(double x) {
  constexpr double kPi = 3.14159265358979323846, kTaps = 4;
  if (std::abs(x) < 1e-9) return 1;
  return std::abs(x) < kTaps ? kTaps * std::sin(kPi * x) * std::sin(kPi * x / kTaps) / (kPi * kPi * x * x) : 0;
}

// For output `place` of `out` from `in` inputs.
Taps taps_of(Resampling way, int place, int in, int out) {
  const double scale = static_cast<double>(in) / out;
  const auto from_kernel = [&](int radius, double (*weight)(double)) {
    const double centre = (place + 0.5) * scale - 0.5;
    Taps taps{static_cast<int>(std::floor(centre)) - radius + 1, {}};
    double sum = 0;
    for (int i = 0; i < 2 * radius; ++i) sum += weight(taps.first + i - centre);
    for (int i = 0; i < 2 * radius; ++i) {
      taps.weights.push_back(static_cast<float>(weight(taps.first + i - centre) / sum));
    }
    return taps;
  };
  switch (way) {
    case Resampling::nearest:
      return {static_cast<int>(place * scale), {1}};
    case Resampling::linear:
      return from_kernel(1, [](double x) { return std::max(0.0, 1 - std::abs(x)); });
    case Resampling::cubic:
      return from_kernel(2, cubic_weight);
    case Resampling::lanczos:
      return from_kernel(4, lanczos_weight);
    case Resampling::area:
      break;
  }
  if (scale <= 1) {
    // To more pixels: linear, with the weights of OpenCV's INTER_AREA.
    const int first = static_cast<int>(place * scale);
    double second = place + 1 - (first + 1) / scale;
    second = second <= 0 ? 0 : second - std::floor(second);
    return {first, {static_cast<float>(1 - second), static_cast<float>(second)}};
  }
  const double begin = place * scale, end = begin + scale;
  Taps taps{static_cast<int>(begin), {}};
  for (int i = taps.first; i < end - 1e-9; ++i) {
    taps.weights.push_back(static_cast<float>((std::min(i + 1.0, end) - std::max<double>(i, begin)) / scale));
  }
  return taps;
}

std::vector<Taps> all_taps(Resampling way, int in, int out) {
  std::vector<Taps> taps;
  taps.reserve(static_cast<size_t>(out));
  for (int place = 0; place < out; ++place) taps.push_back(taps_of(way, place, in, out));
  return taps;
}

// ITU-R BT.601, as PIL's conversion to "L".
double luma(const uint8_t* pixel, bool bgr) {
  return 0.299 * pixel[bgr ? 2 : 0] + 0.587 * pixel[1] + 0.114 * pixel[bgr ? 0 : 2];
}

}  // namespace

Crop draw_crop(uint64_t key, int height, int width) {
  Draws draws(key);
  for (int i = 0; i < kCropTries; ++i) {
    const double area = draws.uniform(kLeast, 1) * height * width;
    const double aspect = std::exp(draws.uniform(-std::log(kMostAspect), std::log(kMostAspect)));
    const int w = static_cast<int>(std::lround(std::sqrt(area * aspect))),
              h = static_cast<int>(std::lround(std::sqrt(area / aspect)));
    if (w < 1 || w > width || h < 1 || h > height) continue;
    return {draws.below(height - h + 1), draws.below(width - w + 1), h, w};
  }
  return {0, 0, height, width};
}

void crop(const Crop& crop, int height, int width, uint8_t* picture) {
  const auto bytes = [](int pixels) { return 3 * static_cast<size_t>(pixels); };
  const int right = width - crop.left - crop.width;
  for (int y = 0; y < height; ++y) {
    uint8_t* const row = picture + bytes(width) * static_cast<size_t>(y);
    if (y < crop.top || y >= crop.top + crop.height) {
      std::memset(row, 0, bytes(width));
    } else {
      std::memset(row, 0, bytes(crop.left));
      std::memset(row + bytes(crop.left + crop.width), 0, bytes(right));
    }
  }
}

LowResolution draw_low_resolution(uint64_t key, int height, int width) {
  Draws draws(key);
  const double share = draws.uniform(kLeast, 1);
  const auto way = [&] { return static_cast<Resampling>(draws.below(kResamplings)); };
  const Resampling down = way(), up = way();
  return {std::max(1, static_cast<int>(share * height)), std::max(1, static_cast<int>(share * width)), down, up};
}

void resample(const uint8_t* in, int height, int width, Resampling way, int out_height, int out_width, uint8_t* out) {
  const std::vector<Taps> columns = all_taps(way, width, out_width), rows = all_taps(way, height, out_height);
  const size_t row_numbers = 3 * static_cast<size_t>(out_width);
  std::vector<float> wide(row_numbers * static_cast<size_t>(height));  // each row resampled
  for (int y = 0; y < height; ++y) {
    const uint8_t* const row = in + size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(y);
    float* to = wide.data() + row_numbers * static_cast<size_t>(y);
    for (const Taps& taps : columns) {
      float sums[3] = {};
      for (int i = 0; i < std::ssize(taps.weights); ++i) {
        const uint8_t* const pixel = row + 3 * std::clamp(taps.first + i, 0, width - 1);
        for (int c = 0; c < 3; ++c) sums[c] += taps.weights[static_cast<size_t>(i)] * pixel[c];
      }
      to = std::copy_n(sums, 3, to);
    }
  }
  std::vector<float> sums(row_numbers);
  for (const Taps& taps : rows) {
    std::ranges::fill(sums, 0.0F);
    for (int i = 0; i < std::ssize(taps.weights); ++i) {
      const int y = std::clamp(taps.first + i, 0, height - 1);
      const float* const row = wide.data() + row_numbers * static_cast<size_t>(y);
      const float weight = taps.weights[static_cast<size_t>(i)];
      for (size_t x = 0; x < row_numbers; ++x) sums[x] += weight * row[x];
    }
    for (const float sum : sums) *out++ = to_byte(sum);
  }
}

void lower_resolution(const LowResolution& to, int height, int width, uint8_t* picture) {
  std::vector<uint8_t> small(size_t{3} * static_cast<size_t>(to.height) * static_cast<size_t>(to.width));
  resample(picture, height, width, to.down, to.height, to.width, small.data());
  resample(small.data(), to.height, to.width, to.up, height, width, picture);
}

ColorJitter draw_color_jitter(uint64_t key) {
  Draws draws(key);
  const auto factor = [&] { return draws.uniform(1 - kJitter, 1 + kJitter); };
  const double brightness = factor(), contrast = factor(), saturation = factor();
  ColorJitter jitter{
      {ColorStep::brightness, ColorStep::contrast, ColorStep::saturation}, brightness, contrast, saturation};
  for (const size_t last : {2, 1}) {
    std::swap(jitter.order[last], jitter.order[static_cast<size_t>(draws.below(static_cast<int>(last) + 1))]);
  }
  return jitter;
}

void jitter_color(const ColorJitter& jitter, int height, int width, bool bgr, uint8_t* picture) {
  const int64_t pixels = int64_t{height} * width;
  // Each step's result is bytes, as in torchvision.
  const auto blend = [&](double factor, auto other) {
    for (int64_t i = 0; i < pixels; ++i) {
      uint8_t* const pixel = picture + 3 * i;
      const double rest = (1 - factor) * other(pixel);
      for (int c = 0; c < 3; ++c) pixel[c] = to_byte(factor * pixel[c] + rest);
    }
  };
  for (const ColorStep step : jitter.order) {
    switch (step) {
      case ColorStep::brightness:
        blend(jitter.brightness, [](const uint8_t*) { return 0.0; });
        break;
      case ColorStep::contrast: {
        double sum = 0;
        for (int64_t i = 0; i < pixels; ++i) sum += luma(picture + 3 * i, bgr);
        blend(jitter.contrast, [mean = sum / static_cast<double>(pixels)](const uint8_t*) { return mean; });
        break;
      }
      case ColorStep::saturation:
        blend(jitter.saturation, [bgr](const uint8_t* pixel) { return luma(pixel, bgr); });
        break;
    }
  }
}

}  // namespace facetrain
