// Compares every fast kernel with reference.h bit for bit, in every instruction set of this machine, and reference.h
// with numbers worked out by hand.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <random>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/conv.h"
#include "kernels/elementwise.h"
#include "kernels/reference.h"
#include "kernels/thread_pool.h"
#include "test/check.h"

namespace facetrain {
namespace {

std::mt19937 random_source(7);

std::vector<int8_t> random_integers(int64_t count, int limit) {
  std::uniform_int_distribution<int> value(-limit, limit);
  std::vector<int8_t> result(count + kOverread);
  for (auto& q : result) q = static_cast<int8_t>(value(random_source));
  return result;
}

std::vector<float> random_reals(int64_t count, float low, float high) {
  std::uniform_real_distribution<float> value(low, high);
  std::vector<float> result(count);
  for (auto& x : result) x = value(random_source);
  return result;
}

// [channels, area] -> [area, channels]
template <typename T>
std::vector<T> channels_last(const std::vector<T>& x, int channels, int area) {
  std::vector<T> result(x.size());
  for (int c = 0; c < channels; ++c) {
    for (int i = 0; i < area; ++i) result[int64_t{i} * channels + c] = x[int64_t{c} * area + i];
  }
  return result;
}

void compare_conv(const ConvShape& shape, const std::vector<int8_t>& x, const std::vector<int8_t>& weights) {
  std::vector<int32_t> bias(shape.out_channels);
  std::uniform_int_distribution<int> value(-100000, 100000);
  for (auto& b : bias) b = value(random_source);
  const int area = shape.out_area();
  std::vector<int32_t> expected(int64_t{shape.out_channels} * area);
  reference::conv(shape, x.data(), weights.data(), bias.data(), expected.data());
  expected = channels_last(expected, shape.out_channels, area);
  auto x_last = channels_last(x, shape.in_channels, shape.in_height * shape.in_width);
  for (const Isa isa : kIsas) {
    if (!supported(isa)) continue;
    const Conv conv(shape, weights.data(), isa);
    std::vector<int32_t> actual(expected.size());
    conv.run_image(x_last.data(), 0, area, bias.data(), actual.data());
    CHECK(actual == expected);
    if (area < 3) continue;
    std::vector<int32_t> part(int64_t{area - 2} * shape.out_channels);
    conv.run_image(x_last.data(), 1, area - 2, bias.data(), part.data());
    CHECK(std::equal(part.begin(), part.end(), expected.begin() + shape.out_channels));
  }
}

ConvShape conv_shape(int in, int height, int width, int out, int group, int kernel, int stride, int pad) {
  return {in, height, width, out, group, {kernel, kernel}, {stride, stride}, {1, 1}, {pad, pad, pad, pad}};
}

void test_conv_equals_reference() {
  std::vector<ConvShape> shapes;
  for (const int in : {1, 3, 4, 5, 64, 67}) {
    for (const int out : {1, 15, 16, 17, 40}) shapes.push_back(conv_shape(in, 5, 7, out, 1, 1, 1, 0));
    shapes.push_back(conv_shape(in, 9, 6, 19, 1, 3, 1, 1));
    shapes.push_back(conv_shape(in, 9, 6, 19, 1, 3, 2, 1));
    shapes.push_back(conv_shape(in, 7, 7, in, in, 3, 1, 1));  // depthwise
    shapes.push_back(conv_shape(in, 8, 8, in, in, 3, 2, 1));
    shapes.push_back(conv_shape(in, 7, 7, in, in, 7, 1, 0));      // 49 taps, one pixel
    shapes.push_back(conv_shape(in, 4, 4, 2 * in, in, 3, 1, 1));  // two outputs a channel
    shapes.push_back(conv_shape(in, 3, 5, 33, 1, 1, 1, 0));
  }
  shapes.push_back(conv_shape(12, 6, 6, 12, 6, 3, 1, 1));  // two channels a group
  shapes.push_back(conv_shape(20, 6, 6, 36, 2, 1, 1, 0));
  shapes.push_back(
      {6, 9, 11, 10, 2, {2, 3}, {2, 1}, {2, 3}, {1, 0, 2, 3}});  // everything different in the two dimensions
  shapes.push_back({8, 9, 11, 8, 8, {3, 2}, {1, 2}, {2, 1}, {0, 2, 1, 0}});
  shapes.push_back({10, 3, 4, 21, 1, {3, 4}, {1, 1}, {1, 1}, {0, 0, 0, 0}});  // fully connected
  shapes.push_back(conv_shape(3, 2, 2, 5, 1, 3, 1, 4));                       // pixels that see only padding
  for (const auto& shape : shapes) {
    const int64_t in = int64_t{shape.in_channels} * shape.in_height * shape.in_width;
    // Activations of seven bits as they are with zero points 0, 63 and -63, and of eight.
    for (const int middle : {0, -63, 63}) {
      auto x = random_integers(in, 63);
      for (auto& q : x) q = static_cast<int8_t>(q + middle);
      compare_conv(shape, x, random_integers(shape.weights(), 63));
    }
    compare_conv(shape, random_integers(in, 127), random_integers(shape.weights(), 63));
  }
}

// The largest possible sums, of either sign: no intermediate value may saturate or wrap around.
void test_conv_extremes() {
  for (const int x : {-127, -126, -63, 63, 126, 127}) {
    for (const int w : {-63, 63}) {
      for (const auto& shape : {conv_shape(70, 5, 5, 33, 1, 3, 1, 1), conv_shape(33, 9, 9, 33, 33, 7, 1, 3)}) {
        std::vector<int8_t> input(int64_t{shape.in_channels} * shape.in_height * shape.in_width + kOverread,
                                  static_cast<int8_t>(x));
        compare_conv(shape, input, std::vector<int8_t>(shape.weights(), static_cast<int8_t>(w)));
      }
    }
  }
}

void test_output_extent() {
  CHECK_EQ(conv_output_extent(112, 3, 2, 1, 1, 1), 56);
  CHECK_EQ(conv_output_extent(9, 2, 2, 2, 1, 2), 5);
  CHECK_EQ(conv_output_extent(7, 7, 1, 1, 0, 0), 1);
  // A kernel larger than the input has no output, whatever the stride; -1 / 2 + 1 would be 1.
  for (const int stride : {1, 2, 3}) CHECK_EQ(conv_output_extent(2, 3, stride, 1, 0, 0), 0);
}

void test_conv_by_hand() {
  // 1 2 3 | kernel 1 0, bias 10, padding 1 above: the padding counts as zero.
  // 4 5 6 |        2 -1
  const ConvShape shape{1, 2, 3, 1, 1, {2, 2}, {1, 1}, {1, 1}, {1, 0, 0, 0}};
  const int8_t x[] = {1, 2, 3, 4, 5, 6}, w[] = {1, 0, 2, -1};
  const int32_t bias[] = {10};
  int32_t y[4];
  reference::conv(shape, x, w, bias, y);
  CHECK(std::vector<int32_t>(y, y + 4) ==
        (std::vector<int32_t>{10 + 2 - 2, 10 + 4 - 3, 10 + 1 + 8 - 5, 10 + 2 + 10 - 6}));
}

void test_rounding_and_saturation() {
  // A zero point moves the range, and nothing else.
  const IntegerRange moved{63, -60};
  CHECK_EQ(moved.low, -3);
  CHECK_EQ(moved.high, 123);
  const float apart[] = {-9, -2.5f, 0, 2.5f, 122.6f, 900};
  int8_t moved_integers[6];
  quantize(apart, 6, 1, moved, moved_integers);
  CHECK(std::vector<int>(moved_integers, moved_integers + 6) == (std::vector<int>{-3, -2, 0, 2, 123, 123}));
  // Ties round to the even neighbor. Limits are symmetric: the results never are -128 or -64.
  const std::vector<int32_t> x{1, 3, 5, -1, -3, -5, 125, 127, 129, -127, -129, 2000000000, -2000000000};
  const std::vector<int8_t> expected63{0, 2, 2, 0, -2, -2, 62, 63, 63, -63, -63, 63, -63};
  const float half[] = {0.5f};
  std::vector<int8_t> y(x.size()), fast(x.size());
  reference::requantize(x.data(), 1, static_cast<int>(x.size()), half, 63, y.data());
  requantize(x.data(), 1, static_cast<int64_t>(x.size()), half, 63, fast.data());
  CHECK(y == expected63);
  CHECK(fast == expected63);
  const std::vector<float> reals{0.25f, 0.75f, -0.25f, 63.4f, 63.6f, -64.1f, 1e30f, -1e30f, 31.75f};
  const std::vector<int8_t> expected127{0, 2, 0, 127, 127, -127, 127, -127, 64};
  for (size_t i = 0; i < reals.size(); ++i)
    CHECK_EQ(int{reference::quantize(reals[i], 0.5f, 127)}, int{expected127[i]});
}

void test_elementwise_equals_reference() {
  for (const int channels : {1, 7, 16, 33, 64}) {
    for (const int area : {1, 5, 49}) {
      const int count = channels * area;
      const auto a = random_integers(count, 127), b = random_integers(count, 127);
      const auto positive = random_reals(channels, -0.5f, 2), negative = random_reals(channels, -0.5f, 2);
      const auto offset = random_reals(channels, -1, 1);
      const auto last = channels_last(std::vector<int8_t>(a.begin(), a.begin() + count), channels, area);
      std::vector<float> real(count);
      std::vector<int8_t> expected(count), actual(count);

      reference::pointwise(a.data(), channels, area, positive.data(), negative.data(), offset.data(), 0.031f, 0.047f,
                           63, expected.data());
      pointwise(last.data(), channels, area, positive.data(), negative.data(), offset.data(), 0.031f, real.data());
      quantize(real.data(), count, 0.047f, 63, actual.data());
      CHECK(actual == channels_last(expected, channels, area));

      reference::add(a.data(), 0.031f, b.data(), 0.017f, count, 0.04f, 127, expected.data());
      add(a.data(), 0.031f, b.data(), 0.017f, count, real.data());
      quantize(real.data(), count, 0.04f, 127, actual.data());
      CHECK(actual == expected);

      reference::pool(a.data(), channels, area, 0.031f, 0.01f, 63, expected.data());
      pool(last.data(), channels, area, 0.031f, real.data());
      quantize(real.data(), channels, 0.01f, 63, actual.data());
      CHECK(std::equal(actual.begin(), actual.begin() + channels, expected.begin()));

      std::uniform_int_distribution<int32_t> sum(-3000000, 3000000);
      std::vector<int32_t> sums(count);
      for (auto& s : sums) s = sum(random_source);
      const auto multipliers = random_reals(channels, 1e-6f, 1e-4f);
      reference::requantize(sums.data(), channels, area, multipliers.data(), 63, expected.data());
      const auto sums_last = channels_last(sums, channels, area);
      requantize(sums_last.data(), channels, area, multipliers.data(), 63, actual.data());
      CHECK(actual == channels_last(expected, channels, area));
    }
  }
}

void test_pointwise_by_hand() {
  // PReLU with slope 0.25, then an affine map with offset.
  const int8_t x[] = {-8, 8, 0, -2, 3, 1};
  const float positive[] = {1, 2}, negative[] = {0.25f, 2}, offset[] = {0, -1};
  int8_t y[6];
  reference::pointwise(x, 2, 3, positive, negative, offset, 0.5f, 0.5f, 127, y);
  CHECK(std::vector<int>(y, y + 6) == (std::vector<int>{-2, 8, 0, -6, 4, 0}));
}

// A pool that cannot start all of its threads throws, and ends those that it has started. In a child process, whose
// address space has no room for the stacks of 256 threads. qemu-user ignores that limit, so there only the bare limit
// is tried.
void test_threads_that_do_not_start() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return;  // they need more address space than the limit
#endif
  const pid_t child = fork();
  if (child == 0) {
    const rlimit little{256 << 20, 256 << 20};
    int result = 2;
    if (setrlimit(RLIMIT_AS, &little) == 0) {
      const void* more = mmap(nullptr, 2 * little.rlim_cur, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      try {
        if (more == MAP_FAILED) ThreadPool pool(256);
        result = more == MAP_FAILED ? 1 : 0;
      } catch (const std::system_error&) {
        result = 0;
      }
    }
    _exit(result);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

void test_thread_pool() {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 50; ++repeat) {
      std::vector<int> seen(37);
      pool.parallel_for(37, [&](int64_t i, int thread) {
        CHECK(thread >= 0 && thread < threads);
        ++seen[i];
      });
      CHECK(seen == std::vector<int>(37, 1));
    }
    // The others wait until one is about to throw and then take their time: on one processor a thread could run all of
    // them before the one that throws is scheduled again.
    std::atomic<int> calls = 0;
    std::atomic<bool> throwing = false;
    CHECK_THROWS(pool.parallel_for(100000,
                                   [&](int64_t i, int) {
                                     ++calls;
                                     if (i == 3) {
                                       throwing = true;
                                       throw std::runtime_error("at three");
                                     }
                                     while (i > 3 && !throwing) std::this_thread::yield();
                                     if (i > 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                                   }),
                 std::runtime_error, "at three");
    CHECK(calls < 100000);
    pool.parallel_for(0, [](int64_t, int) { throw std::runtime_error("not called"); });
  }
}

}  // namespace
}  // namespace facetrain

int main() {
  using namespace facetrain;
  test_output_extent();
  test_conv_by_hand();
  test_conv_equals_reference();
  test_conv_extremes();
  test_rounding_and_saturation();
  test_elementwise_equals_reference();
  test_pointwise_by_hand();
  test_threads_that_do_not_start();
  test_thread_pool();
  return TEST_RESULT();
}
