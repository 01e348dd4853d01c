// Compares the runtime with a chain of kernels/reference.h's functions, bit for bit, with every instruction set of this
// machine: networks of single layers in awkward sizes, random networks, and the largest possible sums.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "int7/exact.h"
#include "int7/own_processors.h"
#include "int7/runtime.h"
#include "int7/step.h"
#include "kernels/reference.h"
#include "test/check.h"

namespace facetrain::int7 {
namespace {

using Kind = LayerSpec::Kind;

std::mt19937 random_source(11);

int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_source); }
float random_real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_source); }

int8_t negative(int8_t q, IntegerRange range) { return static_cast<int8_t>(std::clamp(-q, range.low, range.high)); }

// Of a tensor that a convolution reads; or, in place of it, that the tensor has eight bits.
constexpr int kEightBits = 1000;
int random_zero_point() {
  constexpr int kZeroPoints[] = {0, -63, 63, kEightBits};
  const int choice = random_int(0, 4);
  return choice < 4 ? kZeroPoints[choice] : random_int(-63, 63);
}

// An operator that reads the layer's input `times` times.
NodeSpec node_of(const std::string& op, const ArrayDims& dims, int times) {
  FloatStep step{.op = op, .numbers = {}, .texts = {}, .operands = {}};
  step.operands.resize(times, {FloatStep::Operand::From::input, 0, {}});
  return {.steps = {step}, .input_dims = {dims}, .output_dims = dims};
}

// Grows a network layer by layer. The integers of its weights and tensors use their whole range.
class Builder {
 public:
  Builder(int channels, int height, int width) {
    network_.tensors.push_back({.channels = channels, .height = height, .width = width, .scale = 0.02f, .range = 63});
    for (int c = 0; c < channels; ++c) {
      for (int byte = 0; byte < 256; ++byte) network_.pixels.push_back(static_cast<int8_t>(byte / 2 - 63));
    }
    for (auto& q : network_.pixels) q = std::min<int8_t>(q, 63);
  }

  int conv(int input, ConvShape shape, int weight_limit = 63) {
    LayerSpec& layer = add_layer(Kind::conv, {input});
    const TensorSpec x = network_.tensors[input];
    shape.in_channels = x.channels;
    shape.in_height = x.height;
    shape.in_width = x.width;
    layer.shape = shape;
    for (int64_t i = 0; i < shape.weights(); ++i)
      layer.weights.push_back(static_cast<int8_t>(random_int(-weight_limit, weight_limit)));
    const double filter = static_cast<double>(shape.group_in()) * shape.taps();
    for (int o = 0; o < shape.out_channels; ++o) {
      layer.bias.push_back(random_int(-3000, 3000));
      layer.weight_scales.push_back(random_real(0.5f, 2.0f) / static_cast<float>(40 * std::sqrt(filter)));
    }
    return add_tensor(shape.out_channels, shape.out_height(), shape.out_width());
  }
  int pointwise(int input, float offset) {
    LayerSpec& layer = add_layer(Kind::pointwise, {input});
    const TensorSpec x = network_.tensors[input];
    for (int c = 0; c < x.channels; ++c) {
      layer.positive.push_back(offset == 0 ? 1 : random_real(-0.5f, 2));
      layer.negative.push_back(random_real(-0.5f, 1));
      layer.offset.push_back(random_real(-offset, offset));
    }
    return add_tensor(x.channels, x.height, x.width);
  }
  int add(int a, int b) {
    add_layer(Kind::add, {a, b});
    const TensorSpec x = network_.tensors[a];
    return add_tensor(x.channels, x.height, x.width);
  }
  int pool(int input) {
    add_layer(Kind::pool, {input});
    return add_tensor(network_.tensors[input].channels, 1, 1);
  }
  // Its negative, within the limit of operands, by a node.
  int negated(int input) {
    LayerSpec& layer = add_layer(Kind::node, {input});
    const TensorSpec x = network_.tensors[input];
    layer.node = node_of("Neg", {1, x.channels, x.height, x.width}, 1);
    const int output = add_tensor(x.channels, x.height, x.width);
    network_.tensors[output].scale = x.scale;
    network_.tensors[output].range = 63;
    return output;
  }

  // Ends with the last tensor as output. Tensors that convolutions read get the range of operands.
  Network finish(int (*zero_point)() = random_zero_point) {
    network_.outputs = {static_cast<int>(network_.tensors.size()) - 1};
    network_.tensors.back().real = true;
    std::vector<bool> is_operand(network_.tensors.size());
    for (const LayerSpec& layer : network_.layers) {
      if (layer.kind == Kind::conv) is_operand[layer.inputs[0]] = true;
    }
    for (size_t t = 0; t < is_operand.size(); ++t) {
      if (!is_operand[t]) continue;
      const int zero = zero_point();
      const bool wide = zero == kEightBits;
      network_.tensors[t].range = wide ? IntegerRange(127) : IntegerRange(63, zero);
      if (t > 0) continue;
      for (auto& q : network_.pixels) q = static_cast<int8_t>(wide ? std::clamp(q * 127 / 63, -127, 127) : q - zero);
    }
    return network_;
  }
  const TensorSpec& tensor(int index) const { return network_.tensors[index]; }
  Network& network() { return network_; }

 private:
  LayerSpec& add_layer(Kind kind, std::vector<int> inputs) {
    LayerSpec layer;
    layer.kind = kind;
    layer.name = "layer" + std::to_string(network_.layers.size());
    layer.inputs = std::move(inputs);
    layer.output = static_cast<int>(network_.tensors.size());
    network_.layers.push_back(std::move(layer));
    return network_.layers.back();
  }
  int add_tensor(int channels, int height, int width) {
    network_.tensors.push_back(
        {.channels = channels, .height = height, .width = width, .scale = random_real(0.01f, 0.03f)});
    return static_cast<int>(network_.tensors.size()) - 1;
  }

  Network network_;
};

ConvShape shape_of(int out, int group, int kernel, int stride, int pad) {
  return {.out_channels = out,
          .group = group,
          .kernel = {kernel, kernel},
          .strides = {stride, stride},
          .dilations = {1, 1},
          .pads = {pad, pad, pad, pad}};
}

// The output by reference.h. The output of a network here is that of a convolution.
std::vector<float> expected_output(const Network& network, const std::vector<uint8_t>& picture) {
  std::vector<std::vector<int8_t>> integers(network.tensors.size());
  std::vector<float> output;
  const TensorSpec& input = network.tensors[0];
  for (int c = 0; c < input.channels; ++c) {
    for (int i = 0; i < input.area(); ++i)
      integers[0].push_back(network.pixels[c * 256 + picture[i * input.channels + c]]);
  }
  for (const LayerSpec& layer : network.layers) {
    const TensorSpec &x = network.tensors[layer.inputs[0]], &y = network.tensors[layer.output];
    const int8_t* from = integers[layer.inputs[0]].data();
    auto& to = integers[layer.output];
    to.resize(y.size());
    if (layer.kind == Kind::conv) {
      std::vector<int32_t> sums(y.size());
      reference::conv(layer.shape, from, layer.weights.data(), layer.bias.data(), sums.data());
      if (y.real) {
        for (int64_t i = 0; i < y.size(); ++i)
          output.push_back(static_cast<float>(sums[i]) * (x.scale * layer.weight_scales[i / y.area()]));
        continue;
      }
      std::vector<float> multipliers;
      for (const float scale : layer.weight_scales) multipliers.push_back(x.scale * scale / y.scale);
      reference::requantize(sums.data(), y.channels, y.area(), multipliers.data(), y.range, to.data());
    } else if (layer.kind == Kind::pointwise) {
      reference::pointwise(from, x.channels, x.area(), layer.positive.data(), layer.negative.data(),
                           layer.offset.data(), x.scale, y.scale, y.range, to.data());
    } else if (layer.kind == Kind::add) {
      const int second = layer.inputs[1];
      reference::add(from, x.scale, integers[second].data(), network.tensors[second].scale, static_cast<int>(y.size()),
                     y.scale, y.range, to.data());
    } else if (layer.kind == Kind::pool) {
      reference::pool(from, x.channels, x.area(), x.scale, y.scale, y.range, to.data());
    } else if (!y.real) {
      for (int64_t i = 0; i < y.size(); ++i) to[i] = negative(from[i], y.range);
    }
  }
  return output;
}

struct TestedKernels {
  std::string name;
  const Kernels* kernels;
};

// Those of this machine's instruction sets, and those of AVX-VNNI in any case. The kernels of AVX512-VNNI and of ARM's
// dot product cannot be had in the same way: they need registers that no other instruction set has.
const std::vector<TestedKernels>& tested_kernels() {
  static const std::vector<TestedKernels> all = [] {
    std::vector<TestedKernels> found;
    for (const Isa isa : kIsas) {
      if (supported(isa)) found.push_back({name_of(isa), &kernels_for(isa)});
    }
#if defined(__x86_64__)
    if (supported(Isa::avx2) && !supported(Isa::avxvnni))
      found.push_back({"avxvnni, emulated by avx2", &emulated_avxvnni_kernels()});
#endif
    return found;
  }();
  return all;
}

// The portable kernels are the same code on every processor: where x86 has compared them in all sizes, an emulator of
// another one, which is slow, compares them only in the first tests of main().
bool skips_portable = false;

void compare(const Network& network, const char* what, int byte = -1) {
  std::vector<uint8_t> picture(network.tensors[0].size());
  for (auto& value : picture) value = static_cast<uint8_t>(byte < 0 ? random_int(0, 255) : byte);
  const std::vector<float> expected = expected_output(network, picture);
  for (const TestedKernels& tested : tested_kernels()) {
    if (skips_portable && tested.name == name_of(Isa::portable)) continue;
    const Runtime runtime(network, *tested.kernels);
    // On threads, of which some may have no part of a step.
    for (const int threads : {2, 3}) {
      static ThreadPool pools[] = {ThreadPool(2), ThreadPool(3)};
      Runtime::Context context(runtime, threads);
      std::vector<float> actual(runtime.output_size());
      runtime.run(context, picture.data(), actual.data(), pools[threads - 2]);
      if (actual != expected)
        test::fail(__FILE__, __LINE__) << what << ": " << tested.name << ", " << threads << " threads\n";
    }
    Runtime::Context context(runtime);
    // Twice, so that what the first picture leaves in memory would show.
    for (int repeat = 0; repeat < 2; ++repeat) {
      std::vector<float> actual(runtime.output_size());
      runtime.run(context, picture.data(), actual.data());
      if (actual != expected) {
        test::fail(__FILE__, __LINE__) << what << ": " << tested.name << ", run " << repeat << "\n";
        return;
      }
    }
  }
}

// A last layer in which every number of `tensor` is seen.
Network seen(Builder& b, int tensor) {
  b.conv(tensor, shape_of(b.tensor(tensor).channels, 1, 1, 1, 0));
  return b.finish();
}

void test_convolutions() {
  const auto check = [](int channels, int height, int width, const ConvShape& shape, const char* what) {
    Builder b(channels, height, width);
    compare(seen(b, b.conv(0, shape)), what);
    Builder whole(channels, height, width);
    whole.conv(0, shape);
    compare(whole.finish(), what);  // real sums
  };
  for (const int in : {1, 3, 4, 5, 16, 20, 64, 67}) {
    for (const int out : {1, 15, 16, 17, 40, 64, 70, 128}) check(in, 5, 7, shape_of(out, 1, 1, 1, 0), "1x1");
    for (const int width : {1, 2, 6, 7, 13, 25, 29}) {
      check(in, 4, width, shape_of(33, 1, 3, 1, 1), "3x3");
      check(in, 5, width, shape_of(64, 1, 3, 2, 1), "3x3 stride 2");
      check(in, 4, width, shape_of(in, in, 3, 1, 1), "depthwise 3x3");
      check(in, 5, width, shape_of(in, in, 3, 2, 1), "depthwise 3x3 stride 2");
    }
    check(in, 7, 7, shape_of(in, in, 7, 1, 0), "depthwise 7x7");
    check(in, 5, 5, shape_of(in, in, 5, 1, 2), "depthwise 5x5");
    check(in, 4, 4, shape_of(2 * in, in, 3, 1, 1), "two outputs a channel");
    check(in, 3, 4, shape_of(21, 1, 3, 1, 0), "valid");
  }
  check(12, 6, 6, shape_of(12, 6, 3, 1, 1), "two channels a group");
  check(128, 6, 6, shape_of(128, 64, 3, 1, 1), "64 groups");
  check(20, 6, 6, shape_of(36, 2, 1, 1, 0), "two groups");
  ConvShape odd{
      .out_channels = 10, .group = 2, .kernel = {2, 3}, .strides = {2, 1}, .dilations = {2, 3}, .pads = {1, 0, 2, 3}};
  check(6, 9, 11, odd, "all sizes different");
  odd.group = 1;
  check(6, 9, 11, odd, "all sizes different, one group");
  check(8, 9, 11,
        {.out_channels = 8, .group = 8, .kernel = {3, 2}, .strides = {1, 2}, .dilations = {2, 1}, .pads = {0, 2, 1, 0}},
        "depthwise, all sizes different");
  check(
      16, 9, 11,
      {.out_channels = 16, .group = 16, .kernel = {3, 3}, .strides = {2, 1}, .dilations = {2, 1}, .pads = {2, 0, 1, 2}},
      "depthwise by columns, all else different");
  check(3, 2, 2, shape_of(5, 1, 3, 1, 4), "pixels that see only padding");
  // Pixels times tiles exceed an int.
  for (const auto& [in, out] : {std::pair{1, 1}, std::pair{3, 17}}) {
    Builder large(in, 512, 512);
    large.conv(0, shape_of(out, 1, 1, 1, 0));
    compare(large.finish(), "1x1 on a large map");
  }
}

// The largest sums of either sign, also with weights of one sign, which end chunks of int16 sums soonest.
void test_extremes() {
  for (const int byte : {0, 255}) {
    for (const int sign : {-1, 0, 1}) {
      for (const ConvShape& shape :
           {shape_of(33, 1, 3, 1, 1), shape_of(70, 70, 3, 1, 1), shape_of(70, 70, 7, 1, 3), shape_of(64, 1, 1, 1, 0)}) {
        for (int (*zero_point)() :
             {+[] { return -63; }, +[] { return 0; }, +[] { return 63; }, +[] { return kEightBits; }}) {
          Builder b(70, 9, 9);
          b.conv(0, shape);
          Network network = b.finish(zero_point);
          for (auto& w : network.layers[0].weights)
            w = static_cast<int8_t>(sign == 0 ? (random_int(0, 1) ? 63 : -63) : sign * 63);
          compare(network, "extremes", byte);
        }
      }
    }
  }
}

// The kernels here that have Winograd's tiles.
#if defined(__x86_64__)
constexpr bool kIsArm = false;
const Kernels& winograd_kernels() { return avx2_kernels(); }
#else
constexpr bool kIsArm = true;
const Kernels& winograd_kernels() { return neon_kernels(); }
#endif

// How they compute the network's first layer: outputs of the tiles, 0 for the direct convolution.
int winograd_outputs(const Network& network) {
  const WinogradPlan plan = winograd_plan(network.layers[0], network.tensors[0], winograd_kernels());
  return plan.tiles ? plan.tiles->outputs : 0;
}

void test_winograd() {
  const auto has_winograd = [](const TestedKernels& tested) { return tested.kernels->winograd[0] != nullptr; };
  if (std::none_of(tested_kernels().begin(), tested_kernels().end(), has_winograd)) return;
  const auto check = [](int channels, int height, int width, const ConvShape& shape, int avx2, int neon) {
    Builder b(channels, height, width);
    const int conv = b.conv(0, shape);
    // Its result is read by another such convolution, by one with a border of its own, and by an addition. The border
    // is the same on every processor, and an emulator is slow.
    const int again = b.conv(conv, shape_of(shape.out_channels, 1, 3, 1, 1));
    const int far = kIsArm ? conv : b.conv(conv, shape_of(shape.out_channels, 1, 5, 1, 2), 20);
    const Network network = seen(b, b.pointwise(b.add(again, far), 0.5f));
    CHECK_EQ(winograd_outputs(network), kIsArm ? neon : avx2);
    compare(network, "Winograd");
    Builder real(channels, height, width);
    real.conv(0, shape);
    compare(real.finish(), "Winograd with real sums");
  };
  // Tiles of 4x4 with every rest in height and width, and with other borders.
  for (const int rest : {0, 1, 2, 3}) {
    check(48, 12 + rest, 20, shape_of(40, 1, 3, 1, 1), 4, 4);
    check(32, 20, 12 + rest, shape_of(64, 1, 3, 1, 1), 4, 4);
  }
  ConvShape uneven = shape_of(50, 1, 3, 1, 0);
  check(64, 18, 22, uneven, 4, 4);
  uneven.pads = {2, 0, 1, 3};
  check(64, 17, 19, uneven, 4, 4);
  const int wide = kIsArm ? 32 : 256;
  check(256, 14, 14, shape_of(wide, 1, 3, 1, 1), 2, 2);
  check(256, 13, 15, shape_of(wide - 6, 1, 3, 1, 1), 2, 2);
  // Few pixels, few channels, parts of a vector.
  if (!kIsArm) check(512, 7, 7, shape_of(512, 1, 3, 1, 1), 0, 0);
  check(16, 20, 20, shape_of(16, 1, 3, 1, 1), 0, 4);
  check(40, 20, 20, shape_of(40, 1, 3, 1, 1), 0, 0);

  // The largest sums of either sign. 576 times those of 4x4 tiles must fit an int32: 117 channels of 63 * 63 in 3x3.
  const auto extreme = [](int channels, int outputs, int8_t weight, int (*zero_point)()) {
    Builder b(channels, 16, 16);
    b.conv(0, shape_of(32, 1, 3, 1, 1));
    Network network = b.finish(zero_point);
    for (size_t i = 0; i < network.layers[0].weights.size(); ++i)
      network.layers[0].weights[i] = static_cast<int8_t>(weight != 0 ? weight : i % 2 ? 63 : -63);
    CHECK_EQ(winograd_outputs(network), outputs);
    for (const int byte : {-1, 0, 255}) compare(network, "extremes of Winograd", byte);
  };
  for (const int8_t weight : {-63, 0, 63}) {
    extreme(
        96, 4, weight, +[] { return 0; });
    extreme(
        48, 4, weight, +[] { return 63; });
    for (int (*zero_point)() : {+[] { return -63; }, +[] { return 0; }, +[] { return 63; }, +[] { return kEightBits; }})
      extreme(128, 2, weight, zero_point);
  }
}

// Winograd's convolution along rows, in the kernels that have it. Weights up to 42 never exceed a byte when three are
// added, up to 50 some do, and 63 in all taps do everywhere.
void test_row_winograd() {
  const auto rows_of = [](const Network& network) {
    std::vector<bool> found;
    for (const TestedKernels& tested : tested_kernels()) {
      if (tested.kernels->row_winograd == nullptr) continue;
      found.push_back(winograd_plan(network.layers[0], network.tensors[0], *tested.kernels).rows != nullptr);
    }
    return found;
  };
  const auto expect = [&](const Network& network, bool rows, const char* what) {
    for (const bool found : rows_of(network)) CHECK_EQ(found, rows);
    for (const int byte : {-1, 0, 255}) compare(network, what, byte);
  };
  const auto zero = +[] { return 0; };
  const auto check = [&](int channels, int height, int width, const ConvShape& shape, bool rows) {
    for (const int limit : {42, 50}) {
      Builder b(channels, height, width);
      const int conv = b.conv(0, shape, limit);
      const int again = b.conv(conv, shape_of(shape.out_channels, 1, 3, 1, 1), limit);
      const int far = b.conv(conv, shape_of(shape.out_channels, 1, 5, 1, 2), 20);
      Network network = seen(b, b.pointwise(b.add(again, far), 0.5f));
      network.tensors[0].range = 63;
      for (auto& q : network.pixels) q = static_cast<int8_t>(random_int(-63, 63));
      expect(network, rows, "Winograd along rows");
      Builder real(channels, height, width);
      real.conv(0, shape, limit);
      expect(real.finish(zero), rows, "Winograd along rows with real sums");
    }
  };
  // Every rest of tiles, of vectors and of panels; more than one strip. An emulator is slow.
  for (const int width : {1, 2, 7, 8, 14, 27}) check(48, 5, width, shape_of(40, 1, 3, 1, 1), width > 1);
  for (const int out : {16, 17, 33, 64, 100}) {
    if (!kIsArm || out < 64) check(64, 7, 7, shape_of(out, 1, 3, 1, 1), true);
  }
  check(kIsArm ? 48 : 80, 40, 33, shape_of(kIsArm ? 16 : 32, 1, 3, 1, 1), true);
  ConvShape uneven = shape_of(50, 1, 3, 1, 0);
  check(64, 9, 11, uneven, true);
  uneven.pads = {2, 0, 1, 3};
  check(64, 9, 10, uneven, true);
  // Channels that are no whole vectors, and few whose products do not pay for the transforms.
  check(40, 8, 8, shape_of(40, 1, 3, 1, 1), false);
  check(16, 8, 8, shape_of(16, 1, 3, 1, 1), true);

  // The largest operands and weights. Of weights of either sign both doubled positions exceed a byte everywhere, and
  // operands of eight bits have no sums that fit one: the direct convolution.
  for (int (*zero_point)() : {+[] { return -63; }, +[] { return 0; }, +[] { return 63; }, +[] { return kEightBits; }}) {
    for (const std::array<int, 3>& taps : {std::array{63, 63, 63}, std::array{-63, -63, -63}, std::array{63, -63, 63},
                                           std::array{-63, 63, -63}, std::array{0, 0, 0}}) {
      Builder b(kIsArm ? 64 : 512, 6, 8);
      b.conv(0, shape_of(kIsArm ? 17 : 33, 1, 3, 1, 1));
      Network network = b.finish(zero_point);
      auto& weights = network.layers[0].weights;
      for (size_t i = 0; i < weights.size(); ++i)
        weights[i] = static_cast<int8_t>(taps[0] == 0 ? (random_int(0, 1) ? 63 : -63) : taps[i % 3]);
      expect(network, taps[0] != 0 && network.tensors[0].range.size() == 127, "extremes of Winograd along rows");
    }
  }
}

// A thread on a processor that another has taken, and keeps busy, moves to a free one, and may run on all as before.
void test_own_processors() {
#if defined(__linux__)
  cpu_set_t all, one;
  CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  if (CPU_COUNT(&all) < 2) return;
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  OwnProcessors processors;
  std::atomic<bool> taken = false, done = false;
  std::thread busy([&] {
    sched_setaffinity(0, sizeof one, &one);
    processors.take();
    taken = true;
    while (!done) continue;
  });
  std::thread other([&] {
    sched_setaffinity(0, sizeof one, &one);
    while (!taken) std::this_thread::yield();
    sched_setaffinity(0, sizeof all, &all);
    processors.take();
    CHECK(sched_getcpu() != first);
    cpu_set_t allowed;
    CHECK_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    CHECK(CPU_EQUAL(&allowed, &all));
    processors.take();  // all that it knows may be taken now: it stays
    done = true;
  });
  other.join();
  busy.join();
#endif
}

// One length of chunks for all channels of a depthwise convolution, here in pairs of taps: the first channel takes six,
// and not four, which is all that the second takes.
void test_chunks_of_channels() {
  Builder b(2, 9, 9);
  b.conv(0, shape_of(2, 2, 5, 1, 2));
  Network network = b.finish(+[] { return 0; });
  auto& weights = network.layers[0].weights;
  std::fill(weights.begin(), weights.end(), 0);
  for (const int tap : {8, 9, 10, 11, 12, 13}) weights[tap] = 63;
  for (const int tap : {0, 1, 2, 3, 8, 9}) weights[25 + tap] = 63;
  compare(network, "chunks that are safe for one channel", 255);
}

// Every chunk length that weights can prove: 258 / w products of the weight w, and 127 times their sum is up to 32766.
// For operands of eight bits 128 / w, and 255 times their sum is up to 32640; or 258 / w where bytes are signed.
void check_int16_bounds(int w, int sign, int (*zero_point)(), int weights) {
  Builder b(w < 5 ? 2100 / w : 520, 2, 2);
  b.conv(0, shape_of(17, 1, 1, 1, 0));
  Network dense = b.finish(zero_point);
  for (auto& weight : dense.layers[0].weights) weight = static_cast<int8_t>(sign * w);
  // Of one output channel: the longest run, and one weight more that the same int16 does not hold.
  const int64_t inputs = dense.layers[0].shape.group_in();
  for (int64_t i = 0; i < inputs; ++i) {
    const int64_t product = i / 4;
    dense.layers[0].weights[i] = static_cast<int8_t>(product < weights / w ? sign * w : i % 3);
  }
  Builder by_channel(20, 9, 9);
  by_channel.conv(0, shape_of(20, 20, 9, 1, 4));
  Network depthwise = by_channel.finish(zero_point);
  for (auto& weight : depthwise.layers[0].weights) weight = static_cast<int8_t>(sign * w);
  compare(dense, "an int16 of a convolution is full", 255);
  compare(depthwise, "an int16 of a depthwise convolution is full", 255);
}

// Of the weights for which a chunk has as many products, the largest fills the int16 most.
void test_int16_bounds() {
  constexpr auto kWide = +[] { return kEightBits; };
  for (int w = 1; w <= 63; ++w) {
    if (w < 63 && 258 / w == 258 / (w + 1) && 128 / w == 128 / (w + 1)) continue;
    for (const int sign : {-1, 1}) {
      check_int16_bounds(w, sign, random_zero_point, 258);
      for (const int weights : {128, 258}) check_int16_bounds(w, sign, kWide, weights);
    }
  }
}

void test_stages() {
  for (const int channels : {3, 16, 24, 64, 100}) {
    for (const float offset : {0.0f, 0.5f}) {
      Builder prelu(3, 9, 8);
      compare(seen(prelu, prelu.pointwise(prelu.conv(0, shape_of(channels, 1, 3, 1, 1)), offset)), "conv, pointwise");

      // A block of MobileFaceNet: pointwise and addition in the epilogue.
      Builder linear(3, 9, 8);
      const int stem = linear.pointwise(linear.conv(0, shape_of(channels, 1, 3, 1, 1)), offset);
      const int deep = linear.pointwise(linear.conv(stem, shape_of(channels, channels, 3, 1, 1)), offset);
      compare(seen(linear, linear.add(stem, linear.conv(deep, shape_of(channels, 1, 1, 1, 0)))), "bottleneck");

      // A block of an IResNet: the sum is read by the next batch norm and by the next addition.
      Builder residual(3, 9, 8);
      int x = residual.conv(0, shape_of(channels, 1, 3, 1, 1));
      for (int block = 0; block < 2; ++block) {
        const int norm = residual.pointwise(x, offset);
        const int inner = residual.pointwise(residual.conv(norm, shape_of(channels, 1, 3, 1, 1)), 0);
        x = residual.add(residual.conv(inner, shape_of(channels, 1, 3, 1, 1)), x);
      }
      compare(seen(residual, residual.pointwise(x, offset)), "residual blocks");

      // Layers that cannot join a group: two readers, an addition of two convolutions, a pool, a foreign layer.
      Builder apart(3, 9, 8);
      const int a = apart.conv(0, shape_of(channels, 1, 3, 2, 1)), b = apart.conv(0, shape_of(channels, 1, 1, 2, 0));
      const int sum = apart.add(a, b), twice = apart.add(sum, apart.negated(apart.pointwise(sum, offset)));
      compare(seen(apart, apart.pool(apart.add(twice, a))), "apart");
    }
  }
}

void test_random_networks() {
  for (int round = 0; round < 60; ++round) {
    Builder b(random_int(1, 5), random_int(1, 12), random_int(1, 12));
    std::vector<int> tensors{0};
    for (int l = random_int(1, 9); l > 0; --l) {
      const int input =
          tensors[random_int(std::max(0, static_cast<int>(tensors.size()) - 3), static_cast<int>(tensors.size()) - 1)];
      const TensorSpec x = b.tensor(input);
      switch (random_int(0, 5)) {
        case 0: {
          const int kernel = random_int(1, 4), pad = random_int(0, 2);
          ConvShape shape = shape_of(random_int(1, 80), 1, kernel, random_int(1, 2), pad);
          if (kernel > std::min(x.height, x.width) + 2 * pad) shape = shape_of(9, 1, 1, 1, 0);
          tensors.push_back(b.conv(input, shape));
          break;
        }
        case 1:
          tensors.push_back(b.conv(input, shape_of(x.channels, x.channels, 3, random_int(1, 2), 1)));
          break;
        case 2:
          tensors.push_back(b.pointwise(input, random_int(0, 1) ? 0.4f : 0));
          break;
        case 3:
          tensors.push_back(b.negated(input));
          break;
        default:
          for (const int other : tensors) {
            const TensorSpec& y = b.tensor(other);
            if (y.channels != x.channels || y.height != x.height || y.width != x.width) continue;
            tensors.push_back(b.add(input, other));
            break;
          }
      }
    }
    compare(seen(b, tensors.back()), "random network");
  }
}

void test_exact_multipliers() {
  // Slopes of 0.25 and 0.5 at scales that are powers of two: every other result is a tie.
  const ExactPointwise ties = exact_pointwise({1}, {0.25f}, {0}, 0.5f, 127, 1, 63);
  CHECK(!ties.divides);
  CHECK_EQ(ties.positive[0], 0.5f);
  CHECK_EQ(ties.negative[0], 0.125f);
  CHECK(ties.offset.empty());
  int divides = 0;
  for (int round = 0; round < 300; ++round) {
    const float x_scale = random_real(0.001f, 0.1f), y_scale = random_real(0.001f, 0.1f), slope = random_real(-1, 2);
    const float offset = round % 2 ? random_real(-1, 1) : 0;
    const ExactPointwise exact = exact_pointwise({1}, {slope}, {offset}, x_scale, 127, y_scale, 63);
    divides += exact.divides;
    for (int q = -127; q <= 127 && !exact.divides; ++q) {
      const auto x = static_cast<int8_t>(q);
      int8_t y;
      const float positive = 1;
      reference::pointwise(&x, 1, 1, &positive, &slope, &offset, x_scale, y_scale, 63, &y);
      const float by = (q > 0 ? exact.positive : exact.negative)[0] * static_cast<float>(q);
      CHECK_EQ(round_saturated(by + (offset == 0 ? 0 : exact.offset[0]), 63), static_cast<float>(y));
    }
  }
  CHECK(divides < 30);
  CHECK(!exact_add(0.031f, 63, 0.0217f, 127, 0.0443f, 127).divides);
}

// Scales at whose ties the definition rounds now up, now down, so that no multiplier does the same.
void test_division() {
  CHECK(exact_add(0.03f, 127, 0.02f, 127, 0.04f, 63).divides);
  const auto uneven = exact_pointwise({1}, {0.3f}, {0.05f}, 0.01f, 127, 0.02f, 63);
  CHECK(uneven.divides);
  Builder b(3, 9, 8);
  const int x = b.conv(0, shape_of(24, 1, 3, 1, 1)), y = b.pointwise(x, 0.5f);
  const int sum = b.add(b.conv(0, shape_of(24, 1, 1, 1, 0)), y);
  b.network().tensors[x].scale = 0.01f;
  b.network().tensors[y].scale = 0.02f;
  b.network().tensors[sum - 1].scale = 0.03f;
  b.network().tensors[sum].scale = 0.04f;
  LayerSpec& pointwise = b.network().layers[1];
  for (int c = 0; c < 24; ++c) {
    pointwise.positive[c] = 1;
    pointwise.negative[c] = 0.3f;
    pointwise.offset[c] = 0.05f;
  }
  compare(seen(b, sum), "layers that divide");
}

// Real tensors between layers, two outputs, and a picture in real numbers.
void test_real_tensors() {
  Builder b(3, 5, 6);
  const int embedding = b.conv(0, shape_of(7, 1, 3, 2, 1));
  Network network = b.finish();
  const TensorSpec real = network.tensors[embedding];
  network.tensors.push_back(real);
  LayerSpec twice;
  twice.inputs = {embedding};
  twice.output = embedding + 1;
  const ArrayDims dims{1, real.channels, real.height, real.width};
  twice.node = node_of("Add", dims, 2);
  network.layers.push_back(twice);
  std::vector<uint8_t> picture(5 * 6 * 3);
  for (auto& value : picture) value = static_cast<uint8_t>(random_int(0, 255));
  std::vector<float> expected = expected_output(network, picture);
  network.outputs = {embedding, embedding + 1};
  for (size_t i = 0; i < static_cast<size_t>(real.size()); ++i) expected.push_back(2 * expected[i]);
  const Runtime runtime(network);
  Runtime::Context context(runtime);
  std::vector<float> actual(runtime.output_size());
  runtime.run(context, picture.data(), actual.data());
  CHECK(actual == expected);

  Network copy;
  copy.tensors = {{.channels = 3, .height = 2, .width = 1, .real = true},
                  {.channels = 3, .height = 2, .width = 1, .real = true}};
  copy.outputs = {1};
  for (int i = 0; i < 3 * 256; ++i) copy.real_pixels.push_back(static_cast<float>(i));
  LayerSpec same;
  same.inputs = {0};
  same.output = 1;
  same.node = node_of("Identity", {1, 3, 2, 1}, 1);
  copy.layers.push_back(same);
  const Runtime copies(copy);
  Runtime::Context memory(copies);
  const uint8_t bytes[] = {1, 2, 3, 4, 5, 6};
  std::vector<float> reals(6);
  copies.run(memory, bytes, reals.data());
  CHECK(reals == (std::vector<float>{1, 4, 256 + 2, 256 + 5, 512 + 3, 512 + 6}));
}

std::vector<float> output_of(const Network& network, const std::vector<uint8_t>& picture) {
  const Runtime runtime(network);
  Runtime::Context context(runtime);
  std::vector<float> output(runtime.output_size());
  runtime.run(context, picture.data(), output.data());
  return output;
}

// A node that reads a picture of integers, which are its bytes, and an Identity that makes real numbers of its result.
Network node_network(const TensorSpec& picture, NodeSpec node, TensorSpec result) {
  Network network;
  network.tensors = {picture, result, result};
  network.tensors[2].real = true;
  network.outputs = {2};
  for (int i = 0; i < picture.channels * 256; ++i) network.pixels.push_back(static_cast<int8_t>(i % 128));
  const ArrayDims dims = node.output_dims;
  network.layers.resize(2);
  network.layers[0].inputs = {0};
  network.layers[0].output = 1;
  network.layers[0].node = std::move(node);
  network.layers[1].inputs = {1};
  network.layers[1].output = 2;
  network.layers[1].node = node_of("Identity", dims, 1);
  return network;
}

// A function behind a Flatten has the numbers of the map in ONNX's order.
void test_flattened() {
  const TensorSpec map{.channels = 3, .height = 2, .width = 1, .scale = 1},
      flat{.channels = 6, .height = 1, .width = 1, .scale = 1};
  const std::vector<uint8_t> picture{1, 2, 3, 4, 5, 6};
  Network network = node_network(map, node_of("Neg", {1, 6}, 1), flat);
  CHECK(output_of(network, picture) == (std::vector<float>{-1, -4, -2, -5, -3, -6}));
  // The same, of which the result is real.
  network.tensors.pop_back();
  network.layers.pop_back();
  network.tensors[1].real = true;
  network.outputs = {1};
  CHECK(output_of(network, picture) == (std::vector<float>{-1, -4, -2, -5, -3, -6}));
}

void test_windows() {
  // A window without a tap has the least integer.
  const TensorSpec pixel{.channels = 1, .height = 1, .width = 1, .scale = 1, .range = 63};
  NodeSpec padded = node_of("MaxPool", {1, 1, 1, 1}, 1);
  padded.steps[0].numbers = {{"kernel_shape", {1, 1}}, {"pads", {0, 1, 0, 1}}};
  padded.output_dims = {1, 1, 1, 3};
  TensorSpec row = pixel;
  row.width = 3;
  CHECK(output_of(node_network(pixel, padded, row), {5}) == (std::vector<float>{-63, 5, -63}));

  // A pool of a constant, with an operand more that is computed, as a damaged file may have it.
  row.width = 4;
  row.range = 127;
  for (const char* op : {"MaxPool", "AveragePool"}) {
    const TensorSpec map{.channels = 3, .height = 2, .width = 1, .scale = 1};
    NodeSpec pool = node_of(op, {1, 3, 2, 1}, 2);
    pool.steps[0].numbers = {{"kernel_shape", {1, 1}}};
    pool.steps[0].operands[0] = {FloatStep::Operand::From::constant, 0, {{1, 1, 1, 4}, {1, 2, 3, 4}, {}}};
    pool.output_dims = {1, 1, 1, 4};
    CHECK(output_of(node_network(map, pool, row), {9, 9, 9, 9, 9, 9}) == (std::vector<float>{1, 2, 3, 4}));
  }
}

// What compare() leaves out, so that a run says what it has not shown.
void print_missing_instruction_sets() {
#if defined(__x86_64__)
  constexpr Isa kOwn[] = {Isa::avx2, Isa::avxvnni, Isa::avx512vnni};
#elif defined(__aarch64__)
  constexpr Isa kOwn[] = {Isa::neon, Isa::neondot};
#else
  constexpr Isa kOwn[] = {Isa::portable};
#endif
  for (const Isa isa : kOwn) {
    if (!supported(isa)) std::cout << "not run on this CPU: " << name_of(isa) << "\n";
  }
}

// In an emulator the processor is known, so a test would otherwise not notice that it compares fewer kernels.
// FACETRAIN_ISAS: the names of all that it has.
void test_instruction_sets() {
  const char* expected = std::getenv("FACETRAIN_ISAS");
  if (expected == nullptr) return;
  std::string found;
  for (const Isa isa : kIsas) {
    if (!supported(isa)) continue;
    if (!found.empty()) found += ' ';
    found += name_of(isa);
  }
  CHECK_EQ(found, std::string(expected));
}

void test_refusals() {
  Builder b(3, 4, 4);
  Network network = seen(b, b.conv(0, shape_of(5, 1, 1, 1, 0)));
  for (const int zero_point : {-1, 1}) {
    network.tensors[1].range = {127, zero_point};
    CHECK_THROWS(Runtime(network, Isa::portable), std::invalid_argument, "its input has integers beyond 127");
  }
  // 640 outputs of one group each: the packed weights are 64 times those of the layer.
  Builder groups(3, 4, 4);
  const int x = groups.conv(0, shape_of(640 * 16, 1, 1, 1, 0));
  groups.conv(x, shape_of(640, 640, 1, 1, 0));
  const Network packed = groups.finish();
  CHECK_THROWS(Runtime(packed, Isa::portable, 500000), std::invalid_argument, " bytes of memory; at most 500000");
  Runtime(packed, Isa::portable, 1500000);
}

}  // namespace
}  // namespace facetrain::int7

// int7_test [few]: with `few` only the tests that run every function of the kernels, which another processor has
// compared in all sizes.
int main(int argc, char** argv) {
  using namespace facetrain::int7;
  test_instruction_sets();
  test_extremes();
  test_stages();
  test_random_networks();
  if (argc > 1 && std::string(argv[1]) == "few") return TEST_RESULT();
  print_missing_instruction_sets();
  skips_portable = kIsArm && std::getenv("FACETRAIN_ISAS") != nullptr;
  test_exact_multipliers();
  test_convolutions();
  test_winograd();
  test_row_winograd();
  test_int16_bounds();
  test_chunks_of_channels();
  test_division();
  test_own_processors();
  test_real_tensors();
  test_flattened();
  test_windows();
  test_refusals();
  return TEST_RESULT();
}
