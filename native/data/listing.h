// The list of the pictures of an image folder or of tar shards: where each picture is, and its label. It is made by
// reading the folders or the shards (image_folder.h, tar_shards.h), or read from the file facetrain.index, to which
// `facetrain dataset index` writes it. 16 bytes a picture, and the names.
//
// facetrain.index, little endian: Header, `pictures` Entry, `sources` Source, `names` bytes. Names end with a zero
// byte. The file is mapped, so the ranks of a machine share one copy in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/picture.h"
#include "data/recordio.h"

namespace facetrain {

constexpr const char* kIndexFile = "facetrain.index";
constexpr int64_t kMaxLabel = (int64_t{1} << 31) - 2;  // then the number of identities fits an int32

class Listing {
 public:
  enum Kind : uint32_t { kImageFolder = 1, kTarShards = 2 };

  struct Entry {
    uint32_t source;  // the folder or shard that the picture is in
    uint32_t label;
    uint64_t place;  // image folder: where in the names the file's name begins; shard: byte of the member's header
  };

  virtual ~Listing() = default;
  Kind kind() const { return kind_; }
  int64_t identities() const { return identities_; }
  std::span<const Entry> pictures() const { return pictures_; }
  size_t sources() const { return sources_.size(); }
  std::string source(size_t index) const { return name_at(sources_[index].name); }
  uint64_t source_bytes(size_t index) const { return sources_[index].bytes; }  // of a shard; 0 for a folder
  std::string name_at(uint64_t place) const;

 protected:
  struct Source {
    uint64_t name, bytes;
  };
  Kind kind_{};
  int64_t identities_ = 0;
  std::span<const Entry> pictures_;
  std::span<const Source> sources_;
  std::span<const char> names_;

  friend void write_index(const Listing& listing, const std::string& directory);
};

// Collects a listing. Sources and pictures keep the order in which they are added.
class ListingBuilder {
 public:
  explicit ListingBuilder(Listing::Kind kind);
  ~ListingBuilder();
  // The number of the source.
  uint32_t add_source(const std::string& name, uint64_t bytes);
  // The place of a name, for Entry::place.
  uint64_t add_name(const std::string& name);
  void add_picture(Listing::Entry entry);
  // The number of identities is the largest label and one; of an image folder that of its sources, the folders. The
  // builder is empty afterwards.
  std::unique_ptr<const Listing> build();

 private:
  class Built;
  std::unique_ptr<Built> built_;
};

// The listing in DIRECTORY/facetrain.index. Null when there is no such file. Throws Error(InvalidDataset) when it is
// damaged or of another version.
std::unique_ptr<const Listing> read_index(const std::string& directory);

// The size of the pictures of a dataset that does not state it: that of the first one whose header can be read, of the
// first 64. Throws the error of the first picture when none can.
PictureSize size_of_pictures(const Dataset& dataset);

// Writes DIRECTORY/facetrain.index under a temporary name, flushes and renames it. Throws Error(StorageFailed) or
// Error(DiskFull).
void write_index(const Listing& listing, const std::string& directory);

}  // namespace facetrain
