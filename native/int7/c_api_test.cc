// Tests the C library through its header.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "int7/facetrain_int7.h"
#include "int7/onnx_reader.h"
#include "int7/runtime.h"
#include "int7/testing/onnx_file.h"
#include "test/check.h"

namespace facetrain::int7 {
namespace {

void test_computes() {
  CHECK_EQ(ft_int7_abi_version(), FT_INT7_ABI_VERSION);
  const std::string file = testing::onnx_file();
  ft_int7_model* model = nullptr;
  CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), nullptr, &model)}, int{FT_INT7_OK});
  ft_int7_info info;
  CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
  CHECK_EQ(info.height, 7);
  CHECK_EQ(info.width, 9);
  CHECK_EQ(info.channels, 3);
  CHECK_EQ(info.output_size, 6);
  CHECK_EQ(info.output_count, 1);
  CHECK_EQ(info.version, 1);
  int64_t sizes[3] = {};
  for (const int threads : {1, 2, 3})
    CHECK_EQ(int{ft_int7_get_context_size(model, threads, &sizes[threads - 1])}, int{FT_INT7_OK});
  CHECK(sizes[0] > 10 * 4 * 5);
  CHECK(sizes[1] > sizes[0]);
  CHECK_EQ(sizes[2] - sizes[1], sizes[1] - sizes[0]);
  CHECK_EQ(int{ft_int7_get_context_size(model, 0, &sizes[0])}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK_EQ(int{ft_int7_get_context_size(model, 1, nullptr)}, int{FT_INT7_INVALID_ARGUMENT});
  ft_int7_output output;
  CHECK_EQ(int{ft_int7_get_output(model, 0, &output)}, int{FT_INT7_OK});
  CHECK_EQ(std::string(output.name), std::string("embedding"));
  CHECK_EQ(output.rank, 1);
  CHECK_EQ(output.dims[0], 6);
  CHECK_EQ(std::string(ft_int7_get_metadata(model, "facetrain.channelOrder")), std::string("bgr"));
  CHECK(ft_int7_get_metadata(model, "facetrain.nothing") == nullptr);
  CHECK_EQ(int{info.color_order}, int{FT_INT7_BGR});
  CHECK_EQ(info.mean[2], 127.5f);
  CHECK_EQ(info.std[0], 128.0f);

  std::vector<uint8_t> picture(7 * 9 * 3);
  for (size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<uint8_t>(i * 73);
  const Runtime runtime(read_onnx(reinterpret_cast<const uint8_t*>(file.data()), file.size()).network, Isa::portable);
  Runtime::Context memory(runtime);
  std::vector<float> expected(6);
  runtime.run(memory, picture.data(), expected.data());
  CHECK(expected[0] != expected[1]);
  ft_int7_context* contexts[2] = {};
  for (int i = 0; i < 2; ++i) CHECK_EQ(int{ft_int7_create_context(model, i + 1, &contexts[i])}, int{FT_INT7_OK});
  ft_int7_free_model(model);  // the contexts keep it
  for (ft_int7_context* context : contexts) {
    std::vector<float> actual(6);
    CHECK_EQ(int{ft_int7_run(context, picture.data(), actual.data())}, int{FT_INT7_OK});
    CHECK(actual == expected);
    ft_int7_free_context(context);
  }
}

// Threads that each have a context of the same model, one of them on two threads, compute at the same time.
void test_threads() {
  const std::string file = testing::detector_file();
  ft_int7_model* model = nullptr;
  CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), nullptr, &model)}, int{FT_INT7_OK});
  ft_int7_info info;
  CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
  const auto picture_of = [&](int caller) {
    std::vector<uint8_t> picture(int64_t{info.height} * info.width * info.channels);
    for (size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<uint8_t>(i * (73 + caller) + i / 50);
    return picture;
  };
  constexpr int kCallers = 3, kRuns = 50;
  std::vector<std::vector<float>> expected(kCallers, std::vector<float>(info.output_size));
  ft_int7_context* alone = nullptr;
  CHECK_EQ(int{ft_int7_create_context(model, 1, &alone)}, int{FT_INT7_OK});
  for (int i = 0; i < kCallers; ++i)
    CHECK_EQ(int{ft_int7_run(alone, picture_of(i).data(), expected[i].data())}, int{FT_INT7_OK});
  CHECK(expected[0] != expected[1]);
  ft_int7_free_context(alone);
  std::vector<int> right(kCallers);  // runs with the expected numbers
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      const std::vector<uint8_t> picture = picture_of(i);
      ft_int7_context* context = nullptr;
      if (ft_int7_create_context(model, i == 0 ? 2 : 1, &context) != FT_INT7_OK) return;
      for (int run = 0; run < kRuns; ++run) {
        std::vector<float> actual(info.output_size);
        if (ft_int7_run(context, picture.data(), actual.data()) == FT_INT7_OK && actual == expected[i]) ++right[i];
        // The reason of a failure is that of this thread's own call.
        ft_int7_run(context, nullptr, actual.data());
        if (std::string(ft_int7_last_error()).find("picture") == std::string::npos) right[i] = -kRuns;
      }
      ft_int7_free_context(context);
    });
  }
  for (auto& caller : callers) caller.join();
  for (const int runs : right) CHECK_EQ(runs, kRuns);
  CHECK_EQ(std::string(ft_int7_last_error()), std::string());
  ft_int7_free_model(model);
}

// Every instruction set of this processor, by its name, computes the same.
void test_instruction_sets() {
  const std::string file = testing::detector_file();
  std::vector<float> expected;
  const auto load = [&](const char* name) {
    ft_int7_options options = {};
    options.instruction_set = name;
    ft_int7_model* model = nullptr;
    const ft_int7_status status = ft_int7_load_memory(file.data(), file.size(), &options, &model);
    CHECK_EQ(model != nullptr, status == FT_INT7_OK);
    return model;
  };
  ft_int7_info info;
  std::string names;
  for (const Isa isa : kIsas) {
    if (!supported(isa)) {
      CHECK(load(name_of(isa)) == nullptr);
      continue;
    }
    names += std::string(names.empty() ? "" : ", ") + name_of(isa);
    ft_int7_model* model = load(name_of(isa));
    CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
    CHECK_EQ(std::string(info.instruction_set), std::string(name_of(isa)));
    ft_int7_context* context = nullptr;
    CHECK_EQ(int{ft_int7_create_context(model, 1, &context)}, int{FT_INT7_OK});
    const std::vector<uint8_t> picture(int64_t{info.height} * info.width * info.channels, 200);
    std::vector<float> outputs(info.output_size);
    CHECK_EQ(int{ft_int7_run(context, picture.data(), outputs.data())}, int{FT_INT7_OK});
    if (expected.empty()) expected = outputs;
    CHECK(outputs == expected);
    ft_int7_free_context(context);
    ft_int7_free_model(model);
  }
  ft_int7_model* best = load(nullptr);
  CHECK_EQ(int{ft_int7_get_info(best, &info)}, int{FT_INT7_OK});
  CHECK_EQ(std::string(info.instruction_set), std::string(name_of(best_isa())));
  ft_int7_free_model(best);
  CHECK(load("sse2") == nullptr);
  CHECK_EQ(std::string(ft_int7_last_error()), "instruction_set: sse2; one that this processor has: " + names);
}

// Two threads in one context: one of them runs, the other is refused, and both return.
void test_one_thread_at_a_time() {
  const std::string file = testing::detector_file();
  ft_int7_model* model = nullptr;
  ft_int7_info info;
  CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), nullptr, &model)}, int{FT_INT7_OK});
  CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
  for (const int32_t threads : {1, 2}) {
    ft_int7_context* context = nullptr;
    CHECK_EQ(int{ft_int7_create_context(model, threads, &context)}, int{FT_INT7_OK});
    std::atomic<bool> is_refused = false;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    const auto run = [&] {
      const std::vector<uint8_t> picture(int64_t{info.height} * info.width * info.channels, 200);
      std::vector<float> outputs(info.output_size);
      while (!is_refused && std::chrono::steady_clock::now() < deadline) {
        const ft_int7_status status = ft_int7_run(context, picture.data(), outputs.data());
        if (status == FT_INT7_OK) continue;
        is_refused = status == FT_INT7_INVALID_ARGUMENT &&
                     std::string(ft_int7_last_error()).find("context: another thread runs it") == 0;
        return;
      }
    };
    std::thread other(run);
    run();
    other.join();
    CHECK(is_refused);
    ft_int7_free_context(context);
  }
  ft_int7_free_model(model);
}

// A detector's file: nodes, two outputs, and pictures of another size than the file's.
void test_outputs() {
  const std::string file = testing::detector_file();
  const auto open = [&](int32_t height, int32_t width, ft_int7_info& info) {
    ft_int7_options options = {};
    options.height = height;
    options.width = width;
    ft_int7_model* model = nullptr;
    CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), &options, &model)}, int{FT_INT7_OK});
    CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
    return model;
  };
  const auto run = [](ft_int7_model* model, const std::vector<uint8_t>& picture, int64_t size, int32_t threads) {
    ft_int7_context* context = nullptr;
    CHECK_EQ(int{ft_int7_create_context(model, threads, &context)}, int{FT_INT7_OK});
    std::vector<float> outputs(size);
    CHECK_EQ(int{ft_int7_run(context, picture.data(), outputs.data())}, int{FT_INT7_OK});
    ft_int7_free_context(context);
    return outputs;
  };
  ft_int7_info small, large;
  ft_int7_model* model = open(0, 0, small);
  CHECK_EQ(small.output_count, 2);
  ft_int7_output scores, map;
  CHECK_EQ(int{ft_int7_get_output(model, 0, &scores)}, int{FT_INT7_OK});
  CHECK_EQ(int{ft_int7_get_output(model, 1, &map)}, int{FT_INT7_OK});
  CHECK_EQ(int{ft_int7_get_output(model, 2, &map)}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK_EQ(map.rank, 3);
  CHECK_EQ(map.dims[0], 16);
  CHECK_EQ(map.offset, scores.size);
  CHECK_EQ(small.output_size, scores.size + map.size);
  std::vector<uint8_t> picture(int64_t{small.height} * small.width * 3);
  for (size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<uint8_t>(i * 73 + i / 50);
  const std::vector<float> outputs = run(model, picture, small.output_size, 1);
  CHECK(outputs == run(model, picture, small.output_size, 3));
  // Softmax over the channels.
  const int64_t area = scores.dims[1] * scores.dims[2];
  CHECK_EQ(scores.dims[0], 2);
  for (int64_t i = 0; i < area; ++i) CHECK_NEAR(outputs[i] + outputs[area + i], 1, 1e-6);

  // A picture that is the small one and more below has the same numbers in the rows that do not see the rest.
  ft_int7_model* taller = open(small.height + 16, 0, large);
  CHECK_EQ(large.height, small.height + 16);
  std::vector<uint8_t> more = picture;
  more.resize(int64_t{large.height} * large.width * 3, 7);
  const std::vector<float> of_more = run(taller, more, large.output_size, 1);
  CHECK(std::vector<float>(outputs.begin(), outputs.begin() + scores.dims[2]) ==
        std::vector<float>(of_more.begin(), of_more.begin() + scores.dims[2]));
  ft_int7_free_model(model);
  ft_int7_free_model(taller);

  const std::string face = testing::onnx_file();
  ft_int7_options options = {};
  options.height = 9;
  CHECK_EQ(int{ft_int7_load_memory(face.data(), face.size(), &options, &model)}, int{FT_INT7_INVALID_MODEL});
  CHECK(std::string(ft_int7_last_error())
            .find("with the height or width of the options: to_e: has weights that "
                  "do not fit its input") != std::string::npos);
  CHECK(std::string(ft_int7_last_error()).find("; or 0 for the size of the file") != std::string::npos);
  options.height = -1;
  CHECK_EQ(int{ft_int7_load_memory(face.data(), face.size(), &options, &model)}, int{FT_INT7_INVALID_ARGUMENT});
  options = {};
  options.largest_memory = 1000;
  CHECK_EQ(int{ft_int7_load_memory(face.data(), face.size(), &options, &model)}, int{FT_INT7_INVALID_MODEL});
  CHECK(std::string(ft_int7_last_error()).find(" bytes of memory; at most 1000") != std::string::npos);
}

void test_failures() {
  ft_int7_model* model = nullptr;
  ft_int7_context* context = nullptr;
  CHECK_EQ(int{ft_int7_load_memory("ONNX", 4, nullptr, &model)}, int{FT_INT7_INVALID_MODEL});
  CHECK(model == nullptr);
  CHECK_EQ(std::string(ft_int7_last_error()), std::string("data: damaged; an ONNX model is wanted"));
  CHECK_EQ(int{ft_int7_load_file("/no/such/file", nullptr, &model)}, int{FT_INT7_FILE});
  CHECK_EQ(std::string(ft_int7_last_error()).find("/no/such/file: "), size_t{0});
  // A message names the file, once; also one about an operator, which another part of the reader refuses.
  const std::string path = "c_api_test_" + std::to_string(getpid()) + ".onnx";
  for (const auto& [content, message] : std::map<std::string, std::string>{
           {"", path + ": empty; a model.int7.onnx of Facetrain is wanted"},
           {"ONNX", path + ": damaged; an ONNX model is wanted"},
           {testing::onnx_file({.op = "Mystery"}), path + ": layer 'to_p': operator Mystery; one of Abs, Add, "}}) {
    std::ofstream(path, std::ios::binary) << content;
    CHECK_EQ(int{ft_int7_load_file(path.c_str(), nullptr, &model)}, int{FT_INT7_INVALID_MODEL});
    CHECK_EQ(std::string(ft_int7_last_error()).find(message), size_t{0});
  }
  {
    std::ofstream(path, std::ios::binary) << testing::onnx_file();
    ft_int7_options little = {};
    little.largest_memory = 1000;
    CHECK_EQ(int{ft_int7_load_file(path.c_str(), &little, &model)}, int{FT_INT7_INVALID_MODEL});
    CHECK_EQ(std::string(ft_int7_last_error()).find(path + ": takes "), size_t{0});
  }
  std::remove(path.c_str());
  // Of a long path its end, and the reason.
  CHECK_EQ(int{ft_int7_load_file((std::string(3000, 'a') + "/model").c_str(), nullptr, &model)}, int{FT_INT7_FILE});
  const std::string cut = ft_int7_last_error();
  CHECK_EQ(cut.find("...aaa"), size_t{0});
  CHECK(cut.find("a/model: ") != std::string::npos);
  CHECK(cut.find("; a readable file") != std::string::npos);
  CHECK_EQ(int{ft_int7_load_memory(nullptr, 0, nullptr, &model)}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK_EQ(int{ft_int7_load_file(nullptr, nullptr, &model)}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK_EQ(int{ft_int7_run(nullptr, nullptr, nullptr)}, int{FT_INT7_INVALID_ARGUMENT});
  const std::string file = testing::onnx_file();
  CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), nullptr, &model)}, int{FT_INT7_OK});
  CHECK_EQ(std::string(ft_int7_last_error()), std::string());
  CHECK_EQ(int{ft_int7_create_context(model, 0, &context)}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK(context == nullptr);
  ft_int7_free_model(model);
  ft_int7_free_model(nullptr);
  ft_int7_free_context(nullptr);
}

// The example in C prints what the library computes.
void test_example(const std::string& program) {
  const std::string file = testing::onnx_file(), base = "example_" + std::to_string(getpid());
  const std::string model_path = base + ".onnx", picture_path = base + ".pixels";
  std::string picture(7 * 9 * 3, 0);
  for (size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<char>(i * 73);
  std::ofstream(model_path, std::ios::binary) << file;
  std::ofstream(picture_path, std::ios::binary) << picture;
  const Runtime runtime(read_onnx(reinterpret_cast<const uint8_t*>(file.data()), file.size()).network, Isa::portable);
  Runtime::Context memory(runtime);
  std::vector<float> expected(6), actual;
  runtime.run(memory, reinterpret_cast<const uint8_t*>(picture.data()), expected.data());
  std::FILE* output = popen((program + " " + model_path + " " + picture_path).c_str(), "r");
  CHECK(output != nullptr);
  if (output == nullptr) return;
  for (float number; std::fscanf(output, "%g", &number) == 1;) actual.push_back(number);
  CHECK_EQ(pclose(output), 0);
  CHECK(actual == expected);
  output = popen((program + " " + picture_path + " " + picture_path + " 2>/dev/null").c_str(), "r");
  if (output != nullptr) CHECK(pclose(output) != 0);
  std::remove(model_path.c_str());
  std::remove(picture_path.c_str());
}

}  // namespace
}  // namespace facetrain::int7

// c_api_test [EXAMPLE]: the program that example/embed.c is.
int main(int argc, char** argv) {
  using namespace facetrain::int7;
  if (argc > 1) test_example(argv[1]);
  test_computes();
  test_threads();
  test_one_thread_at_a_time();
  test_instruction_sets();
  test_outputs();
  test_failures();
  return TEST_RESULT();
}
