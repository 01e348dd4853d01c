// The sum of the ranks' gradients, which is on its way while the backward pass goes on.
//
// The gradients are one flat buffer in the order of the forward pass, so a backward pass completes it from its end. The
// buffer is cut into buckets; each is sent once its gradients and those behind it are complete. Every rank sends the
// same buckets in the same order, whatever the order in which its gradients become complete.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/variable.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "comm/comm.h"
#include "train/flat_layout.h"

namespace facetrain {

class GradientBuckets {
 public:
  // Small enough that what is sent last, and so after the backward pass, is little beside the whole, and large enough
  // that a message takes much longer than its latency.
  static constexpr int64_t kBucketBytes = int64_t{8} << 20;

  // Sums `buffer` [n], float32, which ends with the gradients of `parameters` in that layout. What is before them
  // belongs to the last bucket that is sent. The gradients of the parameters are views of the buffer.
  GradientBuckets(Comm& comm, const at::Tensor& buffer, const std::vector<at::Tensor>& parameters,
                  const FlatLayout& layout, int64_t bucket_bytes = kBucketBytes);
  GradientBuckets(const GradientBuckets&) = delete;

  // To be called before the backward pass that completes the gradients. The pass may be the last of several that add
  // to them. Without this, finish() sends everything.
  void begin();
  // Sends what begin() has not, and waits for everything: the buffer is the sum over the ranks. Throws CommError.
  void finish();

 private:
  // A shared_ptr in libtorch 2.11, an intrusive_ptr in 2.15.
  using Adder = decltype(torch::autograd::impl::grad_accumulator(std::declval<const at::Tensor&>()));
  struct Bucket {
    at::Tensor part;
    int64_t parameters = 0, missing = 0;  // of those, whose gradients the running pass has not completed
  };
  void complete(size_t bucket);
  void send();

  Comm& comm_;
  std::vector<Bucket> buckets_;  // in the order in which they are sent
  bool running_ = false;
  std::vector<std::unique_ptr<Comm::Pending>> sent_;
  // What adds to the gradient of each parameter, and tells of it here. The parameters do not own it.
  std::vector<Adder> adders_;
};

}  // namespace facetrain
