#include "model/compute.h"

#include <ATen/Context.h>

namespace facetrain {

void use_precision(Precision precision) {
  const bool tf32 = precision == Precision::tf32;
  at::Context& context = at::globalContext();
  context.setAllowTF32CuDNN(tf32);
  context.setAllowTF32CuBLAS(tf32);
  context.setAllowFP16ReductionCuBLAS(false);
  context.setAllowBF16ReductionCuBLAS(false);
}

}  // namespace facetrain
