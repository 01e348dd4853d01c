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
    size_ += (tensor.numel() + kAlignment - 1) / kAlignment * kAlignment;
  }
  // Elements of the buffer.
  int64_t size() const { return size_; }
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
