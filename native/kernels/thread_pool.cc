#include "kernels/thread_pool.h"

#include <utility>

namespace facetrain {

ThreadPool::ThreadPool(int threads) {
  try {
    start(threads);
  } catch (...) {
    stop();  // A thread that is destroyed before it is joined ends the program.
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::start(int threads) {
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] {
      for (int64_t seen = 0;;) {
        {
          std::unique_lock lock(mutex_);
          changed_.wait(lock, [&] { return ending_ || generation_ != seen; });
          if (ending_) return;
          seen = generation_;
        }
        work(thread);
        std::lock_guard lock(mutex_);
        if (--busy_ == 0) changed_.notify_all();
      }
    });
  }
}

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::work(int thread) {
  try {
    for (int64_t index; (index = next_++) < count_;) (*body_)(index, thread);
  } catch (...) {
    next_ = count_;
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t, int)>& body) {
  {
    std::lock_guard lock(mutex_);
    body_ = &body;
    count_ = count;
    next_ = 0;
    busy_ = static_cast<int>(workers_.size());
    ++generation_;
  }
  changed_.notify_all();
  work(0);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return busy_ == 0; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace facetrain
