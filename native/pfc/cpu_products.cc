#include "pfc/cpu_products.h"

#include "pfc/product_loops.h"

namespace facetrain::cpu {
namespace {

struct Lanes {
  using Vector = float __attribute__((vector_size(16)));
  static constexpr int kCount = 4, kRows = 4;
  static constexpr bool kIsPaired = false;
  static Vector broadcast(uint32_t unit) {
    float number;
    std::memcpy(&number, &unit, sizeof number);
    return Vector{} + number;
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
};

Products find_products() {
#if defined(__x86_64__)
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx512) return {product_avx512, __builtin_cpu_supports("avx512bf16") ? product_avx512bf16 : nullptr};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {product_avx2, nullptr};
#endif
  return {product_portable, nullptr};
}

}  // namespace

const Products& products_of_cpu() {
  static const Products products = find_products();
  return products;
}

void product_portable(const Product& product) { multiply<Lanes>(product); }

}  // namespace facetrain::cpu
