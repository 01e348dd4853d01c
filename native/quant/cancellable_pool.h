// The thread pool of a search: its loops end once the search is cancelled, after the pictures or candidates that are
// being worked on. A layer of hundreds of pictures takes longer than a pod's grace period.
#pragma once

#include <atomic>
#include <cstdint>

#include "error.h"
#include "kernels/thread_pool.h"

namespace facetrain {

class CancellablePool {
 public:
  // Both arguments must outlive it.
  CancellablePool(ThreadPool& pool, const std::atomic<bool>& cancelled) : pool_(pool), cancelled_(cancelled) {}

  // Throws Cancelled once the search is cancelled: for loops that this pool does not run.
  void check() const {
    if (cancelled_) throw Cancelled();
  }

  // As ThreadPool's, with a check in front of each call.
  template <typename Body>
  void parallel_for(int64_t count, const Body& body) const {
    pool_.parallel_for(count, [&](int64_t index, int thread) {
      check();
      body(index, thread);
    });
  }

 private:
  ThreadPool& pool_;
  const std::atomic<bool>& cancelled_;
};

}  // namespace facetrain
