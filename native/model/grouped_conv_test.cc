// Convolutions in groups beside ATen's in float64, of the same numbers.
#include "model/grouped_conv.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

#include <array>
#include <cstdint>

#include "test/check.h"

using facetrain::GroupedWindow;

struct Case {
  int64_t pictures, channels, height, width;
  int64_t group, kernel, stride;
  std::array<int64_t, 4> pads;
  bool bias;
};

struct Results {
  at::Tensor y, x, weight, bias;
};

static at::Tensor leaf(const at::Tensor& tensor) { return tensor.detach().clone().requires_grad_(); }

static Results ours(const Case& of, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                    const at::Tensor& above) {
  const at::Tensor a = x.detach().contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
  const at::Tensor b = leaf(weight), c = bias.defined() ? leaf(bias) : at::Tensor();
  const GroupedWindow window{of.stride, of.pads};
  CHECK(facetrain::has_grouped_conv(a, b, window, of.channels / of.group));
  const at::Tensor y = facetrain::grouped_conv(a, b, c, window);
  CHECK(y.scalar_type() == x.scalar_type() && y.is_contiguous(at::MemoryFormat::ChannelsLast));
  y.backward(above);
  CHECK(b.grad().scalar_type() == x.scalar_type());
  return {y.detach(), a.grad(), b.grad(), bias.defined() ? c.grad() : at::Tensor()};
}

static Results exact(const Case& of, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                     const at::Tensor& above) {
  const at::Tensor a = leaf(x.to(at::kDouble)), b = leaf(weight.to(at::kDouble));
  const at::Tensor c = bias.defined() ? leaf(bias.to(at::kDouble)) : at::Tensor();
  const auto& [top, left, bottom, right] = of.pads;
  const at::Tensor y = at::conv2d(at::constant_pad_nd(a, {left, right, top, bottom}), b, c, of.stride,
                                  at::IntArrayRef{0}, 1, of.channels / of.group);
  y.backward(above.to(at::kDouble));
  return {y.detach(), a.grad(), b.grad(), bias.defined() ? c.grad() : at::Tensor()};
}

// The largest difference, relative to the largest number.
static double distance(const at::Tensor& a, const at::Tensor& b) {
  CHECK(a.sizes() == b.sizes());
  return ((a.to(at::kDouble) - b).abs().max() / b.abs().max()).item<double>();
}

static void check(const Case& of, at::ScalarType type) {
  const at::Tensor x = at::randn({of.pictures, of.channels, of.height, of.width}).to(type);
  const at::Tensor weight = at::randn({of.channels, of.group, of.kernel, of.kernel}).to(type);
  const at::Tensor bias = of.bias ? at::randn({of.channels}).to(type) : at::Tensor();
  const auto out = [&](int64_t size, int64_t pads) { return (size + pads - of.kernel) / of.stride + 1; };
  const at::Tensor above = at::randn({of.pictures, of.channels, out(of.height, of.pads[0] + of.pads[2]),
                                      out(of.width, of.pads[1] + of.pads[3])})
                               .to(type);
  const Results want = exact(of, x, weight, bias, above);
  at::set_num_threads(1);
  const Results found = ours(of, x, weight, bias, above);
  // Sums of up to some thousands of products in float32, and one rounding to bfloat16.
  const double bound = type == at::kFloat ? 3e-6 : 1.0 / 256;
  CHECK_NEAR(distance(found.y, want.y), 0, bound);
  CHECK_NEAR(distance(found.x, want.x), 0, bound);
  CHECK_NEAR(distance(found.weight, want.weight), 0, bound);
  if (of.bias) CHECK_NEAR(distance(found.bias, want.bias), 0, bound);

  at::set_num_threads(3);
  const Results threaded = ours(of, x, weight, bias, above);
  CHECK(at::equal(threaded.y, found.y) && at::equal(threaded.x, found.x));
  CHECK(at::equal(threaded.weight, found.weight));
}

int main() {
  at::manual_seed(1);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t group : {1, 2, 4}) {
      // Whole blocks of 16 channels, a rest of them, and less than one.
      for (const int64_t channels : {32, 20, 4}) {
        check({5, channels, 9, 11, group, 3, 1, {1, 1, 1, 1}, false}, type);
        check({2, channels, 9, 12, group, 3, 2, {1, 1, 1, 1}, true}, type);
        // No pad; pads of one side; a kernel as large as the picture; strides that leave pixels out; a single pixel.
        check({2, channels, 7, 5, group, 3, 1, {0, 0, 0, 0}, false}, type);
        check({2, channels, 8, 8, group, 3, 2, {0, 0, 1, 1}, false}, type);
        check({3, channels, 7, 7, group, 7, 1, {0, 0, 0, 0}, true}, type);
        check({2, channels, 10, 11, group, 2, 3, {1, 0, 0, 1}, false}, type);
        check({2, channels, 9, 8, group, 5, 2, {2, 2, 2, 2}, false}, type);
        check({1, channels, 1, 1, group, 1, 1, {0, 0, 0, 0}, false}, type);
        check({4, channels, 6, 6, group, 1, 2, {0, 0, 0, 0}, false}, type);
      }
    }
  }

  const auto last = [](const at::Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); };
  const at::Tensor x = last(at::zeros({1, 8, 5, 5})), weight = at::zeros({8, 1, 3, 3});
  const GroupedWindow window{1, {1, 1, 1, 1}};
  CHECK(facetrain::has_grouped_conv(x, weight, window, 8));
  CHECK(!facetrain::has_grouped_conv(at::zeros({1, 8, 5, 5}), weight, window, 8));
  CHECK(!facetrain::has_grouped_conv(x, weight.to(at::kBFloat16), window, 8));
  CHECK(!facetrain::has_grouped_conv(x, at::zeros({16, 1, 3, 3}), window, 8));
  CHECK(!facetrain::has_grouped_conv(x, at::zeros({8, 1, 3, 5}), window, 8));
  CHECK(!facetrain::has_grouped_conv(x, at::zeros({8, 8, 3, 3}), window, 1));
  CHECK(!facetrain::has_grouped_conv(x, weight, {1, {1, 1, 1, 3}}, 8));
  return TEST_RESULT();
}
