// Writes datasets record by record and reads them back: every layout that insightface's datasets have, and every kind
// of damage. Then the loader: order, resuming, augmentation, bounded memory, errors.
#include "data/loader.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include "data/inspect.h"
#include "data/labels_file.h"
#include "data/open_dataset.h"
#include "data/picture.h"
#include "data/recordio.h"
#include "error.h"
#include "random.h"
#include "test/check.h"
#include "test/pictures.h"

using namespace facetrain;
using Bytes = std::vector<uint8_t>;

namespace {

constexpr int kSide = 16;  // pixels

// ---- writing ----

// A JPEG of one color, or gray. Decoded values differ by 2 at most.
Bytes jpeg_of(std::array<uint8_t, 3> color, bool gray = false, int side = kSide) {
  Bytes pixels;
  for (int i = 0; i < side * side; ++i) pixels.insert(pixels.end(), color.begin(), color.begin() + (gray ? 1 : 3));
  return test::encode_jpeg(pixels, side, side, {.colors = gray ? JCS_GRAYSCALE : JCS_RGB});
}

// Left half black, right half white.
Bytes half_white() {
  Bytes pixels;
  for (int i = 0; i < kSide * kSide; ++i) pixels.insert(pixels.end(), 3, i % kSide < kSide / 2 ? 0 : 255);
  return test::encode_jpeg(pixels, kSide, kSide);
}

template <typename T>
void put(Bytes& bytes, T value) {
  const auto* raw = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), raw, raw + sizeof(value));
}

Bytes payload_of(uint32_t flag, std::vector<float> labels, const Bytes& image) {
  Bytes payload;
  put(payload, flag);
  put(payload, flag == 0 ? labels.at(0) : 0.0f);
  put(payload, uint64_t{0});
  put(payload, uint64_t{0});
  for (uint32_t i = 0; i < flag; ++i) put(payload, labels.at(i));
  payload.insert(payload.end(), image.begin(), image.end());
  return payload;
}

void put_part(Bytes& file, uint32_t cflag, std::span<const uint8_t> part) {
  put(file, kRecordMagic);
  put(file, cflag << 29 | static_cast<uint32_t>(part.size()));
  file.insert(file.end(), part.begin(), part.end());
  file.resize((file.size() + 3) / 4 * 4);
}

// Like dmlc-core's RecordIOWriter, splits the payload at every magic at a multiple of four.
void put_record(Bytes& file, const Bytes& payload) {
  size_t begin = 0;
  for (size_t i = 0; i + 4 <= payload.size(); i += 4) {
    if (std::memcmp(payload.data() + i, &kRecordMagic, 4) != 0) continue;
    put_part(file, begin == 0 ? 1 : 2, std::span(payload).subspan(begin, i - begin));
    begin = i + 4;
  }
  put_part(file, begin == 0 ? 0 : 3, std::span(payload).subspan(begin));
}

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/facetrain-loader-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path); }

  void write(const std::string& file, const std::string& text) const { std::ofstream(path + "/" + file) << text; }
  void write(const std::string& file, const Bytes& bytes) const {
    write(file, std::string(bytes.begin(), bytes.end()));
  }

  std::string path;
};

struct Written {
  Bytes rec;
  std::map<int, size_t> offsets;

  void add(int key, const Bytes& payload) {
    offsets[key] = rec.size();
    put_record(rec, payload);
  }
  void save(const Folder& folder, const std::string& property = "10,16,16\n") const {
    std::string idx;
    for (const auto& [key, offset] : offsets) idx += std::to_string(key) + "\t" + std::to_string(offset) + "\n";
    folder.write("train.rec", rec);
    folder.write("train.idx", idx);
    folder.write("property", property);
  }
};

// `count` pictures without header record; picture i has label i % 10 and gray value 2 * i.
Written plain(int count, int first_key = 0) {
  Written written;
  for (int i = 0; i < count; ++i) {
    const auto gray = static_cast<uint8_t>(2 * i);
    written.add(first_key + i, payload_of(0, {static_cast<float>(i % 10)}, jpeg_of({gray, gray, gray})));
  }
  return written;
}

// ---- datasets ----

void test_layouts() {
  const Bytes image = jpeg_of({1, 2, 3});
  {
    Folder folder;
    Written written;
    written.add(0, payload_of(2, {4, 6}, {}));
    for (int key = 1; key <= 3; ++key) written.add(key, payload_of(0, {static_cast<float>(key + 4)}, image));
    for (int key = 4; key < 6; ++key) written.add(key, payload_of(2, {1, 3}, {}));
    written.save(folder);
    const auto dataset = open_dataset(folder.path);
    CHECK_EQ(dataset->size(), 3);
    CHECK_EQ(dataset->label(0), 5);
    CHECK_EQ(dataset->label(2), 7);
    CHECK(dataset->encoded(1) == image);
    CHECK_EQ(dataset->identities(), 10);
    CHECK_EQ(dataset->name(2), folder.path + "/train.rec, record 3 at byte " + std::to_string(written.offsets[3]));
  }
  {  // a header whose count a float cannot hold exactly
    Folder folder;
    Written written;
    written.add(0, payload_of(2, {2e7f, 2e7f}, {}));
    for (int key = 1; key <= 3; ++key) written.add(key, payload_of(0, {1}, image));
    for (int key = 4; key < 9; ++key) written.add(key, payload_of(2, {1, 3}, {}));
    written.save(folder);
    CHECK_EQ(open_dataset(folder.path)->size(), 3);
  }
  {  // a header at the end of the file, as insightface's rec_builder.py writes it
    Folder folder;
    Written written;
    for (int key = 1; key <= 3; ++key) written.add(key, payload_of(0, {1}, image));
    written.add(0, payload_of(2, {4, 4}, {}));
    written.save(folder);
    CHECK_EQ(open_dataset(folder.path)->size(), 3);
  }
  for (const int first_key : {0, 1}) {
    Folder folder;
    plain(7, first_key).save(folder, "10, 16,16,7,shuffled,2020-01-01");
    const auto dataset = open_dataset(folder.path);
    CHECK_EQ(dataset->size(), 7);
    CHECK_EQ(dataset->label(6), 6);
  }
  {  // labels in an array, also in record 0
    Folder folder;
    Written written;
    for (int key = 0; key < 4; ++key) written.add(key, payload_of(3, {static_cast<float>(key), 99, 98}, image));
    written.save(folder);
    const auto dataset = open_dataset(folder.path);
    CHECK_EQ(dataset->size(), 4);
    CHECK_EQ(dataset->label(3), 3);
    CHECK(dataset->encoded(0) == image);
  }
}

// Pictures at keys 1 to `pictures`, with a header and the records of two identities.
void write_with_identities(const Folder& folder, int pictures) {
  Written written;
  written.add(0, payload_of(2, {static_cast<float>(pictures + 1), static_cast<float>(pictures + 3)}, {}));
  for (int key = 1; key <= pictures; ++key) written.add(key, payload_of(0, {0}, jpeg_of({1, 2, 3})));
  for (int key = 1; key <= 2; ++key) written.add(pictures + key, payload_of(2, {1, 3}, {}));
  written.save(folder);
}

// The header's count is a float: 2^24 stands for itself and for 2^24 + 1.
void test_header_beyond_exact_floats() {
  const Bytes image = jpeg_of({1, 2, 3});
  for (const int last : {16777214, 16777215, 16777216, 16777217, 20000001}) {  // key of the last picture
    for (const bool damaged : {false, true}) {
      for (const bool with_identities : {false, true}) {
        Folder folder;
        Written written;
        written.add(0, payload_of(2, {static_cast<float>(last + 1), static_cast<float>(last + 3)}, {}));
        for (const int key : {1, 2, last - 1, last}) written.add(key, payload_of(0, {1}, image));
        if (with_identities) {
          for (const int key : {last + 1, last + 2}) written.add(key, payload_of(2, {1, 3}, {}));
        }
        if (damaged) written.rec[written.offsets[last - 1]] ^= 1;
        written.save(folder);
        CHECK_EQ(open_dataset(folder.path)->size(), 4);
      }
    }
  }
}

void test_labels_file() {
  Folder folder;
  plain(5).save(folder, "100000000,16,16");
  const std::vector<int64_t> labels = {16777217, 0, 99999999, 16777216, 3};
  write_labels(folder.path, labels);
  const auto dataset = open_dataset(folder.path);
  CHECK_EQ(dataset->identities(), 100000000);
  for (int64_t i = 0; i < 5; ++i) CHECK_EQ(dataset->label(i), labels[static_cast<size_t>(i)]);
  const auto expect = [&](const std::string& text) { CHECK_THROWS(open_dataset(folder.path), Error, text); };

  write_labels(folder.path, std::vector<int64_t>{1, 2, 3, 100000000, -1});
  CHECK_THROWS(open_dataset(folder.path)->label(3), Error, "its label is 100000000");
  CHECK_THROWS(open_dataset(folder.path)->label(4), Error, "its label is -1");
  write_labels(folder.path, std::vector<int64_t>{1, 2, 3});
  expect("train.labels: has labels of 3 pictures, but the dataset has 5");
  write_labels(folder.path, labels);
  std::filesystem::resize_file(folder.path + "/train.labels", 60);
  expect("train.labels: has 60 bytes instead of 64");
  write_labels(folder.path, labels);
  plain(5, 1).save(folder, "10,16,16");  // other keys
  expect("train.labels: belongs to another train.idx");
  folder.write("train.labels", "PK\x03\x04");
  expect("train.labels: is a ZIP archive");
}

void test_labels_from_a_list() {
  Folder folder;
  plain(3, 1).save(folder, "100000000,16,16");
  CHECK_THROWS(open_dataset(folder.path), Error, "--labels LIST writes it");
  const std::string list = folder.path + "/faces.lst";
  const auto expect = [&](const std::string& text, const std::string& message) {
    folder.write("faces.lst", text);
    CHECK_THROWS(write_labels_from(list, folder.path), Error, message);
    CHECK(!std::filesystem::exists(folder.path + "/train.labels"));
  };
  expect("1\t5\n2\t6\n", "faces.lst: has no line for " + folder.path + "/train.rec, record 3 at byte ");
  expect("1\t5\n2\t100000000\n3\t0\n", "faces.lst, line 2: label 100000000; 0 to 99999999");
  expect("1\t5\n2\t-1\n3\t0\n", "faces.lst, line 2: label -1");
  expect("1\t5\n2\t6\n1\t5\n", "faces.lst, line 3: key 1 again");
  expect("1\t5.5\n", "faces.lst, line 1: '1\t5.5'; a key of train.idx, a tab, and a whole number");
  for (const char* line : {"1 5\n", "\n", "1\t\n", "1\n", "x\t5\n", "1\t5 \n", "99999999999999999999\t5\n"}) {
    expect(line, "faces.lst, line 1: '");
  }
  expect(std::string("PK\x03\x04 and so on"), "faces.lst: is a ZIP archive");
  folder.write("faces.lst",
               "\xef\xbb\xbf"
               "0\t7\n3\t16777217.000000\ta.jpg\r\n1\t99999999\n2\t16777216\tb.jpg");
  const auto [pictures, identities] = write_labels_from(list, folder.path);
  CHECK_EQ(pictures, 3);
  CHECK_EQ(identities, 100000000);
  const auto dataset = open_dataset(folder.path);
  const std::vector<int64_t> labels = {99999999, 16777216, 16777217};
  for (int64_t i = 0; i < 3; ++i) CHECK_EQ(dataset->label(i), labels[static_cast<size_t>(i)]);
  plain(3, 2).save(folder, "100000000,16,16");  // train.labels is now another dataset's, and is written again
  folder.write("faces.lst", "2\t0\n3\t1\n4\t2\n");
  write_labels_from(list, folder.path);
  CHECK_EQ(open_dataset(folder.path)->label(2), 2);
}

// What a folder may hold instead of the three files.
void test_other_files() {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
  const std::string gzip("\x1f\x8b\x08\0\0\0\0\0 and so on", 17);
  for (const char* file : {"train.rec", "train.idx", "property"}) {
    for (const auto& [bytes, kind] : std::map<std::string, std::string>{{pointer, "is a Git LFS pointer"},
                                                                        {gzip, "is a gzip archive"},
                                                                        {"PK\x03\x04 and so on", "is a ZIP archive"},
                                                                        {"<!DOCTYPE html><title>404", "is a web page"},
                                                                        {std::string(64, '\0'), "is full of zeros"},
                                                                        {std::string("\xff\xfe"
                                                                                     "1\0,\0",
                                                                                     6),
                                                                         "is text in UTF-16"}}) {
      Folder folder;
      plain(4).save(folder);
      folder.write(file, bytes);
      CHECK_THROWS(open_dataset(folder.path), Error, "/" + std::string(file) + ": " + kind);
    }
  }
  Folder folder;
  plain(4).save(folder,
                "\xef\xbb\xbf"
                "10,16,16\r\n");
  CHECK_EQ(open_dataset(folder.path)->identities(), 10);

  write_with_identities(folder, 3);  // then without the header's entry
  std::string index;
  std::getline(std::ifstream(folder.path + "/train.idx"), index, '\0');
  folder.write("train.idx", index.substr(index.find('\n') + 1));
  CHECK_THROWS(open_dataset(folder.path), Error,
               "it is a record of an identity, but the header that counts the pictures (record 0) is missing");
}

void test_split_records() {
  // A JPEG with comments that hold the magic: at a multiple of four of the payload, at another place, and twice in a
  // row.
  const Bytes plain_jpeg = jpeg_of({200, 100, 50});
  for (const std::vector<int>& at : {std::vector<int>{0}, {1}, {0, 4}, {0, 4, 12}, {8}}) {
    Bytes jpeg(plain_jpeg.begin(), plain_jpeg.begin() + 2);
    jpeg.insert(jpeg.end(), {0xff, 0xfe, 0, 24});  // COM, 22 bytes
    Bytes comment(22, 'x');
    for (const int place : at) std::memcpy(comment.data() + 2 + place, &kRecordMagic, 4);
    jpeg.insert(jpeg.end(), comment.begin(), comment.end());
    jpeg.insert(jpeg.end(), plain_jpeg.begin() + 2, plain_jpeg.end());
    Written written;
    written.add(0, payload_of(0, {3}, jpeg));
    written.add(1, payload_of(0, {4}, plain_jpeg));
    const auto parts = std::count_if(at.begin(), at.end(), [](int place) { return place % 4 == 0; });
    uint32_t word;
    std::memcpy(&word, written.rec.data() + 4, 4);
    CHECK_EQ(word >> 29, parts > 0 ? 1u : 0u);  // the writer has split the record
    Folder folder;
    written.save(folder);
    const auto dataset = open_dataset(folder.path);
    CHECK(dataset->encoded(0) == jpeg);
    CHECK_EQ(dataset->label(0), 3);
    CHECK_EQ(dataset->label(1), 4);
    Bytes pixels(kSide * kSide * 3);
    decode_picture(dataset->encoded(0), kSide, kSide, false, pixels.data(), "InvalidDataset", "picture");
    CHECK_NEAR(pixels[0], 200, 2);
  }
}

template <typename Break>
void expect_refused(const std::string& text, Break damage) {
  Folder folder;
  Written written = plain(4);
  written.save(folder);
  damage(folder, written);
  const auto read_everything = [&] {
    const auto dataset = open_dataset(folder.path);
    std::atomic<int64_t> done{0};
    const std::atomic<bool> cancelled{false};
    const auto result = inspect(*dataset, dataset->size(), 2, 10, done, cancelled);
    CHECK_EQ(result.bad, static_cast<int64_t>(result.bad_pictures.size()));
    for (const auto& bad : result.bad_pictures) throw std::runtime_error(bad.name + ": " + bad.reason);
  };
  CHECK_THROWS(read_everything(), std::runtime_error, text);
}

void test_damage() {
  using std::filesystem::remove;
  expect_refused("/train.rec: cannot be opened", [](const Folder& f, Written&) { remove(f.path + "/train.rec"); });
  expect_refused("/train.idx: cannot be opened", [](const Folder& f, Written&) { remove(f.path + "/train.idx"); });
  expect_refused(
      "/property: is missing; a text file of one line: 4,16,16 (identities, height, width, as the labels and "
      "the first picture have them)",
      [](const Folder& f, Written&) { remove(f.path + "/property"); });
  expect_refused(
      "/property: is missing; a text file of one line: 2,16,16 (identities, height, width, as the records of "
      "identities and the first picture have them)",
      [](const Folder& f, Written&) {
        write_with_identities(f, 4);
        remove(f.path + "/property");
      });
  expect_refused("/train.rec: is no file", [](const Folder& f, Written&) {
    remove(f.path + "/train.rec");
    std::filesystem::create_directory(f.path + "/train.rec");
  });
  expect_refused("/train.rec: is empty", [](const Folder& f, Written&) { f.write("train.rec", Bytes()); });
  expect_refused("/train.idx: is empty", [](const Folder& f, Written&) { f.write("train.idx", Bytes()); });
  for (const char* property :
       {"10", "10,16", "10,16,x", "0,16,16", "-3,16,16", "ten,16,16", "10,16,16.5", "10;16;16"}) {
    expect_refused("/property: '" + std::string(property) + "'; three positive numbers",
                   [&](const Folder& f, Written&) { f.write("property", std::string(property) + "\n"); });
  }
  expect_refused("/property: 20000000 identities; at most 16777216 without the file train.labels",
                 [](const Folder& f, Written&) { f.write("property", "20000000,16,16"); });
  expect_refused("/property: 2000000000 identities; at most 1000000000",
                 [](const Folder& f, Written&) { f.write("property", "2000000000,16,16"); });
  expect_refused("/property: pictures of 99999 x 16",
                 [](const Folder& f, Written&) { f.write("property", "10,99999,16"); });
  for (const char* line : {"1 40", "x\t40", "1\t", "1\t-4", "1\t40 ", "\n", "99999999999999999999\t0"}) {
    expect_refused("/train.idx: line 2 is no index entry",
                   [&](const Folder& f, Written&) { f.write("train.idx", "0\t0\n" + std::string(line) + "\n"); });
  }
  expect_refused("/train.idx: key 1 is there twice",
                 [](const Folder& f, Written&) { f.write("train.idx", "1\t0\n0\t0\n1\t0\n"); });

  // Cut short: at the last record's start, in its head, in its payload.
  for (const int left : {0, 4, 20}) {
    expect_refused("cut short", [&](const Folder& f, Written& w) {
      w.rec.resize(w.offsets[3] + (left == 4 ? 12 : left));
      f.write("train.rec", w.rec);
    });
  }
  expect_refused("record 3 at byte", [](const Folder& f, Written& w) {
    w.rec.resize(w.offsets[3] + 4);
    f.write("train.rec", w.rec);
  });
  expect_refused("record 1 at byte", [](const Folder& f, Written& w) {
    w.rec[w.offsets[1]] ^= 1;
    f.write("train.rec", w.rec);
  });
  expect_refused("record 2 at byte 0: its label is 3.5", [](const Folder& f, Written&) {
    Written other;
    other.add(2, payload_of(0, {3.5f}, jpeg_of({0, 0, 0})));
    other.save(f);
  });
  for (const auto& [label, text] : std::map<float, std::string>{{10, "10"}, {-1, "-1"}, {3e9f, "3e+09"}}) {
    expect_refused("its label is " + text + "; property has 10 identities, so labels are whole numbers from 0 to 9",
                   [label = label](const Folder& f, Written& w) {
                     w.add(4, payload_of(0, {label}, jpeg_of({0, 0, 0})));
                     w.save(f);
                   });
  }
  expect_refused("its label is nan", [](const Folder& f, Written& w) {
    w.add(4, payload_of(0, {std::nanf("")}, jpeg_of({0, 0, 0})));
    w.save(f);
  });
  expect_refused("it has no picture", [](const Folder& f, Written& w) {
    w.add(4, payload_of(0, {1}, {}));
    w.save(f);
  });
  expect_refused("announces 4000000000 labels", [](const Folder& f, Written& w) {
    Bytes payload = payload_of(1, {1}, jpeg_of({0, 0, 0}));
    const uint32_t flag = 4'000'000'000;
    std::memcpy(payload.data(), &flag, 4);
    w.add(4, payload);
    w.save(f);
  });
  expect_refused("it has 10 bytes", [](const Folder& f, Written& w) {
    w.add(4, Bytes(10));
    w.save(f);
  });
  expect_refused("cflag 2", [](const Folder& f, Written& w) {
    w.offsets[4] = w.rec.size();
    put_part(w.rec, 2, Bytes(40));
    w.save(f);
  });
  expect_refused("cflag 0", [](const Folder& f, Written& w) {  // a first part, then a whole record
    w.offsets[4] = w.rec.size();
    put_part(w.rec, 1, Bytes(40));
    put_part(w.rec, 0, Bytes(40));
    w.save(f);
  });
  expect_refused("record 4 at byte", [](const Folder& f, Written& w) {
    w.add(4, payload_of(0, {1}, Bytes{'n', 'o', ' ', 'j', 'p', 'e', 'g'}));
    w.save(f);
  });
  expect_refused("is no intact JPEG", [](const Folder& f, Written& w) {  // one that ends early
    Bytes jpeg = half_white();
    jpeg.resize(jpeg.size() - 30);
    w.add(4, payload_of(0, {1}, jpeg));
    w.save(f);
  });
  expect_refused("has 8 x 8 pixels (height x width)", [](const Folder& f, Written& w) {
    w.add(4, payload_of(0, {1}, jpeg_of({0, 0, 0}, false, 8)));
    w.save(f);
  });
  expect_refused("header of no pictures", [](const Folder& f, Written&) {
    Written other;
    other.add(0, payload_of(2, {1, 3}, {}));
    other.save(f);
  });
}

void test_inspect() {
  Folder folder;
  plain(100).save(folder, "12,16,16");
  const auto dataset = open_dataset(folder.path);
  const std::atomic<bool> running{false}, cancelled{true};
  for (const int threads : {1, 3}) {
    std::atomic<int64_t> done{0};
    const Inspection result = inspect(*dataset, 7, threads, 10, done, running);
    CHECK_EQ(done.load(), 100);
    CHECK_EQ(result.identities_seen, 10);
    CHECK_EQ(result.label_min, 0);
    CHECK_EQ(result.label_max, 9);
    CHECK_THROWS(inspect(*dataset, 7, threads, 10, done, cancelled), Cancelled, "");
  }
}

// Counts the calls. Every picture is `picture`, except that number `broken` is not a JPEG.
class FakeDataset : public Dataset {
 public:
  explicit FakeDataset(int64_t size, Bytes picture = jpeg_of({10, 20, 30}))
      : needed(static_cast<size_t>(size)), size_(size), picture_(std::move(picture)) {}
  int64_t size() const override { return size_; }
  int64_t identities() const override { return size_; }
  int height() const override { return kSide; }
  int width() const override { return kSide; }
  int64_t label(int64_t picture) const override { return picture; }  // shows which pictures a batch contains
  Bytes encoded(int64_t picture) const override {
    ++reads;
    return picture == broken ? Bytes{1, 2, 3} : picture_;
  }
  void will_need(int64_t picture) const override { needed[static_cast<size_t>(picture)] = true; }
  std::string name(int64_t picture) const override { return "picture " + std::to_string(picture); }
  int64_t bytes() const override { return size_ * static_cast<int64_t>(picture_.size()); }

  mutable std::atomic<int64_t> reads{0};
  mutable std::vector<std::atomic<bool>> needed;
  int64_t broken = -1;

 private:
  const int64_t size_;
  const Bytes picture_;
};

void test_inspect_samples_evenly() {
  const std::atomic<bool> running{false};
  for (const int64_t decode : {0, 1, 7, 99, 100, 1000}) {
    const FakeDataset dataset(100);
    std::atomic<int64_t> done{0};
    inspect(dataset, decode, 2, 10, done, running);
    CHECK_EQ(dataset.reads.load(), std::min<int64_t>(decode, 100));
  }
}

// ---- order ----

LoaderOptions options_of(int64_t global_batch, int threads = 2) {
  return {.global_batch = global_batch,
          .rank = 0,
          .size = 1,
          .seed = 7,
          .flip = true,
          .shift = 0,
          .bgr = false,
          .threads = threads,
          .max_bad = 0,
          .first_step = 0};
}

std::vector<Batch> take(Loader& loader, int count) {
  std::vector<Batch> batches;
  batches.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) batches.push_back(loader.next());
  return batches;
}

bool equal(const std::vector<Batch>& a, const std::vector<Batch>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Batch& x, const Batch& y) {
    return x.step == y.step && x.labels == y.labels && x.pixels == y.pixels;
  });
}

// The batches of all ranks joined in rank order. Each rank decodes with another number of threads.
std::vector<Batch> take_by_ranks(const std::shared_ptr<const Dataset>& dataset, const LoaderOptions& options, int size,
                                 int count) {
  std::vector<Batch> joined(static_cast<size_t>(count));
  for (int rank = 0; rank < size; ++rank) {
    LoaderOptions part = options;
    part.rank = rank;
    part.size = size;
    part.threads = 1 + rank;
    const auto batches = take(*make_loader(dataset, part), count);
    for (size_t i = 0; i < batches.size(); ++i) {
      joined[i].step = batches[i].step;
      joined[i].labels.insert(joined[i].labels.end(), batches[i].labels.begin(), batches[i].labels.end());
      joined[i].pixels.insert(joined[i].pixels.end(), batches[i].pixels.begin(), batches[i].pixels.end());
    }
  }
  return joined;
}

void test_order() {
  Folder folder;
  plain(50).save(folder);
  const auto dataset = open_dataset(folder.path);
  LoaderOptions options = options_of(12);
  options.shift = 2;
  const auto whole = take(*make_loader(dataset, options), 10);
  CHECK_EQ(whole[9].step, 9);
  CHECK_EQ(whole[0].labels.size(), 12u);

  for (const int threads : {1, 4}) {
    LoaderOptions other = options;
    other.threads = threads;
    CHECK(equal(take(*make_loader(dataset, other), 10), whole));
  }
  for (const int64_t first_step : {1, 3, 4, 7}) {  // 4 steps are an epoch
    LoaderOptions resumed = options;
    resumed.first_step = first_step;
    CHECK(equal(take(*make_loader(dataset, resumed), static_cast<int>(10 - first_step)),
                {whole.begin() + first_step, whole.end()}));
  }
  // The parts of 5 and 7 ranks have different lengths.
  for (const int size : {2, 3, 5, 7, 12}) CHECK(equal(take_by_ranks(dataset, options, size, 10), whole));
  LoaderOptions cut = options;
  cut.micro_batch = 4;
  for (const int size : {1, 2, 3}) CHECK(equal(take_by_ranks(dataset, cut, size, 10), whole));
  cut.size = 2;
  CHECK_EQ(make_loader(dataset, cut)->next().labels.size(), 8u);  // two micro-batches of three
  LoaderOptions reseeded = options;
  reseeded.seed = 8;
  CHECK(!equal(take(*make_loader(dataset, reseeded), 10), whole));
}

void test_epochs() {
  const auto dataset = std::make_shared<FakeDataset>(50);
  auto loader = make_loader(dataset, options_of(12));
  CHECK_EQ(loader->steps_per_epoch(), 4);
  std::vector<std::vector<int64_t>> epochs;
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> pictures;
    for (const Batch& batch : take(*loader, 4))
      pictures.insert(pictures.end(), batch.labels.begin(), batch.labels.end());
    CHECK_EQ(std::set<int64_t>(pictures.begin(), pictures.end()).size(), 48u);  // no picture twice; two are dropped
    epochs.push_back(pictures);
  }
  CHECK(epochs[0] != epochs[1]);
  CHECK(epochs[1] != epochs[2]);
  std::sort(epochs[0].begin(), epochs[0].end());
  std::sort(epochs[1].begin(), epochs[1].end());
  CHECK(epochs[0] != epochs[1]);  // each epoch drops different pictures
  CHECK_THROWS(make_loader(dataset, options_of(51)), Error, "a global batch takes 51");
}

// ---- pixels ----

void test_decode() {
  Bytes pixels(kSide * kSide * 3);
  decode_picture(jpeg_of({200, 100, 50}), kSide, kSide, false, pixels.data(), "InvalidDataset", "picture");
  CHECK_NEAR(pixels[0], 200, 2);
  CHECK_NEAR(pixels[1], 100, 2);
  CHECK_NEAR(pixels[2], 50, 2);
  decode_picture(jpeg_of({200, 100, 50}), kSide, kSide, true, pixels.data(), "InvalidDataset", "picture");
  CHECK_NEAR(pixels[0], 50, 2);
  CHECK_NEAR(pixels[2], 200, 2);
  decode_picture(jpeg_of({90, 90, 90}, true), kSide, kSide, false, pixels.data(), "InvalidDataset", "picture");
  for (int c = 0; c < 3; ++c) CHECK_NEAR(pixels[static_cast<size_t>(c)], 90, 1);
  CHECK_THROWS(decode_picture({}, kSide, kSide, false, pixels.data(), "InvalidVerificationSet", "set.bin, picture 3"),
               Error, "set.bin, picture 3: is empty");
}

void test_augmentation() {
  const auto dataset = std::make_shared<FakeDataset>(64, half_white());
  LoaderOptions options = options_of(64);
  options.shift = 3;
  const Batch batch = make_loader(dataset, options)->next();
  // The edge between black and white is at column 8 of the picture, moved by dx; flip exchanges the colors.
  std::map<int, int> white_right, white_left;  // count by column where the edge is
  for (size_t i = 0; i < 64; ++i) {
    const uint8_t* row = batch.pixels.data() + i * kSide * kSide * 3;
    const auto white = [&](int x) { return row[3 * x] > 127; };
    int edge = 1;
    while (edge < kSide && white(edge) == white(0)) ++edge;
    ++(white(0) ? white_left : white_right)[edge];
    for (int x = edge; x < kSide; ++x) CHECK_EQ(white(x), !white(0));  // the border is repeated
  }
  for (const auto& edges : {white_left, white_right}) {
    int count = 0;
    for (const auto& [edge, times] : edges) {
      CHECK(edge >= kSide / 2 - 3 && edge <= kSide / 2 + 3);
      count += times;
    }
    CHECK(count >= 20);
    CHECK(edges.size() >= 6u);  // of seven possible columns
  }

  options.flip = false;
  options.shift = 0;
  Bytes still(kSide * kSide * 3);
  decode_picture(half_white(), kSide, kSide, false, still.data(), "InvalidDataset", "picture");
  const Batch plain_batch = make_loader(dataset, options)->next();
  for (size_t i = 0; i < 64; ++i) {
    CHECK(
        std::equal(still.begin(), still.end(), plain_batch.pixels.begin() + static_cast<ptrdiff_t>(i * still.size())));
  }
}

// Each kind of degradation meets its share of the pictures, independently of the others. Which ones depends on seed,
// epoch and picture alone: any number of ranks and threads gives the same bytes.
void test_degradation() {
  constexpr int64_t kPictures = 2000;
  const auto dataset = std::make_shared<FakeDataset>(kPictures, half_white());
  LoaderOptions options = options_of(kPictures);
  options.flip = false;
  const Bytes still = [&] {
    Bytes picture(kSide * kSide * 3);
    decode_picture(half_white(), kSide, kSide, false, picture.data(), "InvalidDataset", "picture");
    return picture;
  }();
  const auto changed_in = [&](const LoaderOptions& with) {
    const Batch batch = make_loader(dataset, with)->next();
    std::vector<bool> changed;
    for (int64_t i = 0; i < kPictures; ++i) {
      const auto* const from = batch.pixels.data() + static_cast<size_t>(i) * still.size();
      changed.push_back(!std::equal(still.begin(), still.end(), from));
    }
    return changed;
  };
  const auto count = [](const std::vector<bool>& changed) { return std::count(changed.begin(), changed.end(), true); };
  std::vector<std::vector<bool>> kinds;
  for (double LoaderOptions::*kind :
       {&LoaderOptions::crop, &LoaderOptions::low_resolution, &LoaderOptions::color_jitter}) {
    LoaderOptions one = options;
    one.*kind = 0.2;
    kinds.push_back(changed_in(one));
    // 400, deviation 18; a picture that is drawn may stay as it is, in a few of a hundred.
    CHECK(count(kinds.back()) >= 400 - 5 * 18 - 40 && count(kinds.back()) <= 400 + 5 * 18);
    one.*kind = 0;
    CHECK_EQ(count(changed_in(one)), 0);
    one.*kind = 1;
    CHECK(count(changed_in(one)) >= kPictures * 7 / 10);  // a crop may keep all that is not black
  }
  for (size_t i = 0; i < 3; ++i) {
    int64_t both = 0;
    for (size_t k = 0; k < kPictures; ++k) both += kinds[i][k] && kinds[(i + 1) % 3][k];
    CHECK(both > 40 && both < 130);  // 80, deviation 9
  }

  LoaderOptions all = options;
  all.flip = true;
  all.shift = 2;
  all.crop = all.low_resolution = all.color_jitter = 0.5;
  all.global_batch = 500;
  const std::vector<Batch> whole = take(*make_loader(dataset, all), 6);  // one epoch and a half
  CHECK(whole[4].pixels != whole[0].pixels);
  all.threads = 3;
  all.size = 2;
  for (all.rank = 0; all.rank < 2; ++all.rank) {
    all.first_step = 3;
    const auto loader = make_loader(dataset, all);
    for (size_t step = 3; step < 6; ++step) {
      const Batch part = loader->next();
      const auto* const from = whole[step].pixels.data() + static_cast<size_t>(all.rank) * part.pixels.size();
      CHECK(std::equal(part.pixels.begin(), part.pixels.end(), from));
    }
  }
}

// ---- threads ----

template <typename Condition>
bool eventually(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

// Counts what is in use.
class CountingMemory final : public std::pmr::memory_resource {
 public:
  int64_t in_use = 0, made = 0;  // blocks

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    ++in_use;
    ++made;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* data, size_t bytes, size_t alignment) override {
    --in_use;
    std::pmr::new_delete_resource()->deallocate(data, bytes, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

// The pixels are in the memory that was asked for, and that of a batch which comes back serves again: also when it has
// another size, or is of another loader.
void test_memory() {
  const auto dataset = std::make_shared<FakeDataset>(100);
  const auto expected = take(*make_loader(dataset, options_of(10)), 30);
  CountingMemory memory;
  {
    LoaderOptions options = options_of(10);
    options.memory = &memory;
    const auto loader = make_loader(dataset, options);
    std::vector<Batch> batches;
    Batch used;
    for (size_t i = 0; i < 30; ++i) {
      Batch batch = loader->next(std::move(used));
      CHECK(batch.step == expected[i].step && batch.labels == expected[i].labels && batch.pixels == expected[i].pixels);
      CHECK(batch.pixels.get_allocator().resource() == &memory);
      used = std::move(batch);
      if (i == 10) used = make_loader(dataset, options_of(10))->next();
      if (i == 20) used.pixels.resize(1);
    }
    CHECK(memory.made <= 6);  // the ring, the batch in use, and after step 10 one more
  }
  CHECK_EQ(memory.in_use, 0);
}

void test_is_ready() {
  const auto dataset = std::make_shared<FakeDataset>(100);
  const auto loader = make_loader(dataset, options_of(10));
  while (!loader->is_ready()) std::this_thread::yield();
  CHECK_EQ(loader->next().step, 0);
  const auto damaged = std::make_shared<FakeDataset>(100);
  damaged->broken = 7;  // its error is ready, too
  const auto failing = make_loader(damaged, options_of(100));
  while (!failing->is_ready()) std::this_thread::yield();
  CHECK_THROWS(failing->next(), Error, "picture 7");
}

void test_bounded() {
  const auto dataset = std::make_shared<FakeDataset>(1000);
  auto loader = make_loader(dataset, options_of(5, 4));
  for (int taken = 0; taken < 20; ++taken) {
    CHECK(eventually([&] { return dataset->reads == (taken + 3) * 5; }));  // three batches ahead
    loader->next();
    CHECK(dataset->reads <= (taken + 4) * 5);
  }
}

void test_disk_reads_ahead() {
  const auto dataset = std::make_shared<FakeDataset>(1000);
  auto loader = make_loader(dataset, options_of(5, 1));
  CHECK(eventually([&] { return dataset->reads == 3 * 5; }));  // the ring is full
  const auto announced = std::count(dataset->needed.begin(), dataset->needed.end(), true);
  CHECK_EQ(announced, 15);
  const std::vector<bool> before(dataset->needed.begin(), dataset->needed.end());
  const Batch fourth = take(*loader, 4).at(3);
  for (const int64_t picture : fourth.labels) CHECK(before[static_cast<size_t>(picture)]);
}

void test_error_is_thrown_at_its_step() {
  const auto dataset = std::make_shared<FakeDataset>(40);
  LoaderOptions options = options_of(4, 4);
  const Batch third = take(*make_loader(dataset, options), 3).back();
  dataset->broken = third.labels[2];
  for (int repeat = 0; repeat < 20; ++repeat) {
    auto loader = make_loader(dataset, options);
    CHECK_EQ(take(*loader, 2).back().step, 1);
    const std::string message =
        "dataset.maxBadPictures: 1 bad pictures: picture " + std::to_string(dataset->broken) + ": is no picture";
    CHECK_THROWS(loader->next(), Error, message);
    CHECK_THROWS(loader->next(), Error, message);
  }
}

// Pictures of a removed identity are replaced, those of a merged one have the other's label; all others keep their
// places and their augmentation.
void test_retired_identities() {
  Folder folder;
  plain(50).save(folder);  // with labels 0 to 9
  const auto dataset = open_dataset(folder.path);
  LoaderOptions options = options_of(12);
  const auto before = take(*make_loader(dataset, options), 10);
  options.retired = std::make_shared<const RetiredLabels>(RetiredLabels{{3, kRemoved}, {4, 7}});
  const auto loader = make_loader(dataset, options);
  const auto after = take(*loader, 10);
  const size_t bytes = kSide * kSide * 3;
  int replaced = 0, merged = 0;
  for (size_t step = 0; step < 10; ++step) {
    for (size_t i = 0; i < 12; ++i) {
      const int64_t old = before[step].labels[i], now = after[step].labels[i];
      CHECK(now != 3);
      CHECK(now != 4);
      replaced += old == 3;
      merged += old == 4;
      if (old == 3) continue;
      CHECK_EQ(now, old == 4 ? 7 : old);
      const auto begin = static_cast<ptrdiff_t>(i * bytes), end = static_cast<ptrdiff_t>((i + 1) * bytes);
      CHECK(std::equal(before[step].pixels.begin() + begin, before[step].pixels.begin() + end,
                       after[step].pixels.begin() + begin));
    }
  }
  CHECK(replaced > 5);
  CHECK(merged > 5);
  CHECK(loader->take_replaced().empty());  // they are no damage
  CHECK(equal(take_by_ranks(dataset, options, 3, 10), after));

  RetiredLabels all;
  for (int64_t label = 0; label < 10; ++label) all.emplace(label, kRemoved);
  options.retired = std::make_shared<const RetiredLabels>(all);
  CHECK_THROWS(take(*make_loader(dataset, options), 1), Error, "is of an identity that was removed");
}

// Bad pictures are replaced. The replacement is the same for any number of ranks and threads and after a resume, and
// all other pictures are those of an undamaged dataset.
void test_bad_pictures() {
  Folder good, damaged;
  plain(50).save(good);
  Written written = plain(50);
  const std::set<int64_t> bad = {3, 17, 18};
  written.rec[written.offsets[3]] ^= 1;            // no record
  written.rec[written.offsets[17] + 8 + 24] ^= 1;  // no picture
  std::fill_n(written.rec.begin() + static_cast<ptrdiff_t>(written.offsets[18]), 400, uint8_t{0});
  written.save(damaged);
  const auto dataset = open_dataset(damaged.path);
  LoaderOptions options = options_of(12);
  options.shift = 2;
  options.max_bad = 3;
  const auto loader = make_loader(dataset, options);
  const auto whole = take(*loader, 10);
  std::set<int64_t> replaced;
  for (const auto& picture : loader->take_replaced()) {
    CHECK(replaced.insert(picture.picture).second);
    CHECK_EQ(picture.name, dataset->name(picture.picture));
    CHECK(!picture.reason.empty());
  }
  CHECK(replaced == bad);
  CHECK(loader->take_replaced().empty());

  const auto undamaged = take(*make_loader(open_dataset(good.path), options), 10);
  const size_t bytes = kSide * kSide * 3;
  int different = 0;
  for (size_t step = 0; step < 10; ++step) {
    for (size_t i = 0; i < 12; ++i) {
      const auto begin = static_cast<ptrdiff_t>(i * bytes), end = static_cast<ptrdiff_t>((i + 1) * bytes);
      different += !std::equal(whole[step].pixels.begin() + begin, whole[step].pixels.begin() + end,
                               undamaged[step].pixels.begin() + begin);
    }
  }
  CHECK(different >= 4);  // each bad picture about ten times in 2.5 epochs, at most
  CHECK(different <= 9);

  for (const int64_t first_step : {3, 7}) {
    LoaderOptions resumed = options;
    resumed.first_step = first_step;
    CHECK(equal(take(*make_loader(dataset, resumed), static_cast<int>(10 - first_step)),
                {whole.begin() + first_step, whole.end()}));
  }
  CHECK(equal(take_by_ranks(dataset, options, 3, 10), whole));

  options.max_bad = 2;
  CHECK_THROWS(take(*make_loader(dataset, options), 10), Error, "dataset.maxBadPictures: 3 bad pictures: ");

  std::atomic<int64_t> done{0};
  const std::atomic<bool> running{false};
  for (const size_t listed : {2u, 10u}) {
    const Inspection found = inspect(*dataset, 50, 3, listed, done, running);
    CHECK_EQ(found.bad, 3);
    CHECK_EQ(found.bad_pictures.size(), std::min<size_t>(3, listed));
    CHECK_EQ(found.bad_pictures[0].picture, 3);
    CHECK_EQ(found.bad_pictures[1].picture, 17);
  }
}

// Bytes of every file changed or cut off at random: it is read, or refused with an Error.
void test_random_damage() {
  Folder folder;
  int refused = 0;
  for (uint64_t round = 0; round < 1500; ++round) {
    const auto draw = [&](uint64_t stream, uint64_t below) { return hash_words({round, stream}) % below; };
    write_with_identities(folder, 4);
    if (draw(9, 2) == 0) {
      write_labels(folder.path, std::vector<int64_t>{0, 1, 2, 3});
    }
    const std::string name = std::vector<std::string>{"train.rec", "train.idx", "property", "train.labels"}[draw(0, 4)];
    std::string bytes;
    std::getline(std::ifstream(folder.path + "/" + name), bytes, '\xfe');
    for (uint64_t i = 0; i <= draw(1, 3) && !bytes.empty(); ++i) {
      bytes[draw(10 + i, bytes.size())] = static_cast<char>(draw(20 + i, 256));
    }
    if (draw(2, 3) == 0) bytes.resize(draw(3, bytes.size() + 1));
    folder.write(name, bytes);
    try {
      const auto dataset = open_dataset(folder.path);
      std::atomic<int64_t> done{0};
      const std::atomic<bool> running{false};
      inspect(*dataset, dataset->size(), 1, 10, done, running);
    } catch (const Error&) {
      ++refused;
    }
    std::filesystem::remove(folder.path + "/train.labels");
  }
  CHECK(refused > 300);
  CHECK(refused < 1500);
}

void test_stops_at_any_time() {
  for (int i = 0; i < 200; ++i) {  // after 0 .. 30 pictures; 30 fill the ring
    const auto dataset = std::make_shared<FakeDataset>(100);
    const auto loader = make_loader(dataset, options_of(10, 1 + i % 3));
    if (i % 5 == 0) loader->next();
    CHECK(eventually([&] { return dataset->reads >= i % 31; }));
  }
}

void test_thread_names() {
  auto loader = make_loader(std::make_shared<FakeDataset>(100), options_of(10, 2));
  std::set<std::string> names;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    names.insert(name);
  }
  CHECK(names.contains("loader/0"));
  CHECK(names.contains("loader/1"));
}

}  // namespace

int main() {
  test_layouts();
  test_header_beyond_exact_floats();
  test_labels_file();
  test_labels_from_a_list();
  test_other_files();
  test_split_records();
  test_damage();
  test_inspect();
  test_inspect_samples_evenly();
  test_order();
  test_epochs();
  test_decode();
  test_augmentation();
  test_degradation();
  test_memory();
  test_is_ready();
  test_bounded();
  test_disk_reads_ahead();
  test_error_is_thrown_at_its_step();
  test_bad_pictures();
  test_retired_identities();
  test_random_damage();
  test_stops_at_any_time();
  test_thread_names();
  return TEST_RESULT();
}
