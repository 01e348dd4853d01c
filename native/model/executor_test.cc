// Training through the executor on cases that can be worked out by hand, and the operators with their own backward pass
// compared with ATen's. trainer-image/src/onnx/executor.test.ts compares the operators with ONNX Runtime.
#include "model/executor.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "error.h"
#include "model/batch_norm_prelu.h"
#include "model/node_values.h"
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
  at::Tensor out = executor->forward(images, false);
  CHECK_NEAR(out[0].item<float>(), 3 * 0.5 + 5 * 2.5, 1e-4);
  CHECK(!out.requires_grad());

  out = executor->forward(images, true);
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
    }
  }
}

static void test_batch_norm_prelu() {
  at::manual_seed(2);
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{2, 3, 5, 7}, {5, 8, 19, 11}, {700, 6}, {30, 33, 1, 1}, {2, 1, 40, 40}}) {
    for (const bool training : {true, false}) {
      at::Tensor x = at::randn(shape) * 0.1 + 3;
      if (shape.size() == 4) x = x.contiguous(at::MemoryFormat::ChannelsLast);
      const int64_t channels = shape[1];
      const at::Tensor gamma = at::randn({channels}), beta = at::randn({channels}), slope = at::rand({channels});
      const at::Tensor gradient = at::randn(shape);
      const auto results = [&](bool own, at::ScalarType type) {
        const auto leaf = [&](const at::Tensor& from) {
          return from.detach().to(type, false, true).set_requires_grad(true);
        };
        const at::Tensor a = leaf(x), s = leaf(slope);
        const BatchNorm norm{leaf(gamma), leaf(beta), at::full({channels}, 2.9, type), at::full({channels}, 0.04, type),
                             1e-5};
        const at::Tensor y = own ? batch_norm_prelu(a, norm, s, training) : at::prelu(batch_norm(a, norm, training), s);
        y.backward(gradient.to(type));
        std::vector<at::Tensor> list;
        for (const at::Tensor& result : {y.detach(), a.grad(), norm.gamma.grad(), norm.beta.grad(), s.grad(),
                                         norm.running_mean, norm.running_variance}) {
          list.push_back(result.to(at::kDouble));
        }
        return list;
      };
      // Compares with ATen in float64. The float32 mean, 3, is rounded by up to 2e-6 of the deviation, 0.1.
      const auto own = results(true, at::kFloat), exact = results(false, at::kDouble);
      for (size_t i = 0; i < exact.size(); ++i) {
        CHECK_NEAR(((own[i] - exact[i]).abs().max() / exact[i].abs().max()).item<double>(), 0, 2e-4);
      }
    }
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

int main() {
  at::set_num_threads(1);
  test_node_values();
  test_batch_norm();
  test_roles();
  test_prelu();
  test_batch_norm_prelu();
  test_prelu_threads();
  return TEST_RESULT();
}
