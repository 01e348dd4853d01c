// What the c10d back ends share: collectives on a c10d::Backend, the store that the ranks meet at, and errors a person
// can read. Only APIs that libtorch 2.11 and 2.15 have in common are used: the lists of tensors, not the renamed
// `_allgather_base` family. Included by comm/*.cc alone.
#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "comm/comm.h"

namespace facetrain {

// Counts down what is left of the time that the rendezvous may take, over all its steps.
class Deadline {
 public:
  explicit Deadline(std::chrono::milliseconds timeout) : start_(Clock::now()), timeout_(timeout) {}
  // At least 1 ms: c10d takes 0 for "no timeout".
  std::chrono::milliseconds remaining() const;
  bool passed() const { return Clock::now() >= start_ + timeout_; }
  double elapsed_seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_;
  std::chrono::milliseconds timeout_;
};

// The store that rank 0 hosts at MASTER_ADDR:MASTER_PORT.
struct Rendezvous {
  c10::intrusive_ptr<c10d::Store> store;
  std::string own_address;  // of this rank's interface towards MASTER_ADDR, in digits
};

// Joins the store and waits until every rank has. Throws CommError, and Error(RendezvousTimeout) when a rank means to
// go on with another back end than this one: they would wait for each other in vain. The first to see it takes the
// others down, some with a CommError.
Rendezvous join(const RendezvousOptions& options, const Deadline& deadline, const std::string& backend);

// The message of an exception of c10's without the C++ frames that what() would bring along.
std::string message_of(const std::exception& error);

// The CommError of a rendezvous that failed: where, how long it waited, and why.
CommError rendezvous_error(const RendezvousOptions& options, const Deadline& deadline, const std::string& why);

// Collectives of a c10d back end; the tensors live where that back end wants them (Gloo: CPU, NCCL: CUDA).
class C10dComm : public Comm {
 public:
  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  void all_gather(at::Tensor& out, const at::Tensor& in) override;
  void all_reduce_sum(at::Tensor& data) override;
  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override;
  void broadcast(at::Tensor& data, int root) override;
  void barrier() override;

 protected:
  C10dComm(const RendezvousOptions& options, const Deadline& deadline, const std::string& backend)
      : options_(options), rendezvous_(join(options, deadline, backend)) {}

  RendezvousOptions options_;
  Rendezvous rendezvous_;  // lives as long as the back end: rank 0's store is the server
  c10::intrusive_ptr<c10d::Backend> backend_;

 private:
  template <class Start>
  void run(const char* what, Start start);
};

}  // namespace facetrain
