// Decodes batches ahead of use, into a ring of kAhead batches.
//
// Each thread claims one picture at a time, in order, and writes it to its place in the ring. A complete batch stays
// there until next() takes it. A thread whose picture does not fit into the ring waits until next() has freed a batch,
// so memory is bounded by kAhead batches. An error is stored in its batch and thrown by the next() that would return
// the batch.
#include "data/loader.h"

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "counted.h"
#include "data/augment.h"
#include "data/batch_part.h"
#include "data/degrade.h"
#include "data/permutation.h"
#include "data/picture.h"
#include "error.h"

namespace facetrain {
namespace {

constexpr int64_t kAhead = 3;  // batches in the ring

// Separate the random numbers of one seed by purpose. Changing a value changes every training run.
enum Stream : uint64_t {
  kOrder = 1,
  kFlip = 2,
  kShiftY = 3,
  kShiftX = 4,
  kReplacement = 5,
  kCrop = 6,
  kLowResolution = 7,
  kColorJitter = 8
};

// Replacements that are tried in a row before the dataset counts as unusable.
constexpr uint64_t kReplacements = 100;

class RingLoader : public Loader {
 public:
  RingLoader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options)
      : dataset_(std::move(dataset)),
        options_(options),
        part_(batch_part(options.global_batch, options.micro_batch, options.rank, options.size)),
        batch_(part_.count),
        picture_bytes_(int64_t{3} * dataset_->height() * dataset_->width()),
        steps_per_epoch_(dataset_->size() / options.global_batch),
        next_(options.first_step) {
    if (steps_per_epoch_ == 0) {
      throw Error("InvalidDataset", dataset_->name(0), "is of a dataset of " + counted(dataset_->size(), "picture"),
                  "a global batch takes " + std::to_string(options.global_batch));
    }
    for (int64_t i = 0; i < kAhead; ++i) ring_.push_back(slot_for({}));
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

  std::vector<UnusablePicture> take_replaced() override {
    std::lock_guard lock(replaced_mutex_);
    return std::exchange(replaced_, {});
  }

  Batch next(Batch used) override {
    Slot empty = slot_for(std::move(used));  // before the lock: it may allocate
    std::unique_lock lock(mutex_);
    Slot& slot = ring_[next_ % kAhead];
    complete_.wait(lock, [&] { return slot.done == batch_; });
    if (slot.error) std::rethrow_exception(slot.error);
    std::swap(slot, empty);
    ++next_;
    lock.unlock();
    room_.notify_all();
    return std::move(empty.batch);
  }

  bool is_ready() override {
    std::lock_guard lock(mutex_);
    return ring_[next_ % kAhead].done == batch_;
  }

 private:
  struct Slot {
    Batch batch;
    int64_t done = 0;          // pictures that are complete
    std::exception_ptr error;  // of the first picture in the batch that has one
    int64_t failed = 0;        // the place of that picture
  };

  // An empty slot, with the memory of `used` if that is of this loader.
  Slot slot_for(Batch used) const {
    Slot slot;
    slot.batch.pixels = Pixels(options_.memory);
    if (used.pixels.get_allocator() == slot.batch.pixels.get_allocator()) slot.batch = std::move(used);
    slot.batch.pixels.resize(static_cast<size_t>(batch_ * picture_bytes_));
    slot.batch.labels.resize(static_cast<size_t>(batch_));
    return slot;
  }

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
      if (place == 0) slot.batch.step = step;
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
    const int64_t position = step % steps_per_epoch_ * options_.global_batch + part_.first + place;
    return Permutation(dataset_->size(), hash_words({options_.seed, kOrder, epoch}))(position);
  }

  void load(int64_t step, int64_t place, Batch& batch, std::vector<uint8_t>& scratch) {
    // Announces the picture of the next step, so that the disk reads many pictures at once even with few threads.
    dataset_->will_need(picture_at(step + 1, place));
    const auto epoch = static_cast<uint64_t>(step / steps_per_epoch_);
    const int64_t drawn = picture_at(step, place);
    int64_t picture = drawn;
    for (uint64_t attempt = 0;; ++attempt) {
      try {
        if (decode(picture, epoch, place, batch, scratch)) return;
        if (attempt == kReplacements) {
          throw Error("InvalidDataset", dataset_->name(picture), "is of an identity that was removed",
                      "pictures of others; " + std::to_string(kReplacements) + " drawn before it cannot be used");
        }
      } catch (const BadPicture& error) {
        note_bad(picture, error);
        if (attempt == kReplacements) {
          throw Error(
              "InvalidDataset", error.subject, error.found,
              "a picture that can be used; " + std::to_string(kReplacements) + " others drawn before it cannot");
        }
      }
      picture =
          static_cast<int64_t>(hash_words({options_.seed, kReplacement, epoch, static_cast<uint64_t>(drawn), attempt}) %
                               static_cast<uint64_t>(dataset_->size()));
    }
  }

  // Remembers a bad picture. Throws Error(InvalidDataset) when there are more than max_bad.
  void note_bad(int64_t picture, const BadPicture& error) {
    std::lock_guard lock(replaced_mutex_);
    const bool is_new = bad_.try_emplace(picture, error.subject + ": " + error.found).second;
    if (is_new) replaced_.push_back({picture, error.subject, error.found});
    if (static_cast<int64_t>(bad_.size()) <= options_.max_bad) return;
    constexpr size_t kNamed = 3;
    std::string named;
    size_t count = 0;
    for (const auto& [number, text] : bad_) {
      if (count++ == kNamed) break;
      named += (named.empty() ? "" : "; ") + text;
    }
    throw Error("InvalidDataset", "dataset.maxBadPictures", std::to_string(bad_.size()) + " bad pictures: " + named,
                "at most " + std::to_string(options_.max_bad) + " of the dataset's " +
                    counted(dataset_->size(), "picture") + "; facetrain dataset check lists them");
  }

  // The label that a picture counts as, or kRemoved.
  int64_t label_of(int64_t picture) const {
    const int64_t label = dataset_->label(picture);
    if (!options_.retired) return label;
    const auto found = options_.retired->find(label);
    return found == options_.retired->end() ? label : found->second;
  }

  // False, and nothing is done, if the picture's identity was removed.
  bool decode(int64_t picture, uint64_t epoch, int64_t place, Batch& batch, std::vector<uint8_t>& scratch) const {
    const int64_t label = label_of(picture);
    if (label == kRemoved) return false;
    const auto draw = [&](Stream stream) {
      return hash_words({options_.seed, stream, epoch, static_cast<uint64_t>(picture)});
    };
    const auto shift = [&](Stream stream) {
      return static_cast<int>(draw(stream) % static_cast<uint64_t>(2 * options_.shift + 1)) - options_.shift;
    };
    const Augmentation augmentation{
        .mirror = options_.flip && (draw(kFlip) & 1), .dy = shift(kShiftY), .dx = shift(kShiftX)};

    batch.labels[static_cast<size_t>(place)] = label;
    const int height = dataset_->height(), width = dataset_->width();
    uint8_t* const out = batch.pixels.data() + place * picture_bytes_;
    uint8_t* const decoded = augmentation.changes() ? scratch.data() : out;
    decode_picture(dataset_->encoded(picture), height, width, options_.bgr, decoded, "InvalidDataset",
                   [&] { return dataset_->name(picture); });
    if (augmentation.changes()) augment(decoded, height, width, augmentation, out);

    // Number 0 of a stream's sequence decides whether, number 1 is the key of how.
    const auto happens = [&](Stream stream, double probability) {
      return std::ldexp(static_cast<double>(sequence_number(draw(stream), 0) >> 11), -53) < probability;
    };
    const auto key = [&](Stream stream) { return sequence_number(draw(stream), 1); };
    if (happens(kCrop, options_.crop)) crop(draw_crop(key(kCrop), height, width), height, width, out);
    if (happens(kLowResolution, options_.low_resolution))
      lower_resolution(draw_low_resolution(key(kLowResolution), height, width), height, width, out);
    if (happens(kColorJitter, options_.color_jitter))
      jitter_color(draw_color_jitter(key(kColorJitter)), height, width, options_.bgr, out);
    return true;
  }

  const std::shared_ptr<const Dataset> dataset_;
  const LoaderOptions options_;
  const BatchPart part_;
  const int64_t batch_;  // pictures of this rank in a step
  const int64_t picture_bytes_;
  const int64_t steps_per_epoch_;

  // Guards the members below. The pixels and labels of a picture are written without it by the thread that claimed it.
  std::mutex mutex_;
  std::condition_variable room_, complete_;
  std::vector<Slot> ring_;  // of kAhead
  int64_t next_;            // the step that next() returns
  int64_t claimed_ = 0;     // pictures claimed since first_step
  bool stopping_ = false;

  std::mutex replaced_mutex_;           // guards the two members below
  std::map<int64_t, std::string> bad_;  // by number
  std::vector<UnusablePicture> replaced_;

  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Loader> make_loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options) {
  return std::make_unique<RingLoader>(std::move(dataset), options);
}

}  // namespace facetrain
