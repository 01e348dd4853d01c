#include "train/gradient_buckets.h"

#include <torch/csrc/autograd/utils/lambda_post_hook.h>

namespace facetrain {

using torch::autograd::variable_list;
using torch::autograd::utils::LambdaPostHook;

GradientBuckets::GradientBuckets(Comm& comm, const at::Tensor& buffer, const std::vector<at::Tensor>& parameters,
                                 const FlatLayout& layout, int64_t bucket_bytes)
    : comm_(comm) {
  const int64_t bucket_size = bucket_bytes / static_cast<int64_t>(sizeof(float));
  const int64_t gradients = buffer.numel() - layout.size();  // where they begin
  int64_t end = buffer.numel();
  buckets_.emplace_back();
  for (size_t i = parameters.size(); i-- > 0;) {
    ++buckets_.back().parameters;
    const size_t bucket = buckets_.size() - 1;
    adders_.push_back(torch::autograd::impl::grad_accumulator(parameters[i]));
    adders_.back()->add_post_hook(
        std::make_unique<LambdaPostHook>([this, bucket](const variable_list& outputs, const variable_list&) {
          complete(bucket);
          return outputs;
        }));
    const int64_t first = gradients + layout.offset(i);
    if (i == 0 || end - first < bucket_size) continue;
    buckets_.back().part = buffer.narrow(0, first, end - first);
    buckets_.emplace_back();
    end = first;
  }
  buckets_.back().part = buffer.narrow(0, 0, end);
}

void GradientBuckets::begin() {
  running_ = true;
  for (Bucket& bucket : buckets_) bucket.missing = bucket.parameters;
}

void GradientBuckets::complete(size_t bucket) {
  if (!running_) return;
  --buckets_[bucket].missing;
  // What is before the gradients, in the last bucket, is not known yet.
  while (sent_.size() + 1 < buckets_.size() && buckets_[sent_.size()].missing == 0) send();
}

void GradientBuckets::send() { sent_.push_back(comm_.begin_all_reduce_sum(buckets_[sent_.size()].part)); }

void GradientBuckets::finish() {
  running_ = false;
  while (sent_.size() < buckets_.size()) send();
  for (const auto& pending : sent_) pending->wait();
  sent_.clear();
}

}  // namespace facetrain
