// A file of records as dmlc-core writes it (include/dmlc/recordio.h), mapped into memory.
//
// A record is one or more parts: magic | cflag << 29 | length, then `length` bytes, then zeros up to a multiple of
// four. A payload that holds the magic at a multiple of four is split there; the magic between two parts is left out of
// the file.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace facetrain {

// A file mapped for reading. It must not shrink while it is open: the system would answer with SIGBUS.
class MappedFile {
 public:
  // Throws Error(InvalidDataset).
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  // The file is read here and there: the system need not read on behind what is asked for.
  void expect_random_access() const;
  // Starts to read a range of the file from disk, and does not wait.
  void will_need(uint64_t begin, uint64_t end) const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

constexpr uint32_t kRecordMagic = 0xced7230a;

// The payload of the record at `offset`: a view into `file` when it has one part, otherwise into `joined`. Throws
// std::runtime_error with what is wrong, in words that follow "record 7 at byte 1234: ".
std::span<const uint8_t> read_record(std::span<const uint8_t> file, uint64_t offset, std::vector<uint8_t>& joined);

}  // namespace facetrain
