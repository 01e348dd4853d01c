// Convolutions by Winograd's tiles: which layers are computed so, packing of weights, and the loops over tiles.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "int7/conv_sums.h"
#include "int7/step.h"

namespace facetrain::int7 {
namespace {

int tiles_across(int extent, const Winograd& way) { return (extent + way.outputs - 1) / way.outputs; }

int64_t weight_bytes(const ConvShape& s, const Winograd& way) {
  return int64_t{way.positions()} * s.in_channels * least_multiple(s.out_channels, kVector) *
         static_cast<int64_t>(sizeof(int16_t));
}

double cost_of(const ConvShape& s, const Winograd& way) {
  const double tiles = static_cast<double>(tiles_across(s.out_height(), way)) * tiles_across(s.out_width(), way);
  const double products = static_cast<double>(way.positions()) * s.in_channels * s.out_channels;
  const double transforms = static_cast<double>(s.in_channels + s.out_channels) / kVector;
  const auto bytes = weight_bytes(s, way);
  const WinogradCost& cost = way.cost;
  return tiles * (products * cost.product + transforms * cost.transform) +
         (bytes > cost.near_bytes ? static_cast<double>(bytes) * cost.far_byte : 0);
}

// Whether every sum, times the scale of the way, fits an int32, and every transformed number an int16.
bool fits(const LayerSpec& layer, const TensorSpec& x, const Winograd& way) {
  const int64_t low = x.range.low, high = x.range.high;
  if (std::max(high, -low) * way.operand_gain > INT16_MAX) return false;
  const auto filter = layer.shape.filter();
  for (int64_t o = 0; o < layer.shape.out_channels; ++o) {
    int64_t least = 0, most = 0;
    for (int64_t i = o * filter; i < (o + 1) * filter; ++i) {
      const int64_t w = layer.weights[i];
      if (std::abs(w) * way.filter_gain > INT16_MAX) return false;
      least += std::min(w * low, w * high);
      most += std::max(w * low, w * high);
    }
    if (std::max(most, -least) * way.scale > INT32_MAX) return false;
  }
  return true;
}

class WinogradStep final : public Step {
 public:
  WinogradStep(const StepContext& context, const Group& group)
      : layer_(context.network.layers[group.head]),
        way_(*context.winograd[group.head].tiles),
        x_(&context.stored[layer_.inputs[0]]),
        sums_(context, group),
        across_(tiles_across(layer_.shape.out_width(), way_)),
        tiles_(across_ * tiles_across(layer_.shape.out_height(), way_)),
        panels_(least_multiple(layer_.shape.out_channels, kVector) / kVector) {
    pack();
  }

  void run(const Memory& memory, const Part& part) const override {
    const int in = layer_.shape.in_channels, positions = way_.positions();
    const int64_t tiles_in = int64_t{way_.tiles} * in, tiles_out = int64_t{way_.tiles} * kVector;
    int32_t* const products = part.scratch;
    int32_t* const rows = products + positions * tiles_out;
    auto* const operands = reinterpret_cast<int16_t*>(rows + way_.outputs * way_.outputs * tiles_out);
    const int first = part.begin(tiles_), all = part.end(tiles_) - first;
    const int groups = (all + way_.tiles - 1) / way_.tiles;
    for (int group = 0; group < groups; ++group) {
      const int begin = first + static_cast<int>(int64_t{all} * group / groups);
      const int end = first + static_cast<int>(int64_t{all} * (group + 1) / groups);
      for (int tile = begin; tile < end; ++tile) {
        const int64_t from = x_->at(tile / across_ * way_.outputs - layer_.shape.pads[0],
                                    tile % across_ * way_.outputs - layer_.shape.pads[1]);
        way_.transform(memory.arena + from, x_->row(), x_->pitch, in, x_->zero, tiles_in,
                       operands + int64_t{tile - begin} * in);
      }
      for (int panel = 0; panel < panels_; ++panel) {
        const int16_t* weights = weights_.data() + int64_t{panel} * positions * in * kVector;
        for (int position = 0; position < positions; ++position) {
          way_.multiply(operands + position * tiles_in, end - begin, in, weights + int64_t{position} * in * kVector,
                        products + position * tiles_out);
        }
        // Tiles of the same row are written together.
        for (int tile = begin, next; tile < end; tile = next) {
          next = std::min(end, (tile / across_ + 1) * across_);
          write(memory, panel, tile, next - tile, products + (tile - begin) * kVector, rows);
        }
      }
    }
  }

 private:
  // Sums of `count` neighboring tiles, by way of `rows` [outputs][count * outputs][16].
  void write(const Memory& memory, int panel, int tile, int count, const int32_t* products, int32_t* rows) const {
    const ConvShape& s = layer_.shape;
    const int width = count * way_.outputs * kVector;
    for (int i = 0; i < count; ++i) {
      way_.finish(products + i * kVector, int64_t{way_.tiles} * kVector, bias_.data() + panel * kVector,
                  rows + i * way_.outputs * kVector, width);
    }
    const int y = tile / across_ * way_.outputs, x = tile % across_ * way_.outputs;
    const int pixels = std::min(count * way_.outputs, s.out_width() - x);
    for (int i = 0; i < std::min(way_.outputs, s.out_height() - y); ++i)
      sums_.write(memory, y + i, x, pixels, panel * kVector, kVector, rows + i * width, kVector);
  }

  // Weights [panel][position][in / T][16 outputs][T], T = channels_together.
  void pack() {
    const ConvShape& s = layer_.shape;
    const int inputs = way_.inputs(), together = way_.channels_together;
    weights_.resize(weight_bytes(s, way_) / sizeof(int16_t));
    bias_.resize(int64_t{panels_} * kVector);
    std::copy(layer_.bias.begin(), layer_.bias.end(), bias_.begin());
    std::vector<int> by_row(int64_t{inputs} * 3);
    for (int o = 0; o < s.out_channels; ++o) {
      for (int i = 0; i < s.in_channels; ++i) {
        const int8_t* const w = layer_.weights.data() + s.weight_index(o, i, 0);
        const auto transformed = [&](int row, const auto& of) {
          const int* const f = way_.filter[row];
          return f[0] * of(0) + f[1] * of(1) + f[2] * of(2);
        };
        for (int row = 0; row < inputs; ++row) {
          for (int x = 0; x < 3; ++x) by_row[row * 3 + x] = transformed(row, [&](int y) { return w[y * 3 + x]; });
        }
        for (int position = 0; position < way_.positions(); ++position) {
          const int* const row = by_row.data() + int64_t{position / inputs} * 3;
          const int64_t channel = (int64_t{o} / kVector * way_.positions() + position) * s.in_channels + i;
          weights_[(channel / together * kVector + o % kVector) * together + i % together] =
              static_cast<int16_t>(transformed(position % inputs, [&](int x) { return row[x]; }));
        }
      }
    }
  }

  const LayerSpec& layer_;
  const Winograd& way_;
  const Stored* x_;
  ConvSums sums_;
  int across_, tiles_, panels_;
  std::vector<int16_t> weights_;
  std::vector<int32_t> bias_;
};

}  // namespace

WinogradPlan winograd_plan(const LayerSpec& layer, const TensorSpec& x, const Kernels& kernels) {
  const ConvShape& s = layer.shape;
  if (layer.kind != LayerSpec::Kind::conv || s.group != 1 || s.kernel != std::array{3, 3} ||
      s.strides != std::array{1, 1} || s.dilations != std::array{1, 1} || s.in_channels % kVector != 0)
    return {};
  if (kernels.row_winograd) return row_winograd_plan(layer, x, kernels);
  // A way has to be a twentieth faster than the direct convolution, and one with more bytes of weights a tenth faster
  // than one with fewer.
  const Winograd* best = nullptr;
  double least = std::numeric_limits<double>::infinity();
  for (const Winograd* way : kernels.winograd) {
    if (way == nullptr) continue;
    const double cost = cost_of(s, *way), direct = way->cost.direct_product * static_cast<double>(s.macs());
    if (cost >= std::min(least, 0.95 * direct) || !fits(layer, x, *way)) continue;
    best = way;
    least = 0.9 * cost;
  }
  if (best == nullptr) return {};
  const auto margin = [&](int in, int out, int pad) {
    return std::max(0, tiles_across(out, *best) * best->outputs + 2 - pad - in);
  };
  const int64_t rows = int64_t{best->outputs} * best->outputs;
  return {.tiles = best,
          .bottom = margin(s.in_height, s.out_height(), s.pads[0]),
          .right = margin(s.in_width, s.out_width(), s.pads[1]),
          .packed_bytes = weight_bytes(s, *best) + least_multiple(s.out_channels, kVector) * int64_t{sizeof(int32_t)},
          .scratch = best->tiles * (int64_t{best->positions()} * s.in_channels / 2 +  // int16
                                    (best->positions() + rows) * kVector)};
}

std::unique_ptr<Step> winograd_step(const StepContext& context, const Group& group) {
  return std::make_unique<WinogradStep>(context, group);
}

}  // namespace facetrain::int7
