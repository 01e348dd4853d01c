#include "quant/float_steps.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <set>

#include "error.h"

namespace facetrain {
namespace {

using Dims = std::vector<int64_t>;
using Arrays = std::vector<const FloatArray*>;  // null: an operand that is left out

// Bounds the memory that a damaged file can ask for. The largest tensors of real networks have a hundredth of it.
constexpr int64_t kLargestArray = int64_t{1} << 28;

// The count of numbers in an array; -1 where it is too large, or a dimension is negative.
int64_t count_of(const Dims& dims) {
  int64_t count = 1;
  for (const int64_t dim : dims) {
    if (dim < 0 || (dim > 0 && count > kLargestArray / dim)) return -1;
    count *= dim;
  }
  return count;
}

// A step with its operands, for the operators below.
struct Call {
  const FloatStep& step;
  const Arrays& operands;
  const std::string& subject;

  [[noreturn]] void refuse(const std::string& found, const std::string& allowed) const {
    throw Error("InvalidModel", subject, step.op + " with " + found, allowed);
  }
  bool has(size_t index) const { return index < operands.size() && operands[index] != nullptr; }
  const FloatArray& operator[](size_t index) const {
    if (!has(index)) refuse("no operand " + std::to_string(index), "all operands that it needs");
    const FloatArray& array = *operands[index];
    if (static_cast<int64_t>(array.values.size()) != count_of(array.dims))
      refuse("operand " + std::to_string(index) + " of " + std::to_string(array.values.size()) + " values",
             "as many as its dimensions say");
    return array;
  }
  double number(const char* name, double otherwise) const {
    const auto found = step.numbers.find(name);
    return found == step.numbers.end() || found->second.empty() ? otherwise : found->second[0];
  }
  Dims list(const char* name, const Dims& otherwise) const {
    const auto found = step.numbers.find(name);
    if (found == step.numbers.end()) return otherwise;
    Dims result;
    for (const double value : found->second) result.push_back(whole(value));
    return result;
  }
  std::string text(const char* name, const std::string& otherwise) const {
    const auto found = step.texts.find(name);
    return found == step.texts.end() ? otherwise : found->second;
  }
  // The integers of a constant operand.
  const Dims& integers(size_t index) const {
    const FloatArray& array = (*this)[index];
    if (array.integers.size() != array.values.size()) refuse("numbers that are no integers", "constant integers");
    return array.integers;
  }
  // An axis from 0 on; a negative one counts from the end.
  size_t axis(int64_t value, size_t rank) const {
    const int64_t from_start = value < 0 ? value + static_cast<int64_t>(rank) : value;
    if (from_start < 0 || from_start >= static_cast<int64_t>(rank))
      refuse("axis " + std::to_string(value) + " of " + std::to_string(rank), "an axis that there is");
    return static_cast<size_t>(from_start);
  }

 private:
  int64_t whole(double value) const {
    if (!(std::abs(value) < 1e15)) refuse("an attribute of " + std::to_string(value), "a smaller number");
    return static_cast<int64_t>(value);
  }
};

FloatArray make(const Call& call, Dims dims, float value = 0) {
  const int64_t count = count_of(dims);
  if (count < 1) call.refuse("an output that is empty or too large", "1 to 2^28 numbers");
  return {std::move(dims), std::vector<float>(static_cast<size_t>(count), value), {}};
}

Dims strides_of(const Dims& dims) {
  Dims strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

// Calls visit(output position, input position) for each element of `dims`, where a step along an axis moves the input
// by `strides`.
template <typename Visit>
void for_each_offset(const Dims& dims, const Dims& strides, int64_t first, const Visit& visit) {
  const int64_t count = count_of(dims);
  Dims index(dims.size());
  int64_t at = first;
  for (int64_t out = 0; out < count; ++out) {
    visit(out, at);
    for (size_t axis = dims.size(); axis-- > 0;) {
      at += strides[axis];
      if (++index[axis] < dims[axis]) break;
      at -= strides[axis] * dims[axis];
      index[axis] = 0;
    }
  }
}

Dims broadcast_dims(const Call& call, const Dims& a, const Dims& b) {
  Dims result(std::max(a.size(), b.size()), 1);
  for (size_t i = 0; i < result.size(); ++i) {
    const int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1, y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1) call.refuse("operands of different shapes", "shapes that broadcast");
    result[result.size() - 1 - i] = x == 1 ? y : x;
  }
  return result;
}

Dims broadcast_strides(const Dims& dims, size_t rank) {
  const Dims own = strides_of(dims);
  Dims result(rank, 0);
  for (size_t i = 0; i < dims.size(); ++i) result[rank - dims.size() + i] = dims[i] == 1 ? 0 : own[i];
  return result;
}

using Binary = float (*)(float, float);

FloatArray binary(const Call& call, const FloatArray& a, const FloatArray& b, Binary function) {
  FloatArray y = make(call, broadcast_dims(call, a.dims, b.dims));
  if (a.values.size() == y.values.size() && b.values.size() == y.values.size()) {
    for (size_t i = 0; i < y.values.size(); ++i) y.values[i] = function(a.values[i], b.values[i]);
    return y;
  }
  const Dims a_strides = broadcast_strides(a.dims, y.dims.size()), b_strides = broadcast_strides(b.dims, y.dims.size());
  std::vector<int64_t> b_at(y.values.size());
  for_each_offset(y.dims, b_strides, 0, [&](int64_t out, int64_t at) { b_at[out] = at; });
  for_each_offset(y.dims, a_strides, 0,
                  [&](int64_t out, int64_t at) { y.values[out] = function(a.values[at], b.values[b_at[out]]); });
  return y;
}

// Of two or more operands, from the left.
FloatArray binary_chain(const Call& call, Binary function) {
  FloatArray y = call[0];
  for (size_t i = 1; i < call.operands.size(); ++i) y = binary(call, y, call[i], function);
  return y;
}

template <typename Function>
FloatArray map(const FloatArray& x, const Function& function) {
  FloatArray y = x;
  for (float& value : y.values) value = function(value);
  return y;
}

float rounded(double value) { return static_cast<float>(value); }
float sigmoid(float x) { return rounded(1.0 / (1.0 + std::exp(-double{x}))); }

FloatArray clip(const Call& call) {
  const auto bound = [&](size_t index, float otherwise) {
    if (!call.has(index)) return otherwise;
    if (call[index].values.size() != 1) call.refuse("a bound that is not one number", "one number");
    return call[index].values[0];
  };
  const float low = bound(1, std::numeric_limits<float>::lowest()), high = bound(2, std::numeric_limits<float>::max());
  return map(call[0], [=](float x) { return std::min(std::max(x, low), high); });
}

FloatArray hard_sigmoid(const Call& call) {
  const auto alpha = rounded(call.number("alpha", 0.2)), beta = rounded(call.number("beta", 0.5));
  return map(call[0], [=](float x) { return std::max(0.0f, std::min(1.0f, alpha * x + beta)); });
}

// Splits an array at an axis into [outer, length, inner].
struct Lanes {
  int64_t outer = 1, length = 1, inner = 1;
  Lanes(const Dims& dims, size_t axis) : length(dims[axis]) {
    for (size_t i = 0; i < axis; ++i) outer *= dims[i];
    for (size_t i = axis + 1; i < dims.size(); ++i) inner *= dims[i];
  }
};

FloatArray softmax(const Call& call) {
  FloatArray y = call[0];
  const Lanes lanes(y.dims, call.axis(static_cast<int64_t>(call.number("axis", -1)), y.dims.size()));
  for (int64_t o = 0; o < lanes.outer; ++o) {
    for (int64_t i = 0; i < lanes.inner; ++i) {
      float* x = y.values.data() + o * lanes.length * lanes.inner + i;
      float largest = x[0];
      for (int64_t k = 1; k < lanes.length; ++k) largest = std::max(largest, x[k * lanes.inner]);
      double sum = 0;
      for (int64_t k = 0; k < lanes.length; ++k) sum += std::exp(double{x[k * lanes.inner]} - largest);
      for (int64_t k = 0; k < lanes.length; ++k)
        x[k * lanes.inner] = rounded(std::exp(double{x[k * lanes.inner]} - largest) / sum);
    }
  }
  return y;
}

// Reduces the axes with `add` from `start`, and maps each result with `finish(sum, count)`.
FloatArray reduce(
    const Call& call, double start, double (*add)(double, double),
    double (*finish)(double, double) = [](double sum, double) { return sum; }) {
  const FloatArray& x = call[0];
  Dims axes = call.has(1) ? call.integers(1) : call.list("axes", {});
  if (axes.empty()) {
    axes.resize(x.dims.size());
    std::iota(axes.begin(), axes.end(), 0);
  }
  Dims kept = x.dims;
  double count = 1;
  for (const int64_t axis : axes) {
    const size_t at = call.axis(axis, x.dims.size());
    count *= static_cast<double>(kept[at]);
    kept[at] = 1;
  }
  FloatArray y = make(call, kept);
  std::vector<double> sums(y.values.size(), start);
  for_each_offset(x.dims, broadcast_strides(kept, x.dims.size()), 0,
                  [&](int64_t in, int64_t out) { sums[out] = add(sums[out], x.values[in]); });
  for (size_t i = 0; i < sums.size(); ++i) y.values[i] = rounded(finish(sums[i], count));
  if (call.number("keepdims", 1) == 0) {
    std::set<size_t> gone;
    for (const int64_t axis : axes) gone.insert(call.axis(axis, x.dims.size()));
    y.dims.clear();
    for (size_t i = 0; i < kept.size(); ++i) {
      if (!gone.contains(i)) y.dims.push_back(kept[i]);
    }
  }
  return y;
}

FloatArray batch_norm(const Call& call) {
  FloatArray y = call[0];
  if (y.dims.size() < 2) call.refuse("a vector", "[N, C, ...]");
  const Lanes lanes(y.dims, 1);
  for (size_t i = 1; i < 5; ++i) {
    if (static_cast<int64_t>(call[i].values.size()) != lanes.length)
      call.refuse("another number of channels", "one number for each channel");
  }
  const double epsilon = call.number("epsilon", 1e-5);
  for (int64_t o = 0; o < lanes.outer; ++o) {
    for (int64_t c = 0; c < lanes.length; ++c) {
      const auto scale = rounded(call[1].values[c] / std::sqrt(call[4].values[c] + epsilon));
      const float offset = call[2].values[c] - call[3].values[c] * scale;
      float* x = y.values.data() + (o * lanes.length + c) * lanes.inner;
      for (int64_t i = 0; i < lanes.inner; ++i) x[i] = x[i] * scale + offset;
    }
  }
  return y;
}

// Normalizes over the axes from `axis` on.
FloatArray layer_norm(const Call& call) {
  FloatArray y = call[0];
  const size_t axis = call.axis(static_cast<int64_t>(call.number("axis", -1)), y.dims.size());
  const Lanes lanes(y.dims, axis);
  const int64_t length = lanes.length * lanes.inner;
  const double epsilon = call.number("epsilon", 1e-5);
  for (size_t i = 1; i < 3; ++i) {
    if (call.has(i) && static_cast<int64_t>(call[i].values.size()) != length)
      call.refuse("another number of values", "one for each value that is normalized");
  }
  for (int64_t o = 0; o < lanes.outer; ++o) {
    float* x = y.values.data() + o * length;
    double sum = 0, square = 0;
    for (int64_t i = 0; i < length; ++i) sum += x[i];
    const double mean = sum / static_cast<double>(length);
    for (int64_t i = 0; i < length; ++i) square += (x[i] - mean) * (x[i] - mean);
    const double factor = 1 / std::sqrt(square / static_cast<double>(length) + epsilon);
    for (int64_t i = 0; i < length; ++i) {
      const double offset = call.has(2) ? call[2].values[i] : 0;
      x[i] = rounded((x[i] - mean) * factor * call[1].values[i] + offset);
    }
  }
  return y;
}

FloatArray matmul(const Call& call) {
  const FloatArray &a = call[0], &b = call[1];
  if (a.dims.size() < 2 || b.dims.size() < 2 || a.dims.back() != b.dims[b.dims.size() - 2])
    call.refuse("operands that do not fit", "[..., m, k] and [..., k, n]");
  const int64_t m = a.dims[a.dims.size() - 2], k = a.dims.back(), n = b.dims.back();
  const Dims a_stack(a.dims.begin(), a.dims.end() - 2), b_stack(b.dims.begin(), b.dims.end() - 2);
  const Dims stack = broadcast_dims(call, a_stack, b_stack);
  Dims dims = stack;
  dims.insert(dims.end(), {m, n});
  FloatArray y = make(call, dims);
  std::vector<int64_t> b_at(std::max<int64_t>(1, count_of(stack)));
  for_each_offset(stack, broadcast_strides(b_stack, stack.size()), 0, [&](int64_t out, int64_t at) { b_at[out] = at; });
  for_each_offset(stack, broadcast_strides(a_stack, stack.size()), 0, [&](int64_t out, int64_t at) {
    const float *x = a.values.data() + at * m * k, *w = b.values.data() + b_at[out] * k * n;
    float* row = y.values.data() + out * m * n;
    for (int64_t i = 0; i < m; ++i, row += n, x += k) {
      for (int64_t j = 0; j < k; ++j) {
        for (int64_t o = 0; o < n; ++o) row[o] += x[j] * w[j * n + o];
      }
    }
  });
  return y;
}

FloatArray transposed(const Call& call, const FloatArray& x, const Dims& order) {
  if (order.size() != x.dims.size()) call.refuse("another number of axes", "an order of its operand's axes");
  const Dims own = strides_of(x.dims);
  Dims dims, strides;
  std::set<size_t> seen;
  for (const int64_t axis : order) {
    const size_t at = call.axis(axis, x.dims.size());
    if (!seen.insert(at).second) call.refuse("an axis twice", "an order of its operand's axes");
    dims.push_back(x.dims[at]);
    strides.push_back(own[at]);
  }
  FloatArray y = make(call, dims);
  for_each_offset(dims, strides, 0, [&](int64_t out, int64_t at) { y.values[out] = x.values[at]; });
  return y;
}

FloatArray gemm(const Call& call) {
  const auto operand = [&](size_t index, const char* flag) {
    if (call[index].dims.size() != 2) call.refuse("an operand that is no matrix", "matrices");
    return call.number(flag, 0) != 0 ? transposed(call, call[index], {1, 0}) : call[index];
  };
  const FloatArray a = operand(0, "transA"), b = operand(1, "transB");
  FloatArray y = matmul({call.step, {&a, &b}, call.subject});
  const auto alpha = rounded(call.number("alpha", 1)), beta = rounded(call.number("beta", 1));
  for (float& value : y.values) value *= alpha;
  if (!call.has(2)) return y;
  const FloatArray bias = map(call[2], [=](float x) { return x * beta; });
  return binary(call, y, bias, [](float p, float q) { return p + q; });
}

FloatArray transpose(const Call& call) {
  Dims order(call[0].dims.size());
  std::iota(order.rbegin(), order.rend(), 0);
  return transposed(call, call[0], call.list("perm", order));
}

FloatArray shaped(const Call& call, Dims dims) {
  FloatArray y = call[0];
  if (count_of(dims) != static_cast<int64_t>(y.values.size()))
    call.refuse("another number of values in its shape", "as many as it has");
  y.dims = std::move(dims);
  return y;
}

FloatArray reshape(const Call& call) {
  const Dims& from = call[0].dims;
  Dims dims = call.integers(1);
  int64_t known = 1;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 0 && i < from.size()) dims[i] = from[i];
    if (dims[i] == 0 || dims[i] < -1) call.refuse("a size of " + std::to_string(dims[i]), "sizes above zero");
    if (dims[i] > 0) known = std::min(kLargestArray, known * std::min(kLargestArray, dims[i]));
  }
  const auto open = std::find(dims.begin(), dims.end(), -1);
  if (open != dims.end()) *open = static_cast<int64_t>(call[0].values.size()) / known;
  return shaped(call, dims);
}

FloatArray flatten(const Call& call) {
  const Dims& from = call[0].dims;
  const auto axis = static_cast<int64_t>(call.number("axis", 1));
  const auto at = static_cast<size_t>(axis < 0 ? axis + static_cast<int64_t>(from.size()) : axis);
  Dims dims{1, 1};
  for (size_t i = 0; i < from.size(); ++i) dims[i < at ? 0 : 1] *= from[i];
  return shaped(call, dims);
}

FloatArray squeeze(const Call& call) {
  std::set<size_t> gone;
  for (const int64_t axis : call.integers(1)) gone.insert(call.axis(axis, call[0].dims.size()));
  Dims dims;
  for (size_t i = 0; i < call[0].dims.size(); ++i) {
    if (!gone.contains(i)) dims.push_back(call[0].dims[i]);
  }
  return shaped(call, dims);
}

FloatArray unsqueeze(const Call& call) {
  const Dims& axes = call.integers(1);
  const size_t rank = call[0].dims.size() + axes.size();
  std::set<size_t> added;
  for (const int64_t axis : axes) added.insert(call.axis(axis, rank));
  if (added.size() != axes.size()) call.refuse("an axis twice", "axes that differ");
  Dims dims;
  for (size_t i = 0, next = 0; i < rank; ++i) dims.push_back(added.contains(i) ? 1 : call[0].dims[next++]);
  return shaped(call, dims);
}

FloatArray concat(const Call& call) {
  Dims dims = call[0].dims;
  const size_t axis = call.axis(static_cast<int64_t>(call.number("axis", 0)), dims.size());
  dims[axis] = 0;
  for (size_t i = 0; i < call.operands.size(); ++i) {
    Dims own = call[i].dims;
    if (own.size() != dims.size()) call.refuse("operands of different ranks", "operands of one rank");
    dims[axis] += own[axis];
    own[axis] = dims[axis];
    if (own != dims) call.refuse("operands of different sizes", "operands that differ along the axis alone");
  }
  FloatArray y = make(call, dims);
  const Lanes lanes(dims, axis);
  int64_t first = 0;
  for (const FloatArray* part : call.operands) {
    const int64_t length = part->dims[axis] * lanes.inner;
    for (int64_t o = 0; o < lanes.outer; ++o) {
      std::copy_n(part->values.data() + o * length, length, y.values.data() + o * lanes.length * lanes.inner + first);
    }
    first += length;
  }
  return y;
}

FloatArray slice(const Call& call) {
  const FloatArray& x = call[0];
  const Dims &starts = call.integers(1), &ends = call.integers(2);
  Dims axes(starts.size()), steps(starts.size(), 1);
  std::iota(axes.begin(), axes.end(), 0);
  if (call.has(3)) axes = call.integers(3);
  if (call.has(4)) steps = call.integers(4);
  if (ends.size() != starts.size() || axes.size() != starts.size() || steps.size() != starts.size())
    call.refuse("lists of different lengths", "one start, end, axis and step for each axis that it cuts");
  Dims dims = x.dims, strides = strides_of(x.dims);
  std::set<size_t> seen;
  int64_t first = 0;
  for (size_t i = 0; i < starts.size(); ++i) {
    const size_t axis = call.axis(axes[i], x.dims.size());
    if (!seen.insert(axis).second) call.refuse("an axis twice", "axes that differ");
    const int64_t step = steps[i], size = x.dims[axis];
    if (step == 0 || step > size + 1 || step < -size - 1)
      call.refuse("a step of " + std::to_string(step), "a smaller step");
    const auto clamped = [&](int64_t value, int64_t low, int64_t high) {
      return std::clamp(value < 0 ? value + size : value, low, high);
    };
    const int64_t from = step > 0 ? clamped(starts[i], 0, size) : clamped(starts[i], 0, size - 1);
    const int64_t to = step > 0 ? clamped(ends[i], 0, size) : clamped(ends[i], -1, size - 1);
    dims[axis] = std::max<int64_t>(0, step > 0 ? (to - from + step - 1) / step : (from - to - step - 1) / -step);
    first += from * strides[axis];
    strides[axis] *= step;
  }
  FloatArray y = make(call, dims);
  for_each_offset(dims, strides, first, [&](int64_t out, int64_t at) { y.values[out] = x.values[at]; });
  return y;
}

// Takes the entries `index` of an axis; -1 takes `value`.
FloatArray taken(const Call& call, const FloatArray& x, size_t axis, const Dims& index, float value = 0) {
  Dims dims = x.dims;
  dims[axis] = static_cast<int64_t>(index.size());
  FloatArray y = make(call, dims, value);
  const Lanes from(x.dims, axis), to(dims, axis);
  for (int64_t o = 0; o < to.outer; ++o) {
    for (int64_t k = 0; k < to.length; ++k) {
      if (index[k] < 0) continue;
      std::copy_n(x.values.data() + (o * from.length + index[k]) * from.inner, from.inner,
                  y.values.data() + (o * to.length + k) * to.inner);
    }
  }
  return y;
}

FloatArray gather(const Call& call) {
  const FloatArray& x = call[0];
  const size_t axis = call.axis(static_cast<int64_t>(call.number("axis", 0)), x.dims.size());
  Dims index = call.integers(1);
  for (int64_t& at : index) {
    if (at < 0) at += x.dims[axis];
    if (at < 0 || at >= x.dims[axis]) call.refuse("index " + std::to_string(at), "indices within the axis");
  }
  FloatArray y = taken(call, x, axis, index);
  // The index's shape takes the axis's place.
  const Dims& shape = call[1].dims;
  Dims dims(x.dims.begin(), x.dims.begin() + static_cast<int64_t>(axis));
  dims.insert(dims.end(), shape.begin(), shape.end());
  dims.insert(dims.end(), x.dims.begin() + static_cast<int64_t>(axis) + 1, x.dims.end());
  y.dims = dims;
  return y;
}

FloatArray pad(const Call& call) {
  FloatArray y = call[0];
  const Dims& pads = call.integers(1);
  const size_t rank = y.dims.size();
  const std::string mode = call.text("mode", "constant");
  const float value = call.has(2) && !call[2].values.empty() ? call[2].values[0] : 0;
  if (pads.size() != 2 * rank) call.refuse("another number of pads", "two for each axis");
  Dims dims = y.dims;
  for (size_t axis = 0; axis < rank; ++axis) {
    for (const int64_t count : {pads[axis], pads[axis + rank]}) {
      if (count > kLargestArray) call.refuse("pads that are too large", "smaller pads");
      if (count < -kLargestArray) call.refuse("pads that leave nothing", "smaller pads");
      dims[axis] += count;
    }
    if (dims[axis] < 1) call.refuse("pads that leave nothing", "smaller pads");
  }
  // Before any list of indices is made, which would take eight bytes for each row of the output.
  if (count_of(dims) < 0) call.refuse("pads that are too large", "smaller pads");
  for (size_t axis = 0; axis < rank; ++axis) {
    const int64_t before = pads[axis], after = pads[axis + rank], size = y.dims[axis];
    if (before == 0 && after == 0) continue;
    Dims index;
    for (int64_t i = -before; i < size + after; ++i) {
      if (i >= 0 && i < size) {
        index.push_back(i);
      } else if (mode == "edge") {
        index.push_back(std::clamp<int64_t>(i, 0, size - 1));
      } else if (mode == "reflect") {
        const int64_t reflected = i < 0 ? -i : 2 * (size - 1) - i;
        if (reflected < 0 || reflected >= size) call.refuse("pads that are larger than the axis", "smaller pads");
        index.push_back(reflected);
      } else if (mode == "constant") {
        index.push_back(-1);
      } else {
        call.refuse("mode " + mode, "constant, edge or reflect");
      }
    }
    y = taken(call, y, axis, index, value);
  }
  return y;
}

FloatArray expand(const Call& call) {
  const FloatArray& x = call[0];
  FloatArray y = make(call, broadcast_dims(call, x.dims, call.integers(1)));
  for_each_offset(y.dims, broadcast_strides(x.dims, y.dims.size()), 0,
                  [&](int64_t out, int64_t at) { y.values[out] = x.values[at]; });
  return y;
}

FloatArray depth_to_space(const Call& call) {
  const Dims& d = call[0].dims;
  const auto block = static_cast<int64_t>(call.number("blocksize", 0));
  if (d.size() != 4 || block < 1 || block > 1024 || d[1] % (block * block) != 0)
    call.refuse("a block of " + std::to_string(block), "one whose square divides the channels of [N, C, H, W]");
  const int64_t channels = d[1] / block / block;
  const bool crd = call.text("mode", "DCR") == "CRD";
  const Dims split =
      crd ? Dims{d[0], channels, block, block, d[2], d[3]} : Dims{d[0], block, block, channels, d[2], d[3]};
  const Dims order = crd ? Dims{0, 1, 4, 2, 5, 3} : Dims{0, 3, 4, 1, 5, 2};
  FloatArray y = transposed(call, shaped(call, split), order);
  y.dims = {d[0], channels, d[2] * block, d[3] * block};
  return y;
}

// ---- Windows: [N, C, H, W] ----

struct Window {
  int64_t size[2], kernel[2], strides[2], dilations[2], pads[2], out[2];

  Window(const Call& call, const Dims& x, const Dims& kernel_dims) {
    const Dims steps = call.list("strides", {1, 1}), spread = call.list("dilations", {1, 1}),
               around = call.list("pads", {0, 0, 0, 0});
    if (x.size() != 4 || kernel_dims.size() != 2 || steps.size() != 2 || spread.size() != 2 || around.size() != 4)
      call.refuse("other than two dimensions", "a height and a width");
    const bool up = call.number("ceil_mode", 0) != 0;
    for (int i = 0; i < 2; ++i) {
      size[i] = x[2 + i];
      kernel[i] = kernel_dims[i];
      strides[i] = steps[i];
      dilations[i] = spread[i];
      pads[i] = around[i];
      for (const int64_t value : {kernel[i], strides[i], dilations[i], around[i] + 1, around[i + 2] + 1}) {
        if (value < 1 || value > (1 << 14)) call.refuse("a window of " + std::to_string(value), "1 to 2^14");
      }
      const int64_t room = size[i] + around[i] + around[i + 2] - dilations[i] * (kernel[i] - 1) - 1;
      if (room < 0) call.refuse("a kernel that is larger than its padded operand", "a smaller kernel");
      out[i] = (room + (up ? strides[i] - 1 : 0)) / strides[i] + 1;
      // A window that begins behind the operand and its first pads is left out.
      if (up && (out[i] - 1) * strides[i] >= size[i] + around[i]) --out[i];
    }
  }
  // Calls visit(tap, position in the plane) for the taps of an output pixel that lie on the operand.
  template <typename Visit>
  void taps(int64_t row, int64_t column, const Visit& visit) const {
    for (int64_t ky = 0; ky < kernel[0]; ++ky) {
      const int64_t iy = row * strides[0] - pads[0] + ky * dilations[0];
      if (iy < 0 || iy >= size[0]) continue;
      for (int64_t kx = 0; kx < kernel[1]; ++kx) {
        const int64_t ix = column * strides[1] - pads[1] + kx * dilations[1];
        if (ix >= 0 && ix < size[1]) visit(ky * kernel[1] + kx, iy * size[1] + ix);
      }
    }
  }
};

template <typename Pixel>
FloatArray pool(const Call& call, const Pixel& pixel) {
  const FloatArray& x = call[0];
  const Window window(call, x.dims, call.list("kernel_shape", {}));
  FloatArray y = make(call, {x.dims[0], x.dims[1], window.out[0], window.out[1]});
  const int64_t area = window.size[0] * window.size[1];
  float* out = y.values.data();
  for (int64_t plane = 0; plane < x.dims[0] * x.dims[1]; ++plane) {
    for (int64_t row = 0; row < window.out[0]; ++row) {
      for (int64_t column = 0; column < window.out[1]; ++column)
        *out++ = pixel(window, x.values.data() + plane * area, row, column);
    }
  }
  return y;
}

FloatArray max_pool(const Call& call) {
  return pool(call, [](const Window& window, const float* x, int64_t row, int64_t column) {
    float largest = std::numeric_limits<float>::lowest();
    window.taps(row, column, [&](int64_t, int64_t at) { largest = std::max(largest, x[at]); });
    return largest;
  });
}

FloatArray average_pool(const Call& call) {
  const bool count_pads = call.number("count_include_pad", 0) != 0;
  if (call.number("ceil_mode", 0) != 0 && count_pads) call.refuse("ceil_mode and count_include_pad", "one of them");
  return pool(call, [&](const Window& window, const float* x, int64_t row, int64_t column) {
    float sum = 0;
    int64_t count = 0;
    window.taps(row, column, [&](int64_t, int64_t at) {
      sum += x[at];
      ++count;
    });
    if (count_pads) count = window.kernel[0] * window.kernel[1];
    return count == 0 ? 0 : sum / static_cast<float>(count);
  });
}

// Over all axes behind the channels.
FloatArray global_pool(const Call& call, bool largest) {
  const FloatArray& x = call[0];
  if (x.dims.size() < 3) call.refuse("no height and width", "[N, C, H, W]");
  Dims dims(x.dims.size(), 1);
  dims[0] = x.dims[0];
  dims[1] = x.dims[1];
  FloatArray y = make(call, dims);
  const int64_t area = static_cast<int64_t>(x.values.size()) / (dims[0] * dims[1]);
  for (size_t plane = 0; plane < y.values.size(); ++plane) {
    const float* in = x.values.data() + static_cast<int64_t>(plane) * area;
    y.values[plane] =
        largest ? *std::max_element(in, in + area) : std::accumulate(in, in + area, 0.0f) / static_cast<float>(area);
  }
  return y;
}

struct Groups {
  int64_t count, in, out;  // channels of a group
};

Groups groups_of(const Call& call, int64_t in, int64_t out) {
  const auto count = static_cast<int64_t>(call.number("group", 1));
  if (count < 1 || in % count != 0 || out % count != 0)
    call.refuse("groups that do not fit", "divisors of the channels");
  return {count, in / count, out / count};
}

FloatArray conv(const Call& call) {
  const FloatArray &x = call[0], &w = call[1];
  if (x.dims.size() != 4 || w.dims.size() != 4) call.refuse("other than two dimensions", "a height and a width");
  const Window window(call, x.dims, {w.dims[2], w.dims[3]});
  const Groups groups = groups_of(call, x.dims[1], w.dims[0]);
  if (w.dims[1] != groups.in || (call.has(2) && static_cast<int64_t>(call[2].values.size()) != w.dims[0]))
    call.refuse("weights that do not fit", "[outputs, inputs / groups, height, width]");
  FloatArray y = make(call, {x.dims[0], w.dims[0], window.out[0], window.out[1]});
  const int64_t area = window.size[0] * window.size[1], taps = window.kernel[0] * window.kernel[1];
  float* out = y.values.data();
  for (int64_t n = 0; n < x.dims[0]; ++n) {
    for (int64_t o = 0; o < w.dims[0]; ++o) {
      const float* plane = x.values.data() + (n * x.dims[1] + o / groups.out * groups.in) * area;
      for (int64_t row = 0; row < window.out[0]; ++row) {
        for (int64_t column = 0; column < window.out[1]; ++column) {
          float sum = call.has(2) ? call[2].values[o] : 0;
          window.taps(row, column, [&](int64_t tap, int64_t at) {
            for (int64_t i = 0; i < groups.in; ++i)
              sum += plane[i * area + at] * w.values[(o * groups.in + i) * taps + tap];
          });
          *out++ = sum;
        }
      }
    }
  }
  return y;
}

FloatArray conv_transpose(const Call& call) {
  const FloatArray &x = call[0], &w = call[1];
  const Dims strides = call.list("strides", {1, 1}), dilations = call.list("dilations", {1, 1}),
             pads = call.list("pads", {0, 0, 0, 0}), extra = call.list("output_padding", {0, 0});
  const Dims& d = x.dims;
  if (d.size() != 4 || w.dims.size() != 4 || w.dims[0] != d[1] || strides.size() != 2 || dilations.size() != 2 ||
      pads.size() != 4 || extra.size() != 2 || call.step.numbers.contains("output_shape"))
    call.refuse("operands or attributes that do not fit", "two dimensions, and explicit pads");
  const int64_t outputs = w.dims[1] * static_cast<int64_t>(call.number("group", 1));
  const Groups groups = groups_of(call, d[1], outputs);
  if (call.has(2) && static_cast<int64_t>(call[2].values.size()) != outputs)
    call.refuse("another number of biases", "one for each output channel");
  Dims dims{d[0], outputs, 0, 0};
  for (int i = 0; i < 2; ++i) {
    for (const int64_t value : {strides[i], dilations[i], pads[i] + 1, pads[i + 2] + 1, extra[i] + 1}) {
      if (value < 1 || value > (1 << 14)) call.refuse("a window of " + std::to_string(value), "1 to 2^14");
    }
    dims[2 + i] =
        strides[i] * (d[2 + i] - 1) + extra[i] + (w.dims[2 + i] - 1) * dilations[i] + 1 - pads[i] - pads[i + 2];
  }
  FloatArray y = make(call, dims);
  const int64_t area = dims[2] * dims[3];
  for (size_t plane = 0; call.has(2) && plane * area < y.values.size(); ++plane) {
    std::fill_n(y.values.data() + plane * area, area, call[2].values[plane % outputs]);
  }
  const float* in = x.values.data();
  for (int64_t n = 0; n < d[0]; ++n) {
    for (int64_t i = 0; i < d[1]; ++i) {
      for (int64_t row = 0; row < d[2]; ++row) {
        for (int64_t column = 0; column < d[3]; ++column, ++in) {
          const float* kernel = w.values.data() + i * groups.out * w.dims[2] * w.dims[3];
          for (int64_t o = 0; o < groups.out; ++o) {
            float* plane = y.values.data() + (n * outputs + i / groups.in * groups.out + o) * area;
            for (int64_t ky = 0; ky < w.dims[2]; ++ky) {
              const int64_t oy = row * strides[0] - pads[0] + ky * dilations[0];
              for (int64_t kx = 0; kx < w.dims[3]; ++kx, ++kernel) {
                const int64_t ox = column * strides[1] - pads[1] + kx * dilations[1];
                if (oy >= 0 && oy < dims[2] && ox >= 0 && ox < dims[3]) plane[oy * dims[3] + ox] += *in * *kernel;
              }
            }
          }
        }
      }
    }
  }
  return y;
}

// Interpolates along one axis: value = (1 - share) * x[low] + share * x[high].
FloatArray interpolated(const Call& call, const FloatArray& x, size_t axis, const Dims& low, const Dims& high,
                        const std::vector<float>& share) {
  FloatArray y = taken(call, x, axis, low);
  const FloatArray upper = taken(call, x, axis, high);
  const Lanes lanes(y.dims, axis);
  for (size_t i = 0; i < y.values.size(); ++i) {
    const float part = share[static_cast<int64_t>(i) / lanes.inner % lanes.length];
    y.values[i] = y.values[i] * (1 - part) + upper.values[i] * part;
  }
  return y;
}

FloatArray resize(const Call& call) {
  FloatArray y = call[0];
  const Dims from = y.dims;
  const size_t rank = from.size();
  const std::string mode = call.text("mode", "nearest"),
                    place = call.text("coordinate_transformation_mode", "half_pixel"),
                    nearest = call.text("nearest_mode", "round_prefer_floor");
  const bool by_sizes = call.has(3) && !call.integers(3).empty();
  if (by_sizes ? call.integers(3).size() != rank : call[2].values.size() != rank)
    call.refuse("another number of sizes", "one for each axis");
  for (size_t axis = 0; axis < rank; ++axis) {
    const int64_t size = from[axis];
    const double given = by_sizes ? 0 : call[2].values[axis];
    const int64_t to =
        by_sizes ? call.integers(3)[axis] : static_cast<int64_t>(std::floor(static_cast<double>(size) * given));
    if (to < 1 || to > (1 << 20)) call.refuse("a size of " + std::to_string(to), "1 to 2^20");
    if (to == size) continue;
    const double scale = by_sizes ? static_cast<double>(to) / static_cast<double>(size) : given;
    Dims low, high;
    std::vector<float> share;
    for (int64_t i = 0; i < to; ++i) {
      const auto at = static_cast<double>(i);
      double x = 0;
      if (place == "asymmetric")
        x = at / scale;
      else if (place == "align_corners")
        x = to == 1 ? 0 : at * static_cast<double>(size - 1) / static_cast<double>(to - 1);
      else if (place == "half_pixel" || (place == "pytorch_half_pixel" && to > 1))
        x = (at + 0.5) / scale - 0.5;
      else if (place != "pytorch_half_pixel")
        call.refuse("coordinates " + place, "half_pixel, asymmetric or align_corners");
      if (mode == "nearest") {
        const double whole = nearest == "floor"               ? std::floor(x)
                             : nearest == "ceil"              ? std::ceil(x)
                             : nearest == "round_prefer_ceil" ? std::floor(x + 0.5)
                                                              : std::ceil(x - 0.5);
        low.push_back(std::clamp<int64_t>(static_cast<int64_t>(whole), 0, size - 1));
      } else if (mode == "linear") {
        x = std::clamp(x, 0.0, static_cast<double>(size - 1));
        low.push_back(static_cast<int64_t>(std::floor(x)));
        high.push_back(std::min(low.back() + 1, size - 1));
        share.push_back(rounded(x - std::floor(x)));
      } else {
        call.refuse("mode " + mode, "nearest or linear");
      }
    }
    y = mode == "nearest" ? taken(call, y, axis, low) : interpolated(call, y, axis, low, high, share);
  }
  return y;
}

using Operator = FloatArray (*)(const Call&);

const std::map<std::string, Operator>& operators() {
  static const std::map<std::string, Operator> table{
      // Of each number by itself.
      {"Abs", [](const Call& c) { return map(c[0], [](float x) { return std::abs(x); }); }},
      {"Clip", clip},
      {"Elu",
       [](const Call& c) {
         const double alpha = c.number("alpha", 1);
         return map(c[0], [=](float x) { return x > 0 ? x : rounded(alpha * (std::exp(double{x}) - 1)); });
       }},
      {"Erf", [](const Call& c) { return map(c[0], [](float x) { return rounded(std::erf(double{x})); }); }},
      {"Exp", [](const Call& c) { return map(c[0], [](float x) { return rounded(std::exp(double{x})); }); }},
      {"HardSigmoid", hard_sigmoid},
      {"HardSwish",
       [](const Call& c) {
         return map(c[0], [](float x) { return x * std::max(0.0f, std::min(1.0f, x * (1.0f / 6) + 0.5f)); });
       }},
      {"Identity", [](const Call& c) { return c[0]; }},
      {"LeakyRelu",
       [](const Call& c) {
         const auto alpha = rounded(c.number("alpha", 0.01));
         return map(c[0], [=](float x) { return x >= 0 ? x : alpha * x; });
       }},
      {"Log", [](const Call& c) { return map(c[0], [](float x) { return rounded(std::log(double{x})); }); }},
      {"Neg", [](const Call& c) { return map(c[0], [](float x) { return -x; }); }},
      {"Reciprocal", [](const Call& c) { return map(c[0], [](float x) { return 1 / x; }); }},
      {"Relu", [](const Call& c) { return map(c[0], [](float x) { return std::max(x, 0.0f); }); }},
      {"Sigmoid", [](const Call& c) { return map(c[0], sigmoid); }},
      {"Softplus",
       [](const Call& c) {
         return map(c[0],
                    [](float x) { return rounded(std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(double{x})))); });
       }},
      {"Sqrt", [](const Call& c) { return map(c[0], [](float x) { return std::sqrt(x); }); }},
      {"Tanh", [](const Call& c) { return map(c[0], [](float x) { return rounded(std::tanh(double{x})); }); }},
      // Of two, with broadcasting.
      {"Add", [](const Call& c) { return binary(c, c[0], c[1], [](float a, float b) { return a + b; }); }},
      {"Div", [](const Call& c) { return binary(c, c[0], c[1], [](float a, float b) { return a / b; }); }},
      {"Max", [](const Call& c) { return binary_chain(c, [](float a, float b) { return std::max(a, b); }); }},
      {"Min", [](const Call& c) { return binary_chain(c, [](float a, float b) { return std::min(a, b); }); }},
      {"Mul", [](const Call& c) { return binary(c, c[0], c[1], [](float a, float b) { return a * b; }); }},
      {"PRelu",
       [](const Call& c) { return binary(c, c[0], c[1], [](float a, float b) { return a > 0 ? a : a * b; }); }},
      {"Pow",
       [](const Call& c) {
         return binary(c, c[0], c[1], [](float a, float b) { return rounded(std::pow(double{a}, double{b})); });
       }},
      {"Sub", [](const Call& c) { return binary(c, c[0], c[1], [](float a, float b) { return a - b; }); }},
      {"Sum", [](const Call& c) { return binary_chain(c, [](float a, float b) { return a + b; }); }},
      // Over axes.
      {"BatchNormalization", batch_norm},
      {"LayerNormalization", layer_norm},
      {"ReduceMax",
       [](const Call& c) {
         return reduce(c, -std::numeric_limits<double>::infinity(), [](double a, double b) { return std::max(a, b); });
       }},
      {"ReduceMean",
       [](const Call& c) {
         return reduce(
             c, 0, [](double a, double b) { return a + b; }, [](double sum, double n) { return sum / n; });
       }},
      {"ReduceMin",
       [](const Call& c) {
         return reduce(c, std::numeric_limits<double>::infinity(), [](double a, double b) { return std::min(a, b); });
       }},
      {"ReduceL2",
       [](const Call& c) {
         return reduce(
             c, 0, [](double a, double b) { return a + b * b; }, [](double sum, double) { return std::sqrt(sum); });
       }},
      {"ReduceSum", [](const Call& c) { return reduce(c, 0, [](double a, double b) { return a + b; }); }},
      {"Softmax", softmax},
      // Products.
      {"Conv", conv},
      {"ConvTranspose", conv_transpose},
      {"Gemm", gemm},
      {"MatMul", matmul},
      // Movements.
      {"Concat", concat},
      {"DepthToSpace", depth_to_space},
      {"Expand", expand},
      {"Flatten", flatten},
      {"Gather", gather},
      {"Pad", pad},
      {"Reshape", reshape},
      {"Resize", resize},
      {"Slice", slice},
      {"Squeeze", squeeze},
      {"Transpose", transpose},
      {"Unsqueeze", unsqueeze},
      // Windows.
      {"AveragePool", average_pool},
      {"GlobalAveragePool", [](const Call& c) { return global_pool(c, false); }},
      {"GlobalMaxPool", [](const Call& c) { return global_pool(c, true); }},
      {"MaxPool", max_pool},
  };
  return table;
}

const std::set<std::string> kElementwise{"Abs",  "Add",         "Clip",      "Div",      "Elu",       "Erf",
                                         "Exp",  "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log",
                                         "Max",  "Min",         "Mul",       "Neg",      "Pow",       "Reciprocal",
                                         "Relu", "Sigmoid",     "Softplus",  "Sqrt",     "Sub",       "Tanh"};

}  // namespace

FloatArray run_steps(const std::vector<FloatStep>& steps, const std::vector<FloatArray>& inputs,
                     const std::string& subject) {
  std::vector<FloatArray> results;
  results.reserve(steps.size());
  for (const FloatStep& step : steps) {
    const auto found = operators().find(step.op);
    if (found == operators().end()) {
      std::string known;
      for (const auto& [name, _] : operators()) known += (known.empty() ? "one of " : ", ") + name;
      throw Error("InvalidModel", subject, "operator " + step.op, known);
    }
    Arrays operands;
    for (const auto& [from, index, constant] : step.operands) {
      using From = FloatStep::Operand::From;
      const auto& earlier = from == From::step ? results : inputs;
      if ((from == From::step || from == From::input) && (index < 0 || index >= static_cast<int>(earlier.size())))
        throw Error("InvalidModel", subject, "an operand that is not computed before", "an earlier value");
      operands.push_back(from == From::absent ? nullptr : from == From::constant ? &constant : &earlier[index]);
    }
    results.push_back(found->second({step, operands, subject}));
  }
  if (results.empty()) throw Error("InvalidModel", subject, "no operator", "one at least");
  return std::move(results.back());
}

bool elementwise(const std::vector<FloatStep>& steps) {
  return std::all_of(steps.begin(), steps.end(), [](const FloatStep& step) {
    return kElementwise.contains(step.op) &&
           std::all_of(step.operands.begin(), step.operands.end(), [](const FloatStep::Operand& operand) {
             using From = FloatStep::Operand::From;
             if (operand.from == From::input) return operand.index == 0;
             return operand.from != From::constant || operand.constant.values.size() == 1;
           });
  });
}

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
