// Time and memory of what runs on a CPU or a CUDA device.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#if defined(FACETRAIN_CUDA)
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace facetrain::bench {

// Returns when the device has done all work.
inline void synchronize([[maybe_unused]] at::Device device) {
#if defined(FACETRAIN_CUDA)
  if (device.is_cuda()) c10::cuda::device_synchronize();
#endif
}

// 0 for no values.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

class Stopwatch {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// A moment in the work of a device: of its current stream on CUDA, which the host does not wait for.
class Moment {
 public:
  explicit Moment(at::Device device) {
    if (!device.is_cuda()) return;
    event_.emplace(device.type(), c10::EventFlag::BACKEND_DEFAULT);  // the kind with a time
    event_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  }
  // Call it after synchronize().
  double milliseconds_until(const Moment& end) const {
    if (event_) return event_->elapsedTime(*end.event_);
    return std::chrono::duration<double, std::milli>(end.time_ - time_).count();
  }

 private:
  const std::chrono::steady_clock::time_point time_ = std::chrono::steady_clock::now();
  std::optional<c10::Event> event_;
};

// Memory in bytes: of this process, or what its tensors take of the device.
struct Memory {
  int64_t now = 0, peak = 0;
};

inline Memory resident_memory() {
  Memory memory;
  std::ifstream status("/proc/self/status");
  int64_t kibibytes = 0;
  for (std::string word; status >> word;) {
    if (word == "VmRSS:" && status >> kibibytes) memory.now = kibibytes * 1024;
    if (word == "VmHWM:" && status >> kibibytes) memory.peak = kibibytes * 1024;
  }
  return memory;
}

inline Memory device_memory([[maybe_unused]] at::Device device) {
#if defined(FACETRAIN_CUDA)
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    return {stats.allocated_bytes[0].current, stats.allocated_bytes[0].peak};
  }
#endif
  return {};
}

// Peaks count from here.
inline void reset_peaks([[maybe_unused]] at::Device device) {
  std::ofstream("/proc/self/clear_refs") << 5;  // proc(5): the peak of resident memory is set to the present value
#if defined(FACETRAIN_CUDA)
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
#endif
}

inline constexpr double kMiB = 1 << 20;

}  // namespace facetrain::bench
