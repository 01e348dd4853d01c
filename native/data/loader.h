// Training pictures: insightface's RecordIO read through mmap, decoded ahead of use on threads of its own.
//
// Which pictures make up step s is a pure function of (seed, epoch, s): the epoch's permutation of all pictures is cut
// into global batches, each global batch into `size` consecutive parts, rank r taking part r. So any number of ranks
// sees the same global batch, and a resumed run goes on where the first one stopped. What is left at an epoch's end is
// dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace facetrain {

// A folder with train.rec, train.idx and property. Thread-safe once open.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;        // pictures
  virtual int64_t identities() const = 0;  // of `property`
  virtual int height() const = 0;
  virtual int width() const = 0;
  virtual int64_t label(int64_t picture) const = 0;
  // The encoded picture. Throws Error(InvalidDataset) naming file, record and offset when the record is damaged.
  virtual std::vector<uint8_t> encoded(int64_t picture) const = 0;
  // Has the system read the picture from disk meanwhile.
  virtual void will_need(int64_t picture) const = 0;
  // For messages: "DIR/train.rec, record 7 at byte 1234".
  virtual std::string name(int64_t picture) const = 0;
};

// Throws Error(InvalidDataset).
std::shared_ptr<const Dataset> open_dataset(const std::string& directory);

struct LoaderOptions {
  int64_t global_batch = 0;
  int rank = 0;
  int size = 1;
  uint64_t seed = 0;
  bool flip = true;
  int shift = 0;     // largest random translation in pixels; what comes in from outside is the border's colour
  bool bgr = false;  // order of channels in Batch::pixels
  int threads = 2;
  int64_t first_step = 0;
};

struct Batch {
  int64_t step = 0;
  std::vector<uint8_t> pixels;  // [b, height, width, 3]
  std::vector<int64_t> labels;  // [b]
};

class Loader {
 public:
  virtual ~Loader() = default;
  virtual int64_t steps_per_epoch() const = 0;
  // The batch of the next step, from first_step on without end. Throws what a decoding thread threw.
  virtual Batch next() = 0;
};

std::unique_ptr<Loader> make_loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options);

// Writes height x width x 3 bytes. Throws Error(code, subject, ...) when it is no JPEG or of another size.
void decode_jpeg(std::span<const uint8_t> encoded, int height, int width, bool bgr, uint8_t* out,
                 const std::string& code, const std::string& subject);

}  // namespace facetrain
