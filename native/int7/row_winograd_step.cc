// Convolutions by Winograd's F(2,3) along the rows (kernels.h, RowWinograd): packing of weights, and the loops over
// strips of rows and over tiles.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>

#include "int7/conv_sums.h"
#include "int7/step.h"

namespace facetrain::int7 {
namespace {

constexpr int kPositions = 4;
constexpr int kLargestWeight = 127;  // of those that are multiplied, bytes
constexpr int kVectors = kBlock / kVector;

// Integers of scratch memory for a product: its sums [tiles][2][width], its products [4][tiles][width], and what is
// added to two of them. The registers hold `tiles` * `width` numbers, 28 vectors of 16 at most.
constexpr int64_t kSums = 8 * 28 * kVector;

// Bytes of operands that are transformed at a time, so that the second-level cache holds them beside the weights.
constexpr int64_t kStripBytes = 192 << 10;

// Twice what is summed is halved at the end, so it has to fit an int32, too (kernels/conv.h has the largest filters).
static_assert(2 * kLargestFilter * kLargestOperand * kLargestOperand <= INT32_MAX);
static_assert(2 * kLargestFilterOfWideOperand * kLargestOperand * (2 * kLargestOperand) <= INT32_MAX);

// What the three weights of a row become. The second and the third are doubled; they may exceed a byte.
std::array<int, kPositions> transformed(const int8_t* w) {
  return {w[0], w[0] + w[1] + w[2], w[0] - w[1] + w[2], w[2]};
}

int tiles_across(const ConvShape& s) { return (s.out_width() + 1) / 2; }

// Rows of output that are computed from one strip.
int strip_rows(const ConvShape& s) {
  const int64_t row = int64_t{kPositions} * tiles_across(s) * s.in_channels;
  return static_cast<int>(std::clamp<int64_t>(kStripBytes / row - 2, 1, s.out_height()));
}

int largest_tile(const Kernels& kernels, int vectors) {
  int tiles = 0;
  while (tiles < kTilePixels && kernels.tiles[vectors / 2][tiles]) ++tiles;
  return tiles;
}

// Bytes between two positions of the operands for `rows` rows of output, and what a last vector writes beyond.
int64_t operand_stride(const ConvShape& s, int rows) {
  return int64_t{rows + 2} * tiles_across(s) * s.in_channels + kVector * 3;
}

// Output channels from `channel` on that are computed together, `vectors` * 16 of them.
struct Panel {
  int channel = 0, vectors = 0;

  int width() const { return vectors * kVector; }
};

// As wide as gives the most sums in registers.
std::vector<Panel> panels_of(const ConvShape& s, const Kernels& kernels) {
  const int vectors = least_multiple(s.out_channels, kVector) / kVector;
  int widest = 1;
  for (const int v : {2, 4}) {
    if (v <= vectors && v * largest_tile(kernels, v) > widest * largest_tile(kernels, widest)) widest = v;
  }
  std::vector<Panel> panels;
  for (int done = 0; done < vectors;) {
    int v = widest;
    while (v > vectors - done) v /= 2;
    panels.push_back({done * kVector, v});
    done += v;
  }
  return panels;
}

// Calls each(position, group, weights) with what the weights of a panel become at a position, by group of four input
// channels: weights [width][4]. Groups are those of the first row, then of the second and the third.
template <class Each>
void for_each_group(const LayerSpec& layer, const Panel& panel, Each each) {
  const ConvShape& s = layer.shape;
  const int groups = s.in_channels / 4, outputs = std::min(panel.width(), s.out_channels - panel.channel);
  std::array<std::vector<int>, kPositions> weights;
  for (auto& some : weights) some.resize(int64_t{panel.width()} * 4);
  for (int group = 0; group < 3 * groups; ++group) {
    const int row = group / groups, first = group % groups * 4;
    for (int o = 0; o < outputs; ++o) {
      for (int i = 0; i < 4; ++i) {
        const auto all = transformed(layer.weights.data() + s.weight_index(panel.channel + o, first + i, row * 3));
        for (int position = 0; position < kPositions; ++position) weights[position][o * 4 + i] = all[position];
      }
    }
    for (int position = 0; position < kPositions; ++position) each(position, group, weights[position]);
  }
}

// What a weight has beyond a byte.
int more_of(int w) { return w - std::clamp(w, -kLargestWeight, kLargestWeight); }

// Whether any of the 16 output channels of a vector has.
bool has_more(const std::vector<int>& weights, int vector) {
  const auto first = weights.begin() + int64_t{vector} * kVector * 4;
  return std::any_of(first, first + kVector * 4, [](int w) { return more_of(w) != 0; });
}

class RowWinogradStep final : public Step {
 public:
  RowWinogradStep(const StepContext& context, const Group& group)
      : layer_(context.network.layers[group.head]),
        kernels_(context.kernels),
        way_(*context.winograd[group.head].rows),
        x_(&context.stored[layer_.inputs[0]]),
        sums_(context, group),
        across_(tiles_across(layer_.shape)),
        strip_rows_(strip_rows(layer_.shape)) {
    for (const Panel& panel : panels_of(layer_.shape, kernels_)) panels_.push_back(pack(panel));
  }

  void run(const Memory& memory, const Part& part) const override {
    const ConvShape& s = layer_.shape;
    const int all = across_ * s.out_height(), begin = part.begin(all), end = part.end(all);
    int32_t* const sums = part.scratch;
    auto* const operands = reinterpret_cast<uint8_t*>(sums + kSums);
    for (int first = begin, next; first < end; first = next) {
      const int row = first / across_;
      next = std::min(end, (row + strip_rows_) * across_);
      const int last_row = (next - 1) / across_;
      const int64_t stride = operand_stride(s, last_row - row + 1);
      for (int y = row; y <= last_row + 2; ++y) {
        way_.transform(memory.arena + x_->at(y - s.pads[0], -s.pads[1]), x_->pitch, across_, s.in_channels, stride,
                       operands + int64_t{y - row} * across_ * s.in_channels);
      }
      for (const Packed& panel : panels_) {
        const int parts = (next - first + panel.tiles - 1) / panel.tiles;
        for (int i = 0; i < parts; ++i) {
          const int from = first + static_cast<int>(int64_t{next - first} * i / parts);
          const int to = first + static_cast<int>(int64_t{next - first} * (i + 1) / parts);
          multiply(panel, operands + int64_t{from - row * across_} * s.in_channels, stride, to - from, sums);
          write(memory, panel.place, from, to, sums);
        }
      }
    }
  }

 private:
  // What weights of 16 output channels have beyond a byte: for each group of four inputs that has any, its place among
  // the operands, and weights [16][4].
  struct More {
    std::vector<int32_t> places;
    std::vector<int8_t> weights;
  };
  struct Packed {
    Panel place;
    int tiles = 0;                       // of the largest product
    std::vector<int8_t> weights;         // [position][row][in / 4][width][4], as far as they fit a byte
    std::vector<int32_t> bias;           // [position][width]
    std::array<More, kVectors> more[2];  // of positions 1 and 2, by vector of output channels
  };

  // Sums [2 * tiles][width] of `tiles` neighboring tiles.
  void multiply(const Packed& panel, const uint8_t* operands, int64_t stride, int tiles, int32_t* sums) const {
    const int width = panel.place.width(), in = layer_.shape.in_channels;
    const int64_t plane = int64_t{tiles} * width, weights = int64_t{3} * in * width;
    const ConvTile product = kernels_.tiles[panel.place.vectors / 2][tiles - 1];
    const int32_t rows[3] = {0, across_ * in, 2 * across_ * in};
    int32_t* const products = sums + 2 * plane;
    for (int position = 0; position < kPositions; ++position) {
      product(operands + position * stride, in, rows, 3, in / 4, panel.weights.data() + position * weights,
              panel.bias.data() + int64_t{position} * width, nullptr, products + position * plane);
    }
    RowWinograd::More more{};
    int32_t* to = products + kPositions * plane;
    for (int i = 0; i < 2; ++i) {
      for (int v = 0; v < panel.place.vectors; ++v) {
        const More& some = panel.more[i][v];
        if (some.places.empty()) continue;
        kernels_.tiles[0][tiles - 1](operands + (i + 1) * stride, in, some.places.data(),
                                     static_cast<int>(some.places.size()), 1, some.weights.data(), kZeros, nullptr, to);
        more[i][v] = to;
        to += int64_t{tiles} * kVector;
      }
    }
    way_.finish(products, more, tiles, width, sums);
  }

  // Tiles [from, to): those of the same row are written together.
  void write(const Memory& memory, const Panel& panel, int from, int to, const int32_t* sums) const {
    for (int tile = from, next; tile < to; tile = next) {
      next = std::min(to, (tile / across_ + 1) * across_);
      const int x = tile % across_ * 2, pixels = std::min(2 * (next - tile), layer_.shape.out_width() - x);
      sums_.write(memory, tile / across_, x, pixels, panel.channel, panel.width(),
                  sums + int64_t{tile - from} * 2 * panel.width(), panel.width());
    }
  }

  Packed pack(const Panel& panel) const {
    const ConvShape& s = layer_.shape;
    const int width = panel.width(), outputs = std::min(width, s.out_channels - panel.channel);
    const int row_groups = s.in_channels / 4;
    Packed packed;
    packed.place = panel;
    packed.tiles = largest_tile(kernels_, panel.vectors);
    packed.weights.resize(int64_t{kPositions} * 3 * s.in_channels * width);
    packed.bias.resize(int64_t{kPositions} * width);
    std::vector<int64_t> totals(packed.bias.size());
    for_each_group(layer_, panel, [&](int position, int group, const std::vector<int>& weights) {
      int8_t* const to =
          packed.weights.data() + (int64_t{position} * 3 * row_groups + group) * static_cast<int64_t>(weights.size());
      for (size_t i = 0; i < weights.size(); ++i) {
        to[i] = static_cast<int8_t>(weights[i] - more_of(weights[i]));
        totals[position * width + i / 4] += weights[i];
      }
      for (int v = 0; v < panel.vectors; ++v) {
        if (!has_more(weights, v)) continue;
        More& more = packed.more[position - 1][v];
        more.places.push_back(group / row_groups * across_ * s.in_channels + group % row_groups * 4);
        for (int i = v * kVector * 4; i < (v + 1) * kVector * 4; ++i)
          more.weights.push_back(static_cast<int8_t>(more_of(weights[i])));
      }
    });
    // What transform() adds to each operand; the layer's own bias goes to both pixels.
    const int between = kLargestStored + way_.operand_shift, both = 2 * x_->zero + way_.operand_shift;
    for (int position = 0; position < kPositions; ++position) {
      for (int o = 0; o < outputs; ++o) {
        const int64_t own = layer_.bias[panel.channel + o], added = position == 1 ? both : between;
        const int64_t bias = position == 0 ? own : position == 3 ? -own : 0;
        packed.bias[position * width + o] = wrapped(bias - added * totals[position * width + o]);
      }
    }
    return packed;
  }
  // Modulo 2^32, like the sums.
  static int32_t wrapped(int64_t value) { return static_cast<int32_t>(static_cast<uint32_t>(value)); }

  static constexpr int32_t kZeros[kVector] = {};
  const LayerSpec& layer_;
  const Kernels& kernels_;
  const RowWinograd& way_;
  const Stored* x_;
  ConvSums sums_;
  int across_, strip_rows_;
  std::vector<Packed> panels_;
};

}  // namespace

WinogradPlan row_winograd_plan(const LayerSpec& layer, const TensorSpec& x, const Kernels& kernels) {
  const ConvShape& s = layer.shape;
  // Differences and sums of two operands have to fit a byte.
  if (x.range.size() > kLargestStored) return {};
  // In products of 16 output channels with four inputs, of which a tile's finish takes as long as kFinish.
  constexpr int64_t kFinish = 10;
  int64_t products = 0, bytes = 0;
  for (const Panel& panel : panels_of(s, kernels)) {
    const int64_t groups = int64_t{kPositions} * 3 * s.in_channels / 4;
    int64_t more = 0;
    for_each_group(layer, panel, [&](int, int, const std::vector<int>& weights) {
      for (int v = 0; v < panel.vectors; ++v) more += has_more(weights, v);
    });
    products += panel.vectors * (groups + kFinish) + more;
    bytes += panel.width() * (4 * groups + kPositions * int64_t{sizeof(int32_t)});
    bytes += more * (kVector * 4 + int64_t{sizeof(int32_t)});
  }
  const int across = tiles_across(s);
  const int64_t direct = least_multiple(s.out_channels, kVector) / kVector * int64_t{9} * s.in_channels / 4;
  if (products * across > 0.95 * static_cast<double>(direct) * s.out_width()) return {};
  const int64_t operands = kPositions * operand_stride(s, strip_rows(s));
  return {.rows = kernels.row_winograd,
          .right = std::max(0, 2 * across + 2 - s.pads[1] - s.in_width),
          .packed_bytes = bytes,
          .scratch = kSums + operands / int64_t{sizeof(int32_t)} + 1};
}

std::unique_ptr<Step> row_winograd_step(const StepContext& context, const Group& group) {
  return std::make_unique<RowWinogradStep>(context, group);
}

}  // namespace facetrain::int7
