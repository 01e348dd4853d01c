#include "data/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "error.h"

namespace facetrain {
namespace {

constexpr size_t kBuffer = 1 << 20;

[[noreturn]] void refuse(const std::string& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  throw Error(full ? "DiskFull" : "StorageFailed", path,
              std::string("cannot be written (") + std::strerror(error) + ")",
              full ? "a disk with more space" : "a folder that this user may write");
}

std::string temporary_of(const std::filesystem::path& path) {
  std::string name = ".";
  name += path.filename().string();
  name += ".partial";
  return path.parent_path() / name;
}

}  // namespace

OutputFile::OutputFile(const std::string& path)
    : path_(path),
      temporary_(temporary_of(path)),
      fd_(open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (fd_ < 0) refuse(path_, errno);
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void OutputFile::write(std::span<const uint8_t> bytes) {
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  size_ += bytes.size();
  if (buffer_.size() >= kBuffer) write_buffer();
}

void OutputFile::write_buffer() {
  for (size_t at = 0; at < buffer_.size();) {
    const ssize_t written = ::write(fd_, buffer_.data() + at, buffer_.size() - at);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) refuse(path_, errno);
    at += static_cast<size_t>(written);
  }
  buffer_.clear();
}

void OutputFile::complete() {
  write_buffer();
  if (fsync(fd_) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) refuse(path_, errno);
  close(fd_);
  fd_ = -1;
}

}  // namespace facetrain
