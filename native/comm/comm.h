// Collectives between the ranks of one job: an interface, with implementations over Gloo (CPU), NCCL (CUDA), for one
// rank alone, and for tests.
//
// Every call but begin_all_reduce_sum() blocks until its result is complete. A Comm is used by one thread at a time;
// every rank makes the same calls in the same order. Tensors are contiguous, and every rank passes the same shape. A
// collective that fails or times out throws CommError and leaves the Comm unusable: the process must exit, and all
// ranks start again.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace facetrain {

// A peer was lost, a collective timed out, or the rendezvous failed.
struct CommError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Comm {
 public:
  // A collective that has begun.
  class Pending {
   public:
    virtual ~Pending() = default;
    // Returns when its result is complete; at most once.
    virtual void wait() = 0;
  };

  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Sets out [size * n, ...] to the ranks' in [n, ...], in rank order. float32 or int64.
  virtual void all_gather(at::Tensor& out, const at::Tensor& in) = 0;
  // Replaces data by its sum over the ranks, bit for bit the same on every rank. float32, float64 or int64.
  virtual void all_reduce_sum(at::Tensor& data) = 0;
  // Begins all_reduce_sum(data). Until the wait() has returned, nobody else may read or write the data. Other
  // collectives may be called meanwhile; here it is complete at once.
  virtual std::unique_ptr<Pending> begin_all_reduce_sum(at::Tensor data);
  // Sets out [n, ...] to slice rank() of the sum over the ranks of in [size * n, ...]. float32.
  virtual void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) = 0;
  // Replaces data by that of rank `root`. Any type.
  virtual void broadcast(at::Tensor& data, int root) = 0;
  // Returns when every rank has called it.
  virtual void barrier() = 0;
};

struct RendezvousOptions {
  int rank, size;
  // The same on the ranks that belong together, and on no others: a rank that comes from another gang to the same
  // address, for example from an earlier attempt, waits for its own in vain.
  std::string gang;
  // Where rank 0 listens and the others connect to.
  std::string master_addr;
  int master_port;
  // The address that this rank's own sockets are bound to; empty: the address of the route to master_addr.
  std::string bind_addr;
  std::chrono::milliseconds rendezvous_timeout;  // for all ranks to join
  std::chrono::milliseconds collective_timeout;  // for each collective
};

// HOST:PORT of the master, as a URL has it: an IPv6 address in brackets.
inline std::string master_of(const RendezvousOptions& options) {
  const std::string& host = options.master_addr;
  return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(options.master_port);
}

// For one rank alone: every collective is the identity.
std::unique_ptr<Comm> make_solo_comm();

// Whether this build has Gloo. Only one on a machine without Gloo's headers has not.
bool has_gloo();
// c10d's Gloo over TCP; tensors are on the CPU. Throws CommError naming MASTER_ADDR and MASTER_PORT when the other
// ranks do not join within the timeout, and when has_gloo() is false; Error(RendezvousTimeout) when one joins with
// NCCL.
std::unique_ptr<Comm> make_gloo_comm(const RendezvousOptions& options);

// Whether this is a build with CUDA and NCCL.
bool has_nccl();
// c10d's NCCL on the CUDA device with index `device`, where the tensors must be. Timeouts and errors are those of Gloo;
// also throws CommError when has_nccl() is false or there is no such device.
std::unique_ptr<Comm> make_nccl_comm(const RendezvousOptions& options, int device);

// For tests: `size` ranks in this process, each for its own thread. When one is destroyed, the others' calls that wait
// for it throw CommError.
std::vector<std::unique_ptr<Comm>> make_fake_comms(int size);
// For tests: runs `body` on `size` threads with one such rank each. Rethrows the first exception when all have ended.
void run_fake_ranks(int size, const std::function<void(Comm&)>& body);

}  // namespace facetrain
