#include "data/tar_shards.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <stdexcept>

#include "data/image_folder.h"
#include "data/listed_dataset.h"
#include "data/tar.h"
#include "error.h"

namespace facetrain {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLayout =
    "a shard has, next to each other, KEY.jpg (or .png, .webp) and its label: KEY.cls, or KEY.json with \"label\"";
constexpr size_t kMostShards = 1 << 15;  // each is mapped, and Linux allows a process 65,530 mappings

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

std::string whole_numbers() { return "labels are whole numbers from 0 to " + std::to_string(kMaxLabel); }

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// At most 40 bytes of a text, for a message.
std::string shown(std::string_view text) {
  std::string result(text.substr(0, 40));
  std::replace_if(
      result.begin(), result.end(), [](unsigned char c) { return c < 32; }, ' ');
  return "'" + result + (text.size() > 40 ? "…'" : "'");
}

int64_t label_of_text(std::string_view text) {
  text = trimmed(text);
  int64_t label = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), label);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || label < 0 || label > kMaxLabel) {
    fail("the label is " + shown(text) + "; " + whole_numbers());
  }
  return label;
}

// Reads just enough of JSON (RFC 8259) to find one member of an object: other values are skipped by their brackets and
// quotes, and not validated.
class JsonScanner {
 public:
  explicit JsonScanner(std::string_view text) : text_(trimmed(text)) {}

  std::optional<int64_t> label() {
    std::optional<int64_t> label;
    expect('{');
    if (next() == '}') return label;
    for (;;) {
      const std::string_view key = string();
      expect(':');
      const std::string_view value = skip_value();
      if (key == "label") label = label_of_text(value);
      if (next() == '}') return label;
      expect(',');
    }
  }

 private:
  // The next character that is no space.
  char next() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
    if (at_ == text_.size()) fail("it is no JSON object");
    return text_[at_];
  }

  void expect(char c) {
    if (next() != c) fail("it is no JSON object");
    ++at_;
  }

  // What is between the quotes, with its escapes.
  std::string_view string() {
    expect('"');
    const size_t begin = at_;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\\') ++at_;
    }
    if (at_ >= text_.size()) fail("it is no JSON object");
    return text_.substr(begin, at_++ - begin);
  }

  std::string_view skip_value() {
    int depth = 0;
    next();
    const size_t begin = at_;
    for (;;) {
      const char c = next();
      if (depth == 0 && (c == ',' || c == '}')) break;
      if (c == '"') {
        string();
        continue;
      }
      if (c == '{' || c == '[') ++depth;
      if (c == '}' || c == ']') --depth;
      ++at_;
    }
    return text_.substr(begin, at_ - begin);
  }

  const std::string_view text_;
  size_t at_ = 0;
};

// KEY and extension, in small letters, of a member's name. Empty when it is of no sample.
struct SampleName {
  std::string key, extension;
};

SampleName sample_name(const std::string& name) {
  const size_t slash = name.rfind('/');
  const size_t base = slash == std::string::npos ? 0 : slash + 1;
  const size_t dot = name.find('.', base);
  if (dot == std::string::npos || dot == base) return {};
  SampleName result{name.substr(0, dot), name.substr(dot + 1)};
  std::transform(result.extension.begin(), result.extension.end(), result.extension.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  return result;
}

std::string member_name(const std::string& path, const std::string& name, uint64_t offset) {
  return path + ", " + (name.empty() ? "member" : name) + " at byte " + std::to_string(offset);
}

// Lists one shard.
class ShardScanner {
 public:
  ShardScanner(const MappedFile& file, uint32_t source, ListingBuilder& builder)
      : file_(file), source_(source), builder_(builder) {}

  void run() {
    std::optional<TarMember> member;
    for (uint64_t offset = 0; (member = read(offset)); offset = member->next) {
      if (member->file) add(*member, offset);
    }
    finish();
  }

 private:
  struct Sample {
    std::string key, picture;  // `picture`: the member's name
    uint64_t offset = 0;       // of its header
    std::optional<int64_t> label;
  };

  std::optional<TarMember> read(uint64_t offset) const {
    try {
      return read_tar_member(file_.bytes(), offset);
    } catch (const std::runtime_error& error) {
      throw Error("InvalidDataset", member_name(file_.path(), "", offset), error.what(),
                  "an intact tar archive, as webdataset or GNU tar writes it");
    }
  }

  void add(const TarMember& member, uint64_t offset) {
    const auto [key, extension] = sample_name(member.name);
    if (key.empty()) return;
    if (key != sample_.key) {
      finish();
      sample_ = {.key = key, .picture = {}, .offset = 0, .label = {}};
    }
    const auto refuse = [&](const std::string& found) {
      throw Error("InvalidDataset", member_name(file_.path(), member.name, offset), found, kLayout);
    };
    if (is_picture_name("picture." + extension)) {
      if (!sample_.picture.empty()) refuse("is of one sample with " + sample_.picture);
      sample_.picture = member.name;
      sample_.offset = offset;
    }
    if (extension != "cls" && extension != "json") return;
    std::optional<int64_t> label;
    try {
      const std::string_view text(reinterpret_cast<const char*>(file_.bytes().data()) + member.data,
                                  static_cast<size_t>(member.size));
      label = extension == "cls" ? label_of_text(text) : label_of_json(text);
    } catch (const std::runtime_error& error) {
      refuse(error.what());
    }
    if (label && sample_.label && *label != *sample_.label) {
      refuse("says that the label is " + std::to_string(*label) + ", and the member before it " +
             std::to_string(*sample_.label));
    }
    if (label) sample_.label = label;
  }

  void finish() {
    if (sample_.picture.empty()) return;
    if (!sample_.label) {
      throw Error("InvalidDataset", member_name(file_.path(), sample_.picture, sample_.offset), "has no label",
                  std::string(kLayout) + "; a tar of ID/picture.jpg is unpacked first, and is then an image folder");
    }
    builder_.add_picture({source_, static_cast<uint32_t>(*sample_.label), sample_.offset});
    sample_ = {};
  }

  const MappedFile& file_;
  const uint32_t source_;
  ListingBuilder& builder_;
  Sample sample_;
};

class TarShards : public ListedDataset {
 public:
  TarShards(const std::string& directory, std::unique_ptr<const Listing> listing)
      : ListedDataset(std::move(listing)), shards_(open_all(directory, this->listing())) {
    find_size();
  }

  int64_t bytes() const override {
    uint64_t bytes = 0;
    for (size_t i = 0; i < listing().sources(); ++i) bytes += listing().source_bytes(i);
    return static_cast<int64_t>(bytes);
  }

  std::vector<uint8_t> encoded(int64_t picture) const override {
    const TarMember member = read(picture);
    const auto bytes =
        shard(picture).bytes().subspan(static_cast<size_t>(member.data), static_cast<size_t>(member.size));
    return {bytes.begin(), bytes.end()};
  }

  void will_need(int64_t picture) const override {
    constexpr uint64_t kLongest = 1 << 18, kUsual = 1 << 15;  // bytes read ahead at most, and for the last of a shard
    const auto i = static_cast<size_t>(picture);
    const auto pictures = listing().pictures();
    const bool last = i + 1 == pictures.size() || pictures[i + 1].source != pictures[i].source;
    const uint64_t begin = pictures[i].place, file_end = shard(picture).bytes().size();
    const uint64_t end = last ? std::min(begin + kUsual, file_end) : std::min(pictures[i + 1].place, begin + kLongest);
    shard(picture).will_need(begin, end);
  }

  std::string name(int64_t picture) const override {
    std::string member;
    try {
      member = read(picture).name;
    } catch (const Error&) {
    }
    return member_name(shard(picture).path(), member, entry(picture).place);
  }

 private:
  using Shards = std::vector<std::unique_ptr<const MappedFile>>;

  static Shards open_all(const std::string& directory, const Listing& listing) {
    Shards shards;
    for (size_t i = 0; i < listing.sources(); ++i) {
      auto& shard = shards.emplace_back(std::make_unique<MappedFile>(directory + "/" + listing.source(i)));
      if (shard->bytes().size() != listing.source_bytes(i)) {
        throw Error("InvalidDataset", shard->path(),
                    "has " + std::to_string(shard->bytes().size()) + " bytes, and " + kIndexFile + " is of one with " +
                        std::to_string(listing.source_bytes(i)),
                    "write the index again: facetrain dataset index " + directory);
      }
      shard->expect_random_access();
    }
    return shards;
  }

  const MappedFile& shard(int64_t picture) const { return *shards_[entry(picture).source]; }

  TarMember read(int64_t picture) const {
    const uint64_t offset = entry(picture).place;
    std::optional<TarMember> member;
    std::string found = "the archive ends there";
    try {
      member = read_tar_member(shard(picture).bytes(), offset);
      if (member && !is_picture_name(member->name)) found = "the member there is no picture";
    } catch (const std::runtime_error& error) {
      found = error.what();
    }
    if (!member || !is_picture_name(member->name)) {
      throw Error("InvalidDataset", member_name(shard(picture).path(), "", offset), found,
                  "the shard is damaged, or " + std::string(kIndexFile) + " belongs to another");
    }
    return *member;
  }

  const Shards shards_;
};

}  // namespace

std::optional<int64_t> label_of_json(std::string_view text) { return JsonScanner(text).label(); }

std::vector<std::string> shards_of(const std::string& directory) {
  std::vector<std::string> shards;
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
      std::string name = entry.path().filename().string();
      if (name.ends_with(".tar") && !name.starts_with(".")) shards.push_back(std::move(name));
    }
  } catch (const fs::filesystem_error& error) {
    throw Error("InvalidDataset", directory, "cannot be read (" + error.code().message() + ")",
                "a folder with tar shards");
  }
  std::sort(shards.begin(), shards.end());
  if (shards.size() > kMostShards) {
    throw Error("InvalidDataset", directory, std::to_string(shards.size()) + " shards",
                "at most " + std::to_string(kMostShards) + ": use larger ones, of a gigabyte each");
  }
  return shards;
}

std::unique_ptr<const Listing> list_tar_shards(const std::string& directory) {
  ListingBuilder builder(Listing::kTarShards);
  for (const std::string& name : shards_of(directory)) {
    const MappedFile file(directory + "/" + name);
    ShardScanner(file, builder.add_source(name, file.bytes().size()), builder).run();
  }
  auto listing = builder.build();
  if (listing->pictures().empty()) {
    throw Error("InvalidDataset", directory, "no shard has a picture", kLayout);
  }
  return listing;
}

std::shared_ptr<const Dataset> open_tar_shards(const std::string& directory, std::unique_ptr<const Listing> listing) {
  return std::make_shared<TarShards>(directory, std::move(listing));
}

}  // namespace facetrain
