// Compares a window of rows with updates of the rows where they are.
#include "pfc/row_window.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "test/check.h"

using namespace facetrain;

namespace {

constexpr int64_t kRows = 200;

std::vector<int64_t> draw(std::mt19937_64& random, double rate) {
  std::vector<int64_t> rows;
  std::bernoulli_distribution chosen(rate);
  for (int64_t row = 0; row < kRows; ++row) {
    if (chosen(random)) rows.push_back(row);
  }
  return rows;
}

std::vector<int64_t> joined(std::vector<int64_t> a, const std::vector<int64_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::ranges::sort(a);
  a.erase(std::unique(a.begin(), a.end()), a.end());
  return a;
}

// Of each type that rows and their optimizers have.
std::vector<at::Tensor> make_tensors() {
  at::manual_seed(1);
  return {at::randn({kRows, 7}), at::randn({kRows, 7}).to(at::kBFloat16), at::randn({kRows, 1})};
}

// Whether row i of each of `a` is row j of `b`.
bool equal_rows(const std::vector<at::Tensor>& a, int64_t i, const std::vector<at::Tensor>& b, int64_t j) {
  for (size_t t = 0; t < a.size(); ++t) {
    if (!at::equal(a[t][i], b[t][j])) return false;
  }
  return true;
}

void add(const std::vector<at::Tensor>& tensors, int64_t row, double value) {
  for (const at::Tensor& tensor : tensors) tensor[row].add_(value);
}

// Steps with a prefetch, without one, and with one for another step; with and without an update; some after which the
// rows are read and written where they are.
void test_equals_updates_in_place() {
  std::mt19937_64 random(3);
  const auto one_in = [&random](uint64_t n) { return random() % n == 0; };
  const std::vector<at::Tensor> host = make_tensors(), expected = make_tensors();
  RowWindow window(host);
  std::vector<int64_t> negatives = draw(random, 0.2);
  int64_t most = 0, old_copies = 0;
  for (uint64_t step = 0; step < 500; ++step) {
    const std::vector<int64_t> rows = joined(negatives, draw(random, 0.05));
    window.open(step, rows.data(), std::ssize(rows));
    most = std::max(most, std::ssize(rows));
    CHECK(window.is_open());
    CHECK_EQ(window.slots().size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) CHECK(equal_rows(window.tensors(), window.slots()[i], expected, rows[i]));

    negatives = draw(random, one_in(9) ? 0.0 : 0.2);
    if (!one_in(4)) window.prefetch(one_in(4) ? step + 2 : step + 1, negatives);
    if (!one_in(4)) {
      for (size_t i = 0; i < rows.size(); ++i) {
        add(window.tensors(), window.slots()[i], static_cast<double>(step % 7));
        add(expected, rows[i], static_cast<double>(step % 7));
        old_copies += std::ranges::binary_search(negatives, rows[i]) ? 1 : 0;
      }
    }
    if (!one_in(6)) continue;
    window.close();
    CHECK(!window.is_open());
    for (size_t t = 0; t < host.size(); ++t) CHECK(at::equal(host[t], expected[t]));
    const auto row = static_cast<int64_t>(random() % kRows);
    add(host, row, 100);
    add(expected, row, 100);
  }
  CHECK(old_copies > 1000);  // else the order of copies would not matter
  // A bounded buffer: what the largest step needs, and a 32nd.
  CHECK(window.tensors()[0].size(0) <= most + most / 32);
  CHECK(most < kRows / 2);
}

// What is prefetched is copied then, and not when the step begins.
void test_prefetch_copies_ahead() {
  const std::vector<at::Tensor> host = make_tensors(), original = make_tensors();
  RowWindow window(host);
  const std::vector<int64_t> first{0, 5}, second{5, 7, 9}, prefetched{5, 7};
  window.open(0, first.data(), 2);
  window.prefetch(1, prefetched);
  for (const int64_t row : {7, 9}) add(host, row, 1);  // which nobody may do
  add(window.tensors(), window.slots()[1], 1);         // row 5
  window.open(1, second.data(), 3);
  CHECK(equal_rows(window.tensors(), window.slots()[0], host, 5));
  CHECK(!equal_rows(window.tensors(), window.slots()[0], original, 5));
  CHECK(equal_rows(window.tensors(), window.slots()[1], original, 7));
  CHECK(equal_rows(window.tensors(), window.slots()[2], host, 9));
}

}  // namespace

int main() {
  test_equals_updates_in_place();
  test_prefetch_copies_ahead();
  return TEST_RESULT();
}
