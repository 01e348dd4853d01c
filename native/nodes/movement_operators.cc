// Operators that give the numbers of their operands other places, or choose among them.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <set>

#include "nodes/operator.h"

namespace facetrain::nodes {
namespace {

Planned transpose(const Call& call) {
  Dims order(call[0].size());
  std::iota(order.rbegin(), order.rend(), 0);
  return transposed(call, call[0], call.list("perm", order));
}

Planned reshape(const Call& call) {
  const Dims& from = call[0];
  Dims dims = call.integers(1);
  int64_t known = 1;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 0 && i < from.size()) dims[i] = from[i];
    if (dims[i] == 0 || dims[i] < -1) call.refuse("a size of " + std::to_string(dims[i]), "sizes above zero");
    if (dims[i] > 0) known = std::min(kLargestArray, known * std::min(kLargestArray, dims[i]));
  }
  const auto open = std::find(dims.begin(), dims.end(), -1);
  if (open != dims.end()) *open = call.count(0) / known;
  return copied(call, dims);
}

Planned flatten(const Call& call) {
  const Dims& from = call[0];
  const int64_t axis = call.integer("axis", 1);
  const auto at = static_cast<size_t>(axis < 0 ? axis + static_cast<int64_t>(from.size()) : axis);
  Dims dims{1, 1};
  for (size_t i = 0; i < from.size(); ++i) dims[i < at ? 0 : 1] *= from[i];
  return copied(call, dims);
}

Planned squeeze(const Call& call) {
  std::set<size_t> gone;
  for (const int64_t axis : call.integers(1)) gone.insert(call.axis(axis, call[0].size()));
  Dims dims;
  for (size_t i = 0; i < call[0].size(); ++i) {
    if (!gone.contains(i)) dims.push_back(call[0][i]);
  }
  return copied(call, dims);
}

Planned unsqueeze(const Call& call) {
  const Dims& axes = call.integers(1);
  const size_t rank = call[0].size() + axes.size();
  std::set<size_t> added;
  for (const int64_t axis : axes) added.insert(call.axis(axis, rank));
  if (added.size() != axes.size()) call.refuse("an axis twice", "axes that differ");
  Dims dims;
  for (size_t i = 0, next = 0; i < rank; ++i) dims.push_back(added.contains(i) ? 1 : call[0][next++]);
  return copied(call, dims);
}

Planned concat(const Call& call) {
  Dims dims = call[0];
  const size_t axis = call.axis(call.integer("axis", 0), dims.size());
  dims[axis] = 0;
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < call.operands.size(); ++i) {
    Dims own = call[i];
    if (own.size() != dims.size()) call.refuse("operands of different ranks", "operands of one rank");
    dims[axis] += own[axis];
    lengths.push_back(own[axis]);
    own[axis] = dims[axis];
    if (own != dims) call.refuse("operands of different sizes", "operands that differ along the axis alone");
  }
  checked(call, dims);
  const Lanes lanes(dims, axis);
  for (int64_t& length : lengths) length *= lanes.inner;
  return {dims, [=](Operands x, float* y, float*) {
            int64_t first = 0;
            for (size_t i = 0; i < lengths.size(); ++i) {
              for (int64_t o = 0; o < lanes.outer; ++o)
                std::copy_n(x[i] + o * lengths[i], lengths[i], y + o * lanes.length * lanes.inner + first);
              first += lengths[i];
            }
          }};
}

Dims picked_dims(const Picks& picks, Dims dims) {
  for (size_t axis = 0; axis < dims.size(); ++axis) {
    if (picks.taken[axis]) dims[axis] = static_cast<int64_t>(picks.taken[axis]->size());
  }
  return dims;
}

Planned picked(const Call& call, Picks picks, Dims shape) {
  checked(call, picked_dims(picks, call[0]));
  return {checked(call, std::move(shape)), [from = call[0], picks = std::move(picks)](Operands x, float* y, float*) {
            run_picks(picks, from, x[0], picks.fill, y);
          }};
}

Planned picked(const Call& call, Picks picks) {
  Dims shape = picked_dims(picks, call[0]);
  return picked(call, std::move(picks), std::move(shape));
}

Picks no_picks(const Dims& dims) { return {std::vector<std::optional<std::vector<int32_t>>>(dims.size()), 0}; }

Picks gather_picks(const Call& call) {
  const Dims& x = call[0];
  const size_t axis = call.axis(call.integer("axis", 0), x.size());
  Picks picks = no_picks(x);
  auto& taken = picks.taken[axis].emplace();
  for (const int64_t given : call.integers(1)) {
    const int64_t at = given < 0 ? given + x[axis] : given;
    if (at < 0 || at >= x[axis]) call.refuse("index " + std::to_string(at), "indices within the axis");
    taken.push_back(static_cast<int32_t>(at));
  }
  return picks;
}

Planned gather(const Call& call) {
  const Dims& x = call[0];
  const auto axis = static_cast<int64_t>(call.axis(call.integer("axis", 0), x.size()));
  // The index's shape takes the axis's place.
  Dims dims(x.begin(), x.begin() + axis);
  dims.insert(dims.end(), call[1].begin(), call[1].end());
  dims.insert(dims.end(), x.begin() + axis + 1, x.end());
  return picked(call, gather_picks(call), dims);
}

Picks slice_picks(const Call& call) {
  const Dims &x = call[0], &starts = call.integers(1), &ends = call.integers(2);
  Dims axes(starts.size()), steps(starts.size(), 1);
  std::iota(axes.begin(), axes.end(), 0);
  if (call.has(3)) axes = call.integers(3);
  if (call.has(4)) steps = call.integers(4);
  if (ends.size() != starts.size() || axes.size() != starts.size() || steps.size() != starts.size())
    call.refuse("lists of different lengths", "one start, end, axis and step for each axis that it cuts");
  Picks picks = no_picks(x);
  for (size_t i = 0; i < starts.size(); ++i) {
    const size_t axis = call.axis(axes[i], x.size());
    if (picks.taken[axis]) call.refuse("an axis twice", "axes that differ");
    const int64_t step = steps[i], size = x[axis];
    if (step == 0 || step > size + 1 || step < -size - 1)
      call.refuse("a step of " + std::to_string(step), "a smaller step");
    const auto clamped = [&](int64_t value, int64_t low, int64_t high) {
      return std::clamp(value < 0 ? value + size : value, low, high);
    };
    const int64_t from = step > 0 ? clamped(starts[i], 0, size) : clamped(starts[i], 0, size - 1);
    const int64_t to = step > 0 ? clamped(ends[i], 0, size) : clamped(ends[i], -1, size - 1);
    if (size > kLargestAxis) call.refuse("an axis of " + std::to_string(size), "2^24 at most");
    auto& taken = picks.taken[axis].emplace();
    for (int64_t at = from; step > 0 ? at < to : at > to; at += step) taken.push_back(static_cast<int32_t>(at));
  }
  return picks;
}

Picks pad_picks(const Call& call) {
  const Dims &x = call[0], &pads = call.integers(1);
  const size_t rank = x.size();
  if (call.count(0) < 1) call.refuse("an empty operand", "1 to 2^28 numbers");
  const std::string mode = call.text("mode", "constant");
  if (mode != "constant" && mode != "edge" && mode != "reflect")
    call.refuse("mode " + mode, "constant, edge or reflect");
  if (pads.size() != 2 * rank) call.refuse("another number of pads", "two for each axis");
  Picks picks = no_picks(x);
  if (call.has(2) && call.count(2) > 0) picks.fill = call.constant(2).values[0];
  Dims dims = x;
  for (size_t axis = 0; axis < rank; ++axis) {
    for (const int64_t count : {pads[axis], pads[axis + rank]}) {
      if (count > kLargestArray) call.refuse("pads that are too large", "smaller pads");
      if (count < -kLargestArray) call.refuse("pads that leave nothing", "smaller pads");
      dims[axis] += count;
    }
    if (dims[axis] < 1) call.refuse("pads that leave nothing", "smaller pads");
    if (dims[axis] > kLargestAxis) call.refuse("pads that are too large", "smaller pads");
  }
  // Before any list of indices is made, which takes four bytes for each row of the output.
  if (count_of(dims) < 0) call.refuse("pads that are too large", "smaller pads");
  for (size_t axis = 0; axis < rank; ++axis) {
    const int64_t before = pads[axis], after = pads[axis + rank], size = x[axis];
    if (before == 0 && after == 0) continue;
    auto& taken = picks.taken[axis].emplace();
    for (int64_t i = -before; i < size + after; ++i) {
      int64_t at = i;
      if (i < 0 || i >= size) {
        at = mode == "edge" ? std::clamp<int64_t>(i, 0, size - 1) : i < 0 ? -i : 2 * (size - 1) - i;
        if (mode == "constant") at = -1;
        if (mode == "reflect" && (at < 0 || at >= size))
          call.refuse("pads that are larger than the axis", "smaller pads");
      }
      taken.push_back(static_cast<int32_t>(at));
    }
  }
  return picks;
}

Planned expand(const Call& call) {
  const Dims dims = broadcast_dims(call, call[0], call.integers(1));
  const Walk<1> walk(dims, {broadcast_strides(call[0], dims.size())});
  return {dims, [=](Operands x, float* y, float*) { run_transposed(walk, x[0], y); }};
}

Planned depth_to_space(const Call& call) {
  const Dims& d = call[0];
  const int64_t block = call.integer("blocksize", 0);
  if (d.size() != 4 || block < 1 || block > 1024 || d[1] % (block * block) != 0)
    call.refuse("a block of " + std::to_string(block), "one whose square divides the channels of [N, C, H, W]");
  const int64_t channels = d[1] / block / block;
  const bool crd = call.text("mode", "DCR") == "CRD";
  const Dims split =
      crd ? Dims{d[0], channels, block, block, d[2], d[3]} : Dims{d[0], block, block, channels, d[2], d[3]};
  Planned result = transposed(call, split, crd ? Dims{0, 1, 4, 2, 5, 3} : Dims{0, 3, 4, 1, 5, 2});
  result.dims = {d[0], channels, d[2] * block, d[3] * block};
  return result;
}

// Where a Resize reads: for each position of an axis's output, its neighbors in the input and the share of the upper.
struct Resized {
  int64_t axis, from, to;
  std::vector<int32_t> low, high;  // by the nearest: low alone
  std::vector<float> share;
};

std::vector<Resized> resized_axes(const Call& call) {
  const Dims& from = call[0];
  const size_t rank = from.size();
  if (call.count(0) < 1) call.refuse("an empty operand", "1 to 2^28 numbers");
  const std::string mode = call.text("mode", "nearest"),
                    place = call.text("coordinate_transformation_mode", "half_pixel"),
                    nearest = call.text("nearest_mode", "round_prefer_floor");
  const bool by_sizes = call.has(3) && !call.integers(3).empty();
  if (by_sizes ? call.integers(3).size() != rank : call.constant(2).values.size() != rank)
    call.refuse("another number of sizes", "one for each axis");
  if (mode != "nearest" && mode != "linear") call.refuse("mode " + mode, "nearest or linear");
  std::vector<Resized> result;
  for (size_t axis = 0; axis < rank; ++axis) {
    const int64_t size = from[axis];
    const double given = by_sizes ? 0 : call.constant(2).values[axis];
    const double wanted = std::floor(static_cast<double>(size) * given);
    const int64_t to = by_sizes                      ? call.integers(3)[axis]
                       : wanted >= 1 && wanted < 1e9 ? static_cast<int64_t>(wanted)
                                                     : 0;
    if (to < 1 || to > (1 << 20)) call.refuse("a size of " + std::to_string(to), "1 to 2^20");
    if (to == size) continue;
    // In float32, as in ONNX Runtime: 4 / (8 / 14) is 6.9999995 there, of which the floor is 6.
    const float scale = by_sizes ? static_cast<float>(to) / static_cast<float>(size) : static_cast<float>(given);
    Resized one{.axis = static_cast<int64_t>(axis), .from = size, .to = to, .low = {}, .high = {}, .share = {}};
    for (int64_t i = 0; i < to; ++i) {
      const auto at = static_cast<float>(i);
      float source = 0;
      if (place == "asymmetric")
        source = at / scale;
      else if (place == "align_corners")
        source = to == 1 ? 0 : at * static_cast<float>(size - 1) / static_cast<float>(to - 1);
      else if (place == "half_pixel" || (place == "pytorch_half_pixel" && to > 1))
        source = (at + 0.5f) / scale - 0.5f;
      else if (place != "pytorch_half_pixel")
        call.refuse("coordinates " + place, "half_pixel, asymmetric or align_corners");
      double x = source;
      if (mode == "nearest") {
        const double whole = nearest == "floor"               ? std::floor(x)
                             : nearest == "ceil"              ? std::ceil(x)
                             : nearest == "round_prefer_ceil" ? std::floor(x + 0.5)
                                                              : std::ceil(x - 0.5);
        one.low.push_back(static_cast<int32_t>(std::clamp(whole, 0.0, static_cast<double>(size - 1))));
      } else {
        x = std::clamp(x, 0.0, static_cast<double>(size - 1));
        one.low.push_back(static_cast<int32_t>(std::floor(x)));
        one.high.push_back(static_cast<int32_t>(std::min<int64_t>(one.low.back() + 1, size - 1)));
        one.share.push_back(rounded(x - std::floor(x)));
      }
    }
    result.push_back(std::move(one));
  }
  return result;
}

Picks resize_picks(const Call& call) {
  Picks picks = no_picks(call[0]);
  for (Resized& axis : resized_axes(call)) picks.taken[axis.axis] = std::move(axis.low);
  return picks;
}

// Interpolates along one axis after the other: value = (1 - share) * x[low] + share * x[high].
Planned resize_linear(const Call& call) {
  struct Pass {
    Resized axis;
    int64_t outer, inner;
  };
  std::vector<Pass> passes;
  Dims dims = call[0];
  int64_t largest = 0;
  for (Resized& axis : resized_axes(call)) {
    const Lanes lanes(dims, static_cast<size_t>(axis.axis));
    dims[axis.axis] = axis.to;
    checked(call, dims);
    largest = std::max(largest, in_lines(count_of(dims)));
    passes.push_back({std::move(axis), lanes.outer, lanes.inner});
  }
  if (passes.empty()) return copied(call, dims);
  const int64_t scratch_size = passes.size() > 1 ? 2 * largest : 0;
  return {checked(call, dims),
          [passes = std::move(passes), largest](Operands x, float* y, float* scratch) {
            const float* from = x[0];
            for (size_t n = 0; n < passes.size(); ++n) {
              const auto& [axis, outer, inner] = passes[n];
              float* to = n + 1 == passes.size() ? y : scratch + static_cast<int64_t>(n % 2) * largest;
              float* next = to;
              for (int64_t o = 0; o < outer; ++o) {
                for (int64_t k = 0; k < axis.to; ++k) {
                  const float part = axis.share[k];
                  const float *low = from + (o * axis.from + axis.low[k]) * inner,
                              *high = from + (o * axis.from + axis.high[k]) * inner;
                  for (int64_t i = 0; i < inner; ++i) *next++ = low[i] * (1 - part) + high[i] * part;
                }
              }
              from = to;
            }
          },
          scratch_size};
}

Planned resize(const Call& call) {
  return call.text("mode", "nearest") == "nearest" ? picked(call, resize_picks(call)) : resize_linear(call);
}

// Copies the block of x, whose axes from `axis` on have the strides `in` and become blocks of `out` numbers.
template <typename T>
void pick_block(const Picks& picks, const ArrayDims& dims, const std::array<int64_t, kMostAxes + 1>& in,
                const std::array<int64_t, kMostAxes + 1>& out, size_t axis, size_t last, const T* x, T fill, T* y) {
  if (axis > last) {
    std::copy_n(x, in[axis], y);
    return;
  }
  const auto& taken = picks.taken[axis];
  const auto count = taken ? static_cast<int64_t>(taken->size()) : dims[axis];
  const int64_t step = in[axis + 1], size = out[axis + 1];
  if (step == 1 && size == 1 && taken) {  // along the last axis
    for (int64_t i = 0; i < count; ++i) {
      const int32_t at = (*taken)[i];
      y[i] = at < 0 ? fill : x[at];
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i, y += size) {
    const int64_t at = taken ? (*taken)[i] : i;
    if (at < 0) {
      std::fill_n(y, size, fill);
    } else {
      pick_block(picks, dims, in, out, axis + 1, last, x + at * step, fill, y);
    }
  }
}

}  // namespace

Operators movement_operators() {
  static constexpr Operator kOperators[]{
      {"Concat", concat},
      {"DepthToSpace", depth_to_space},
      {"Expand", expand},
      {"Flatten", flatten},
      {"Gather", gather},
      {"Pad", [](const Call& c) { return picked(c, pad_picks(c)); }},
      {"Reshape", reshape},
      {"Resize", resize},
      {"Slice", [](const Call& c) { return picked(c, slice_picks(c)); }},
      {"Squeeze", squeeze},
      {"Transpose", transpose},
      {"Unsqueeze", unsqueeze},
  };
  return kOperators;
}

}  // namespace facetrain::nodes

namespace facetrain {

std::optional<Picks> picks_of(const FloatStep& step, const ArrayDims& input, const std::string& subject) {
  const std::vector<nodes::Known> operands = nodes::knowns_of(step, input);
  const nodes::Call call{step, operands, subject};
  if (step.op == "Gather") return call[1].size() == 1 ? std::optional(nodes::gather_picks(call)) : std::nullopt;
  if (step.op == "Slice") return nodes::slice_picks(call);
  if (step.op == "Pad") return nodes::pad_picks(call);
  if (step.op == "Resize" && call.text("mode", "nearest") == "nearest") return nodes::resize_picks(call);
  return std::nullopt;
}

template <typename T>
void run_picks(const Picks& picks, const ArrayDims& input, const T* x, T fill, T* y) {
  std::array<int64_t, nodes::kMostAxes + 1> in{}, out{};
  size_t last = 0;
  in[input.size()] = out[input.size()] = 1;
  for (size_t axis = input.size(); axis-- > 0;) {
    const auto& taken = picks.taken[axis];
    in[axis] = in[axis + 1] * input[axis];
    out[axis] = out[axis + 1] * (taken ? static_cast<int64_t>(taken->size()) : input[axis]);
    if (taken) last = std::max(last, axis);
  }
  if (input.empty()) {
    *y = *x;
    return;
  }
  nodes::pick_block(picks, input, in, out, 0, last, x, fill, y);
}

template void run_picks(const Picks&, const ArrayDims&, const float*, float, float*);
template void run_picks(const Picks&, const ArrayDims&, const int8_t*, int8_t, int8_t*);

bool moves_numbers(const FloatStep& step) {
  static const std::set<std::string> moves{"DepthToSpace", "Flatten", "Gather",  "GlobalMaxPool", "Identity", "MaxPool",
                                           "Reshape",      "Slice",   "Squeeze", "Transpose",     "Unsqueeze"};
  if (moves.contains(step.op)) return true;
  const auto mode = step.texts.find("mode");
  if (step.op == "Resize") return mode == step.texts.end() || mode->second == "nearest";
  if (step.op != "Pad") return false;
  // Zeros are integers at every scale.
  const bool zeros =
      step.operands.size() < 3 || step.operands[2].constant.values.empty() || step.operands[2].constant.values[0] == 0;
  return zeros || (mode != step.texts.end() && mode->second != "constant");
}

}  // namespace facetrain
