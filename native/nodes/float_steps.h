// ONNX operators in FP32 on arrays of any rank, for one picture (a batch of 1).
//
// A program is planned once for inputs of known dimensions: operands and attributes are checked, dimensions computed,
// and lists of indices made. Running it then checks and allocates nothing.
//
// The results are those of ONNX Runtime, to the rounding of sums and of functions such as exp, which are computed in
// float64 and rounded once. Every sum has a fixed order, without fused multiply-add. So every machine gives the same
// numbers. The semantics are those of operator set 17, with explicit pads.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace facetrain {

using ArrayDims = std::vector<int64_t>;

// An array in row-major order. A constant of integers, such as the target of a Reshape, has its numbers in `integers`,
// too: operators of values and those of integers read it.
struct FloatArray {
  ArrayDims dims;
  std::vector<float> values;
  std::vector<int64_t> integers;
};

// One ONNX node.
struct FloatStep {
  struct Operand {
    enum class From { input, step, constant, absent };
    From from = From::absent;
    int index = 0;        // of the layer's input, or of an earlier step
    FloatArray constant;  // if from == constant
  };
  std::string op;
  std::map<std::string, std::vector<double>> numbers;  // attributes: numbers, and lists of them
  std::map<std::string, std::string> texts;            // attributes: strings
  std::vector<Operand> operands;
};

// The count of numbers in an array; -1 where there are more than 2^28, or a dimension is negative.
int64_t count_of(const ArrayDims& dims);

// Steps that are computed in order; the last one's output is the program's.
class FloatProgram {
 public:
  FloatProgram() = default;
  // `steps` must outlive it. Throws Error(InvalidModel) with `subject` if an operator is unknown, or its operands do
  // not fit.
  FloatProgram(const std::vector<FloatStep>& steps, const std::vector<ArrayDims>& inputs, const std::string& subject);

  const ArrayDims& dims() const { return steps_.back().dims; }
  // Numbers of `scratch` that a run needs.
  int64_t scratch() const { return scratch_; }
  // Computes y of the inputs. `scratch` is aligned to 64 bytes. Runs with different scratches may overlap.
  void run(const float* const* inputs, float* y, float* scratch) const;

 private:
  using Run = std::function<void(const float* const* operands, float* y, float* scratch)>;
  struct Source {
    FloatStep::Operand::From from;
    int index;              // of an input, or of an earlier step
    const float* constant;  // if from == constant
  };
  struct Step {
    ArrayDims dims;
    Run run;
    std::vector<Source> operands;
    int64_t result = 0;  // its place in the scratch; not of the last
  };
  std::vector<Step> steps_;
  int64_t scratch_ = 0, operator_scratch_ = 0;
};

// Computes the steps for these inputs: a FloatProgram that runs once.
FloatArray run_steps(const std::vector<FloatStep>& steps, const std::vector<FloatArray>& inputs,
                     const std::string& subject);

// A step that takes entries of its operand along each axis: y[i, j, ...] = x[taken[0][i], taken[1][j], ...].
struct Picks {
  // By axis; an entry of -1 takes `fill`. An axis without a list is taken whole.
  std::vector<std::optional<std::vector<int32_t>>> taken;
  float fill = 0;
};
// The picks of a Gather with a list of indices, a Pad, a Slice or a Resize by the nearest; none for other steps. Throws
// as FloatProgram.
std::optional<Picks> picks_of(const FloatStep& step, const ArrayDims& input, const std::string& subject);
// Computes y for x of these dimensions, with `fill` in place of the picks' own.
template <typename T>
void run_picks(const Picks& picks, const ArrayDims& input, const T* x, T fill, T* y);

// The windows of a MaxPool or an AveragePool over [N, C, height, width].
struct PoolWindow {
  int64_t size[2], kernel[2], strides[2], dilations[2], pads[2], out[2];

  // The taps `first` to `last` - 1 along an axis that lie on the operand for an output position, and the position of
  // tap 0, which may be negative.
  struct Taps {
    int64_t first, last, origin;
  };
  Taps taps(int axis, int64_t position) const;
};
PoolWindow pool_window(const FloatStep& step, const ArrayDims& input, const std::string& subject);
// Whether an AveragePool divides by the taps of its kernel, also those on pads.
bool counts_pads(const FloatStep& step);

// Whether every step is a function of each number by itself: of the layer's one input, of earlier steps, and of
// constants that are single numbers.
bool elementwise(const std::vector<FloatStep>& steps);

// Whether the step computes each number of its output from those at the same place of its operands, which are
// broadcast: its result is then the same in any order of the axes.
bool keeps_places(const FloatStep& step);

// Whether the step only moves numbers (a MaxPool chooses them), so that its output may have its input's scale: the
// integers of the output are then integers of the input, or zeros.
bool moves_numbers(const FloatStep& step);

}  // namespace facetrain
