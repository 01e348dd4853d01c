// Trains a linear map of features, with Partial FC as its head, and writes what the map makes of other features: a run
// of accuracy-bench.ts, which judges it.
//
// The map is y = A x without a bias, in float32, updated by SGD with momentum. Its learning rate and that of the class
// centres fall as (1 - step / steps)^2, which is the default schedule of a training without its warm-up.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "../common/arguments.h"
#include "../common/npy.h"
#include "comm/comm.h"
#include "pfc/partial_fc.h"
#include "torch_error.h"

using namespace facetrain;
using bench::Arguments;

namespace {

const char* const kUsage =
    "Usage: accuracy_bench [OPTION...]\n\n"
    "Trains a linear map of features with Partial FC. Prints a line of JSON.\n";

const std::vector<bench::Option> kOptions{
    {"features", "F.npy", "float32 [N, F], to train on"},
    {"labels", "F.npy", "int64 [N]"},
    {"test", "F.npy", "float32 [M, F]"},
    {"output", "F.npy", "receives the embeddings of --test, float32 [M, D]"},
    {"dim", "D", "numbers of an embedding; 128"},
    {"optimizer", "O", "of the class centres: sgd, adamw or adagrad; sgd"},
    {"dense", "", "updates change all class centres: with sgd and adagrad"},
    {"rows-precision", "P", "of the class centres: fp32 or bf16; fp32"},
    {"sample-rate", "R", "share of the negative classes in a step; 1"},
    {"rows-learning-rate", "X", "of the class centres; 0.1"},
    {"learning-rate", "X", "of the map; 0.1"},
    {"epochs", "N", "20"},
    {"batch", "B", "256"},
    {"seed", "N", "of the map, the centres, the samples and the order of the pictures; 1"},
    {"threads", "N", "1"},
};

constexpr double kMomentum = 0.9, kWeightDecay = 5e-4;

int run(const Arguments& arguments) {
  at::set_num_threads(static_cast<int>(arguments.integer("threads", 1)));
  const at::Tensor features = bench::read_npy(arguments.text("features", ""));
  const at::Tensor labels = bench::read_npy(arguments.text("labels", "")),
                   test = bench::read_npy(arguments.text("test", ""));
  const int64_t batch = arguments.integer("batch", 256), steps_an_epoch = features.size(0) / batch;
  const int64_t steps = arguments.integer("epochs", 20) * steps_an_epoch;
  const auto seed = static_cast<uint64_t>(arguments.integer("seed", 1));
  const double learning_rate = arguments.number("learning-rate", 0.1);
  const double rows_learning_rate = arguments.number("rows-learning-rate", 0.1);

  PfcOptions options{.num_classes = labels.max().item<int64_t>() + 1,
                     .embedding_dim = arguments.integer("dim", 128),
                     .sample_rate = arguments.number("sample-rate", 1),
                     .seed = seed,
                     .scale = 64,
                     .margin = {1, 0, 0.4F},
                     .interclass_filter = std::nullopt};
  const auto optimizer = row_optimizer_of(arguments.text("optimizer", "sgd"));
  if (!optimizer) arguments.refuse("--optimizer: allowed are sgd, adamw and adagrad");
  options.row_optimizer = *optimizer;
  options.dense_update = arguments.has("dense");
  options.bf16_rows = arguments.text("rows-precision", "fp32") == "bf16";
  const auto comm = make_solo_comm();
  PartialFc head(*comm, options);

  at::manual_seed(seed);
  at::Tensor map = at::randn({options.embedding_dim, features.size(1)}).div_(std::sqrt(features.size(1)));
  at::Tensor velocity = at::zeros_like(map), order;
  double loss = 0;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t place = step % steps_an_epoch;
    if (place == 0) order = at::randperm(features.size(0), at::kLong);
    const at::Tensor pictures = order.narrow(0, place * batch, batch);
    const at::Tensor x = features.index_select(0, pictures);
    const auto result =
        head.forward_backward(at::mm(x, map.t()), labels.index_select(0, pictures), static_cast<uint64_t>(step));
    loss = result.loss.item<double>();
    const double decay = std::pow(1 - static_cast<double>(step) / static_cast<double>(steps), 2);
    head.update_rows(rows_learning_rate * decay, kMomentum, kWeightDecay);
    velocity.mul_(kMomentum).add_(at::mm(result.grad_embeddings.t(), x)).add_(map, kWeightDecay);
    map.sub_(velocity, learning_rate * decay);
  }
  bench::write_npy(arguments.text("output", ""), at::mm(test, map.t()));
  std::cout << "{\"loss\": " << loss << ", \"steps\": " << steps << "}" << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments(argc, argv, kUsage, kOptions);
  for (const char* const file : {"features", "labels", "test", "output"}) {
    if (!arguments.has(file)) arguments.refuse(std::string("--") + file + " is missing");
  }
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    std::cerr << message_of(error) << "\n";
    return 1;
  }
}
