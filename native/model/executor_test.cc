// Training through the executor on cases that can be worked out by hand, and the operators with their own backward pass
// compared with ATen's. trainer-image/src/onnx/executor.test.ts compares the operators with ONNX Runtime.
#include "model/executor.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <array>
#include <set>
#include <type_traits>

#include "error.h"
#include "model/batch_norm_prelu.h"
#include "model/checkpoint.h"
#include "model/compute.h"
#include "model/node_values.h"
#include "model/norm_threads.h"
#include "model/prelu.h"
#include "test/check.h"

using namespace facetrain;

static Constant floats(std::vector<int64_t> dims, std::vector<float> values) {
  return {Constant::Type::float32, std::move(dims), std::move(values), {}};
}

// One channel, 1 x 2 pictures -> BatchNormalization -> Flatten -> Gemm to one number (-> BatchNormalization).
static Graph small_graph(bool ends_in_norm) {
  Graph graph;
  graph.input = {"data", 1, 1, 2};
  graph.nodes = {{"norm", "BatchNormalization", {"data", "gamma", "beta", "mean", "var"}, {"normed"}, {}},
                 {"flatten", "Flatten", {"normed"}, {"flat"}, {}},
                 {"fc", "Gemm", {"flat", "weight"}, {"fc"}, {}}};
  graph.initializers = {{"gamma", floats({1}, {2})}, {"beta", floats({1}, {1})},         {"mean", floats({1}, {0.5})},
                        {"var", floats({1}, {4})},   {"weight", floats({2, 1}, {3, 5})}, {"gamma2", floats({1}, {1})},
                        {"beta2", floats({1}, {0})}, {"mean2", floats({1}, {0})},        {"var2", floats({1}, {1})}};
  if (ends_in_norm)
    graph.nodes.push_back({"norm2", "BatchNormalization", {"fc", "gamma2", "beta2", "mean2", "var2"}, {"out"}, {}});
  graph.output = {ends_in_norm ? "out" : "fc", 1};
  return graph;
}

static std::vector<std::string> names(const std::vector<Executor::Named>& named) {
  std::vector<std::string> list;
  for (const auto& [name, tensor] : named) list.push_back(name);
  return list;
}

static void test_batch_norm() {
  const auto executor = make_executor(small_graph(false), at::kCPU);
  const at::Tensor images = at::tensor({0.f, 2.f, 4.f, 6.f}).view({2, 1, 1, 2});  // mean 3, variance 5, unbiased 20/3
  // Evaluation: (x - 0.5) / 2 * 2 + 1 = x + 0.5.
  at::Tensor out = executor->forward(images, Pass::evaluation);
  CHECK_NEAR(out[0].item<float>(), 3 * 0.5 + 5 * 2.5, 1e-4);
  CHECK(!out.requires_grad());

  out = executor->forward(images, Pass::training);
  const double scale = 2 / std::sqrt(5.0 + 1e-5);
  CHECK_NEAR(out[0].item<float>(), 3 * (1 - 3 * scale) + 5 * (1 - 1 * scale), 1e-4);
  CHECK_NEAR(executor->buffers()[0].tensor.item<float>(), 0.9 * 0.5 + 0.1 * 3, 1e-6);
  CHECK_NEAR(executor->buffers()[1].tensor.item<float>(), 0.9 * 4 + 0.1 * 20 / 3, 1e-6);

  // The derivative of the sum over pictures by a weight is the sum of its inputs; by beta, the sum of the weights for
  // each picture.
  out.sum().backward();
  const auto& parameters = executor->parameters();
  CHECK(names(parameters) == (std::vector<std::string>{"gamma", "beta", "weight"}));
  CHECK_NEAR(parameters[1].tensor.grad().item<float>(), 2 * (3 + 5), 1e-4);
  CHECK_NEAR(parameters[2].tensor.grad()[0].item<float>(), (1 - 3 * scale) + (1 + 1 * scale), 1e-4);
}

static void test_roles() {
  const auto executor = make_executor(small_graph(true), at::kCPU);
  CHECK(names(executor->parameters()) == (std::vector<std::string>{"gamma", "beta", "weight", "beta2"}));
  CHECK(names(executor->buffers()) == (std::vector<std::string>{"mean", "var", "mean2", "var2"}));
  CHECK(names(executor->fixed()) == std::vector<std::string>{"gamma2"});
  for (const auto& [name, tensor] : executor->parameters()) CHECK(tensor.requires_grad());
  CHECK(!executor->fixed()[0].tensor.requires_grad());

  Graph shared = small_graph(true);
  shared.nodes[3].inputs[1] = "gamma";  // learned in one node, fixed in the other
  CHECK_THROWS(make_executor(shared, at::kCPU), Error, "tensor 'gamma'");
}

static void test_prelu() {
  at::manual_seed(1);
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {2, 3, 5, 7}, {5, 8, 19, 11}, {700, 6}, {1, 1, 1, 1}, {3, 33, 1, 1}, {2, 1, 40, 40}}) {
    for (const auto format : {at::MemoryFormat::ChannelsLast, at::MemoryFormat::Contiguous}) {
      if (shape.size() != 4 && format == at::MemoryFormat::ChannelsLast) continue;
      at::Tensor x = at::randn(shape), slope = at::randn({shape[1]});
      x.view({-1})[0] = 0;  // 0 counts as negative, as in ATen
      if (shape.size() == 4) x = x.contiguous(format);
      const at::Tensor gradient = at::randn(shape);
      std::vector<at::Tensor> results;
      for (const bool own : {true, false}) {
        at::Tensor a = x.detach().clone().set_requires_grad(true), b = slope.detach().clone().set_requires_grad(true);
        const at::Tensor y = own ? facetrain::prelu(a, b) : at::prelu(a, b);
        y.backward(gradient);
        results.insert(results.end(), {y.detach(), a.grad(), b.grad()});
      }
      CHECK(at::equal(results[0], results[3]));
      CHECK(at::equal(results[1], results[4]));
      CHECK(at::allclose(results[2], results[5], 1e-4, 1e-4));

      // In bfloat16: the same numbers, each rounded once, and a float32 gradient of the slope.
      const at::Tensor low = x.detach().to(at::kBFloat16), low_gradient = gradient.to(at::kBFloat16);
      std::vector<at::Tensor> rounded;
      for (const auto type : {at::kBFloat16, at::kFloat}) {
        at::Tensor a = low.to(type).clone().set_requires_grad(true), b = slope.detach().clone().set_requires_grad(true);
        const at::Tensor y = facetrain::prelu(a, b);
        y.backward(low_gradient.to(type));
        CHECK(b.grad().scalar_type() == at::kFloat);
        rounded.insert(rounded.end(), {y.detach().to(at::kBFloat16), a.grad().to(at::kBFloat16), b.grad()});
      }
      if (format == at::MemoryFormat::Contiguous && shape.size() == 4) continue;  // ATen rounds the slope as well
      CHECK(at::equal(rounded[0], rounded[3]));
      CHECK(at::equal(rounded[1], rounded[4]));
      CHECK(at::allclose(rounded[2], rounded[5], 1e-4, 1e-4));
    }
  }
}

using cuda::After;  // what follows a batch norm in one operator with it

// Values and gradients of batch norm and what follows it.
struct NormResults {
  at::Tensor y, x_gradient, residual_gradient;                               // of x's shape
  at::Tensor gamma_gradient, beta_gradient, slope_gradient, mean, variance;  // by channel; the last two are running
};

// Inputs in float32, on a CPU; x, residual and gradient hold numbers of `type`, so every type computes from the same.
struct NormCase {
  NormCase(const std::vector<int64_t>& shape, at::ScalarType type, double deviation, double mean) {
    const auto activations = [&](const at::Tensor& values) {
      const at::Tensor rounded = values.to(type).to(at::kFloat);
      return shape.size() == 4 ? rounded.contiguous(at::MemoryFormat::ChannelsLast) : rounded;
    };
    x = activations(at::randn(shape) * deviation + mean);
    residual = activations(at::randn(shape));
    gradient = activations(at::randn(shape));
    gamma = at::randn({shape[1]});
    beta = at::randn({shape[1]});
    slope = at::rand({shape[1]});
    running_mean = at::full({shape[1]}, mean - 0.1 * deviation);
    running_variance = at::full({shape[1]}, 0.16 * deviation);
  }
  at::Tensor x, residual, gradient, gamma, beta, slope, running_mean, running_variance;
};

// Computes with activations of `type` and parameters of `parameters`; `own` by the fused operators, else by ATen's.
static NormResults norm_results(const NormCase& from, After after, bool own, at::ScalarType type,
                                at::ScalarType parameters, at::Device device, bool training,
                                const JoinedRanks* ranks = nullptr) {
  const auto leaf = [&](const at::Tensor& values, at::ScalarType as) {
    return values.detach().to(at::TensorOptions(device).dtype(as), false, true).set_requires_grad(true);
  };
  const at::Tensor x = leaf(from.x, type), residual = leaf(from.residual, type), slope = leaf(from.slope, parameters);
  const BatchNorm norm{leaf(from.gamma, parameters), leaf(from.beta, parameters),
                       leaf(from.running_mean, parameters).detach(), leaf(from.running_variance, parameters).detach(),
                       1e-5};
  const Pass pass = training ? Pass::training : Pass::evaluation;
  at::Tensor y;
  if (own) {
    y = after == After::prelu      ? batch_norm_prelu(x, norm, slope, pass, ranks)
        : after == After::residual ? batch_norm_add(x, norm, residual, pass, ranks)
                                   : batch_norm(x, norm, pass, ranks);
  } else {
    y = batch_norm(x, norm, pass);
    if (after == After::prelu) y = at::prelu(y, slope);
    if (after == After::residual) y = y + residual;
  }
  CHECK(y.scalar_type() == type);
  CHECK(y.is_contiguous(x.suggest_memory_format()));
  y.backward(from.gradient.to(at::TensorOptions(device).dtype(type)));
  for (const at::Tensor& gradient : {norm.gamma.grad(), norm.beta.grad(), slope.grad()})
    CHECK(!gradient.defined() || gradient.scalar_type() == parameters);
  const auto plain = [](const at::Tensor& values) {
    return values.defined() ? values.detach().to(at::kCPU, at::kDouble) : at::zeros({1}, at::kDouble);
  };
  return {plain(y),
          plain(x.grad()),
          plain(residual.grad()),
          plain(norm.gamma.grad()),
          plain(norm.beta.grad()),
          plain(slope.grad()),
          plain(norm.running_mean),
          plain(norm.running_variance)};
}

// ||actual - expected|| / ||expected||.
static double distance(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item<double>();
}

// The fused operators against ATen's in float64. Sums and statistics have the digits of float32 in every type;
// activations are rounded once: to 8 bits by at most 2^-9 of their value in bfloat16, to 11 by 2^-12 in float16.
static void check_norm(const NormCase& from, at::ScalarType type, at::Device device, double sums) {
  const double rounding = type == at::kBFloat16 ? 1.0 / 512 : type == at::kHalf ? 1.0 / 4096 : 0;
  for (const After after : {After::nothing, After::prelu, After::residual}) {
    for (const bool training : {true, false}) {
      const NormResults own = norm_results(from, after, true, type, at::kFloat, device, training);
      const NormResults exact = norm_results(from, after, false, at::kDouble, at::kDouble, at::kCPU, training);
      const int before = test::failures;
      CHECK_NEAR(distance(own.y, exact.y), 0, sums + rounding);
      CHECK_NEAR(distance(own.x_gradient, exact.x_gradient), 0, sums + rounding);
      CHECK_NEAR(distance(own.residual_gradient, exact.residual_gradient), 0, 0);
      CHECK_NEAR(distance(own.gamma_gradient, exact.gamma_gradient), 0, sums);
      CHECK_NEAR(distance(own.beta_gradient, exact.beta_gradient), 0, sums);
      CHECK_NEAR(distance(own.slope_gradient, exact.slope_gradient), 0, sums);
      CHECK_NEAR(distance(own.mean, exact.mean), 0, 1e-6);
      CHECK_NEAR(distance(own.variance, exact.variance), 0, 1e-5);
      if (test::failures != before) {
        std::cerr << "  shape " << from.x.sizes() << ", " << type << " on " << device << ", after "
                  << static_cast<int>(after) << ", training " << training << "\n";
      }
    }
  }
}

static void test_fused_norms() {
  at::manual_seed(2);
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{2, 3, 5, 7}, {5, 8, 19, 11}, {700, 6}, {30, 33, 1, 1}, {2, 1, 40, 40}}) {
    // The float32 mean, 3, is rounded by up to 2e-6 of the deviation, 0.1.
    check_norm({shape, at::kFloat, 0.1, 3}, at::kFloat, at::kCPU, 2e-4);
    check_norm({shape, at::kBFloat16, 0.5, 1}, at::kBFloat16, at::kCPU, 2e-4);
  }
}

// The slope's gradient is the same for any number of threads.
static void test_prelu_threads() {
  const at::Tensor x = at::randn({4, 16, 40, 40}).contiguous(at::MemoryFormat::ChannelsLast).set_requires_grad(true);
  const at::Tensor slope = at::randn({16}).set_requires_grad(true);
  std::vector<at::Tensor> gradients;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    slope.mutable_grad() = at::Tensor();
    facetrain::prelu(x, slope).square().sum().backward();
    gradients.push_back(slope.grad());
  }
  at::set_num_threads(1);
  CHECK(at::equal(gradients[0], gradients[1]));
  CHECK(at::equal(gradients[0], gradients[2]));
}

// Two channels of 1 x 2 pictures, six of them, so that there is a second batch. Channel 0 overflows behind the first
// product and is small again at the end; channel 1 is negative, so Relu makes it zero.
static void test_node_values() {
  Graph graph;
  graph.input = {"data", 2, 1, 2};
  graph.nodes = {{"norm", "BatchNormalization", {"data", "gamma", "beta", "mean", "var"}, {"normed"}, {}},
                 {"slope", "PRelu", {"normed", "negative"}, {"active"}, {}},
                 {"large", "Mul", {"active", "factor"}, {"huge"}, {}},
                 {"off", "Relu", {"huge"}, {"positive"}, {}},
                 {"bound", "Clip", {"positive", "zero", "one"}, {"clipped"}, {}},
                 {"flatten", "Flatten", {"clipped"}, {"flat"}, {}}};
  graph.initializers = {{"gamma", floats({2}, {1, 1})}, {"beta", floats({2}, {0, -100})},
                        {"mean", floats({2}, {0, 0})},  {"var", floats({2}, {1, 1})},
                        {"zero", floats({}, {0})},      {"negative", floats({2, 1, 1}, {0.5, 1})},
                        {"one", floats({}, {1})},       {"factor", floats({2, 1, 1}, {3e38f, 1})}};
  graph.output = {"flat", 4};
  const auto executor = make_executor(graph, at::kCPU);
  at::Tensor images = at::arange(24, at::kFloat).view({6, 2, 1, 2});
  const std::vector<NodeValues> nodes = node_values(*executor, images);
  std::vector<std::string> names;
  for (const NodeValues& node : nodes) names.push_back(node.node);
  CHECK(names == (std::vector<std::string>{"node 'slope' (PRelu)", "node 'large' (Mul)", "node 'off' (Relu)",
                                           "node 'bound' (Clip)", "node 'flatten' (Flatten)"}));
  CHECK_EQ(nodes[0].samples, 12);
  CHECK_EQ(nodes[0].not_finite, 0);
  CHECK_EQ(nodes[0].constant_channels, 0);
  CHECK_NEAR(nodes[0].smallest, 2 - 100, 1e-3);
  CHECK_NEAR(nodes[0].largest, 21, 1e-3);
  CHECK_EQ(nodes[1].not_finite, 10);  // all but 0 and 1 in channel 0
  CHECK_EQ(nodes[2].constant_channels, 1);
  CHECK_EQ(nodes[2].channels, 2);
  CHECK_EQ(nodes[3].not_finite, 0);
  CHECK_NEAR(nodes[3].largest, 1, 0);
  CHECK_EQ(nodes[4].samples, 6);
  CHECK_EQ(nodes[4].constant_channels, 3);  // of channel 0, only the first pixel is 0 somewhere
}

// The values of `height` threads of a block, joined as join_block of batch_norm_prelu.cu does it.
template <class Value, class Join>
static Value joined_block(std::vector<Value> values, Join join) {
  for (size_t step = values.size() / 2; step > 0; step /= 2) {
    for (size_t y = 0; y < step; ++y) values[y] = join(values[y], values[y + step]);
  }
  return values[0];
}

// The threads of the CUDA kernels, run one after the other: together they take each value once, and their results are
// ATen's in float64.
template <class T, int kWidth>
static void check_threads(const std::vector<int64_t>& shape, at::ScalarType type) {
  const NormCase from(shape, type, 0.5, 1);
  const at::Tensor x = from.x.to(type), gradient = from.gradient.to(type), residual = from.residual.to(type);
  const int64_t channels = shape[1];
  const cuda::Tiling tiling(x.numel() / channels, channels, kWidth);
  const auto* const x_from = static_cast<const T*>(x.const_data_ptr());
  const auto* const gradient_from = static_cast<const T*>(gradient.const_data_ptr());
  const auto join_moments = [](const auto& a, const auto& b) { return joined(a, b); };

  // Calls function(part, chunk, x) for each thread; a chunk's threads of one x follow each other.
  const auto for_each_thread = [&](auto function) {
    for (int chunk = 0; chunk < tiling.chunks; ++chunk) {
      for (int column = 0; column < tiling.columns; ++column) {
        for (int thread_x = 0; thread_x < tiling.width; ++thread_x) {
          for (int y = 0; y < tiling.height; ++y)
            function(cuda::Part(tiling, kWidth, column, chunk, thread_x, y), chunk, y);
        }
      }
    }
  };

  const at::Tensor means = at::zeros({tiling.chunks, channels}), squares = at::zeros({tiling.chunks, channels});
  std::vector<std::array<Moments<float>, kWidth>> threads(static_cast<size_t>(tiling.height));
  for_each_thread([&](const cuda::Part& part, int chunk, int y) {
    Moments<float> moments[kWidth] = {};
    cuda::add_moments<T, kWidth>(x_from, channels, part, moments);
    for (int c = 0; c < kWidth; ++c) threads[static_cast<size_t>(y)][static_cast<size_t>(c)] = moments[c];
    if (y + 1 < tiling.height || part.channel >= channels) return;
    for (int c = 0; c < kWidth; ++c) {
      std::vector<Moments<float>> values;
      for (const auto& each : threads) values.push_back(each[static_cast<size_t>(c)]);
      const Moments<float> block = joined_block(values, join_moments);
      CHECK_EQ(static_cast<int64_t>(block.count), std::min(tiling.chunk, tiling.rows - chunk * tiling.chunk));
      means[chunk][part.channel + c] = block.mean;
      squares[chunk][part.channel + c] = block.squares;
    }
  });
  at::Tensor mean = at::zeros({channels}), inverse_deviation = at::zeros({channels});
  for (int64_t channel = 0; channel < channels; ++channel) {
    std::vector<Moments<double>> values;
    for (int y = 0; y < cuda::kJoiners; ++y)
      values.push_back(
          cuda::moments_of_chunks(tiling, means.const_data_ptr<float>(), squares.const_data_ptr<float>(), channel, y));
    const Moments<double> all = joined_block(values, join_moments);
    CHECK_EQ(static_cast<int64_t>(all.count), tiling.rows);
    mean[channel] = all.mean;
    inverse_deviation[channel] = 1 / std::sqrt(all.squares / all.count + 1e-5);
  }
  const at::Tensor scale = from.gamma * inverse_deviation;

  const auto check = [&](auto after) {
    constexpr After kAfter = decltype(after)::value;
    constexpr bool kPRelu = kAfter == After::prelu;
    const NormResults exact = norm_results(from, kAfter, false, at::kDouble, at::kDouble, at::kCPU, true);
    const double rounding = type == at::kBFloat16 ? 1.0 / 512 : 0;
    const at::Tensor y = at::full_like(x, NAN), x_gradient = at::full_like(x, NAN);
    cuda::ByChannel by{mean.const_data_ptr<float>(),
                       scale.const_data_ptr<float>(),
                       from.beta.const_data_ptr<float>(),
                       from.slope.const_data_ptr<float>(),
                       nullptr,
                       nullptr};
    const at::Tensor partial = at::full({tiling.chunks, cuda::kSums, channels}, NAN);
    std::vector<std::array<float, cuda::kSums * kWidth>> sums_of_threads(static_cast<size_t>(tiling.height));
    for_each_thread([&](const cuda::Part& part, int chunk, int thread_y) {
      cuda::forward_part<T, kWidth, kAfter>(x_from, static_cast<const T*>(residual.const_data_ptr()), by, channels,
                                            part, static_cast<T*>(y.mutable_data_ptr()));
      float sums[cuda::kSums][kWidth] = {};
      cuda::add_sums<T, kWidth, kPRelu>(x_from, gradient_from, by, channels, part, sums);
      std::copy(&sums[0][0], &sums[0][0] + cuda::kSums * kWidth,
                sums_of_threads[static_cast<size_t>(thread_y)].begin());
      if (thread_y + 1 < tiling.height || part.channel >= channels) return;
      for (int i = 0; i < cuda::kSums * kWidth; ++i) {
        std::vector<float> values;
        for (const auto& each : sums_of_threads) values.push_back(each[static_cast<size_t>(i)]);
        const int64_t sum = i / kWidth, channel = part.channel + i % kWidth;
        partial[chunk][sum][channel] = joined_block(values, [](float a, float b) { return a + b; });
      }
    });
    at::Tensor sums = at::zeros({cuda::kSums, channels}, at::kDouble);
    for (int64_t i = 0; i < cuda::kSums * channels; ++i) {
      std::vector<double> values;
      for (int joiner = 0; joiner < cuda::kJoiners; ++joiner)
        values.push_back(cuda::sum_of_chunks(tiling, partial.const_data_ptr<float>(), static_cast<int>(i / channels),
                                             i % channels, joiner));
      sums[i / channels][i % channels] = joined_block(values, [](double a, double b) { return a + b; });
    }
    const at::Tensor gamma_gradient = sums[1] * inverse_deviation;
    const at::Tensor constant = (sums[0] / tiling.rows).to(at::kFloat),
                     linear = (gamma_gradient * inverse_deviation / tiling.rows).to(at::kFloat);
    by.constant = constant.const_data_ptr<float>();
    by.linear = linear.const_data_ptr<float>();
    for_each_thread([&](const cuda::Part& part, int, int) {
      cuda::backward_part<T, kWidth, kPRelu>(x_from, gradient_from, by, channels, part,
                                             static_cast<T*>(x_gradient.mutable_data_ptr()));
    });
    const int before = test::failures;
    CHECK_NEAR(distance(y.to(at::kDouble), exact.y), 0, 1e-4 + rounding);
    CHECK_NEAR(distance(x_gradient.to(at::kDouble), exact.x_gradient), 0, 1e-4 + rounding);
    CHECK_NEAR(distance(sums[0], exact.beta_gradient), 0, 1e-4);
    CHECK_NEAR(distance(gamma_gradient, exact.gamma_gradient), 0, 1e-4);
    if (kPRelu) CHECK_NEAR(distance(sums[2], exact.slope_gradient), 0, 1e-4);
    if (test::failures != before)
      std::cerr << "  shape " << at::IntArrayRef(shape) << ", " << type << ", vectors of " << kWidth << "\n";
  };
  check(std::integral_constant<After, After::nothing>());
  check(std::integral_constant<After, After::prelu>());
  check(std::integral_constant<After, After::residual>());
}

static void test_threads() {
  at::manual_seed(4);
  check_threads<float, 1>({2, 3, 5, 7}, at::kFloat);
  check_threads<float, 1>({30, 33, 1, 1}, at::kFloat);
  check_threads<float, 1>({2, 1, 90, 91}, at::kFloat);
  check_threads<float, 4>({300, 132}, at::kFloat);
  check_threads<float, 4>({3, 4, 70, 71}, at::kFloat);
  check_threads<c10::BFloat16, 4>({2, 64, 9, 11}, at::kBFloat16);
  check_threads<c10::BFloat16, 1>({5, 6, 3, 3}, at::kBFloat16);
}

static Constant random_floats(std::vector<int64_t> dims, double deviation, double mean = 0) {
  const at::Tensor values = at::randn(dims) * deviation + mean;
  return floats(std::move(dims), {values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel()});
}

// 12 x 12 pictures -> Conv -> BN -> PRelu, a residual block as in iresnet (BN -> Conv -> BN -> PRelu -> Conv -> BN,
// + Conv -> BN), a depthwise Conv, Gemm to 24 numbers, BN.
static Graph residual_graph() {
  at::manual_seed(5);
  Graph graph;
  graph.input = {"data", 3, 12, 12};
  const auto conv = [&](const std::string& name, const std::string& from, int64_t in, int64_t out, int64_t kernel,
                        int64_t stride, int64_t group = 1) {
    const int64_t pad = kernel / 2, inputs = in / group;
    graph.nodes.push_back({name, "Conv", {from, name + ".w"}, {name}, {}});
    graph.nodes.back().attributes = {{"pads", std::vector<int64_t>{pad, pad, pad, pad}},
                                     {"strides", std::vector<int64_t>{stride, stride}},
                                     {"group", group}};
    graph.initializers[name + ".w"] =
        random_floats({out, inputs, kernel, kernel}, std::sqrt(2.0 / static_cast<double>(inputs * kernel * kernel)));
  };
  const auto norm = [&](const std::string& name, const std::string& from, int64_t channels) {
    graph.nodes.push_back(
        {name, "BatchNormalization", {from, name + ".g", name + ".b", name + ".m", name + ".v"}, {name}, {}});
    graph.initializers[name + ".g"] = random_floats({channels}, 0.1, 1);
    graph.initializers[name + ".b"] = random_floats({channels}, 0.1);
    graph.initializers[name + ".m"] = random_floats({channels}, 0.1);
    graph.initializers[name + ".v"] = floats({channels}, std::vector<float>(static_cast<size_t>(channels), 1.5f));
  };
  const auto prelu = [&](const std::string& name, const std::string& from, int64_t channels) {
    graph.nodes.push_back({name, "PRelu", {from, name + ".s"}, {name}, {}});
    graph.initializers[name + ".s"] =
        floats({channels, 1, 1}, std::vector<float>(static_cast<size_t>(channels), 0.25f));
  };
  conv("conv1", "data", 3, 16, 3, 1);
  norm("bn1", "conv1", 16);
  prelu("act1", "bn1", 16);
  norm("bn2", "act1", 16);
  conv("conv2", "bn2", 16, 24, 3, 1);
  norm("bn3", "conv2", 24);
  prelu("act2", "bn3", 24);
  conv("conv3", "act2", 24, 24, 3, 2);
  norm("bn4", "conv3", 24);
  conv("short", "act1", 16, 24, 1, 2);
  norm("bn5", "short", 24);
  graph.nodes.push_back({"sum", "Add", {"bn4", "bn5"}, {"sum"}, {}});
  conv("depth", "sum", 24, 24, 3, 1, 24);
  norm("bn6", "depth", 24);
  prelu("act3", "bn6", 24);
  graph.nodes.push_back({"flat", "Flatten", {"act3"}, {"flat"}, {}});
  graph.nodes.push_back({"fc", "Gemm", {"flat", "fc.w"}, {"fc"}, {{"transB", int64_t{1}}}});
  graph.initializers["fc.w"] = random_floats({24, 24 * 6 * 6}, 0.03);
  norm("out", "fc", 24);
  graph.output = {"out", 24};
  return graph;
}

struct Trained {
  at::Tensor embeddings, gradient;  // float64; `gradient` is that of all parameters, one after the other
  std::vector<at::Tensor> statistics;
};

static Trained trained(const Graph& graph, Precision precision, at::Device device) {
  const auto executor = make_executor(graph, device);
  executor->set_precision(precision);
  at::manual_seed(6);
  const at::Tensor images = at::rand({16, 3, graph.input.height, graph.input.width}).mul_(2).sub_(1).to(device);
  const at::Tensor out = executor->forward(images, Pass::training);
  CHECK(out.scalar_type() == at::kFloat);
  out.backward(at::randn({16, graph.output.dim}).mul_(1e-2).to(device));
  Trained result{out.detach().to(at::kCPU, at::kDouble), {}, {}};
  std::vector<at::Tensor> gradients;
  for (const auto& [name, tensor] : executor->parameters()) {
    CHECK(tensor.scalar_type() == at::kFloat && tensor.grad().scalar_type() == at::kFloat);
    gradients.push_back(tensor.grad().to(at::kCPU, at::kDouble).flatten());
  }
  result.gradient = at::cat(gradients);
  for (const auto& [name, tensor] : executor->buffers()) {
    CHECK(tensor.scalar_type() == at::kFloat);
    result.statistics.push_back(tensor.to(at::kCPU, at::kDouble));
  }
  use_precision(Precision::fp32);
  return result;
}

static double cosine(const at::Tensor& a, const at::Tensor& b) {
  return (a.flatten().dot(b.flatten()) / (a.norm() * b.norm())).item<double>();
}

// Two passes of one precision are equal bit for bit; a 16-bit one is near float32's, its statistics nearer: they have
// the error of rounded activations, each in its own direction, and none of their own sums.
static void check_precision(const Graph& graph, Precision precision, at::Device device) {
  const Trained exact = trained(graph, Precision::fp32, at::kCPU);
  const Trained pass = trained(graph, precision, device), again = trained(graph, precision, device);
  CHECK(at::equal(pass.embeddings, again.embeddings));
  CHECK(at::equal(pass.gradient, again.gradient));
  CHECK(cosine(pass.embeddings, exact.embeddings) >= 0.999);
  CHECK(cosine(pass.gradient, exact.gradient) >= 0.999);
  for (size_t i = 0; i < exact.statistics.size(); ++i)
    CHECK_NEAR(distance(pass.statistics[i], exact.statistics[i]), 0, 2e-3);
  // The products were not computed in float32. In TF32 they may be: cuDNN chooses by the shape.
  if (precision == Precision::bf16 || precision == Precision::fp16)
    CHECK(distance(pass.embeddings, exact.embeddings) > 1e-4);
}

static void test_bf16() {
  const Graph graph = residual_graph();
  check_precision(graph, Precision::bf16, at::kCPU);

  // Up to the last batch norm, activations stay in 16 bits. The batch norms before PRelu and Add are not shown.
  const auto executor = make_executor(graph, at::kCPU);
  executor->set_precision(Precision::bf16);
  std::vector<std::string> wide;
  executor->observe(at::zeros({2, 3, 12, 12}), [&](const std::string& node, const at::Tensor& value) {
    if (value.scalar_type() != at::kBFloat16) wide.push_back(node);
  });
  CHECK(wide == std::vector<std::string>{"node 'out' (BatchNormalization)"});
}

// On a CPU, a convolution in groups multiplies numbers rounded to bfloat16, and rounds the sum once.
static void test_bf16_groups() {
  at::manual_seed(10);
  Graph graph;
  graph.input = {"data", 4, 5, 5};
  graph.nodes = {
      {"conv", "Conv", {"data", "w"}, {"conv"}, {{"group", int64_t{2}}, {"pads", std::vector<int64_t>{1, 1, 1, 1}}}},
      {"flat", "Flatten", {"conv"}, {"flat"}, {}}};
  graph.initializers["w"] = random_floats({6, 2, 3, 3}, 1);
  graph.output = {"flat", 150};
  const auto executor = make_executor(graph, at::kCPU);
  executor->set_precision(Precision::bf16);
  const auto rounded = [](const at::Tensor& tensor) { return tensor.detach().to(at::kBFloat16).to(at::kDouble); };
  const at::Tensor images = at::randn({3, 4, 5, 5}), weight = executor->parameters()[0].tensor;
  const at::Tensor exact = at::conv2d(rounded(images), rounded(weight), {}, 1, 1, 1, 2).flatten(1);
  const at::Tensor out = executor->forward(images, Pass::training);
  CHECK_NEAR(((out - exact).abs() / exact.abs()).max().item<double>(), 0, 1.0 / 256 + 1e-4);
  CHECK(at::equal(out, out.to(at::kBFloat16).to(at::kFloat)));
  out.sum().backward();
  CHECK(weight.grad().scalar_type() == at::kFloat);
}

// Operations that autograd has recorded for the backward pass of `value`.
static size_t recorded(const at::Tensor& value) {
  std::set<torch::autograd::Node*> seen;
  std::vector<torch::autograd::Node*> open{value.grad_fn().get()};
  while (!open.empty()) {
    torch::autograd::Node* const node = open.back();
    open.pop_back();
    if (!node || !seen.insert(node).second) continue;
    for (const auto& edge : node->next_edges()) open.push_back(edge.function.get());
  }
  return seen.size();
}

// The gradients of a training pass, and running statistics, are the same bit for bit with activations that are computed
// again, and fewer operations keep something.
static void test_checkpoints() {
  at::manual_seed(8);
  const Graph graph = residual_graph();
  const at::Tensor images = at::rand({5, 3, 12, 12}), gradient = at::randn({5, 24});
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    std::vector<std::vector<at::Tensor>> results;
    std::vector<size_t> operations;
    for (const bool checkpoints : {false, true}) {
      const auto executor = make_executor(graph, at::kCPU);
      executor->set_precision(precision);
      executor->checkpoint_activations(checkpoints);
      const at::Tensor out = executor->forward(images, Pass::training);
      operations.push_back(recorded(out));
      out.backward(gradient);
      std::vector<at::Tensor>& result = results.emplace_back();
      result.push_back(out.detach());
      for (const auto& [name, tensor] : executor->parameters()) result.push_back(tensor.grad());
      for (const auto& [name, tensor] : executor->buffers()) result.push_back(tensor.clone());
      // A recomputation gives the same embeddings and moves no statistics.
      CHECK(at::equal(executor->forward(images, Pass::recomputation), out));
      for (size_t i = 0; i < executor->buffers().size(); ++i)
        CHECK(at::equal(executor->buffers()[i].tensor, result[result.size() - executor->buffers().size() + i]));
    }
    for (size_t i = 0; i < results[0].size(); ++i) CHECK(at::equal(results[0][i], results[1][i]));
    CHECK(operations[1] < operations[0]);
  }
}

static bool are(const std::vector<StepRange>& blocks, const std::vector<std::pair<size_t, size_t>>& expected) {
  return std::ranges::equal(blocks, expected, [](const StepRange& block, const auto& range) {
    return block.first == range.first && block.end == range.second;
  });
}

static void test_blocks() {
  // Nine equal steps: three blocks of three hold 2 + 3 at their peak. (Chen et al.: the square root of their number.)
  CHECK(are(choose_blocks(std::vector<ActivationStep>(9, {1, true})), {{0, 4}, {4, 7}, {7, 9}}));
  // No cut: all of it.
  CHECK(are(choose_blocks(std::vector<ActivationStep>(5, {1, false})), {{0, 5}}));
  // At the only cut that helps, behind a large step's small result.
  CHECK(are(choose_blocks(std::vector<ActivationStep>{{8, true}, {9, false}, {1, true}, {6, true}, {5, false}}),
            {{0, 3}, {3, 5}}));
  CHECK(choose_blocks({}).empty());
}

// Batch norms over three ranks with a different number of pictures each, against ATen's over all six in float64.
static void test_joined_norms() {
  constexpr int kRanks = 3;
  constexpr int64_t kPictures[kRanks] = {3, 2, 1}, kFirst[kRanks] = {0, 3, 5};
  at::manual_seed(9);
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{6, 3, 5, 7}, {6, 8, 19, 11}, {6, 5}}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const NormCase from(shape, type, 0.5, 1);
      const double rounding = type == at::kBFloat16 ? 1.0 / 512 : 0, sums = 2e-4;
      for (const After after : {After::nothing, After::prelu, After::residual}) {
        const NormResults exact = norm_results(from, after, false, at::kDouble, at::kDouble, at::kCPU, true);
        std::vector<NormResults> parts(kRanks);
        run_fake_ranks(kRanks, [&](Comm& comm) {
          NormCase part = from;
          for (at::Tensor* const tensor : {&part.x, &part.residual, &part.gradient})
            *tensor = tensor->narrow(0, kFirst[comm.rank()], kPictures[comm.rank()])
                          .contiguous(from.x.suggest_memory_format());
          const JoinedRanks ranks{&comm, {3.0 / 6, 2.0 / 6, 1.0 / 6}};
          parts[static_cast<size_t>(comm.rank())] =
              norm_results(part, after, true, type, at::kFloat, at::kCPU, true, &ranks);
        });
        const auto all = [&](at::Tensor NormResults::*of) {
          std::vector<at::Tensor> tensors;
          for (const NormResults& part : parts) tensors.push_back(part.*of);
          return tensors;
        };
        const auto sum = [&](at::Tensor NormResults::*of) { return at::stack(all(of)).sum(0); };
        CHECK_NEAR(distance(at::cat(all(&NormResults::y)), exact.y), 0, sums + rounding);
        CHECK_NEAR(distance(at::cat(all(&NormResults::x_gradient)), exact.x_gradient), 0, sums + rounding);
        CHECK_NEAR(distance(sum(&NormResults::gamma_gradient), exact.gamma_gradient), 0, sums);
        CHECK_NEAR(distance(sum(&NormResults::beta_gradient), exact.beta_gradient), 0, sums);
        if (after == After::prelu)
          CHECK_NEAR(distance(sum(&NormResults::slope_gradient), exact.slope_gradient), 0, sums);
        for (const NormResults& part : parts) {
          CHECK_NEAR(distance(part.mean, exact.mean), 0, 1e-6);
          CHECK_NEAR(distance(part.variance, exact.variance), 0, 1e-5);
          CHECK(at::equal(part.mean, parts[0].mean) && at::equal(part.variance, parts[0].variance));
        }
      }
    }
  }
}

// FP32 is IEEE float32 and TF32 is TF32, in cuDNN and in cuBLAS.
static void test_switches() {
  const auto executor = make_executor(small_graph(false), at::kCPU);
  const at::Context& context = at::globalContext();
  for (const Precision precision : {Precision::tf32, Precision::bf16, Precision::tf32, Precision::fp32}) {
    executor->set_precision(precision);
    CHECK(executor->precision() == precision);
    CHECK_EQ(context.allowTF32CuDNN(), precision == Precision::tf32);
    CHECK_EQ(context.allowTF32CuBLAS(), precision == Precision::tf32);
    CHECK(context.allowBF16ReductionCuBLAS() != at::CuBLASReductionOption::AllowReducedPrecisionWithSplitK);
    CHECK(context.allowFP16ReductionCuBLAS() != at::CuBLASReductionOption::AllowReducedPrecisionWithSplitK);
  }
}

// On a GPU: every type, one channel to 512, odd numbers of channels and rows, more rows than one block reads.
static void test_cuda() {
  if (!at::hasCUDA()) return;
  const at::Device device(at::kCUDA, 0);
  at::globalContext().setDeterministicCuDNN(true);
  at::manual_seed(3);
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{2, 3, 5, 7},
                                                                             {5, 8, 19, 11},
                                                                             {700, 6},
                                                                             {30, 33, 1, 1},
                                                                             {2, 1, 40, 40},
                                                                             {3, 64, 112, 112},
                                                                             {16, 128, 28, 28},
                                                                             {7, 100, 13, 9},
                                                                             {128, 512, 7, 7},
                                                                             {1000, 512},
                                                                             {64, 513}}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
      check_norm({shape, type, 0.5, 1}, type, device, 5e-4);
  }
  const Graph graph = residual_graph();
  for (const Precision precision : {Precision::tf32, Precision::bf16, Precision::fp16})
    check_precision(graph, precision, device);
  const Trained exact = trained(graph, Precision::fp32, at::kCPU), pass = trained(graph, Precision::fp32, device);
  CHECK_NEAR(distance(pass.embeddings, exact.embeddings), 0, 1e-4);
  CHECK_NEAR(distance(pass.gradient, exact.gradient), 0, 1e-3);
}

int main() {
  at::set_num_threads(1);
  test_node_values();
  test_batch_norm();
  test_roles();
  test_prelu();
  test_fused_norms();
  test_threads();
  test_bf16();
  test_bf16_groups();
  test_switches();
  test_checkpoints();
  test_blocks();
  test_joined_norms();
  test_prelu_threads();
  test_cuda();
  return TEST_RESULT();
}
