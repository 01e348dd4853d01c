#include "data/permutation.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "test/check.h"

using namespace facetrain;

namespace {

// The order of an epoch: a resumed run must compute the one that it started with.
void test_values() {
  const Permutation order(1000, 99);
  const std::vector<int64_t> expected{480, 796, 298, 562, 45, 983, 444, 640, 261, 514};
  for (size_t i = 0; i < expected.size(); ++i) CHECK_EQ(order(static_cast<int64_t>(i)), expected[i]);
}

// Every number below the size comes once.
void test_permutes() {
  for (const int64_t size : {1, 2, 3, 4, 5, 16, 17, 800, 65537}) {
    const Permutation order(size, 42);
    std::vector<int64_t> values(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) values[static_cast<size_t>(i)] = order(i);
    std::sort(values.begin(), values.end());
    std::vector<int64_t> all(values.size());
    std::iota(all.begin(), all.end(), 0);
    CHECK(values == all);
  }
}

// Over many keys every number comes to every place equally often, and neighbors do not stay neighbors. Chi-squared
// with 9 degrees of freedom exceeds 33.7 with a probability of 1e-4, with 8 degrees 31.8.
void test_uniform() {
  constexpr int kSize = 10, kKeys = 20'000;
  std::array<std::array<int, kSize>, kSize> at{};
  std::array<int, kSize> distance{};
  for (uint64_t key = 0; key < kKeys; ++key) {
    const Permutation order(kSize, splitmix64(key));
    for (int i = 0; i < kSize; ++i) ++at[static_cast<size_t>(i)][static_cast<size_t>(order(i))];
    ++distance[static_cast<size_t>((order(1) - order(0) + kSize) % kSize)];
  }
  for (const auto& row : at) {
    double chi2 = 0;
    for (const int count : row) chi2 += (count - kKeys / 10.0) * (count - kKeys / 10.0) / (kKeys / 10.0);
    CHECK(chi2 < 33.7);
  }
  double chi2 = 0;
  for (int d = 1; d < kSize; ++d) {
    const double expected = kKeys / 9.0, difference = distance[static_cast<size_t>(d)] - expected;
    chi2 += difference * difference / expected;
  }
  CHECK_EQ(distance[0], 0);
  CHECK(chi2 < 31.8);
}

}  // namespace

int main() {
  test_values();
  test_permutes();
  test_uniform();
  return TEST_RESULT();
}
