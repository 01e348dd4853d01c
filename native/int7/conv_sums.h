// What a convolution does with its sums: the epilogue, or real numbers.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "int7/step.h"

namespace facetrain::int7 {

class ConvSums {
 public:
  ConvSums(const StepContext& context, const Group& group) : stored_(context.stored[group.output]) {
    const LayerSpec& layer = context.network.layers[group.head];
    if (!stored_.real) {
      epilogue_.emplace(context, group);
      return;
    }
    for (const float scale : layer.weight_scales)
      scales_.push_back(context.network.tensors[layer.inputs[0]].scale * scale);
  }

  // Of `pixels` pixels of row y from column x on, channels [channel, channel + channels): sums [pixels][sums_stride].
  void write(const Memory& memory, int y, int x, int pixels, int channel, int channels, const int32_t* sums,
             int sums_stride) const {
    if (epilogue_) return epilogue_->run(memory, y, x, pixels, channel, channels, sums, sums_stride);
    auto* to = reinterpret_cast<float*>(memory.arena + stored_.at(y, x)) + channel;
    for (int p = 0; p < pixels; ++p, sums += sums_stride, to += stored_.channels) {
      for (int c = 0; c < std::min(channels, stored_.channels - channel); ++c) {
        to[c] = static_cast<float>(sums[c]) * scales_[channel + c];
      }
    }
  }
  // As GroupEpilogue::flat.
  bool flat() const { return !epilogue_ || epilogue_->flat(); }

 private:
  const Stored& stored_;
  std::optional<GroupEpilogue> epilogue_;  // empty if the output is real
  std::vector<float> scales_;
};

}  // namespace facetrain::int7
