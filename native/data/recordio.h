// Reads dmlc-core's RecordIO format (include/dmlc/recordio.h) from a file that is mapped into memory.
//
// A record consists of one or more parts: u32 magic, u32 cflag << 29 | length, `length` bytes, zeros up to a multiple
// of four. cflag is 0 for a whole record, otherwise 1 for the first, 2 for a middle and 3 for the last part. A payload
// that contains the magic at a multiple of four is split there, and the file omits that magic.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace facetrain {

// A file mapped for reading. It must not shrink while it is open: reading past its end raises SIGBUS.
class MappedFile {
 public:
  // Throws Error(InvalidDataset) when the file is missing, empty, or not a regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  // Turns off the system's read-ahead.
  void expect_random_access() const;
  // Starts to read the bytes [begin, end) from disk without waiting.
  void will_need(uint64_t begin, uint64_t end) const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

constexpr uint32_t kRecordMagic = 0xced7230a;

// The payload of the record at byte `offset`: a view of `file` when the record has one part, otherwise of `joined`.
// Throws std::runtime_error when the record is damaged; its message is made to follow "record 7 at byte 1234: ".
std::span<const uint8_t> read_record(std::span<const uint8_t> file, uint64_t offset, std::vector<uint8_t>& joined);

}  // namespace facetrain
