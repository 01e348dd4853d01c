#include "nodes/products.h"

#include <algorithm>
#include <cstring>

#include "clones.h"

namespace facetrain {
namespace {

// Sixteen columns of a product, in the registers of the widest instruction set. A vector that is nowhere passed or
// returned has no calling convention that would depend on it.
typedef float Columns __attribute__((vector_size(64), aligned(4)));
constexpr int64_t kColumns = kProductColumns;

// R rows of y [m, n] = x [m, k] * w [k, kColumns]: `columns` of them are stored. The sums run in the order of k.
template <int R>
[[gnu::always_inline]] inline void multiply_rows(const float* x, int64_t k, const float* w, int64_t w_stride, float* y,
                                                 int64_t n, int64_t columns) {
  Columns sums[R] = {};
  for (int64_t j = 0; j < k; ++j) {
    Columns row;
    std::memcpy(&row, w + j * w_stride, sizeof row);
    for (int r = 0; r < R; ++r) sums[r] += x[r * k + j] * row;
  }
  for (int r = 0; r < R; ++r) {
    if (columns == kColumns) {
      std::memcpy(y + r * n, &sums[r], sizeof sums[r]);
    } else {
      for (int64_t c = 0; c < columns; ++c) y[r * n + c] = sums[r][c];
    }
  }
}

}  // namespace

FACETRAIN_CLONES void multiply(const float* x, const float* w, float* y, int64_t m, int64_t k, int64_t n,
                               float* packed) {
  for (int64_t o = 0; o < n; o += kColumns) {
    const int64_t columns = std::min(kColumns, n - o);
    const float* panel = w + o;
    int64_t stride = n;
    if (columns < kColumns) {
      for (int64_t j = 0; j < k; ++j) {
        for (int64_t c = 0; c < kColumns; ++c) packed[j * kColumns + c] = c < columns ? panel[j * n + c] : 0.0f;
      }
      panel = packed;
      stride = kColumns;
    }
    int64_t i = 0;
    for (; i + 6 <= m; i += 6) multiply_rows<6>(x + i * k, k, panel, stride, y + i * n + o, n, columns);
    for (; i + 2 <= m; i += 2) multiply_rows<2>(x + i * k, k, panel, stride, y + i * n + o, n, columns);
    for (; i < m; ++i) multiply_rows<1>(x + i * k, k, panel, stride, y + i * n + o, n, columns);
  }
}

FACETRAIN_CLONES void add_product(const float* x, int64_t stride, float weight, int64_t count, float* y) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) y[i] += x[i] * weight;
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] += x[i * stride] * weight;
  }
}

}  // namespace facetrain
