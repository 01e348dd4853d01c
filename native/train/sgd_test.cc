// SGD in one pass beside ATen's operators in float64, on the CPU and, if there is one, on a GPU.
#include "train/sgd.h"

#include <ATen/ATen.h>

#include <cmath>

#include "test/check.h"

using namespace facetrain;

namespace {

double distance(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual.to(at::kCPU, at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

void test_steps(at::Device device) {
  at::manual_seed(1);
  const RowSgd sgd{.learning_rate = 0.1f, .momentum = 0.9f, .weight_decay = 5e-4f};
  for (const int64_t count : {int64_t{1}, int64_t{3}, int64_t{16}, int64_t{1021}, int64_t{3000001}}) {
    at::Tensor exact_weights = at::randn({count}, at::kDouble), exact_momentum = at::zeros({count}, at::kDouble);
    const at::Tensor weights = exact_weights.to(at::kFloat).to(device), momentum = at::zeros_like(weights);
    exact_weights = weights.to(at::kCPU, at::kDouble);
    for (const double factor : {1.0, 0.25, 1.0 / 65536}) {
      const at::Tensor gradients = (at::randn({count}) / factor).to(device);
      sgd_step(weights, momentum, gradients, at::full({}, factor, at::TensorOptions(device).dtype(at::kDouble)), sgd);
      exact_momentum = 0.9 * exact_momentum + gradients.to(at::kCPU, at::kDouble) * factor + 5e-4 * exact_weights;
      exact_weights = exact_weights - 0.1 * exact_momentum;
      CHECK_NEAR(distance(weights, exact_weights), 0, 1e-6);
      CHECK_NEAR(distance(momentum, exact_momentum), 0, 1e-6);
    }
  }
}

// A factor that is not finite changes nothing, not by weight decay and momentum either.
void test_not_finite(at::Device device) {
  const at::Tensor weights = at::ones({10}).to(device), momentum = at::ones({10}).to(device);
  const at::Tensor gradients = at::full({10}, INFINITY).to(device);
  for (const double factor : {std::nan(""), static_cast<double>(INFINITY)}) {
    sgd_step(weights, momentum, gradients, at::full({}, factor, at::TensorOptions(device).dtype(at::kDouble)),
             {.learning_rate = 0.1f, .momentum = 0.9f, .weight_decay = 0.1f});
    CHECK(at::equal(weights.cpu(), at::ones({10})));
    CHECK(at::equal(momentum.cpu(), at::ones({10})));
  }
}

}  // namespace

int main() {
  test_steps(at::kCPU);
  test_not_finite(at::kCPU);
  if (!at::hasCUDA()) return TEST_RESULT();
  const at::Device device(at::kCUDA, 0);
  test_steps(device);
  test_not_finite(device);
  return TEST_RESULT();
}
