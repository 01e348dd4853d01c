// The batches of a session are those of the loader, whether they are uploaded ahead or not, on a CPU and on a GPU if
// there is one.
#include "train/device_batches.h"

#include <ATen/ops/equal.h>

#include <atomic>
#include <set>
#include <thread>

#include "error.h"
#include "model/pictures.h"
#include "test/check.h"
#include "test/picture_set.h"
#include "train/device.h"

using namespace facetrain;

namespace {

constexpr int kSide = 4;  // pixels

// Picture i has label i and the gray value 3 i. The label of picture `wrong` is refused.
class SmallDataset final : public test::PictureSet {
 public:
  SmallDataset() : PictureSet(24, 24, kSide) {}
  int64_t label(int64_t picture) const override {
    ++labels;
    if (picture == wrong) throw Error("InvalidDataset", "picture", "its label is wrong", "none");
    return PictureSet::label(picture);
  }

  int64_t wrong = -1;
  mutable std::atomic<int64_t> labels{0};  // that were read

 private:
  uint8_t value(int64_t picture, size_t) const override { return static_cast<uint8_t>(3 * picture); }
};

constexpr int64_t kBatch = 4;

LoaderOptions options() {
  return {.global_batch = kBatch,
          .rank = 0,
          .size = 1,
          .seed = 3,
          .flip = true,
          .shift = 1,
          .bgr = false,
          .threads = 2,
          .max_bad = 0};
}

bool are_of(const DeviceBatches::Arrived& arrived, const Batch& batch) {
  const at::Tensor pixels = arrived.pixels.cpu(), labels = arrived.labels.cpu();
  const std::vector<int64_t> found(labels.const_data_ptr<int64_t>(), labels.const_data_ptr<int64_t>() + labels.numel());
  return found == batch.labels && at::equal(pixels, view_pixels(batch.pixels, kSide, kSide, 3));
}

void same_batches_as_the_loader(at::Device device) {
  const auto dataset = std::make_shared<SmallDataset>();
  const auto loader = make_loader(dataset, options());
  std::vector<Batch> expected;
  for (int step = 0; step < 40; ++step) expected.push_back(loader->next());

  DeviceBatches batches(dataset, options(), device);
  CHECK_EQ(batches.steps_per_epoch(), 6);
  // In order; back to an earlier step; and over a few steps.
  for (const auto& [begin, end] : {std::pair(0, 30), std::pair(5, 12), std::pair(20, 40)}) {
    for (int step = begin; step < end; ++step) {
      batches.wait(step);
      CHECK(are_of(batches.take(), expected[static_cast<size_t>(step)]));
      if (step % 3 != 0) batches.prefetch();
      if (step % 3 == 2) batches.prefetch();  // again
    }
  }
}

// From the next step on, also if its batch was already prepared.
void retired_identities_are_left_out_from_the_next_step_on() {
  const auto dataset = std::make_shared<SmallDataset>();
  DeviceBatches batches(dataset, options(), at::kCPU);
  for (int step = 0; step < 3; ++step) {
    batches.wait(step);
    batches.take();
    batches.prefetch();
  }
  LoaderOptions retired = options();
  retired.first_step = 3;
  retired.retired = std::make_shared<const RetiredLabels>(RetiredLabels{{5, kRemoved}, {6, 7}});
  const auto loader = make_loader(dataset, retired);
  batches.retire(*retired.retired);
  for (int step = 3; step < 20; ++step) {
    batches.wait(step);
    CHECK(are_of(batches.take(), loader->next()));
    batches.prefetch();
  }
}

// A batch whose memory is still used is not written to, and the memory of the others serves again.
void memory_is_used_again() {
  const auto dataset = std::make_shared<SmallDataset>();
  DeviceBatches batches(dataset, options(), at::kCPU);
  std::set<const void*> addresses;
  for (int step = 0; step < 100; ++step) {
    batches.wait(step);
    const auto arrived = batches.take();
    addresses.insert(arrived.pixels.const_data_ptr());
    const at::Tensor copy = arrived.pixels.clone();
    batches.prefetch();
    CHECK(at::equal(arrived.pixels, copy));
  }
  // Those in the loader's ring, of this step, the next and the last one.
  CHECK(addresses.size() <= 6);
}

// A batch that cannot be loaded is an error of its own step, not of the one before, which is still computing.
void errors_come_in_their_step() {
  const auto dataset = std::make_shared<SmallDataset>();
  LoaderOptions second = options();
  second.first_step = 1;
  const int64_t wrong = make_loader(dataset, second)->next().labels.at(2);
  dataset->wrong = wrong;  // now that no loader reads it
  const int64_t before = dataset->labels;
  DeviceBatches batches(dataset, options(), at::kCPU);
  batches.wait(0);
  batches.take();
  while (dataset->labels < before + 4 * kBatch) std::this_thread::yield();  // the loader has read beyond the batch
  batches.prefetch();
  CHECK_THROWS(batches.wait(1), Error, "its label is wrong");
  CHECK_THROWS(batches.wait(1), Error, "its label is wrong");
}

}  // namespace

int main() {
  same_batches_as_the_loader(at::kCPU);
  if (cuda_devices() > 0) same_batches_as_the_loader(at::Device(at::kCUDA, 0));
  retired_identities_are_left_out_from_the_next_step_on();
  memory_is_used_again();
  errors_come_in_their_step();
  return TEST_RESULT();
}
