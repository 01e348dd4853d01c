// A rank's training session: the backbone's replica, this rank's class centres, the loader, and one step of training.
// The caller decides when to stop, when to save, and the learning rate of each step. Knows no Node.
//
// The same options, number of ranks and number of threads give the same run bit for bit, also when it is resumed from
// saved state. On CPUs and with micro-batches, so does any other number of ranks. With dense updates of class centres
// the state must also be saved after the same steps: that brings all rows up to date, which rounds them.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/comm.h"
#include "data/batch_part.h"
#include "data/loader.h"
#include "model/executor.h"
#include "model/graph.h"
#include "model/joined_ranks.h"
#include "pfc/partial_fc.h"
#include "train/device.h"
#include "train/device_batches.h"
#include "train/flat_layout.h"
#include "train/gradient_buckets.h"
#include "train/integer_sums.h"
#include "train/kept_steps.h"
#include "train/loss_scale.h"
#include "train/stage_clock.h"
#include "train/trained_state.h"

namespace facetrain {

// No defaults: those that users see are in api/src/facetrainjob.ts.
struct SessionOptions {
  PfcOptions pfc;  // its device is that of the whole session
  // Sets pfc.host_rows by rows_on_host(); not on CPUs.
  std::optional<RowsMemory> auto_host_rows = {};
  LoaderOptions data;
  double momentum, weight_decay;    // for backbone and class centres
  std::optional<double> clip_norm;  // largest L2 norm of the backbone's whole gradient
  double rows_rate_factor = 1;      // the learning rate of class centres over that of the backbone
  Precision precision;              // of the backbone; one that the device has (resolve_precision)
  // With data.micro_batch, the backbone sees that many pictures of the rank's part of a batch at once. A micro-batch is
  // to the backbone what a rank's part is otherwise: n micro-batches on a rank train as n ranks with one each. Only one
  // of them has its activations in memory: the others' are computed twice.
  bool checkpoint_activations;  // of the backbone (Executor::checkpoint_activations)
  // Whether batch norms take their statistics over the pictures of all ranks (Executor::join_norms). Only with one
  // micro-batch on each rank: those of several never meet.
  bool sync_batch_norm;
};

class Session {
 public:
  // Broadcasts rank 0's backbone to all ranks. The constructor and every method that communicates throw Error(PeerLost)
  // when that fails; the session cannot be used afterwards. A step throws Cancelled soon after `cancelled` is set.
  Session(std::unique_ptr<Executor> backbone, std::unique_ptr<Comm> comm, std::shared_ptr<const Dataset> dataset,
          const SessionOptions& options, const std::atomic<bool>& cancelled);

  struct Votes {
    // `writing`: this rank has not written all of its part of a checkpoint.
    bool stop = false, checkpoint = false, writing = false;
  };
  struct StepResult {
    double loss = 0;           // mean over the global batch, the same on every rank
    double gradient_norm = 0;  // of the backbone, before clipping
    Votes votes;               // true if any rank's is true
    // In fp16: steps since the start of training that changed no weight, because a gradient overflowed.
    std::optional<int64_t> skipped_steps;
    // Of this rank. Of the oldest step that the device has finished and that was not returned yet: on CUDA an earlier
    // step than this one, or none.
    std::optional<StageSeconds> stages;
  };
  // Trains on the pictures of global step `step`. Throws Error(NotANumber), on every rank and before any weight
  // changes, when the loss or a gradient is not finite; Error(InvalidDataset) for a label outside the classes, or more
  // bad pictures than are allowed. In fp16, a step whose gradient of the backbone overflows is skipped instead, as long
  // as a smaller loss scale may help.
  StepResult step(int64_t step, double learning_rate, Votes votes);

  // Identities that later steps do not train: their pictures are left out, or count as another identity's, and their
  // class centres are no negatives.
  void retire(RetiredLabels labels);

  // See Loader::take_replaced. Of this rank.
  std::vector<UnusablePicture> take_replaced() { return batches_.take_replaced(); }

  Executor& backbone() { return *backbone_; }
  at::Device device() const { return options_.pfc.device; }
  // Of later steps and embeddings, and in fp16 the loss scale. Throws Error(InvalidConfig) for a precision that the
  // device does not have.
  void use_precision(Precision precision, const LossScale& scale = {});
  Precision precision() const { return backbone_->precision(); }
  // After the steps done; in fp16.
  const std::optional<LossScale>& loss_scale() const { return loss_scale_; }
  PartialFc& centres() { return centres_; }
  bool host_rows() const { return options_.pfc.host_rows; }
  // After the steps done; of the margin AdaFace.
  std::optional<NormStatistics> norm_statistics() const {
    return options_.pfc.margin.form == MarginForm::adaface ? std::optional(centres_.norm_statistics()) : std::nullopt;
  }
  int64_t steps_per_epoch() const { return batches_.steps_per_epoch(); }

  // What training changes, when all steps have ended: values may be written. The tensors are those of the session.
  TrainedState state();
  // A copy of it, without the backbone's part if `backbone` is false: on the session's device if there is room, else on
  // the host. None when neither has room. The next step may follow at once. `former`: the rows of an earlier copy,
  // whose memory is used again; memory that is new to the process takes longer to get than to fill.
  std::optional<TrainedState> copy_state(bool backbone, std::vector<Executor::Named> former = {});

  // Keeps the state of the last two steps in a file in memory, from which a process that is started again goes on
  // (kept_steps.h). Returns what the file has of a former process with the same `identity`. Throws Error(InvalidConfig)
  // with dense updates, which change all rows, and what KeptSteps throws.
  struct KeptStep {
    int64_t step;
    std::string note;
  };
  std::vector<KeptStep> open_kept_steps(const std::string& path, const std::string& identity);
  // After `step` steps. keep_all forgets what was there, keep follows keep_all, keep or recall of the step before.
  void keep_all(int64_t step, const std::string& note);
  void keep(int64_t step, const std::string& note);
  // Makes the state that after a step of which every rank has what it kept. A collective. The precision, and what was
  // retired, must be those of that state.
  void recall(int64_t step);

  // The values of every rank, in rank order; lengths may differ.
  std::vector<std::vector<float>> all_gather(const std::vector<float>& values);
  void barrier();

 private:
  void flatten();
  // Of this rank's part of a batch, and the pictures in each.
  int64_t micro_batches() const { return part_.count / micro_batch(); }
  int64_t micro_batch() const { return options_.data.micro_batch > 0 ? options_.data.micro_batch : part_.count; }
  at::Tensor images(const at::Tensor& pixels, int64_t index);
  std::vector<at::Tensor> forward(const at::Tensor& pixels);
  void backward(const at::Tensor& pixels, std::vector<at::Tensor> embeddings, const at::Tensor& gradient);
  void broadcast();
  void sum_over_ranks(Votes& votes);
  void sum_in_no_order(Votes& votes);
  double gradient_norm() const;
  void apply_sgd(double learning_rate, double norm);
  void stop_if_cancelled() const;
  std::vector<at::Tensor> kept_parts(int rank) const;
  void keep_parts(int64_t step, const std::string& note);
  TrainedState backbone_state(const at::Tensor& weights, const at::Tensor& momentum,
                              const at::Tensor& statistics) const;

  const std::unique_ptr<Executor> backbone_;
  StageClock clock_;  // comm_ uses it
  const std::unique_ptr<Comm> comm_;
  const SessionOptions options_;
  const BatchPart part_;  // of this rank
  const std::optional<JoinedRanks> norm_ranks_;
  const std::atomic<bool>& cancelled_;
  PartialFc centres_;
  DeviceBatches batches_;
  std::optional<LossScale> loss_scale_;  // in fp16

  std::unique_ptr<KeptSteps> kept_;
  bool rows_changed_ = false;  // by the last step

  // Flat buffers; the executor's tensors are views of them. shared_ is summed over the ranks in every step: what is
  // known last comes first, as buckets_ sends it last.
  FlatLayout parameter_layout_, buffer_layout_;
  at::Tensor weights_, momentum_, shared_;
  at::Tensor statistics_, flags_, gradients_;  // parts of shared_
  std::optional<GradientBuckets> buckets_;     // with several ranks, unless PfcOptions::reproducible
  // With PfcOptions::reproducible, in place of the sum of shared_: the sum of the gradients, and the running statistics
  // after each of this rank's micro-batches.
  std::optional<IntegerSums> sums_;
  std::vector<at::Tensor> micro_statistics_;
};

// Opens the dataset in `directory`, plans `graph`, and connects to the other ranks, over NCCL on CUDA and over Gloo on
// CPUs. Throws Error(InvalidModel), Error(UnsupportedOperator), Error(InvalidDataset), Error(InsufficientMemory), and
// Error(RendezvousTimeout) naming MASTER_ADDR and MASTER_PORT, or the ranks that compute on different devices.
std::unique_ptr<Session> open_session(const Graph& graph, const std::string& directory,
                                      const RendezvousOptions& rendezvous, const SessionOptions& options,
                                      const std::atomic<bool>& cancelled);

}  // namespace facetrain
