// train.labels: the label of each picture as an int64, beside train.rec. Records store labels as float32, which is
// exact only up to 2^24; a dataset of more identities needs this file.
//
// Little-endian: the 8 bytes "FTLABEL1"; u64 number of pictures; u64 digest of train.idx (hash_words over its words of
// 8 bytes, so that a file which belongs to another index is noticed); an int64 for each picture, by rising key.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "data/recordio.h"

namespace facetrain {

class LabelsFile {
 public:
  // Opens DIRECTORY/train.labels; empty when there is none. Throws Error(InvalidDataset) when it is damaged, belongs to
  // another train.idx, or does not have `pictures` labels.
  static std::optional<LabelsFile> open(const std::string& directory, int64_t pictures);

  int64_t label(int64_t picture) const;

 private:
  explicit LabelsFile(std::unique_ptr<MappedFile> file) : file_(std::move(file)) {}
  std::unique_ptr<MappedFile> file_;
};

// Writes DIRECTORY/train.labels for the train.idx that is there: under a temporary name, which then becomes the file's.
// Throws Error(InvalidDataset) when train.idx cannot be read, and Error(StorageFailed).
void write_labels(const std::string& directory, std::span<const int64_t> labels);

}  // namespace facetrain
