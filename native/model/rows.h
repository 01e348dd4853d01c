// Channels-last activations on a CPU as a matrix with one row of C values for each pixel, for kernels that go over
// memory once.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

// Before a function: the compiler makes a version for each instruction set, and the dynamic loader picks one when the
// program starts.
#if defined(__x86_64__)
#define FT_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FT_VECTORIZED
#endif

// For a kernel's arrays, which do not overlap. Without it the compiler does not vectorize a loop over many arrays.
#define FT_RESTRICT __restrict__

namespace facetrain {

// Whether x is float32, on a CPU, and channels-last or [N, C].
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

  // Calls function(chunk, offset of its first value, number of its rows) for every chunk, on libtorch's threads.
  template <class Function>
  void for_each_chunk(Function function) const {
    at::parallel_for(0, chunks, /*grain_size=*/1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t row = chunk * kChunk;
        function(chunk, row * channels, std::min(kChunk, count - row));
      }
    });
  }

  int64_t channels;  // values in a row
  int64_t count;     // rows
  int64_t chunks;
};

}  // namespace facetrain
