#include "data/listing.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <optional>

#include "data/output_file.h"
#include "error.h"
#include "random.h"

namespace facetrain {
namespace {

struct Header {
  char magic[8];
  uint32_t kind, identities;
  uint64_t pictures, sources, names;  // `names`: bytes, a multiple of 8
  uint64_t checksum;                  // of all that follows the header, then of the fields before this one
};
static_assert(sizeof(Header) == 48 && sizeof(Listing::Entry) == 16);

constexpr char kMagic[8] = {'F', 'T', 'I', 'N', 'D', 'E', 'X', '1'};

// `bytes` is a multiple of 8.
uint64_t checksum_of(uint64_t hash, const void* data, size_t bytes) {
  const auto* const raw = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, raw + i, sizeof(word));
    hash = splitmix64(hash ^ word);
  }
  return hash;
}

class MappedListing : public Listing {
 public:
  explicit MappedListing(const std::string& path) : file_(path) {
    const auto bytes = file_.bytes();
    const auto refuse = [&](const std::string& found) {
      throw Error("InvalidDataset", path, found, "remove it, and write it again: facetrain dataset index FOLDER");
    };
    Header header;
    if (bytes.size() < sizeof(header)) refuse("is cut short");
    std::memcpy(&header, bytes.data(), sizeof(header));
    if (std::memcmp(header.magic, kMagic, 7) != 0) refuse("is no index of a dataset");
    if (header.magic[7] != kMagic[7]) refuse("is the index of another version of Facetrain");
    const uint64_t rest = bytes.size() - sizeof(header);
    const bool fits = header.pictures <= rest / sizeof(Entry) && header.sources <= rest / sizeof(Source) &&
                      header.names <= rest && header.names % 8 == 0 &&
                      header.pictures * sizeof(Entry) + header.sources * sizeof(Source) + header.names == rest;
    if (!fits) refuse("is cut short");
    const auto* const data = bytes.data() + sizeof(header);
    uint64_t checksum = checksum_of(0, data, rest);
    checksum = checksum_of(checksum, &header, offsetof(Header, checksum));
    if (checksum != header.checksum) refuse("is damaged");
    kind_ = static_cast<Kind>(header.kind);
    identities_ = header.identities;
    pictures_ = {reinterpret_cast<const Entry*>(data), static_cast<size_t>(header.pictures)};
    const auto* const sources = data + header.pictures * sizeof(Entry);
    sources_ = {reinterpret_cast<const Source*>(sources), static_cast<size_t>(header.sources)};
    const auto* const names = sources + header.sources * sizeof(Source);
    names_ = {reinterpret_cast<const char*>(names), static_cast<size_t>(header.names)};
    // The checksum shows what was damaged by chance. This shows what was written by another program.
    const auto valid = [&](const Entry& entry) {
      return entry.source < header.sources && entry.label < header.identities &&
             (kind_ != kImageFolder || entry.place < header.names);
    };
    const bool sound =
        (kind_ == kImageFolder || kind_ == kTarShards) && header.pictures > 0 && !names_.empty() &&
        names_.back() == '\0' && header.identities <= kMaxLabel + 1 &&
        std::all_of(pictures_.begin(), pictures_.end(), valid) &&
        std::all_of(sources_.begin(), sources_.end(), [&](const Source& source) { return source.name < header.names; });
    if (!sound) refuse("has an entry that is out of range");
  }

 private:
  const MappedFile file_;
};

template <typename T>
std::span<const uint8_t> raw(const T* data, size_t count) {
  return {reinterpret_cast<const uint8_t*>(data), count * sizeof(T)};
}

}  // namespace

std::string Listing::name_at(uint64_t place) const {
  const auto rest = names_.subspan(static_cast<size_t>(place));
  return {rest.data(), strnlen(rest.data(), rest.size())};
}

class ListingBuilder::Built : public Listing {
 public:
  void finish() {
    all_names.resize((all_names.size() + 8) / 8 * 8);  // at least one zero at the end
    for (const Entry& entry : entries) identities_ = std::max<int64_t>(identities_, int64_t{entry.label} + 1);
    // A folder that is gone is an identity without pictures.
    if (kind_ == kImageFolder) identities_ = static_cast<int64_t>(all_sources.size());
    pictures_ = entries;
    sources_ = all_sources;
    names_ = all_names;
  }
  void set(Kind kind) { kind_ = kind; }

  std::vector<Entry> entries;
  std::vector<Source> all_sources;
  std::vector<char> all_names;
};

ListingBuilder::ListingBuilder(Listing::Kind kind) : built_(std::make_unique<Built>()) { built_->set(kind); }
ListingBuilder::~ListingBuilder() = default;

uint64_t ListingBuilder::add_name(const std::string& name) {
  const auto place = static_cast<uint64_t>(built_->all_names.size());
  built_->all_names.insert(built_->all_names.end(), name.c_str(), name.c_str() + name.size() + 1);
  return place;
}

uint32_t ListingBuilder::add_source(const std::string& name, uint64_t bytes) {
  built_->all_sources.push_back({add_name(name), bytes});
  return static_cast<uint32_t>(built_->all_sources.size() - 1);
}

void ListingBuilder::add_picture(Listing::Entry entry) { built_->entries.push_back(entry); }

std::unique_ptr<const Listing> ListingBuilder::build() {
  built_->finish();
  return std::move(built_);
}

std::unique_ptr<const Listing> read_index(const std::string& directory) {
  const std::string path = directory + "/" + kIndexFile;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return nullptr;
  return std::make_unique<MappedListing>(path);
}

PictureSize size_of_pictures(const Dataset& dataset) {
  std::optional<BadPicture> first;
  for (int64_t picture = 0; picture < std::min<int64_t>(dataset.size(), 64); ++picture) {
    try {
      return size_of_picture(dataset.encoded(picture), "InvalidDataset", dataset.name(picture));
    } catch (const BadPicture& error) {
      if (!first) first.emplace(error);
    }
  }
  throw *first;
}

void write_index(const Listing& listing, const std::string& directory) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.kind = listing.kind_;
  header.identities = static_cast<uint32_t>(listing.identities_);
  header.pictures = listing.pictures_.size();
  header.sources = listing.sources_.size();
  header.names = listing.names_.size();
  header.checksum = checksum_of(0, listing.pictures_.data(), listing.pictures_.size_bytes());
  header.checksum = checksum_of(header.checksum, listing.sources_.data(), listing.sources_.size_bytes());
  header.checksum = checksum_of(header.checksum, listing.names_.data(), listing.names_.size());
  header.checksum = checksum_of(header.checksum, &header, offsetof(Header, checksum));
  OutputFile file(directory + "/" + kIndexFile);
  file.write(raw(&header, 1));
  file.write(raw(listing.pictures_.data(), listing.pictures_.size()));
  file.write(raw(listing.sources_.data(), listing.sources_.size()));
  file.write(raw(listing.names_.data(), listing.names_.size()));
  file.complete();
}

}  // namespace facetrain
