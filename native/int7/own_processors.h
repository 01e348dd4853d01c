// Threads that wait for each other actively, each on a processor of its own.
//
// A thread that is woken beside others may get the processor of one of them, although another is free: the system looks
// at its load again only milliseconds later. Until then two would take turns at each barrier, which takes three times
// as long as one thread alone.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#if defined(__linux__)
#include <sched.h>
#endif

namespace facetrain::int7 {

class OwnProcessors {
 public:
  // Called by each thread once. One that is on a processor that another has taken moves to a free one; where there is
  // none, or on other systems than Linux, it stays. Its affinity is as before.
  void take() {
#if defined(__linux__)
    cpu_set_t allowed;
    for (int attempt = 0; attempt < kAttempts && !take_current(); ++attempt) {
      if (attempt == 0 && sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
      cpu_set_t free = allowed;
      for (int cpu = 0; cpu < kProcessors; ++cpu) {
        if (word_of(cpu).load() & bit_of(cpu)) CPU_CLR(cpu, &free);
      }
      if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return;
      sched_setaffinity(0, sizeof allowed, &allowed);
    }
#endif
  }

 private:
#if defined(__linux__)
  static constexpr int kProcessors = CPU_SETSIZE, kAttempts = 4;

  static uint64_t bit_of(int cpu) { return uint64_t{1} << (cpu % 64); }
  std::atomic<uint64_t>& word_of(int cpu) { return taken_[cpu / 64]; }
  // False if another thread has it. An unknown processor is nobody's.
  bool take_current() {
    const int cpu = sched_getcpu();
    return cpu < 0 || cpu >= kProcessors || !(word_of(cpu).fetch_or(bit_of(cpu)) & bit_of(cpu));
  }

  std::array<std::atomic<uint64_t>, kProcessors / 64> taken_{};
#endif
};

}  // namespace facetrain::int7
