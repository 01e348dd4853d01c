// Functions of each number by itself, and of numbers at the same place of two or three arrays.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "nodes/operator.h"

namespace facetrain::nodes {
namespace {

float of(bool value) { return value ? 1.0f : 0.0f; }

template <typename Function>
Planned map(const Call& call, Function function) {
  const int64_t count = call.count(0);
  return {call[0], [=](Operands x, float* y, float*) {
            const float* from = x[0];
            for (int64_t i = 0; i < count; ++i) y[i] = function(from[i]);
          }};
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

}  // namespace

Operators elementwise_operators() {
  static constexpr Operator kOperators[]{
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
  };
  return kOperators;
}

}  // namespace facetrain::nodes

namespace facetrain {

bool elementwise(const std::vector<FloatStep>& steps) {
  return std::all_of(steps.begin(), steps.end(), [](const FloatStep& step) {
    return keeps_places(step) &&
           std::all_of(step.operands.begin(), step.operands.end(), [](const FloatStep::Operand& operand) {
             using From = FloatStep::Operand::From;
             if (operand.from == From::input) return operand.index == 0;
             return operand.from != From::constant || operand.constant.values.size() == 1;
           });
  });
}

bool keeps_places(const FloatStep& step) {
  const nodes::Operators all = nodes::elementwise_operators();
  return std::any_of(all.begin(), all.end(), [&](const nodes::Operator& known) { return known.name == step.op; });
}

}  // namespace facetrain
