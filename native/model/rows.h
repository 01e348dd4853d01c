// Channels-last activations as a matrix with one row of C values for each pixel, for kernels that go over memory once.
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

// Whether x is channels-last or [N, C] in memory.
inline bool has_rows(const at::Tensor& x) {
  return x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast) : x.dim() == 2 && x.is_contiguous();
}

// Whether the CPU's kernels can compute with x: they read rows of float32 or bfloat16.
inline bool has_cpu_rows(const at::Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) && has_rows(x);
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

// Rows of a chunk as float32, for kernels that compute in it: the memory of a float32 tensor itself, a copy of a
// bfloat16 one. The copies are kept for each thread, so at most one object at a time has a given Slot.
class FloatRows {
 public:
  enum Slot { kX, kGradient, kResult, kSlots };

  // `count` values of `tensor` from `offset` on.
  FloatRows(Slot slot, const at::Tensor& tensor, int64_t offset, int64_t count);
  const float* read() const;
  // Of results: the values are undefined before they are written, and reach the tensor by store().
  float* write() const { return floats_; }
  void store() const;

 private:
  float* floats_;
  c10::BFloat16* rounded_;  // null if the tensor is float32
  int64_t count_;
};

}  // namespace facetrain
