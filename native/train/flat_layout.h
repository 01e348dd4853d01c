// Tensors as consecutive parts of one buffer, so that an operation on all of them (a collective, a norm, the optimizer)
// is one operation on the buffer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace facetrain {

// The offsets of float32 tensors in the buffer. Each tensor starts on a cache line, as those that libtorch allocates
// do. The gaps contain zeros, and operations that map 0 to 0 keep them zero.
class FlatLayout {
 public:
  // Appends a tensor of this size.
  void add(const at::Tensor& tensor) {
    offsets_.push_back(size_);
    size_ += padded(tensor.numel());
  }
  // Elements with the gap behind them.
  static int64_t padded(int64_t elements) { return (elements + kAlignment - 1) / kAlignment * kAlignment; }
  // Elements of the buffer.
  int64_t size() const { return size_; }
  // Of the first element of the i-th tensor.
  int64_t offset(size_t i) const { return offsets_[i]; }
  // The part of `buffer` that is the i-th tensor, with the shape and the strides of `like`.
  at::Tensor view(const at::Tensor& buffer, size_t i, const at::Tensor& like) const {
    return buffer.as_strided(like.sizes(), like.strides(), buffer.storage_offset() + offsets_[i]);
  }

 private:
  static constexpr int64_t kAlignment = 16;  // elements: 64 bytes
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
};

}  // namespace facetrain
