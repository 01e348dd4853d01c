// Channels-last activations as a matrix with one row of C values for each pixel, for kernels that go over memory once.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "clones.h"

// For the parts of a function with FACETRAIN_CLONES: a part that were called would have one version.
#define FT_ALWAYS_INLINE __attribute__((always_inline))

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

// A number of an activation in memory: float, or the bits of a bfloat16. Kernels compute in float32.
inline float widened(float value) { return value; }
inline float widened(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// A bfloat16 is rounded to the nearest, ties to even, as c10 rounds. NaN stays NaN.
inline void store(float value, float& to) { to = value; }
inline void store(float value, uint16_t& to) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The numbers of a tensor of float32 or bfloat16.
template <class T>
const T* values_of(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* mutable_values_of(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Calls function(T{}), where T is the type of x's numbers.
template <class Function>
void with_type_of(const at::Tensor& x, Function function) {
  static_assert(sizeof(c10::BFloat16) == sizeof(uint16_t));
  if (x.scalar_type() == at::kFloat) return function(float{});
  TORCH_INTERNAL_ASSERT(x.scalar_type() == at::kBFloat16);
  function(uint16_t{});
}

}  // namespace facetrain
