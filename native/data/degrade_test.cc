// Against definitions of their own: of a crop and of colors pixel by pixel; of resampling by what each way must keep.
// What is drawn, by its statistics.
#include "data/degrade.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "random.h"
#include "test/check.h"

using namespace facetrain;

using Bytes = std::vector<uint8_t>;

static constexpr int kHeight = 23, kWidth = 17;
static constexpr Resampling kWays[] = {Resampling::nearest, Resampling::linear, Resampling::area, Resampling::cubic,
                                       Resampling::lanczos};

static Bytes noise(int height = kHeight, int width = kWidth) {
  Bytes picture(static_cast<size_t>(3 * height * width));
  for (size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<uint8_t>(hash_words({i, 5}));
  return picture;
}

static uint8_t& at(Bytes& picture, int y, int x, int c, int width = kWidth) {
  return picture[3 * (static_cast<size_t>(y) * width + x) + c];
}

static void test_crop() {
  for (const Crop& kept : {Crop{3, 2, 5, 7}, {0, 0, kHeight, kWidth}, {22, 16, 1, 1}, {0, 10, kHeight, 7}}) {
    Bytes picture = noise(), before = noise();
    crop(kept, kHeight, kWidth, picture.data());
    bool right = true;
    for (int y = 0; y < kHeight; ++y) {
      for (int x = 0; x < kWidth; ++x) {
        const bool stays = y >= kept.top && y < kept.top + kept.height && x >= kept.left && x < kept.left + kept.width;
        for (int c = 0; c < 3; ++c) right &= at(picture, y, x, c) == (stays ? at(before, y, x, c) : 0);
      }
    }
    CHECK(right);
  }
}

static void test_draws_of_crops() {
  constexpr int kDraws = 4000, kSide = 112;
  double area = 0, least = 1, most = 0, top = 0;
  for (int i = 0; i < kDraws; ++i) {
    const Crop kept = draw_crop(sequence_number(3, static_cast<uint64_t>(i)), kSide, kSide);
    CHECK(kept.top >= 0 && kept.left >= 0 && kept.top + kept.height <= kSide && kept.left + kept.width <= kSide);
    const double share = static_cast<double>(kept.height) * kept.width / (kSide * kSide);
    const double aspect = static_cast<double>(kept.width) / kept.height;
    CHECK(aspect > 0.73 && aspect < 1.37);  // rounded to pixels
    area += share / kDraws;
    least = std::min(least, share);
    most = std::max(most, share);
    if (kept.height < kSide) top += static_cast<double>(kept.top) / (kSide - kept.height) / kDraws;
  }
  // The area is uniform from 0.2 to 1, but a large one that does not fit is drawn again.
  CHECK(least > 0.18 && least < 0.22 && most > 0.97);
  CHECK(area > 0.5 && area < 0.6);
  CHECK_NEAR(top, 0.5, 0.04);
  // A picture of one row: no crop fits.
  const Crop whole = draw_crop(1, 1, 200);
  CHECK(whole.top == 0 && whole.left == 0 && whole.height == 1 && whole.width == 200);
}

static void test_resampling() {
  for (const Resampling way : kWays) {
    // The same size is the same picture.
    const Bytes in = noise();
    Bytes out(in.size());
    resample(in.data(), kHeight, kWidth, way, kHeight, kWidth, out.data());
    CHECK(out == in);
    // One color stays, at any size.
    for (const auto& [height, width] : {std::pair(5, 4), {1, 1}, {40, 31}, {23, 50}}) {
      Bytes flat(in.size(), 77), scaled(static_cast<size_t>(3 * height * width));
      resample(flat.data(), kHeight, kWidth, way, height, width, scaled.data());
      CHECK(std::ranges::all_of(scaled, [](uint8_t byte) { return byte == 77; }));
    }
    // A ramp is a ramp, but for what sharpens near the ends; of red alone.
    Bytes ramp(3 * 64), up(3 * 128);
    for (int x = 0; x < 64; ++x) ramp[3 * static_cast<size_t>(x)] = static_cast<uint8_t>(40 + 2 * x);
    resample(ramp.data(), 1, 64, way, 1, 128, up.data());
    for (int x = 16; x < 112; ++x) {
      const double want = 40 + 2 * ((x + 0.5) / 2 - 0.5);
      CHECK_NEAR(up[static_cast<size_t>(3 * x)], want, way == Resampling::nearest || way == Resampling::area ? 1.6 : 1);
      CHECK(up[static_cast<size_t>(3 * x + 1)] == 0 && up[static_cast<size_t>(3 * x + 2)] == 0);
    }
  }
  // Area: the mean of what a pixel covers, here 3 by 2 pixels.
  Bytes in = noise(6, 4), out(3 * 2 * 2);
  resample(in.data(), 6, 4, Resampling::area, 2, 2, out.data());
  for (int y = 0; y < 2; ++y) {
    for (int x = 0; x < 2; ++x) {
      for (int c = 0; c < 3; ++c) {
        double sum = 0;
        for (int v = 0; v < 3; ++v) {
          for (int u = 0; u < 2; ++u) sum += at(in, 3 * y + v, 2 * x + u, c, 4);
        }
        CHECK_NEAR(at(out, y, x, c, 2), sum / 6, 0.51);
      }
    }
  }
  // Cubic: OpenCV's weights half way between two pixels, (-3, 19, 19, -3) / 32.
  Bytes edge = {0, 0, 0, 0, 0, 0, 200, 200, 200, 200, 200, 200};
  Bytes half(3 * 2);
  resample(edge.data(), 1, 4, Resampling::cubic, 1, 2, half.data());
  CHECK_NEAR(half[0], std::max(0.0, (19 * 0 - 3 * 200) / 32.0), 0.51);  // below 0: clamped
  CHECK_NEAR(half[3], std::min(255.0, (19 * 200 + 19 * 200 - 3 * 0 - 3 * 200) / 32.0), 0.51);
}

static void test_low_resolution() {
  // Fine stripes become gray, and a picture of the same size stays.
  Bytes stripes(3 * 64 * 64);
  for (int y = 0; y < 64; ++y) {
    for (int x = 0; x < 64; ++x) {
      for (int c = 0; c < 3; ++c) at(stripes, y, x, c, 64) = x % 2 == 0 ? 0 : 200;
    }
  }
  Bytes low = stripes;
  lower_resolution({16, 16, Resampling::area, Resampling::linear}, 64, 64, low.data());
  CHECK(std::ranges::all_of(low, [](uint8_t byte) { return byte == 100; }));
  low = stripes;
  lower_resolution({64, 64, Resampling::lanczos, Resampling::cubic}, 64, 64, low.data());
  CHECK(low == stripes);

  constexpr int kDraws = 4000;
  std::map<Resampling, int> down, up;
  double share = 0;
  for (int i = 0; i < kDraws; ++i) {
    const LowResolution to = draw_low_resolution(sequence_number(4, static_cast<uint64_t>(i)), 112, 56);
    CHECK(to.height >= 22 && to.height < 112 && std::abs(to.height - 2 * to.width) <= 1);
    ++down[to.down];
    ++up[to.up];
    share += to.height / 112.0 / kDraws;
  }
  CHECK_NEAR(share, 0.6, 0.02);
  for (const Resampling way : kWays) {
    CHECK(std::abs(down[way] - kDraws / 5) < 130);  // deviation 25
    CHECK(std::abs(up[way] - kDraws / 5) < 130);
  }
  const LowResolution tiny = draw_low_resolution(1, 1, 1);
  CHECK(tiny.height == 1 && tiny.width == 1);
}

static void test_color_jitter() {
  const auto byte = [](double value) { return std::clamp(std::floor(value + 0.5), 0.0, 255.0); };
  for (const bool bgr : {false, true}) {
    for (const auto& order : {std::array{ColorStep::brightness, ColorStep::contrast, ColorStep::saturation},
                              std::array{ColorStep::saturation, ColorStep::brightness, ColorStep::contrast}}) {
      const ColorJitter jitter{order, 1.3, 0.6, 1.4};
      Bytes picture = noise();
      std::vector<double> expected(picture.begin(), picture.end());
      const auto luma = [&](size_t pixel) {
        const double *const p = expected.data() + 3 * pixel, red = p[bgr ? 2 : 0], blue = p[bgr ? 0 : 2];
        return 0.299 * red + 0.587 * p[1] + 0.114 * blue;
      };
      const size_t pixels = picture.size() / 3;
      for (const ColorStep step : order) {
        double mean = 0;
        for (size_t i = 0; i < pixels; ++i) mean += luma(i) / static_cast<double>(pixels);
        for (size_t i = 0; i < pixels; ++i) {
          const double gray = luma(i);
          for (size_t k = 3 * i; k < 3 * i + 3; ++k) {
            const double p = expected[k];
            expected[k] = byte(step == ColorStep::brightness ? 1.3 * p
                               : step == ColorStep::contrast ? 0.6 * p + 0.4 * mean
                                                             : 1.4 * p - 0.4 * gray);
          }
        }
      }
      jitter_color(jitter, kHeight, kWidth, bgr, picture.data());
      for (size_t k = 0; k < picture.size(); ++k) CHECK_NEAR(picture[k], expected[k], 1);
    }
  }

  constexpr int kDraws = 6000;
  std::map<std::array<ColorStep, 3>, int> orders;
  double sums[3] = {};
  for (int i = 0; i < kDraws; ++i) {
    const ColorJitter jitter = draw_color_jitter(sequence_number(6, static_cast<uint64_t>(i)));
    ++orders[jitter.order];
    const double factors[] = {jitter.brightness, jitter.contrast, jitter.saturation};
    for (int k = 0; k < 3; ++k) {
      CHECK(factors[k] >= 0.5 && factors[k] < 1.5);
      sums[k] += factors[k] / kDraws;
    }
  }
  for (const double mean : sums) CHECK_NEAR(mean, 1, 0.02);
  CHECK_EQ(orders.size(), 6u);
  for (const auto& [order, count] : orders) CHECK(std::abs(count - kDraws / 6) < 150);  // deviation 29
}

int main() {
  test_crop();
  test_draws_of_crops();
  test_resampling();
  test_low_resolution();
  test_color_jitter();
  return TEST_RESULT();
}
