#include "int7/runtime.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "int7/own_processors.h"
#include "int7/spin_barrier.h"
#include "int7/step.h"

namespace facetrain::int7 {
namespace {

constexpr int64_t kAlignment = 64;

// Whether the layer is a convolution that is not depthwise.
bool mixes_channels(const LayerSpec& layer) { return layer.kind == LayerSpec::Kind::conv && !layer.shape.depthwise(); }

}  // namespace

const Kernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512vnni) return avx512vnni_kernels();
  if (isa == Isa::avxvnni) return avxvnni_kernels();
  if (isa == Isa::avx2) return avx2_kernels();
  if (isa == Isa::avx2direct) return avx2direct_kernels();
  if (isa == Isa::avx2int32) return avx2int32_kernels();
#elif defined(__aarch64__)
  if (isa == Isa::neondot) return neondot_kernels();
  if (isa == Isa::neon) return neon_kernels();
#endif
  (void)isa;
  return portable_kernels();
}

void check_memory(int64_t bytes, int64_t largest_memory) {
  if (bytes <= largest_memory) return;
  throw ModelTooLarge("takes " + std::to_string(bytes) + " bytes of memory",
                      "at most " + std::to_string(largest_memory));
}

Runtime::Runtime(Network network, Isa isa, int64_t largest_memory)
    : Runtime(std::move(network), kernels_for(isa), largest_memory) {}

Runtime::Runtime(Network network, const Kernels& kernels, int64_t largest_memory)
    : network_(std::move(network)), kernels_(kernels) {
  for (const LayerSpec& layer : network_.layers)
    winograd_.push_back(winograd_plan(layer, network_.tensors[layer.inputs[0]], kernels_));
  store_tensors();
  plan(largest_memory);
}

Runtime::~Runtime() = default;

// Chooses the layout of every tensor. A picture that only dense convolutions read has its channels padded to four, the
// bytes of a step; all others have whole vectors.
void Runtime::store_tensors() {
  for (size_t t = 0; t < network_.tensors.size(); ++t) {
    const TensorSpec& tensor = network_.tensors[t];
    Stored stored{.width = tensor.width, .height = tensor.height, .channels = tensor.channels};
    stored.real = tensor.real;
    if (tensor.real) {
      stored.pitch = tensor.channels * static_cast<int>(sizeof(float));
      stored_.push_back(stored);
      continue;
    }
    constexpr int kOperands = 2 * kLargestOperand + 1;
    const bool is_operand = tensor.range.size() <= kOperands;
    stored.zero = is_operand ? 1 - tensor.range.low : 0;
    // A wider one is signed bytes, which a convolution may want unsigned.
    const int wide_zero = kernels_.signed_bytes ? 0 : 1 + kLargestWideOperand;
    bool only_mixed = t == 0;
    for (size_t l = 0; l < network_.layers.size(); ++l) {
      const LayerSpec& layer = network_.layers[l];
      if (std::find(layer.inputs.begin(), layer.inputs.end(), static_cast<int>(t)) == layer.inputs.end()) continue;
      only_mixed = only_mixed && mixes_channels(layer);
      if (layer.kind != LayerSpec::Kind::conv) continue;
      if (tensor.range.low < -kLargestWideOperand || tensor.range.high > kLargestWideOperand)
        throw InvalidModel("layer '" + layer.name + "': its input has integers beyond 127", "integers up to 127");
      if (!is_operand) stored.zero = wide_zero;
      stored.top = std::max(stored.top, layer.shape.pads[0]);
      stored.left = std::max(stored.left, layer.shape.pads[1]);
      stored.bottom = std::max(stored.bottom, layer.shape.pads[2]);
      stored.right = std::max(stored.right, layer.shape.pads[3]);
      stored.bottom = std::max(stored.bottom, winograd_[l].bottom);
      stored.right = std::max(stored.right, winograd_[l].right);
    }
    stored.pitch = least_multiple(stored.channels, only_mixed ? 4 : kVector);
    if (stored.bytes() > INT32_MAX)
      throw InvalidModel("a tensor of more than 2^31 bytes with its padding", "a smaller one");
    stored_.push_back(stored);
  }
}

std::unique_ptr<NodeLayer> Runtime::node_of(const LayerSpec& layer) const {
  std::vector<NodeTensor> inputs;
  for (const int input : layer.inputs) inputs.push_back(network_.tensors[input].for_node());
  return std::make_unique<NodeLayer>(layer.node, inputs, network_.tensors[layer.output].for_node(),
                                     "layer '" + layer.name + "'");
}

void Runtime::plan(int64_t largest_memory) {
  using Kind = LayerSpec::Kind;
  const std::vector<Group> groups = fuse(network_);
  // Step 0 looks up the picture, step g + 1 runs group g, and the last copies the outputs.
  const auto count = static_cast<int>(groups.size());
  std::vector<int> first(network_.tensors.size(), -1), last(network_.tensors.size(), -1);
  first[0] = last[0] = 0;
  std::vector<bool> dense(groups.size());
  std::vector<std::unique_ptr<NodeLayer>> nodes(groups.size());
  for (int g = 0; g < count; ++g) {
    const Group& group = groups[g];
    const LayerSpec& head = network_.layers[group.head];
    if (head.kind == Kind::node) nodes[g] = node_of(head);
    const bool in_registers = head.kind == Kind::pointwise || head.kind == Kind::add;
    dense[g] = nodes[g] ? nodes[g]->table() == nullptr : in_registers && stored_[group.output].real;
    for (const int tensor : {group.middle, group.output}) {
      if (tensor >= 0) first[tensor] = last[tensor] = g + 1;
    }
    for (const int layer : {group.head, group.first, group.add, group.last}) {
      if (layer < 0) continue;
      for (const int input : network_.layers[layer].inputs) last[input] = std::max(last[input], g + 1);
    }
  }
  for (const int output : network_.outputs) last[output] = count + 1;
  Arena arena;
  std::vector<int> piece(network_.tensors.size(), -1);
  for (size_t t = 0; t < network_.tensors.size(); ++t) {
    if (first[t] >= 0) piece[t] = arena.add(stored_[t].bytes(), first[t], last[t]);
  }
  std::vector<std::vector<int>> copies(groups.size());
  std::vector<int> scratch(groups.size());
  for (int g = 0; g < count; ++g) {
    if (!dense[g]) continue;
    const LayerSpec& head = network_.layers[groups[g].head];
    const auto add_copy = [&](int tensor) {
      const int64_t bytes = network_.tensors[tensor].size() + kOverread;
      copies[g].push_back(stored_[tensor].real ? -1 : arena.add(bytes, g + 1, g + 1));
    };
    for (const int input : head.inputs) add_copy(input);
    add_copy(head.output);
    scratch[g] = arena.add(dense_scratch(head, nodes[g].get()), g + 1, g + 1);
  }
  arena.place();
  arena_bytes_ = arena.bytes();
  // A small file may describe large tensors, and groups whose packed weights are far larger than they are.
  int64_t packed = 0;
  scratch_ = kTileScratch;
  for (size_t l = 0; l < network_.layers.size(); ++l) {
    const LayerSpec& layer = network_.layers[l];
    if (layer.kind != Kind::conv) continue;
    packed += winograd_[l] ? winograd_[l].packed_bytes : packed_bytes(layer.shape);
    scratch_ = std::max(scratch_, winograd_[l].scratch);
  }
  check_memory(network_.bytes() + packed + context_bytes(1), largest_memory);
  for (size_t t = 0; t < stored_.size(); ++t) {
    if (piece[t] >= 0) stored_[t].offset = arena.offset(piece[t]);
  }

  const StepContext context{network_, stored_, kernels_, winograd_};
  Planned picture{.step = pixels_step(context), .borders = {}};
  add_borders(picture, stored_[0]);
  steps_.push_back(std::move(picture));
  for (int g = 0; g < count; ++g) {
    const Group& group = groups[g];
    const LayerSpec& head = network_.layers[group.head];
    Planned planned;
    if (dense[g]) {
      DensePlaces places{.copies = {}, .scratch = arena.offset(scratch[g])};
      for (const int copy : copies[g]) places.copies.push_back(copy < 0 ? -1 : arena.offset(copy));
      planned.step = dense_step(context, group, std::move(nodes[g]), std::move(places));
    } else if (head.kind == Kind::node) {
      planned.step = table_step(context, group, *nodes[g]);
    } else if (winograd_[group.head].tiles) {
      planned.step = winograd_step(context, group);
    } else if (winograd_[group.head].rows) {
      planned.step = row_winograd_step(context, group);
    } else if (head.kind == Kind::conv) {
      planned.step = mixes_channels(head) ? conv_step(context, group) : depthwise_step(context, group);
    } else if (head.kind == Kind::pool) {
      planned.step = pool_step(context, group);
    } else {
      planned.step = elements_step(context, group);
    }
    planned.step->name = head.name;
    for (const int layer : {group.first, group.add, group.last}) {
      if (layer >= 0 && layer != group.head) planned.step->name += " + " + network_.layers[layer].name;
    }
    if (head.kind == Kind::conv) {
      planned.step->macs = head.shape.macs();
      // The step has packed them. {} would keep the memory.
      network_.layers[group.head].weights = std::vector<int8_t>();
    }
    for (const int tensor : {group.middle, group.output}) {
      if (tensor >= 0) add_borders(planned, stored_[tensor]);
    }
    steps_.push_back(std::move(planned));
  }
  steps_.push_back({.step = outputs_step(context), .borders = {}});
}

int64_t Runtime::output_size() const {
  int64_t size = 0;
  for (const int output : network_.outputs) size += network_.tensors[output].size();
  return size;
}

// The stretches of memory around the picture: neighboring rows share one.
void Runtime::add_borders(Planned& planned, const Stored& stored) const {
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin < end) planned.borders.push_back({begin, end - begin, stored.zero});
  };
  if (stored.flat() && stored.top == 0 && stored.bottom == 0) return;
  add(stored.offset, stored.at(0, 0));
  for (int y = 0; y + 1 < stored.height; ++y) add(stored.at(y, stored.width), stored.at(y + 1, 0));
  add(stored.at(stored.height - 1, stored.width), stored.offset + stored.bytes());
}

int64_t Runtime::context_bytes(int threads) const {
  const int64_t arena = (arena_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
  return kAlignment + arena + int64_t{threads} * scratch_ * int64_t{sizeof(int32_t)};
}

Runtime::Context::Context(const Runtime& runtime, int threads) : threads_(threads) {
  const int64_t arena = (runtime.arena_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
  bytes_.resize(runtime.context_bytes(threads));
  const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
  arena_ = bytes_.data() + (kAlignment - address % kAlignment) % kAlignment;
  scratch_ = reinterpret_cast<int32_t*>(arena_ + arena);
}

void Runtime::run_step(const Planned& planned, Context& context, const uint8_t* picture, float* output, int part,
                       int parts) const {
  if (part == 0) {
    for (const Border& border : planned.borders) std::memset(context.arena_ + border.offset, border.zero, border.bytes);
  }
  planned.step->run({context.arena_, picture, output},
                    {.index = part, .count = parts, .scratch = context.scratch_ + part * scratch_});
}

void Runtime::run(Context& context, const uint8_t* picture, float* output) const {
  for (const Planned& planned : steps_) run_step(planned, context, picture, output);
}

void Runtime::run(Context& context, const uint8_t* picture, float* output, ThreadPool& pool) const {
  const int threads = std::min(pool.threads(), context.threads_);
  if (threads == 1) return run(context, picture, output);
  SpinBarrier barrier(threads);
  OwnProcessors processors;
  const auto run_part = [&](int64_t part, int) {
    processors.take();
    for (const Planned& planned : steps_) {
      run_step(planned, context, picture, output, static_cast<int>(part), threads);
      barrier.wait();
    }
  };
  pool.parallel_for(threads, std::cref(run_part));  // A std::function of the lambda itself would allocate memory.
}

std::vector<Runtime::StepTime> Runtime::run_timed(Context& context, const uint8_t* picture, float* output) const {
  std::vector<StepTime> times;
  for (const Planned& planned : steps_) {
    const auto start = std::chrono::steady_clock::now();
    run_step(planned, context, picture, output);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    times.push_back({planned.step->name, planned.step->macs, seconds.count()});
  }
  return times;
}

double measure_peak(Isa isa) {
  const Kernels& kernels = kernels_for(isa);
  if (kernels.bare_products == nullptr) return 0;
  constexpr int64_t kRounds = 200000;
  double best = 0;
  for (int repeat = 0; repeat < 10; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    const int64_t macs = kernels.bare_products(kRounds);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(macs) / seconds.count());
  }
  return best;
}

}  // namespace facetrain::int7
