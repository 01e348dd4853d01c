// The steps of a plan. Each computes a stored tensor from others; the last one copies the outputs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "int7/exact.h"
#include "int7/layout.h"
#include "nodes/node_layer.h"

namespace facetrain::int7 {

// The memory of one run.
struct Memory {
  uint8_t* arena = nullptr;
  const uint8_t* picture = nullptr;  // [height, width, channels]
  float* output = nullptr;           // of all outputs, each [channels, height, width]
};

// Integers of scratch memory that any step but Winograd's needs for each thread: the sums of the largest tile.
inline constexpr int64_t kTileScratch = kTilePixels * kBlock;

// The part of a step that one of `count` threads computes.
struct Part {
  int index = 0, count = 1;
  int32_t* scratch = nullptr;  // kTileScratch or WinogradPlan::scratch integers of this thread

  int begin(int total) const { return static_cast<int>(int64_t{total} * index / count); }
  int end(int total) const { return static_cast<int>(int64_t{total} * (index + 1) / count); }
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const Memory& memory, const Part& part) const = 0;

  std::string name;
  int64_t macs = 0;
};

// How Winograd computes a convolution of 3x3 taps and stride 1, and what that takes: tiles of int16, or rows of bytes.
struct WinogradPlan {
  const Winograd* tiles = nullptr;
  const RowWinograd* rows = nullptr;
  int bottom = 0, right = 0;  // the borders that it reads below and beside the convolution's input
  int64_t packed_bytes = 0;   // of weights and biases
  int64_t scratch = 0;        // integers of scratch memory for each thread

  explicit operator bool() const { return tiles || rows; }
};

// What the makers of steps know.
struct StepContext {
  const Network& network;
  const std::vector<Stored>& stored;  // by tensor; outlives the step
  const Kernels& kernels;
  const std::vector<WinogradPlan>& winograd;  // by layer
};

// The plan for a convolution of `x`; none if Winograd cannot compute it, or is not faster.
WinogradPlan winograd_plan(const LayerSpec& layer, const TensorSpec& x, const Kernels& kernels);
WinogradPlan row_winograd_plan(const LayerSpec& layer, const TensorSpec& x, const Kernels& kernels);

// The bytes that a convolution's step needs at most for its packed weights and biases. Each output of a convolution in
// groups has zeros for the inputs of the groups beside it: up to 64 times the bytes of its own weights.
int64_t packed_bytes(const ConvShape& shape);

std::unique_ptr<Step> pixels_step(const StepContext& context);
std::unique_ptr<Step> conv_step(const StepContext& context, const Group& group);
std::unique_ptr<Step> winograd_step(const StepContext& context, const Group& group);
std::unique_ptr<Step> row_winograd_step(const StepContext& context, const Group& group);
std::unique_ptr<Step> depthwise_step(const StepContext& context, const Group& group);
std::unique_ptr<Step> elements_step(const StepContext& context, const Group& group);
std::unique_ptr<Step> pool_step(const StepContext& context, const Group& group);
// Of a node whose result is an integer's function of an integer (NodeLayer::table).
std::unique_ptr<Step> table_step(const StepContext& context, const Group& group, const NodeLayer& node);
// Where a layer of unpadded tensors works, as offsets in the arena.
struct DensePlaces {
  // Of the integers of each input, and then of the output; -1 for real tensors, which are unpadded as they are.
  std::vector<int64_t> copies;
  int64_t scratch = 0;  // dense_scratch() bytes
};
int64_t dense_scratch(const LayerSpec& layer, const NodeLayer* node);
// Of a node, or of a layer without weights that writes a real tensor; `node` is null for the latter.
std::unique_ptr<Step> dense_step(const StepContext& context, const Group& group, std::unique_ptr<NodeLayer> node,
                                 DensePlaces places);
std::unique_ptr<Step> outputs_step(const StepContext& context);

// The epilogue of a group with the arrays that it points to.
class GroupEpilogue {
 public:
  GroupEpilogue() = default;
  GroupEpilogue(const StepContext& context, const Group& group);
  GroupEpilogue(const GroupEpilogue&) = delete;
  GroupEpilogue& operator=(const GroupEpilogue&) = delete;

  // Stores `pixels` pixels of row y from column x on, channels [channel, channel + channels) of them; from `sums`
  // [pixels][sums_stride], or from the input of a group without a convolution.
  void run(const Memory& memory, int y, int x, int pixels, int channel, int channels, const int32_t* sums,
           int sums_stride) const;
  // Whether all tensors that it touches are flat, so that a row may be longer than the width.
  bool flat() const;

 private:
  PointwiseStage pointwise_of(const StepContext& context, int layer, ExactPointwise& numbers);

  Epilogue epilogue_;
  void (*function_)(const Epilogue&, const EpilogueRow&) = nullptr;
  std::vector<float> multipliers_;
  ExactPointwise first_, last_;
  const Stored *source_ = nullptr, *second_ = nullptr, *middle_ = nullptr, *y_ = nullptr;
};

}  // namespace facetrain::int7
