// The loops of cpu_products.h, for one instruction set: included by its source file, which defines Lanes.
//
// A block of c, kRows x kVectors registers, stays in registers while the inner index runs: for each index, kVectors
// registers of b are loaded, and each of kRows units of a is broadcast and multiplied with them. A panel of b stays in
// the first or second level of cache while the rows of a pass.
#pragma once

#include <algorithm>
#include <cstring>

#include "pfc/cpu_products.h"

namespace facetrain::cpu {
namespace {

inline constexpr int kVectors = 2;  // of a row of a block

// Units of a in a row of a panel: pairs are half as many as numbers.
template <class Lanes>
inline constexpr int64_t kUnits = Lanes::kIsPaired ? kPanel / 2 : kPanel;

template <class Lanes, int kRows, bool kTransposed>
void multiply_block(const Product& p, int64_t inner, const uint32_t* a, const uint32_t* b, float* c, int64_t columns) {
  using Vector = typename Lanes::Vector;
  constexpr int64_t kRow = kTransposed ? 1 : kUnits<Lanes>, kStep = kTransposed ? kPanel : 1;
  Vector sums[kRows][kVectors] = {};
  const int64_t part = kTransposed ? inner : kUnits<Lanes>;
  const int64_t to_next = kTransposed ? 0 : p.rows * kUnits<Lanes>;
  for (int64_t begin = 0; begin < inner; begin += part, a += to_next) {
    const int64_t end = std::min(part, inner - begin);
    const uint32_t* unit = a;
    for (int64_t k = 0; k < end; ++k, unit += kStep, b += kPanel) {
      Vector right[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) std::memcpy(&right[v], b + v * Lanes::kCount, sizeof(Vector));
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector left = Lanes::broadcast(unit[i * kRow]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[i][v] = Lanes::multiply_add(left, right[v], sums[i][v]);
      }
    }
  }
  constexpr int64_t kColumns = kVectors * Lanes::kCount;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    float* const out = c + i * p.c_row;
    if (columns >= kColumns) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        Vector before{};
        if (p.add) std::memcpy(&before, out + v * Lanes::kCount, sizeof before);
        before = before + sums[i][v];
        std::memcpy(out + v * Lanes::kCount, &before, sizeof before);
      }
    } else {
      float row[kColumns];
      std::memcpy(row, &sums[i], sizeof row);
      for (int64_t j = 0; j < columns; ++j) out[j] = p.add ? out[j] + row[j] : row[j];
    }
  }
}

// The block of `rows` <= kRows rows.
template <class Lanes, int kRows, bool kTransposed>
void multiply_rows(int64_t rows, const Product& p, int64_t inner, const uint32_t* a, const uint32_t* b, float* c,
                   int64_t columns) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_rows<Lanes, kRows - 1, kTransposed>(rows, p, inner, a, b, c, columns);
  }
  multiply_block<Lanes, kRows, kTransposed>(p, inner, a, b, c, columns);
}

template <class Lanes, bool kTransposed>
void multiply_all(const Product& p) {
  const auto* const a = static_cast<const uint32_t*>(p.a);
  const auto* const b = static_cast<const uint32_t*>(p.b);
  const int64_t inner = Lanes::kIsPaired ? (p.inner + 1) / 2 : p.inner;
  constexpr int64_t kColumns = kVectors * Lanes::kCount;
  // Blocks do not cross panels of a transposed left matrix. They are of about the same size.
  const int64_t group = kTransposed ? kPanel : p.rows;
  for (int64_t j = 0; j < p.columns; j += kColumns) {
    const uint32_t* const right = b + j / kPanel * inner * kPanel + j % kPanel;
    float* const out = p.c + j / kPanel * p.c_panel + j % kPanel;
    for (int64_t first = 0; first < p.rows; first += group) {
      const int64_t rows = std::min(group, p.rows - first), blocks = (rows + Lanes::kRows - 1) / Lanes::kRows;
      const uint32_t* const left = a + (kTransposed ? first * inner : 0);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = rows * block / blocks, end = rows * (block + 1) / blocks;
        multiply_rows<Lanes, Lanes::kRows, kTransposed>(end - begin, p, inner,
                                                        left + begin * (kTransposed ? 1 : kUnits<Lanes>), right,
                                                        out + (first + begin) * p.c_row, p.columns - j);
      }
    }
  }
}

template <class Lanes>
void multiply(const Product& p) {
  p.a_transposed ? multiply_all<Lanes, true>(p) : multiply_all<Lanes, false>(p);
}

}  // namespace
}  // namespace facetrain::cpu
