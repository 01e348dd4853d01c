// Threads that share the indices of a loop, for the torch-free parts (libtorch has its own pool).
//
// Each index is claimed by one atomic increment, so calls should take microseconds at least. Between loops the threads
// sleep.
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
  // `threads` includes the thread that calls parallel_for; the pool starts one fewer.
  // Throws std::system_error if the system gives no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, thread) once for every index in [0, count), with `thread` in [0, threads()); two calls at the
  // same time have different threads. Returns when all calls have ended. When one throws, no further calls start, and
  // the first exception is rethrown here. Not reentrant, and for one calling thread at a time.
  void parallel_for(int64_t count, const std::function<void(int64_t index, int thread)>& body);

 private:
  void start(int threads);
  void stop();
  void work(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_, except next_.
  int64_t generation_ = 0;  // counts the loops
  int busy_ = 0;
  bool ending_ = false;
  std::exception_ptr error_;
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
};

}  // namespace facetrain
