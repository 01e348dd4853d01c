#include "int7/step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/elementwise.h"

namespace facetrain::int7 {
namespace {

template <typename T>
std::vector<T> padded(std::vector<T> values) {
  values.resize((values.size() + kBlock - 1) / kBlock * kBlock);
  return values;
}

class PixelsStep final : public Step {
 public:
  explicit PixelsStep(const StepContext& context)
      : stored_(&context.stored[0]), table_(context.network.pixels.size()), reals_(context.network.real_pixels) {
    name = "picture";
    for (size_t i = 0; i < table_.size(); ++i) {
      table_[i] = static_cast<uint8_t>(context.network.pixels[i] + stored_->zero);
    }
  }

  void run(const Memory& memory, const Part& part) const override {
    const int channels = stored_->channels;
    for (int y = part.begin(stored_->height); y < part.end(stored_->height); ++y) {
      const uint8_t* from = memory.picture + int64_t{y} * stored_->width * channels;
      uint8_t* to = memory.arena + stored_->at(y, 0);
      if (stored_->real) {
        look_up(from, reals_.data(), channels, reinterpret_cast<float*>(to), channels);
      } else if (channels == 3) {
        look_up_colors(from, to);
      } else {
        look_up(from, table_.data(), channels, to, stored_->pitch);
      }
    }
  }

 private:
  template <typename T>
  void look_up(const uint8_t* from, const T* table, int channels, T* to, int pitch) const {
    for (int x = 0; x < stored_->width; ++x, to += pitch) {
      for (int c = 0; c < channels; ++c) to[c] = table[c * 256 + *from++];
    }
  }
  void look_up_colors(const uint8_t* from, uint8_t* to) const {
    const uint8_t *a = table_.data(), *b = a + 256, *c = b + 256;
    for (int x = 0; x < stored_->width; ++x, from += 3, to += stored_->pitch) {
      const uint8_t pixel[4] = {a[from[0]], b[from[1]], c[from[2]], 0};
      std::memcpy(to, pixel, sizeof pixel);
    }
  }

  const Stored* stored_;
  std::vector<uint8_t> table_;
  std::vector<float> reals_;
};

class ElementsStep final : public Step {
 public:
  ElementsStep(const StepContext& context, const Group& group)
      : epilogue_(context, group), stored_(&context.stored[group.output]) {}

  void run(const Memory& memory, const Part& part) const override {
    for (int y = part.begin(stored_->height); y < part.end(stored_->height); ++y) {
      epilogue_.run(memory, y, 0, stored_->width, 0, stored_->pitch, nullptr, 0);
    }
  }

 private:
  GroupEpilogue epilogue_;
  const Stored* stored_;
};

class PoolStep final : public Step {
 public:
  PoolStep(const StepContext& context, const Group& group)
      : source_(&context.stored[context.network.layers[group.head].inputs[0]]),
        y_(&context.stored[group.output]),
        y_range_(context.network.tensors[group.output].range) {
    scale_ = context.network.tensors[context.network.layers[group.head].inputs[0]].scale;
    y_scale_ = context.network.tensors[group.output].scale;
  }

  void run(const Memory& memory, const Part& part) const override {
    int32_t* sums = part.scratch;
    uint8_t* y = memory.arena + y_->at(0, 0);
    const auto area = static_cast<float>(source_->height * source_->width);
    const int vectors = source_->pitch / kVector;
    for (int v = part.begin(vectors); v < part.end(vectors); ++v) {
      std::fill_n(sums, kVector, 0);
      for (int row = 0; row < source_->height; ++row) {
        const uint8_t* x = memory.arena + source_->at(row, 0) + v * kVector;
        for (int p = 0; p < source_->width; ++p, x += source_->pitch) {
          for (int c = 0; c < kVector; ++c) sums[c] += static_cast<int8_t>(x[c] - source_->zero);
        }
      }
      for (int c = 0; c < kVector; ++c) {
        const float mean = static_cast<float>(sums[c]) * scale_ / area;
        if (y_->real) {
          if (v * kVector + c < y_->channels) reinterpret_cast<float*>(y)[v * kVector + c] = mean;
          continue;
        }
        y[v * kVector + c] =
            static_cast<uint8_t>(static_cast<int>(round_saturated(mean / y_scale_, y_range_)) + y_->zero);
      }
    }
  }

 private:
  const Stored *source_, *y_;
  float scale_, y_scale_;
  IntegerRange y_range_;
};

// A function of single integers, in the stored layouts of both tensors.
class TableStep final : public Step {
 public:
  TableStep(const StepContext& context, const Group& group, const NodeLayer& node)
      : x_(&context.stored[context.network.layers[group.head].inputs[0]]), y_(&context.stored[group.output]) {
    for (int byte = 0; byte < 256; ++byte) {
      const int integer = static_cast<int8_t>(byte - x_->zero);
      table_[byte] = static_cast<uint8_t>((*node.table())[integer + 128] + y_->zero);
    }
  }

  void run(const Memory& memory, const Part& part) const override {
    for (int row = part.begin(y_->height); row < part.end(y_->height); ++row) {
      const uint8_t* x = memory.arena + x_->at(row, 0);
      uint8_t* y = memory.arena + y_->at(row, 0);
      for (int p = 0; p < y_->width; ++p, x += x_->pitch, y += y_->pitch) {
        for (int c = 0; c < y_->channels; ++c) y[c] = table_[x[c]];
      }
    }
  }

 private:
  const Stored *x_, *y_;
  std::array<uint8_t, 256> table_;
};

// A layer that reads and writes tensors without padding.
class DenseStep final : public Step {
 public:
  DenseStep(const StepContext& context, const Group& group, std::unique_ptr<NodeLayer> node, DensePlaces places)
      : network_(context.network),
        layer_(context.network.layers[group.head]),
        stored_(context.stored),
        node_(std::move(node)),
        places_(std::move(places)) {}

  void run(const Memory& memory, const Part& part) const override {
    if (part.index != 0) return;
    uint8_t* scratch = memory.arena + places_.scratch;
    auto** inputs = reinterpret_cast<const void**>(scratch);
    for (size_t i = 0; i < layer_.inputs.size(); ++i) {
      const Stored& x = stored_[layer_.inputs[i]];
      inputs[i] = memory.arena + (x.real ? x.offset : places_.copies[i]);
      if (!x.real) gather(x, memory.arena, reinterpret_cast<int8_t*>(memory.arena + places_.copies[i]));
    }
    const Stored& y = stored_[layer_.output];
    uint8_t* to = memory.arena + (y.real ? y.offset : places_.copies.back());
    if (node_) {
      node_->run(inputs, to, scratch + address_bytes(layer_));
    } else {
      compute_real(inputs, reinterpret_cast<float*>(to));
    }
    if (!y.real) scatter(reinterpret_cast<const int8_t*>(to), y, memory.arena);
  }

  static int64_t address_bytes(const LayerSpec& layer) {
    return (static_cast<int64_t>(layer.inputs.size() * sizeof(void*)) + kLine - 1) / kLine * kLine;
  }

 private:
  static constexpr int64_t kLine = 64;

  // A layer without weights, before its result would be quantized.
  void compute_real(const void* const* inputs, float* y) const {
    const TensorSpec& x = network_.tensors[layer_.inputs[0]];
    const auto* a = static_cast<const int8_t*>(inputs[0]);
    if (layer_.kind == LayerSpec::Kind::pointwise) {
      pointwise(a, x.channels, x.area(), layer_.positive.data(), layer_.negative.data(), layer_.offset.data(), x.scale,
                y);
    } else {
      add(a, x.scale, static_cast<const int8_t*>(inputs[1]), network_.tensors[layer_.inputs[1]].scale, x.size(), y);
    }
  }

  static void gather(const Stored& from, const uint8_t* arena, int8_t* to) {
    for (int y = 0; y < from.height; ++y) {
      const uint8_t* x = arena + from.at(y, 0);
      for (int p = 0; p < from.width; ++p, x += from.pitch) {
        for (int c = 0; c < from.channels; ++c) *to++ = static_cast<int8_t>(x[c] - from.zero);
      }
    }
  }
  static void scatter(const int8_t* from, const Stored& to, uint8_t* arena) {
    for (int y = 0; y < to.height; ++y) {
      uint8_t* x = arena + to.at(y, 0);
      for (int p = 0; p < to.width; ++p, x += to.pitch) {
        for (int c = 0; c < to.channels; ++c) x[c] = static_cast<uint8_t>(*from++ + to.zero);
      }
    }
  }

  const Network& network_;
  const LayerSpec& layer_;
  const std::vector<Stored>& stored_;
  std::unique_ptr<NodeLayer> node_;
  DensePlaces places_;
};

class OutputsStep final : public Step {
 public:
  explicit OutputsStep(const StepContext& context) {
    name = "outputs";
    for (const int output : context.network.outputs) outputs_.push_back(&context.stored[output]);
  }

  void run(const Memory& memory, const Part& part) const override {
    if (part.index != 0) return;
    float* to = memory.output;
    for (const Stored* output : outputs_) {
      const auto* from = reinterpret_cast<const float*>(memory.arena + output->offset);
      const int area = output->height * output->width;
      for (int c = 0; c < output->channels; ++c) {
        for (int p = 0; p < area; ++p) *to++ = from[int64_t{p} * output->channels + c];
      }
    }
  }

 private:
  std::vector<const Stored*> outputs_;
};

}  // namespace

PointwiseStage GroupEpilogue::pointwise_of(const StepContext& context, int layer, ExactPointwise& numbers) {
  const LayerSpec& spec = context.network.layers[layer];
  const TensorSpec &x = context.network.tensors[spec.inputs[0]], &y = context.network.tensors[spec.output];
  numbers = exact_pointwise(spec.positive, spec.negative, spec.offset, x.scale, x.range, y.scale, y.range);
  numbers.positive = padded(std::move(numbers.positive));
  numbers.negative = padded(std::move(numbers.negative));
  numbers.offset = padded(std::move(numbers.offset));
  return {.positive = numbers.positive.data(),
          .negative = numbers.negative.data(),
          .offset = numbers.offset.empty() ? nullptr : numbers.offset.data(),
          .divides = numbers.divides,
          .x_scale = x.scale,
          .y_scale = y.scale,
          .low = static_cast<float>(y.range.low),
          .high = static_cast<float>(y.range.high)};
}

GroupEpilogue::GroupEpilogue(const StepContext& context, const Group& group) : function_(context.kernels.epilogue) {
  const Network& network = context.network;
  const LayerSpec& head = network.layers[group.head];
  int tensor = head.output;
  if (head.kind == LayerSpec::Kind::conv) {
    // In float32 and in this order: kernels/reference.h.
    for (const float scale : head.weight_scales) {
      multipliers_.push_back(network.tensors[head.inputs[0]].scale * scale / network.tensors[tensor].scale);
    }
    multipliers_ = padded(std::move(multipliers_));
    epilogue_.multipliers = multipliers_.data();
    epilogue_.low = static_cast<float>(network.tensors[tensor].range.low);
    epilogue_.high = static_cast<float>(network.tensors[tensor].range.high);
  } else {
    tensor = head.inputs[0];
    source_ = &context.stored[tensor];
    epilogue_.source_zero = source_->zero;
  }
  if (group.first >= 0) {
    epilogue_.has_first = true;
    epilogue_.first = pointwise_of(context, group.first, first_);
    tensor = network.layers[group.first].output;
  }
  if (group.add >= 0) {
    const LayerSpec& add = network.layers[group.add];
    const int second = add.inputs[0] == tensor ? add.inputs[1] : add.inputs[0];
    const TensorSpec &a = network.tensors[tensor], &b = network.tensors[second], &y = network.tensors[add.output];
    second_ = &context.stored[second];
    const ExactAdd exact = exact_add(a.scale, a.range, b.scale, b.range, y.scale, y.range);
    epilogue_.has_add = true;
    epilogue_.add = {.scale = exact.a,
                     .second_scale = exact.b,
                     .divides = exact.divides,
                     .y_scale = y.scale,
                     .low = static_cast<float>(y.range.low),
                     .high = static_cast<float>(y.range.high),
                     .second_zero = second_->zero};
  }
  if (group.last >= 0) {
    epilogue_.has_last = true;
    epilogue_.last = pointwise_of(context, group.last, last_);
  }
  if (group.middle >= 0) {
    middle_ = &context.stored[group.middle];
    epilogue_.middle_zero = middle_->zero;
  }
  y_ = &context.stored[group.output];
  epilogue_.zero = y_->zero;
}

bool GroupEpilogue::flat() const {
  for (const Stored* stored : {source_, second_, middle_, y_}) {
    if (stored && !stored->flat()) return false;
  }
  return true;
}

void GroupEpilogue::run(const Memory& memory, int y, int x, int pixels, int channel, int channels, const int32_t* sums,
                        int sums_stride) const {
  const auto at = [&](const Stored* stored) { return memory.arena + stored->at(y, x) + channel; };
  EpilogueRow row{.pixels = pixels, .channel = channel, .channels = channels, .sums = sums, .sums_stride = sums_stride};
  if (source_) {
    row.source = at(source_);
    row.source_stride = source_->pitch;
  }
  if (second_) {
    row.second = at(second_);
    row.second_stride = second_->pitch;
  }
  if (middle_) {
    row.middle = at(middle_);
    row.middle_stride = middle_->pitch;
  }
  row.y = at(y_);
  row.y_stride = y_->pitch;
  function_(epilogue_, row);
}

std::unique_ptr<Step> pixels_step(const StepContext& context) { return std::make_unique<PixelsStep>(context); }

std::unique_ptr<Step> elements_step(const StepContext& context, const Group& group) {
  return std::make_unique<ElementsStep>(context, group);
}

std::unique_ptr<Step> pool_step(const StepContext& context, const Group& group) {
  return std::make_unique<PoolStep>(context, group);
}

std::unique_ptr<Step> table_step(const StepContext& context, const Group& group, const NodeLayer& node) {
  return std::make_unique<TableStep>(context, group, node);
}

int64_t dense_scratch(const LayerSpec& layer, const NodeLayer* node) {
  return DenseStep::address_bytes(layer) + (node ? node->scratch_bytes() : 0);
}

std::unique_ptr<Step> dense_step(const StepContext& context, const Group& group, std::unique_ptr<NodeLayer> node,
                                 DensePlaces places) {
  return std::make_unique<DenseStep>(context, group, std::move(node), std::move(places));
}

std::unique_ptr<Step> outputs_step(const StepContext& context) { return std::make_unique<OutputsStep>(context); }

}  // namespace facetrain::int7
