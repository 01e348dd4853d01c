// Decodes batches ahead of use, into a ring of kAhead batches.
//
// Each thread claims one picture at a time, in order, and writes it to its place in the ring. A complete batch stays
// there until next() takes it. A thread whose picture does not fit into the ring waits until next() has freed a batch,
// so memory is bounded by kAhead batches. An error is stored in its batch and thrown by the next() that would return
// the batch.
#include "data/loader.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "data/permutation.h"
#include "data/picture.h"
#include "error.h"

namespace facetrain {
namespace {

constexpr int64_t kAhead = 3;  // batches in the ring

// Separate the random numbers of one seed by purpose. Changing a value changes every training run.
enum Stream : uint64_t { kOrder = 1, kFlip = 2, kShiftY = 3, kShiftX = 4 };

class RingLoader : public Loader {
 public:
  RingLoader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options)
      : dataset_(std::move(dataset)),
        options_(options),
        batch_(options.global_batch / options.size),
        picture_bytes_(int64_t{3} * dataset_->height() * dataset_->width()),
        steps_per_epoch_(dataset_->size() / options.global_batch),
        next_(options.first_step) {
    if (steps_per_epoch_ == 0) {
      throw Error("InvalidDataset", dataset_->name(0),
                  "is of a dataset of " + std::to_string(dataset_->size()) + " pictures",
                  "a global batch takes " + std::to_string(options.global_batch));
    }
    try {
      for (int i = 0; i < options.threads; ++i) {
        threads_.emplace_back([this] { run(); });
        pthread_setname_np(threads_.back().native_handle(), ("loader/" + std::to_string(i)).c_str());
      }
    } catch (...) {  // the system's limit on threads
      stop();
      throw;
    }
  }

  ~RingLoader() override { stop(); }

  int64_t steps_per_epoch() const override { return steps_per_epoch_; }

  Batch next() override {
    std::unique_lock lock(mutex_);
    Slot& slot = ring_[next_ % kAhead];
    complete_.wait(lock, [&] { return slot.done == batch_; });
    if (slot.error) std::rethrow_exception(slot.error);
    Batch batch = std::move(slot.batch);
    slot = {};
    ++next_;
    lock.unlock();
    room_.notify_all();
    return batch;
  }

 private:
  struct Slot {
    Batch batch;
    int64_t done = 0;          // pictures that are complete
    std::exception_ptr error;  // of the first picture in the batch that has one
    int64_t failed = 0;        // the place of that picture
  };

  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    room_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void run() {
    std::vector<uint8_t> scratch(static_cast<size_t>(picture_bytes_));
    for (;;) {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] { return stopping_ || claimed_ / batch_ < next_ - options_.first_step + kAhead; });
      if (stopping_) return;
      const int64_t step = options_.first_step + claimed_ / batch_, place = claimed_ % batch_;
      ++claimed_;
      Slot& slot = ring_[step % kAhead];
      if (place == 0) {
        slot.batch.step = step;
        slot.batch.pixels.resize(static_cast<size_t>(batch_ * picture_bytes_));
        slot.batch.labels.resize(static_cast<size_t>(batch_));
      }
      lock.unlock();

      std::exception_ptr error;
      try {
        load(step, place, slot.batch, scratch);
      } catch (...) {
        error = std::current_exception();
      }

      lock.lock();
      if (error && (!slot.error || place < slot.failed)) {
        slot.error = error;
        slot.failed = place;
      }
      if (++slot.done == batch_) complete_.notify_all();
    }
  }

  // The number in the dataset of the picture at `place` in this rank's part of the step.
  int64_t picture_at(int64_t step, int64_t place) const {
    const auto epoch = static_cast<uint64_t>(step / steps_per_epoch_);
    const int64_t position = step % steps_per_epoch_ * options_.global_batch + options_.rank * batch_ + place;
    return Permutation(dataset_->size(), hash_words({options_.seed, kOrder, epoch}))(position);
  }

  void load(int64_t step, int64_t place, Batch& batch, std::vector<uint8_t>& scratch) const {
    // Announces the picture of the next step, so that the disk reads many pictures at once even with few threads.
    dataset_->will_need(picture_at(step + 1, place));
    const int64_t picture = picture_at(step, place);
    const auto epoch = static_cast<uint64_t>(step / steps_per_epoch_);
    const auto draw = [&](Stream stream) {
      return hash_words({options_.seed, stream, epoch, static_cast<uint64_t>(picture)});
    };
    const auto shift = [&](Stream stream) {
      return static_cast<int>(draw(stream) % static_cast<uint64_t>(2 * options_.shift + 1)) - options_.shift;
    };
    const bool flip = options_.flip && (draw(kFlip) & 1);
    const int dy = shift(kShiftY), dx = shift(kShiftX);

    batch.labels[static_cast<size_t>(place)] = dataset_->label(picture);
    uint8_t* const out = batch.pixels.data() + place * picture_bytes_;
    const bool augmented = flip || dy != 0 || dx != 0;
    const auto encoded = dataset_->encoded(picture);
    decode_picture(encoded, dataset_->height(), dataset_->width(), options_.bgr, augmented ? scratch.data() : out,
                   "InvalidDataset", dataset_->name(picture));
    if (augmented) augment(scratch.data(), flip, dy, dx, out);
  }

  // Mirrors the picture, then translates it by (dy, dx) pixels and repeats the border.
  void augment(const uint8_t* in, bool flip, int dy, int dx, uint8_t* out) const {
    const int height = dataset_->height(), width = dataset_->width();
    for (int y = 0; y < height; ++y) {
      const uint8_t* const row = in + int64_t{3} * width * std::clamp(y - dy, 0, height - 1);
      for (int x = 0; x < width; ++x, out += 3) {
        const int mirrored = std::clamp(x - dx, 0, width - 1);
        std::copy_n(row + 3 * (flip ? width - 1 - mirrored : mirrored), 3, out);
      }
    }
  }

  const std::shared_ptr<const Dataset> dataset_;
  const LoaderOptions options_;
  const int64_t batch_;  // pictures of this rank in a step
  const int64_t picture_bytes_;
  const int64_t steps_per_epoch_;

  // Guards the members below. The pixels and labels of a picture are written without it by the thread that claimed it.
  std::mutex mutex_;
  std::condition_variable room_, complete_;
  Slot ring_[kAhead];
  int64_t next_;         // the step that next() returns
  int64_t claimed_ = 0;  // pictures claimed since first_step
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Loader> make_loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options) {
  return std::make_unique<RingLoader>(std::move(dataset), options);
}

}  // namespace facetrain
