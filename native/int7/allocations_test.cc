// A run of the C library allocates no memory, not even the first one of a thread: malloc and its like are counted.
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "int7/facetrain_int7.h"
#include "int7/testing/onnx_file.h"
#include "test/check.h"

#if defined(__GLIBC__)
namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void count() {
  if (counting) ++allocations;
}
}  // namespace

// The program's own functions, which glibc and libstdc++ call, too. Those behind them are glibc's.
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier, readability-identifier-naming)
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* old, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) { return count(), __libc_malloc(size); }
void* calloc(size_t nmemb, size_t size) { return count(), __libc_calloc(nmemb, size); }
void* realloc(void* ptr, size_t size) { return count(), __libc_realloc(ptr, size); }
void* memalign(size_t alignment, size_t size) { return count(), __libc_memalign(alignment, size); }
void* aligned_alloc(size_t alignment, size_t size) { return count(), __libc_memalign(alignment, size); }
int posix_memalign(void** memptr, size_t alignment, size_t size) {
  count();
  *memptr = __libc_memalign(alignment, size);
  return *memptr ? 0 : ENOMEM;
}
// NOLINTEND(bugprone-reserved-identifier, readability-identifier-naming)
}

namespace facetrain::int7 {
namespace {

// Every caller is a new thread, for which this run is the first call of the library.
void test_runs(const std::string& file, int threads) {
  constexpr int kCallers = 3;
  ft_int7_model* model = nullptr;
  CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), nullptr, &model)}, int{FT_INT7_OK});
  ft_int7_info info;
  CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
  const std::vector<uint8_t> picture(size_t(info.height) * info.width * info.channels, 77);
  std::vector<ft_int7_context*> contexts(kCallers);
  std::vector<std::vector<float>> outputs(kCallers, std::vector<float>(info.output_size));
  std::vector<int> statuses(kCallers, -1);
  for (auto& context : contexts) CHECK_EQ(int{ft_int7_create_context(model, threads, &context)}, int{FT_INT7_OK});
  std::atomic<int> ready{0}, done{0};
  std::atomic<bool> ended{false};
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      ++ready;
      while (!counting) std::this_thread::yield();
      for (int run = 0; run < 2; ++run) statuses[i] = ft_int7_run(contexts[i], picture.data(), outputs[i].data());
      ++done;
      while (!ended) std::this_thread::yield();  // its end is not counted
    });
  }
  while (ready < kCallers) std::this_thread::yield();
  allocations = 0;
  counting = true;
  while (done < kCallers) std::this_thread::yield();
  counting = false;
  ended = true;
  for (auto& caller : callers) caller.join();
  CHECK_EQ(allocations.load(), 0);
  for (int i = 0; i < kCallers; ++i) {
    CHECK_EQ(statuses[i], int{FT_INT7_OK});
    CHECK(outputs[i] == outputs[0]);
    ft_int7_free_context(contexts[i]);
  }
  ft_int7_free_model(model);
}

// Else the test could not fail.
void test_counts() {
  counting = true;
  const std::string long_text(1000, 'x');
  counting = false;
  CHECK(allocations > 0);
  CHECK_EQ(long_text.size(), size_t{1000});
}

}  // namespace
}  // namespace facetrain::int7

int main() {
  using namespace facetrain::int7;
  test_counts();
  for (const int threads : {1, 2}) {
    test_runs(testing::onnx_file(), threads);
    test_runs(testing::detector_file(), threads);
  }
  return TEST_RESULT();
}
#else
int main() { return 0; }  // another libc has other names for its own functions
#endif
