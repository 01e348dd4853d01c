// Compares Partial FC with a dense softmax in float64 on one rank. Its gradients come from autograd, so it uses none of
// the formulas under test. `partial_fc_test gloo RANK SIZE PORT` is one rank of the test with real processes. Where
// there is a GPU, the tests run on it too.
#include "pfc/partial_fc.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>
#include <functional>
#include <map>

#include "comm/loopback.h"
#include "error.h"
#include "pfc/class_sample.h"
#include "pfc/cpu_kernels.h"
#include "pfc/row_update.h"
#include "test/check.h"
#include "test/processes.h"

using namespace facetrain;

// float32 against float64, logits up to 64: a cosine is off by a few 1e-7, a logit by 64 times that, and so is,
// relative to itself, a probability. Gradients are measured against the largest entry of the tensor.
static constexpr double kLossError = 2e-6, kGradientError = 1e-5;
// The accumulated error after eight steps of SGD.
static constexpr double kStepsLossError = 1e-5, kStepsRowsError = 1e-5;

static at::Device device = at::kCPU;  // of the ranks of all tests
static bool host_rows = false;        // PfcOptions::host_rows in all tests

static double max_error(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes() || !actual.isfinite().all().item<bool>()) return INFINITY;
  const at::Tensor reference = expected.to(at::kCPU, at::kDouble);
  if (reference.numel() == 0) return 0;
  const double largest = reference.abs().max().item<double>();
  const double error = (actual.to(at::kCPU, at::kDouble) - reference).abs().max().item<double>();
  return largest > 0 ? error / largest : error;
}

// ---- the reference ----

struct Dense {
  double loss;
  at::Tensor dx, dw;  // [B, d], [sampled, d]
};

// The target for cosines [B] of features with these lengths [B], in the first step.
static at::Tensor dense_target(const Margin& margin, const at::Tensor& cosine, const at::Tensor& norms) {
  const double m1 = margin.m1, m2 = margin.m2, m3 = margin.m3, m = margin.m;
  const at::Tensor angle = cosine.acos();
  switch (margin.form) {
    case MarginForm::combined: {
      if (m1 == 1 && m2 == 0) return cosine - m3;
      const double turn = (M_PI - m2) / m1, missing = M_PI - turn;
      const double penalty = std::max(missing * std::sin(missing), 1 - std::cos(missing));
      return at::where(angle >= turn, cosine - penalty, (m1 * angle + m2).cos()) - m3;
    }
    case MarginForm::sphereface: {
      const at::Tensor k = (m1 * angle.detach() / M_PI).floor();
      return (1 - 2 * k.remainder(2)) * (m1 * angle).cos() - 2 * k;
    }
    case MarginForm::adaface: {
      const at::Tensor lengths = norms.clamp(1e-3, 100);
      const double mean = 20 + 0.01 * (lengths.mean().item<double>() - 20),
                   deviation = lengths.numel() > 1 ? 100 + 0.01 * (lengths.std().item<double>() - 100) : 100;
      const at::Tensor quality = (double{margin.h} * (lengths - mean) / (deviation + 1e-3)).clamp(-1, 1);
      const at::Tensor moved = angle - m * quality, missing = (-m * quality).clamp_min(0);
      const at::Tensor penalty = at::max(missing * missing.sin(), 1 - missing.cos());
      return at::where(moved >= M_PI, cosine - penalty, moved.clamp_min(0).cos()) - (m + m * quality);
    }
  }
  return {};
}

// Softmax cross entropy over the classes in `sampled` [n], x [B, d], w [C, d], labels [B], all of it in float64.
static Dense dense_softmax(const PfcOptions& options, const at::Tensor& x32, const at::Tensor& w32,
                           const at::Tensor& labels, const at::Tensor& sampled) {
  const at::Tensor x = x32.to(at::kDouble).requires_grad_(), w = w32.index({sampled}).to(at::kDouble).requires_grad_();
  const at::Tensor cosines = at::mm(x / x.norm(2, {1}, true), (w / w.norm(2, {1}, true)).t());
  const at::Tensor is_target = labels.unsqueeze(1) == sampled.unsqueeze(0);
  CHECK(is_target.sum(1).eq(1).all().item<bool>());  // every positive is in the sample
  const at::Tensor cosine = cosines.masked_select(is_target);

  at::Tensor target = dense_target(options.margin, cosine, x.detach().norm(2, {1}));
  if (options.margin.straight_through) target = cosine + (target - cosine).detach();
  at::Tensor logits = cosines;
  if (options.interclass_filter) logits = logits.masked_fill(cosines > double{*options.interclass_filter}, 0);
  logits = double{options.scale} * logits.masked_scatter(is_target, target);
  const at::Tensor loss = -logits.log_softmax(1).masked_select(is_target).mean();
  loss.backward();
  return {loss.item<double>(), x.grad(), w.grad()};
}

// ---- one problem, on any number of ranks ----

struct Problem {
  PfcOptions options;
  at::Tensor x, w, labels;       // [B, d], [C, d], [B]
  std::vector<int64_t> retired;  // classes
};

static PfcOptions cosface_on_all_classes() {
  return {.num_classes = 0,
          .embedding_dim = 0,
          .sample_rate = 1,
          .seed = 0,
          .scale = 64,
          .margin = {1, 0, 0.4f},
          .interclass_filter = std::nullopt,
          .device = device,
          .host_rows = host_rows};
}

// Samples at all angles to their class, from the same direction to the opposite one, past the θ* of every margin.
static Problem make_problem(int64_t num_classes, int64_t dim, int64_t batch,
                            PfcOptions options = cosface_on_all_classes()) {
  at::manual_seed(7);
  options.num_classes = num_classes;
  options.embedding_dim = dim;
  options.seed = 11;
  const at::Tensor w = at::randn({num_classes, dim}) * at::rand({num_classes, 1}).add_(0.5) * 0.1;
  const at::Tensor labels = at::randint(num_classes, {batch}, at::kLong);
  const at::Tensor pull = at::linspace(-6, 6, batch).view({-1, 1});
  const at::Tensor own = w.index_select(0, labels);
  const at::Tensor x =
      (at::randn({batch, dim}) + pull * own / own.norm(2, {1}, true)) * at::rand({batch, 1}).add_(0.5) * 3;
  return {options, x, w, labels, {}};
}

struct Step {
  std::vector<double> losses;  // by rank
  at::Tensor dx;               // [B, d]
  at::Tensor sampled, dw;      // [n] global classes, [n, d]
};

// Joins the parts of the ranks in rank order.
class Parts {
 public:
  explicit Parts(int size) : losses_(size), dx_(size), sampled_(size), dw_(size) {}

  void add(int rank, PartialFc& pfc, const PartialFc::Result& result) {
    losses_[rank] = result.loss.item<double>();
    dx_[rank] = result.grad_embeddings.cpu();
    sampled_[rank] = pfc.sampled().cpu() + pfc.rows().first;
    dw_[rank] = pfc.sampled_gradient().cpu().clone();
  }
  Step whole() const { return {losses_, at::cat(dx_), at::cat(sampled_), at::cat(dw_)}; }

 private:
  std::vector<double> losses_;
  std::vector<at::Tensor> dx_, sampled_, dw_;
};

// As even as possible: of the pictures that are left over, each of the first ranks has one.
static at::Tensor part_of(const at::Tensor& whole, Comm& comm) {
  const RowRange part = row_range(whole.size(0), comm.rank(), comm.size());
  return whole.narrow(0, part.first, part.count).to(device);
}

// The options for such parts of a batch.
static PfcOptions with_parts(PfcOptions options, int64_t batch, int size) {
  for (int rank = 0; rank < size; ++rank) options.parts.push_back(row_range(batch, rank, size).count);
  return options;
}

static void set_rows(PartialFc& pfc, const at::Tensor& w) {
  pfc.weight().copy_(w.narrow(0, pfc.rows().first, pfc.rows().count));
}

static Step run_step(const Problem& problem, int size, uint64_t step = 3) {
  Parts parts(size);
  run_fake_ranks(size, [&](Comm& comm) {
    PartialFc pfc(comm, with_parts(problem.options, problem.x.size(0), size));
    set_rows(pfc, problem.w);
    pfc.retire(problem.retired);
    parts.add(comm.rank(), pfc, pfc.forward_backward(part_of(problem.x, comm), part_of(problem.labels, comm), step));
  });
  return parts.whole();
}

static void check_against_dense(const Problem& problem, const Step& step) {
  const Dense dense = dense_softmax(problem.options, problem.x, problem.w, problem.labels, step.sampled);
  for (const double loss : step.losses) {
    CHECK_EQ(loss, step.losses[0]);
    CHECK_NEAR(loss, dense.loss, kLossError * std::max(1.0, dense.loss));
  }
  CHECK_NEAR(max_error(step.dx, dense.dx), 0, kGradientError);
  CHECK_NEAR(max_error(step.dw, dense.dw), 0, kGradientError);
}

// ---- tests ----

static const Margin kSphereFace{.m1 = 1.5f, .m2 = 0, .m3 = 0, .form = MarginForm::sphereface};
// With a large concentration, as the deviation begins at 100: qualities from -1 to 1.
static const Margin kAdaFace{.m1 = 1, .m2 = 0, .m3 = 0, .form = MarginForm::adaface, .m = 0.4f, .h = 10};

static void test_every_margin_rate_filter_and_world_size() {
  const Margin straight{.m1 = 1, .m2 = 0.5f, .m3 = 0, .straight_through = true};
  const std::vector<Margin> margins = {{1, 0, 0.4f}, {1, 0.5f, 0}, {1.35f, 0, 0}, {1.1f, 0.3f, 0.2f},
                                       kSphereFace,  kAdaFace,     straight};
  for (const Margin& margin : margins) {
    for (const double rate : {0.1, 1.0}) {
      for (const std::optional<float> filter : {std::optional<float>(), std::optional<float>(0.2f)}) {
        for (const float scale : {64.0f, 8.0f}) {
          PfcOptions options = cosface_on_all_classes();
          options.margin = margin;
          options.sample_rate = rate;
          options.interclass_filter = filter;
          options.scale = scale;
          const Problem problem = make_problem(103, 17, 24, options);
          for (const int size : {1, 2, 4, 5}) check_against_dense(problem, run_step(problem, size));
        }
      }
    }
  }
}

// The statistics are those of all ranks' pictures: any number of ranks has the same, and the same losses. A run that
// goes on from the statistics of another has its losses bit for bit.
static void test_statistics_of_adaface() {
  constexpr int kAll = 6, kSaved = 3;
  PfcOptions options = cosface_on_all_classes();
  options.margin = kAdaFace;
  const Problem problem = make_problem(103, 17, 24, options);
  const auto batch_of = [&](int step) { return problem.x * (1 + 0.2 * step); };
  struct Run {
    std::vector<double> losses;
    std::vector<NormStatistics> statistics;  // after each step
  };
  const auto run = [&](int size, int first, NormStatistics start) {
    std::vector<Run> ranks(size);
    run_fake_ranks(size, [&](Comm& comm) {
      PartialFc pfc(comm, problem.options);
      pfc.set_norm_statistics(start);
      Run& own = ranks[comm.rank()];
      for (int step = first; step < kAll; ++step) {
        const auto result = pfc.forward_backward(part_of(batch_of(step), comm), part_of(problem.labels, comm), step);
        own.losses.push_back(result.loss.item<double>());
        own.statistics.push_back(pfc.norm_statistics());
      }
    });
    for (const Run& rank : ranks) {
      CHECK(rank.losses == ranks[0].losses);
      CHECK(rank.statistics.back().mean == ranks[0].statistics.back().mean);
      CHECK(rank.statistics.back().deviation == ranks[0].statistics.back().deviation);
    }
    return ranks[0];
  };
  const Run one = run(1, 0, {});
  double mean = 20, deviation = 100;
  for (int step = 0; step < kAll; ++step) {
    const at::Tensor lengths = batch_of(step).to(at::kDouble).norm(2, {1}).clamp(1e-3, 100);
    mean += 0.01 * (lengths.mean().item<double>() - mean);
    deviation += 0.01 * (lengths.std().item<double>() - deviation);
    CHECK_NEAR(one.statistics[step].mean / mean, 1, 1e-6);
    CHECK_NEAR(one.statistics[step].deviation / deviation, 1, 1e-6);
  }
  for (const int size : {2, 4}) {
    const Run many = run(size, 0, {});
    for (size_t i = 0; i < one.losses.size(); ++i) CHECK_NEAR(many.losses[i] / one.losses[i], 1, 1e-6);
    CHECK_NEAR(many.statistics.back().mean / one.statistics.back().mean, 1, 1e-6);
    CHECK_NEAR(many.statistics.back().deviation / one.statistics.back().deviation, 1, 1e-6);
  }
  const std::vector<double> rest(one.losses.begin() + kSaved, one.losses.end());
  CHECK(run(1, kSaved, one.statistics[kSaved - 1]).losses == rest);
  CHECK(run(1, kSaved, {}).losses != rest);
}

// The result does not depend on the size of the tiles.
static void test_tiles() {
  for (const double rate : {0.3, 1.0}) {
    PfcOptions options = cosface_on_all_classes();
    options.sample_rate = rate;
    options.interclass_filter = 0.3f;
    for (const int64_t tile : {1, 2, 7, 16, 102, 103, 104}) {
      options.tile_rows = tile;
      const Problem problem = make_problem(103, 8, 10, options);
      const Step step = run_step(problem, 2);
      check_against_dense(problem, step);

      // Nor on how many of their logits are kept.
      for (const int64_t kept : {0, 10 * 30}) {
        Problem other = problem;
        other.options.kept_logits = kept;
        const Step again = run_step(other, 2);
        CHECK(again.losses == step.losses);
        CHECK(at::equal(again.dx, step.dx));
        CHECK_NEAR(max_error(again.dw, step.dw), 0, device.is_cuda() ? kGradientError : 0);
      }
    }
  }
}

// Threads have their own tiles, on CPUs: every number of them gives the same result to rounding, and the same bits in
// every run. Logits beyond the range of float32's exponentials are summed in two passes.
static void test_threads() {
  for (const int64_t classes : {7, 103, 5000}) {
    for (const float scale : {64.0f, 90.0f}) {
      PfcOptions options = cosface_on_all_classes();
      options.sample_rate = classes == 5000 ? 0.3 : 1;
      options.scale = scale;
      const Problem problem = make_problem(classes, 24, 20, options);
      for (const int threads : {1, 2, 3, 5}) {
        at::set_num_threads(threads);
        const Step step = run_step(problem, 1), again = run_step(problem, 1);
        CHECK(step.losses == again.losses && at::equal(step.dx, again.dx) && at::equal(step.dw, again.dw));
        check_against_dense(problem, step);
      }
      at::set_num_threads(1);
    }
  }
}

static void test_margins_and_filter_matter() {
  const auto loss = [](const Margin& margin, std::optional<float> filter) {
    PfcOptions options = cosface_on_all_classes();
    options.margin = margin;
    options.interclass_filter = filter;
    return run_step(make_problem(103, 17, 24, options), 2).losses[0];
  };
  const double plain = loss({1, 0, 0}, {});
  CHECK(loss({1, 0, 0.4f}, {}) > plain + 1);
  CHECK(loss({1, 0.5f, 0}, {}) > plain + 1);
  CHECK(loss({1, 0, 0}, 0.2f) < plain - 1);
}

static int64_t contains(const at::Tensor& set, const at::Tensor& values) {
  return (set.unsqueeze(0) == values.unsqueeze(1)).any(1).sum().item<int64_t>();
}

static void test_sample() {
  PfcOptions options = cosface_on_all_classes();
  options.sample_rate = 0.1;
  const int64_t num_classes = 20001;
  const Problem problem = make_problem(num_classes, 4, 12, options);
  const Step one = run_step(problem, 1, 5);
  for (const int size : {2, 3, 4}) CHECK(at::equal(run_step(problem, size, 5).sampled, one.sampled));
  CHECK(at::equal(run_step(problem, 1, 5).sampled, one.sampled));
  CHECK_EQ(contains(one.sampled, problem.labels), problem.labels.numel());
  CHECK((one.sampled.diff() > 0).all().item<bool>());

  // Binomial: mean 2000, deviation 42. Another step or seed draws independently: 200 in common, deviation 14.
  CHECK_NEAR(static_cast<double>(one.sampled.numel()), 2000, 5 * 42 + 12);
  Problem other = problem;
  other.options.seed += 1;
  for (const at::Tensor& sampled : {run_step(problem, 1, 6).sampled, run_step(other, 1, 5).sampled}) {
    CHECK_NEAR(static_cast<double>(at::isin(sampled, one.sampled).sum().item<int64_t>()), 200, 5 * 14 + 12);
  }
}

// The softmax has no term for an identity that was removed, on any number of ranks. The sample of the others stays.
static void test_retired_classes() {
  for (const double rate : {0.3, 1.0}) {
    PfcOptions options = cosface_on_all_classes();
    options.sample_rate = rate;
    Problem problem = make_problem(103, 17, 24, options);
    problem.retired = {102, 0, 5, 31, 32, 50, 51, 52, 5};
    const at::Tensor retired = at::tensor(problem.retired, at::kLong);
    problem.w.index_fill_(0, retired, 0);
    problem.labels.masked_fill_(at::isin(problem.labels, retired), 40);
    Problem whole = problem;
    whole.retired.clear();
    const at::Tensor sampled = run_step(whole, 1).sampled, live = sampled.masked_select(~at::isin(sampled, retired));
    CHECK(live.numel() < sampled.numel());
    for (const int size : {1, 2, 4}) {
      const Step step = run_step(problem, size);
      CHECK(at::equal(step.sampled, live));
      check_against_dense(problem, step);
    }
    // From the next step on, in a training that has begun; an empty list takes it back.
    const auto solo = make_solo_comm();
    PartialFc pfc(*solo, problem.options);
    const auto sampled_now = [&] {
      pfc.forward_backward(problem.x.to(device), problem.labels, 3);
      pfc.update_rows(0.1, 0.9, 5e-4);
      return pfc.sampled().cpu();
    };
    CHECK(at::equal(sampled_now(), sampled));
    pfc.retire(problem.retired);
    const at::Tensor before = pfc.weight().index({retired.to(device)}).clone();
    CHECK(at::equal(sampled_now(), live));
    CHECK(at::equal(pfc.weight().index({retired.to(device)}), before));
    pfc.retire({});
    CHECK(at::equal(sampled_now(), sampled));
  }
}

// Fewer negatives, all, and fewer again: each step has the sample and the update of a head with that rate alone, also
// one that begins in the middle.
static void test_sample_rates_by_step() {
  PfcOptions options = cosface_on_all_classes();
  options.sample_rate = 0.1;
  options.sample_rate_changes = {{2, 1.0}, {4, 0.5}, {6, 0.3}};
  const Problem problem = make_problem(103, 17, 24, options);
  const double rates[] = {0.1, 0.1, 1, 1, 0.5, 0.5, 0.3};
  for (const int size : {1, 2}) {
    run_fake_ranks(size, [&](Comm& comm) {
      const auto x = part_of(problem.x, comm), labels = part_of(problem.labels, comm);
      const auto train = [&](PartialFc& pfc, int step) {
        const double loss = pfc.forward_backward(x, labels, step).loss.item<double>();
        pfc.update_rows(0.05, 0.9, 5e-3);
        return loss;
      };
      PartialFc whole(comm, problem.options), late(comm, problem.options);
      for (int step = 0; step < 7; ++step) {
        PfcOptions constant = problem.options;
        constant.sample_rate = rates[step];
        constant.sample_rate_changes = {};
        PartialFc one(comm, constant);
        one.weight().copy_(whole.weight());
        one.momentum().copy_(whole.momentum());
        if (step == 3) {  // as after a restart
          late.weight().copy_(whole.weight());
          late.momentum().copy_(whole.momentum());
        }
        const double loss = train(whole, step);
        CHECK_EQ(loss, train(one, step));
        CHECK(at::equal(whole.sampled(), one.sampled()));
        CHECK(at::equal(whole.weight(), one.weight()));
        if (step >= 3) CHECK_EQ(loss, train(late, step));
        CHECK_EQ(whole.sampled().size(0) == whole.rows().count, rates[step] == 1);
      }
      CHECK(at::equal(whole.weight(), late.weight()));
    });
  }
  // A step that comes again, before one with all rows, has its sample again.
  const auto solo = make_solo_comm();
  PartialFc again(*solo, problem.options);
  const auto sampled_in = [&](uint64_t step) {
    again.forward_backward(problem.x.to(device), problem.labels, step);
    return again.sampled().cpu();
  };
  const at::Tensor first = sampled_in(1);
  CHECK(at::equal(sampled_in(1), first));
}

static void test_positives_outnumber_the_sample() {
  for (const double rate : {0.0, 0.01}) {
    PfcOptions options = cosface_on_all_classes();
    options.sample_rate = rate;
    Problem problem = make_problem(60, 9, 40, options);
    problem.labels = at::randperm(60, at::kLong).narrow(0, 0, 40).contiguous();
    for (const int size : {1, 2, 4}) {
      const Step step = run_step(problem, size);
      CHECK_EQ(contains(step.sampled, problem.labels), 40);
      CHECK(step.sampled.numel() < (rate == 0 ? 41 : 46));
      check_against_dense(problem, step);
    }
  }
}

// Ranks 1 to 3 own no positive; at rate 0 they sample nothing.
static void test_ranks_without_positives() {
  for (const double rate : {0.0, 0.1, 1.0}) {
    PfcOptions options = cosface_on_all_classes();
    options.sample_rate = rate;
    Problem problem = make_problem(103, 16, 8, options);
    problem.labels.remainder_(26);
    const Step step = run_step(problem, 4);
    if (rate == 0) CHECK((step.sampled < 26).all().item<bool>());
    check_against_dense(problem, step);
  }
}

static void test_fewer_classes_than_ranks() {
  const Problem problem = make_problem(3, 5, 8);
  check_against_dense(problem, run_step(problem, 4));
}

// Every cosine is -1, so the exponentials relative to e^s are far below the range of float32.
static void test_few_classes_far_below_zero() {
  for (const float scale : {64.0f, 512.0f}) {
    PfcOptions options = cosface_on_all_classes();
    options.scale = scale;
    Problem problem = make_problem(2, 4, 4, options);
    problem.w = at::ones({2, 4});
    problem.x = -at::ones({4, 4});
    check_against_dense(problem, run_step(problem, 2));
    problem.options.margin = {1, 0, 0};
    CHECK_NEAR(run_step(problem, 2).losses[0], std::log(2.0), 1e-6);
  }
}

// Each sample equals its class centre and is orthogonal to the others: the loss, log(1 + 3 e^-16), keeps its digits.
static void test_loss_near_zero() {
  PfcOptions options = cosface_on_all_classes();
  options.margin = {1, 0, 0};
  options.scale = 16;
  Problem problem = make_problem(4, 4, 4, options);
  problem.w = at::eye(4);
  problem.x = at::eye(4);
  problem.labels = at::arange(4, at::kLong);
  CHECK_NEAR(run_step(problem, 2).losses[0], std::log1p(3 * std::exp(-16.0)), 1e-12);
}

static void test_pole_of_arcface() {
  PfcOptions options = cosface_on_all_classes();
  options.margin = {1, 0.5f, 0};
  Problem problem = make_problem(40, 16, 8, options);
  problem.x = problem.w.index_select(0, problem.labels) * 5;
  const Step step = run_step(problem, 2);
  CHECK(std::isfinite(step.losses[0]));
  for (const at::Tensor& gradient : {step.dx, step.dw}) CHECK(gradient.isfinite().all().item<bool>());
  // |d loss / d x| of a sample is at most s / B (1 + 1) / |x|.
  const at::Tensor bound = 2 * 64.0 / 8 / problem.x.norm(2, {1});
  CHECK((step.dx.norm(2, {1}) <= bound).all().item<bool>());
}

static void test_vector_without_direction() {
  Problem problem = make_problem(20, 8, 4);
  problem.x[1].zero_();
  problem.w[problem.labels[2].item<int64_t>()].zero_();
  const Step step = run_step(problem, 2);
  CHECK(std::isfinite(step.losses[0]));
  CHECK(at::equal(step.dx[1], at::zeros({8})));
  for (const at::Tensor& gradient : {step.dx, step.dw}) CHECK(gradient.isfinite().all().item<bool>());
}

// Also tests that all 64 bits of a label arrive at the other ranks.
static void test_labels_out_of_range() {
  for (const int64_t bad : {int64_t{-1}, int64_t{20}, int64_t{1} << 40 | 1}) {
    Problem problem = make_problem(20, 8, 5);
    problem.labels[2] = bad;               // the last of rank 0's three
    std::vector<std::string> messages(2);  // by rank
    run_fake_ranks(2, [&](Comm& comm) {
      PartialFc pfc(comm, with_parts(problem.options, 5, 2));
      try {
        const auto result = pfc.forward_backward(part_of(problem.x, comm), part_of(problem.labels, comm), 0);
        CHECK(std::isnan(result.loss.item<double>()));
        pfc.check_labels();
      } catch (const Error& error) {
        messages[comm.rank()] = error.code + " " + error.what();
      }
    });
    for (const std::string& message : messages) {
      CHECK_EQ(message, "InvalidDataset labels: label " + std::to_string(bad) +
                            " in the batch of rank 0; 0 to 19 for 20 classes");
    }
  }
}

// The result of eight steps of training, each on another batch, from the initial rows of the seed.
struct Training {
  std::vector<double> losses;
  std::vector<at::Tensor> sampled;  // global classes, by step
  at::Tensor weight, momentum, dx;  // [C, d], [C, d], [B, d] of the last step
};

static constexpr int kSteps = 8;
static constexpr double kLearningRate = 0.1, kMomentum = 0.9, kWeightDecay = 5e-3;

static std::vector<Problem> training_batches(double rate) {
  PfcOptions options = cosface_on_all_classes();
  options.sample_rate = rate;
  options.margin = {1, 0.5f, 0};
  std::vector<Problem> batches(kSteps, make_problem(103, 17, 24, options));
  for (Problem& batch : batches) {
    batch.labels = at::randint(103, {24}, at::kLong);
    batch.x = at::randn({24, 17});
  }
  return batches;
}

static Training train_rank(Comm& comm, const std::vector<Problem>& batches) {
  PartialFc pfc(comm, batches[0].options);
  Training training;
  for (int step = 0; step < kSteps; ++step) {
    const auto result = pfc.forward_backward(part_of(batches[step].x, comm), part_of(batches[step].labels, comm), step);
    pfc.update_rows(kLearningRate, kMomentum, kWeightDecay);
    training.losses.push_back(result.loss.item<double>());
    training.sampled.push_back(pfc.sampled().cpu() + pfc.rows().first);
    training.dx = result.grad_embeddings.cpu();
  }
  training.weight = pfc.weight().cpu();
  training.momentum = pfc.momentum().cpu();
  return training;
}

static Training train(int size, const std::vector<Problem>& batches) {
  std::vector<Training> ranks(size);
  run_fake_ranks(size, [&](Comm& comm) { ranks[comm.rank()] = train_rank(comm, batches); });
  const auto join = [&](auto member) {
    std::vector<at::Tensor> parts;
    for (const Training& rank : ranks) parts.push_back(member(rank));
    return at::cat(parts);
  };
  Training whole{ranks[0].losses,
                 {},
                 join([](auto& r) { return r.weight; }),
                 join([](auto& r) { return r.momentum; }),
                 join([](auto& r) { return r.dx; })};
  for (int step = 0; step < kSteps; ++step) whole.sampled.push_back(join([&](auto& r) { return r.sampled[step]; }));
  return whole;
}

// The same seed gives the same training for every number of ranks, and it equals lazy SGD in float64.
static void test_training() {
  for (const double rate : {0.1, 1.0}) {
    const std::vector<Problem> batches = training_batches(rate);
    const Training one = train(1, batches);

    const at::Tensor initial = PartialFc(*make_solo_comm(), batches[0].options).weight().cpu();
    at::Tensor w = initial.to(at::kDouble), m = at::zeros_like(w);
    for (int step = 0; step < kSteps; ++step) {
      const at::Tensor& sampled = one.sampled[step];
      const Dense dense = dense_softmax(batches[step].options, batches[step].x, w, batches[step].labels, sampled);
      CHECK_NEAR(one.losses[step], dense.loss, kStepsLossError * dense.loss);
      m.index_put_({sampled}, kMomentum * m.index({sampled}) + dense.dw + kWeightDecay * w.index({sampled}));
      w.index_put_({sampled}, w.index({sampled}) - kLearningRate * m.index({sampled}));
    }
    CHECK_NEAR(max_error(one.weight, w), 0, kStepsRowsError);
    CHECK_NEAR(max_error(one.momentum, m), 0, kStepsRowsError);
    CHECK(one.losses.back() != one.losses.front());

    // Rows that were never sampled are unchanged.
    const at::Tensor untouched = ~at::isin(at::arange(103), at::cat(one.sampled));
    CHECK_EQ(untouched.any().item<bool>(), rate < 1);
    CHECK(at::equal(one.weight.index({untouched}), initial.index({untouched})));
    CHECK(at::equal(one.momentum.index({untouched}), at::zeros_like(initial).index({untouched})));

    for (const int size : {2, 4}) {
      const Training many = train(size, batches);
      for (int step = 0; step < kSteps; ++step) {
        CHECK(at::equal(many.sampled[step], one.sampled[step]));
        CHECK_NEAR(many.losses[step], one.losses[step], kStepsLossError * one.losses[step]);
      }
      CHECK_NEAR(max_error(many.weight, one.weight), 0, kStepsRowsError);
      CHECK_NEAR(max_error(many.momentum, one.momentum), 0, kStepsRowsError);
    }
    const Training again = train(2, batches), twice = train(2, batches);
    CHECK(at::equal(again.weight, twice.weight));
    CHECK(again.losses == twice.losses);
  }
}

static void test_gloo() {
  if (!has_gloo()) {
    std::cout << "skipped, as this build has no Gloo: two ranks over it\n";
    return;
  }
  const std::string port = std::to_string(test::free_port());
  std::vector<test::Child> children;
  for (const char* rank : {"0", "1"}) children.emplace_back(std::vector<std::string>{"gloo", rank, "2", port});
  for (test::Child& child : children) CHECK_EQ(child.wait(), 0);
}

// A sum of two numbers does not depend on their order, so two ranks over Gloo equal two fake ranks bit for bit.
static int run_gloo_rank(int rank, int size, int port) {
  const auto comm = make_gloo_comm(loopback(rank, size, port));
  for (const double rate : {0.1, 1.0}) {
    const std::vector<Problem> batches = training_batches(rate);
    const Training actual = train_rank(*comm, batches);
    run_fake_ranks(size, [&](Comm& fake) {
      const Training expected = train_rank(fake, batches);
      if (fake.rank() != rank) return;
      CHECK(actual.losses == expected.losses);
      CHECK(at::equal(actual.weight, expected.weight));
      CHECK(at::equal(actual.momentum, expected.momentum));
      CHECK(at::equal(actual.dx, expected.dx));
      for (int step = 0; step < kSteps; ++step) CHECK(at::equal(actual.sampled[step], expected.sampled[step]));
    });
  }
  return TEST_RESULT();
}

// ---- products of 16 bits ----

static double cosine(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  return ((x * y).sum() / x.norm() / y.norm()).item<double>();
}

// The deviation of a logit from rounding the features and rows of unit length to the products' type, of which a number
// is off by up to 2^-9 of itself (bfloat16) or 2^-12 (float16, TF32): s sqrt(2) 2^-9 / sqrt(3 d).
static double logit_error(const PfcOptions& options) {
  const double relative = options.precision == Precision::fp32   ? 0
                          : options.precision == Precision::bf16 ? 0x1p-9
                                                                 : 0x1p-12;
  return options.scale * relative * std::sqrt(2.0 / 3 / static_cast<double>(options.embedding_dim));
}

// Loss and gradients of such products. A loss is off by a logit at most, and by less the more pictures there are; a
// gradient is off by as much relative to itself.
static void check_low_precision(const PfcOptions& options, double loss, const at::Tensor& dx, const at::Tensor& dw,
                                const Dense& dense) {
  const double error = logit_error(options);
  const auto batch = static_cast<double>(dx.size(0));
  CHECK_NEAR(loss, dense.loss, 1e-6 * dense.loss + 5 * error / std::sqrt(batch));
  // A gradient that is stored in bfloat16, or made of such products, is off by 2^-9 of each of its numbers.
  const double least = 1 - (error == 0 ? 1e-9 : 0x1p-17) - 2 * error * error;
  CHECK(cosine(dx, dense.dx) >= least);
  CHECK(cosine(dw, dense.dw) >= least);
  // What a user has: d = 512, s = 64.
  if (options.embedding_dim >= 512 && options.scale <= 64) CHECK(least >= 0.9999);
}

// On a CPU: BF16 is computed as such (or better, on one without AVX512-BF16), and the other precisions as FP32.
static void test_precisions_on_a_cpu() {
  for (const double rate : {0.1, 1.0}) {
    for (const float scale : {64.0f, 90.0f}) {
      for (const Precision precision : kPrecisions) {
        PfcOptions options = cosface_on_all_classes();
        options.sample_rate = rate;
        options.scale = scale;
        options.interclass_filter = 0.3f;
        options.precision = precision;
        for (const auto& [classes, dim, batch] : {std::tuple(3000, 512, 40), {41, 33, 1}, {500, 3, 2}}) {
          const Problem problem = make_problem(classes, dim, batch, options);
          const Step step = run_step(problem, 1);
          if (precision != Precision::bf16) {
            check_against_dense(problem, step);
          } else {
            const Dense dense = dense_softmax(problem.options, problem.x, problem.w, problem.labels, step.sampled);
            check_low_precision(problem.options, step.losses[0], step.dx, step.dw, dense);
          }
        }
      }
    }
  }
}

// ---- only on a GPU: what is not one of the tests above on another device ----

// More columns than a tile has; dimensions and batches that are multiples of nothing; every precision, and types of
// rows.
static void test_precisions() {
  for (const auto& [classes, dim, batch] : {std::tuple(9001, 512, 96), {4200, 130, 37}, {700, 33, 5}}) {
    for (const double rate : {0.1, 1.0}) {
      for (const Precision precision : kPrecisions) {
        for (const bool bf16_rows : {false, true}) {
          for (const float scale : {64.0f, 128.0f}) {
            PfcOptions options = cosface_on_all_classes();
            options.margin = {1, 0.5f, 0};
            options.sample_rate = rate;
            options.scale = scale;
            options.precision = precision;
            options.bf16_rows = bf16_rows;
            options.interclass_filter = 0.3f;
            options.tile_rows = 4096;
            Problem problem = make_problem(classes, dim, batch, options);
            if (bf16_rows) problem.w = problem.w.to(at::kBFloat16).to(at::kFloat);
            for (const int64_t kept : {int64_t{-1}, int64_t{4096} * batch, int64_t{0}}) {
              problem.options.kept_logits = kept;
              const Step step = run_step(problem, 1), again = run_step(problem, 1);
              CHECK(step.losses == again.losses && at::equal(step.dx, again.dx) && at::equal(step.dw, again.dw));
              const Dense dense = dense_softmax(problem.options, problem.x, problem.w, problem.labels, step.sampled);
              check_low_precision(problem.options, step.losses[0], step.dx, step.dw, dense);
            }
          }
        }
      }
    }
  }
}

// Two ranks, of which one has no positive, and steps that the ahead-drawn sample does not fit.
static void test_steps_out_of_order() {
  PfcOptions options = cosface_on_all_classes();
  options.sample_rate = 0.1;
  Problem problem = make_problem(5000, 64, 16, options);
  problem.labels.remainder_(2000);
  std::vector<std::vector<at::Tensor>> sampled(2);
  run_fake_ranks(2, [&](Comm& comm) {
    PartialFc pfc(comm, problem.options);
    for (const uint64_t step : {3, 4, 5, 9, 3}) {
      pfc.forward_backward(part_of(problem.x, comm), part_of(problem.labels, comm), step);
      sampled[comm.rank()].push_back(pfc.sampled().cpu() + pfc.rows().first);
    }
  });
  device = at::kCPU;
  problem.options.device = device;
  const std::vector<uint64_t> steps{3, 4, 5, 9, 3};
  for (size_t i = 0; i < steps.size(); ++i)
    CHECK(at::equal(at::cat({sampled[0][i], sampled[1][i]}), run_step(problem, 1, steps[i]).sampled));
  device = at::kCUDA;
}

static void test_ten_million_rows() {
  PfcOptions options = cosface_on_all_classes();
  options.num_classes = 10'000'000;
  options.embedding_dim = 64;
  options.sample_rate = 0.01;
  options.precision = Precision::bf16;
  const auto solo = make_solo_comm();
  PartialFc pfc(*solo, options);
  at::manual_seed(3);
  const at::Tensor labels = at::randint(options.num_classes, {250}, at::kLong);
  const at::Tensor x = at::randn({250, 64}) + 300 * pfc.weight().index({labels.to(device)}).cpu();
  const auto result = pfc.forward_backward(x.to(device), labels, 7);
  const ClassSample negatives(options.seed, 7, options.sample_rate);
  at::Tensor expected = at::zeros({options.num_classes}, at::kBool);
  bool* const chosen = expected.data_ptr<bool>();
  for (int64_t row = 0; row < options.num_classes; ++row) chosen[row] = negatives.has(row);
  expected.index_fill_(0, labels, true);
  const at::Tensor sampled = pfc.sampled().cpu();
  CHECK(at::equal(sampled, expected.nonzero().view(-1)));
  const Dense dense = dense_softmax(options, x, pfc.weight().cpu(), labels, sampled);
  check_low_precision(options, result.loss.item<double>(), result.grad_embeddings.cpu(), pfc.sampled_gradient().cpu(),
                      dense);
}

// ---- on any device ----

static void test_skipped_update() {
  const Problem problem = make_problem(20, 8, 4);
  const auto solo = make_solo_comm();
  PartialFc pfc(*solo, problem.options);
  pfc.forward_backward(problem.x.to(device), problem.labels, 0);
  const at::Tensor before = pfc.weight().clone();
  pfc.update_rows(0.1, 0.9, 5e-4, at::ones({1}, at::TensorOptions(device)));
  CHECK(at::equal(pfc.weight(), before));
  CHECK_EQ(pfc.momentum().abs().max().item<float>(), 0);
  pfc.update_rows(0.1, 0.9, 5e-4, at::zeros({1}, at::TensorOptions(device)));
  CHECK(!at::equal(pfc.weight(), before));
}

// Rows in bfloat16 follow those in float32: a hundred updates, each below half the distance of two numbers, add up.
static void test_bf16_rows() {
  PfcOptions options = cosface_on_all_classes();
  options.bf16_rows = true;
  const Problem problem = make_problem(60, 64, 12, options);
  const auto solo = make_solo_comm();
  PartialFc pfc(*solo, problem.options);
  CHECK(pfc.weight().scalar_type() == at::kBFloat16 && pfc.momentum().scalar_type() == at::kBFloat16);
  set_rows(pfc, problem.w);
  const at::Tensor start = pfc.weight().to(at::kFloat);
  constexpr double kRate = 1e-4;
  at::Tensor sum = at::zeros_like(start);
  for (int step = 0; step < 100; ++step) {
    pfc.forward_backward(problem.x.to(device), problem.labels, step);
    sum.sub_(pfc.sampled_gradient(), kRate);
    pfc.update_rows(kRate, 0, 0);
  }
  // Every step's rounding is off by up to 2^-8 of a number; the errors of a hundred steps are independent.
  const at::Tensor moved = pfc.weight().to(at::kFloat) - start;
  CHECK(cosine(moved, sum) > 0.9);
  CHECK_NEAR((moved * sum).sum().item<double>() / sum.square().sum().item<double>(), 1, 0.05);
}

// ---- the optimizers of rows ----

// Options with every optimizer, and with lazy and dense updates of those that have both.
static std::vector<PfcOptions> kinds_of_row_updates() {
  std::vector<PfcOptions> result;
  for (const RowOptimizer optimizer : kRowOptimizers) {
    for (const bool dense : {false, true}) {
      if (dense && optimizer == RowOptimizer::adamw) continue;
      result.push_back(cosface_on_all_classes());
      result.back().row_optimizer = optimizer;
      result.back().dense_update = dense;
    }
  }
  return result;
}

// In float64, of all rows, as row_update.h defines it.
struct NaiveOptimizer {
  RowOptimizer optimizer;
  bool dense;
  at::Tensor w, m, v, n;  // [C, d], [C, d], [C, d], [C, 1]

  NaiveOptimizer(RowOptimizer kind, bool all, const at::Tensor& rows)
      : optimizer(kind),
        dense(all),
        w(rows.to(at::kCPU, at::kDouble).clone()),
        m(at::zeros_like(w)),
        v(at::zeros_like(w)),
        n(at::zeros({w.size(0), 1}, at::kDouble)) {}

  void update(const at::Tensor& sampled, const at::Tensor& gradients, const RowRates& rates) {
    const at::Tensor index = dense ? at::arange(w.size(0)) : sampled;
    at::Tensor g = at::zeros_like(w);
    g.index_put_({sampled}, gradients.to(at::kDouble));
    g = g.index({index});
    at::Tensor x = w.index({index}), a = m.index({index}), b = v.index({index}), count = n.index({index});
    const double rate = rates.learning_rate, decay = rates.weight_decay;
    switch (optimizer) {
      case RowOptimizer::sgd:
        a = rates.momentum * a + g + decay * x;
        x = x - rate * a;
        break;
      case RowOptimizer::adamw:
        count = count + 1;
        a = 0.9 * a + 0.1 * g;
        b = 0.999 * b + 0.001 * g * g;
        x = (1 - rate * decay) * x -
            rate * (a / (1 - at::pow(0.9, count))) / ((b / (1 - at::pow(0.999, count))).sqrt() + 1e-8);
        break;
      case RowOptimizer::adagrad:
        count = count + g.square().mean(1, /*keepdim=*/true);
        x = (1 - rate * decay) * x - rate * g / (count.sqrt() + 1e-8);
        break;
    }
    w.index_put_({index}, x);
    m.index_put_({index}, a);
    v.index_put_({index}, b);
    n.index_put_({index}, count);
  }
};

static const RowTensor& tensor_named(PartialFc& pfc, const std::string& name) {
  for (const RowTensor& tensor : pfc.row_tensors()) {
    if (tensor.name == name) return tensor;
  }
  throw std::runtime_error("no tensor " + name);
}

struct OptimizerRun {
  at::Tensor w;
  NaiveOptimizer naive;
};

// `steps` steps with a learning rate that changes, and few classes in a step.
static OptimizerRun run_optimizer(PfcOptions options, int steps, double learning_rate,
                                  const std::function<void(PartialFc&, const NaiveOptimizer&)>& check) {
  options.sample_rate = 0.05;
  const Problem problem = make_problem(150, 19, 4, options);
  const auto solo = make_solo_comm();
  PartialFc pfc(*solo, problem.options);
  set_rows(pfc, problem.w);
  NaiveOptimizer naive(options.row_optimizer, options.dense_update, pfc.weight());
  for (int step = 0; step < steps; ++step) {
    const at::Tensor labels = (problem.labels + 7 * step).remainder(100);  // 50 classes have no picture
    pfc.forward_backward(problem.x.to(device), labels, step);
    const RowRates rates{learning_rate * (1 - step / (2.0 * steps)), kMomentum, kWeightDecay};
    const at::Tensor sampled = pfc.sampled().cpu(), gradient = pfc.sampled_gradient().cpu();
    pfc.update_rows(rates.learning_rate, rates.momentum, rates.weight_decay);
    naive.update(sampled, gradient, rates);
  }
  check(pfc, naive);
  return {pfc.weight().to(at::kCPU, at::kFloat).clone(), naive};
}

static void test_row_optimizers() {
  for (PfcOptions options : kinds_of_row_updates()) {
    const double learning_rate = options.row_optimizer == RowOptimizer::sgd ? 0.05 : 0.002;
    // A thousand roundings to float32 of numbers that grow less than twofold.
    constexpr double kError = 2e-5;
    run_optimizer(options, 1000, learning_rate, [&](PartialFc& pfc, const NaiveOptimizer& naive) {
      CHECK_NEAR(max_error(pfc.weight(), naive.w), 0, kError);
      switch (options.row_optimizer) {
        case RowOptimizer::sgd:
          CHECK_NEAR(max_error(pfc.momentum(), naive.m), 0, kError);
          break;
        case RowOptimizer::adamw:
          CHECK_NEAR(max_error(tensor_named(pfc, "first_moment").values, naive.m), 0, kError);
          CHECK_NEAR(max_error(tensor_named(pfc, "second_moment").values, naive.v), 0, kError);
          CHECK(at::equal(tensor_named(pfc, "updates").values.to(at::kCPU, at::kDouble), naive.n));
          break;
        case RowOptimizer::adagrad:
          CHECK_NEAR(max_error(tensor_named(pfc, "squares").values, naive.n), 0, kError);
          break;
      }
      // A row that was never sampled.
      const at::Tensor start = make_problem(150, 19, 4, options).w;
      const at::Tensor unchanged = (pfc.weight().cpu() == start).all(1);
      CHECK_EQ(unchanged.any().item<bool>(), false);  // in 1000 steps, each is sampled
    });
    // A few steps: lazy updates leave rows alone, dense ones do not.
    run_optimizer(options, 3, learning_rate, [&](PartialFc& pfc, const NaiveOptimizer& naive) {
      const at::Tensor start = make_problem(150, 19, 4, options).w;
      CHECK_EQ((pfc.weight().cpu() == start).all(1).any().item<bool>(), !options.dense_update);
      CHECK_NEAR(max_error(pfc.weight(), naive.w), 0, kError);
    });
    // In bfloat16, rounding errors of all steps add up, but do not lean to a side.
    options.bf16_rows = true;
    const auto [w, naive] = run_optimizer(options, 300, learning_rate, [](PartialFc&, const NaiveOptimizer&) {});
    CHECK(cosine(w, naive.w) > 0.999);
    CHECK_NEAR((w * naive.w).sum().item<double>() / naive.w.square().sum().item<double>(), 1, 0.01);
  }
}

// Whoever reads or writes the rows between two steps sees and sets what dense updates have made of them.
static void test_dense_updates_around_a_checkpoint() {
  PfcOptions options = cosface_on_all_classes();
  options.dense_update = true;
  options.sample_rate = 0.05;
  const Problem problem = make_problem(150, 19, 4, options);
  const auto solo = make_solo_comm();
  const auto steps = [&](PartialFc& pfc, int first, int end) {
    for (int step = first; step < end; ++step) {
      pfc.forward_backward(problem.x.to(device), problem.labels, step);
      pfc.update_rows(0.05, kMomentum, kWeightDecay);
    }
  };
  PartialFc whole(*solo, problem.options), first(*solo, problem.options), second(*solo, problem.options);
  steps(whole, 0, 7);
  whole.row_tensors();  // as a checkpoint would
  steps(whole, 7, 20);
  steps(first, 0, 7);
  for (size_t i = 0; i < first.row_tensors().size(); ++i) {
    second.row_tensors()[i].values.copy_(first.row_tensors()[i].values);
  }
  steps(second, 7, 20);
  CHECK(at::equal(whole.weight(), second.weight()));
  CHECK(at::equal(whole.momentum(), second.momentum()));
}

// An update that is skipped is none, also for the rows that the step has not sampled. On a GPU only the device knows
// that it is skipped.
static void test_skipped_updates() {
  for (PfcOptions options : kinds_of_row_updates()) {
    options.sample_rate = 0.05;
    options.sample_rate_changes = {{12, 1}, {16, 0.05}};
    const Problem problem = make_problem(150, 19, 4, options);
    const auto solo = make_solo_comm();
    PartialFc skips(*solo, problem.options), stands(*solo, problem.options);
    const at::Tensor start = stands.weight().clone();
    const at::Tensor yes = at::ones({1}, at::TensorOptions(device)), no = at::zeros_like(yes);
    for (int step = 0; step < 24; ++step) {
      const bool skipped = step % 3 == 1 || step == 12;
      for (PartialFc* pfc : {&skips, &stands}) pfc->forward_backward(problem.x.to(device), problem.labels, step);
      skips.update_rows(0.01, kMomentum, kWeightDecay, skipped ? yes : no);
      if (!skipped) stands.update_rows(0.01, kMomentum, kWeightDecay);
    }
    CHECK(!at::equal(stands.weight(), start));
    for (size_t i = 0; i < stands.row_tensors().size(); ++i)
      CHECK(at::equal(skips.row_tensors()[i].values, stands.row_tensors()[i].values));
  }
}

// The same training on a CPU and on the GPU, which differ by rounding; in bfloat16 a number may be rounded to the other
// side, by the same random bits.
static void test_optimizers_equal_those_of_a_cpu() {
  for (const PfcOptions& updates : kinds_of_row_updates()) {
    for (const bool bf16_rows : {false, true}) {
      PfcOptions options = updates;
      options.bf16_rows = bf16_rows;
      options.sample_rate = 0.1;
      options.sample_rate_changes = {{8, 1}, {11, 0.1}};
      const Problem problem = make_problem(301, 36, 6, options);
      const auto solo = make_solo_comm();
      PfcOptions on_cpu = problem.options;
      on_cpu.device = at::kCPU;
      PartialFc expected(*solo, on_cpu), actual(*solo, problem.options);
      for (int step = 0; step < 20; ++step) {
        const at::Tensor labels = (problem.labels + 7 * step).remainder(200);
        expected.forward_backward(problem.x, labels, step);
        actual.forward_backward(problem.x.to(device), labels, step);
        for (PartialFc* pfc : {&expected, &actual}) pfc->update_rows(0.005, kMomentum, kWeightDecay);
      }
      for (size_t i = 0; i < expected.row_tensors().size(); ++i) {
        const at::Tensor stored = expected.row_tensors()[i].values, one = stored.to(at::kFloat),
                         other = actual.row_tensors()[i].values.to(at::kCPU, at::kFloat);
        const auto share = [](const at::Tensor& which) { return which.to(at::kFloat).mean().item<double>(); };
        CHECK(cosine(other, one) > 0.9999);
        if (stored.scalar_type() == at::kBFloat16) {
          CHECK(share(other == one) > 0.5);
        } else if (!bf16_rows) {
          // Not of all: AdamW and AdaGrad make whole steps of gradients that are all but zero, and so of rounding.
          CHECK(share((other - one).abs() > 1e-4 * one.abs().max()) < 0.02);
        }
      }
    }
  }
}

static void test_refused_optimizers() {
  PfcOptions options = make_problem(20, 8, 4).options;
  options.row_optimizer = RowOptimizer::adamw;
  options.dense_update = true;
  std::string message;
  try {
    PartialFc pfc(*make_solo_comm(), options);
  } catch (const Error& error) {
    message = error.code + " " + error.what();
  }
  CHECK_EQ(message, "InvalidConfig optimizer.rowUpdate: dense, with the optimizer adamw; lazy; or sgd or adagrad");
}

// 200 steps on embeddings that do not change: the ranks' number changes a loss by rounding only.
static void test_loss_curves() {
  PfcOptions options = cosface_on_all_classes();
  options.sample_rate = 0.1;
  options.embedding_dim = 128;
  options.num_classes = 1000;
  constexpr int64_t kBatch = 32, kBatches = 40;
  at::manual_seed(5);
  const at::Tensor centres = at::randn({options.num_classes, options.embedding_dim});
  const at::Tensor labels = at::randint(options.num_classes, {kBatch * kBatches}, at::kLong);
  const at::Tensor x = centres.index({labels}) + at::randn({kBatch * kBatches, options.embedding_dim});
  const auto curve = [&](int size) {
    std::vector<double> losses;
    run_fake_ranks(size, [&](Comm& comm) {
      PartialFc pfc(comm, options);
      for (int step = 0; step < 200; ++step) {
        const int64_t first = step % kBatches * kBatch;
        const auto result = pfc.forward_backward(part_of(x.narrow(0, first, kBatch), comm),
                                                 part_of(labels.narrow(0, first, kBatch), comm), step);
        pfc.update_rows(0.02, kMomentum, 5e-4);
        if (comm.rank() == 0) losses.push_back(result.loss.item<double>());
      }
    });
    return losses;
  };
  const std::vector<double> one = curve(1);
  CHECK(one.back() < one.front() / 2);
  for (const int size : {2, 4}) {
    const std::vector<double> many = curve(size);
    double worst = 0;
    for (size_t i = 0; i < one.size(); ++i) worst = std::max(worst, std::abs(many[i] - one[i]) / one[i]);
    CHECK_NEAR(worst, 0, 1e-5);
  }
}

// Rows in host memory give the same numbers as rows on the device, with all optimizers, while rates, retired classes
// and the order of steps change, and others read and write the rows.
static void test_host_rows_equal_device_rows() {
  for (const PfcOptions& updates : kinds_of_row_updates()) {
    for (const bool bf16_rows : {false, true}) {
      PfcOptions options = updates;
      options.bf16_rows = bf16_rows;
      options.sample_rate = 0.2;
      options.sample_rate_changes = {{20, 0.05}, {30, 1}, {33, 0.3}};
      const Problem problem = make_problem(300, 19, 6, options);
      run_fake_ranks(2, [&](Comm& comm) {
        PfcOptions in_host_memory = problem.options;
        in_host_memory.host_rows = true;
        PartialFc expected(comm, problem.options), actual(comm, in_host_memory);
        const auto check_rows = [&] {
          for (size_t i = 0; i < expected.row_tensors().size(); ++i)
            CHECK(at::equal(actual.row_tensors()[i].values, expected.row_tensors()[i].values.cpu()));
        };
        for (uint64_t step = 0; step < 60; ++step) {
          for (PartialFc* pfc : {&expected, &actual}) {
            if (step == 10) pfc->retire({3, 7, 150, 299});
            if (step == 25) pfc->weight().mul_(1.5);
          }
          const uint64_t number = step < 50 ? step : step * 13 % 7;  // at the end, in another order
          const at::Tensor labels = part_of((problem.labels + 7 * static_cast<int64_t>(step)).remainder(140), comm);
          const at::Tensor x = part_of(problem.x, comm).to(device);
          const auto one = expected.forward_backward(x, labels, number),
                     other = actual.forward_backward(x, labels, number);
          CHECK(at::equal(one.loss, other.loss) && at::equal(one.grad_embeddings, other.grad_embeddings));
          CHECK(at::equal(expected.sampled(), actual.sampled()));
          CHECK(at::equal(expected.sampled_gradient(), actual.sampled_gradient()));
          if (step == 40) check_rows();  // between the gradient and its update
          if (step % 7 == 3) continue;   // as a step that is skipped
          for (PartialFc* pfc : {&expected, &actual}) pfc->update_rows(0.01, kMomentum, kWeightDecay);
          if (step == 15 || step == 16) check_rows();
        }
        check_rows();
      });
    }
  }
}

static void test_step_before_any_forward() {
  const auto solo = make_solo_comm();
  PartialFc pfc(*solo, make_problem(20, 8, 4).options);
  const at::Tensor before = pfc.weight().clone();
  pfc.update_rows(0.1, 0.9, 5e-4);
  CHECK(at::equal(pfc.weight(), before));
}

static void test_embeddings_of_a_graph() {
  const Problem problem = make_problem(20, 8, 4);
  const auto solo = make_solo_comm();
  PartialFc pfc(*solo, problem.options);
  const at::Tensor leaf = problem.x.to(device, at::kFloat, /*non_blocking=*/false, /*copy=*/true).requires_grad_();
  const auto result = pfc.forward_backward(leaf * 2, problem.labels, 0);
  CHECK(!result.grad_embeddings.requires_grad());
  CHECK(at::equal(result.grad_embeddings,
                  pfc.forward_backward(problem.x.to(device) * 2, problem.labels, 0).grad_embeddings));
}

static void test_initial_rows() {
  PfcOptions options = make_problem(301, 33, 4).options;
  const auto rows = [&](int size) {
    std::vector<at::Tensor> parts(size);
    run_fake_ranks(size, [&](Comm& comm) { parts[comm.rank()] = PartialFc(comm, options).weight().clone(); });
    return at::cat(parts).cpu();
  };
  const at::Tensor one = rows(1);
  for (const int size : {2, 3, 4}) CHECK(at::equal(rows(size), one));
  // Deviations over 9933 numbers: of the mean 1e-4, of the standard deviation 0.7e-4, of the kurtosis 0.1.
  CHECK_NEAR(one.mean().item<double>(), 0, 5e-4);
  CHECK_NEAR(one.std().item<double>(), 0.01, 3.5e-4);
  CHECK_NEAR((one / 0.01).pow(4).mean().item<double>(), 3, 0.5);
  // Rows are independent: their cosines are those of 33-dimensional noise.
  const at::Tensor unit = one / one.norm(2, {1}, true);
  CHECK((at::mm(unit, unit.t()) - at::eye(301)).abs().max().item<double>() < 0.9);
  options.seed += 1;
  CHECK(!at::equal(rows(1), one));
}

// The rows of a seed are the same on every device.
static void test_initial_rows_on_cuda() {
  for (const int64_t dim : {33, 512}) {
    PfcOptions options = cosface_on_all_classes();
    options.num_classes = 3000;
    options.embedding_dim = dim;
    const auto solo = make_solo_comm();
    const at::Tensor on_cuda = PartialFc(*solo, options).weight().cpu();
    options.device = at::kCPU;
    CHECK(at::equal(on_cuda, PartialFc(*solo, options).weight()));
  }
}

// ---- the functions that CPU and GPU share ----

// Against the formulas of Box and Muller in float64.
static void test_normal_pairs() {
  for (uint64_t i = 0; i < 100'000; ++i) {
    // The smallest and the largest number, and the turns of the circle, among them.
    const uint64_t edge = i % 7 == 0 ? 0 : i % 7 == 1 ? ~uint64_t{0} : sequence_number(1, i);
    const uint64_t bits = i % 3 == 0 ? (edge << 40) | (i % 16 << 20) : edge;
    const double u = (static_cast<double>(bits >> 40) + 1) * 0x1p-24,
                 v = static_cast<double>(bits & 0xffffff) * 0x1p-24;
    const double radius = 0.01 * std::sqrt(-2 * std::log(u));
    const Pair pair = normal_pair(bits);
    CHECK_NEAR(pair.first, radius * std::cos(2 * M_PI * v), 1e-6 * (radius + 1e-5));
    CHECK_NEAR(pair.second, radius * std::sin(2 * M_PI * v), 1e-6 * (radius + 1e-5));
  }
}

// CPUs draw sixteen pairs at once, with the same bits.
static void test_rows_of_normal_pairs() {
  for (const int64_t dim : {1, 2, 31, 33, 512}) {
    for (int64_t class_id = 0; class_id < 20'000; ++class_id) {
      std::vector<float> row(static_cast<size_t>(dim)), expected;
      cpu::initial_row(5, class_id << 12, dim, row.data());
      for (int64_t i = 0; i < dim; i += 2) {
        const Pair pair = initial_pair(5, class_id << 12, i / 2);
        expected.push_back(pair.first);
        if (i + 1 < dim) expected.push_back(pair.second);
      }
      CHECK(std::memcmp(row.data(), expected.data(), row.size() * sizeof(float)) == 0);
    }
  }
}

static void test_words_of_a_sample() {
  const ClassSample sample(5, 9, 0.3);
  const int64_t first = 1000, count = 77;
  int chosen = 0;
  for (int64_t word = 0; word < 3; ++word) {
    const uint32_t bits = sample.word(word, first, count);
    for (int64_t i = 0; i < 32; ++i) {
      const int64_t row = 32 * word + i;
      CHECK_EQ((bits >> i & 1) == 1, row < count && sample.has(first + row));
      chosen += static_cast<int>(bits >> i & 1);
    }
  }
  CHECK(chosen > 10 && chosen < 40);
}

// The mean over all random bits is the number itself, and a number of bfloat16 stays.
static void test_stochastic_rounding() {
  for (const float value : {1.0f, 1.00123f, -3.14159f, 1e-20f, -6.1e4f, 0.0f}) {
    double sum = 0;
    for (uint32_t random = 0; random < 1 << 16; ++random)
      sum += c10::BFloat16(round_stochastically(value, static_cast<uint16_t>(random)), c10::BFloat16::from_bits());
    CHECK_NEAR(sum / (1 << 16), value, std::abs(value) * 1e-6);
  }
  CHECK_EQ(round_stochastically(1.0f, 0xffff), 0x3f80);
}

// The effects of the last 0, 1, 2, ... updates, each made of the list before as on a GPU, against the updates one by
// one.
static void test_lists_of_missed_updates() {
  for (const RowOptimizer optimizer : {RowOptimizer::sgd, RowOptimizer::adagrad}) {
    std::vector<RowRates> all;
    std::vector<PendingUpdates> last{{}};
    for (int i = 0; i < 200; ++i) {
      all.push_back(
          {.learning_rate = 0.1 * (1 - i / 300.0), .momentum = i % 50 == 0 ? 0.5 : 0.9, .weight_decay = 5e-3});
      std::vector<PendingUpdates> next{{}};
      for (const PendingUpdates& updates : last) {
        next.push_back(PendingUpdates::of(optimizer, all.back()).after(updates));
      }
      last = next;
    }
    for (size_t missed = 0; missed <= all.size(); ++missed) {
      double w = 0.7, m = -0.3;
      for (size_t i = all.size() - missed; i < all.size(); ++i) {
        const RowRates& rates = all[i];
        if (optimizer == RowOptimizer::sgd) {
          m = rates.momentum * m + rates.weight_decay * w;
          w -= rates.learning_rate * m;
        } else {
          w -= rates.learning_rate * rates.weight_decay * w;
        }
      }
      float weight = 0.7F, velocity = -0.3F;
      last[missed].apply(weight, velocity);
      CHECK_NEAR(weight, w, 1e-6);
      CHECK_NEAR(velocity, m, 1e-6);
    }
  }
}

// With `reproducible`, no bit depends on the number of ranks, of threads (with products in float32) and of logits that
// are kept: also after steps that change the rows, and with more ranks than classes.
static void test_reproducible() {
  if (device.is_cuda()) return;
  struct Case {
    const char* name;
    int64_t classes, dim;
    double rate;
    float scale = 64;
    Precision precision = Precision::fp32;
    bool bf16_rows = false;
    Margin margin = {1, 0, 0.4f};
    RowOptimizer optimizer = RowOptimizer::sgd;
  };
  const std::vector<Case> cases = {
      {"all classes", 103, 16, 1},
      {"fewer classes than blocks and ranks", 3, 16, 1},
      {"an odd dimension", 1001, 17, 0.3},
      {"several tiles in a block", 20'000, 32, 0.5, 64, Precision::fp32, false, {1, 0.5f, 0}},
      {"logits beyond float32", 1001, 16, 0.5, 200},
      {"bfloat16", 5000, 64, 0.2, 64, Precision::bf16, true, kAdaFace, RowOptimizer::adagrad},
  };
  for (const Case& each : cases) {
    PfcOptions options = cosface_on_all_classes();
    options.reproducible = true;
    options.sample_rate = each.rate;
    options.scale = each.scale;
    options.precision = each.precision;
    options.bf16_rows = each.bf16_rows;
    options.margin = each.margin;
    options.row_optimizer = each.optimizer;
    Problem problem = make_problem(each.classes, each.dim, 24, options);
    if (each.classes > 3) problem.retired = {(problem.labels[0].item<int64_t>() + 1) % each.classes};
    if (each.precision == Precision::fp32) check_against_dense(problem, run_step(problem, 3));

    struct Run {
      Step last;
      at::Tensor rows;
    };
    const auto run = [&](int size, int threads, int64_t kept) {
      Parts parts(size);
      std::vector<at::Tensor> rows(size);
      PfcOptions own = with_parts(problem.options, problem.x.size(0), size);
      own.kept_logits = kept;
      run_fake_ranks(size, [&](Comm& comm) {
        at::set_num_threads(threads);
        PartialFc pfc(comm, own);
        set_rows(pfc, problem.w);
        pfc.retire(problem.retired);
        PartialFc::Result result;
        for (uint64_t step = 3; step < 6; ++step) {
          result = pfc.forward_backward(part_of(problem.x, comm), part_of(problem.labels, comm), step);
          pfc.update_rows(0.1, 0.9, 1e-4);
        }
        parts.add(comm.rank(), pfc, result);
        rows[comm.rank()] = pfc.weight().to(at::kFloat);
      });
      return Run{parts.whole(), at::cat(rows)};
    };
    std::map<int, Run> one_rank;  // by threads
    for (const int threads : {1, 2, 3}) one_rank[threads] = run(1, threads, -1);
    for (const auto& [size, threads, kept] :
         std::vector<std::tuple<int, int, int64_t>>{{1, 3, 0}, {2, 1, 500}, {3, 2, -1}, {4, 1, 0}, {5, 2, 3000}}) {
      const Run many = run(size, threads, kept);
      const Run& one = one_rank[each.precision == Precision::fp32 ? 1 : threads];
      const bool equal = many.last.losses[size - 1] == one.last.losses[0] && at::equal(many.last.dx, one.last.dx) &&
                         at::equal(many.last.sampled, one.last.sampled) && at::equal(many.last.dw, one.last.dw) &&
                         at::equal(many.rows, one.rows);
      if (!equal) std::printf("%s: %d ranks with %d threads\n", each.name, size, threads);
      CHECK(equal);
    }
  }
}

static void test_on_device() {
  test_every_margin_rate_filter_and_world_size();
  test_statistics_of_adaface();
  test_tiles();
  test_margins_and_filter_matter();
  test_sample();
  test_sample_rates_by_step();
  test_retired_classes();
  test_positives_outnumber_the_sample();
  test_ranks_without_positives();
  test_fewer_classes_than_ranks();
  test_few_classes_far_below_zero();
  test_loss_near_zero();
  test_pole_of_arcface();
  test_vector_without_direction();
  test_labels_out_of_range();
  test_initial_rows();
  test_training();
  test_threads();
  test_reproducible();
  test_step_before_any_forward();
  test_embeddings_of_a_graph();
  test_skipped_update();
  test_bf16_rows();
  test_row_optimizers();
  test_dense_updates_around_a_checkpoint();
  test_skipped_updates();
}

int main(int argc, char** argv) {
  at::set_num_threads(1);
  if (argc == 5) return run_gloo_rank(std::stoi(argv[2]), std::stoi(argv[3]), std::stoi(argv[4]));
  test_normal_pairs();
  test_rows_of_normal_pairs();
  test_words_of_a_sample();
  test_stochastic_rounding();
  test_lists_of_missed_updates();
  test_on_device();
  test_precisions_on_a_cpu();
  test_refused_optimizers();
  test_host_rows_equal_device_rows();
  host_rows = true;
  test_on_device();
  host_rows = false;
  test_loss_curves();
  test_gloo();
  if (!at::hasCUDA()) return TEST_RESULT();
  device = at::kCUDA;
  test_on_device();
  test_initial_rows_on_cuda();
  test_host_rows_equal_device_rows();
  test_optimizers_equal_those_of_a_cpu();
  test_steps_out_of_order();
  test_precisions();
  test_ten_million_rows();
  return TEST_RESULT();
}
