#include "train/device_batches.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "model/pictures.h"

namespace facetrain {
namespace {

// Memory that a GPU reads while the host goes on. Ordinary memory, which is slower, where the system gives no more of
// it. All of it must be given back before it is destroyed.
class PinnedMemory final : public std::pmr::memory_resource {
 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    at::Tensor block;
    try {
      block = at::empty({static_cast<int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
    } catch (const std::exception&) {
      return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void* const data = block.mutable_data_ptr();
    std::lock_guard lock(mutex_);
    blocks_.emplace(data, std::move(block));
    return data;
  }

  void do_deallocate(void* data, size_t bytes, size_t alignment) override {
    {
      std::lock_guard lock(mutex_);
      if (blocks_.erase(data) > 0) return;
    }
    std::pmr::new_delete_resource()->deallocate(data, bytes, alignment);
  }

  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  std::mutex mutex_;
  std::map<void*, at::Tensor> blocks_;
};

}  // namespace

DeviceBatches::DeviceBatches(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options, at::Device device)
    : dataset_(std::move(dataset)),
      device_(device),
      uploads_(device.is_cuda() ? std::optional(c10::impl::VirtualGuardImpl(device.type()).getNewStream(device))
                                : std::nullopt),
      pinned_(device.is_cuda() ? std::make_unique<PinnedMemory>() : nullptr),
      options_(options),
      next_step_(options.first_step) {
  if (pinned_) options_.memory = pinned_.get();
  loader_ = make_loader(dataset_, options_);
}

DeviceBatches::~DeviceBatches() {
  // The uploads read the memory that is now freed.
  used_.push_back(std::move(next_));
  used_.push_back(std::move(taken_));
  while (!used_.empty()) used_memory();
}

void DeviceBatches::retire(RetiredLabels labels) {
  options_.retired = std::make_shared<const RetiredLabels>(std::move(labels));
  if (next_) used_.push_back(std::move(next_));
  next_step_ = -1;  // no step: wait() makes a loader
}

void DeviceBatches::wait(int64_t step) {
  if (taken_) used_.push_back(std::move(taken_));
  if (next_ && next_step_ == step + 1) return;
  if (next_) used_.push_back(std::move(next_));
  if (step != next_step_) {
    options_.first_step = step;
    loader_ = make_loader(dataset_, options_);
    next_step_ = step;
  }
  next_ = start_upload(loader_->next(used_memory()));
  next_step_ = step + 1;
}

DeviceBatches::Arrived DeviceBatches::take() {
  taken_ = std::move(next_);
  if (device_.is_cuda()) {
    const c10::Stream current = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
    taken_->uploaded->block(current);
    // Otherwise their memory could be used by the next upload while the current stream reads it.
    taken_->arrived.pixels.record_stream(current);
    taken_->arrived.labels.record_stream(current);
  }
  return taken_->arrived;
}

void DeviceBatches::prefetch() {
  if (next_ || !loader_->is_ready()) return;
  Batch batch;
  try {
    batch = loader_->next(used_memory());
  } catch (const std::exception&) {
    return;  // the loader throws it again in the step that needs the batch
  }
  next_ = start_upload(std::move(batch));
  ++next_step_;
}

std::unique_ptr<DeviceBatches::Upload> DeviceBatches::start_upload(Batch batch) const {
  auto upload = std::make_unique<Upload>();
  upload->batch = std::move(batch);
  Batch& from = upload->batch;
  const at::Tensor pixels = view_pixels(from.pixels, dataset_->height(), dataset_->width(), 3);
  const auto count = static_cast<int64_t>(from.labels.size());
  if (!device_.is_cuda()) {
    upload->arrived = {pixels, at::from_blob(from.labels.data(), {count}, at::kLong)};
    return upload;
  }
  upload->pinned_labels = at::empty({count}, at::TensorOptions().dtype(at::kLong).pinned_memory(true));
  std::copy(from.labels.begin(), from.labels.end(), upload->pinned_labels.mutable_data_ptr<int64_t>());
  const c10::StreamGuard guard(*uploads_);
  upload->arrived = {pixels.to(device_, at::kByte, /*non_blocking=*/true),
                     upload->pinned_labels.to(device_, at::kLong, /*non_blocking=*/true)};
  upload->uploaded.emplace(device_.type());
  upload->uploaded->record(*uploads_);
  return upload;
}

Batch DeviceBatches::used_memory() {
  if (used_.empty()) return {};
  const std::unique_ptr<Upload> used = std::move(used_.back());
  used_.pop_back();
  if (!used) return {};
  if (used->uploaded) used->uploaded->synchronize();  // of an earlier step: it is long complete
  return std::move(used->batch);
}

}  // namespace facetrain
