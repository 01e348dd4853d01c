#include "data/labels_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "counted.h"
#include "data/file_kind.h"
#include "error.h"
#include "random.h"

namespace facetrain {
namespace {

constexpr char kMagic[8] = {'F', 'T', 'L', 'A', 'B', 'E', 'L', '1'};

struct Header {
  char magic[8];
  uint64_t pictures, index_digest;
};
static_assert(sizeof(Header) == 24);

uint64_t digest_of_index(const std::string& directory) {
  const MappedFile index(directory + "/train.idx");
  const auto bytes = index.bytes();
  uint64_t digest = bytes.size();
  for (size_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min(sizeof(word), bytes.size() - i));
    digest = hash_words({digest, word});
  }
  return digest;
}

}  // namespace

std::optional<LabelsFile> LabelsFile::open(const std::string& directory, int64_t pictures) {
  const std::string path = directory + "/train.labels";
  if (!std::filesystem::exists(path)) return std::nullopt;
  auto file = std::make_unique<MappedFile>(path);
  const auto bytes = file->bytes();
  const auto refuse = [&](const std::string& found) {
    throw Error("InvalidDataset", path, found, "remove it, or write it again");
  };
  Header header{};
  std::memcpy(&header, bytes.data(), std::min(bytes.size(), sizeof(header)));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    const FileKind* const kind = name_kind(bytes);
    refuse(kind ? "is " + std::string(kind->name) : "is no file of labels");
  }
  if (header.pictures != static_cast<uint64_t>(pictures)) {
    refuse("has labels of " + counted(header.pictures, "picture") + ", but the dataset has " +
           std::to_string(pictures));
  }
  const size_t expected = sizeof(header) + sizeof(int64_t) * static_cast<size_t>(pictures);
  if (bytes.size() != expected) {
    refuse("has " + std::to_string(bytes.size()) + " bytes instead of " + std::to_string(expected));
  }
  if (header.index_digest != digest_of_index(directory)) refuse("belongs to another train.idx");
  return LabelsFile(std::move(file));
}

int64_t LabelsFile::label(int64_t picture) const {
  int64_t label;
  std::memcpy(&label, file_->bytes().data() + sizeof(Header) + sizeof(label) * static_cast<size_t>(picture),
              sizeof(label));
  return label;
}

void write_labels(const std::string& directory, std::span<const int64_t> labels) {
  const std::string path = directory + "/train.labels", temporary = path + ".tmp";
  Header header{{}, labels.size(), digest_of_index(directory)};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::ofstream file(temporary, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header), sizeof(header));
  file.write(reinterpret_cast<const char*>(labels.data()), static_cast<std::streamsize>(labels.size_bytes()));
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (!file || error) throw Error("StorageFailed", path, "cannot be written", "a folder with space for it");
}

}  // namespace facetrain
