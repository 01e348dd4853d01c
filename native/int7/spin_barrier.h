// A barrier for threads that meet every few microseconds: they wait actively, and give up the processor only after a
// while.
#pragma once

#include <atomic>
#include <thread>

namespace facetrain::int7 {

class SpinBarrier {
 public:
  explicit SpinBarrier(int threads) : threads_(threads) {}

  // Returns once all threads have called it. What each wrote before is visible to all.
  void wait() {
    const int generation = generation_.load();
    if (arrived_.fetch_add(1) + 1 == threads_) {
      arrived_ = 0;
      generation_ = generation + 1;
      return;
    }
    for (int spins = 0; generation_.load() == generation; ++spins) {
      if (spins > kSpins) {
        std::this_thread::yield();
      } else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
      }
    }
  }

 private:
  static constexpr int kSpins = 1000;  // some 50 microseconds

  const int threads_;
  std::atomic<int> arrived_{0}, generation_{0};
};

}  // namespace facetrain::int7
