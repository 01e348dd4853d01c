// Memory for the activations of all calibration pictures. What does not fit into memory lies in a file without a name,
// which the system writes out and reads back as it needs the memory (mmap), and which is gone when the process ends.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace facetrain {

// Where activations are kept, and how much memory they may take. No defaults.
struct ActivationSpace {
  int64_t memory_bytes;   // a pass that needs more keeps its activations in a file
  std::string directory;  // of that file: on a disk, not in memory
};

// Zeroed bytes, in memory or in a file.
class ActivationBytes {
 public:
  ActivationBytes() = default;
  // Throws Error(InsufficientMemory) when there is no memory, no room in `directory`, or that is a tmpfs; null: in
  // memory.
  ActivationBytes(int64_t size, const std::string* directory);
  ActivationBytes(ActivationBytes&& other) noexcept { *this = std::move(other); }
  ActivationBytes& operator=(ActivationBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  ~ActivationBytes();

  void* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
  bool mapped_ = false;  // from a file
};

// `count` values of a number type.
template <typename T>
class Activations {
 public:
  Activations() = default;
  Activations(int64_t count, const std::string* directory)
      : bytes_(count * static_cast<int64_t>(sizeof(T)), directory), count_(count) {}

  T* data() { return static_cast<T*>(bytes_.data()); }
  const T* data() const { return static_cast<const T*>(bytes_.data()); }
  int64_t size() const { return count_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + count_; }
  T operator[](int64_t i) const { return data()[i]; }

 private:
  ActivationBytes bytes_;
  int64_t count_ = 0;
};

}  // namespace facetrain
