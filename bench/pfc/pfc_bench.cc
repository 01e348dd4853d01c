// Measures a Partial FC step (forward, backward, SGD) on one rank, and the same computation in plain ATen with
// autograd, which holds all logits. Usage: `npm run bench -- pfc [classes=100000] [dim=512] [batch=64] [threads=1]
// [steps=5]`. Prints a table, and the same numbers as one line of JSON.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "comm/comm.h"
#include "pfc/partial_fc.h"

using namespace facetrain;

static constexpr double kLearningRate = 0.1, kMomentum = 0.9, kWeightDecay = 5e-4;

// arcface_torch's head with CosFace in ATen operators, on the rows in `sampled`, with SGD on these rows only.
class PlainHead {
 public:
  PlainHead(const PfcOptions& options, const at::Tensor& weight)
      : options_(options), weight_(weight.clone()), momentum_(at::zeros_like(weight)) {}

  double step(const at::Tensor& embeddings, const at::Tensor& labels, const at::Tensor& sampled) {
    const bool all = sampled.size(0) == weight_.size(0);
    const at::Tensor x = embeddings.detach().requires_grad_();
    at::Tensor rows = (all ? weight_.detach() : weight_.index_select(0, sampled)).requires_grad_();
    const at::Tensor columns = all ? labels : at::searchsorted(sampled, labels);
    const auto normalize = [](const at::Tensor& t) { return t / t.norm(2, {1}, true).clamp_min(1e-12); };
    const at::Tensor cosines = at::mm(normalize(x), normalize(rows).t()).clamp(-1, 1);
    const at::Tensor margin = at::zeros_like(cosines).scatter_(1, columns.view({-1, 1}), options_.margin.m3);
    const at::Tensor loss = at::cross_entropy_loss((cosines - margin) * options_.scale, columns);
    loss.backward();

    const at::NoGradGuard no_grad;
    const at::Tensor gradient = rows.grad();
    rows = rows.detach();
    at::Tensor velocity = all ? momentum_ : momentum_.index_select(0, sampled);
    velocity.mul_(kMomentum).add_(gradient).add_(rows, kWeightDecay);
    rows.add_(velocity, -kLearningRate);
    if (!all) {
      weight_.index_copy_(0, sampled, rows);
      momentum_.index_copy_(0, sampled, velocity);
    }
    return loss.item<double>();
  }

 private:
  PfcOptions options_;
  at::Tensor weight_, momentum_;
};

template <class Step>
static double milliseconds(Step step) {
  const auto start = std::chrono::steady_clock::now();
  step();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

static double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

int main(int argc, char** argv) {
  const auto argument = [&](int i, int64_t otherwise) { return argc > i ? std::stoll(argv[i]) : otherwise; };
  PfcOptions options{.num_classes = argument(1, 100000),
                     .embedding_dim = argument(2, 512),
                     .sample_rate = 1,
                     .seed = 0,
                     .scale = 64,
                     .margin = {1, 0, 0.4f},
                     .interclass_filter = std::nullopt};
  const int64_t batch = argument(3, 64);
  at::set_num_threads(static_cast<int>(argument(4, 1)));
  const int steps = static_cast<int>(argument(5, 5));

  at::manual_seed(1);
  const auto comm = make_solo_comm();
  std::string json;
  std::printf("%lld classes, %lld numbers an embedding, batch %lld, %d threads; median of %d steps\n",
              static_cast<long long>(options.num_classes), static_cast<long long>(options.embedding_dim),
              static_cast<long long>(batch), at::get_num_threads(), steps);
  std::printf("%6s  %14s  %14s  %8s  %10s  %10s\n", "rate", "partial fc ms", "plain ATen ms", "speed-up", "loss",
              "plain loss");
  for (const double rate : {1.0, 0.1}) {
    options.sample_rate = rate;
    PartialFc pfc(*comm, options);
    PlainHead plain(options, pfc.weight());
    double loss = 0, plain_loss = 0;
    std::vector<double> ms, plain_ms;
    // The two take turns, so that other load on the machine affects both. The first step, with cold caches, does not
    // count.
    for (int step = 0; step <= steps; ++step) {
      const at::Tensor x = at::randn({batch, options.embedding_dim});
      const at::Tensor labels = at::randint(options.num_classes, {batch}, at::kLong);
      const double first = milliseconds([&] {
        loss = pfc.forward_backward(x, labels, step).loss;
        pfc.apply_sgd(kLearningRate, kMomentum, kWeightDecay);
      });
      const double second = milliseconds([&] { plain_loss = plain.step(x, labels, pfc.sampled()); });
      if (step == 0) continue;
      ms.push_back(first);
      plain_ms.push_back(second);
    }
    const double ours = median(ms), theirs = median(plain_ms);
    std::printf("%6.2f  %14.1f  %14.1f  %8.2f  %10.5f  %10.5f\n", rate, ours, theirs, theirs / ours, loss, plain_loss);
    char row[256];
    std::snprintf(row, sizeof(row),
                  R"(%s{"sampleRate":%g,"partialFcMs":%.3f,"plainMs":%.3f,"loss":%.9g,"plainLoss":%.9g})",
                  json.empty() ? "" : ",", rate, ours, theirs, loss, plain_loss);
    json += row;
  }
  std::printf(R"({"benchmark":"pfc","classes":%lld,"dim":%lld,"batch":%lld,"threads":%d,"results":[%s]})"
              "\n",
              static_cast<long long>(options.num_classes), static_cast<long long>(options.embedding_dim),
              static_cast<long long>(batch), at::get_num_threads(), json.c_str());
}
