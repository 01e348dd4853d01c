// The INT7 runtime: a network, planned once, that computes pictures without allocating memory.
//
// The plan decides which layers run together in one pass over registers (layout.h), where each tensor lies (one arena,
// whose places are used again after a tensor's last reader), and which kernels compute it. Results are those of
// kernels/reference.h, bit for bit, with every instruction set and number of threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "int7/invalid_model.h"
#include "int7/kernels.h"
#include "int7/network.h"
#include "kernels/thread_pool.h"

namespace facetrain::int7 {

class Step;
struct WinogradPlan;
struct Stored;

// Throws ModelTooLarge if a model takes more bytes than it may.
void check_memory(int64_t bytes, int64_t largest_memory);

class Runtime {
 public:
  // Plans and packs the weights. `isa` must be supported. Throws Error for a node whose operators do not fit,
  // InvalidModel for a network beyond the kernels' bounds, ModelTooLarge for one that may take more than
  // `largest_memory` bytes in all (network, packed weights, and a context with one thread), before it allocates them.
  explicit Runtime(Network network, Isa isa = best_isa(), int64_t largest_memory = INT64_MAX);
  // The same with kernels that no instruction set stands for. They outlive it.
  Runtime(Network network, const Kernels& kernels, int64_t largest_memory = INT64_MAX);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Without the weights of convolutions, which are packed.
  const Network& network() const { return network_; }
  // Numbers of all outputs.
  int64_t output_size() const;
  // Bytes of a context.
  int64_t context_bytes(int threads) const;

  // The memory of one run at a time, by at most `threads` threads.
  class Context {
   public:
    explicit Context(const Runtime& runtime, int threads = 1);
    // The pointers below are into bytes_: a copy would share the first one's memory.
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;
    Context(Context&&) = default;
    Context& operator=(Context&&) = default;

   private:
    friend class Runtime;
    int threads_;
    std::vector<uint8_t> bytes_;
    uint8_t* arena_;
    int32_t* scratch_;  // of all threads
  };

  // Computes the outputs of a picture [height, width, channels] of bytes, one after the other, each [channels, height,
  // width]. Calls with different contexts may overlap.
  void run(Context& context, const uint8_t* picture, float* output) const;
  // The same on the threads of a pool, each of which computes a part of every step. Between steps they wait actively,
  // so this wants as many free cores.
  void run(Context& context, const uint8_t* picture, float* output, ThreadPool& pool) const;

  struct StepTime {
    std::string name;
    int64_t macs;
    double seconds;
  };
  // The same, with the time of each step.
  std::vector<StepTime> run_timed(Context& context, const uint8_t* picture, float* output) const;

 private:
  struct Border {
    int64_t offset, bytes;
    int zero;  // the byte of the integer 0
  };
  struct Planned {
    std::unique_ptr<Step> step;
    std::vector<Border> borders;  // of the tensors that it stores
  };

  void store_tensors();
  void plan(int64_t largest_memory);
  std::unique_ptr<NodeLayer> node_of(const LayerSpec& layer) const;
  void add_borders(Planned& planned, const Stored& stored) const;
  void run_step(const Planned& planned, Context& context, const uint8_t* picture, float* output, int part = 0,
                int parts = 1) const;

  Network network_;
  const Kernels& kernels_;
  std::vector<WinogradPlan> winograd_;  // by layer
  std::vector<Stored> stored_;
  std::vector<Planned> steps_;
  int64_t arena_bytes_ = 0;  // of all tensors that live at the same time
  int64_t scratch_ = 0;      // integers of a thread
};

// Multiply-accumulates a second of one thread in a loop of the instruction set's products alone, with all operands in
// registers: what no convolution can exceed. 0 for Isa::portable. Takes about 50 ms.
double measure_peak(Isa isa);

}  // namespace facetrain::int7
