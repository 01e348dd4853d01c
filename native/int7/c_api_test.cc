// Tests the C library through its header.
#include <cstdio>
#include <cstdlib>
#include <string>
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
  CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), &model)}, int{FT_INT7_OK});
  ft_int7_info info;
  CHECK_EQ(int{ft_int7_get_info(model, &info)}, int{FT_INT7_OK});
  CHECK_EQ(info.height, 7);
  CHECK_EQ(info.width, 9);
  CHECK_EQ(info.channels, 3);
  CHECK_EQ(info.output_size, 6);
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

void test_failures() {
  ft_int7_model* model = nullptr;
  ft_int7_context* context = nullptr;
  CHECK_EQ(int{ft_int7_load_memory("ONNX", 4, &model)}, int{FT_INT7_INVALID_MODEL});
  CHECK(model == nullptr);
  CHECK(std::string(ft_int7_last_error()).find("damaged") != std::string::npos);
  CHECK_EQ(int{ft_int7_load_file("/no/such/file", &model)}, int{FT_INT7_FILE});
  CHECK(std::string(ft_int7_last_error()).find("/no/such/file") != std::string::npos);
  CHECK_EQ(int{ft_int7_load_memory(nullptr, 0, &model)}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK_EQ(int{ft_int7_load_file(nullptr, &model)}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK_EQ(int{ft_int7_run(nullptr, nullptr, nullptr)}, int{FT_INT7_INVALID_ARGUMENT});
  const std::string file = testing::onnx_file();
  CHECK_EQ(int{ft_int7_load_memory(file.data(), file.size(), &model)}, int{FT_INT7_OK});
  CHECK_EQ(std::string(ft_int7_last_error()), std::string());
  CHECK_EQ(int{ft_int7_create_context(model, 0, &context)}, int{FT_INT7_INVALID_ARGUMENT});
  CHECK(context == nullptr);
  ft_int7_free_model(model);
  ft_int7_free_model(nullptr);
  ft_int7_free_context(nullptr);
}

}  // namespace
}  // namespace facetrain::int7

int main() {
  using namespace facetrain::int7;
  test_computes();
  test_failures();
  return TEST_RESULT();
}
