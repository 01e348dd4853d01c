#include "int7/layout.h"

#include <algorithm>
#include <numeric>

namespace facetrain::int7 {

int64_t Network::bytes() const {
  const auto bytes_of = [](const auto& numbers) { return static_cast<int64_t>(numbers.size() * sizeof numbers[0]); };
  int64_t bytes = bytes_of(pixels) + bytes_of(real_pixels);
  for (const LayerSpec& layer : layers) {
    bytes += bytes_of(layer.weights) + bytes_of(layer.bias) + bytes_of(layer.weight_scales);
    bytes += bytes_of(layer.positive) + bytes_of(layer.negative) + bytes_of(layer.offset);
    for (const FloatStep& step : layer.node.steps) {
      for (const FloatStep::Operand& operand : step.operands)
        bytes += bytes_of(operand.constant.values) + bytes_of(operand.constant.integers);
    }
  }
  return bytes;
}

int Arena::add(int64_t bytes, int first, int last) {
  constexpr int64_t kAlignment = 64;
  // A cache line more than is used: kernels read whole vectors.
  pieces_.push_back({(bytes + kAlignment - 1) / kAlignment * kAlignment + kAlignment, 0, first, last});
  return static_cast<int>(pieces_.size()) - 1;
}

void Arena::place() {
  std::vector<int> order(pieces_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return pieces_[a].bytes > pieces_[b].bytes; });
  std::vector<const Piece*> placed;  // by offset
  for (const int index : order) {
    Piece& piece = pieces_[index];
    piece.offset = 0;
    for (const Piece* other : placed) {
      if (other->last < piece.first || piece.last < other->first) continue;
      if (piece.offset + piece.bytes <= other->offset) break;
      piece.offset = std::max(piece.offset, other->offset + other->bytes);
    }
    const auto after = [](int64_t offset, const Piece* other) { return offset < other->offset; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), piece.offset, after), &piece);
    bytes_ = std::max(bytes_, piece.offset + piece.bytes);
  }
}

std::vector<Group> fuse(const Network& network) {
  using Kind = LayerSpec::Kind;
  const auto layers = static_cast<int>(network.layers.size());
  std::vector<std::vector<int>> readers(network.tensors.size());
  for (int l = 0; l < layers; ++l) {
    for (const int tensor : network.layers[l].inputs) readers[tensor].push_back(l);
  }
  std::vector<bool> taken(layers), stored(network.tensors.size());
  stored[0] = true;
  std::vector<Group> groups;
  for (int l = 0; l < layers; ++l) {
    if (taken[l]) continue;
    const LayerSpec& head = network.layers[l];
    Group group{.head = l, .output = head.output};
    const auto fits = [&](int layer, Kind kind) {
      return network.layers[layer].kind == kind && !network.tensors[network.layers[layer].output].real;
    };
    const auto take = [&](int layer) {
      taken[layer] = true;
      group.output = network.layers[layer].output;
      return layer;
    };
    // The one reader of the group's result so far, if it is of the kind.
    const auto only_reader = [&](Kind kind) {
      const auto& found = readers[group.output];
      return found.size() == 1 && fits(found[0], kind) ? found[0] : -1;
    };
    const bool starts = !network.tensors[head.output].real &&
                        (head.kind == Kind::conv || head.kind == Kind::pointwise || head.kind == Kind::add);
    if (starts) {
      if (head.kind == Kind::pointwise) {
        group.first = l;
      } else if (head.kind == Kind::add) {
        group.add = l;
      } else if (const int reader = only_reader(Kind::pointwise); reader >= 0) {
        group.first = take(reader);
      }
      if (const int reader = only_reader(Kind::add); reader >= 0 && group.add < 0) {
        const auto& inputs = network.layers[reader].inputs;
        if (stored[inputs[0] == group.output ? inputs[1] : inputs[0]]) group.add = take(reader);
      }
      if (group.add >= 0) {
        const int sum = group.output;
        std::vector<int> pointwise;
        for (const int reader : readers[sum]) {
          if (fits(reader, Kind::pointwise)) pointwise.push_back(reader);
        }
        if (pointwise.size() == 1) {
          if (readers[sum].size() > 1) stored[group.middle = sum] = true;
          group.last = take(pointwise[0]);
        }
      }
    }
    stored[group.output] = true;
    groups.push_back(group);
  }
  return groups;
}

}  // namespace facetrain::int7
