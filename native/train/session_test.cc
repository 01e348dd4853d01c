// What a step reports about its stages; in FP16 the loss scale, on a GPU; and ways to divide a batch that train alike:
// ranks, micro-batches, batch norms over all ranks, activations that are computed twice. What else a step computes is
// tested through the addon (src/training.test.ts).
#include "train/session.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <thread>

#include "error.h"
#include "test/check.h"
#include "test/picture_set.h"

using namespace facetrain;

namespace {

constexpr int kSide = 4;  // pixels

// Pictures of two identities. Reading one waits until open() is called.
class GatedDataset final : public test::PictureSet {
 public:
  GatedDataset() : PictureSet(8, 2, kSide) {}
  std::vector<uint8_t> encoded(int64_t picture) const override {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [&] { return open_; });
    return PictureSet::encoded(picture);
  }

  void open() {
    {
      std::lock_guard lock(mutex_);
      open_ = true;
    }
    opened_.notify_all();
  }

 private:
  uint8_t value(int64_t picture, size_t) const override { return static_cast<uint8_t>(20 * picture); }

  mutable std::mutex mutex_;
  mutable std::condition_variable opened_;
  bool open_ = false;
};

Graph small_graph() {
  constexpr int64_t kPixels = int64_t{3} * kSide * kSide, kDim = 2;
  std::vector<float> weight(kPixels * kDim);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i % 7) - 3;
  Graph graph;
  graph.input = {"data", 3, kSide, kSide};
  graph.nodes = {{"flatten", "Flatten", {"data"}, {"flat"}, {}}, {"fc", "Gemm", {"flat", "weight"}, {"out"}, {}}};
  graph.initializers = {{"weight", {Constant::Type::float32, {kPixels, kDim}, std::move(weight), {}}}};
  graph.output = {"out", kDim};
  return graph;
}

SessionOptions small_options() {
  return {.pfc = {.num_classes = 2,
                  .embedding_dim = 2,
                  .sample_rate = 1,
                  .seed = 1,
                  .scale = 8,
                  .margin = {.m1 = 1, .m2 = 0, .m3 = 0},
                  .interclass_filter = std::nullopt},
          .data = {.global_batch = 4,
                   .rank = 0,
                   .size = 1,
                   .seed = 1,
                   .flip = false,
                   .shift = 0,
                   .bgr = false,
                   .threads = 1,
                   .max_bad = 0},
          .momentum = 0.9,
          .weight_decay = 0,
          .clip_norm = std::nullopt,
          .precision = Precision::fp32,
          .checkpoint_activations = false,
          .sync_batch_norm = false};
}

// A step whose batch the loader holds back: the wait is in `data`, and nothing else is.
void waiting_for_the_loader_counts_as_data() {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point then) {
    return std::chrono::duration<double>(Clock::now() - then).count();
  };
  const auto dataset = std::make_shared<GatedDataset>();
  const std::atomic<bool> cancelled{false};
  Session session(make_executor(small_graph(), at::kCPU), make_solo_comm(), dataset, small_options(), cancelled);

  const auto called = Clock::now();
  Clock::time_point opened;
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    opened = Clock::now();
    dataset->open();
  });
  const auto held_back = session.step(0, 0.1, {});
  const double all = seconds_since(called);
  opener.join();
  const double after = seconds_since(opened);
  CHECK(held_back.stages.has_value());
  if (!held_back.stages) return;
  const StageSeconds& stages = *held_back.stages;
  const double data = stages[static_cast<size_t>(Stage::data)];
  const double sum = std::accumulate(stages.begin(), stages.end(), 0.0);
  CHECK(data > 0.1);
  CHECK(sum <= all);
  CHECK(sum - data <= after);
  for (const Stage stage : {Stage::upload, Stage::forward, Stage::head, Stage::backward, Stage::update}) {
    CHECK(stages[static_cast<size_t>(stage)] > 0);
  }
  CHECK_EQ(stages[static_cast<size_t>(Stage::communication)], 0.0);
}

// In FP16, an overflow changes no weight and halves the loss scale; other steps are those without a scale.
void an_overflow_skips_the_step() {
  if (!at::hasCUDA()) return;
  SessionOptions options = small_options();
  options.pfc.device = at::Device(at::kCUDA, 0);
  options.precision = Precision::fp16;
  const auto dataset = std::make_shared<GatedDataset>();
  dataset->open();
  const std::atomic<bool> cancelled{false};
  Session session(make_executor(small_graph(), options.pfc.device), make_solo_comm(), dataset, options, cancelled);
  CHECK_EQ(session.loss_scale()->value, 65536.0);
  const auto weights = [&] { return session.backbone().parameters()[0].tensor.detach().clone(); };

  const at::Tensor before = weights(), centres = session.centres().weight().clone();
  session.use_precision(Precision::fp16, {.value = 0x1p80, .good_steps = 7, .skipped_steps = 4});
  session.step(0, 0.1, {});
  CHECK_EQ(session.loss_scale()->value, 0x1p79);
  CHECK_EQ(session.loss_scale()->good_steps, 0);
  CHECK_EQ(session.loss_scale()->skipped_steps, 5);
  CHECK(at::equal(weights(), before));
  CHECK(at::equal(session.centres().weight(), centres));

  session.use_precision(Precision::fp16, {.value = 1024, .good_steps = 7, .skipped_steps = 4});
  session.step(1, 0.1, {});
  CHECK_EQ(session.loss_scale()->good_steps, 8);
  CHECK_EQ(session.loss_scale()->skipped_steps, 4);
  CHECK(!at::equal(weights(), before));
}

// Noise, so that the statistics of every part of a batch are others.
class NoisyDataset final : public test::PictureSet {
 public:
  NoisyDataset() : PictureSet(48, 6, kNoisySide) {}
  static constexpr int kNoisySide = 8;

 private:
  uint8_t value(int64_t picture, size_t i) const override {
    const auto byte = static_cast<uint64_t>(picture) * 1000 + i;
    return static_cast<uint8_t>(byte * 0x9e3779b97f4a7c15 >> 56);
  }
};

// Conv, batch norm and PReLU, a residual block with two batch norms, a batch norm alone, and one that ends the graph.
Graph residual_graph() {
  constexpr int64_t kChannels = 8, kDim = 6, kSpace = 4;
  Graph graph;
  graph.input = {"data", 3, NoisyDataset::kNoisySide, NoisyDataset::kNoisySide};
  uint32_t state = 1;
  const auto weights = [&](const std::string& name, const std::vector<int64_t>& dims, float size) {
    int64_t count = 1;
    for (const int64_t dim : dims) count *= dim;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      state = state * 1664525 + 1013904223;
      value = size * (static_cast<float>(state >> 8) / 0x1p23F - 1);
    }
    graph.initializers[name] = {Constant::Type::float32, dims, std::move(values), {}};
  };
  const auto conv = [&](const std::string& name, const std::string& from, int64_t in, int64_t stride) {
    graph.nodes.push_back(
        {name,
         "Conv",
         {from, name + ".w"},
         {name},
         {{"pads", std::vector<int64_t>{1, 1, 1, 1}}, {"strides", std::vector<int64_t>{stride, stride}}}});
    weights(name + ".w", {kChannels, in, 3, 3}, std::sqrt(2.F / static_cast<float>(in * 9)));
  };
  const auto norm = [&](const std::string& name, const std::string& from, int64_t channels) {
    graph.nodes.push_back(
        {name, "BatchNormalization", {from, name + ".g", name + ".b", name + ".m", name + ".v"}, {name}, {}});
    const auto filled = [&](float value) {
      return Constant{Constant::Type::float32, {channels}, std::vector<float>(channels, value), {}};
    };
    graph.initializers[name + ".g"] = graph.initializers[name + ".v"] = filled(1);
    graph.initializers[name + ".b"] = graph.initializers[name + ".m"] = filled(0);
  };
  const auto prelu = [&](const std::string& name, const std::string& from) {
    graph.nodes.push_back({name, "PRelu", {from, name + ".s"}, {name}, {}});
    graph.initializers[name + ".s"] = {
        Constant::Type::float32, {kChannels, 1, 1}, std::vector<float>(kChannels, 0.25F), {}};
  };
  conv("conv1", "data", 3, 2);
  norm("norm1", "conv1", kChannels);
  prelu("act1", "norm1");
  norm("norm2", "act1", kChannels);
  conv("conv2", "norm2", kChannels, 1);
  norm("norm3", "conv2", kChannels);
  prelu("act2", "norm3");
  conv("conv3", "act2", kChannels, 1);
  norm("norm4", "conv3", kChannels);
  graph.nodes.push_back({"sum", "Add", {"norm4", "act1"}, {"sum"}, {}});
  conv("conv4", "sum", kChannels, 1);
  norm("norm5", "conv4", kChannels);
  prelu("act3", "norm5");
  graph.nodes.push_back({"flat", "Flatten", {"act3"}, {"flat"}, {}});
  graph.nodes.push_back({"fc", "Gemm", {"flat", "fc.w"}, {"fc"}, {{"transB", int64_t{1}}}});
  weights("fc.w", {kDim, kChannels * kSpace * kSpace}, 0.2F);
  norm("out", "fc", kDim);
  graph.output = {"out", kDim};
  return graph;
}

struct Division {
  int ranks = 1;
  int64_t micro_batch = 0;  // pictures; 0: a rank's whole part
  bool checkpoint_activations = false, sync_batch_norm = false;
  Precision precision = Precision::fp32;
};

struct Trained {
  std::vector<double> losses;
  at::Tensor weights, statistics, centres;  // the latter of all ranks; float64
};

// Five steps of a global batch of 24 on `division.ranks` threads. Checks that all ranks have one backbone.
Trained trained(const Division& division) {
  constexpr int64_t kBatch = 24, kSteps = 5;
  const auto dataset = std::make_shared<NoisyDataset>();
  const std::atomic<bool> cancelled{false};
  auto comms = make_fake_comms(division.ranks);
  std::vector<Trained> results(division.ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < division.ranks; ++rank) {
    threads.emplace_back([&, rank] {
      at::set_num_threads(1);
      SessionOptions options = small_options();
      options.pfc.num_classes = dataset->identities();
      options.pfc.embedding_dim = 6;
      options.data.global_batch = kBatch;
      options.data.rank = rank;
      options.data.size = division.ranks;
      options.data.flip = true;
      options.weight_decay = 5e-4;
      options.clip_norm = 5;
      options.precision = division.precision;
      if (division.micro_batch > 0) options.data.micro_batch = division.micro_batch;
      options.checkpoint_activations = division.checkpoint_activations;
      options.sync_batch_norm = division.sync_batch_norm;
      Session session(make_executor(residual_graph(), at::kCPU), std::move(comms[rank]), dataset, options, cancelled);
      Trained& result = results[rank];
      for (int64_t step = 0; step < kSteps; ++step) result.losses.push_back(session.step(step, 0.05, {}).loss);
      const auto flat = [](const std::vector<Executor::Named>& tensors) {
        std::vector<at::Tensor> parts;
        for (const auto& [name, tensor] : tensors) parts.push_back(tensor.detach().to(at::kDouble).flatten());
        return at::cat(parts);
      };
      result.weights = flat(session.backbone().parameters());
      result.statistics = flat(session.backbone().buffers());
      result.centres = session.centres().weight().to(at::kDouble);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<at::Tensor> centres;
  for (const Trained& result : results) {
    CHECK(result.losses == results[0].losses);
    CHECK(at::equal(result.weights, results[0].weights));
    CHECK(at::equal(result.statistics, results[0].statistics));
    centres.push_back(result.centres);
  }
  results[0].centres = at::cat(centres);
  return results[0];
}

// ||a - b|| / ||b||, the largest over losses, weights, statistics and centres.
double difference(const Trained& a, const Trained& b) {
  const auto relative = [](const at::Tensor& x, const at::Tensor& y) {
    return ((x - y).norm() / y.norm()).item<double>();
  };
  return std::max({relative(at::tensor(a.losses, at::kDouble), at::tensor(b.losses, at::kDouble)),
                   relative(a.weights, b.weights), relative(a.statistics, b.statistics),
                   relative(a.centres, b.centres)});
}

bool are_equal(const Trained& a, const Trained& b) {
  return a.losses == b.losses && at::equal(a.weights, b.weights) && at::equal(a.statistics, b.statistics) &&
         at::equal(a.centres, b.centres);
}

// An identity that was merged into another is no negative either.
void retired_identities_leave_the_head() {
  const auto dataset = std::make_shared<GatedDataset>();
  dataset->open();
  const std::atomic<bool> cancelled{false};
  Session session(make_executor(small_graph(), at::kCPU), make_solo_comm(), dataset, small_options(), cancelled);
  session.step(0, 0.1, {});
  CHECK(at::equal(session.centres().sampled(), at::arange(2, at::kLong)));
  session.retire({{1, 0}});
  session.step(1, 0.1, {});
  CHECK(at::equal(session.centres().sampled(), at::zeros({1}, at::kLong)));
}

// The whole state of a session, as bytes.
std::vector<at::Tensor> bytes_of(Session& session) {
  const TrainedState state = session.state();
  std::vector<at::Tensor> all;
  for (const auto* const part : {&state.tensors, &state.momentum, &state.rows}) {
    for (const auto& [name, tensor] : *part) all.push_back(tensor.detach().contiguous().view(at::kByte).clone());
  }
  const NormStatistics norms = session.centres().norm_statistics();
  all.push_back(at::tensor({norms.mean, norms.deviation}, at::kDouble));
  return all;
}

// Ranks on threads, each with its session.
template <class Body>
void with_sessions(int ranks, const PfcOptions& pfc, Body body) {
  const auto dataset = std::make_shared<NoisyDataset>();
  const std::atomic<bool> cancelled{false};
  auto comms = make_fake_comms(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      at::set_num_threads(1);
      SessionOptions options = small_options();
      options.pfc = pfc;
      options.data.global_batch = 36;
      options.data.rank = rank;
      options.data.size = ranks;
      options.weight_decay = 5e-4;
      Session session(make_executor(residual_graph(), at::kCPU), std::move(comms[rank]), dataset, options, cancelled);
      body(rank, session);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A rank that died with step 5 done but not kept, and one that had kept it: both go on from step 4, and are in the end
// what they would be without that. Another one dies in the middle of the rest.
void kept_steps_are_those_that_were_done(int ranks, const PfcOptions& pfc) {
  constexpr int64_t kSteps = 9, kDied = 5, kDiedAgain = 7;
  std::string folder = "/tmp/session-test-XXXXXX";
  CHECK(mkdtemp(folder.data()) != nullptr);
  const auto path = [&](int rank) { return folder + "/" + std::to_string(rank); };
  const auto train = [](Session& session, int64_t from, int64_t to, auto after) {
    for (int64_t step = from; step < to; ++step) {
      session.step(step, 0.05, {});
      after(step + 1);
    }
  };
  std::vector<std::vector<at::Tensor>> wanted(ranks), resumed(ranks);
  with_sessions(ranks, pfc, [&](int rank, Session& session) {
    train(session, 0, kSteps, [](int64_t) {});
    wanted[rank] = bytes_of(session);
  });
  with_sessions(ranks, pfc, [&](int rank, Session& session) {
    CHECK(session.open_kept_steps(path(rank), "job").empty());
    session.keep_all(0, "start");
    train(session, 0, kDied, [&](int64_t step) {
      if (step < kDied || rank == 1) session.keep(step, std::to_string(step));
    });
  });
  with_sessions(ranks, pfc, [&](int rank, Session& session) {
    const auto found = session.open_kept_steps(path(rank), "job");
    CHECK_EQ(found.size(), 2);
    if (found.size() != 2) return;
    CHECK_EQ(found[0].step, rank == 1 ? kDied : kDied - 1);
    CHECK_EQ(found[0].note, std::to_string(found[0].step));
    session.recall(kDied - 1);
    train(session, kDied - 1, kDiedAgain, [&](int64_t step) { session.keep(step, std::to_string(step)); });
  });
  with_sessions(ranks, pfc, [&](int rank, Session& session) {
    CHECK_EQ(session.open_kept_steps(path(rank), "job").size(), 2);
    session.recall(kDiedAgain);
    train(session, kDiedAgain, kSteps, [&](int64_t step) { session.keep(step, ""); });
    resumed[rank] = bytes_of(session);
  });
  for (int rank = 0; rank < ranks; ++rank) {
    CHECK_EQ(resumed[rank].size(), wanted[rank].size());
    for (size_t i = 0; i < resumed[rank].size(); ++i) CHECK(at::equal(resumed[rank][i], wanted[rank][i]));
  }
  with_sessions(ranks, pfc,
                [&](int rank, Session& session) { CHECK(session.open_kept_steps(path(rank), "another job").empty()); });
  std::filesystem::remove_all(folder);
}

void kept_steps() {
  PfcOptions pfc = small_options().pfc;
  pfc.num_classes = 60;
  pfc.embedding_dim = 6;
  pfc.sample_rate = 0.3;
  for (const int ranks : {1, 2, 3}) kept_steps_are_those_that_were_done(ranks, pfc);
  // Ranks that keep no part of the backbone.
  kept_steps_are_those_that_were_done(18, pfc);
  pfc.bf16_rows = true;
  for (const RowOptimizer optimizer : kRowOptimizers) {
    pfc.row_optimizer = optimizer;
    for (const bool host_rows : {false, true}) {
      pfc.host_rows = host_rows;
      kept_steps_are_those_that_were_done(2, pfc);
    }
  }
  pfc.margin = {.m1 = 1, .m2 = 0, .m3 = 0, .form = MarginForm::adaface, .m = 0.4F, .h = 0.333F};
  kept_steps_are_those_that_were_done(2, pfc);
  pfc.sample_rate = 1;
  pfc.sample_rate_changes = {{3, 0.5}, {6, 1}};
  kept_steps_are_those_that_were_done(2, pfc);
  pfc.row_optimizer = RowOptimizer::sgd;
  pfc.dense_update = true;
  with_sessions(1, pfc, [](int, Session& session) {
    CHECK_THROWS(session.open_kept_steps("/tmp/unused", "job"), Error, "checkpoint.inMemory");
  });
}

constexpr double kRounding = 2e-6;  // of float32, over five steps

// Four parts of a batch, on one rank, two or four: batch norms see the same pictures together.
void micro_batches_are_as_ranks() {
  const Trained four_ranks = trained({.ranks = 4});
  CHECK_NEAR(difference(trained({.micro_batch = 6}), four_ranks), 0, kRounding);
  CHECK_NEAR(difference(trained({.ranks = 2, .micro_batch = 6}), four_ranks), 0, kRounding);
  // The first rank has two of them.
  CHECK_NEAR(difference(trained({.ranks = 3, .micro_batch = 6}), four_ranks), 0, kRounding);
  CHECK(difference(trained({}), four_ranks) > 1e-3);
  CHECK(are_equal(trained({.micro_batch = 6}), trained({.micro_batch = 6})));
}

// With micro-batches no bit depends on the number of ranks, which have 4, 2 and 2, 2, 1 and 1, or 1 of them.
void micro_batches_make_ranks_equal() {
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    const Trained one_rank = trained({.micro_batch = 6, .precision = precision});
    for (const int ranks : {2, 3, 4})
      CHECK(are_equal(trained({.ranks = ranks, .micro_batch = 6, .precision = precision}), one_rank));
    CHECK(are_equal(trained({.ranks = 3, .micro_batch = 6, .checkpoint_activations = true, .precision = precision}),
                    one_rank));
  }
}

// Activations that are computed twice change no bit.
void checkpoints_change_nothing() {
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    for (const int64_t micro_batch : {0, 8}) {
      Division division{.micro_batch = micro_batch, .precision = precision};
      const Trained all_kept = trained(division);
      division.checkpoint_activations = true;
      CHECK(are_equal(trained(division), all_kept));
    }
  }
}

// Any number of ranks trains as one, whose batch norms see the whole batch.
void joined_norms_are_as_one_rank() {
  const Trained one_rank = trained({});
  CHECK_NEAR(difference(trained({.ranks = 2, .sync_batch_norm = true}), one_rank), 0, kRounding);
  const Trained four_ranks = trained({.ranks = 4, .sync_batch_norm = true});
  CHECK_NEAR(difference(four_ranks, one_rank), 0, kRounding);
  CHECK(are_equal(trained({.ranks = 4, .checkpoint_activations = true, .sync_batch_norm = true}), four_ranks));
  CHECK(are_equal(trained({.sync_batch_norm = true}), one_rank));
}

// Ranks whose parts of the batch have different lengths, the last of them of one picture less.
void any_number_of_ranks_is_as_one() {
  const Trained one_rank = trained({});
  for (const int ranks : {5, 7, 16})
    CHECK_NEAR(difference(trained({.ranks = ranks, .sync_batch_norm = true}), one_rank), 0, kRounding);
  CHECK(are_equal(trained({.ranks = 5, .sync_batch_norm = true}), trained({.ranks = 5, .sync_batch_norm = true})));
  // A batch norm of its own on each rank: all ranks still have one model, which trained() checks.
  CHECK(difference(trained({.ranks = 5}), one_rank) > 1e-3);
}

}  // namespace

int main() {
  an_overflow_skips_the_step();
  waiting_for_the_loader_counts_as_data();
  retired_identities_leave_the_head();
  micro_batches_are_as_ranks();
  micro_batches_make_ranks_equal();
  checkpoints_change_nothing();
  joined_norms_are_as_one_rank();
  any_number_of_ranks_is_as_one();
  kept_steps();
  return TEST_RESULT();
}
