#include "quant/activations.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "error.h"

namespace facetrain {
namespace {

// A new file that no folder lists; -1 with errno set when there can be none.
int unnamed_file(const std::string& directory) {
  const int fd = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  // NFS and overlayfs before Linux 6.1 have no O_TMPFILE.
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
  std::string path = directory + "/facetrain-activations-XXXXXX";
  const int named = mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) unlink(path.c_str());
  return named;
}

// Whether a file is in memory: what the activations shall not take.
bool is_in_memory(int fd) {
  constexpr uint32_t kTmpfs = 0x01021994, kRamfs = 0x858458f6;  // statfs(2)
  struct statfs system;
  if (fstatfs(fd, &system) != 0) return false;
  const auto type = static_cast<uint32_t>(system.f_type);
  return type == kTmpfs || type == kRamfs;
}

}  // namespace

ActivationBytes::ActivationBytes(int64_t size, const std::string* directory) : size_(size) {
  const auto refuse = [size](const std::string& subject, const char* problem, const std::string& allowed) {
    throw Error("InsufficientMemory", subject,
                "cannot hold " + std::to_string((size + (1 << 20) - 1) >> 20) + " MiB of activations (" + problem + ")",
                "fewer calibration pictures, " + allowed);
  };
  if (directory == nullptr) {
    // The allocator gives used memory again. New pages from mmap would cost a tenth of the search.
    data_ = ::operator new(static_cast<size_t>(size), std::nothrow);
    if (data_ == nullptr) refuse("memory of this machine", "out of memory", "or more memory");
    std::memset(data_, 0, static_cast<size_t>(size));
    return;
  }
  const int fd = unnamed_file(*directory);
  if (fd >= 0 && is_in_memory(fd)) {
    close(fd);
    refuse("folder " + *directory, "it lies in memory itself: tmpfs",
           "a folder on a disk (TMPDIR), or more memory for them (search.memory, --memory)");
  }
  // Reserves the blocks: writing to a page that the disk has no room for would be a SIGBUS.
  int error = fd < 0 ? errno : posix_fallocate(fd, 0, size);
  if (error == 0) {
    void* const mapped = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    error = mapped == MAP_FAILED ? errno : 0;
    mapped_ = error == 0;
    if (mapped_) data_ = mapped;
  }
  if (fd >= 0) close(fd);
  if (error != 0)
    refuse("folder " + *directory, std::strerror(error), "more memory, or more room in the folder that TMPDIR names");
}

ActivationBytes::~ActivationBytes() {
  if (mapped_) {
    munmap(data_, static_cast<size_t>(size_));
  } else {
    ::operator delete(data_);
  }
}

}  // namespace facetrain
