// The matrix products of the step on CPUs, on one thread: one function for each instruction set, chosen by
// products_of_cpu(). Plain C++ without torch.
//
// Why not a library's: these operands are packed once and used in two or three products, and a tile of them is too
// small to be packed anew for each; and MKL, the library of libtorch, reaches two thirds of an AMD core's peak in
// float32, and no more than that in bfloat16 (docs/decisions/0072-products-of-our-own-on-cpus.md).
//
// Layouts. A matrix of float32 [rows, columns] is in panels of kPanel columns, [columns / kPanel][rows][kPanel], with
// zeros beyond the last column. One of bfloat16 is so too; or it is paired: [columns / kPanel][rows / 2][kPanel][2],
// with two rows side by side and zeros below an odd last one. The left matrix of a product is read by rows or by
// columns, the right one by columns: a product adds float32 numbers one by one, or bfloat16 numbers in pairs along the
// inner dimension, which must be side by side. Such 4 bytes are a unit.
#pragma once

#include <cstdint>

namespace facetrain::cpu {

inline constexpr int64_t kPanel = 32;

inline int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// c = a b, or c += a b: a [rows, inner], b [inner, columns], c [rows, columns] in float32.
struct Product {
  int64_t rows, columns, inner;
  // Of `rows` rows and `inner` columns; with a_transposed of `inner` rows (paired if they are bfloat16) and `rows`
  // columns.
  const void* a;
  bool a_transposed;
  const void* b;  // in panels; paired if bfloat16
  // c[i][j] is c[j / kPanel * c_panel + i * c_row + j % kPanel]. Nothing beyond its columns is written.
  float* c;
  int64_t c_panel, c_row;
  bool add;
};

using ProductFunction = void (*)(const Product& product);

struct Products {
  ProductFunction float32;
  ProductFunction bfloat16;  // null: this CPU has no fast one
};

// The fastest of this CPU. Those of float32 add a c[i][j] up by ascending inner index, on every CPU with fused
// multiplication and addition to the same bits.
const Products& products_of_cpu();

void product_portable(const Product& product);
#if defined(__x86_64__)
void product_avx2(const Product& product);
void product_avx512(const Product& product);
void product_avx512bf16(const Product& product);
#endif

}  // namespace facetrain::cpu
