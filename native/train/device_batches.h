// The batches of a session, in the memory of its device.
//
// On CUDA a batch is decoded into pinned memory and uploaded as bytes, on a stream of its own: the next batch arrives
// while the device still computes on the last one. On a CPU it is used where the loader wrote it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <utility>
#include <vector>

#include "data/loader.h"

namespace facetrain {

class DeviceBatches {
 public:
  // `options.memory` is replaced. Throws as make_loader does.
  DeviceBatches(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options, at::Device device);
  ~DeviceBatches();

  // Waits for the batch of a step. One that does not follow the last one starts a new loader. Throws as Loader::next.
  void wait(int64_t step);
  // The batch that wait() has waited for: pixels [b, height, width, 3] of bytes and labels [b], ready for the current
  // stream. They are valid until the next call of wait().
  struct Arrived {
    at::Tensor pixels, labels;
  };
  Arrived take();
  // Starts to upload the next batch, if the loader has it. To be called once the device has its work for this step.
  void prefetch();

  // Of the batches to come, whose loader starts anew. To be called between two steps.
  void retire(RetiredLabels labels);

  int64_t steps_per_epoch() const { return loader_->steps_per_epoch(); }
  std::vector<UnusablePicture> take_replaced() { return loader_->take_replaced(); }

 private:
  // A batch of the loader and its tensors. With CUDA, `batch` and `labels` are read until `uploaded`.
  struct Upload {
    Batch batch;
    at::Tensor pinned_labels;
    Arrived arrived;
    std::optional<c10::Event> uploaded;
  };
  std::unique_ptr<Upload> start_upload(Batch batch) const;
  // The memory of a batch that is no longer used, if there is one.
  Batch used_memory();

  const std::shared_ptr<const Dataset> dataset_;
  const at::Device device_;
  const std::optional<c10::Stream> uploads_;  // on CUDA
  const std::unique_ptr<std::pmr::memory_resource> pinned_;
  LoaderOptions options_;
  std::unique_ptr<Loader> loader_;
  int64_t next_step_;              // the step whose batch loader_ returns next
  std::unique_ptr<Upload> next_;   // of step next_step_ - 1, not yet taken
  std::unique_ptr<Upload> taken_;  // what the current step uses
  std::vector<std::unique_ptr<Upload>> used_;
};

}  // namespace facetrain
