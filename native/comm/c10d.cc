#include "comm/c10d.h"

#include <c10/util/Logging.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "comm/awaited.h"
#include "error.h"
#include "torch_error.h"

namespace facetrain {

std::chrono::milliseconds Deadline::remaining() const {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(start_ + timeout_ - Clock::now());
  return std::max(left, std::chrono::milliseconds(1));
}

double Deadline::elapsed_seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

CommError rendezvous_error(const RendezvousOptions& options, const Deadline& deadline, const std::string& why) {
  char seconds[32];
  std::snprintf(seconds, sizeof(seconds), "%.1f", deadline.elapsed_seconds());
  return CommError("rank " + std::to_string(options.rank) + " of " + std::to_string(options.size) +
                   " could not join the others at MASTER_ADDR:MASTER_PORT " + master_of(options) + ", waited " +
                   seconds + " s: " + why);
}

namespace {

using std::chrono::milliseconds;

class Socket {
 public:
  explicit Socket(const addrinfo& to)
      : fd_(socket(to.ai_family, to.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, to.ai_protocol)) {}
  Socket(const Socket&) = delete;
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }

  // Returns 0, or the errno of the failure.
  int connect(const addrinfo& to, milliseconds timeout) {
    if (fd_ < 0) return errno;
    if (::connect(fd_, to.ai_addr, to.ai_addrlen) == 0) return 0;
    if (errno != EINPROGRESS) return errno;
    pollfd writable{fd_, POLLOUT, 0};
    if (poll(&writable, 1, static_cast<int>(timeout.count())) <= 0) return ETIMEDOUT;
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
  }

  std::string own_address() const {
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    char digits[NI_MAXHOST] = "";
    if (getsockname(fd_, reinterpret_cast<sockaddr*>(&own), &length) == 0) {
      getnameinfo(reinterpret_cast<sockaddr*>(&own), length, digits, sizeof(digits), nullptr, 0, NI_NUMERICHOST);
    }
    return digits;
  }

 private:
  int fd_;
};

std::string master_rank(const RendezvousOptions& options) { return "rank 0 at " + master_of(options); }

// Connects to rank 0, trying until it answers, and returns the local address of the connection: its peers can reach
// this rank there. (This machine's host name is not used: in containers it often resolves to loopback or not at all.)
//
// Each try resolves the name again, because a pod's DNS name appears late and its address can change; the deadline does
// not limit a look-up, only the resolver does. TCPStore could connect by itself, but it waits for twice its timeout and
// pauses for a second between tries.
std::string connect_to_master(const RendezvousOptions& options, const Deadline& deadline, Awaiting& awaiting) {
  constexpr milliseconds kPause{50}, kLongestTry{5000};
  std::string why;
  awaiting.set(master_rank(options));
  do {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int status =
        getaddrinfo(options.master_addr.c_str(), std::to_string(options.master_port).c_str(), &hints, &found);
    if (status != 0) {
      why = std::string("cannot resolve the name: ") + gai_strerror(status);
    } else {
      const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
      for (const addrinfo* to = found; to; to = to->ai_next) {
        Socket socket(*to);
        const int error = socket.connect(*to, std::min(deadline.remaining(), kLongestTry));
        if (error == 0) return socket.own_address();
        why = std::strerror(error);
      }
    }
    awaiting.set(master_rank(options) + ": " + why);
    poll(nullptr, 0, static_cast<int>(std::min(deadline.remaining(), kPause).count()));
  } while (!deadline.passed());
  throw rendezvous_error(options, deadline, why);
}

std::string rank_key(int rank) { return "rank/" + std::to_string(rank); }

// "rank 3", "ranks 1, 2, 5"; after the eighth, how many more.
std::string ranks_text(const std::vector<int>& ranks) {
  constexpr size_t kLongest = 8;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < std::min(ranks.size(), kLongest); ++i) text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return ranks.size() > kLongest ? text + " and " + std::to_string(ranks.size() - kLongest) + " more" : text;
}

using StorePtr = c10::intrusive_ptr<c10d::Store>;

StorePtr open_store(const RendezvousOptions& options, const Deadline& deadline) {
  c10d::TCPStoreOptions store;
  store.port = static_cast<uint16_t>(options.master_port);
  store.isServer = options.rank == 0;
  store.waitWorkers = false;                                            // join() waits, and can name the missing rank
  store.timeout = std::max(deadline.remaining() / 2, milliseconds(1));  // TCPStore tries twice
  store.useLibUV = false;  // Node exports its own libuv, whose symbols libtorch would use
  StorePtr all = c10::make_intrusive<c10d::TCPStore>(options.master_addr, store);
  return c10::make_intrusive<c10d::PrefixStore>("facetrain/" + options.gang, all);
}

// Finds the store of a rank 0 that has not met this rank yet.
//
// When the container of a rank is started again in its pod, the rank comes back to the same gang. The rank 0 that it
// finds may still be the one of before, which has not noticed yet that a peer was lost, and its store has the addresses
// of processes that are gone. So each process takes a place of its rank in the store, and one that is not the first
// there tries again until that rank 0 has ended. Nor is it an error that rank 0 ends while this rank connects.
Rendezvous find_new_store(const RendezvousOptions& options, const Deadline& deadline, Awaiting& awaiting) {
  constexpr milliseconds kPause{200};
  std::string why;
  do {
    const std::string own_address = connect_to_master(options, deadline, awaiting);
    try {
      // c10d has no deadline for the first answer.
      awaiting.set(master_rank(options) + ", where something accepts connections and does not answer as rank 0 does");
      const StorePtr store = open_store(options, deadline);
      if (store->add(arrivals_key(options.rank), 1) == 1) return {store, own_address};
      why = "rank 0 has met a former process of this rank, and still runs";
    } catch (const std::exception& error) {
      why = message_of(error);
    }
    awaiting.set(master_rank(options) + ": " + why);
    poll(nullptr, 0, static_cast<int>(std::min(deadline.remaining(), kPause).count()));
  } while (!deadline.passed());
  throw rendezvous_error(options, deadline, why);
}

// Waits until a rank has come. Rank 0, whose words the status of the job has, says meanwhile who else has not.
void await_rank(c10d::Store& store, int rank, const RendezvousOptions& options, const Deadline& deadline,
                Awaiting& awaiting) {
  constexpr milliseconds kInterval{1000};
  while (!store.check({rank_key(rank)})) {
    std::vector<int> missing{rank};
    for (int other = rank + 1; options.rank == 0 && other < options.size; ++other)
      if (!store.check({rank_key(other)})) missing.push_back(other);
    awaiting.set(ranks_text(missing) + " to come to " + master_of(options));
    try {
      return store.wait({rank_key(rank)}, std::min(deadline.remaining(), kInterval));
    } catch (const std::exception&) {
      if (deadline.passed()) throw;
    }
  }
}

}  // namespace

std::string arrivals_key(int rank) { return "arrivals/" + std::to_string(rank); }

Rendezvous join(const RendezvousOptions& options, const Deadline& deadline, const std::string& backend) {
  // c10d logs each failure with a C++ stack trace. The exceptions have the message, so the log is off by default.
  if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = 3;
  // A write to a dead peer must return an error, not end this process. (Node already ignores the signal.)
  signal(SIGPIPE, SIG_IGN);
  Awaiting awaiting;
  Rendezvous result;
  if (options.rank != 0) result = find_new_store(options, deadline, awaiting);
  try {
    if (options.rank == 0) result.store = open_store(options, deadline);
    result.store->set(rank_key(options.rank), backend);
  } catch (const std::exception& error) {
    throw rendezvous_error(options, deadline, message_of(error));
  }
  if (options.rank == 0) result.own_address = connect_to_master(options, deadline, awaiting);
  for (int rank = 0; rank < options.size; ++rank) {
    std::vector<uint8_t> theirs;
    try {
      await_rank(*result.store, rank, options, deadline, awaiting);
      theirs = result.store->get(rank_key(rank));
    } catch (const std::exception& error) {
      throw rendezvous_error(options, deadline,
                             "rank " + std::to_string(rank) + " did not come (" + message_of(error) + ")");
    }
    if (const std::string other(theirs.begin(), theirs.end()); other != backend) {
      throw Error("RendezvousTimeout", "device",
                  "rank " + std::to_string(options.rank) + " computes for " + backend + " and rank " +
                      std::to_string(rank) + " for " + other,
                  "a GPU for every rank, or cpu");
    }
  }
  return result;
}

// Makes a call of c10d. A dead peer or the timeout becomes a CommError.
template <class Call>
auto C10dComm::explained(const char* what, Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception& error) {
    throw_memory_error(error);  // no peer was lost: the same collective would fail again
    throw CommError(std::string(what) + " failed on rank " + std::to_string(options_.rank) + " of " +
                    std::to_string(options_.size) + ": " + message_of(error));
  }
}

// Starts one collective and waits for its end.
template <class Start>
void C10dComm::run(const char* what, Start start) {
  explained(what, [&] { start()->wait(); });
}

class C10dComm::Begun final : public Pending {
 public:
  Begun(C10dComm& comm, c10::intrusive_ptr<c10d::Work> work) : comm_(comm), work_(std::move(work)) {}
  void wait() override {
    comm_.explained("all_reduce", [&] { work_->wait(); });
  }

 private:
  C10dComm& comm_;
  const c10::intrusive_ptr<c10d::Work> work_;
};

void C10dComm::all_gather(at::Tensor& out, const at::Tensor& in) {
  run("all_gather", [&] {
    std::vector<std::vector<at::Tensor>> outputs{out.view({size(), -1}).unbind(0)};
    std::vector<at::Tensor> inputs{in.view({-1})};
    c10d::AllgatherOptions op;
    op.timeout = options_.collective_timeout;
    return backend_->allgather(outputs, inputs, op);
  });
}

c10::intrusive_ptr<c10d::Work> C10dComm::start_all_reduce(const at::Tensor& data) {
  std::vector<at::Tensor> tensors{data};
  c10d::AllreduceOptions op;
  op.timeout = options_.collective_timeout;
  return backend_->allreduce(tensors, op);
}

void C10dComm::all_reduce_sum(at::Tensor& data) {
  run("all_reduce", [&] { return start_all_reduce(data); });
}

std::unique_ptr<Comm::Pending> C10dComm::begin_all_reduce_sum(at::Tensor data) {
  return std::make_unique<Begun>(*this, explained("all_reduce", [&] { return start_all_reduce(data); }));
}

void C10dComm::reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) {
  run("reduce_scatter", [&] {
    std::vector<at::Tensor> outputs{out.view({-1})};
    std::vector<std::vector<at::Tensor>> inputs{in.view({size(), -1}).unbind(0)};
    c10d::ReduceScatterOptions op;
    op.timeout = options_.collective_timeout;
    return backend_->reduce_scatter(outputs, inputs, op);
  });
}

void C10dComm::broadcast(at::Tensor& data, int root) {
  run("broadcast", [&] {
    std::vector<at::Tensor> tensors{data};
    c10d::BroadcastOptions op;
    op.rootRank = root;
    op.timeout = options_.collective_timeout;
    return backend_->broadcast(tensors, op);
  });
}

void C10dComm::barrier() {
  run("barrier", [&] {
    c10d::BarrierOptions op;
    op.timeout = options_.collective_timeout;
    return backend_->barrier(op);
  });
}

}  // namespace facetrain
