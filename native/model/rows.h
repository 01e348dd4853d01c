// Activations as rows of C values, one a pixel, for kernels that go over memory once: the channels-last layout on a
// CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

// Compiled for what the build machine's compiler knows, chosen when the program is loaded.
#if defined(__x86_64__)
#define FT_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FT_VECTORIZED
#endif

// No two of a kernel's arrays overlap; where there are many, a compiler that has to check does not vectorise.
#define FT_RESTRICT __restrict__

namespace facetrain {

inline bool is_rows(const at::Tensor& x) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat &&
         (x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast) : x.dim() == 2 && x.is_contiguous());
}

// Sums are made over chunks of a fixed number of rows and then over the chunks, so that they do not depend on the
// number of threads.
struct Rows {
  static constexpr int64_t kChunk = 256;

  explicit Rows(const at::Tensor& x)
      : channels(x.size(1)), count(x.numel() / x.size(1)), chunks((count + kChunk - 1) / kChunk) {}

  // function(chunk, offset of its first value, its rows), on libtorch's threads.
  template <class Function>
  void for_each_chunk(Function function) const {
    at::parallel_for(0, chunks, /*grain_size=*/1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t row = chunk * kChunk;
        function(chunk, row * channels, std::min(kChunk, count - row));
      }
    });
  }

  int64_t channels, count, chunks;
};

}  // namespace facetrain
