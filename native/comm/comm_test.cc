// Tests that the fake and Gloo give the same results, and that every kind of missing rank ends in a CommError within
// the timeout. `comm_test SCENARIO RANK SIZE PORT MASTER` is one rank of a test with real processes.
#include "comm/comm.h"

#include <ATen/ATen.h>

#include <atomic>
#include <cstdio>
#include <future>
#include <initializer_list>
#include <thread>

#include "comm/awaited.h"
#include "comm/c10d.h"
#include "comm/loopback.h"
#include "error.h"
#include "test/check.h"
#include "test/processes.h"

using namespace facetrain;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Every collective on small integers, whose sums are exact in any order.
static std::vector<at::Tensor> every_collective(Comm& comm) {
  const int n = comm.size(), r = comm.rank();
  std::vector<at::Tensor> results;
  for (const at::ScalarType type : {at::kFloat, at::kLong}) {
    const at::Tensor in = at::arange(6, type).view({2, 3}) + 10 * r;
    at::Tensor out = at::empty({2 * n, 3}, type);
    comm.all_gather(out, in);
    results.push_back(out);
  }
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kLong}) {
    at::Tensor data = at::arange(1001, type) * (r + 1);
    comm.all_reduce_sum(data);
    results.push_back(data);
  }
  // Two at once, and another collective meanwhile.
  const at::Tensor first = at::arange(1001, at::kFloat) * (r + 1), second = first + 1;
  const auto pending_first = comm.begin_all_reduce_sum(first), pending_second = comm.begin_all_reduce_sum(second);
  at::Tensor ranks = at::empty({n}, at::kLong);
  comm.all_gather(ranks, at::full({1}, r, at::kLong));
  pending_second->wait();
  pending_first->wait();
  results.insert(results.end(), {first, second, ranks});
  const at::Tensor in = at::arange(n * 4, at::kFloat).view({2 * n, 2}) * (r + 1);
  at::Tensor out = at::empty({2, 2}, at::kFloat);
  comm.reduce_scatter_sum(out, in);
  results.push_back(out);
  at::Tensor data = at::full({5}, r + 1, at::kByte);
  comm.broadcast(data, n - 1);
  results.push_back(data);
  comm.barrier();
  return results;
}

static void test_fake() {
  run_fake_ranks(3, [](Comm& comm) {
    const auto results = every_collective(comm);
    const at::Tensor rows = at::arange(6, at::kFloat).view({2, 3});
    CHECK(at::equal(results[0], at::cat({rows, rows + 10, rows + 20})));
    CHECK(at::equal(results[3], at::arange(1001, at::kDouble) * 6));
    CHECK(at::equal(results[6], at::arange(1001, at::kFloat) * 6 + 3));
    CHECK(at::equal(results[8], at::arange(12, at::kFloat).view({6, 2}).narrow(0, 2 * comm.rank(), 2) * 6));
    CHECK(at::equal(results[9], at::full({5}, 3, at::kByte)));
  });
}

static void test_fake_releases_the_others() {
  std::atomic<int> released = 0;
  const auto body = [&](Comm& comm) {
    if (comm.rank() == 1) throw std::invalid_argument("rank 1 fell over");
    try {
      comm.barrier();
    } catch (const CommError&) {
      ++released;
      throw;
    }
  };
  CHECK_THROWS(run_fake_ranks(3, body), std::invalid_argument, "rank 1 fell over");
  CHECK_EQ(released.load(), 2);
}

static void test_solo() {
  const auto solo = make_solo_comm();
  at::Tensor out = at::empty({2, 2}, at::kFloat);
  const at::Tensor in = at::arange(4, at::kFloat).view({2, 2});
  solo->all_gather(out, in);
  CHECK(at::equal(out, in));
  solo->reduce_scatter_sum(out, in + 1);
  CHECK(at::equal(out, in + 1));
}

static void test_gloo_equals_fake(const std::string& master, std::initializer_list<int> sizes) {
  for (const int size : sizes) {
    const std::string port = std::to_string(test::free_port());
    std::vector<test::Child> children;
    for (int rank = 0; rank < size; ++rank) {
      children.emplace_back(
          std::vector<std::string>{"equal", std::to_string(rank), std::to_string(size), port, master});
    }
    for (test::Child& child : children) CHECK_EQ(child.wait(), 0);
  }
}

// Whether the kernel has IPv6 with the loopback address ::1.
static bool has_ipv6_loopback() {
  const int fd = socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  const bool bound = fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  if (fd >= 0) close(fd);
  return bound;
}

static void test_ipv6() {
  CHECK_EQ(master_of(loopback(0, 2, 29500, "::1")), std::string("[::1]:29500"));
  CHECK_EQ(master_of(loopback(0, 2, 29500)), std::string("127.0.0.1:29500"));
  if (!has_ipv6_loopback()) {
    std::puts("not tested: this machine has no ::1");
    return;
  }
  test_gloo_equals_fake("::1", {2});
  RendezvousOptions alone = loopback(1, 2, test::free_port(), "::1");
  alone.rendezvous_timeout = 250ms;
  CHECK_THROWS(make_gloo_comm(alone), CommError, "MASTER_ADDR:MASTER_PORT " + master_of(alone));
}

// Rank 0 of two ranks, in this process. Rank 1 is a child process that dies ("die") or is stopped ("stop").
static std::unique_ptr<Comm> with_lost_peer(const std::string& scenario, std::vector<test::Child>& children,
                                            std::chrono::milliseconds timeout) {
  const int port = test::free_port();
  children.emplace_back(std::vector<std::string>{scenario, "1", "2", std::to_string(port), "127.0.0.1"});
  RendezvousOptions options = loopback(0, 2, port);
  options.collective_timeout = timeout;
  auto comm = make_gloo_comm(options);
  comm->barrier();
  return comm;
}

static const std::vector<std::pair<const char*, std::function<void(Comm&)>>> kCollectives = {
    {"all_gather",
     [](Comm& comm) {
       at::Tensor out = at::zeros({2, 4});
       comm.all_gather(out, at::zeros({4}));
     }},
    {"all_reduce",
     [](Comm& comm) {
       at::Tensor data = at::zeros({4});
       comm.all_reduce_sum(data);
     }},
    {"all_reduce", [](Comm& comm) { comm.begin_all_reduce_sum(at::zeros({4}))->wait(); }},
    {"reduce_scatter",
     [](Comm& comm) {
       at::Tensor out = at::zeros({4});
       comm.reduce_scatter_sum(out, at::zeros({2, 4}));
     }},
    {"broadcast",
     [](Comm& comm) {
       at::Tensor data = at::zeros({4});
       comm.broadcast(data, 1);
     }},
    {"barrier", [](Comm& comm) { comm.barrier(); }},
};

static void test_gloo_lost_peers() {
  for (const auto& [name, collective] : kCollectives) {
    std::vector<test::Child> children;
    auto comm = with_lost_peer("die", children, 60s);
    auto start = Clock::now();
    CHECK_THROWS(collective(*comm), CommError, std::string(name) + " failed on rank 0 of 2: ");
    CHECK(seconds_since(start) < 20.0);  // long before the timeout, also on a busy machine
    CHECK_THROWS(collective(*comm), CommError, "failed on rank 0 of 2");  // the Comm stays unusable

    // 300 ms of timeout; the upper bound leaves room for a busy machine.
    comm = with_lost_peer("stop", children, 300ms);
    start = Clock::now();
    CHECK_THROWS(collective(*comm), CommError, std::string(name) + " failed on rank 0 of 2: ");
    CHECK(seconds_since(start) > 0.25);
    CHECK(seconds_since(start) < 20.0);
  }
}

static void test_rendezvous_deadline() {
  const auto fails_in_time = [](const RendezvousOptions& options, const std::string& why) {
    const auto start = Clock::now();
    CHECK_THROWS(make_gloo_comm(options), CommError, why);
    CHECK(seconds_since(start) > 0.2);
    CHECK(seconds_since(start) < 20.0);
  };
  const int port = test::free_port();
  const std::string where = "127.0.0.1:" + std::to_string(port);
  for (const int rank : {0, 1}) {
    RendezvousOptions options = loopback(rank, 2, port);
    options.rendezvous_timeout = 250ms;
    fails_in_time(options, where);
    fails_in_time(options, rank == 0 ? "rank 1 did not come" : "rank 1 of 2 could not join");
  }
  RendezvousOptions options = loopback(1, 2, port);
  options.rendezvous_timeout = 250ms;
  options.master_addr = "192.0.2.1";  // TEST-NET-1: not routed (RFC 5737)
  fails_in_time(options, "192.0.2.1:" + std::to_string(port));
  options.master_addr = "no-such-host.invalid";
  fails_in_time(options, "no-such-host.invalid:" + std::to_string(port));
}

// Ranks with and without GPUs. Only rank 0 gets the same error each time: it hosts the store, and the others may lose
// it.
static void test_mixed_back_ends() {
  const int port = test::free_port();
  std::atomic<bool> met = false;
  std::thread without([&] {
    try {
      join(loopback(1, 2, port), Deadline(5s), "Gloo");
      met = true;
    } catch (const std::exception&) {
    }
  });
  CHECK_THROWS(join(loopback(0, 2, port), Deadline(5s), "NCCL"), Error, "rank 0 computes for NCCL and rank 1 for Gloo");
  without.join();
  CHECK(!met);
}

// A rank that is left over from another attempt may find the rank 0 of this one at the same name and port.
static void test_ranks_of_different_gangs() {
  const int port = test::free_port();
  std::atomic<bool> met = false;
  std::thread other([&] {
    RendezvousOptions options = loopback(1, 2, port);
    options.gang = "another";
    try {
      join(options, Deadline(5s), "Gloo");
      met = true;
    } catch (const std::exception&) {
    }
  });
  CHECK_THROWS(join(loopback(0, 2, port), Deadline(1s), "Gloo"), CommError, "rank 1 did not come");
  other.join();
  CHECK(!met);
}

// As when the containers of a gang are started again in their pods. Rank 1 is back before rank 0 has noticed that a
// peer was lost.
static void test_restarted_ranks() {
  const int port = test::free_port();
  const auto join_all = [&] {
    std::vector<Rendezvous> ranks(2);
    std::thread other([&] { ranks[1] = join(loopback(1, 2, port), Deadline(60s), "Gloo"); });
    ranks[0] = join(loopback(0, 2, port), Deadline(60s), "Gloo");
    other.join();
    return ranks;
  };
  std::vector<Rendezvous> before = join_all();
  std::atomic<bool> met = false;
  Rendezvous restarted;
  std::thread other([&] {
    restarted = join(loopback(1, 2, port), Deadline(60s), "Gloo");
    met = true;
  });
  // The former process, and two tries of the new one.
  while (before[0].store->add(arrivals_key(1), 0) < 3) std::this_thread::sleep_for(10ms);
  CHECK(!met);
  before.clear();
  const Rendezvous again = join(loopback(0, 2, port), Deadline(60s), "Gloo");
  other.join();
  CHECK(met);
  again.store->set("from rank 0", "here");
  const std::vector<uint8_t> heard = restarted.store->get("from rank 0");
  CHECK_EQ(std::string(heard.begin(), heard.end()), std::string("here"));
  CHECK_EQ(again.store->add(arrivals_key(1), 0), 1);
}

// A rank that is started again while its rank 0 lives on.
static void test_restarted_rank_alone() {
  const int port = test::free_port();
  Rendezvous former;
  std::thread other([&] { former = join(loopback(1, 2, port), Deadline(60s), "Gloo"); });
  const Rendezvous rank_zero = join(loopback(0, 2, port), Deadline(60s), "Gloo");
  other.join();
  CHECK_THROWS(join(loopback(1, 2, port), Deadline(500ms), "Gloo"), CommError, "rank 1 of 2 could not join");
}

static void until_awaited(const std::string& whom) {
  const Deadline deadline(60s);
  while (awaited() != whom && !deadline.passed()) std::this_thread::sleep_for(5ms);
  CHECK_EQ(awaited(), std::string(whom));
}

static void test_awaited() {
  const int port = test::free_port();
  const std::string where = "127.0.0.1:" + std::to_string(port);
  CHECK_EQ(awaited(), std::string());

  RendezvousOptions alone = loopback(1, 3, port);
  alone.rendezvous_timeout = 1s;
  auto refused = std::async(std::launch::async, make_gloo_comm, alone);
  until_awaited("rank 0 at " + where + ": Connection refused");
  CHECK_THROWS(refused.get(), CommError, "Connection refused");
  CHECK_EQ(awaited(), std::string());

  auto met = std::async(std::launch::async, make_gloo_comm, loopback(0, 3, port));
  until_awaited("ranks 1, 2 to come to " + where);
  const auto child = [&](const char* rank) {
    return test::Child({"meet", rank, "3", std::to_string(port), "127.0.0.1"});
  };
  test::Child last = child("2");
  until_awaited("rank 1 to come to " + where);
  test::Child other = child("1");
  met.get();
  CHECK_EQ(awaited(), std::string());
  CHECK_EQ(last.wait() + other.wait(), 0);
}

static void test_port_in_use() {
  const int fd = socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  socklen_t length = sizeof(address);
  CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 && listen(fd, 1) == 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  CHECK_THROWS(make_gloo_comm(loopback(0, 2, ntohs(address.sin6_port))), CommError, "Address already in use");
  close(fd);
}

static int run_rank(const std::string& scenario, int rank, int size, int port, const std::string& master) {
  const auto comm = make_gloo_comm(loopback(rank, size, port, master));
  if (scenario == "equal") {
    const auto results = every_collective(*comm);
    run_fake_ranks(size, [&](Comm& fake) {
      const auto expected = every_collective(fake);
      if (fake.rank() != rank) return;
      for (size_t i = 0; i < expected.size(); ++i) CHECK(at::equal(results[i], expected[i]));
    });
    return TEST_RESULT();
  }
  if (scenario == "meet") return 0;
  comm->barrier();
  raise(scenario == "die" ? SIGKILL : SIGSTOP);
  return 1;
}

int main(int argc, char** argv) {
  if (!has_gloo()) std::cout << "skipped, as this build has no Gloo: collectives and lost peers over it\n";
  if (argc == 6) return run_rank(argv[1], std::stoi(argv[2]), std::stoi(argv[3]), std::stoi(argv[4]), argv[5]);
  test_solo();
  test_fake();
  test_fake_releases_the_others();
  if (has_gloo()) {
    test_gloo_equals_fake("127.0.0.1", {1, 2, 3});
    test_ipv6();
    test_gloo_lost_peers();
    test_rendezvous_deadline();
    test_mixed_back_ends();
    test_ranks_of_different_gangs();
    test_restarted_ranks();
    test_restarted_rank_alone();
    test_awaited();
    test_port_in_use();
  }
  return TEST_RESULT();
}
