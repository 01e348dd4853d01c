#include "nodes/operator.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "counted.h"
#include "error.h"

namespace facetrain::nodes {

std::vector<Known> knowns_of(const FloatStep& step, const Dims& input) {
  std::vector<Known> result;
  for (const auto& [from, index, constant] : step.operands) {
    using From = FloatStep::Operand::From;
    result.push_back({from == From::constant ? constant.dims : input, from == From::constant ? &constant : nullptr,
                      from == From::absent});
  }
  return result;
}

void Call::refuse(const std::string& found, const std::string& allowed) const {
  throw Error("InvalidModel", subject, step.op + " with " + found, allowed);
}

const Dims& Call::operator[](size_t index) const {
  if (!has(index)) refuse("no operand " + std::to_string(index), "all operands that it needs");
  const Known& known = operands[index];
  if (known.dims.size() > kMostAxes) refuse("an operand of more than eight dimensions", "eight at most");
  if (known.constant && static_cast<int64_t>(known.constant->values.size()) != count_of(known.dims))
    refuse("operand " + std::to_string(index) + " of " + counted(known.constant->values.size(), "value"),
           "as many as its dimensions say");
  return known.dims;
}

const FloatArray& Call::constant(size_t index) const {
  (*this)[index];
  if (!operands[index].constant) refuse("operand " + std::to_string(index) + " that is computed", "a constant");
  return *operands[index].constant;
}

const Dims& Call::integers(size_t index) const {
  (*this)[index];
  const FloatArray* array = operands[index].constant;
  if (!array || array->integers.size() != array->values.size())
    refuse("numbers that are no integers", "constant integers");
  return array->integers;
}

double Call::number(const char* name, double otherwise) const {
  const auto found = step.numbers.find(name);
  return found == step.numbers.end() || found->second.empty() ? otherwise : found->second[0];
}

int64_t Call::integer(const char* name, int64_t otherwise) const {
  return whole(number(name, static_cast<double>(otherwise)));
}

Dims Call::list(const char* name, const Dims& otherwise) const {
  const auto found = step.numbers.find(name);
  if (found == step.numbers.end()) return otherwise;
  Dims result;
  for (const double value : found->second) result.push_back(whole(value));
  return result;
}

std::string Call::text(const char* name, const std::string& otherwise) const {
  const auto found = step.texts.find(name);
  return found == step.texts.end() ? otherwise : found->second;
}

size_t Call::axis(int64_t value, size_t rank) const {
  const int64_t from_start = value < 0 ? value + static_cast<int64_t>(rank) : value;
  if (from_start < 0 || from_start >= static_cast<int64_t>(rank))
    refuse("axis " + std::to_string(value) + " of " + std::to_string(rank), "an axis that there is");
  return static_cast<size_t>(from_start);
}

int64_t Call::whole(double value) const {
  if (!(std::abs(value) < 1e15)) refuse("an attribute of " + std::to_string(value), "a smaller number");
  return static_cast<int64_t>(value);
}

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

Walk<2> binary_walk(const Dims& dims, const Dims& a, const Dims& b) {
  return Walk<2>(dims, {broadcast_strides(a, dims.size()), broadcast_strides(b, dims.size())});
}

Planned copied(const Call& call, Dims dims) {
  const int64_t count = call.count(0);
  if (count_of(dims) != count) call.refuse("another number of values in its shape", "as many as it has");
  return {checked(call, std::move(dims)), [=](Operands x, float* y, float*) { std::copy_n(x[0], count, y); }};
}

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

}  // namespace facetrain::nodes
