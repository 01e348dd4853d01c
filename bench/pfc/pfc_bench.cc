// Measures a Partial FC step: forward, backward, SGD on the rows of the sample. The reference, reference.py, does the
// same by turns, so that other load on the machine slows both.
//
// What is a figure of:
//   stepMs        the whole step; the device has finished it before the clock is read
//   forwardMs     until the softmax's denominators are summed over the ranks; backwardMs: the rest, to the gradients.
//                 On CUDA these, and optimizerMs, are the device's own times
//   optimizerMs   SGD
//   rssMiB        largest resident memory of the process (rank 0)
//   storedBytesPerClass  of a centre and what its optimizer keeps
//   bytesPerClass largest memory since before the centres were made, of the process or of the CUDA device, for each
//                 class that the rank holds
//   gradientError with --gradient-error: the largest error of the sampled rows' gradient in the first step, relative to
//                 its largest number; against a softmax in float64 over the same rows, as they are stored
//   backToBackMs  on CUDA: a step where the host does not wait for the one before
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <signal.h>

#include <array>
#include <cstdlib>
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
#include "../common/npy.h"
#include "../common/reference.h"
#include "comm/comm.h"
#include "pfc/partial_fc.h"
#include "precision.h"
#include "test/processes.h"
#include "torch_error.h"

using namespace facetrain;
using bench::Arguments, bench::Moment, bench::Reference, bench::kMiB;

namespace {

const char* const kUsage =
    "Usage: pfc_bench [OPTION...]\n\n"
    "Measures a step of Partial FC, and the same in PyTorch. Prints a table and a line of JSON.\n";

const std::vector<bench::Option> kOptions{
    {"classes", "C", "classes over all ranks; 100000, or the rows of --centres"},
    {"batch", "B", "embeddings of a step over all ranks; 512, or all of --embeddings"},
    {"dim", "D", "numbers of an embedding; 512, or as in the files"},
    {"sample-rate", "R", "share of the negative classes in a step; 0.1"},
    {"world", "W", "ranks: processes with Gloo, or NCCL with a device each; 1"},
    {"steps", "N", "steps; 10"},
    {"warmup", "N", "how many of these are not timed; 1, on CUDA 3"},
    {"precision", "P", "of the products: fp32, tf32, bf16 or fp16; fp32"},
    {"rows-precision", "P", "of the class centres: fp32 or bf16; fp32"},
    {"tier", "T", "where the class centres are: device or host; device"},
    {"optimizer", "O", "of the class centres: sgd, adamw or adagrad; sgd. The reference has sgd"},
    {"dense", "", "updates change all class centres: with sgd and adagrad"},
    {"device", "D", "cpu or cuda; cpu"},
    {"threads", "N", "of each rank; the machine's processors over the ranks"},
    {"margin", "M1,M2,M3", "cos(m1 angle + m2) - m3; 1,0,0.4"},
    {"scale", "S", "of the logits; 64"},
    {"filter", "COSINE", "inter-class filter; none"},
    {"learning-rate", "X", "0.1"},
    {"momentum", "X", "0.9"},
    {"weight-decay", "X", "0.0005"},
    {"seed", "N", "of centres, sample and inputs; 1"},
    {"gradient-error", "",
     "compare the first step's gradient with float64, which takes 8 bytes for each logit a few times; one rank, no "
     "--filter"},
    {"tile-rows", "N", "class centres in a tile; 0: chosen by the head"},
    {"embeddings", "F.npy", "float32 [N, D]: step i takes B of them from i B on, and begins again at the end"},
    {"labels", "F.npy", "int64 or int32 [N]"},
    {"centres", "F.npy", "float32 [C, D]"},
    {"reference", "PYTHON", "a Python with torch and NumPy, which runs the reference; none"},
    {"insightface", "DIR",
     "let the reference be insightface's own code: its folder recognition/arcface_torch; in FP32 on a CPU"},
    {"reference-script", "FILE",
     "the reference; bench/pfc/reference.py of the repository that has this in native/build"},
    {"json", "", "print the JSON alone"},
    {"rank", "R", "for the processes of --world"},
    {"port", "P", "for the processes of --world"},
};

struct Settings {
  PfcOptions head;
  int64_t batch = 0;
  int world = 1, rank = 0, port = 0, threads = 1;
  int64_t steps = 0, warmup = 0;
  bool gradient_error = false;
  double learning_rate = 0, momentum = 0, weight_decay = 0;
  at::Tensor embeddings, labels, centres;  // on the CPU; centres are undefined when they are drawn
};

// Of one step, in ms. Negative: unknown.
struct Times {
  double step = -1, forward = -1, backward = -1, optimizer = -1;
};

struct Figures {
  std::string name;
  Times median;
  double back_to_back = -1, rss_mib = -1, bytes_per_class = -1, init_seconds = -1, gradient_error = -1;
  int64_t sampled = -1;
  std::vector<double> losses;
};

// Marks the end of the forward pass: the sum of the softmax's denominators over the ranks.
class MarkingComm final : public Comm {
 public:
  MarkingComm(std::unique_ptr<Comm> comm, at::Device device) : comm_(std::move(comm)), device_(device) {}
  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  void all_gather(at::Tensor& out, const at::Tensor& in) override { comm_->all_gather(out, in); }
  void all_reduce_sum(at::Tensor& data) override {
    comm_->all_reduce_sum(data);
    if (!forward_end) forward_end.emplace(device_);
  }
  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override { comm_->reduce_scatter_sum(out, in); }
  void broadcast(at::Tensor& data, int root) override { comm_->broadcast(data, root); }
  void barrier() override { comm_->barrier(); }

  std::optional<Moment> forward_end;

 private:
  const std::unique_ptr<Comm> comm_;
  const at::Device device_;
};

Precision precision_named(const Arguments& arguments, const std::string& option) {
  const std::string name = arguments.text(option, "fp32");
  const auto precision = precision_of(name);
  if (!precision) arguments.refuse("--" + option + ": " + name + "; allowed are fp32, tf32, bf16 and fp16");
  return *precision;
}

Settings settings_of(const Arguments& arguments) {
  Settings settings;
  PfcOptions& head = settings.head;
  const auto file = [&](const char* option) {
    return arguments.has(option) ? bench::read_npy(arguments.text(option, "")) : at::Tensor();
  };
  settings.embeddings = file("embeddings");
  settings.labels = file("labels");
  settings.centres = file("centres");
  const auto matrix = [&](const char* option, const at::Tensor& tensor) {
    if (tensor.defined() && (tensor.dim() != 2 || tensor.scalar_type() != at::kFloat)) {
      arguments.refuse(std::string("--") + option + ": no matrix of float32");
    }
  };
  matrix("embeddings", settings.embeddings);
  matrix("centres", settings.centres);
  const bool given = settings.embeddings.defined();
  if (given != settings.labels.defined()) arguments.refuse("--embeddings and --labels belong together");

  head.num_classes = arguments.integer("classes", settings.centres.defined() ? settings.centres.size(0) : 100000);
  head.embedding_dim = arguments.integer("dim", given                        ? settings.embeddings.size(1)
                                                : settings.centres.defined() ? settings.centres.size(1)
                                                                             : 512);
  head.sample_rate = arguments.number("sample-rate", 0.1);
  if (head.sample_rate > 1) arguments.refuse("--sample-rate: it is a share, 1 at most");
  head.seed = arguments.integer("seed", 1, 0);
  head.scale = static_cast<float>(arguments.number("scale", 64));
  if (head.scale > 512) arguments.refuse("--scale: 512 at most, as in loss.scale");
  const std::vector<double> margin = arguments.numbers("margin", {1, 0, 0.4});
  if (margin.size() != 3) arguments.refuse("--margin: three numbers with commas between them");
  head.margin = {static_cast<float>(margin[0]), static_cast<float>(margin[1]), static_cast<float>(margin[2])};
  if (arguments.has("filter")) head.interclass_filter = static_cast<float>(arguments.number("filter", 0, -1));
  head.tile_rows = arguments.integer("tile-rows", 0, 0);
  settings.batch = arguments.integer("batch", given ? settings.embeddings.size(0) : 512);
  settings.world = static_cast<int>(arguments.integer("world", 1));
  settings.rank = static_cast<int>(arguments.integer("rank", 0, 0));
  settings.port = static_cast<int>(arguments.integer("port", 0, 0));
  const int64_t processors = std::max(1U, std::thread::hardware_concurrency());
  settings.threads = static_cast<int>(arguments.integer("threads", std::max<int64_t>(1, processors / settings.world)));
  const std::string device = arguments.text("device", "cpu");
  if (device != "cpu" && device != "cuda") arguments.refuse("--device: " + device + "; allowed are cpu and cuda");
  head.device =
      device == "cpu" ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(settings.rank));
  settings.steps = arguments.integer("steps", 10);
  settings.warmup = std::min(arguments.integer("warmup", device == "cpu" ? 1 : 3, 0), settings.steps - 1);
  settings.head.precision = precision_named(arguments, "precision");
  // As native/model's use_precision does in a training, which this program does not link.
  at::globalContext().setAllowTF32CuBLAS(settings.head.precision == Precision::tf32);
  const std::string rows = arguments.text("rows-precision", "fp32");
  if (rows != "fp32" && rows != "bf16") arguments.refuse("--rows-precision: " + rows + "; allowed are fp32 and bf16");
  settings.head.bf16_rows = rows == "bf16";
  const std::string tier = arguments.text("tier", "device");
  if (tier != "device" && tier != "host") arguments.refuse("--tier: " + tier + "; allowed are device and host");
  settings.head.host_rows = tier == "host";
  const std::string optimizer = arguments.text("optimizer", "sgd");
  const auto named = row_optimizer_of(optimizer);
  if (!named) arguments.refuse("--optimizer: " + optimizer + "; allowed are sgd, adamw and adagrad");
  settings.head.row_optimizer = *named;
  settings.head.dense_update = arguments.has("dense");
  settings.learning_rate = arguments.number("learning-rate", 0.1);
  settings.momentum = arguments.number("momentum", 0.9);
  settings.weight_decay = arguments.number("weight-decay", 5e-4);

  settings.gradient_error = arguments.has("gradient-error");
  if (settings.gradient_error && (settings.world > 1 || head.interclass_filter)) {
    arguments.refuse("--gradient-error: not with --world or --filter");
  }
  if (settings.batch % settings.world != 0) arguments.refuse("--batch: not divisible by --world");
  if (given && settings.embeddings.size(0) % settings.batch != 0) {
    arguments.refuse("--embeddings: its number is not divisible by --batch");
  }
  if (given && (settings.embeddings.size(1) != head.embedding_dim || settings.labels.dim() != 1 ||
                settings.labels.size(0) != settings.embeddings.size(0) || settings.labels.is_floating_point())) {
    arguments.refuse("--embeddings, --labels and --dim do not fit together");
  }
  if (settings.centres.defined() &&
      settings.centres.sizes() != at::IntArrayRef({head.num_classes, head.embedding_dim})) {
    arguments.refuse("--centres: not [C, D]");
  }
  if (given) return settings;
  at::manual_seed(head.seed);
  constexpr int64_t kBatches = 4;  // made before, so that no step measures their making
  settings.embeddings = at::randn({kBatches * settings.batch, head.embedding_dim});
  settings.labels = at::randint(head.num_classes, {kBatches * settings.batch}, at::kLong);
  return settings;
}

std::unique_ptr<Comm> make_comm(const Settings& settings) {
  if (settings.world == 1) return make_solo_comm();
  const std::chrono::minutes limit(5);
  RendezvousOptions options{.rank = settings.rank,
                            .size = settings.world,
                            .gang = "bench",
                            .master_addr = "127.0.0.1",
                            .master_port = settings.port,
                            .bind_addr = "127.0.0.1",
                            .rendezvous_timeout = limit,
                            .collective_timeout = limit};
  return settings.head.device.is_cuda() ? make_nccl_comm(options, settings.rank) : make_gloo_comm(options);
}

// The gradient of the sampled rows [n, d] in float64, from the formulas of partial_fc.h's papers: of rows w [n, d] that
// stand for `sampled` classes, all as stored. One margin for all pictures.
at::Tensor exact_gradient(const PfcOptions& head, const at::Tensor& embeddings, const at::Tensor& labels,
                          const at::Tensor& rows, const at::Tensor& sampled) {
  const at::Tensor x = embeddings.to(at::kCPU, at::kDouble), w = rows.to(at::kCPU, at::kDouble);
  const at::Tensor norms = w.norm(2, {1}, true), unit_x = x / x.norm(2, {1}, true), unit_w = w / norms;
  at::Tensor logits = at::mm(unit_x, unit_w.t());
  const at::Tensor columns = at::searchsorted(sampled.cpu(), labels.cpu());
  const auto batch = static_cast<double>(x.size(0));
  std::vector<double> slopes;
  for (int64_t i = 0; i < x.size(0); ++i) {
    const int64_t column = columns[i].item<int64_t>();
    const auto target = apply_margin<double>(head.margin, logits[i][column].item<double>());
    logits[i][column] = target.value;
    slopes.push_back(target.slope);
  }
  at::Tensor gradient = logits.mul_(double{head.scale}).softmax(1);
  for (int64_t i = 0; i < x.size(0); ++i) {
    const at::Tensor own = gradient[i][columns[i].item<int64_t>()];
    own.sub_(1).mul_(slopes[static_cast<size_t>(i)]);
  }
  const at::Tensor by_unit = at::mm(gradient.t(), unit_x).mul_(head.scale / batch);
  return (by_unit - unit_w * (by_unit * unit_w).sum(1, /*keepdim=*/true)) / norms;
}

class Ours {
 public:
  explicit Ours(Settings& settings)
      : settings_(settings),
        device_(settings.head.device),
        comm_(make_comm(settings), device_),
        before_(memory()),
        share_(settings.batch / settings.world) {
    const bench::Stopwatch watch;
    head_ = std::make_unique<PartialFc>(comm_, settings.head);
    if (settings.centres.defined()) {
      head_->weight().copy_(settings.centres.narrow(0, head_->rows().first, head_->rows().count));
      settings.centres.reset();  // its pages would count as resident
    }
    bench::synchronize(device_);
    init_seconds_ = watch.milliseconds() / 1000;
    embeddings_ = settings.embeddings.to(device_);
    labels_ = settings.labels.to(at::kLong).to(device_);
    bench::reset_peaks(device_);
  }

  void step() {
    const bool timed = number_ >= settings_.warmup;
    const auto [embeddings, labels] = next();
    comm_.barrier();
    bench::synchronize(device_);
    comm_.forward_end.reset();
    const bench::Stopwatch watch;
    const Moment begin(device_);
    const auto result = head_->forward_backward(embeddings, labels, number_ - 1);
    const Moment middle(device_);
    if (settings_.gradient_error && number_ == 1) {
      const at::Tensor exact = exact_gradient(settings_.head, embeddings, labels,
                                              head_->weight().index_select(0, head_->sampled()), head_->sampled());
      const at::Tensor error = (head_->sampled_gradient().cpu().to(at::kDouble) - exact).abs();
      gradient_error_ = (error.max() / exact.abs().max()).item<double>();
      bench::reset_peaks(device_);  // without those of float64
    }
    head_->update_rows(settings_.learning_rate, settings_.momentum, settings_.weight_decay);
    const Moment end(device_);
    bench::synchronize(device_);
    const double whole = watch.milliseconds();
    losses_.push_back(result.loss.item<double>());
    if (number_ == 1) head_->check_labels();
    if (!timed) return;
    times_[0].push_back(whole);
    times_[1].push_back(begin.milliseconds_until(comm_.forward_end ? *comm_.forward_end : middle));
    if (comm_.forward_end) times_[2].push_back(comm_.forward_end->milliseconds_until(middle));
    times_[3].push_back(middle.milliseconds_until(end));
  }

  // Of the centre and what its optimizer keeps: what a checkpoint has of a class.
  int64_t stored_bytes_per_class() {
    int64_t bytes = 0;
    for (const RowTensor& tensor : head_->row_tensors()) bytes += tensor.values.size(1) * tensor.values.element_size();
    return bytes;
  }

  Figures finish() {
    Figures figures{.name = "facetrain",
                    .median = {bench::median(times_[0]), bench::median(times_[1]),
                               times_[2].empty() ? -1 : bench::median(times_[2]), bench::median(times_[3])},
                    .rss_mib = bench::resident_memory().peak / kMiB,
                    .bytes_per_class = static_cast<double>(memory().peak - before_.now) / head_->rows().count,
                    .init_seconds = init_seconds_,
                    .gradient_error = gradient_error_,
                    .sampled = head_->sampled().size(0),
                    .losses = losses_};
    if (device_.is_cuda()) figures.back_to_back = back_to_back();
    return figures;
  }

 private:
  bench::Memory memory() const { return device_.is_cuda() ? bench::device_memory(device_) : bench::resident_memory(); }

  // This rank's part of the next batch.
  std::pair<at::Tensor, at::Tensor> next() {
    const int64_t batches = embeddings_.size(0) / settings_.batch;
    const int64_t first = number_++ % batches * settings_.batch + settings_.rank * share_;
    return {embeddings_.narrow(0, first, share_), labels_.narrow(0, first, share_)};
  }

  double back_to_back() {
    constexpr int kSteps = 10;
    bench::synchronize(device_);
    const bench::Stopwatch watch;
    for (int i = 0; i < kSteps; ++i) {
      const auto [embeddings, labels] = next();
      head_->forward_backward(embeddings, labels, number_ - 1);
      head_->update_rows(settings_.learning_rate, settings_.momentum, settings_.weight_decay);
    }
    bench::synchronize(device_);
    return watch.milliseconds() / kSteps;
  }

  const Settings& settings_;
  const at::Device device_;
  MarkingComm comm_;
  const bench::Memory before_;  // the centres
  const int64_t share_;
  std::unique_ptr<PartialFc> head_;
  at::Tensor embeddings_, labels_;
  int64_t number_ = 0;
  double init_seconds_ = 0, gradient_error_ = -1;
  std::array<std::vector<double>, 4> times_;  // as in Times
  std::vector<double> losses_;
};

// The reference, until it ends: for example for lack of memory.
class Theirs {
 public:
  Theirs(const Arguments& arguments, const Settings& settings) : settings_(settings) {
    folder_ = (std::filesystem::temp_directory_path() / "pfc_bench_XXXXXX").string();
    if (mkdtemp(folder_.data()) == nullptr) throw std::runtime_error("no temporary folder");
    const std::string embeddings = folder_ + "/embeddings.npy", labels = folder_ + "/labels.npy";
    bench::write_npy(embeddings, settings.embeddings.contiguous());
    bench::write_npy(labels, settings.labels.to(at::kLong).contiguous());
    const PfcOptions& head = settings.head;
    std::vector<std::string> given{"--embeddings", embeddings, "--labels", labels};
    const auto pass = [&given](const std::string& option, const auto& value) {
      std::ostringstream text;
      text << std::setprecision(9) << value;
      given.push_back("--" + option);
      given.push_back(text.str());
    };
    pass("classes", head.num_classes);
    pass("batch", settings.batch);
    pass("sample-rate", head.sample_rate);
    pass("margin", arguments.text("margin", "1,0,0.4"));
    pass("scale", head.scale);
    pass("learning-rate", settings.learning_rate);
    pass("momentum", settings.momentum);
    pass("weight-decay", settings.weight_decay);
    pass("precision", name_of(settings.head.precision));
    pass("device", head.device.is_cuda() ? "cuda" : "cpu");
    pass("threads", settings.threads);
    for (const std::string option : {"centres", "insightface"}) {
      if (arguments.has(option)) pass(option, arguments.text(option, ""));
    }
    attempt([&] {
      process_ = std::make_unique<Reference>(
          arguments.text("reference", ""),
          arguments.text("reference-script", bench::bench_folder() / "pfc/reference.py"), given);
      figures_.name = process_->name();
    });
  }
  ~Theirs() { std::filesystem::remove_all(folder_); }

  void step() {
    attempt([&] {
      const std::string line = process_->step();
      const auto value = [&line](const char* key) { return bench::number_in(line, key).value_or(-1); };
      const double forward = value("forwardMs"), backward = value("backwardMs"), optimizer = value("optimizerMs");
      figures_.losses.push_back(value("loss"));
      if (static_cast<int64_t>(figures_.losses.size()) <= settings_.warmup) return;
      times_[0].push_back(forward + backward + optimizer);
      times_[1].push_back(forward);
      times_[2].push_back(backward);
      times_[3].push_back(optimizer);
    });
  }

  // Nothing when it has ended early.
  std::optional<Figures> finish() {
    attempt([&] {
      const std::string line = process_->finish();
      figures_.rss_mib = bench::number_in(line, "rssMiB").value_or(-1);
      figures_.bytes_per_class = bench::number_in(line, "bytesPerClass").value_or(-1);
      figures_.median = {bench::median(times_[0]), bench::median(times_[1]), bench::median(times_[2]),
                         bench::median(times_[3])};
    });
    return process_ ? std::optional(figures_) : std::nullopt;
  }

 private:
  template <class Body>
  void attempt(Body body) {
    if (ended_) return;
    try {
      body();
    } catch (const std::runtime_error& error) {
      std::cerr << error.what() << "; going on without it\n";
      process_.reset();
      ended_ = true;
    }
  }

  const Settings& settings_;
  std::string folder_;
  bool ended_ = false;
  std::unique_ptr<Reference> process_;
  std::array<std::vector<double>, 4> times_;
  Figures figures_;
};

std::string value_or_null(double value) {
  if (value < 0) return "null";
  std::ostringstream text;
  text << std::setprecision(6) << value;
  return text.str();
}

std::string json_of(const Figures& figures) {
  std::ostringstream out;
  out << R"("name":")" << figures.name << R"(","stepMs":)" << value_or_null(figures.median.step) << R"(,"forwardMs":)"
      << value_or_null(figures.median.forward) << R"(,"backwardMs":)" << value_or_null(figures.median.backward)
      << R"(,"optimizerMs":)" << value_or_null(figures.median.optimizer) << R"(,"backToBackMs":)"
      << value_or_null(figures.back_to_back) << R"(,"rssMiB":)" << value_or_null(figures.rss_mib)
      << R"(,"bytesPerClass":)" << value_or_null(figures.bytes_per_class) << R"(,"gradientError":)"
      << value_or_null(figures.gradient_error) << R"(,"losses":[)";
  for (size_t i = 0; i < figures.losses.size(); ++i) {
    out << (i == 0 ? "" : ",") << std::setprecision(9) << figures.losses[i];
  }
  out << "]";
  return out.str();
}

void print_table(const Settings& settings, const std::vector<Figures>& all) {
  std::cout << "Partial FC step: " << settings.head.num_classes << " classes of " << settings.head.embedding_dim
            << " numbers, batch " << settings.batch << ", sample rate " << settings.head.sample_rate << " ("
            << all[0].sampled << " rows), " << settings.world << " rank(s), " << settings.threads << " thread(s), "
            << (settings.head.device.is_cuda() ? "cuda" : "cpu") << ", " << name_of(settings.head.precision)
            << (settings.head.bf16_rows ? ", bf16 rows" : "") << (settings.head.host_rows ? " on the host" : "") << ", "
            << name_of(settings.head.row_optimizer) << (settings.head.dense_update ? " dense" : "") << "; median of "
            << settings.steps - settings.warmup << " steps\n";
  const auto row = [](const std::string& name, const std::vector<std::string>& cells) {
    std::cout << std::left << std::setw(18) << name << std::right;
    for (const std::string& cell : cells) std::cout << std::setw(14) << cell;
    std::cout << "\n";
  };
  const auto cell = [](double value, int digits) {
    std::ostringstream text;
    if (value >= 0) text << std::fixed << std::setprecision(digits) << value;
    return value >= 0 ? text.str() : "-";
  };
  const auto small = [](double value) {
    std::ostringstream text;
    if (value >= 0) text << std::scientific << std::setprecision(1) << value;
    return value >= 0 ? text.str() : "-";
  };
  row("", {"step ms", "forward", "backward", "optimizer", "back to back", "RSS MiB", "bytes/class", "gradient err.",
           "last loss"});
  for (const Figures& each : all) {
    row(each.name, {cell(each.median.step, 2), cell(each.median.forward, 2), cell(each.median.backward, 2),
                    cell(each.median.optimizer, 2), cell(each.back_to_back, 2), cell(each.rss_mib, 0),
                    cell(each.bytes_per_class, 0), small(each.gradient_error), cell(each.losses.back(), 5)});
  }
  if (all.size() > 1) row("ratio", {cell(all[1].median.step / all[0].median.step, 2)});
}

int run(const Arguments& arguments, int argc, char** argv) {
  Settings settings = settings_of(arguments);
  if (settings.head.device.is_cuda() && at::detail::getCUDAHooks().deviceCount() <= settings.rank) {
    throw std::runtime_error(has_nccl() ? "--device cuda: there are fewer CUDA devices than ranks"
                                        : "--device cuda: this build has no CUDA");
  }
  at::set_num_threads(settings.threads);
  std::vector<test::Child> ranks;
  if (settings.world > 1 && !arguments.has("rank")) {
    settings.port = test::free_port();
    for (int rank = 1; rank < settings.world; ++rank) {
      std::vector<std::string> command(argv + 1, argv + argc);
      for (const std::string& more :
           {std::string("--rank"), std::to_string(rank), std::string("--port"), std::to_string(settings.port)}) {
        command.push_back(more);
      }
      ranks.emplace_back(command);
    }
  }
  Ours ours(settings);
  std::optional<Theirs> theirs;
  if (arguments.text("reference", "none") != "none" && settings.world == 1) theirs.emplace(arguments, settings);
  for (int64_t step = 0; step < settings.steps; ++step) {
    ours.step();
    if (theirs) theirs->step();
  }
  const int64_t stored_bytes = ours.stored_bytes_per_class();
  std::vector<Figures> all{ours.finish()};
  for (test::Child& rank : ranks) {
    if (rank.wait() != 0) throw std::runtime_error("a rank has failed");
  }
  if (settings.rank != 0) return 0;
  if (theirs) {
    if (const auto figures = theirs->finish()) all.push_back(*figures);
  }

  if (!arguments.has("json")) print_table(settings, all);
  const char* const preloaded = std::getenv("LD_PRELOAD");
  const bool tcmalloc = preloaded != nullptr && std::string(preloaded).find("tcmalloc") != std::string::npos;
  std::cout << R"({"benchmark":"pfc","classes":)" << settings.head.num_classes << R"(,"batch":)" << settings.batch
            << R"(,"dim":)" << settings.head.embedding_dim << R"(,"sampleRate":)" << settings.head.sample_rate
            << R"(,"world":)" << settings.world << R"(,"threads":)" << settings.threads << R"(,"precision":")"
            << name_of(settings.head.precision) << R"(","rowsPrecision":")"
            << (settings.head.bf16_rows ? "bf16" : "fp32") << R"(","tier":")"
            << (settings.head.host_rows ? "host" : "device") << R"(","optimizer":")"
            << name_of(settings.head.row_optimizer) << R"(","rowUpdate":")"
            << (settings.head.dense_update ? "dense" : "lazy") << R"(","storedBytesPerClass":)" << stored_bytes
            << R"(,"device":")" << (settings.head.device.is_cuda() ? "cuda" : "cpu") << R"(","allocator":")"
            << (tcmalloc ? "tcmalloc" : "malloc") << R"(","initSeconds":)" << value_or_null(all[0].init_seconds)
            << R"(,"sampledRows":)" << all[0].sampled << "," << json_of(all[0]) << R"(,"reference":)"
            << (all.size() > 1 ? "{" + json_of(all[1]) + "}" : "null") << "}\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);  // a reference that has ended is an error of the write
  const Arguments arguments(argc, argv, kUsage, kOptions);
  try {
    return run(arguments, argc, argv);
  } catch (const std::exception& error) {
    std::cerr << message_of(error) << "\n";
    return 1;
  }
}
