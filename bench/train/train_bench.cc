// Measures the training of a backbone: its forward and backward pass alone, or a session's whole step with decoding,
// Partial FC and SGD. The reference, reference.py, does the forward and backward pass by turns.
//
// What is a figure of:
//   forwardMs, stepMs  medians of the time until the device has finished; of a whole step, the mean of all steps, since
//                      the host does not wait for the device in each
//   imagesPerSecond    batch over stepMs
//   rssMiB, deviceMiB  largest resident memory of the process, and memory of tensors on the CUDA device
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <signal.h>

#include <atomic>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "../common/arguments.h"
#include "../common/measure.h"
#include "../common/reference.h"
#include "graph_file.h"
#include "made_up_dataset.h"
#include "model/executor.h"
#include "precision.h"
#include "torch_error.h"
#include "train/device.h"
#include "train/session.h"

using namespace facetrain;
using bench::Arguments, bench::kMiB;

namespace {

const char* const kUsage =
    "Usage: train_bench [OPTION...]\n\n"
    "Measures the training of a backbone. Prints a row of a table, or a line of JSON, for each batch and precision.\n";

const std::vector<bench::Option> kOptions{
    {"graph", "NAME|FILE", "of bench/train/graphs, or a file of dump-graph.ts; iresnet50"},
    {"mode", "M", "backbone: forward and backward pass; step: a session's whole step; backbone"},
    {"batch", "B,...", "pictures of a step; 32"},
    {"precision", "P,...", "fp32, tf32, bf16, fp16; fp32"},
    {"device", "D", "cpu or cuda; cpu"},
    {"threads", "N", "the machine's processors"},
    {"steps", "N", "timed steps; 10"},
    {"warmup", "N", "steps before these; 2, on CUDA 5"},
    {"classes", "C", "of a whole step; 1505"},
    {"sample-rate", "R", "of a whole step; 1"},
    {"data", "FOLDER", "dataset of a whole step; without: noise in memory, whose decoding costs little"},
    {"loader-threads", "N", "that decode; 2"},
    {"micro-batch", "M", "pictures that go through the backbone at once in a whole step; the batch"},
    {"checkpoint-activations", "", "compute most activations twice"},
    {"reference", "PYTHON", "a Python with torch, which does the same pass in eager PyTorch by turns; none"},
    {"reference-script", "FILE",
     "the reference; bench/train/reference.py of the repository that has this in native/build"},
    {"json", "", "print the JSON alone"},
};

struct Case {
  std::string mode;
  int64_t batch;
  Precision precision;
  at::Device device;
  int64_t steps, warmup;
  bool checkpoint_activations;
  int threads;
};

struct Figures {
  double forward_ms = -1, step_ms = 0, rss_mib = 0, device_mib = 0;
};

Figures memory_of(at::Device device, Figures figures) {
  figures.rss_mib = bench::resident_memory().peak / kMiB;
  figures.device_mib = bench::device_memory(device).peak / kMiB;
  return figures;
}

// The reference: the same forward and backward pass in eager PyTorch.
class Theirs {
 public:
  Theirs(const Arguments& arguments, const std::string& file, const Case& given)
      : given_(given),
        process_(arguments.text("reference", ""),
                 arguments.text("reference-script", bench::bench_folder() / "train/reference.py"),
                 {"--graph", file, "--batch", std::to_string(given.batch), "--precision",
                  std::string(name_of(given.precision)), "--device", given.device.is_cuda() ? "cuda" : "cpu",
                  "--threads", std::to_string(given.threads)}),
        name_(process_.name()) {}

  const std::string& name() const { return name_; }

  void step() {
    const std::string line = process_.step();
    if (++steps_ <= given_.warmup) return;
    forward_.push_back(bench::number_in(line, "forwardMs").value_or(-1));
    step_.push_back(bench::number_in(line, "stepMs").value_or(-1));
  }

  Figures finish() {
    const std::string line = process_.finish();
    return {.forward_ms = bench::median(forward_),
            .step_ms = bench::median(step_),
            .rss_mib = bench::number_in(line, "rssMiB").value_or(-1),
            .device_mib = bench::number_in(line, "deviceMiB").value_or(-1)};
  }

 private:
  const Case& given_;
  bench::Reference process_;
  std::string name_;
  int64_t steps_ = 0;
  std::vector<double> forward_, step_;
};

// Theirs may be null.
Figures measure_backbone(const Graph& graph, const Case& given, Theirs* theirs) {
  const auto executor = make_executor(graph, given.device);
  executor->set_precision(resolve_precision(given.precision, given.device));
  executor->checkpoint_activations(given.checkpoint_activations);
  at::manual_seed(1);
  const auto& [name, channels, height, width, range] = graph.input;
  const at::Tensor images = at::rand({given.batch, channels, height, width})
                                .mul_(2)
                                .sub_(1)
                                .to(given.device)
                                .contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor gradient = at::randn({given.batch, graph.output.dim}).mul_(1e-3).to(given.device);
  std::vector<double> forward, step;
  for (int64_t i = 0; i < given.warmup + given.steps; ++i) {
    if (i == given.warmup) bench::reset_peaks(given.device);
    for (auto& parameter : executor->parameters()) {
      if (parameter.tensor.grad().defined()) parameter.tensor.mutable_grad().zero_();
    }
    bench::synchronize(given.device);
    const bench::Stopwatch watch;
    const bench::Moment begin(given.device);
    const at::Tensor out = executor->forward(images, Pass::training);
    const bench::Moment middle(given.device);
    out.backward(gradient);
    bench::synchronize(given.device);
    if (i >= given.warmup) {
      step.push_back(watch.milliseconds());
      forward.push_back(begin.milliseconds_until(middle));
    }
    if (theirs != nullptr) theirs->step();
  }
  return memory_of(given.device, {.forward_ms = bench::median(forward), .step_ms = bench::median(step)});
}

Figures measure_step(const Graph& graph, const Case& given, const Arguments& arguments) {
  SessionOptions options{};
  options.pfc = {.num_classes = arguments.integer("classes", 1505),
                 .embedding_dim = graph.output.dim,
                 .sample_rate = arguments.number("sample-rate", 1),
                 .seed = 1,
                 .scale = 64,
                 .margin = {1, 0, 0.4F},
                 .interclass_filter = std::nullopt};
  options.pfc.device = given.device;
  options.data = {.global_batch = given.batch,
                  .rank = 0,
                  .size = 1,
                  .micro_batch = arguments.integer("micro-batch", given.batch),
                  .seed = 1,
                  .flip = true,
                  .shift = 0,
                  .bgr = false,
                  .threads = static_cast<int>(arguments.integer("loader-threads", 2)),
                  .max_bad = 0};
  options.momentum = 0.9;
  options.weight_decay = 5e-4;
  options.clip_norm = 5;
  if (given.batch % options.data.micro_batch != 0) arguments.refuse("--micro-batch: it does not divide the batch");
  options.checkpoint_activations = given.checkpoint_activations;
  options.precision = options.pfc.precision = resolve_precision(given.precision, given.device);
  std::shared_ptr<const Dataset> dataset;
  if (arguments.has("data")) {
    dataset = open_dataset(arguments.text("data", ""));
  } else {
    dataset = std::make_shared<bench::MadeUpDataset>(64 * given.batch, options.pfc.num_classes,
                                                     static_cast<int>(graph.input.height));
  }
  const std::atomic<bool> cancelled = false;
  Session session(make_executor(graph, given.device), make_solo_comm(), dataset, options, cancelled);
  constexpr double kLearningRate = 0.01;
  for (int64_t i = 0; i < given.warmup; ++i) session.step(i, kLearningRate, {});
  bench::synchronize(given.device);
  bench::reset_peaks(given.device);
  const bench::Stopwatch watch;
  for (int64_t i = 0; i < given.steps; ++i) session.step(given.warmup + i, kLearningRate, {});
  bench::synchronize(given.device);
  return memory_of(given.device, {.step_ms = watch.milliseconds() / given.steps});
}

// Name: of the reference; of ours, empty.
void print(const Case& given, const std::string& graph, const std::string& name, const Figures& figures, bool json) {
  const double rate = 1000 * static_cast<double>(given.batch) / figures.step_ms;
  const std::string device = given.device.is_cuda() ? "cuda" : "cpu", precision(name_of(given.precision));
  if (!json) {
    std::ostringstream forward;
    forward << std::fixed << std::setprecision(2) << figures.forward_ms;
    const std::string first = name.empty() ? graph : "  " + name;
    std::cout << std::left << std::setw(24) << first << std::setw(10) << given.mode << std::setw(6) << device
              << std::setw(6) << precision << std::right << std::fixed << std::setprecision(2) << std::setw(6)
              << given.batch << std::setw(13) << (figures.forward_ms < 0 ? "-" : forward.str()) << std::setw(13)
              << figures.step_ms << std::setprecision(1) << std::setw(13) << rate << std::setprecision(0)
              << std::setw(12) << (given.device.is_cuda() ? figures.device_mib : figures.rss_mib) << "\n"
              << std::flush;
    return;
  }
  std::cout << std::defaultfloat << std::setprecision(6) << R"({"benchmark":"train",)"
            << (name.empty() ? "" : R"("name":")" + name + R"(",)") << R"("mode":")" << given.mode << R"(","graph":")"
            << graph << R"(","device":")" << device << R"(","precision":")" << precision << R"(","batch":)"
            << given.batch << R"(,"threads":)" << given.threads << R"(,"forwardMs":)";
  if (figures.forward_ms < 0) {
    std::cout << "null";
  } else {
    std::cout << figures.forward_ms;
  }
  std::cout << R"(,"stepMs":)" << figures.step_ms << R"(,"imagesPerSecond":)" << rate << R"(,"rssMiB":)"
            << figures.rss_mib << R"(,"deviceMiB":)" << figures.device_mib << "}\n"
            << std::flush;
}

int run(const Arguments& arguments) {
  const std::string mode = arguments.text("mode", "backbone"), device_name = arguments.text("device", "cpu");
  if (mode != "backbone" && mode != "step") arguments.refuse("--mode: " + mode + "; allowed are backbone and step");
  const at::Device device = choose_device({.wanted = device_name, .local_rank = 0, .local_size = 1});
  std::string file = arguments.text("graph", "iresnet50");
  if (!std::filesystem::exists(file)) file = bench::bench_folder() / "train/graphs" / (file + ".graph");
  const Graph graph = bench::read_graph(file);
  const std::string name = std::filesystem::path(file).stem();
  const int threads = static_cast<int>(arguments.integer("threads", std::max(1U, std::thread::hardware_concurrency())));
  at::set_num_threads(threads);
  // As the addon sets them (node/binding_training.cc).
  at::globalContext().setFlushDenormal(true);
  at::globalContext().setDeterministicCuDNN(true);

  const bool json = arguments.has("json");
  if (!json) {
    std::cout << std::left << std::setw(24) << "backbone" << std::setw(10) << "mode" << std::setw(6) << "on"
              << std::setw(6) << "in" << std::right << std::setw(6) << "batch" << std::setw(13) << "forward ms"
              << std::setw(13) << "step ms" << std::setw(13) << "images/s" << std::setw(12) << "MiB"
              << "\n";
  }
  const bool beside = mode == "backbone" && arguments.text("reference", "none") != "none";
  int failures = 0;
  for (const std::string& batch : arguments.list("batch", "32")) {
    for (const std::string& precision_name : arguments.list("precision", "fp32")) {
      const auto precision = precision_of(precision_name);
      const int64_t pictures = std::atoll(batch.c_str());
      if (!precision || pictures < 2) arguments.refuse("--batch or --precision: " + batch + ", " + precision_name);
      const Case given{mode,
                       pictures,
                       *precision,
                       device,
                       arguments.integer("steps", 10),
                       arguments.integer("warmup", device.is_cuda() ? 5 : 2, 0),
                       arguments.has("checkpoint-activations"),
                       threads};
      try {
        std::optional<Theirs> theirs;
        if (beside) theirs.emplace(arguments, file, given);
        print(given, name, "",
              mode == "backbone" ? measure_backbone(graph, given, theirs ? &*theirs : nullptr)
                                 : measure_step(graph, given, arguments),
              json);
        if (theirs) print(given, name, theirs->name(), theirs->finish(), json);
      } catch (const std::exception& error) {  // such as memory that does not suffice for this batch
        ++failures;
        std::cerr << name << ", batch " << batch << ", " << precision_name << ": " << message_of(error) << "\n";
      }
    }
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments(argc, argv, kUsage, kOptions);
  signal(SIGPIPE, SIG_IGN);  // a reference that has ended is an error of the write
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    std::cerr << message_of(error) << "\n";
    return 1;
  }
}
