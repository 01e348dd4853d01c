// insightface's dataset: train.rec (the records), train.idx (key and byte offset of each), property (identities,
// height, width).
//
// A record's payload begins with MXNet's IRHeader: u32 flag, f32 label, u64 id, u64 id2. With flag > 0, `flag` f32
// labels follow, and the first of these is the label. If record 0 has labels and no picture, it is a header: its first
// label is the key after the last picture, keys 1 .. N are the pictures, and later keys are records of the identities.
// Otherwise every record is a picture.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>

#include "counted.h"
#include "data/file_kind.h"
#include "data/labels_file.h"
#include "data/loader.h"
#include "data/open_dataset.h"
#include "data/picture.h"
#include "data/recordio.h"
#include "error.h"

namespace facetrain {
namespace {

// Labels and the header's counts are float32, which represents every integer up to this one. It also stands for the
// next one, which is rounded to it.
constexpr int64_t kExactInFloat = 1 << 24;

// A bit for each identity is kept while a dataset is checked.
constexpr int64_t kMostIdentities = 1'000'000'000;

[[noreturn]] void refuse_kind(const std::string& path, const FileKind& kind, const std::string& expected) {
  throw Error("InvalidDataset", path, "is " + std::string(kind.name), expected + "; " + std::string(kind.remedy));
}

// Windows' editors write it at the start of a text.
std::span<const uint8_t> without_byte_order_mark(std::span<const uint8_t> text) {
  constexpr uint8_t kMark[] = {0xef, 0xbb, 0xbf};
  return text.size() >= 3 && std::equal(kMark, kMark + 3, text.begin()) ? text.subspan(3) : text;
}

struct Property {
  int64_t identities = 0;
  int height = 0, width = 0;
};

// Parses "identities,height,width"; shuffled datasets have more fields after these.
Property read_property(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = without_byte_order_mark(file.bytes());
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  const char* const end = text + bytes.size();
  int64_t values[3];
  for (int64_t& value : values) {
    while (text < end && *text == ' ') ++text;
    const auto [next, error] = std::from_chars(text, end, value);
    const bool separated = next == end || *next == ',' || *next == '\n' || *next == '\r' || *next == ' ';
    if (error != std::errc() || value < 1 || !separated) {
      const std::string expected = "three positive numbers: identities,height,width";
      if (const FileKind* kind = name_kind(file.bytes())) refuse_kind(path, *kind, expected);
      const std::string line(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 60));
      throw Error("InvalidDataset", path, "'" + line.substr(0, line.find_first_of("\r\n")) + "'", expected);
    }
    text = next;
    if (text < end && *text == ',') ++text;
  }
  if (values[0] > kMostIdentities) {
    throw Error("InvalidDataset", path, std::to_string(values[0]) + " identities",
                "at most " + std::to_string(kMostIdentities));
  }
  if (values[1] > 4096 || values[2] > 4096) {
    throw Error("InvalidDataset", path,
                "pictures of " + std::to_string(values[1]) + " x " + std::to_string(values[2]) + " pixels",
                "at most 4096 x 4096");
  }
  return {values[0], static_cast<int>(values[1]), static_cast<int>(values[2])};
}

struct Entry {
  uint64_t key, offset;
};

// The entries of train.idx, sorted by key.
std::vector<Entry> read_index(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = without_byte_order_mark(file.bytes());
  const char* const start = reinterpret_cast<const char*>(bytes.data());
  const char* const end = start + bytes.size();
  std::vector<Entry> entries;
  for (const char* text = start; text < end;) {
    Entry entry{};
    const auto key = std::from_chars(text, end, entry.key);
    const bool tab = key.ec == std::errc() && key.ptr < end && *key.ptr == '\t';
    const auto offset = tab ? std::from_chars(key.ptr + 1, end, entry.offset) : key;
    const char* next = offset.ptr;
    if (next < end && *next == '\r') ++next;
    if (!tab || offset.ec != std::errc() || (next < end && *next != '\n')) {
      const std::string expected = "each line is a key, a tab, and a byte offset into train.rec";
      const FileKind* const kind = entries.empty() ? name_kind(file.bytes()) : nullptr;
      if (kind != nullptr) refuse_kind(path, *kind, expected);
      throw Error("InvalidDataset", path, "line " + std::to_string(entries.size() + 1) + " is no index entry",
                  expected);
    }
    entries.push_back(entry);
    text = next + 1;
  }
  const auto by_key = [](const Entry& a, const Entry& b) { return a.key < b.key; };
  if (!std::is_sorted(entries.begin(), entries.end(), by_key)) std::sort(entries.begin(), entries.end(), by_key);
  const auto twice =
      std::adjacent_find(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.key == b.key; });
  if (twice != entries.end()) {
    throw Error("InvalidDataset", path, "key " + std::to_string(twice->key) + " is there twice", "each key once");
  }
  return entries;
}

struct Record {
  uint32_t flag = 0;
  float label = 0;                 // the first label
  std::span<const uint8_t> image;  // empty in a header and in a record of an identity
};

class RecordDataset : public Dataset {
 public:
  // Without labels of more identities than float32 can tell apart when `labels_follow`: they are about to be written.
  explicit RecordDataset(const std::string& directory, bool labels_follow = false)
      : property_path_(directory + "/property"),
        property_(lacks_only_property(directory) ? Property{} : read_property(property_path_)),
        entries_(read_index(directory + "/train.idx")),
        file_(directory + "/train.rec") {
    const FileKind* const kind = name_kind(file_.bytes());
    if (kind != nullptr) refuse_kind(file_.path(), *kind, "a file of RecordIO records");
    const auto& last = *std::max_element(entries_.begin(), entries_.end(),
                                         [](const Entry& a, const Entry& b) { return a.offset < b.offset; });
    if (last.offset >= file_.bytes().size()) {
      throw Error("InvalidDataset", file_.path(),
                  "has " + std::to_string(file_.bytes().size()) + " bytes, but train.idx places record " +
                      std::to_string(last.key) + " at byte " + std::to_string(last.offset),
                  "the file was cut short, or train.idx belongs to another");
    }
    std::vector<uint8_t> joined;
    parse(last, joined);  // throws if the file ends inside its last record
    keep_pictures();
    if (property_.identities == 0) explain_missing_property();
    if (!labels_follow) labels_ = LabelsFile::open(directory, size());
    if (property_.identities > kExactInFloat && !labels_ && !labels_follow) {
      throw Error("InvalidDataset", property_path_, std::to_string(property_.identities) + " identities",
                  "at most 16777216 without the file train.labels: the labels in train.rec are 32-bit floats, and "
                  "exact only up to there; facetrain dataset index " +
                      directory + " --labels LIST writes it from a list of keys and labels");
    }
    file_.expect_random_access();
  }

  int64_t size() const override { return static_cast<int64_t>(entries_.size()); }
  // The picture of a record; -1 when the key is of no picture.
  int64_t picture_of(uint64_t key) const {
    const auto found =
        std::lower_bound(entries_.begin(), entries_.end(), key, [](const Entry& e, uint64_t k) { return e.key < k; });
    return found == entries_.end() || found->key != key ? -1 : found - entries_.begin();
  }

  int64_t identities() const override { return property_.identities; }
  int height() const override { return property_.height; }
  int width() const override { return property_.width; }

  int64_t label(int64_t picture) const override {
    std::vector<uint8_t> joined;
    const Entry& entry = entries_[static_cast<size_t>(picture)];
    const Record record = parse_picture(entry, joined);
    if (labels_) {
      const int64_t label = labels_->label(picture);
      if (label < 0 || label >= property_.identities) refuse_label(entry, std::to_string(label));
      return label;
    }
    if (!(record.label >= 0 && record.label < static_cast<float>(property_.identities)) ||
        record.label != std::floor(record.label)) {
      char text[32];
      std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(record.label));
      refuse_label(entry, text);
    }
    return static_cast<int64_t>(record.label);
  }

  std::vector<uint8_t> encoded(int64_t picture) const override {
    std::vector<uint8_t> joined;
    const Record record = parse_picture(entries_[static_cast<size_t>(picture)], joined);
    return {record.image.begin(), record.image.end()};
  }

  // Takes the start of the next key's record as the end of this one, which holds for all datasets that we know. If it
  // does not, less or nothing is read ahead.
  void will_need(int64_t picture) const override {
    constexpr uint64_t kLongest = 1 << 18;  // bytes read ahead at most
    const auto i = static_cast<size_t>(picture);
    const uint64_t begin = entries_[i].offset, file_end = file_.bytes().size();
    const uint64_t end = i + 1 < entries_.size() ? std::min(entries_[i + 1].offset, file_end) : file_end;
    file_.will_need(begin, std::min(end, begin + kLongest));
  }

  std::string name(int64_t picture) const override { return name(entries_[static_cast<size_t>(picture)]); }
  int64_t bytes() const override { return static_cast<int64_t>(file_.bytes().size()); }

 private:
  std::string name(const Entry& entry) const {
    return file_.path() + ", record " + std::to_string(entry.key) + " at byte " + std::to_string(entry.offset);
  }

  // About one picture. Training continues without it.
  [[noreturn]] void refuse(const Entry& entry, const std::string& found, const std::string& allowed) const {
    throw BadPicture("InvalidDataset", name(entry), found, allowed);
  }

  [[noreturn]] void refuse_label(const Entry& entry, const std::string& label) const {
    throw Error("InvalidDataset", name(entry), "its label is " + label,
                "property has " + counted(property_.identities, "identity") +
                    ", so labels are whole numbers from 0 to " + std::to_string(property_.identities - 1));
  }

  static bool lacks_only_property(const std::string& directory) {
    std::error_code error;
    const auto exists = [&](const char* file) { return std::filesystem::exists(directory + file, error); };
    return !exists("/property") && exists("/train.idx") && exists("/train.rec");
  }

  // Says what the file would contain: the records of identities or the largest label, and the first picture's size.
  [[noreturn]] void explain_missing_property() const {
    std::string line = "identities,height,width", source;
    try {
      int64_t identities = identity_records_;
      std::vector<uint8_t> joined;
      for (const Entry& entry : entries_) {
        if (identity_records_ > 0) break;
        const float label = parse_picture(entry, joined).label;
        if (!(label >= 0 && label < static_cast<float>(kExactInFloat)) || label != std::floor(label)) {
          throw std::runtime_error("no class");
        }
        identities = std::max(identities, static_cast<int64_t>(label) + 1);
      }
      const PictureSize size = size_of_picture(encoded(0), "InvalidDataset", name(int64_t{0}));
      line = std::to_string(identities) + "," + std::to_string(size.height) + "," + std::to_string(size.width);
      source = identity_records_ > 0 ? ", as the records of identities and the first picture have them"
                                     : ", as the labels and the first picture have them";
    } catch (const std::runtime_error&) {  // the records do not say it
    }
    throw Error("InvalidDataset", property_path_, "is missing",
                "a text file of one line: " + line + " (identities, height, width" + source + ")");
  }

  Record parse(const Entry& entry, std::vector<uint8_t>& joined) const {
    constexpr size_t kHeader = 24;
    std::span<const uint8_t> payload;
    try {
      payload = read_record(file_.bytes(), entry.offset, joined);
    } catch (const std::runtime_error& error) {
      refuse(entry, error.what(), "the file is damaged, or train.idx belongs to another");
    }
    if (payload.size() < kHeader) {
      refuse(entry, "it has " + std::to_string(payload.size()) + " bytes", "a record begins with a header of 24 bytes");
    }
    Record record;
    std::memcpy(&record.flag, payload.data(), sizeof(record.flag));
    std::memcpy(&record.label, payload.data() + 4, sizeof(record.label));
    payload = payload.subspan(kHeader);
    if (record.flag > 0) {
      if (payload.size() / sizeof(float) < record.flag) {
        refuse(entry,
               "its header announces " + counted(record.flag, "label") + " in " + std::to_string(payload.size()) +
                   " bytes",
               "four bytes for each label");
      }
      std::memcpy(&record.label, payload.data(), sizeof(record.label));
      payload = payload.subspan(record.flag * sizeof(float));
    }
    record.image = payload;
    return record;
  }

  Record parse_picture(const Entry& entry, std::vector<uint8_t>& joined) const {
    const Record record = parse(entry, joined);
    if (record.image.empty()) refuse(entry, "it has no picture", "an encoded picture after the header");
    return record;
  }

  // Whether the record has labels and no picture, as the header and the records of identities have.
  bool has_only_labels(const Entry& entry, uint32_t least = 1) const {
    std::vector<uint8_t> joined;
    try {
      const Record record = parse(entry, joined);
      return record.flag >= least && record.image.empty();
    } catch (const BadPicture&) {  // damaged
      return false;
    }
  }

  // Removes the header and the records of identities from entries_.
  void keep_pictures() {
    const bool has_header = entries_.front().key == 0 && has_only_labels(entries_.front());
    if (!has_header) {
      if (has_only_labels(entries_.back(), 2)) {  // the first and the last key of its pictures
        throw Error("InvalidDataset", name(entries_.back()),
                    "it is a record of an identity, but the header that counts the pictures (record 0) is missing",
                    "take record 0 from the original train.rec and train.idx, or leave out the records of identities");
      }
      return;
    }
    std::vector<uint8_t> joined;
    const double header = parse(entries_.front(), joined).label;
    const auto pictures = entries_.begin() + 1;
    const auto at_key = [&](double key) {  // keys are below 2^64
      const auto wanted = static_cast<uint64_t>(std::clamp(key, 0.0, 1e19));
      return std::lower_bound(pictures, entries_.end(), wanted, [](const Entry& e, uint64_t k) { return e.key < k; });
    };
    auto end = at_key(header);
    if (!(header < static_cast<double>(kExactInFloat))) {
      // float32 rounded the key, by less than the distance to the next float. The first record near it that is an
      // identity's is the end. If none is, the header is wrong: pictures come first, then records of identities.
      const auto is_identity = [&](const Entry& entry) { return has_only_labels(entry); };
      const auto value = static_cast<float>(header);
      const double step = std::nextafter(value, std::numeric_limits<float>::infinity()) - header;
      const auto first = at_key(header - step), after = at_key(header + step + 1);
      end = std::find_if(first, after, is_identity);
      if (end == after && (first == after || after != entries_.end())) {
        end = std::partition_point(pictures, entries_.end(), [&](const Entry& entry) { return !is_identity(entry); });
      }
    }
    identity_records_ = entries_.end() - end;
    if (end - entries_.begin() < 2) refuse(entries_.front(), "it is a header of no pictures", "at least one picture");
    entries_.erase(end, entries_.end());
    entries_.erase(entries_.begin());
  }

  const std::string property_path_;
  const Property property_;  // identities is 0 when the file is missing
  std::vector<Entry> entries_;
  int64_t identity_records_ = 0;
  const MappedFile file_;
  std::optional<LabelsFile> labels_;
};

}  // namespace

LabelledPictures write_labels_from(const std::string& list, const std::string& directory) {
  const RecordDataset dataset(directory, true);
  const MappedFile file(list);
  const auto bytes = without_byte_order_mark(file.bytes());
  const char* text = reinterpret_cast<const char*>(bytes.data());
  const char* const end = text + bytes.size();
  std::vector<int64_t> labels(static_cast<size_t>(dataset.size()), -1);
  for (int64_t number = 1; text < end; ++number) {
    const char* const line_end = std::find(text, end, '\n');
    const auto refuse = [&](const std::string& found, const std::string& allowed) {
      throw Error("InvalidDataset", list + ", line " + std::to_string(number), found, allowed);
    };
    uint64_t key = 0;
    int64_t label = 0;
    const auto after_key = std::from_chars(text, line_end, key);
    const bool tab = after_key.ec == std::errc() && after_key.ptr != line_end && *after_key.ptr == '\t';
    const auto after_label = std::from_chars(tab ? after_key.ptr + 1 : line_end, line_end, label);
    const char* next = after_label.ptr;
    if (next < line_end && *next == '.') next = std::find_if(next + 1, line_end, [](char c) { return c != '0'; });
    if (after_label.ec != std::errc() || (next < line_end && *next != '\t' && *next != '\r')) {
      const FileKind* const kind = number == 1 ? name_kind(file.bytes()) : nullptr;
      if (kind != nullptr) refuse_kind(list, *kind, "a list of keys and labels");
      refuse("'" + std::string(text, std::min<size_t>(60, static_cast<size_t>(line_end - text))) + "'",
             "a key of train.idx, a tab, and a whole number, as MXNet's im2rec writes them");
    }
    const int64_t picture = dataset.picture_of(key);
    if (picture >= 0) {
      if (label < 0 || label >= dataset.identities()) {
        refuse("label " + std::to_string(label), "0 to " + std::to_string(dataset.identities() - 1) + ", by property");
      }
      int64_t& known = labels[static_cast<size_t>(picture)];
      if (known >= 0) refuse("key " + std::to_string(key) + " again", "each key once");
      known = label;
    }
    text = line_end == end ? end : line_end + 1;
  }
  const auto missing = std::find(labels.begin(), labels.end(), -1);
  if (missing != labels.end()) {
    throw Error("InvalidDataset", list, "has no line for " + dataset.name(missing - labels.begin()),
                "a line for each picture: its key, a tab, and its label");
  }
  write_labels(directory, labels);
  return {dataset.size(), dataset.identities()};
}

std::shared_ptr<const Dataset> open_record_dataset(const std::string& directory) {
  return std::make_shared<RecordDataset>(directory);
}

}  // namespace facetrain
