// Sums in any order, and their limits.
#include "train/integer_sums.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "test/check.h"

using namespace facetrain;

namespace {

at::Tensor sum_of(const std::vector<at::Tensor>& addends) {
  IntegerSums sums(addends[0].numel(), std::ssize(addends));
  for (const at::Tensor& each : addends) sums.add(each);
  CHECK(!sums.overflowed());
  at::Tensor out = at::empty({addends[0].numel()});
  sums.read(out);
  return out;
}

// Numbers of very different sizes, which float32 sums differently in each order.
void order_does_not_matter() {
  at::manual_seed(3);
  std::vector<at::Tensor> addends;
  for (int i = 0; i < 9; ++i) addends.push_back(at::randn({100'000}) * std::pow(10.0, i - 6));
  const at::Tensor sum = sum_of(addends);
  const at::Tensor exact = at::stack(addends).to(at::kDouble).sum(0);
  CHECK(at::allclose(sum.to(at::kDouble), exact, 1e-7, 1e-12));
  std::reverse(addends.begin(), addends.end());
  CHECK(at::equal(sum_of(addends), sum));
  std::rotate(addends.begin(), addends.begin() + 4, addends.end());
  CHECK(at::equal(sum_of(addends), sum));

  // By ranks that have some each.
  IntegerSums first(100'000, 9), second(100'000, 9);
  for (size_t i = 0; i < addends.size(); ++i) (i < 5 ? first : second).add(addends[i]);
  first.values().add_(second.values());
  at::Tensor joined = at::empty({100'000});
  first.read(joined);
  CHECK(at::equal(joined, sum));
}

void what_is_too_large_is_told() {
  IntegerSums sums(3, 4);
  const float most = 65'536;  // 2^18 / 4
  for (int i = 0; i < 4; ++i) sums.add(at::tensor({most, -most, 0.5F}));
  CHECK(!sums.overflowed());
  at::Tensor out = at::empty({3});
  sums.read(out);
  CHECK(at::equal(out, at::tensor({4 * most, -4 * most, 2.0F})));
  for (const float bad : {std::nextafter(most, 1e9F), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    sums.clear();
    CHECK(!sums.overflowed());
    sums.add(at::tensor({0.0F, bad, 0.0F}));
    CHECK(sums.overflowed());
  }
}

}  // namespace

int main() {
  order_does_not_matter();
  what_is_too_large_is_told();
  return TEST_RESULT();
}
