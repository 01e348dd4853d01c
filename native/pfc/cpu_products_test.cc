// The products of every instruction set of this CPU beside sums in float64: sizes that fill no register, no panel and
// no pair, both ways to read the left matrix, and results that are added. Those of float32 with fused multiplication
// and addition are the same bit for bit.
#include "pfc/cpu_products.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "pfc/cpu_kernels.h"
#include "test/check.h"

namespace facetrain::cpu {
namespace {

std::mt19937 random_source(5);

struct Matrix {
  int64_t rows, columns;
  std::vector<float> numbers;  // [rows, columns]

  float at(int64_t i, int64_t j) const { return numbers[i * columns + j]; }
};

uint16_t narrow(float x) {
  uint16_t half;
  round(&x, 1, &half);
  return half;
}

// With `halves`, numbers that bfloat16 has.
Matrix random_matrix(int64_t rows, int64_t columns, bool halves) {
  Matrix matrix{rows, columns, std::vector<float>(static_cast<size_t>(rows * columns))};
  std::normal_distribution<float> normal;
  for (float& number : matrix.numbers) {
    number = normal(random_source);
    const uint16_t half = narrow(number);
    if (halves) widen(&half, 1, &number);
  }
  return matrix;
}

// As cpu_products.h says, of float32 or of bfloat16.
std::vector<float> in_panels(const Matrix& m) {
  std::vector<float> out(static_cast<size_t>(panels(m.columns) * m.rows * kPanel));
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t j = 0; j < m.columns; ++j) out[(j / kPanel * m.rows + i) * kPanel + j % kPanel] = m.at(i, j);
  }
  return out;
}

std::vector<uint16_t> in_half_panels(const Matrix& m, bool paired) {
  const int64_t rows = paired ? (m.rows + 1) / 2 * 2 : m.rows;
  std::vector<uint16_t> out(static_cast<size_t>(panels(m.columns) * rows * kPanel));
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t j = 0; j < m.columns; ++j) {
      const int64_t panel = j / kPanel * rows * kPanel, column = j % kPanel;
      out[paired ? panel + i / 2 * 2 * kPanel + column * 2 + i % 2 : panel + i * kPanel + column] = narrow(m.at(i, j));
    }
  }
  return out;
}

struct Case {
  int64_t rows, columns, inner;
  bool a_transposed, add;
};

// c [columns / kPanel][rows][kPanel], before the product 1 where it adds, else NaN; and 7 beyond the last column.
std::vector<float> result_of(ProductFunction function, const Case& c, const void* a, const void* b) {
  std::vector<float> result(static_cast<size_t>(panels(c.columns) * c.rows * kPanel), 7.0F);
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) result[(j / kPanel * c.rows + i) * kPanel + j % kPanel] = c.add ? 1 : NAN;
  }
  function({.rows = c.rows,
            .columns = c.columns,
            .inner = c.inner,
            .a = a,
            .a_transposed = c.a_transposed,
            .b = b,
            .c = result.data(),
            .c_panel = c.rows * kPanel,
            .c_row = kPanel,
            .add = c.add});
  return result;
}

void check(const std::string& name, const Case& c, const Matrix& a, const Matrix& b, const std::vector<float>& found) {
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < panels(c.columns) * kPanel; ++j) {
      const float actual = found[(j / kPanel * c.rows + i) * kPanel + j % kPanel];
      double sum = c.add ? 1 : 0, size = 1;
      for (int64_t k = 0; k < c.inner && j < c.columns; ++k) {
        const double product = double{c.a_transposed ? a.at(k, i) : a.at(i, k)} * b.at(k, j);
        sum += product;
        size += std::abs(product);
      }
      if (j >= c.columns ? actual == 7 : std::abs(actual - sum) <= 1e-6 * size) continue;
      test::fail(__FILE__, __LINE__) << name << ", " << c.rows << " x " << c.columns << " x " << c.inner << " at " << i
                                     << ", " << j << ": " << actual << " instead of " << sum << "\n";
      return;
    }
  }
}

void test_products() {
  const Products& fastest = products_of_cpu();
  std::vector<std::pair<std::string, ProductFunction>> functions{{"portable", product_portable}};
  if (fastest.float32 != product_portable) functions.emplace_back("the fastest", fastest.float32);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) functions.emplace_back("AVX2", product_avx2);
#endif
  for (const int64_t rows : {1, 5, 12, 13, 31, 64, 70}) {
    for (const int64_t columns : {1, 17, 32, 48, 70}) {
      for (const int64_t inner : {1, 2, 31, 33, 96}) {
        for (const bool transposed : {false, true}) {
          const Case c{rows, columns, inner, transposed, (rows + columns + inner) % 2 == 0};
          const auto operands = [&](bool halves) {
            return std::pair{transposed ? random_matrix(inner, rows, halves) : random_matrix(rows, inner, halves),
                             random_matrix(inner, columns, halves)};
          };
          const auto [a, b] = operands(false);
          const std::vector<float> left = in_panels(a), right = in_panels(b);
          std::vector<float> fused;
          for (const auto& [name, function] : functions) {
            const std::vector<float> found = result_of(function, c, left.data(), right.data());
            check(name, c, a, b, found);
            if (function == product_portable) continue;
            if (fused.empty()) fused = found;
            CHECK(std::memcmp(found.data(), fused.data(), found.size() * sizeof(float)) == 0);
          }
          if (fastest.bfloat16 == nullptr) continue;
          const auto [low_a, low_b] = operands(true);
          const std::vector<uint16_t> low_left = in_half_panels(low_a, transposed),
                                      low_right = in_half_panels(low_b, true);
          check("bfloat16", c, low_a, low_b, result_of(fastest.bfloat16, c, low_left.data(), low_right.data()));
        }
      }
    }
  }
}

}  // namespace
}  // namespace facetrain::cpu

int main() {
  facetrain::cpu::test_products();
  return TEST_RESULT();
}
