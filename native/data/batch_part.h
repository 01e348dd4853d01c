// Which pictures of a global batch a rank has.
#pragma once

#include <algorithm>
#include <cstdint>

namespace facetrain {

struct BatchPart {
  int64_t first, count;  // pictures
};

// A global batch is cut into one part for each rank, in rank order, at whole micro-batches of `micro_batch` pictures
// (0: at single pictures): floor(n / size) of the n on each rank, and one more on the first n % size ranks.
// `micro_batch` divides global_batch.
inline BatchPart batch_part(int64_t global_batch, int64_t micro_batch, int rank, int size) {
  const int64_t unit = micro_batch > 0 ? micro_batch : 1, units = global_batch / unit;
  const int64_t each = units / size, more = units % size;
  return {(each * rank + std::min<int64_t>(rank, more)) * unit, (each + (rank < more)) * unit};
}

}  // namespace facetrain
