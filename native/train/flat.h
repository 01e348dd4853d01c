// Tensors laid end to end in one buffer, so that what is done to all of them (a collective, a norm, the optimizer) is
// done once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace facetrain {

// Where each of some float32 tensors lies. Every one starts on a cache line, as those that libtorch allocates do; the
// gaps hold zeros and stay zeros under everything that maps 0 to 0.
class FlatLayout {
 public:
  void add(const at::Tensor& tensor) {
    offsets_.push_back(size_);
    size_ += (tensor.numel() + kAlignment - 1) / kAlignment * kAlignment;
  }
  int64_t size() const { return size_; }
  // The part of `buffer` that is the i-th tensor, with the shape and the strides of `like`.
  at::Tensor view(const at::Tensor& buffer, size_t i, const at::Tensor& like) const {
    return buffer.as_strided(like.sizes(), like.strides(), buffer.storage_offset() + offsets_[i]);
  }

 private:
  static constexpr int64_t kAlignment = 16;
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
};

}  // namespace facetrain
