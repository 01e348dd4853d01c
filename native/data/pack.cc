#include "data/pack.h"

#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "data/listing.h"
#include "data/output_file.h"
#include "error.h"

namespace facetrain {
namespace {

constexpr size_t kBlock = 512;

// The usual extension of an encoded picture, by its first bytes.
const char* extension_of(std::span<const uint8_t> picture) {
  const auto begins = [&](const char* text, size_t at, size_t size) {
    return picture.size() >= at + size && std::memcmp(picture.data() + at, text, size) == 0;
  };
  if (begins("\x89PNG", 0, 4)) return "png";
  if (begins("RIFF", 0, 4) && begins("WEBP", 8, 4)) return "webp";
  if (begins("BM", 0, 2)) return "bmp";
  return "jpg";
}

// Writes one member in the ustar format, without owner and time.
void write_member(OutputFile& file, const std::string& name, std::span<const uint8_t> content) {
  std::array<char, kBlock> header{};
  char* const raw = header.data();
  std::snprintf(raw, 100, "%s", name.c_str());
  std::snprintf(raw + 100, 8, "%07o", 0644u);
  std::snprintf(raw + 108, 8, "%07o", 0u);                 // user
  std::snprintf(raw + 116, 8, "%07o", 0u);                 // group
  std::snprintf(raw + 124, 12, "%011zo", content.size());  // pictures are far below 8 GiB
  std::snprintf(raw + 136, 12, "%011o", 0u);               // time
  std::memset(raw + 148, ' ', 8);                          // the checksum counts as spaces
  raw[156] = '0';
  constexpr char kFormat[8] = {'u', 's', 't', 'a', 'r', '\0', '0', '0'};
  std::memcpy(raw + 257, kFormat, sizeof(kFormat));
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  std::snprintf(raw + 148, 8, "%06o", sum);
  raw[155] = ' ';
  file.write({reinterpret_cast<const uint8_t*>(raw), kBlock});
  file.write(content);
  const std::vector<uint8_t> padding((kBlock - content.size() % kBlock) % kBlock);
  file.write(padding);
}

class ShardWriter {
 public:
  ShardWriter(const std::string& directory, uint64_t shard_bytes)
      : directory_(directory), shard_bytes_(shard_bytes), builder_(Listing::kTarShards) {}

  void add(std::span<const uint8_t> picture, int64_t label) {
    if (!file_) begin();
    char key[32];
    std::snprintf(key, sizeof(key), "%09lld", static_cast<long long>(pictures_++));
    entries_.push_back({0, static_cast<uint32_t>(label), file_->size()});
    write_member(*file_, std::string(key) + "." + extension_of(picture), picture);
    const std::string text = std::to_string(label);
    write_member(*file_, std::string(key) + ".cls", {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    if (file_->size() >= shard_bytes_) end();
  }

  void finish() {
    if (file_) end();
    write_index(*builder_.build(), directory_);
  }

  int64_t pictures() const { return pictures_; }
  int64_t shards() const { return shards_; }

 private:
  void begin() {
    char name[32];
    std::snprintf(name, sizeof(name), "%06lld.tar", static_cast<long long>(shards_++));
    name_ = name;
    file_ = std::make_unique<OutputFile>(directory_ + "/" + name_);
  }

  void end() {
    const std::vector<uint8_t> mark(2 * kBlock);
    file_->write(mark);
    const uint32_t source = builder_.add_source(name_, file_->size());
    file_->complete();
    file_.reset();
    for (Listing::Entry entry : entries_) {
      entry.source = source;
      builder_.add_picture(entry);
    }
    entries_.clear();
  }

  const std::string directory_;
  const uint64_t shard_bytes_;
  ListingBuilder builder_;
  std::unique_ptr<OutputFile> file_;
  std::string name_;
  std::vector<Listing::Entry> entries_;  // of the shard that is being written
  int64_t pictures_ = 0, shards_ = 0;
};

}  // namespace

Packed pack(const Dataset& dataset, std::span<const int64_t> relabel, const std::string& directory,
            uint64_t shard_bytes, std::atomic<int64_t>& done, const std::atomic<bool>& cancelled) {
  constexpr int64_t kAhead = 64;  // pictures that the disk reads ahead
  Packed packed;
  ShardWriter writer(directory, shard_bytes);
  std::optional<Error> first;
  for (int64_t picture = 0; picture < dataset.size(); ++picture, ++done) {
    if (cancelled) throw Cancelled();
    if (picture + kAhead < dataset.size()) dataset.will_need(picture + kAhead);
    try {
      const int64_t label = relabel[static_cast<size_t>(dataset.label(picture))];
      if (label >= 0) writer.add(dataset.encoded(picture), label);
    } catch (const Error& error) {
      if (error.code != "InvalidDataset") throw;
      packed.left_out.emplace_back(error.what());
      if (!first) first.emplace(error);
    }
  }
  if (writer.pictures() == 0) {
    if (first) throw *first;
    throw Error("InvalidDataset", dataset.name(0), "is of a dataset from which no identity was chosen", "at least one");
  }
  writer.finish();
  packed.pictures = writer.pictures();
  packed.shards = writer.shards();
  return packed;
}

}  // namespace facetrain
