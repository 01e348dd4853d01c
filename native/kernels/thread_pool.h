// A few threads that share the indices of a loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace facetrain {

class ThreadPool {
 public:
  // `threads` counts the calling one.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, thread) for every index below `count`, thread being below threads(). Returns when all are done;
  // after a call has thrown, no further ones start, and the first exception is thrown here. Not reentrant.
  void parallel_for(int64_t count, const std::function<void(int64_t index, int thread)>& body);

 private:
  void work(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t generation_ = 0;  // under mutex_, as all that follows but next_
  int busy_ = 0;
  bool ending_ = false;
  std::exception_ptr error_;
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
};

}  // namespace facetrain
