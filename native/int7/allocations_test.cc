// The memory of the C library. A run allocates none, not even the first one of a thread; and a model takes as much as
// `largest_memory` has to allow. For both, malloc and its like are counted.
#if defined(__linux__)
#include <malloc.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
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
std::atomic<int64_t> bytes{0}, most_bytes{0};

void* counted(void* block) {
  if (!counting) return block;
  ++allocations;
  const int64_t now = bytes += static_cast<int64_t>(malloc_usable_size(block));
  for (int64_t most = most_bytes; most < now && !most_bytes.compare_exchange_weak(most, now);) continue;
  return block;
}
}  // namespace

// The program's own functions, which glibc and libstdc++ call, too. Those behind them are glibc's.
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier, readability-identifier-naming)
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* old, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* block);

void free(void* ptr) {
  if (counting) bytes -= static_cast<int64_t>(malloc_usable_size(ptr));
  __libc_free(ptr);
}
void* malloc(size_t size) { return counted(__libc_malloc(size)); }
void* calloc(size_t nmemb, size_t size) { return counted(__libc_calloc(nmemb, size)); }
void* realloc(void* ptr, size_t size) {
  if (counting) bytes -= static_cast<int64_t>(malloc_usable_size(ptr));
  return counted(__libc_realloc(ptr, size));
}
void* memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
int posix_memalign(void** memptr, size_t alignment, size_t size) {
  *memptr = counted(__libc_memalign(alignment, size));
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

// Loads a model with the least `largest_memory` that is allowed, which the refusal of 1 byte more names, and runs it.
void test_largest_memory(const std::string& file, bool from_file, const char* instruction_set, int channels) {
  const std::string path = "allocations_test_" + std::to_string(getpid()) + ".onnx";
  std::ofstream(path, std::ios::binary) << file;
  ft_int7_options options = {};
  options.instruction_set = instruction_set;
  ft_int7_model* model = nullptr;
  const auto load = [&] {
    return from_file ? ft_int7_load_file(path.c_str(), &options, &model)
                     : ft_int7_load_memory(file.data(), file.size(), &options, &model);
  };
  for (options.largest_memory = 1; load() != FT_INT7_OK;) {
    const std::string message = ft_int7_last_error();
    const size_t number = message.find("takes ");
    CHECK(number != std::string::npos);
    if (number == std::string::npos) return;
    const int64_t needed = std::atoll(message.c_str() + number + 6);
    CHECK(needed > options.largest_memory);
    options.largest_memory = needed;
  }
  ft_int7_info info;
  CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
  ft_int7_free_model(model);
  const std::vector<uint8_t> picture(int64_t{info.height} * info.width * info.channels, 77);
  std::vector<float> outputs(info.output_size);
  bytes = most_bytes = 0;
  counting = true;
  ft_int7_context* context = nullptr;
  const bool computed = load() == FT_INT7_OK && ft_int7_create_context(model, 1, &context) == FT_INT7_OK &&
                        ft_int7_run(context, picture.data(), outputs.data()) == FT_INT7_OK;
  ft_int7_free_context(context);
  ft_int7_free_model(model);
  counting = false;
  std::remove(path.c_str());
  CHECK(computed);
  CHECK_EQ(bytes.load(), int64_t{0});
  // What is not counted: names, lists, and the epilogues' numbers of each channel.
  const int64_t lists = 40'000 + int64_t{100} * channels;
  CHECK(most_bytes <= options.largest_memory + lists);
  CHECK(2 * most_bytes >= options.largest_memory);
}

// Two convolutions of 3x3: the second one's weights are most of the file, and it takes far more memory where
// Winograd's tiles compute it.
std::string file_of_convolutions(int channels) {
  using namespace testing;
  Message graph;
  graph.message(11, value_info("data", {1, 3, 16, 16}));
  graph.message(12, value_info("map", {1, channels, 16, 16}));
  graph.message(5, constant<uint8_t>("zero", 2, {}, {128}));
  add_pair(graph, "data", 1.0f / 128);
  const auto conv = [&](const std::string& name, const std::string& x, int in, float scale, const std::string& y) {
    add_weights(graph, name, {channels, in, 3, 3}, scale);
    graph.message(
        1, node(name, "Conv", {x, name + ".weight", name + ".bias"}, y).message(5, integers("pads", {1, 1, 1, 1})));
  };
  conv("first", "data.dq", 3, 1.0f / 128, "x");
  add_pair(graph, "x", 0.1f);
  conv("second", "x.dq", channels, 0.1f, "map");
  return int7_file(graph);
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
  for (const bool from_file : {true, false}) {
    // The best, which may have Winograd's tiles, and one that has not.
    for (const char* instruction_set : {static_cast<const char*>(nullptr), "portable"}) {
      for (const int channels : {128, 256})
        test_largest_memory(file_of_convolutions(channels), from_file, instruction_set, channels);
    }
  }
  return TEST_RESULT();
}
#else
int main() { return 0; }  // another libc has other names for its own functions
#endif
