// Convolutions: packing of weights, choice of tiles, and the loops over them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "int7/conv_sums.h"
#include "int7/step.h"

namespace facetrain::int7 {
namespace {

// The sum of products that the byte of the integer 0 adds, taken from the bias. Wraps like the sums themselves, which
// are right modulo 2^32 and, at the end, within an int32 (kernels/conv.h).
int32_t without_zero(int32_t bias, int zero, int64_t weight_sum) {
  return static_cast<int32_t>(static_cast<uint32_t>(bias) - static_cast<uint32_t>(zero * weight_sum));
}

// Input channels [first, last) that the groups of `outputs` output channels from `channel` on read, in whole steps of
// four bytes.
struct InputRange {
  int first, last;
};
InputRange inputs_of(const ConvShape& s, int channel, int outputs) {
  return {channel / s.group_out() * s.group_in() / 4 * 4,
          least_multiple(((channel + outputs - 1) / s.group_out() + 1) * s.group_in(), 4)};
}

// Longer chunks of int16 sums are not looked for. The time to look for one grows with its square, and only weights of
// which most are 0 would allow it: those of one sign may add up to 258 (Int16Weights).
constexpr int kLongestChunk = 256;

// Of a convolution that multiplies its input as it is stored.
Int16Weights int16_weights(const StepContext& context, const Group& group) {
  const int input = context.network.layers[group.head].inputs[0];
  return Int16Weights::of(context.stored[input].zero, context.network.tensors[input].range.high);
}

class ConvStep final : public Step {
 public:
  ConvStep(const StepContext& context, const Group& group)
      : layer_(context.network.layers[group.head]),
        kernels_(context.kernels),
        x_(&context.stored[layer_.inputs[0]]),
        int16_weights_(int16_weights(context, group)),
        sums_(context, group) {
    const ConvShape& s = layer_.shape;
    rows_ = s.out_height();
    width_ = s.out_width();
    // A 1x1 convolution of whole rows is a product of matrices over all pixels.
    flat_ = s.taps() == 1 && s.strides[0] == 1 && s.strides[1] == 1 && s.out_area() == x_->width * x_->height &&
            x_->flat() && sums_.flat();
    if (flat_) {
      width_ *= rows_;
      rows_ = 1;
    }
    const int vectors = least_multiple(s.out_channels, kVector) / kVector;
    const int widest = best_vectors(vectors);
    for (int done = 0; done < vectors;) {
      int v = widest;
      while (v > vectors - done) v /= 2;
      add_panel(done * kVector, v);
      done += v;
    }
  }

  void run(const Memory& memory, const Part& part) const override {
    const ConvShape& s = layer_.shape;
    const auto panels = static_cast<int>(panels_.size());
    // Few pixels are not worth sharing; their panels are.
    const bool by_panel = rows_ * width_ < 4 * part.count;
    const int first_panel = by_panel ? part.begin(panels) : 0, last_panel = by_panel ? part.end(panels) : panels;
    const bool by_row = !by_panel && !flat_, by_column = !by_panel && flat_;
    const int first_row = by_row ? part.begin(rows_) : 0, last_row = by_row ? part.end(rows_) : rows_;
    const int left = by_column ? part.begin(width_) : 0, right = by_column ? part.end(width_) : width_;
    const int64_t stride = int64_t{x_->pitch} * s.strides[1];
    for (int i = first_panel; i < last_panel; ++i) {
      const Panel& panel = panels_[i];
      const ConvTile* const tiles = panel.kernels->tiles[panel.vectors / 2];
      const int count = (right - left + panel.pixels - 1) / panel.pixels;
      for (int y = first_row; y < last_row; ++y) {
        const uint8_t* row = memory.arena + x_->at(y * s.strides[0] - s.pads[0], -s.pads[1]);
        for (int tile = 0; tile < count; ++tile) {
          // In int64: the pixels of a whole map times the number of tiles exceed an int.
          const int begin = left + static_cast<int>(int64_t{right - left} * tile / count);
          const int end = left + static_cast<int>(int64_t{right - left} * (tile + 1) / count);
          tiles[end - begin - 1](row + begin * stride, stride, panel.segments.data(),
                                 static_cast<int>(panel.segments.size()), panel.steps, panel.weights.data(),
                                 panel.bias.data(), panel.chunks.data(), part.scratch);
          sums_.write(memory, y, begin, end - begin, panel.channel, panel.vectors * kVector, part.scratch,
                      panel.vectors * kVector);
        }
      }
    }
  }

 private:
  // Output channels that are computed together.
  struct Panel {
    int channel = 0, vectors = 0;
    const Kernels* kernels = nullptr;  // of its tiles
    int pixels = 0;                    // of the largest tile
    std::vector<int32_t> segments;     // stretches of input bytes: see ConvTile
    int steps = 0;
    std::vector<int32_t> chunks;  // see safe_chunks
    std::vector<int8_t> weights;
    std::vector<int32_t> bias;
  };

  static int largest_tile(const Kernels& kernels, int vectors) {
    int pixels = 0;
    while (pixels < kTilePixels && kernels.tiles[vectors / 2][pixels]) ++pixels;
    return pixels;
  }

  // How many vectors of output channels a tile should have. A tile of P pixels and V vectors takes for each step about
  // as long as its P * V products, its P + V loads, or as the weights take from the second-level cache.
  int best_vectors(int vectors) const {
    const ConvShape& s = layer_.shape;
    const double panel_bytes = static_cast<double>(s.group_in()) * s.taps() * kVector;
    int best = 1;
    double least = std::numeric_limits<double>::infinity();
    for (int v = 1; v <= std::min(vectors, 4); v *= 2) {
      const int largest = largest_tile(kernels_, v);
      if (largest == 0) continue;
      const int tiles = (width_ + largest - 1) / largest;
      const double pixels = static_cast<double>(width_) / tiles;
      const double from_cache = panel_bytes * v > 24 * 1024 ? v * 64 / 32.0 : 0;
      const double cycles = std::max({pixels * v / 2, (pixels + v) / 2, from_cache, 5.0}) * tiles / v;
      if (cycles < least * 0.98) {
        least = cycles;
        best = v;
      }
    }
    return best;
  }

  void add_panel(int channel, int vectors) {
    const ConvShape& s = layer_.shape;
    Panel panel;
    panel.channel = channel;
    panel.vectors = vectors;
    const int outputs = std::min(vectors * kVector, s.out_channels - channel);
    const auto [first, last] = inputs_of(s, channel, outputs);
    // Neighboring taps of all channels follow each other in memory.
    const bool whole_rows = last - first == x_->pitch && s.dilations[1] == 1;
    const int taps_a_segment = whole_rows ? s.kernel[1] : 1;
    panel.steps = taps_a_segment * (last - first) / 4;
    for (int t = 0; t < s.taps(); t += taps_a_segment) {
      panel.segments.push_back(static_cast<int32_t>(t / s.kernel[1] * s.dilations[0] * x_->row() +
                                                    int64_t{t % s.kernel[1]} * s.dilations[1] * x_->pitch + first));
    }
    const int width = vectors * kVector;
    panel.weights.resize(int64_t{width} * 4 * panel.steps * static_cast<int64_t>(panel.segments.size()));
    panel.bias.resize(width);
    for (int o = 0; o < outputs; ++o) {
      int64_t sum = 0;
      const int input = (channel + o) / s.group_out() * s.group_in() - first;
      for (int t = 0; t < s.taps(); ++t) {
        for (int i = 0; i < s.group_in(); ++i) {
          const int8_t w = layer_.weights[s.weight_index(channel + o, i, t)];
          sum += w;
          const int byte = t % taps_a_segment * (last - first) + input + i;
          const int64_t step = int64_t{t / taps_a_segment} * panel.steps + byte / 4;
          panel.weights[(step * width + o) * 4 + byte % 4] = w;
        }
      }
      panel.bias[o] = without_zero(layer_.bias[channel + o], x_->zero, sum);
    }
    panel.kernels = &kernels_;
    if (kernels_.int16_products > 0) {
      panel.chunks = safe_chunks(panel, width, kernels_.int16_products);
      const double steps = static_cast<double>(panel.segments.size()) * panel.steps;
      if (kernels_.int32_sums && steps < kernels_.shortest_chunks * static_cast<double>(panel.chunks.size()))
        panel.kernels = kernels_.int32_sums;
    }
    panel.pixels = largest_tile(*panel.kernels, vectors);
    panels_.push_back(std::move(panel));
  }

  // The steps of every segment in chunks, as long as an int16 holds the products of `together` neighboring bytes,
  // whatever the input.
  std::vector<int32_t> safe_chunks(const Panel& panel, int width, int together) const {
    const int sums = width * 4 / together;
    std::vector<int32_t> chunks;
    std::vector<int> up(sums), down(sums);  // sums of the chunk's weights by sign
    const auto add = [&](const int8_t* w) {
      bool safe = true;
      for (int sum = 0; sum < sums; ++sum) {
        for (int i = 0; i < together; ++i) {
          const int value = w[sum * together + i];
          (value > 0 ? up : down)[sum] += std::abs(value);
        }
        safe = safe && int16_weights_.allow(up[sum], down[sum]);
      }
      return safe;
    };
    const int8_t* w = panel.weights.data();
    for (size_t segment = 0; segment < panel.segments.size(); ++segment) {
      for (int step = 0; step < panel.steps; ++step, w += int64_t{width} * 4) {
        if (step > 0 && add(w)) {
          ++chunks.back();
          continue;
        }
        std::fill(up.begin(), up.end(), 0);
        std::fill(down.begin(), down.end(), 0);
        add(w);
        chunks.push_back(1);
      }
    }
    return chunks;
  }

  const LayerSpec& layer_;
  const Kernels& kernels_;
  const Stored* x_;
  Int16Weights int16_weights_;
  ConvSums sums_;
  int rows_, width_;
  bool flat_;
  std::vector<Panel> panels_;
};

class DepthwiseStep final : public Step {
 public:
  DepthwiseStep(const StepContext& context, const Group& group)
      : layer_(context.network.layers[group.head]),
        kernels_(context.kernels),
        x_(&context.stored[layer_.inputs[0]]),
        int16_weights_(int16_weights(context, group)),
        sums_(context, group) {
    const ConvShape& s = layer_.shape;
    for (int t = 0; t < s.taps(); ++t) {
      taps_.push_back(static_cast<int32_t>(t / s.kernel[1] * s.dilations[0] * x_->row() +
                                           int64_t{t % s.kernel[1]} * s.dilations[1] * x_->pitch));
      order_.push_back(t);
    }
    columns_ =
        kernels_.depthwise3x3 && s.kernel[0] == 3 && s.kernel[1] == 3 && s.strides[1] == 1 && s.dilations[1] == 1;
    if (columns_) order_ = {0, 3, 6, -1, 1, 4, 7, -1, 2, 5, 8, -1};  // columns: see depthwise3x3
    while (order_.size() % kernels_.depthwise_taps != 0) order_.push_back(-1);
    while (!columns_ && taps_.size() < order_.size()) taps_.push_back(taps_[0]);
    blocks_ = least_multiple(s.in_channels, kBlock) / kBlock;
    pack();
  }

  void run(const Memory& memory, const Part& part) const override {
    const ConvShape& s = layer_.shape;
    const bool by_block = s.out_height() < part.count;
    const int first_block = by_block ? part.begin(blocks_) : 0, last_block = by_block ? part.end(blocks_) : blocks_;
    const int first_row = by_block ? 0 : part.begin(s.out_height());
    const int last_row = by_block ? s.out_height() : part.end(s.out_height());
    const int64_t stride = int64_t{x_->pitch} * s.strides[1];
    const int width = s.out_width(), count = (width + kTilePixels - 1) / kTilePixels;
    const Depthwise function = columns_ ? kernels_.depthwise3x3 : kernels_.depthwise;
    for (int block = first_block; block < last_block; ++block) {
      const int channel = block * kBlock, channels = std::min(kBlock, least_multiple(s.in_channels - channel, kVector));
      for (int y = first_row; y < last_row; ++y) {
        const uint8_t* row = memory.arena + x_->at(y * s.strides[0] - s.pads[0], -s.pads[1]) + channel;
        for (int tile = 0; tile < count; ++tile) {
          const int begin = width * tile / count, end = width * (tile + 1) / count;
          function(row + begin * stride, stride, taps_.data(), static_cast<int>(taps_.size()),
                   weights_.data() + channel * static_cast<int64_t>(order_.size()), bias_.data() + channel, chunk_,
                   end - begin, part.scratch);
          sums_.write(memory, y, begin, end - begin, channel, channels, part.scratch, kBlock);
        }
      }
    }
  }

 private:
  void pack() {
    const ConvShape& s = layer_.shape;
    const int together = kernels_.depthwise_taps, lanes = kernels_.depthwise_lanes, part = kVector / together;
    const auto taps = static_cast<int>(order_.size());
    weights_.resize(int64_t{blocks_} * kBlock * taps);
    bias_.resize(int64_t{blocks_} * kBlock);
    for (int c = 0; c < s.in_channels; ++c) {
      int64_t sum = 0;
      const int wide = kVector * lanes, in_wide = c % wide, in_lane = in_wide % kVector;
      for (int i = 0; i < taps; ++i) {
        const int8_t w = order_[i] < 0 ? int8_t{0} : layer_.weights[s.weight_index(c, 0, order_[i])];
        sum += w;
        const int64_t vector = int64_t{i / together} * together + in_lane / part;
        const int64_t group = (vector * lanes + in_wide / kVector) * part + in_lane % part;
        weights_[int64_t{c / wide} * wide * taps + group * together + i % together] = w;
      }
      bias_[c] = without_zero(layer_.bias[c], x_->zero, sum);
    }
    chunk_ = taps / together;
    if (kernels_.int16_products == 0) return;
    chunk_ = std::min(chunk_, kLongestChunk);
    // One length for all channels. Where a longer chunk is safe a shorter one need not be, since it begins elsewhere.
    for (; chunk_ > 1; --chunk_) {
      int c = 0;
      while (c < s.in_channels && is_safe_chunk(c, chunk_)) ++c;
      if (c == s.in_channels) break;
    }
  }

  // Whether an int16 holds the products of each `chunk` groups of taps for one channel.
  bool is_safe_chunk(int channel, int chunk) const {
    const int together = kernels_.depthwise_taps, groups = static_cast<int>(order_.size()) / together;
    for (int start = 0; start < groups; start += chunk) {
      int up = 0, down = 0;
      for (int i = start * together; i < std::min(start + chunk, groups) * together; ++i) {
        const int value = order_[i] < 0 ? 0 : layer_.weights[layer_.shape.weight_index(channel, 0, order_[i])];
        (value > 0 ? up : down) += std::abs(value);
      }
      if (!int16_weights_.allow(up, down)) return false;
    }
    return true;
  }

  const LayerSpec& layer_;
  const Kernels& kernels_;
  const Stored* x_;
  Int16Weights int16_weights_;
  ConvSums sums_;
  std::vector<int32_t> taps_;
  std::vector<int> order_;  // of the weights: taps, -1 for a weight of 0
  bool columns_;
  int blocks_, chunk_;
  std::vector<int8_t> weights_;
  std::vector<int32_t> bias_;
};

}  // namespace

int64_t packed_bytes(const ConvShape& shape) {
  constexpr int64_t kBias = sizeof(int32_t);
  int64_t bytes = 0;
  if (shape.depthwise()) {
    // Three columns of four taps, or the taps in whole groups of four.
    const int64_t taps = std::max(12, least_multiple(shape.taps(), 4));
    return least_multiple(shape.in_channels, kBlock) * (taps + kBias);
  }
  // Panels of fewer channels read parts of the same inputs.
  for (int channel = 0; channel < shape.out_channels; channel += kBlock) {
    const int outputs = std::min(kBlock, shape.out_channels - channel);
    const auto [first, last] = inputs_of(shape, channel, outputs);
    const int64_t inputs = int64_t{last - first} * shape.taps(), padded = least_multiple(outputs, kVector);
    bytes += padded * (inputs + kBias);
    bytes += padded / kVector * inputs;  // an int32 for each chunk, which has four inputs at least
  }
  return bytes;
}

std::unique_ptr<Step> conv_step(const StepContext& context, const Group& group) {
  return std::make_unique<ConvStep>(context, group);
}

std::unique_ptr<Step> depthwise_step(const StepContext& context, const Group& group) {
  return std::make_unique<DepthwiseStep>(context, group);
}

}  // namespace facetrain::int7
