// A file that is written from start to end, under a temporary name until it is complete.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace facetrain {

class OutputFile {
 public:
  // Writes to a hidden file beside `path`. Throws Error(StorageFailed), or Error(DiskFull), as all functions here do.
  explicit OutputFile(const std::string& path);
  // Removes the file unless it was completed.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const uint8_t> bytes);
  // Bytes that were written so far.
  uint64_t size() const { return size_; }
  // Flushes the file to disk and gives it its name.
  void complete();

 private:
  void write_buffer();

  const std::string path_, temporary_;
  int fd_;
  uint64_t size_ = 0;
  std::vector<uint8_t> buffer_;
};

}  // namespace facetrain
