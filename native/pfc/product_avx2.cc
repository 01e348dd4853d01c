// cpu_products.h for AVX2 and FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include "pfc/product_loops.h"

namespace facetrain::cpu {
namespace {

struct Lanes {
  using Vector = __m256;
  static constexpr int kCount = 8, kRows = 6;
  static constexpr bool kIsPaired = false;
  static Vector broadcast(uint32_t unit) { return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(unit))); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

void product_avx2(const Product& product) { multiply<Lanes>(product); }

}  // namespace facetrain::cpu
#endif
