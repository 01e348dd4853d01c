// The common part of Gloo and NCCL: collectives on a c10d::Backend, the rendezvous of the ranks at a TCPStore, and
// readable errors. Included by comm/*.cc only.
//
// Uses only APIs that libtorch 2.11 and 2.15 have in common: the collectives on lists of tensors, not the renamed
// `_allgather_base` family.
#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "comm/comm.h"

namespace facetrain {

// The time that remains for the rendezvous, over all its steps.
class Deadline {
 public:
  explicit Deadline(std::chrono::milliseconds timeout) : start_(Clock::now()), timeout_(timeout) {}
  // At least 1 ms: c10d takes 0 to mean no timeout.
  std::chrono::milliseconds remaining() const;
  bool passed() const { return Clock::now() >= start_ + timeout_; }
  double elapsed_seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_;
  std::chrono::milliseconds timeout_;
};

// The keys of one gang in the store that rank 0 hosts at MASTER_ADDR:MASTER_PORT.
struct Rendezvous {
  c10::intrusive_ptr<c10d::Store> store;
  std::string own_address;  // numeric address of this rank's interface on the route to MASTER_ADDR
};

// How often processes of a rank have come to a store.
std::string arrivals_key(int rank);

// Joins the store and waits until every rank has joined. A rank that was started again waits for a rank 0 that was
// started again as well. Throws CommError, and Error(RendezvousTimeout) when a rank joins with another `backend`,
// because ranks with different back ends would wait for each other until the timeout. The first rank that finds out
// ends the rendezvous; the others may get a CommError instead.
Rendezvous join(const RendezvousOptions& options, const Deadline& deadline, const std::string& backend);

// The CommError of a failed rendezvous: its address, how long it took, and the reason.
CommError rendezvous_error(const RendezvousOptions& options, const Deadline& deadline, const std::string& why);

// Comm on a c10d back end. Derived classes make backend_.
class C10dComm : public Comm {
 public:
  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  void all_gather(at::Tensor& out, const at::Tensor& in) override;
  void all_reduce_sum(at::Tensor& data) override;
  std::unique_ptr<Pending> begin_all_reduce_sum(at::Tensor data) override;
  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override;
  void broadcast(at::Tensor& data, int root) override;
  void barrier() override;

 protected:
  C10dComm(const RendezvousOptions& options, const Deadline& deadline, const std::string& backend)
      : options_(options), rendezvous_(join(options, deadline, backend)) {}

  RendezvousOptions options_;
  Rendezvous rendezvous_;  // must live as long as the back end, because rank 0's store is the server
  c10::intrusive_ptr<c10d::Backend> backend_;

 private:
  class Begun;
  template <class Call>
  auto explained(const char* what, Call call) -> decltype(call());
  template <class Start>
  void run(const char* what, Start start);
  c10::intrusive_ptr<c10d::Work> start_all_reduce(const at::Tensor& data);
};

}  // namespace facetrain
