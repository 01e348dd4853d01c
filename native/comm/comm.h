// Collectives between the ranks of one job.
//
// Every call blocks until the result is there. A Comm belongs to one thread at a time: all calls of a rank are made in
// the same order on every rank and never concurrently. Tensors are contiguous; every rank passes the same shape. A
// failed or timed-out collective throws CommError and leaves the Comm unusable: the process exits with a retryable code
// and the whole gang is started again.
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

struct CommError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out [size * n, ...] <- in [n, ...] of every rank, in rank order. float32 or int64.
  virtual void all_gather(at::Tensor& out, const at::Tensor& in) = 0;
  // In place, bit for bit the same on every rank; float32, float64 or int64.
  virtual void all_reduce_sum(at::Tensor& data) = 0;
  // out [n, ...] <- the sum over ranks of their in [size * n, ...], slice rank(). float32.
  virtual void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) = 0;
  // In place, from rank `root`; any type.
  virtual void broadcast(at::Tensor& data, int root) = 0;
  virtual void barrier() = 0;
};

struct RendezvousOptions {
  int rank = 0;
  int size = 1;
  std::string master_addr = "127.0.0.1";
  int master_port = 0;
  // The address this rank's own sockets are bound to; empty: found from the route to master_addr.
  std::string bind_addr;
  std::chrono::milliseconds rendezvous_timeout{60000};
  std::chrono::milliseconds collective_timeout{120000};
};

// One rank alone: every collective is the identity.
std::unique_ptr<Comm> make_solo_comm();

// c10d Gloo over TCP. Throws CommError naming MASTER_ADDR and MASTER_PORT when the others do not come within the
// timeout, Error(RendezvousTimeout) when they come with NCCL.
std::unique_ptr<Comm> make_gloo_comm(const RendezvousOptions& options);

// c10d NCCL on the CUDA device of that index; tensors live there. `rendezvous_timeout`, `collective_timeout` and errors
// as with Gloo. Throws CommError where has_nccl() is false (a build without CUDA) or there is no such device.
bool has_nccl();
std::unique_ptr<Comm> make_nccl_comm(const RendezvousOptions& options, int device);

// `size` ranks in this process, for tests: give each to its own thread. Destroying one releases the others with a
// CommError.
std::vector<std::unique_ptr<Comm>> make_fake_comms(int size);
// Runs `body` on `size` threads, one fake rank each; rethrows the first exception when all have ended.
void run_fake_ranks(int size, const std::function<void(Comm&)>& body);

}  // namespace facetrain
