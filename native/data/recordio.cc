#include "data/recordio.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "error.h"

namespace facetrain {
namespace {

[[noreturn]] void refuse_file(const std::string& path, const std::string& found) {
  throw Error(
      "InvalidDataset", path, found,
      "a dataset is a folder with train.rec, train.idx and property; with *.tar; or with a folder of pictures for "
      "each identity");
}

uint32_t word_at(std::span<const uint8_t> file, uint64_t offset) {
  uint32_t word;
  std::memcpy(&word, file.data() + offset, sizeof(word));
  return word;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) refuse_file(path, std::string("cannot be opened (") + std::strerror(errno) + ")");
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(fd);
    refuse_file(path, "is no file");
  }
  size_ = static_cast<size_t>(status.st_size);
  void* data = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  close(fd);
  if (size_ == 0) refuse_file(path, "is empty");
  if (data == MAP_FAILED) refuse_file(path, std::string("cannot be mapped (") + std::strerror(error) + ")");
  data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), size_); }

void MappedFile::expect_random_access() const { madvise(const_cast<uint8_t*>(data_), size_, MADV_RANDOM); }

void MappedFile::will_need(uint64_t begin, uint64_t end) const {
  static const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  begin -= begin % page;
  if (begin < end) madvise(const_cast<uint8_t*>(data_) + begin, end - begin, MADV_WILLNEED);
}

std::span<const uint8_t> read_record(std::span<const uint8_t> file, uint64_t offset, std::vector<uint8_t>& joined) {
  enum : uint32_t { kWhole = 0, kFirst = 1, kMiddle = 2, kLast = 3 };
  joined.clear();
  for (bool first = true;; first = false) {
    if (offset > file.size() || file.size() - offset < 8) throw std::runtime_error("the file ends before it");
    if (word_at(file, offset) != kRecordMagic) {
      throw std::runtime_error("no record starts at byte " + std::to_string(offset));
    }
    const uint32_t word = word_at(file, offset + 4);
    const uint32_t part = word >> 29, length = word & ((1u << 29) - 1);
    offset += 8;
    if (file.size() - offset < length) {
      throw std::runtime_error("it needs " + std::to_string(length) + " bytes, and the file has " +
                               std::to_string(file.size() - offset) + " left: the file was cut short");
    }
    const auto payload = file.subspan(offset, length);
    const bool fits = first ? part == kWhole || part == kFirst : part == kMiddle || part == kLast;
    if (!fits) throw std::runtime_error("its parts are out of order (cflag " + std::to_string(part) + ")");
    if (part == kWhole) return payload;
    if (!first) {
      const auto* magic = reinterpret_cast<const uint8_t*>(&kRecordMagic);
      joined.insert(joined.end(), magic, magic + sizeof(kRecordMagic));
    }
    joined.insert(joined.end(), payload.begin(), payload.end());
    if (part == kLast) return joined;
    offset += (uint64_t{length} + 3) & ~uint64_t{3};
  }
}

}  // namespace facetrain
