// cpu_products.h for AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "pfc/product_loops.h"

namespace facetrain::cpu {
namespace {

struct Lanes {
  using Vector = __m512;
  static constexpr int kCount = 16, kRows = 12;
  static constexpr bool kIsPaired = false;
  static Vector broadcast(uint32_t unit) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(unit))); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

void product_avx512(const Product& product) { multiply<Lanes>(product); }

}  // namespace facetrain::cpu
#endif
