// A rank's training session: the backbone's replica, this rank's class centres, the loader, and one step of training.
// Knows no Node; when to stop, to save and to change the learning rate is its caller's business.
//
// The same options, world size and number of threads give the same run bit for bit, and so does a run that goes on from
// saved state.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/comm.h"
#include "data/loader.h"
#include "model/executor.h"
#include "model/graph.h"
#include "pfc/partial_fc.h"
#include "train/flat.h"

namespace facetrain {

struct SessionOptions {
  PfcOptions pfc;  // its device is this session's
  LoaderOptions data;
  double momentum = 0.9;
  double weight_decay = 5e-4;
  std::optional<double> clip_norm;  // of the backbone's gradient, L2 over all of it
};

class Session {
 public:
  // Every rank's backbone becomes rank 0's. Throws Error(PeerLost) here and in every method that talks to the other
  // ranks: the session cannot be used after that. `cancelled` is looked at within a step, which then throws Cancelled.
  Session(std::unique_ptr<Executor> backbone, std::unique_ptr<Comm> comm, std::shared_ptr<const Dataset> dataset,
          const SessionOptions& options, const std::atomic<bool>& cancelled);

  struct Votes {
    bool stop = false, checkpoint = false;
  };
  struct StepResult {
    double loss = 0;           // mean over the global batch, the same on every rank
    double gradient_norm = 0;  // of the backbone, before clipping
    Votes votes;               // true when any rank voted so
  };
  // Throws Error(NotANumber), on every rank and before any weight has moved, when loss or gradient is not finite;
  // Error(InvalidDataset) for a damaged record or a label that is no class.
  StepResult step(int64_t step, double learning_rate, Votes votes);

  Executor& backbone() { return *backbone_; }
  at::Device device() const { return options_.pfc.device; }
  PartialFc& centres() { return centres_; }
  int64_t steps_per_epoch() const { return loader_->steps_per_epoch(); }

  // The backbone's state, values in row-major order of the tensor's dimensions: parameters, buffers and fixed ones, and
  // the parameters' momentum.
  struct Saved {
    std::string name;
    std::vector<int64_t> dims;
    std::vector<float> values;
  };
  struct State {
    std::vector<Saved> tensors, momentum;
  };
  State save() const;
  // Tensors of other names stay as they are.
  void load(const State& state);

  // Class centres and their momentum, [count, d] each, of rows counted from this rank's first.
  struct Rows {
    std::vector<float> weight, momentum;
  };
  Rows save_rows(int64_t first, int64_t count);
  void load_rows(int64_t first, const Rows& rows);

  // Every rank's values, in rank order.
  std::vector<std::vector<float>> all_gather(const std::vector<float>& values);
  void barrier();

 private:
  void flatten();
  void broadcast();
  Batch next_batch(int64_t step);
  void share(Votes& votes, bool& finite);
  double clip();
  void apply_sgd(double learning_rate);
  void stop_if_cancelled() const;
  std::vector<Executor::Named> tensors() const;   // all that save() names
  std::vector<Executor::Named> momentum() const;  // by parameter

  const std::unique_ptr<Executor> backbone_;
  const std::unique_ptr<Comm> comm_;
  const std::shared_ptr<const Dataset> dataset_;
  const SessionOptions options_;
  const std::atomic<bool>& cancelled_;
  PartialFc centres_;
  std::unique_ptr<Loader> loader_;
  int64_t next_step_ = 0;  // of the loader

  // The backbone's parameters, their momentum, and what the ranks add up in a step: gradients, running statistics,
  // flags. The executor's tensors are views of these.
  FlatLayout parameter_layout_, buffer_layout_;
  at::Tensor weights_, momentum_, shared_;
  at::Tensor gradients_, statistics_, flags_;  // parts of shared_
};

// The session of `graph` on the pictures in `directory`, with the other ranks over NCCL where it computes with CUDA and
// over Gloo elsewhere. Throws Error(InvalidModel, UnsupportedOperator), Error(InvalidDataset), and
// Error(RendezvousTimeout) naming MASTER_ADDR and MASTER_PORT, or ranks that compute on different devices.
std::unique_ptr<Session> open_session(const Graph& graph, const std::string& directory,
                                      const RendezvousOptions& rendezvous, const SessionOptions& options,
                                      const std::atomic<bool>& cancelled);

}  // namespace facetrain
