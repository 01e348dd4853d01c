#include "nodes/float_steps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <set>

#include "error.h"
#include "nodes/products.h"

namespace facetrain {
namespace {

using Dims = ArrayDims;

// Bounds the memory that a damaged file can ask for. The largest tensors of real networks have a hundredth of it.
constexpr int64_t kLargestArray = int64_t{1} << 28;
// Of one axis along which a list of indices is made.
constexpr int64_t kLargestAxis = int64_t{1} << 24;
constexpr size_t kMostAxes = 8;
constexpr int64_t kFloatsInLine = 16;  // 64 bytes

int64_t in_lines(int64_t floats) { return (floats + kFloatsInLine - 1) / kFloatsInLine * kFloatsInLine; }

// An operand as it is known when a program is planned.
struct Known {
  Dims dims;
  const FloatArray* constant = nullptr;
  bool absent = false;
};

// A step with its operands, for the operators below.
struct Call {
  const FloatStep& step;
  const std::vector<Known>& operands;
  const std::string& subject;

  [[noreturn]] void refuse(const std::string& found, const std::string& allowed) const {
    throw Error("InvalidModel", subject, step.op + " with " + found, allowed);
  }
  bool has(size_t index) const { return index < operands.size() && !operands[index].absent; }
  // The dimensions of an operand.
  const Dims& operator[](size_t index) const {
    if (!has(index)) refuse("no operand " + std::to_string(index), "all operands that it needs");
    const Known& known = operands[index];
    if (known.dims.size() > kMostAxes) refuse("an operand of more than eight dimensions", "eight at most");
    if (known.constant && static_cast<int64_t>(known.constant->values.size()) != count_of(known.dims))
      refuse("operand " + std::to_string(index) + " of " + std::to_string(known.constant->values.size()) + " values",
             "as many as its dimensions say");
    return known.dims;
  }
  int64_t count(size_t index) const { return count_of((*this)[index]); }
  const FloatArray& constant(size_t index) const {
    (*this)[index];
    if (!operands[index].constant) refuse("operand " + std::to_string(index) + " that is computed", "a constant");
    return *operands[index].constant;
  }
  double number(const char* name, double otherwise) const {
    const auto found = step.numbers.find(name);
    return found == step.numbers.end() || found->second.empty() ? otherwise : found->second[0];
  }
  // An attribute that a file holds as a float32. Others spell it by its shortest decimal.
  float real(const char* name, double otherwise) const { return static_cast<float>(number(name, otherwise)); }
  int64_t integer(const char* name, int64_t otherwise) const {
    return whole(number(name, static_cast<double>(otherwise)));
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
    (*this)[index];
    const FloatArray* array = operands[index].constant;
    if (!array || array->integers.size() != array->values.size())
      refuse("numbers that are no integers", "constant integers");
    return array->integers;
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

using Operands = const float* const*;
using Run = std::function<void(Operands x, float* y, float* scratch)>;

// An operator whose operands and attributes are checked.
struct Planned {
  Dims dims;
  Run run;
  int64_t scratch = 0;  // numbers
};

Dims checked(const Call& call, Dims dims) {
  if (count_of(dims) < 1) call.refuse("an output that is empty or too large", "1 to 2^28 numbers");
  if (dims.size() > kMostAxes) call.refuse("an output of more than eight dimensions", "eight at most");
  return dims;
}

Dims strides_of(const Dims& dims) {
  Dims strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

// Visits the elements of an array in rows along its last axis, where a step along an axis moves N positions by strides
// of their own. Axes that every position passes in one stride are one axis.
template <int N>
class Walk {
 public:
  Walk(const Dims& dims, const std::array<Dims, N>& strides) {
    for (size_t axis = 0; axis < dims.size(); ++axis) {
      if (dims[axis] == 1) continue;
      bool joins = rank_ > 0;
      for (int n = 0; n < N; ++n) joins = joins && strides_[n][rank_ - 1] == strides[n][axis] * dims[axis];
      if (!joins) sizes_[rank_++] = 1;
      sizes_[rank_ - 1] *= dims[axis];
      for (int n = 0; n < N; ++n) strides_[n][rank_ - 1] = strides[n][axis];
    }
    if (rank_ == 0) sizes_[rank_++] = 1;
  }

  int64_t length() const { return sizes_[rank_ - 1]; }  // of a row
  int64_t stride(int n) const { return strides_[n][rank_ - 1]; }

  // Calls row(first position in the array, the N positions) for each row.
  template <typename Row>
  void run(const Row& row) const {
    std::array<int64_t, kMostAxes> index{};
    std::array<int64_t, N> at{};
    for (int64_t out = 0;; out += length()) {
      row(out, at);
      int axis = rank_ - 2;
      for (; axis >= 0; --axis) {
        for (int n = 0; n < N; ++n) at[n] += strides_[n][axis];
        if (++index[axis] < sizes_[axis]) break;
        for (int n = 0; n < N; ++n) at[n] -= strides_[n][axis] * sizes_[axis];
        index[axis] = 0;
      }
      if (axis < 0) return;
    }
  }

 private:
  int rank_ = 0;
  std::array<int64_t, kMostAxes> sizes_{};
  std::array<std::array<int64_t, kMostAxes>, N> strides_{};
};

// ---- Functions of single numbers ----

float rounded(double value) { return static_cast<float>(value); }
float of(bool value) { return value ? 1.0f : 0.0f; }

template <typename Function>
Planned map(const Call& call, Function function) {
  const int64_t count = call.count(0);
  return {call[0], [=](Operands x, float* y, float*) {
            const float* from = x[0];
            for (int64_t i = 0; i < count; ++i) y[i] = function(from[i]);
          }};
}

Planned copied(const Call& call, Dims dims) {
  const int64_t count = call.count(0);
  if (count_of(dims) != count) call.refuse("another number of values in its shape", "as many as it has");
  return {checked(call, std::move(dims)), [=](Operands x, float* y, float*) { std::copy_n(x[0], count, y); }};
}

Planned clip(const Call& call) {
  for (size_t i = 1; i < 3; ++i) {
    if (call.has(i) && call.count(i) != 1) call.refuse("a bound that is not one number", "one number");
  }
  const int64_t count = call.count(0);
  const bool has_low = call.has(1), has_high = call.has(2);
  return {call[0], [=](Operands x, float* y, float*) {
            const float low = has_low ? *x[1] : std::numeric_limits<float>::lowest(),
                        high = has_high ? *x[2] : std::numeric_limits<float>::max();
            const float* from = x[0];
            for (int64_t i = 0; i < count; ++i) y[i] = std::min(std::max(from[i], low), high);
          }};
}

// Functions of one number, likewise.
using Function1 = float (*)(float);

// Booleans and integers are numbers here as well.
Planned cast(const Call& call) {
  constexpr int64_t kToFloat = 1, kToInt32 = 6, kToInt64 = 7, kToBool = 9;  // TensorProto.DataType
  Function1 function = nullptr;
  switch (const int64_t to = call.integer("to", 0)) {
    case kToFloat:
      return copied(call, call[0]);
    case kToBool:
      function = [](float x) { return of(x != 0); };
      break;
    case kToInt32:
    case kToInt64:
      function = [](float x) { return std::trunc(x); };
      break;
    default:
      call.refuse("type " + std::to_string(to), "float, int32, int64 or bool");
  }
  return map(call, function);
}

Planned hard_sigmoid(const Call& call) {
  const float alpha = call.real("alpha", 0.2), beta = call.real("beta", 0.5);
  return map(call, [=](float x) { return std::max(0.0f, std::min(1.0f, alpha * x + beta)); });
}

// ---- Functions of two numbers, with broadcasting ----

Dims broadcast_dims(const Call& call, const Dims& a, const Dims& b) {
  Dims result(std::max(a.size(), b.size()), 1);
  for (size_t i = 0; i < result.size(); ++i) {
    const int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1, y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1) call.refuse("operands of different shapes", "shapes that broadcast");
    result[result.size() - 1 - i] = x == 1 ? y : x;
  }
  return checked(call, std::move(result));
}

Dims broadcast_strides(const Dims& dims, size_t rank) {
  const Dims own = strides_of(dims);
  Dims result(rank, 0);
  for (size_t i = 0; i < dims.size(); ++i) result[rank - dims.size() + i] = dims[i] == 1 ? 0 : own[i];
  return result;
}

// y = function(a, b), where the walk has the strides of a and b, which are 0 or 1 within a row.
template <typename Function>
void run_binary(const Walk<2>& walk, const float* a, const float* b, float* y, const Function& function) {
  const int64_t length = walk.length();
  walk.run([&](int64_t out, const std::array<int64_t, 2>& at) {
    const float *p = a + at[0], *q = b + at[1];
    float* to = y + out;
    if (walk.stride(0) == 1 && walk.stride(1) == 1) {
      for (int64_t i = 0; i < length; ++i) to[i] = function(p[i], q[i]);
    } else if (walk.stride(0) == 1) {
      for (int64_t i = 0; i < length; ++i) to[i] = function(p[i], *q);
    } else if (walk.stride(1) == 1) {
      for (int64_t i = 0; i < length; ++i) to[i] = function(*p, q[i]);
    } else {
      std::fill_n(to, length, function(*p, *q));
    }
  });
}

Walk<2> binary_walk(const Dims& dims, const Dims& a, const Dims& b) {
  return Walk<2>(dims, {broadcast_strides(a, dims.size()), broadcast_strides(b, dims.size())});
}

template <typename Function>
Planned binary(const Call& call, Function function) {
  const Dims dims = broadcast_dims(call, call[0], call[1]);
  const Walk<2> walk = binary_walk(dims, call[0], call[1]);
  return {dims, [=](Operands x, float* y, float*) { run_binary(walk, x[0], x[1], y, function); }};
}

// Of one or more operands, from the left. Results in between lie in the scratch.
template <typename Function>
Planned binary_chain(const Call& call, Function function) {
  Dims dims = call[0];
  if (call.operands.size() == 1) return copied(call, dims);
  std::vector<Walk<2>> walks;
  int64_t largest = 0;
  for (size_t i = 1; i < call.operands.size(); ++i) {
    const Dims before = dims;
    dims = broadcast_dims(call, before, call[i]);
    walks.push_back(binary_walk(dims, before, call[i]));
    largest = std::max(largest, in_lines(count_of(dims)));
  }
  return {dims,
          [=](Operands x, float* y, float* scratch) {
            const float* left = x[0];
            for (size_t i = 0; i < walks.size(); ++i) {
              float* to = i + 1 == walks.size() ? y : scratch + static_cast<int64_t>(i % 2) * largest;
              run_binary(walks[i], left, x[i + 1], to, function);
              left = to;
            }
          },
          walks.size() > 1 ? 2 * largest : 0};
}

// Functions of two numbers that are called by their address: one copy of the loops for all of them.
using Function2 = float (*)(float, float);

Planned where(const Call& call) {
  const Dims dims = broadcast_dims(call, broadcast_dims(call, call[0], call[1]), call[2]);
  const size_t rank = dims.size();
  const Walk<3> walk(
      dims, {broadcast_strides(call[0], rank), broadcast_strides(call[1], rank), broadcast_strides(call[2], rank)});
  return {dims, [=](Operands x, float* y, float*) {
            walk.run([&](int64_t out, const std::array<int64_t, 3>& at) {
              for (int64_t i = 0; i < walk.length(); ++i) {
                const int chosen = x[0][at[0] + i * walk.stride(0)] != 0 ? 1 : 2;
                y[out + i] = x[chosen][at[chosen] + i * walk.stride(chosen)];
              }
            });
          }};
}

// ---- Over axes ----

// Splits an array at an axis into [outer, length, inner].
struct Lanes {
  int64_t outer = 1, length = 1, inner = 1;
  Lanes(const Dims& dims, size_t axis) : length(dims[axis]) {
    for (size_t i = 0; i < axis; ++i) outer *= dims[i];
    for (size_t i = axis + 1; i < dims.size(); ++i) inner *= dims[i];
  }
};

Planned softmax(const Call& call) {
  const Lanes lanes(call[0], call.axis(call.integer("axis", -1), call[0].size()));
  return {call[0],
          [=](Operands x, float* y, float* scratch) {
            auto* powers = reinterpret_cast<double*>(scratch);
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t i = 0; i < lanes.inner; ++i) {
                const int64_t first = o * lanes.length * lanes.inner + i;
                const float* from = x[0] + first;
                float largest = from[0];
                for (int64_t k = 1; k < lanes.length; ++k) largest = std::max(largest, from[k * lanes.inner]);
                double sum = 0;
                for (int64_t k = 0; k < lanes.length; ++k)
                  sum += powers[k] = std::exp(double{from[k * lanes.inner]} - largest);
                for (int64_t k = 0; k < lanes.length; ++k) y[first + k * lanes.inner] = rounded(powers[k] / sum);
              }
            }
          },
          2 * lanes.length};
}

// Reduces the axes with `add` from `start` on, in the order of the elements, and maps each result with finish(sum,
// count).
template <typename Add, typename Finish>
Planned reduce(const Call& call, double start, Add add, Finish finish) {
  const Dims& x_dims = call[0];
  Dims axes = call.has(1) ? call.integers(1) : call.list("axes", {});
  if (axes.empty()) {
    axes.resize(x_dims.size());
    std::iota(axes.begin(), axes.end(), 0);
  }
  Dims kept = x_dims, dims;
  std::set<size_t> gone;
  double length = 1;
  for (const int64_t axis : axes) {
    const size_t at = call.axis(axis, x_dims.size());
    length *= static_cast<double>(kept[at]);
    kept[at] = 1;
    gone.insert(at);
  }
  const bool keeps = call.number("keepdims", 1) != 0;
  for (size_t i = 0; i < kept.size(); ++i) {
    if (keeps || !gone.contains(i)) dims.push_back(kept[i]);
  }
  checked(call, x_dims);
  const int64_t count = count_of(kept);
  const Walk<1> walk(x_dims, {broadcast_strides(kept, x_dims.size())});
  return {checked(call, dims),
          [=](Operands x, float* y, float* scratch) {
            auto* sums = reinterpret_cast<double*>(scratch);
            std::fill_n(sums, count, start);
            walk.run([&](int64_t in, const std::array<int64_t, 1>& at) {
              const float* from = x[0] + in;
              if (walk.stride(0) == 0) {
                double sum = sums[at[0]];
                for (int64_t i = 0; i < walk.length(); ++i) sum = add(sum, double{from[i]});
                sums[at[0]] = sum;
              } else {
                for (int64_t i = 0; i < walk.length(); ++i) sums[at[0] + i] = add(sums[at[0] + i], double{from[i]});
              }
            });
            for (int64_t i = 0; i < count; ++i) y[i] = rounded(finish(sums[i], length));
          },
          2 * count};
}

template <typename Add>
Planned reduce(const Call& call, double start, Add add) {
  return reduce(call, start, add, [](double sum, double) { return sum; });
}

// The index of the largest (sign 1) or the least (-1) number along an axis; the first of several.
Planned arg(const Call& call, float sign) {
  const size_t axis = call.axis(call.integer("axis", 0), call[0].size());
  const Lanes lanes(checked(call, call[0]), axis);
  Dims dims = call[0];
  dims[axis] = 1;
  if (call.number("keepdims", 1) == 0) dims.erase(dims.begin() + static_cast<int64_t>(axis));
  const bool last = call.number("select_last_index", 0) != 0;
  return {checked(call, dims), [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t i = 0; i < lanes.inner; ++i) {
                const float* from = x[0] + o * lanes.length * lanes.inner + i;
                int64_t best = 0;
                for (int64_t k = 1; k < lanes.length; ++k) {
                  const float difference = sign * (from[k * lanes.inner] - from[best * lanes.inner]);
                  if (difference > 0 || (last && difference == 0)) best = k;
                }
                *y++ = static_cast<float>(best);
              }
            }
          }};
}

Planned batch_norm(const Call& call) {
  if (call[0].size() < 2) call.refuse("a vector", "[N, C, ...]");
  const Lanes lanes(call[0], 1);
  for (size_t i = 1; i < 5; ++i) {
    if (call.count(i) != lanes.length) call.refuse("another number of channels", "one number for each channel");
  }
  const double epsilon = call.real("epsilon", 1e-5);
  return {call[0], [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t c = 0; c < lanes.length; ++c) {
                const auto scale = rounded(x[1][c] / std::sqrt(x[4][c] + epsilon));
                const float offset = x[2][c] - x[3][c] * scale;
                const int64_t first = (o * lanes.length + c) * lanes.inner;
                for (int64_t i = first; i < first + lanes.inner; ++i) y[i] = x[0][i] * scale + offset;
              }
            }
          }};
}

// Normalizes over the axes from `axis` on.
Planned layer_norm(const Call& call) {
  const Lanes lanes(call[0], call.axis(call.integer("axis", -1), call[0].size()));
  const int64_t outer = lanes.outer, length = lanes.length * lanes.inner;
  const double epsilon = call.real("epsilon", 1e-5);
  if (!call.has(1)) call.refuse("no operand 1", "all operands that it needs");
  for (size_t i = 1; i < 3; ++i) {
    if (call.has(i) && call.count(i) != length)
      call.refuse("another number of values", "one for each value that is normalized");
  }
  const bool shifts = call.has(2);
  return {call[0], [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < outer; ++o, y += length) {
              const float* from = x[0] + o * length;
              double sum = 0, square = 0;
              for (int64_t i = 0; i < length; ++i) sum += from[i];
              const double mean = sum / static_cast<double>(length);
              for (int64_t i = 0; i < length; ++i) square += (from[i] - mean) * (from[i] - mean);
              const double factor = 1 / std::sqrt(square / static_cast<double>(length) + epsilon);
              for (int64_t i = 0; i < length; ++i) {
                const double offset = shifts ? x[2][i] : 0;
                y[i] = rounded((from[i] - mean) * factor * x[1][i] + offset);
              }
            }
          }};
}

// x / (bias + alpha / size * the sum of squares over `size` neighboring channels)^beta.
Planned local_response_norm(const Call& call) {
  if (call[0].size() < 2) call.refuse("a vector", "[N, C, ...]");
  const Lanes lanes(call[0], 1);
  const int64_t size = call.integer("size", 0);
  // ONNX Runtime knows no even ones.
  if (size < 1 || size > (1 << 14) || size % 2 == 0)
    call.refuse("a size of " + std::to_string(size), "an odd number below 2^14");
  const double alpha = call.real("alpha", 1e-4), beta = call.real("beta", 0.75), bias = call.real("bias", 1);
  return {call[0], [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t c = 0; c < lanes.length; ++c) {
                const int64_t from = std::max<int64_t>(0, c - size / 2), to = std::min(lanes.length, c + size / 2 + 1);
                for (int64_t i = 0; i < lanes.inner; ++i) {
                  const float* first = x[0] + o * lanes.length * lanes.inner + i;
                  double sum = 0;
                  for (int64_t k = from; k < to; ++k) sum += double{first[k * lanes.inner]} * first[k * lanes.inner];
                  const double norm = std::pow(bias + alpha / static_cast<double>(size) * sum, beta);
                  y[(o * lanes.length + c) * lanes.inner + i] = rounded(first[c * lanes.inner] / norm);
                }
              }
            }
          }};
}

// ---- Products ----

Planned matmul(const Call& call) {
  const Dims &a = call[0], &b = call[1];
  if (a.size() < 2 || b.size() < 2 || a.back() != b[b.size() - 2])
    call.refuse("operands that do not fit", "[..., m, k] and [..., k, n]");
  const int64_t m = a[a.size() - 2], k = a.back(), n = b.back();
  const Dims a_stack(a.begin(), a.end() - 2), b_stack(b.begin(), b.end() - 2);
  const Dims stack = broadcast_dims(call, a_stack, b_stack);
  Dims dims = stack;
  dims.insert(dims.end(), {m, n});
  if (k < 1 || count_of(a) < 1 || count_of(b) < 1) call.refuse("an empty operand", "1 to 2^28 numbers");
  const Walk<2> walk = binary_walk(stack, a_stack, b_stack);
  return {checked(call, dims),
          [=](Operands x, float* y, float* scratch) {
            walk.run([&](int64_t out, const std::array<int64_t, 2>& at) {
              for (int64_t i = 0; i < walk.length(); ++i) {
                const float *p = x[0] + (at[0] + i * walk.stride(0)) * m * k,
                            *q = x[1] + (at[1] + i * walk.stride(1)) * k * n;
                multiply(p, q, y + (out + i) * m * n, m, k, n, scratch);
              }
            });
          },
          k * kProductColumns};
}

// Copies an array in another order of its axes: the walk has the strides of x in the order of y.
void run_transposed(const Walk<1>& walk, const float* x, float* y) {
  const int64_t stride = walk.stride(0), length = walk.length();
  walk.run([&](int64_t out, const std::array<int64_t, 1>& at) {
    const float* from = x + at[0];
    float* to = y + out;
    if (stride == 1) {
      std::copy_n(from, length, to);
    } else {
      for (int64_t i = 0; i < length; ++i) to[i] = from[i * stride];
    }
  });
}

Planned transposed(const Call& call, const Dims& from, const Dims& order) {
  if (order.size() != from.size()) call.refuse("another number of axes", "an order of its operand's axes");
  const Dims own = strides_of(from);
  Dims dims, strides;
  std::set<size_t> seen;
  for (const int64_t axis : order) {
    const size_t at = call.axis(axis, from.size());
    if (!seen.insert(at).second) call.refuse("an axis twice", "an order of its operand's axes");
    dims.push_back(from[at]);
    strides.push_back(own[at]);
  }
  const Walk<1> walk(dims, {strides});
  return {checked(call, dims), [=](Operands x, float* y, float*) { run_transposed(walk, x[0], y); }};
}

Planned transpose(const Call& call) {
  Dims order(call[0].size());
  std::iota(order.rbegin(), order.rend(), 0);
  return transposed(call, call[0], call.list("perm", order));
}

Planned gemm(const Call& call) {
  // Rows and columns as the product reads them.
  const auto matrix = [&](size_t index, const char* flag) {
    Dims dims = call[index];
    if (dims.size() != 2 || count_of(dims) < 1) call.refuse("an operand that is no matrix", "matrices");
    const bool turned = call.number(flag, 0) != 0;
    if (turned) std::swap(dims[0], dims[1]);
    return std::pair(dims, turned);
  };
  const auto [a, turns_a] = matrix(0, "transA");
  const auto [b, turns_b] = matrix(1, "transB");
  if (a[1] != b[0]) call.refuse("operands that do not fit", "[m, k] and [k, n]");
  const int64_t m = a[0], k = a[1], n = b[1];
  const Dims dims = checked(call, {m, n});
  const float alpha = call.real("alpha", 1), beta = call.real("beta", 1);
  const bool adds = call.has(2);
  if (adds && broadcast_dims(call, dims, call[2]) != dims)
    call.refuse("a larger third operand", "one that is added to [m, n]");
  const Walk<2> bias = binary_walk(dims, dims, adds ? call[2] : dims);
  const Walk<1> turn_a(a, {Dims{1, m}}), turn_b(b, {Dims{1, k}});
  // A constant is turned once.
  std::shared_ptr<std::vector<float>> constant;
  if (turns_b && call.operands[1].constant) {
    constant = std::make_shared<std::vector<float>>(static_cast<size_t>(k * n));
    run_transposed(turn_b, call.constant(1).values.data(), constant->data());
  }
  const int64_t packed = in_lines(k * kProductColumns), room_a = turns_a ? in_lines(m * k) : 0,
                room_b = turns_b && !constant ? in_lines(k * n) : 0;
  return {dims,
          [=, turns_a = turns_a, turns_b = turns_b](Operands x, float* y, float* scratch) {
            const float *p = x[0], *q = constant ? constant->data() : x[1];
            if (turns_a) {
              run_transposed(turn_a, p, scratch + packed);
              p = scratch + packed;
            }
            if (turns_b && !constant) {
              run_transposed(turn_b, q, scratch + packed + room_a);
              q = scratch + packed + room_a;
            }
            multiply(p, q, y, m, k, n, scratch);
            for (int64_t i = 0; i < m * n; ++i) y[i] *= alpha;
            if (adds) run_binary(bias, y, x[2], y, [beta](float sum, float value) { return sum + value * beta; });
          },
          packed + room_a + room_b};
}

// ---- Movements ----

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

// ---- Windows: [N, C, H, W] ----

void expect_explicit_pads(const Call& call) {
  const std::string mode = call.text("auto_pad", "NOTSET");
  if (mode != "NOTSET") call.refuse("auto_pad " + mode, "explicit pads");
}

PoolWindow window_of(const Call& call, const Dims& x, const Dims& kernel) {
  expect_explicit_pads(call);
  PoolWindow window;
  const Dims strides = call.list("strides", {1, 1}), dilations = call.list("dilations", {1, 1}),
             pads = call.list("pads", {0, 0, 0, 0});
  if (x.size() != 4 || kernel.size() != 2 || strides.size() != 2 || dilations.size() != 2 || pads.size() != 4)
    call.refuse("other than two dimensions", "a height and a width");
  const bool up = call.number("ceil_mode", 0) != 0;
  for (int i = 0; i < 2; ++i) {
    window.size[i] = x[2 + i];
    window.kernel[i] = kernel[i];
    window.strides[i] = strides[i];
    window.dilations[i] = dilations[i];
    window.pads[i] = pads[i];
    for (const int64_t value : {kernel[i], strides[i], dilations[i], pads[i] + 1, pads[i + 2] + 1}) {
      if (value < 1 || value > (1 << 14)) call.refuse("a window of " + std::to_string(value), "1 to 2^14");
    }
    const int64_t room = window.size[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1;
    if (room < 0) call.refuse("a kernel that is larger than its padded operand", "a smaller kernel");
    window.out[i] = (room + (up ? strides[i] - 1 : 0)) / strides[i] + 1;
    // A window that begins behind the operand and its first pads is left out.
    if (up && (window.out[i] - 1) * strides[i] >= window.size[i] + pads[i]) --window.out[i];
  }
  return window;
}

PoolWindow pool_window_of(const Call& call) {
  if (call.step.op == "AveragePool" && call.number("ceil_mode", 0) != 0 && call.number("count_include_pad", 0) != 0)
    call.refuse("ceil_mode and count_include_pad", "one of them");
  return window_of(call, call[0], call.list("kernel_shape", {}));
}

// Calls pixel(plane, rows of taps, columns of taps) for each output.
template <typename Pixel>
Planned pool(const Call& call, const Pixel& pixel) {
  const Dims& x_dims = call[0];
  const PoolWindow window = pool_window_of(call);
  const int64_t planes = x_dims[0] * x_dims[1], area = window.size[0] * window.size[1];
  return {checked(call, {x_dims[0], x_dims[1], window.out[0], window.out[1]}), [=](Operands x, float* y, float*) {
            for (int64_t plane = 0; plane < planes; ++plane) {
              for (int64_t row = 0; row < window.out[0]; ++row) {
                const PoolWindow::Taps rows = window.taps(0, row);
                for (int64_t column = 0; column < window.out[1]; ++column)
                  *y++ = pixel(window, x[0] + plane * area, rows, window.taps(1, column));
              }
            }
          }};
}

template <typename Visit>
void visit_taps(const PoolWindow& window, const float* x, const PoolWindow::Taps& rows, const PoolWindow::Taps& columns,
                const Visit& visit) {
  for (int64_t ky = rows.first; ky < rows.last; ++ky) {
    const float* row = x + (rows.origin + ky * window.dilations[0]) * window.size[1] + columns.origin;
    for (int64_t kx = columns.first; kx < columns.last; ++kx) visit(row[kx * window.dilations[1]]);
  }
}

Planned max_pool(const Call& call) {
  return pool(call, [](const PoolWindow& window, const float* x, const PoolWindow::Taps& rows,
                       const PoolWindow::Taps& columns) {
    float largest = std::numeric_limits<float>::lowest();
    visit_taps(window, x, rows, columns, [&](float value) { largest = std::max(largest, value); });
    return largest;
  });
}

Planned average_pool(const Call& call) {
  const bool count_pads = counts_pads(call.step);
  return pool(call, [count_pads](const PoolWindow& window, const float* x, const PoolWindow::Taps& rows,
                                 const PoolWindow::Taps& columns) {
    float sum = 0;
    visit_taps(window, x, rows, columns, [&](float value) { sum += value; });
    const int64_t count =
        count_pads ? window.kernel[0] * window.kernel[1]
                   : std::max<int64_t>(0, rows.last - rows.first) * std::max<int64_t>(0, columns.last - columns.first);
    return count == 0 ? 0 : sum / static_cast<float>(count);
  });
}

// (Σ |x|^p)^(1/p) of a window.
Planned lp_pool(const Call& call) {
  const int64_t power = call.integer("p", 2);
  if (power < 1) call.refuse("p of " + std::to_string(power), "1 or more");
  const auto p = static_cast<double>(power);
  return pool(call, [p](const PoolWindow& window, const float* x, const PoolWindow::Taps& rows,
                        const PoolWindow::Taps& columns) {
    double sum = 0;
    visit_taps(window, x, rows, columns, [&](float value) { sum += std::pow(std::abs(double{value}), p); });
    return rounded(std::pow(sum, 1 / p));
  });
}

// Over all axes behind the channels.
Planned global_pool(const Call& call, bool largest) {
  const Dims& x_dims = call[0];
  if (x_dims.size() < 3) call.refuse("no height and width", "[N, C, H, W]");
  checked(call, x_dims);
  Dims dims(x_dims.size(), 1);
  dims[0] = x_dims[0];
  dims[1] = x_dims[1];
  const int64_t planes = dims[0] * dims[1], area = count_of(x_dims) / planes;
  return {dims, [=](Operands x, float* y, float*) {
            for (int64_t plane = 0; plane < planes; ++plane) {
              const float* in = x[0] + plane * area;
              y[plane] = largest ? *std::max_element(in, in + area)
                                 : std::accumulate(in, in + area, 0.0f) / static_cast<float>(area);
            }
          }};
}

struct Groups {
  int64_t count, in, out;  // channels of a group
};

Groups groups_of(const Call& call, int64_t in, int64_t out) {
  const int64_t count = call.integer("group", 1);
  if (count < 1 || in % count != 0 || out % count != 0)
    call.refuse("groups that do not fit", "divisors of the channels");
  return {count, in / count, out / count};
}

// The outputs from `first` on, `count` of them, of which tap `tap` along an axis lies on the operand.
struct OnOperand {
  int64_t first, count;
  OnOperand(const PoolWindow& window, int axis, int64_t tap) {
    const int64_t shift = tap * window.dilations[axis] - window.pads[axis], stride = window.strides[axis];
    first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
    const int64_t last = window.size[axis] - 1 - shift;  // of output * stride
    const int64_t end = last < 0 ? 0 : std::min(window.out[axis], last / stride + 1);
    count = std::max<int64_t>(0, end - first);
  }
};

// Sums from the bias on, by tap and then by input channel.
Planned conv(const Call& call) {
  const Dims &d = call[0], &w = call[1];
  if (d.size() != 4 || w.size() != 4) call.refuse("other than two dimensions", "a height and a width");
  const PoolWindow window = window_of(call, d, {w[2], w[3]});
  const Groups groups = groups_of(call, d[1], w[0]);
  if (w[1] != groups.in || (call.has(2) && call.count(2) != w[0]))
    call.refuse("weights that do not fit", "[outputs, inputs / groups, height, width]");
  const bool adds = call.has(2);
  const int64_t pictures = d[0], inputs = d[1], outputs = w[0];
  return {checked(call, {pictures, outputs, window.out[0], window.out[1]}), [=](Operands x, float* y, float*) {
            const int64_t area = window.size[0] * window.size[1], taps = window.kernel[0] * window.kernel[1];
            for (int64_t n = 0; n < pictures; ++n) {
              for (int64_t o = 0; o < outputs; ++o) {
                const float *planes = x[0] + (n * inputs + o / groups.out * groups.in) * area,
                            *weights = x[1] + o * groups.in * taps;
                for (int64_t row = 0; row < window.out[0]; ++row, y += window.out[1]) {
                  std::fill_n(y, window.out[1], adds ? x[2][o] : 0.0f);
                  const PoolWindow::Taps rows = window.taps(0, row);
                  for (int64_t ky = rows.first; ky < rows.last; ++ky) {
                    for (int64_t kx = 0; kx < window.kernel[1]; ++kx) {
                      const OnOperand on(window, 1, kx);
                      if (on.count == 0) continue;
                      const float* from = planes + (rows.origin + ky * window.dilations[0]) * window.size[1] +
                                          on.first * window.strides[1] - window.pads[1] + kx * window.dilations[1];
                      for (int64_t i = 0; i < groups.in; ++i)
                        add_product(from + i * area, window.strides[1], weights[i * taps + ky * window.kernel[1] + kx],
                                    on.count, y + on.first);
                    }
                  }
                }
              }
            }
          }};
}

// The gradient of a convolution: its outputs here are the pixels x, and its input is y. Sums run by input channel, row
// and column of x.
Planned conv_transpose(const Call& call) {
  expect_explicit_pads(call);
  const Dims &d = call[0], &w = call[1];
  const Dims strides = call.list("strides", {1, 1}), dilations = call.list("dilations", {1, 1}),
             pads = call.list("pads", {0, 0, 0, 0}), extra = call.list("output_padding", {0, 0});
  if (d.size() != 4 || w.size() != 4 || w[0] != d[1] || strides.size() != 2 || dilations.size() != 2 ||
      pads.size() != 4 || extra.size() != 2 || call.step.numbers.contains("output_shape"))
    call.refuse("operands or attributes that do not fit", "two dimensions, and explicit pads");
  const int64_t group = call.integer("group", 1);
  if (group < 1 || group > d[1]) call.refuse("groups that do not fit", "divisors of the channels");
  const int64_t outputs = w[1] * group, pictures = d[0];
  const Groups groups = groups_of(call, d[1], outputs);
  if (call.has(2) && call.count(2) != outputs) call.refuse("another number of biases", "one for each output channel");
  PoolWindow window;
  for (int i = 0; i < 2; ++i) {
    for (const int64_t value : {strides[i], dilations[i], pads[i] + 1, pads[i + 2] + 1, extra[i] + 1, w[2 + i]}) {
      if (value < 1 || value > (1 << 14)) call.refuse("a window of " + std::to_string(value), "1 to 2^14");
    }
    window.out[i] = d[2 + i];
    window.kernel[i] = w[2 + i];
    window.strides[i] = strides[i];
    window.dilations[i] = dilations[i];
    window.pads[i] = pads[i];
    window.size[i] = strides[i] * (d[2 + i] - 1) + extra[i] + (w[2 + i] - 1) * dilations[i] + 1 - pads[i] - pads[i + 2];
  }
  const bool adds = call.has(2);
  return {checked(call, {pictures, outputs, window.size[0], window.size[1]}), [=](Operands x, float* y, float*) {
            const int64_t area = window.size[0] * window.size[1], in_area = window.out[0] * window.out[1],
                          taps = window.kernel[0] * window.kernel[1];
            for (int64_t n = 0; n < pictures; ++n) {
              for (int64_t o = 0; o < outputs; ++o, y += area) {
                std::fill_n(y, area, adds ? x[2][o] : 0.0f);
                const int64_t first = o / groups.out * groups.in;
                for (int64_t i = first; i < first + groups.in; ++i) {
                  const float *in = x[0] + (n * groups.count * groups.in + i) * in_area,
                              *weights = x[1] + (i * groups.out + o % groups.out) * taps;
                  for (int64_t row = 0; row < window.out[0]; ++row) {
                    const PoolWindow::Taps rows = window.taps(0, row);
                    for (int64_t ky = rows.first; ky < rows.last; ++ky) {
                      float* to = y + (rows.origin + ky * window.dilations[0]) * window.size[1];
                      // Of the taps that write a pixel, the last one reads the first column.
                      for (int64_t kx = window.kernel[1]; kx-- > 0;) {
                        const OnOperand on(window, 1, kx);
                        const float weight = weights[ky * window.kernel[1] + kx];
                        const int64_t shift = kx * window.dilations[1] - window.pads[1];
                        for (int64_t c = on.first; c < on.first + on.count; ++c)
                          to[c * window.strides[1] + shift] += in[row * window.out[1] + c] * weight;
                      }
                    }
                  }
                }
              }
            }
          }};
}

using Operator = Planned (*)(const Call&);

const std::map<std::string, Operator>& operators() {
  static const std::map<std::string, Operator> table{
      // Of each number by itself.
      {"Abs", [](const Call& c) { return map(c, [](float x) { return std::abs(x); }); }},
      {"Ceil", [](const Call& c) { return map<Function1>(c, [](float x) { return std::ceil(x); }); }},
      {"Clip", clip},
      {"Elu",
       [](const Call& c) {
         const double alpha = c.real("alpha", 1);
         return map(c, [=](float x) { return x > 0 ? x : rounded(alpha * (std::exp(double{x}) - 1)); });
       }},
      {"Erf", [](const Call& c) { return map<Function1>(c, [](float x) { return rounded(std::erf(double{x})); }); }},
      {"Exp", [](const Call& c) { return map<Function1>(c, [](float x) { return rounded(std::exp(double{x})); }); }},
      {"Floor", [](const Call& c) { return map<Function1>(c, [](float x) { return std::floor(x); }); }},
      {"HardSigmoid", hard_sigmoid},
      {"HardSwish",
       [](const Call& c) {
         return map(c, [](float x) { return x * std::max(0.0f, std::min(1.0f, x * (1.0f / 6) + 0.5f)); });
       }},
      {"Identity", [](const Call& c) { return copied(c, c[0]); }},
      {"LeakyRelu",
       [](const Call& c) {
         const float alpha = c.real("alpha", 0.01);
         return map(c, [=](float x) { return x >= 0 ? x : alpha * x; });
       }},
      {"Log", [](const Call& c) { return map<Function1>(c, [](float x) { return rounded(std::log(double{x})); }); }},
      {"Neg", [](const Call& c) { return map(c, [](float x) { return -x; }); }},
      {"Reciprocal", [](const Call& c) { return map(c, [](float x) { return 1 / x; }); }},
      {"Relu", [](const Call& c) { return map(c, [](float x) { return std::max(x, 0.0f); }); }},
      {"Round", [](const Call& c) { return map<Function1>(c, [](float x) { return std::nearbyint(x); }); }},
      {"Sigmoid",
       [](const Call& c) {
         return map<Function1>(c, [](float x) { return rounded(1.0 / (1.0 + std::exp(-double{x}))); });
       }},
      {"Sign",
       [](const Call& c) { return map<Function1>(c, [](float x) { return static_cast<float>((x > 0) - (x < 0)); }); }},
      {"Softplus",
       [](const Call& c) {
         return map<Function1>(
             c, [](float x) { return rounded(std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(double{x})))); });
       }},
      {"Sqrt", [](const Call& c) { return map(c, [](float x) { return std::sqrt(x); }); }},
      {"Tanh", [](const Call& c) { return map<Function1>(c, [](float x) { return rounded(std::tanh(double{x})); }); }},
      {"ThresholdedRelu",
       [](const Call& c) {
         const float alpha = c.real("alpha", 1);
         return map(c, [=](float x) { return x > alpha ? x : 0.0f; });
       }},
      // Of two, with broadcasting.
      {"Add", [](const Call& c) { return binary(c, [](float a, float b) { return a + b; }); }},
      {"Div", [](const Call& c) { return binary(c, [](float a, float b) { return a / b; }); }},
      {"Max", [](const Call& c) { return binary_chain(c, [](float a, float b) { return std::max(a, b); }); }},
      {"Min", [](const Call& c) { return binary_chain(c, [](float a, float b) { return std::min(a, b); }); }},
      {"Mul", [](const Call& c) { return binary(c, [](float a, float b) { return a * b; }); }},
      {"PRelu", [](const Call& c) { return binary(c, [](float a, float b) { return a > 0 ? a : a * b; }); }},
      {"Pow",
       [](const Call& c) {
         return binary<Function2>(c, [](float a, float b) { return rounded(std::pow(double{a}, double{b})); });
       }},
      {"Sub", [](const Call& c) { return binary(c, [](float a, float b) { return a - b; }); }},
      {"Sum", [](const Call& c) { return binary_chain(c, [](float a, float b) { return a + b; }); }},
      // Of booleans and integers, which are float32 here as well.
      {"And",
       [](const Call& c) { return binary<Function2>(c, [](float a, float b) { return of(a != 0 && b != 0); }); }},
      {"Cast", cast},
      {"Equal", [](const Call& c) { return binary<Function2>(c, [](float a, float b) { return of(a == b); }); }},
      {"Greater", [](const Call& c) { return binary<Function2>(c, [](float a, float b) { return of(a > b); }); }},
      {"GreaterOrEqual",
       [](const Call& c) { return binary<Function2>(c, [](float a, float b) { return of(a >= b); }); }},
      {"Less", [](const Call& c) { return binary<Function2>(c, [](float a, float b) { return of(a < b); }); }},
      {"LessOrEqual", [](const Call& c) { return binary<Function2>(c, [](float a, float b) { return of(a <= b); }); }},
      {"Not", [](const Call& c) { return map<Function1>(c, [](float x) { return of(x == 0); }); }},
      {"Or", [](const Call& c) { return binary<Function2>(c, [](float a, float b) { return of(a != 0 || b != 0); }); }},
      {"Where", where},
      // Over axes.
      {"ArgMax", [](const Call& c) { return arg(c, 1); }},
      {"ArgMin", [](const Call& c) { return arg(c, -1); }},
      {"BatchNormalization", batch_norm},
      {"LRN", local_response_norm},
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
      {"Pad", [](const Call& c) { return picked(c, pad_picks(c)); }},
      {"Reshape", reshape},
      {"Resize", resize},
      {"Slice", [](const Call& c) { return picked(c, slice_picks(c)); }},
      {"Squeeze", squeeze},
      {"Transpose", transpose},
      {"Unsqueeze", unsqueeze},
      // Windows.
      {"AveragePool", average_pool},
      {"GlobalAveragePool", [](const Call& c) { return global_pool(c, false); }},
      {"GlobalMaxPool", [](const Call& c) { return global_pool(c, true); }},
      {"LpPool", lp_pool},
      {"MaxPool", max_pool},
  };
  return table;
}

const std::set<std::string> kElementwise{"Abs",         "Add",
                                         "And",         "Cast",
                                         "Ceil",        "Clip",
                                         "Div",         "Elu",
                                         "Equal",       "Erf",
                                         "Exp",         "Floor",
                                         "Greater",     "GreaterOrEqual",
                                         "HardSigmoid", "HardSwish",
                                         "Identity",    "LeakyRelu",
                                         "Less",        "LessOrEqual",
                                         "Log",         "Max",
                                         "Min",         "Mul",
                                         "Neg",         "Not",
                                         "Or",          "Pow",
                                         "Reciprocal",  "Relu",
                                         "Round",       "Sigmoid",
                                         "Sign",        "Softplus",
                                         "Sqrt",        "Sub",
                                         "Tanh",        "ThresholdedRelu",
                                         "Where"};

// The operands of a step alone, of which the first is computed.
std::vector<Known> knowns_of(const FloatStep& step, const Dims& input) {
  std::vector<Known> result;
  for (const auto& [from, index, constant] : step.operands) {
    using From = FloatStep::Operand::From;
    result.push_back({from == From::constant ? constant.dims : input, from == From::constant ? &constant : nullptr,
                      from == From::absent});
  }
  return result;
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

int64_t count_of(const ArrayDims& dims) {
  int64_t count = 1;
  for (const int64_t dim : dims) {
    if (dim < 0 || (dim > 0 && count > kLargestArray / dim)) return -1;
    count *= dim;
  }
  return count;
}

FloatProgram::FloatProgram(const std::vector<FloatStep>& steps, const std::vector<ArrayDims>& inputs,
                           const std::string& subject) {
  if (steps.empty()) throw Error("InvalidModel", subject, "no operator", "one at least");
  size_t most_operands = 0;
  for (const FloatStep& step : steps) {
    const auto found = operators().find(step.op);
    if (found == operators().end()) {
      std::string known;
      for (const auto& [name, _] : operators()) known += (known.empty() ? "one of " : ", ") + name;
      throw Error("InvalidModel", subject, "operator " + step.op, known);
    }
    std::vector<Known> operands;
    Step planned;
    for (const auto& [from, index, constant] : step.operands) {
      using From = FloatStep::Operand::From;
      const auto count = static_cast<int>(from == From::step ? steps_.size() : inputs.size());
      if ((from == From::step || from == From::input) && (index < 0 || index >= count))
        throw Error("InvalidModel", subject, "an operand that is not computed before", "an earlier value");
      const bool is_constant = from == From::constant;
      operands.push_back({is_constant           ? constant.dims
                          : from == From::step  ? steps_[index].dims
                          : from == From::input ? inputs[index]
                                                : Dims(),
                          is_constant ? &constant : nullptr, from == From::absent});
      planned.operands.push_back({from, index, is_constant ? constant.values.data() : nullptr});
    }
    Planned result = found->second({step, operands, subject});
    planned.dims = std::move(result.dims);
    planned.run = std::move(result.run);
    operator_scratch_ = std::max(operator_scratch_, in_lines(result.scratch));
    most_operands = std::max(most_operands, operands.size());
    steps_.push_back(std::move(planned));
  }
  // The scratch: that of an operator, its operands' addresses, the results of all steps but the last.
  scratch_ = operator_scratch_ + in_lines(static_cast<int64_t>(most_operands * sizeof(float*) / sizeof(float)));
  for (size_t i = 0; i + 1 < steps_.size(); ++i) {
    steps_[i].result = scratch_;
    scratch_ += in_lines(count_of(steps_[i].dims));
  }
}

void FloatProgram::run(const float* const* inputs, float* y, float* scratch) const {
  auto** operands = reinterpret_cast<const float**>(scratch + operator_scratch_);
  for (const Step& step : steps_) {
    for (size_t i = 0; i < step.operands.size(); ++i) {
      using From = FloatStep::Operand::From;
      const Source& source = step.operands[i];
      operands[i] = source.from == From::input  ? inputs[source.index]
                    : source.from == From::step ? scratch + steps_[source.index].result
                                                : source.constant;
    }
    step.run(operands, &step == &steps_.back() ? y : scratch + step.result, scratch);
  }
}

FloatArray run_steps(const std::vector<FloatStep>& steps, const std::vector<FloatArray>& inputs,
                     const std::string& subject) {
  std::vector<ArrayDims> dims;
  std::vector<const float*> values;
  for (const FloatArray& input : inputs) {
    dims.push_back(input.dims);
    values.push_back(input.values.data());
  }
  const FloatProgram program(steps, dims, subject);
  FloatArray result{program.dims(), std::vector<float>(static_cast<size_t>(count_of(program.dims()))), {}};
  std::vector<float> scratch(static_cast<size_t>(program.scratch() + kFloatsInLine));
  float* aligned = scratch.data();
  while (reinterpret_cast<uintptr_t>(aligned) % 64 != 0) ++aligned;
  program.run(values.data(), result.values.data(), aligned);
  return result;
}

std::optional<Picks> picks_of(const FloatStep& step, const ArrayDims& input, const std::string& subject) {
  const std::vector<Known> operands = knowns_of(step, input);
  const Call call{step, operands, subject};
  if (step.op == "Gather") return call[1].size() == 1 ? std::optional(gather_picks(call)) : std::nullopt;
  if (step.op == "Slice") return slice_picks(call);
  if (step.op == "Pad") return pad_picks(call);
  if (step.op == "Resize" && call.text("mode", "nearest") == "nearest") return resize_picks(call);
  return std::nullopt;
}

template <typename T>
void run_picks(const Picks& picks, const ArrayDims& input, const T* x, T fill, T* y) {
  std::array<int64_t, kMostAxes + 1> in{}, out{};
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
  pick_block(picks, input, in, out, 0, last, x, fill, y);
}

template void run_picks(const Picks&, const ArrayDims&, const float*, float, float*);
template void run_picks(const Picks&, const ArrayDims&, const int8_t*, int8_t, int8_t*);

PoolWindow::Taps PoolWindow::taps(int axis, int64_t position) const {
  const int64_t origin = position * strides[axis] - pads[axis], step = dilations[axis];
  const int64_t first = origin >= 0 ? 0 : (-origin + step - 1) / step, end = size[axis] - 1 - origin;
  return {first, end < 0 ? 0 : std::min(kernel[axis], end / step + 1), origin};
}

PoolWindow pool_window(const FloatStep& step, const ArrayDims& input, const std::string& subject) {
  const std::vector<Known> operands = knowns_of(step, input);
  return pool_window_of({step, operands, subject});
}

bool counts_pads(const FloatStep& step) {
  const auto found = step.numbers.find("count_include_pad");
  return found != step.numbers.end() && !found->second.empty() && found->second[0] != 0;
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

bool keeps_places(const FloatStep& step) {
  return kElementwise.contains(step.op) || step.op == "Sum" || step.op == "PRelu";
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
