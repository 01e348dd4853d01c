// Where copies of the state have room, and rows of both types. What a session copies is tested through the addon
// (src/training.test.ts).
#include "train/trained_state.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cstring>

#include "test/check.h"

using namespace facetrain;

namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

void test_place() {
  const at::Device cuda(at::kCUDA, 0);
  // A copy of 8 GiB needs 10, and 64 MiB.
  CHECK(place_for_copy(8 * kGiB, cuda, 11 * kGiB, 0) == cuda);
  CHECK(place_for_copy(8 * kGiB, cuda, 10 * kGiB, 11 * kGiB) == at::Device(at::kCPU));
  CHECK(place_for_copy(8 * kGiB, cuda, std::nullopt, 11 * kGiB) == at::Device(at::kCPU));
  CHECK(!place_for_copy(8 * kGiB, cuda, 10 * kGiB, 10 * kGiB));
  CHECK(place_for_copy(8 * kGiB, at::kCPU, std::nullopt, 11 * kGiB) == at::Device(at::kCPU));
  CHECK(!place_for_copy(8 * kGiB, at::kCPU, 100 * kGiB, 10 * kGiB));
  CHECK(!place_for_copy(1, at::kCPU, std::nullopt, std::nullopt));
}

SavedRows floats(const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return {"weight", at::kFloat, bytes};
}

void test_rows_of_bfloat16() {
  TrainedState state;
  state.rows = {{"weight", at::zeros({3, 2}, at::kBFloat16)}};
  // 1 + 2^-8 is halfway between 1 and 1 + 2^-7, and goes to the even one; 1 + 3 * 2^-8 goes to 1 + 2^-6.
  state.load_rows(1, 2, {floats({1 + 0x1p-8f, 1 + 0x3p-8f, -2.5f, 1e-40f})});
  const std::vector<SavedRows> saved = state.save_rows(0, 3);
  CHECK(saved.size() == 1 && saved[0].name == "weight" && saved[0].type == at::kBFloat16);
  const std::vector<uint16_t> expected{0, 0, 0x3f80, 0x3f82, 0xc020, 0x0001};
  CHECK(saved[0].bytes.size() == expected.size() * 2);
  CHECK(std::memcmp(saved[0].bytes.data(), expected.data(), saved[0].bytes.size()) == 0);

  // Rows of float32 take them as they are.
  TrainedState wide;
  wide.rows = {{"weight", at::zeros({3, 2})}};
  wide.load_rows(0, 3, saved);
  CHECK(wide.save_rows(1, 2)[0].bytes == floats({1, 1 + 0x1p-6f, -2.5f, 0x1p-133f}).bytes);
  // Of a tensor that the rows do not have, nothing is taken.
  wide.load_rows(0, 1, {{"sum", at::kFloat, std::vector<uint8_t>(8, 1)}});
  CHECK(wide.save_rows(0, 1)[0].bytes == std::vector<uint8_t>(8, 0));
}

}  // namespace

int main() {
  test_place();
  test_rows_of_bfloat16();
  return TEST_RESULT();
}
