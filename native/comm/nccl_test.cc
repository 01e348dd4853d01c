// Compares NCCL with the fake on up to kMostRanks GPUs, and tests the errors for devices that do not exist.
// `nccl_test RANK SIZE PORT` is one rank.
#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include "comm/comm.h"
#include "comm/loopback.h"
#include "test/check.h"
#include "test/processes.h"

using namespace facetrain;

static constexpr int kMostRanks = 4;

// Small integers, whose sums are exact in any order.
static std::vector<at::Tensor> every_collective(Comm& comm, at::Device device) {
  const int n = comm.size(), r = comm.rank();
  std::vector<at::Tensor> results;
  const at::Tensor in = at::arange(6, at::kFloat).view({2, 3}).to(device) + 10 * r;
  at::Tensor gathered = at::empty({2 * n, 3}, in.options());
  comm.all_gather(gathered, in);
  results.push_back(gathered);
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kLong}) {
    at::Tensor data = at::arange(1001, type).to(device) * (r + 1);
    comm.all_reduce_sum(data);
    results.push_back(data);
  }
  at::Tensor part = at::empty({2, 2}, in.options());
  comm.reduce_scatter_sum(part, at::arange(n * 4, at::kFloat).view({2 * n, 2}).to(device) * (r + 1));
  results.push_back(part);
  at::Tensor sent = at::full({5}, r + 1, at::kByte).to(device);
  comm.broadcast(sent, n - 1);
  results.push_back(sent);
  comm.barrier();
  return results;
}

static int run_rank(int rank, int size, int port) {
  const auto comm = make_nccl_comm(loopback(rank, size, port), rank);
  const auto actual = every_collective(*comm, at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(rank)));
  run_fake_ranks(size, [&](Comm& fake) {
    const auto expected = every_collective(fake, at::kCPU);
    if (fake.rank() != rank) return;
    for (size_t i = 0; i < expected.size(); ++i) CHECK(at::equal(actual[i].to(at::kCPU), expected[i]));
  });
  return TEST_RESULT();
}

int main(int argc, char** argv) {
  if (argc == 4) return run_rank(std::stoi(argv[1]), std::stoi(argv[2]), std::stoi(argv[3]));
  const RendezvousOptions options = loopback(0, 1, test::free_port());
  const int devices = has_nccl() ? at::detail::getCUDAHooks().deviceCount() : 0;
  CHECK_THROWS(make_nccl_comm(options, devices), CommError,
               has_nccl() ? "CUDA device " + std::to_string(devices) : std::string("without CUDA"));
  CHECK_THROWS(make_nccl_comm(options, -1), CommError, has_nccl() ? "CUDA device -1" : "without CUDA");
  for (int size = 1; size <= std::min(devices, kMostRanks); ++size) {
    const std::string port = std::to_string(test::free_port());
    std::vector<test::Child> children;
    for (int rank = 0; rank < size; ++rank) {
      children.emplace_back(std::vector<std::string>{std::to_string(rank), std::to_string(size), port});
    }
    for (test::Child& child : children) CHECK_EQ(child.wait(), 0);
  }
  return TEST_RESULT();
}
