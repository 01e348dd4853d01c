// Training pictures: a dataset's, in one of three layouts, decoded ahead of use on the loader's own threads. Knows
// neither torch nor Node.
//
// The pictures of a step are a pure function of (seed, step). Each epoch has a permutation of all pictures, which is
// cut into global batches; a global batch is cut into `size` consecutive parts, one for each rank (batch_part.h). So
// any number of ranks sees the same global batch, and a resumed run continues where the first one stopped. Pictures at
// an epoch's end that do not fill a global batch are dropped.
//
// A picture that cannot be used (BadPicture), or is of an identity that was removed, is replaced by another one, which
// is drawn by (seed, epoch, the bad picture). All other pictures keep their places.
#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

namespace facetrain {

// The pictures of a folder: insightface's RecordIO (dataset.cc), an image folder (image_folder.h) or tar shards
// (tar_shards.h). Their order is fixed, and each can be read at any time. Thread-safe.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;        // number of pictures
  virtual int64_t identities() const = 0;  // as the file `property` states; otherwise the largest label and one
  virtual int height() const = 0;
  virtual int width() const = 0;
  // In [0, identities()). Throws BadPicture (picture.h) for a damaged record, and Error(InvalidDataset) for another
  // label.
  virtual int64_t label(int64_t picture) const = 0;
  // The encoded picture, see picture.h. Throws BadPicture with its name when this picture cannot be used, and
  // Error(InvalidDataset) when the storage fails.
  virtual std::vector<uint8_t> encoded(int64_t picture) const = 0;
  // Asks the system to read the picture from disk in the background.
  virtual void will_need(int64_t picture) const = 0;
  // Names the picture in messages: "DIR/train.rec, record 7 at byte 1234", "DIR/ID/a.jpg", "DIR/0.tar, a.jpg at byte
  // 0".
  virtual std::string name(int64_t picture) const = 0;
  // Size of the files that hold pictures. Takes a system call for each picture of an image folder.
  virtual int64_t bytes() const = 0;
  // Whether label() reads the picture's record. Otherwise labels come from a list that is in memory.
  virtual bool labels_are_read() const { return true; }
  // The name of an identity: its folder's in an image folder, otherwise its label.
  virtual std::string identity(int64_t label) const { return std::to_string(label); }
};

// Finds the layout by what is in the folder: train.rec, train.idx or property; otherwise *.tar; otherwise folders.
// Reads facetrain.index if it is there, otherwise lists the folders, or the shards, now. Throws Error(InvalidDataset)
// when it is of no layout, a file is missing, or its contents are invalid; decodes nothing.
std::shared_ptr<const Dataset> open_dataset(const std::string& directory);

// What became of identities that are no longer trained, by label: the label of the identity that they were merged into,
// or kRemoved.
using RetiredLabels = std::unordered_map<int64_t, int64_t>;
constexpr int64_t kRemoved = -1;

// No defaults: those that users see are in api/src/facetrainjob.ts.
struct LoaderOptions {
  int64_t global_batch;  // pictures of all ranks in a step; `size` or more
  int rank, size;
  // Pictures that stay together on one rank: a micro-batch. It divides global_batch into `size` or more. 0: single
  // ones.
  int64_t micro_batch = 0;
  uint64_t seed;
  bool flip;               // mirror half of the pictures
  int shift;               // largest random translation in pixels; the border's pixels are repeated
  bool bgr;                // order of channels in Batch::pixels
  int threads;             // that decode
  int64_t max_bad;         // different pictures that may be replaced
  int64_t first_step = 0;  // of the run; steps count from 0 over all epochs
  std::shared_ptr<const RetiredLabels> retired = nullptr;  // null: none
  // Probabilities of what degrade.h does to a picture, in this order, after mirroring and translation.
  double crop = 0, low_resolution = 0, color_jitter = 0;
  // Of the pixels; must outlive the loader and its batches. For example memory that a GPU can read.
  std::pmr::memory_resource* memory = std::pmr::get_default_resource();
};

// A picture that cannot be used: its number in the dataset, its name in messages, and why.
struct UnusablePicture {
  int64_t picture;
  std::string name, reason;
};

// Allocates from a memory resource. Unlike std::pmr::polymorphic_allocator, it goes along when a vector is assigned by
// a move: otherwise the elements would be copied to the memory of the target.
template <class T>
class MovingAllocator {
 public:
  using value_type = T;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;

  MovingAllocator(std::pmr::memory_resource* resource = std::pmr::get_default_resource()) : resource_(resource) {}
  T* allocate(size_t count) { return static_cast<T*>(resource_->allocate(count * sizeof(T), alignof(T))); }
  void deallocate(T* data, size_t count) { resource_->deallocate(data, count * sizeof(T), alignof(T)); }
  // A copy of a vector is in ordinary memory.
  MovingAllocator select_on_container_copy_construction() const { return {}; }
  std::pmr::memory_resource* resource() const { return resource_; }
  bool operator==(const MovingAllocator& other) const { return resource_->is_equal(*other.resource_); }

 private:
  std::pmr::memory_resource* resource_;
};
using Pixels = std::vector<uint8_t, MovingAllocator<uint8_t>>;

struct Batch {
  int64_t step = 0;
  Pixels pixels;                // [b, height, width, 3], b of this rank's batch_part
  std::vector<int64_t> labels;  // [b]
};

class Loader {
 public:
  virtual ~Loader() = default;
  virtual int64_t steps_per_epoch() const = 0;
  // Waits for the batch of the next step and returns it, from first_step on, without end. Throws the error of the first
  // picture in the batch that has one: a wrong label, or one bad picture more than max_bad. The loader stays at that
  // step. `used` is an earlier batch whose memory the loader may use again: new memory costs a page fault for each
  // page.
  virtual Batch next(Batch used = {}) = 0;
  // Whether next() returns, or throws, without waiting.
  virtual bool is_ready() = 0;
  // The pictures that were replaced since the last call, each once; also those of batches that are decoded ahead.
  // Thread-safe.
  virtual std::vector<UnusablePicture> take_replaced() = 0;
};

// Throws Error(InvalidDataset) when the dataset has fewer pictures than a global batch.
std::unique_ptr<Loader> make_loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options);

}  // namespace facetrain
