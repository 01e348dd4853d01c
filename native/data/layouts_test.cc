// Image folders and tar shards as datasets, with archives that GNU tar writes, every kind of damage, and random damage.
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>

#include "data/image_folder.h"
#include "data/inspect.h"
#include "data/listing.h"
#include "data/loader.h"
#include "data/open_dataset.h"
#include "data/pack.h"
#include "data/summary.h"
#include "data/tar.h"
#include "data/tar_shards.h"
#include "error.h"
#include "test/check.h"
#include "test/pictures.h"

using namespace facetrain;
namespace fs = std::filesystem;

namespace {

constexpr int kSide = 16;  // pixels

std::string jpeg_of(uint8_t gray, int side = kSide) {
  const std::vector<uint8_t> pixels(static_cast<size_t>(3 * side * side), gray);
  const std::vector<uint8_t> jpeg = test::encode_jpeg(pixels, side, side);
  return {jpeg.begin(), jpeg.end()};
}

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/facetrain-layouts-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { fs::remove_all(path); }

  void write(const std::string& file, const std::string& text) const {
    fs::create_directories(fs::path(path + "/" + file).parent_path());
    std::ofstream(path + "/" + file) << text;
  }
  std::string read(const std::string& file) const {
    std::ifstream stream(path + "/" + file);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  // Packs FROM into the archive with GNU tar, in the order of names.
  void tar(const std::string& archive, const std::string& from, const std::string& options) const {
    const std::string command =
        "tar " + options + " --sort=name -C '" + path + "/" + from + "' -cf '" + path + "/" + archive + "' .";
    CHECK_EQ(std::system(command.c_str()), 0);
  }

  std::string path;
};

std::vector<uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

std::vector<int64_t> labels_of(const Dataset& dataset) {
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < dataset.size(); ++i) labels.push_back(dataset.label(i));
  return labels;
}

// Three identities, with seven pictures; picture i of an identity is gray i.
void write_people(const Folder& folder, const std::string& under = "") {
  const std::map<std::string, int> people{{"Zoe", 2}, {"Aaron", 3}, {"Bea", 2}};
  for (const auto& [name, count] : people) {
    for (int i = 0; i < count; ++i) {
      folder.write(under + name + "/" + std::to_string(i) + ".jpg", jpeg_of(static_cast<uint8_t>(40 * i)));
    }
  }
}

std::vector<Batch> batches_of(const std::shared_ptr<const Dataset>& dataset, int rank, int size, int64_t first) {
  const LoaderOptions options{.global_batch = 4,
                              .rank = rank,
                              .size = size,
                              .seed = 5,
                              .flip = true,
                              .shift = 1,
                              .bgr = false,
                              .threads = 2,
                              .max_bad = 0,
                              .first_step = first};
  const auto loader = make_loader(dataset, options);
  std::vector<Batch> batches;
  for (int64_t step = first; step < 6; ++step) batches.push_back(loader->next());
  return batches;
}

// The same pictures in the same order with any number of ranks, and when it is resumed.
void check_order(const std::shared_ptr<const Dataset>& dataset) {
  const auto whole = batches_of(dataset, 0, 1, 0);
  const auto left = batches_of(dataset, 0, 2, 0), right = batches_of(dataset, 1, 2, 0);
  const auto resumed = batches_of(dataset, 0, 1, 3);
  for (size_t step = 0; step < whole.size(); ++step) {
    auto labels = left[step].labels;
    labels.insert(labels.end(), right[step].labels.begin(), right[step].labels.end());
    CHECK(labels == whole[step].labels);
    auto pixels = left[step].pixels;
    pixels.insert(pixels.end(), right[step].pixels.begin(), right[step].pixels.end());
    CHECK(pixels == whole[step].pixels);
    if (step >= 3) CHECK(resumed[step - 3].pixels == whole[step].pixels);
  }
}

// ---- image folders ----

void test_image_folder() {
  Folder folder;
  write_people(folder);
  folder.write("Aaron/Thumbs.db", "x");               // no picture
  folder.write("Bea/.hidden.jpg", "x");               // hidden
  folder.write(".cache/a.jpg", "x");                  // hidden
  folder.write("readme.txt", "x");                    // no folder
  folder.write("Bea/X.JPEG", jpeg_of(99));            // before "0.jpg"? No: digits come before letters
  fs::create_directory(folder.path + "/Empty");       // no label
  fs::create_directory(folder.path + "/lost+found");  // not an identity
  const auto dataset = open_dataset(folder.path);
  CHECK_EQ(dataset->size(), 8);
  CHECK_EQ(dataset->identities(), 3);
  CHECK_EQ(dataset->height(), kSide);
  CHECK_EQ(dataset->width(), kSide);
  CHECK(labels_of(*dataset) == (std::vector<int64_t>{0, 0, 0, 1, 1, 1, 2, 2}));
  CHECK_EQ(dataset->identity(2), "Zoe");
  CHECK_EQ(dataset->name(4), folder.path + "/Bea/1.jpg");
  CHECK_EQ(dataset->name(5), folder.path + "/Bea/X.JPEG");
  CHECK(dataset->encoded(5) == bytes_of(jpeg_of(99)));
  int64_t bytes = 0;
  for (int64_t i = 0; i < 8; ++i) bytes += static_cast<int64_t>(dataset->encoded(i).size());
  CHECK_EQ(dataset->bytes(), bytes);
  check_order(dataset);
}

// Labels of an image folder are checked without opening a picture: there may be millions, on a network file system.
void test_labels_open_no_picture() {
  Folder folder;
  write_people(folder);
  const auto dataset = open_dataset(folder.path);
  CHECK(!dataset->labels_are_read());
  fs::remove_all(folder.path + "/Bea");
  std::atomic<int64_t> done{0};
  const std::atomic<bool> running{false};
  CHECK_EQ(inspect(*dataset, 0, 2, 10, done, running).identities_seen, 3);
}

void test_image_folder_is_refused() {
  Folder folder;
  CHECK_THROWS(open_dataset(folder.path + "/none"), Error, "/none: cannot be read (No such file or directory)");
  CHECK_THROWS(open_dataset(folder.path), Error, "has neither train.rec, nor *.tar, nor folders of pictures");
  folder.write("faces.tar.gz", "x");
  CHECK_THROWS(open_dataset(folder.path), Error, "faces.tar.gz: is compressed; unpack it");
  fs::create_directory(folder.path + "/Aaron");
  CHECK_THROWS(open_dataset(folder.path), Error, "has no folder with pictures");
  folder.write("Aaron/a.gif", "x");
  CHECK_THROWS(open_dataset(folder.path), Error, "/Aaron/a.gif: is no picture, and Aaron has none");
  folder.write("Aaron/a.jpg", "no jpeg");
  CHECK_THROWS(open_dataset(folder.path), Error, "/Aaron/a.jpg: is no picture of a kind that is read");
  folder.write("Aaron/b.jpg", jpeg_of(1));
  CHECK_EQ(open_dataset(folder.path)->size(), 2);  // the size comes from the first picture that has one
  {
    const auto dataset = open_dataset(folder.path);
    fs::remove(folder.path + "/Aaron/b.jpg");
    CHECK_THROWS(dataset->encoded(1), Error, "/Aaron/b.jpg: cannot be opened (No such file or directory)");
    folder.write("Aaron/b.jpg", jpeg_of(1));
  }
  folder.write("Aaron/more/c.jpg", jpeg_of(1));
  CHECK_THROWS(open_dataset(folder.path), Error, "/Aaron/more: is a folder in the folder of an identity");
}

// ---- tar shards ----

// Two shards with 4 + 3 samples, in the labels' forms that are read.
void write_samples(const Folder& folder) {
  for (int i = 0; i < 7; ++i) {
    const std::string key = (i < 4 ? "first/" : "second/") + std::string("00000") + std::to_string(i);
    folder.write(key + (i == 3 ? ".JPG" : ".jpg"), jpeg_of(static_cast<uint8_t>(30 * i)));
    if (i % 2 == 0) folder.write(key + ".cls", " " + std::to_string(i % 3) + "\n");
    if (i % 2 == 1) {
      folder.write(key + ".json", R"({"id": {"label": 77, "a": [1, "}"]}, "label" : )" + std::to_string(i % 3) + "}");
    }
    folder.write(key + ".txt", "ignored");
  }
}

void test_tar_shards() {
  for (const char* format : {"--format=gnu", "--format=ustar", "--format=pax", "--format=v7"}) {
    Folder folder;
    write_samples(folder);
    folder.tar("000001.tar", "second", format);
    folder.tar("000000.tar", "first", format);
    const auto dataset = open_dataset(folder.path);
    CHECK_EQ(dataset->size(), 7);
    CHECK_EQ(dataset->identities(), 3);
    CHECK(labels_of(*dataset) == (std::vector<int64_t>{0, 1, 2, 0, 1, 2, 0}));
    for (int i = 0; i < 7; ++i) {
      CHECK(dataset->encoded(i) == bytes_of(jpeg_of(static_cast<uint8_t>(30 * i))));
    }
    CHECK(dataset->name(3).starts_with(folder.path + "/000000.tar, ./000003.JPG at byte "));
    CHECK_EQ(dataset->bytes(), static_cast<int64_t>(fs::file_size(folder.path + "/000000.tar") +
                                                    fs::file_size(folder.path + "/000001.tar")));
    for (int64_t i = 0; i < 7; ++i) dataset->will_need(i);
    check_order(dataset);
  }
}

// Names beyond 100 bytes: GNU's 'L' members, ustar's prefix, pax headers.
void test_long_names() {
  for (const char* format : {"--format=gnu", "--format=ustar", "--format=pax"}) {
    Folder folder;
    const std::string deep = std::string(90, 'd') + "/" + std::string(80, 'k');
    folder.write("in/" + deep + ".jpg", jpeg_of(9));
    folder.write("in/" + deep + ".cls", "4");
    folder.tar("a.tar", "in", format);
    const auto dataset = open_dataset(folder.path);
    CHECK_EQ(dataset->size(), 1);
    CHECK_EQ(dataset->label(0), 4);
    CHECK(dataset->name(0).find("./" + deep + ".jpg at byte") != std::string::npos);
    CHECK(dataset->encoded(0) == bytes_of(jpeg_of(9)));
  }
}

template <typename Change>
void expect_refused(const std::string& text, Change change) {
  Folder folder;
  write_samples(folder);
  change(folder);
  folder.tar("000000.tar", "first", "--format=ustar");
  CHECK_THROWS(open_dataset(folder.path), Error, text);
}

void test_samples_are_refused() {
  const auto remove = [](const Folder& folder, const char* file) { fs::remove(folder.path + "/" + file); };
  expect_refused("/000000.tar, ./000002.jpg at byte",
                 [&](const Folder& folder) { remove(folder, "first/000002.cls"); });
  expect_refused("has no label; a shard has", [&](const Folder& folder) { remove(folder, "first/000003.json"); });
  expect_refused("is of one sample with ./000000.jpg",
                 [](const Folder& folder) { folder.write("first/000000.png", "x"); });
  expect_refused("says that the label is 1, and the member before it 2",
                 [](const Folder& folder) { folder.write("first/000002.json", R"({"label": 1})"); });
  for (const char* label : {"", "Aaron", "-1", "1.5", "0x1", "2147483647", "99999999999999999999", "1 2"}) {
    expect_refused("./000000.cls at byte", [&](const Folder& folder) { folder.write("first/000000.cls", label); });
    expect_refused("labels are whole numbers from 0 to 2147483646",
                   [&](const Folder& folder) { folder.write("first/000000.cls", label); });
  }
  for (const char* json : {"", "[]", "{", "{\"label\"", "{\"label\": ", "3"}) {
    expect_refused("./000001.json at byte", [&](const Folder& folder) { folder.write("first/000001.json", json); });
    expect_refused("it is no JSON object", [&](const Folder& folder) { folder.write("first/000001.json", json); });
  }
  expect_refused("the label is '\"Zoe\"'; labels are",
                 [](const Folder& folder) { folder.write("first/000001.json", R"({"label": "Zoe"})"); });
}

void test_json_labels() {
  CHECK_EQ(label_of_json(R"({"label":5})").value(), 5);
  CHECK_EQ(label_of_json("\n{ \"x\" : \"\\\"label\\\": 3\" , \"label\"\t:\t2147483646 }\n").value(), kMaxLabel);
  CHECK(!label_of_json("{}"));
  CHECK(!label_of_json(R"({"labels": 5, "a": {"label": 1}})"));
}

void test_archives_are_refused() {
  const auto refused = [](const std::string& text, const std::string& archive) {
    Folder folder;
    folder.write("0.tar", archive);
    CHECK_THROWS(open_dataset(folder.path), Error, text);
  };
  Folder folder;
  write_samples(folder);
  folder.tar("whole.tar", "first", "--format=ustar");
  folder.tar("whole.tar.gz", "first", "--format=ustar -z");
  const std::string whole = folder.read("whole.tar");
  refused("0.tar: is empty", "");
  refused("0.tar, member at byte 0: the archive is compressed; a shard is a plain .tar", folder.read("whole.tar.gz"));
  refused("0.tar, member at byte 0: the archive was cut short", "short");
  refused("0.tar, member at byte 0: no header of a tar archive is there", std::string(1024, 'x'));
  refused("the archive was cut short", whole.substr(0, 2000));
  refused("no shard has a picture", std::string(1024, '\0'));
  refused("other data follows; join archives by tar --concatenate", whole + whole);
  std::string damaged = whole;
  damaged[512] ^= 1;  // "./000000.cls" comes after the folder
  refused("0.tar, member at byte 512: no header of a tar archive is there", damaged);
}

// An archive without end mark, and one whose end mark is longer than others.
void test_end_marks() {
  Folder folder;
  write_samples(folder);
  folder.tar("in.tar", "first", "--format=ustar");
  std::string archive = folder.read("in.tar");
  uint64_t end = 0;
  const std::vector<uint8_t> bytes = bytes_of(archive);
  while (const auto member = read_tar_member(bytes, end)) end = member->next;
  for (const std::string& text : {archive.substr(0, end), archive + std::string(5000, '\0')}) {
    Folder other;
    other.write("0.tar", text);
    CHECK_EQ(open_dataset(other.path)->size(), 4);
  }
}

// ---- facetrain.index ----

void test_index() {
  for (const bool shards : {false, true}) {
    Folder folder, samples;
    if (shards) {
      write_samples(samples);
      for (const char* part : {"first", "second"}) {
        samples.tar(std::string(part) + ".tar", part, "--format=ustar");
        fs::rename(samples.path + "/" + part + ".tar", folder.path + "/" + part + ".tar");
      }
    } else {
      write_people(folder);
    }
    const auto before = open_dataset(folder.path);
    write_index(*list_pictures(folder.path), folder.path);
    CHECK(!fs::exists(folder.path + "/.facetrain.index.partial"));
    const auto after = open_dataset(folder.path);
    CHECK_EQ(after->size(), before->size());
    CHECK_EQ(after->identities(), before->identities());
    CHECK(labels_of(*after) == labels_of(*before));
    for (int64_t i = 0; i < after->size(); ++i) {
      CHECK_EQ(after->name(i), before->name(i));
      CHECK(after->encoded(i) == before->encoded(i));
    }
    check_order(after);

    // The index is of what was there.
    if (shards) {
      folder.write("third.tar", "x");
      CHECK_THROWS(open_dataset(folder.path), Error, "/facetrain.index: does not list third.tar; write it again: ");
      fs::remove(folder.path + "/third.tar");
      fs::rename(folder.path + "/first.tar", folder.path + "/1.tar");
      CHECK_THROWS(open_dataset(folder.path), Error, "/facetrain.index: lists first.tar, which is not there");
      fs::rename(folder.path + "/1.tar", folder.path + "/first.tar");
      fs::resize_file(folder.path + "/first.tar", fs::file_size(folder.path + "/first.tar") + 512);
      CHECK_THROWS(open_dataset(folder.path), Error, "/first.tar: has");
      fs::resize_file(folder.path + "/first.tar", fs::file_size(folder.path + "/first.tar") - 512);
    } else {
      fs::create_directory(folder.path + "/Carla");
      open_dataset(folder.path);  // it has no pictures
      folder.write("Carla/0.jpg", jpeg_of(1));
      CHECK_THROWS(open_dataset(folder.path), Error, "/facetrain.index: does not list Carla");
      fs::remove_all(folder.path + "/Carla");
      fs::rename(folder.path + "/Bea", folder.path + "/Bert");
      CHECK_THROWS(open_dataset(folder.path), Error, "/facetrain.index: lists Bea, which is not there");
      fs::rename(folder.path + "/Bert", folder.path + "/Bea");
    }
    const std::string index = folder.read(kIndexFile);
    const auto refused = [&](const std::string& text, const std::string& changed) {
      folder.write(kIndexFile, changed);
      CHECK_THROWS(open_dataset(folder.path), Error, "facetrain.index: " + text);
    };
    refused("is cut short", index.substr(0, 20));
    refused("is cut short", index.substr(0, index.size() - 8));
    refused("is no index", "x" + index);
    std::string next = index;
    next[7] = '2';
    refused("is the index of another version", next);
    for (size_t at = 8; at < index.size(); ++at) {  // every byte counts
      std::string changed = index;
      changed[at] ^= 4;
      folder.write(kIndexFile, changed);
      CHECK_THROWS(open_dataset(folder.path), Error, "facetrain.index: is ");
    }
  }
}

void test_index_keeps_labels() {
  Folder folder;
  write_people(folder);
  const auto index = [&] { write_index(*list_pictures(folder.path), folder.path); };
  index();
  folder.write("Adam/0.jpg", jpeg_of(1));  // in the order of names it is the second
  folder.write("Zz/0.jpg", jpeg_of(2));
  index();
  CHECK(folders_of(*open_dataset(folder.path)) == (std::vector<std::string>{"Aaron", "Bea", "Zoe", "Adam", "Zz"}));
  fs::remove_all(folder.path + "/Bea");
  fs::remove_all(folder.path + "/Zz");
  CHECK_THROWS(open_dataset(folder.path), Error, "/facetrain.index: lists Bea, which is not there; write it again");
  index();
  const auto dataset = open_dataset(folder.path);
  CHECK(labels_of(*dataset) == (std::vector<int64_t>{0, 0, 0, 2, 2, 3}));
  CHECK_EQ(dataset->identities(), 5);
  CHECK_EQ(dataset->name(5), folder.path + "/Adam/0.jpg");
  // A label is never given to another: Bea has hers when she is back.
  folder.write("Bea/9.jpg", jpeg_of(3));
  CHECK_THROWS(open_dataset(folder.path), Error, "/facetrain.index: does not list Bea; write it again");
  index();
  CHECK(labels_of(*open_dataset(folder.path)) == (std::vector<int64_t>{0, 0, 0, 1, 2, 2, 3}));
  // Whose labels are whose is not known from a damaged one.
  folder.write(kIndexFile, "x" + folder.read(kIndexFile));
  CHECK_THROWS(index(), Error, "facetrain.index: is no index of a dataset; remove it, and write it again");
}

// ---- summary and copies ----

void test_summary() {
  Folder folder;
  write_people(folder);                       // Aaron 3, Bea 2, Zoe 2; picture 0 of all is the same
  folder.write("Carla/0.jpg", jpeg_of(200));  // one picture
  folder.write("Zoe/2.jpg", jpeg_of(40));     // as Zoe/1.jpg, and Aaron/1.jpg
  const auto dataset = open_dataset(folder.path);
  const std::atomic<bool> running{false}, stopped{true};
  for (const int threads : {1, 3}) {
    std::atomic<int64_t> done{0};
    const Summary summary = summarize(*dataset, threads, done, running);
    CHECK_EQ(done.load(), 9);
    CHECK_EQ(summary.identities, 4);
    CHECK_EQ(summary.least, 1);
    CHECK_EQ(summary.median, 3);
    CHECK_EQ(summary.most, 3);
    CHECK_EQ(summary.with_one, 1);
    CHECK_EQ(summary.within.count, 1);
    CHECK_EQ(summary.within.examples.at(0).first, folder.path + "/Zoe/1.jpg");
    CHECK_EQ(summary.within.examples.at(0).second, folder.path + "/Zoe/2.jpg");
    CHECK_EQ(summary.across.count, 4);  // 0.jpg of Bea and of Zoe, 1.jpg of Bea and of Zoe
    CHECK_EQ(summary.across.examples.at(0).first, folder.path + "/Aaron/0.jpg");
    CHECK_EQ(summary.across.examples.at(0).second, folder.path + "/Bea/0.jpg");
    CHECK_THROWS(summarize(*dataset, threads, done, stopped), Cancelled, "");
  }
}

void test_pack() {
  Folder folder;
  write_people(folder);
  folder.write("Bea/x.png", "\x89PNG no picture");             // is copied all the same
  fs::create_symlink("/nowhere", folder.path + "/Bea/y.jpg");  // cannot be read
  const auto dataset = open_dataset(folder.path);
  std::atomic<int64_t> done{0};
  const std::atomic<bool> running{false}, stopped{true};
  Folder all, some, again;
  const std::vector<int64_t> everything{0, 1, 2}, two{-1, 1, 0};
  const Packed packed = pack(*dataset, everything, all.path, 5000, done, running);
  CHECK_EQ(done.load(), 9);
  CHECK_EQ(packed.pictures, 8);
  CHECK(packed.shards > 1);
  CHECK_EQ(packed.left_out.size(), 1u);
  CHECK(packed.left_out.at(0).find("/Bea/y.jpg: cannot be opened") != std::string::npos);
  const auto copy = open_dataset(all.path);
  CHECK(labels_of(*copy) == (std::vector<int64_t>{0, 0, 0, 1, 1, 1, 2, 2}));
  for (int64_t i = 0; i < 5; ++i) CHECK(copy->encoded(i) == dataset->encoded(i));
  CHECK(copy->name(5).find(", 000000005.png at byte") != std::string::npos);
  CHECK_EQ(std::system(("tar -tf " + all.path + "/000000.tar > /dev/null").c_str()), 0);  // GNU tar reads it
  fs::remove(all.path + "/" + kIndexFile);
  CHECK(labels_of(*open_dataset(all.path)) == labels_of(*copy));  // the index is that of the shards

  pack(*dataset, two, some.path, 1 << 20, done, running);
  CHECK(labels_of(*open_dataset(some.path)) == (std::vector<int64_t>{1, 1, 1, 0, 0}));
  CHECK_EQ(std::distance(fs::directory_iterator(some.path), {}), 2);  // nothing temporary
  pack(*dataset, two, again.path, 1 << 20, done, running);
  CHECK(some.read("000000.tar") == again.read("000000.tar"));
  CHECK_THROWS(pack(*dataset, two, again.path, 1 << 20, done, stopped), Cancelled, "");
  CHECK_THROWS(pack(*dataset, std::vector<int64_t>{-1, -1, -1}, again.path, 1, done, running), Error, "no identity");
  CHECK_THROWS(pack(*dataset, two, again.path + "/none", 1, done, running), Error, "cannot be written");
}

// ---- random damage ----

// A damaged archive gives an Error or pictures, and never a read outside the file. (Run under AddressSanitizer by
// hand.)
void test_random_damage() {
  Folder folder;
  write_samples(folder);
  const std::string deep = "first/" + std::string(90, 'd') + "/" + std::string(80, 'k');
  folder.write(deep + ".jpg", jpeg_of(9));
  folder.write(deep + ".cls", "4");
  std::mt19937 random(1);
  for (const char* format : {"--format=gnu", "--format=pax"}) {
    folder.tar("in", "first", format);
    const std::string whole = folder.read("in");
    int refused = 0, read = 0;
    for (int i = 0; i < 1000; ++i) {
      std::string damaged = whole;
      if (i % 4 == 0) damaged.resize(random() % whole.size() + 1);
      for (uint32_t change = 0; change < 1 + i % 3u; ++change) {
        const size_t at = random() % damaged.size();
        damaged[at] = static_cast<char>(random());
        // Half of the damaged headers get their checksum again, so that the fields behind it are read.
        const size_t header = at / 512 * 512;
        if (i % 2 == 0 || header + 512 > damaged.size()) continue;
        uint32_t sum = 8 * ' ';
        for (size_t k = 0; k < 512; ++k) {
          if (k < 148 || k >= 156) sum += static_cast<uint8_t>(damaged[header + k]);
        }
        std::snprintf(damaged.data() + header + 148, 8, "%06o", sum);
      }
      const std::vector<uint8_t> bytes = bytes_of(damaged);
      try {
        uint64_t offset = 0;
        while (const auto member = read_tar_member(bytes, offset)) {
          CHECK(member->next > offset);
          CHECK(member->data + member->size <= bytes.size());
          offset = member->next;
        }
        ++read;
      } catch (const std::runtime_error&) {
        ++refused;
      }
      if (i % 10 != 0) continue;
      Folder other;
      other.write("0.tar", damaged);
      try {
        const auto dataset = open_dataset(other.path);
        for (int64_t k = 0; k < dataset->size(); ++k) dataset->encoded(k);
      } catch (const Error& error) {
        CHECK_EQ(error.code, std::string("InvalidDataset"));
      }
    }
    CHECK(refused > 100);
    CHECK(read > 100);
  }
  for (int i = 0; i < 20000; ++i) {  // JSON
    std::string json = R"({"a": {"label": [1, "}"]}, "label": 3, "b": "x\"y"})";
    for (int change = 0; change < 1 + i % 3; ++change) json[random() % json.size()] = "{}[]\",:\\ 1l"[random() % 11];
    if (i % 2) json.resize(random() % json.size());
    try {
      label_of_json(json);
    } catch (const std::runtime_error&) {
    }
  }
}

}  // namespace

int main() {
  test_image_folder();
  test_labels_open_no_picture();
  test_image_folder_is_refused();
  test_tar_shards();
  test_long_names();
  test_samples_are_refused();
  test_json_labels();
  test_archives_are_refused();
  test_end_marks();
  test_index();
  test_index_keeps_labels();
  test_summary();
  test_pack();
  test_random_damage();
  return TEST_RESULT();
}
