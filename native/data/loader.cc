// Batches decoded ahead of use.
//
// Threads take one picture at a time, in order, and write it into its place in a ring of batches; a batch that is
// complete waits there for next(). A thread whose picture belongs behind the ring waits until next() has made room, so
// memory is bounded by kAhead batches. An error is kept in its batch: next() throws it when its turn comes, whichever
// thread met it first.
#include "data/loader.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "data/permutation.h"
#include "error.h"

namespace facetrain {
namespace {

constexpr int64_t kAhead = 3;  // batches in the ring

// Independent streams of random numbers.
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
    } catch (...) {  // a limit on threads
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
    int64_t done = 0;          // pictures
    std::exception_ptr error;  // of the first picture in order that had one
    int64_t failed = 0;        // its place
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
      room_.wait(lock, [&] { return stopping_ || taken_ / batch_ < next_ - options_.first_step + kAhead; });
      if (stopping_) return;
      const int64_t step = options_.first_step + taken_ / batch_, place = taken_ % batch_;
      ++taken_;
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

  int64_t picture_at(int64_t step, int64_t place) const {
    const auto epoch = static_cast<uint64_t>(step / steps_per_epoch_);
    const int64_t position = step % steps_per_epoch_ * options_.global_batch + options_.rank * batch_ + place;
    return Permutation(dataset_->size(), hash_words({options_.seed, kOrder, epoch}))(position);
  }

  void load(int64_t step, int64_t place, Batch& batch, std::vector<uint8_t>& scratch) const {
    // A batch ahead of decoding, so that the disk works on many pictures at once however few threads there are.
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
    const bool moved = flip || dy != 0 || dx != 0;
    const auto encoded = dataset_->encoded(picture);
    decode_jpeg(encoded, dataset_->height(), dataset_->width(), options_.bgr, moved ? scratch.data() : out,
                "InvalidDataset", dataset_->name(picture));
    if (moved) move(scratch.data(), flip, dy, dx, out);
  }

  // Mirrors, then translates by (dy, dx).
  void move(const uint8_t* in, bool flip, int dy, int dx, uint8_t* out) const {
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

  std::mutex mutex_;  // guards all below; the pixels and labels of a picture belong to the thread that took it
  std::condition_variable room_, complete_;
  Slot ring_[kAhead];
  int64_t next_;       // step
  int64_t taken_ = 0;  // pictures since first_step
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Loader> make_loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options) {
  return std::make_unique<RingLoader>(std::move(dataset), options);
}

}  // namespace facetrain
