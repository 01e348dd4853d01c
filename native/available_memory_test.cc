// The files of proc(5) and of cgroups, as machines and containers show them, in a folder instead of the root.
#include "available_memory.h"

#include <stdlib.h>

#include <map>

#include "test/check.h"

using namespace facetrain;

namespace {

constexpr uint64_t kMiB = 1 << 20;

// The MiB available on a system with these files, and MemAvailable of 8 GiB; -1 for none.
int64_t mib_with(std::map<std::string, std::string> files) {
  std::string root = "/tmp/available-memory-XXXXXX";
  if (mkdtemp(root.data()) == nullptr) return -2;
  files.emplace("proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n");
  for (const auto& [name, content] : files) {
    const std::filesystem::path path = std::filesystem::path(root) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << content;
  }
  const auto bytes = available_memory(root);
  std::filesystem::remove_all(root);
  return bytes ? static_cast<int64_t>(*bytes / kMiB) : -1;
}

std::string mib(uint64_t number) { return std::to_string(number * kMiB) + "\n"; }

void test_machine() {
  CHECK_EQ(mib_with({}), 8192);
  CHECK_EQ(mib_with({{"proc/meminfo", ""}}), -1);
  CHECK_EQ(mib_with({{"proc/self/cgroup", "0::/user.slice\n"}}), 8192);
  CHECK(available_memory().value_or(0) > 0);
}

void test_version_2() {
  const auto container = [](const std::string& limit, uint64_t usage) {
    return mib_with({{"proc/self/cgroup", "0::/\n"},
                     {"sys/fs/cgroup/memory.max", limit},
                     {"sys/fs/cgroup/memory.current", mib(usage)},
                     {"sys/fs/cgroup/memory.stat", "anon 1\ninactive_file " + mib(100) + "active_file 2\n"}});
  };
  CHECK_EQ(container(mib(1000), 900), 200);
  CHECK_EQ(container(mib(1000), 1200), 0);
  CHECK_EQ(container(mib(1000), 50), 1000);
  CHECK_EQ(container("max\n", 900), 8192);
  CHECK_EQ(container(mib(100000), 900), 8192);  // the machine has less than the limit
}

void test_limit_of_a_parent() {
  const std::string pod = "sys/fs/cgroup/kubepods/pod7/";
  CHECK_EQ(mib_with({{"proc/self/cgroup", "0::/kubepods/pod7/container\n"},
                     {pod + "memory.max", mib(500)},
                     {pod + "memory.current", mib(460)},
                     {pod + "container/memory.max", mib(400)},
                     {pod + "container/memory.current", mib(300)}}),
           40);
}

void test_version_1() {
  const std::string memory = "sys/fs/cgroup/memory/";
  const std::string cgroups = "5:cpu,cpuacct:/\n4:hugetlb,memory:/kubepods/pod7/container\n0::/\n";
  const std::string stat = "inactive_file 0\ntotal_inactive_file " + mib(10);
  const auto files = [&](const std::string& folder, const std::string& limit) {
    return std::map<std::string, std::string>{{"proc/self/cgroup", cgroups},
                                              {memory + folder + "memory.limit_in_bytes", limit},
                                              {memory + folder + "memory.usage_in_bytes", mib(110)},
                                              {memory + folder + "memory.stat", stat}};
  };
  CHECK_EQ(mib_with(files("kubepods/pod7/container/", mib(300))), 200);
  // The path is that on the machine; the container sees its own cgroup as the top.
  CHECK_EQ(mib_with(files("", mib(300))), 200);
  CHECK_EQ(mib_with(files("", "9223372036854771712\n")), 8192);  // no limit
}

}  // namespace

int main() {
  test_machine();
  test_version_2();
  test_limit_of_a_parent();
  test_version_1();
  return TEST_RESULT();
}
