#include "nodes/node_layer.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "clones.h"
#include "error.h"
#include "kernels/elementwise.h"

namespace facetrain {

class NodeLayer::Form {
 public:
  virtual ~Form() = default;
  virtual const std::array<int8_t, 256>* table() const { return nullptr; }
  virtual void run(const void* const* inputs, void* y, uint8_t* scratch) const = 0;

  int64_t scratch = 0;  // bytes
};

namespace {

using Table = std::array<int8_t, 256>;

constexpr int64_t kLine = 64;
int64_t lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

bool is_map(const ArrayDims& dims) { return dims.size() == 4 && dims[0] == 1; }
ArrayDims channels_last(const ArrayDims& dims) { return {1, dims[2], dims[3], dims[1]}; }

FACETRAIN_CLONES void dequantized(const int8_t* x, int64_t count, float scale, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(x[i]) * scale;
}

// From [rows, columns] to [columns, rows], in blocks that stay in the first-level cache.
template <typename T>
void turn(const T* x, int64_t rows, int64_t columns, T* y) {
  constexpr int64_t kBlock = 16;
  for (int64_t r = 0; r < rows; r += kBlock) {
    for (int64_t c = 0; c < columns; c += kBlock) {
      const int64_t r_end = std::min(rows, r + kBlock), c_end = std::min(columns, c + kBlock);
      for (int64_t i = r; i < r_end; ++i) {
        for (int64_t j = c; j < c_end; ++j) y[j * rows + i] = x[i * columns + j];
      }
    }
  }
}

// Whether the numbers of x and y lie in the same order. Those of a map, and of its Flatten, do not.
bool has_layout_of(const NodeTensor& x, const NodeTensor& y) {
  return x.channels == y.channels && x.height == y.height && x.width == y.width;
}

// Whether integers of x are integers of y with the same value.
bool has_integers_of(const NodeTensor& x, const NodeTensor& y) {
  return x.scale == y.scale && y.range.contains(x.range);
}

// ---- A function of single numbers, of integers ----

class TableForm final : public NodeLayer::Form {
 public:
  TableForm(const FloatProgram& program, const NodeTensor& x, const NodeTensor& y) : size_(y.size()), real_(y.real) {
    std::array<float, 256> values;
    for (int i = 0; i < 256; ++i) values[i] = static_cast<float>(i - 128) * x.scale;
    std::vector<float> memory(static_cast<size_t>(program.scratch() + kLine));
    float* aligned = memory.data();
    while (reinterpret_cast<uintptr_t>(aligned) % kLine != 0) ++aligned;
    const float* input = values.data();
    program.run(&input, reals_.data(), aligned);
    if (!real_) quantize(reals_.data(), 256, y.scale, y.range, integers_.data());
  }

  const Table* table() const override { return real_ ? nullptr : &integers_; }
  void run(const void* const* inputs, void* y, uint8_t*) const override {
    const auto* x = static_cast<const int8_t*>(inputs[0]);
    if (real_) {
      for (int64_t i = 0; i < size_; ++i) static_cast<float*>(y)[i] = reals_[x[i] + 128];
    } else {
      for (int64_t i = 0; i < size_; ++i) static_cast<int8_t*>(y)[i] = integers_[x[i] + 128];
    }
  }

 private:
  int64_t size_;
  bool real_;
  std::array<float, 256> reals_{};
  Table integers_{};
};

// ---- Movements of pixels and channels, for int8_t and float ----

class PicksForm final : public NodeLayer::Form {
 public:
  PicksForm(const Picks& picks, const ArrayDims& input, bool real) : input_(channels_last(input)), real_(real) {
    picks_.fill = picks.fill;
    for (const int axis : {0, 2, 3, 1}) picks_.taken.push_back(picks.taken[axis]);
  }
  void run(const void* const* inputs, void* y, uint8_t*) const override {
    if (real_) {
      run_picks(picks_, input_, static_cast<const float*>(inputs[0]), picks_.fill, static_cast<float*>(y));
    } else {
      run_picks(picks_, input_, static_cast<const int8_t*>(inputs[0]), int8_t{0}, static_cast<int8_t*>(y));
    }
  }

 private:
  Picks picks_;
  ArrayDims input_;
  bool real_;
};

// Joins channels. Integers of another scale than the output's become those of its scale.
class ConcatForm final : public NodeLayer::Form {
 public:
  ConcatForm(const FloatStep& step, const std::vector<NodeTensor>& inputs, const NodeTensor& output)
      : area_(output.area()), channels_(output.channels), real_(output.real) {
    for (const auto& operand : step.operands) {
      const NodeTensor& tensor = inputs[operand.index];
      Part part{operand.index, tensor.channels, tensor.real || has_integers_of(tensor, output), {}};
      if (!part.same) {
        std::array<float, 256> values;
        for (int q = 0; q < 256; ++q) values[q] = static_cast<float>(q - 128) * tensor.scale;
        quantize(values.data(), 256, output.scale, output.range, part.table.data());
      }
      parts_.push_back(part);
    }
  }
  void run(const void* const* inputs, void* y, uint8_t*) const override {
    int64_t first = 0;
    for (const Part& part : parts_) {
      if (real_) {
        copy(static_cast<const float*>(inputs[part.input]), part.channels, static_cast<float*>(y) + first);
      } else if (part.same) {
        copy(static_cast<const int8_t*>(inputs[part.input]), part.channels, static_cast<int8_t*>(y) + first);
      } else {
        const auto* x = static_cast<const int8_t*>(inputs[part.input]);
        auto* to = static_cast<int8_t*>(y) + first;
        for (int64_t pixel = 0; pixel < area_; ++pixel, to += channels_) {
          for (int64_t c = 0; c < part.channels; ++c) to[c] = part.table[*x++ + 128];
        }
      }
      first += part.channels;
    }
  }

 private:
  struct Part {
    int input;
    int64_t channels;
    bool same;
    Table table;
  };

  template <typename T>
  void copy(const T* x, int64_t channels, T* y) const {
    for (int64_t pixel = 0; pixel < area_; ++pixel, x += channels, y += channels_) std::copy_n(x, channels, y);
  }

  std::vector<Part> parts_;
  int64_t area_, channels_;
  bool real_;
};

FACETRAIN_CLONES void keep_largest(const int8_t* x, int64_t count, int8_t* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = std::max(y[i], x[i]);
}
FACETRAIN_CLONES void keep_largest(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = std::max(y[i], x[i]);
}
FACETRAIN_CLONES void add_to(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] += x[i];
}

// Calls tap(pixel of x) for the taps of each output pixel that lie on x, and then done(their number).
template <typename T, typename Start, typename Tap, typename Done>
void each_window(const PoolWindow& window, int64_t channels, const T* x, const Start& start, const Tap& tap,
                 const Done& done) {
  for (int64_t row = 0; row < window.out[0]; ++row) {
    const PoolWindow::Taps rows = window.taps(0, row);
    for (int64_t column = 0; column < window.out[1]; ++column) {
      const PoolWindow::Taps columns = window.taps(1, column);
      start();
      int64_t count = 0;
      for (int64_t ky = rows.first; ky < rows.last; ++ky) {
        for (int64_t kx = columns.first; kx < columns.last; ++kx, ++count)
          tap(x +
              ((rows.origin + ky * window.dilations[0]) * window.size[1] + columns.origin + kx * window.dilations[1]) *
                  channels);
      }
      done(count);
    }
  }
}

class MaxPoolForm final : public NodeLayer::Form {
 public:
  MaxPoolForm(const PoolWindow& window, const NodeTensor& y)
      : window_(window), channels_(y.channels), real_(y.real), least_(static_cast<int8_t>(y.range.low)) {}
  void run(const void* const* inputs, void* y, uint8_t*) const override {
    real_ ? pool(static_cast<const float*>(inputs[0]), std::numeric_limits<float>::lowest(), static_cast<float*>(y))
          : pool(static_cast<const int8_t*>(inputs[0]), least_, static_cast<int8_t*>(y));
  }

 private:
  // `least`: of a window without a tap.
  template <typename T>
  void pool(const T* x, T least, T* y) const {
    each_window(
        window_, channels_, x, [&] { std::fill_n(y, channels_, least); },
        [&](const T* pixel) { keep_largest(pixel, channels_, y); }, [&](int64_t) { y += channels_; });
  }

  PoolWindow window_;
  int64_t channels_;
  bool real_;
  int8_t least_;
};

// ---- Operators in FP32, with conversions around them where a tensor has integers ----

class RealForm : public NodeLayer::Form {
 public:
  void run(const void* const* inputs, void* y, uint8_t* memory) const final {
    auto** reals = reinterpret_cast<const float**>(memory);
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Input& input = inputs_[i];
      const float* x = static_cast<const float*>(inputs[i]);
      if (!input.real) {
        auto* to = reinterpret_cast<float*>(memory + input.dequantized);
        dequantized(static_cast<const int8_t*>(inputs[i]), input.size, input.scale, to);
        x = to;
      }
      if (input.turned >= 0) {
        auto* to = reinterpret_cast<float*>(memory + input.turned);
        turn(x, input.size / input.channels, input.channels, to);
        x = to;
      }
      reals[i] = x;
    }
    const bool turns = turned_ >= 0;
    float* result = turns || !y_.real ? reinterpret_cast<float*>(memory + result_) : static_cast<float*>(y);
    compute(reals, result, reinterpret_cast<float*>(memory + own_));
    if (turns) {
      float* to = y_.real ? static_cast<float*>(y) : reinterpret_cast<float*>(memory + turned_);
      turn(result, y_.channels, y_.area(), to);
      result = to;
    }
    if (!y_.real) quantize(result, y_.size(), y_.scale, y_.range, static_cast<int8_t*>(y));
  }

 protected:
  // `turns`: of each input, and of the output, whether it is a map that the operators read or write in ONNX's order.
  RealForm(const std::vector<NodeTensor>& inputs, const NodeTensor& output, bool turns) : y_(output) {
    const auto reserve = [this](int64_t bytes) {
      const int64_t at = scratch;
      scratch += lines(bytes);
      return at;
    };
    constexpr int64_t kFloat = sizeof(float);
    reserve(static_cast<int64_t>(inputs.size() * sizeof(float*)));
    for (const NodeTensor& tensor : inputs) {
      Input input{tensor.real, tensor.scale, tensor.size(), tensor.channels, -1, -1};
      if (!tensor.real) input.dequantized = reserve(kFloat * tensor.size());
      if (turns && tensor.area() > 1 && tensor.channels > 1) input.turned = reserve(kFloat * tensor.size());
      inputs_.push_back(input);
    }
    if (turns && output.area() > 1 && output.channels > 1) turned_ = output.real ? 0 : reserve(kFloat * output.size());
    if (turned_ >= 0 || !output.real) result_ = reserve(kFloat * output.size());
    own_ = scratch;
  }
  // `own`: numbers of the scratch that compute() gets.
  void reserve_own(int64_t own) { scratch += lines(own * static_cast<int64_t>(sizeof(float))); }
  virtual void compute(const float* const* inputs, float* y, float* scratch) const = 0;

 private:
  struct Input {
    bool real;
    float scale;
    int64_t size, channels;
    int64_t dequantized, turned;  // places in the scratch; -1: none
  };

  std::vector<Input> inputs_;
  NodeTensor y_;
  int64_t turned_ = -1, result_ = 0, own_ = 0;
};

class ProgramForm final : public RealForm {
 public:
  ProgramForm(FloatProgram program, const std::vector<NodeTensor>& inputs, const NodeTensor& output, bool turns)
      : RealForm(inputs, output, turns), program_(std::move(program)) {
    reserve_own(program_.scratch());
  }

 private:
  void compute(const float* const* inputs, float* y, float* memory) const override { program_.run(inputs, y, memory); }

  FloatProgram program_;
};

class AveragePoolForm final : public RealForm {
 public:
  AveragePoolForm(const PoolWindow& window, bool count_pads, const std::vector<NodeTensor>& inputs,
                  const NodeTensor& output)
      : RealForm(inputs, output, false), window_(window), count_pads_(count_pads), channels_(output.channels) {}

 private:
  void compute(const float* const* inputs, float* y, float*) const override {
    each_window(
        window_, channels_, inputs[0], [&] { std::fill_n(y, channels_, 0.0f); },
        [&](const float* pixel) { add_to(pixel, channels_, y); },
        [&](int64_t count) {
          if (count_pads_) count = window_.kernel[0] * window_.kernel[1];
          for (int64_t c = 0; c < channels_; ++c) y[c] = count == 0 ? 0 : y[c] / static_cast<float>(count);
          y += channels_;
        });
  }

  PoolWindow window_;
  bool count_pads_;
  int64_t channels_;
};

// ---- The choice ----

// Whether the operands that are inputs are all maps, and there are no constants among them.
bool joins_maps(const FloatStep& step) {
  return std::all_of(step.operands.begin(), step.operands.end(),
                     [](const FloatStep::Operand& operand) { return operand.from == FloatStep::Operand::From::input; });
}

// Whether the first operand is the layer's input, and not a constant.
bool reads_input_first(const FloatStep& step) {
  return !step.operands.empty() && step.operands[0].from == FloatStep::Operand::From::input &&
         step.operands[0].index == 0;
}

// Whether constants have no axes that would have to be turned.
bool has_single_constants(const FloatStep& step) {
  return std::all_of(step.operands.begin(), step.operands.end(), [](const FloatStep::Operand& operand) {
    return operand.from != FloatStep::Operand::From::constant || operand.constant.values.size() == 1;
  });
}

double attribute(const FloatStep& step, const char* name, double otherwise) {
  const auto found = step.numbers.find(name);
  return found == step.numbers.end() || found->second.empty() ? otherwise : found->second[0];
}

// A form of one step that reads and writes maps; null if there is none. The operators are known to fit.
std::unique_ptr<NodeLayer::Form> map_form(const NodeSpec& spec, const std::vector<NodeTensor>& inputs,
                                          const NodeTensor& output, const std::string& subject) {
  if (spec.steps.size() != 1 || !is_map(spec.output_dims) ||
      !std::all_of(spec.input_dims.begin(), spec.input_dims.end(), is_map))
    return nullptr;
  const FloatStep& step = spec.steps[0];
  const NodeTensor& x = inputs[0];
  const bool same_kind =
      std::all_of(inputs.begin(), inputs.end(), [&](const NodeTensor& input) { return input.real == output.real; });
  const bool same_numbers = same_kind && inputs.size() == 1 && (output.real || has_integers_of(x, output));
  if (step.op == "Concat" && same_kind && attribute(step, "axis", 0) == 1 && joins_maps(step))
    return std::make_unique<ConcatForm>(step, inputs, output);
  const bool reads_x = reads_input_first(step);
  if (step.op == "MaxPool" && same_numbers && reads_x)
    return std::make_unique<MaxPoolForm>(pool_window(step, spec.input_dims[0], subject), output);
  if (step.op == "AveragePool" && reads_x)
    return std::make_unique<AveragePoolForm>(pool_window(step, spec.input_dims[0], subject), counts_pads(step), inputs,
                                             output);
  // The pads of integers are zeros.
  if (same_numbers && reads_x && (output.real || moves_numbers(step))) {
    if (const auto picks = picks_of(step, spec.input_dims[0], subject))
      return std::make_unique<PicksForm>(*picks, spec.input_dims[0], output.real);
  }
  if (!keeps_places(step) || !has_single_constants(step)) return nullptr;
  std::vector<ArrayDims> dims;
  for (const ArrayDims& input : spec.input_dims) dims.push_back(channels_last(input));
  FloatProgram program(spec.steps, dims, subject);
  if (program.dims() != channels_last(spec.output_dims)) return nullptr;
  return std::make_unique<ProgramForm>(std::move(program), inputs, output, false);
}

}  // namespace

NodeLayer::NodeLayer(const NodeSpec& spec, const std::vector<NodeTensor>& inputs, const NodeTensor& output,
                     const std::string& subject) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (spec.input_dims.size() != inputs.size() || count_of(spec.input_dims[i]) != inputs[i].size())
      throw Error("InvalidModel", subject, "other dimensions of its inputs than they have", "as many numbers");
  }
  if (inputs.size() == 1 && !inputs[0].real && elementwise(spec.steps) && has_layout_of(inputs[0], output)) {
    const FloatProgram program(spec.steps, {{256}}, subject);
    if (count_of(program.dims()) == 256) {
      form_ = std::make_unique<TableForm>(program, inputs[0], output);
      return;
    }
  }
  FloatProgram program(spec.steps, spec.input_dims, subject);
  const bool declared = program.dims() == spec.output_dims;
  if (!declared || count_of(spec.output_dims) != output.size())
    throw Error("InvalidModel", subject, "its operators give other dimensions than it declares",
                "the dimensions of its output");
  form_ = map_form(spec, inputs, output, subject);
  if (!form_) form_ = std::make_unique<ProgramForm>(std::move(program), inputs, output, true);
}

NodeLayer::~NodeLayer() = default;
NodeLayer::NodeLayer(NodeLayer&&) noexcept = default;
NodeLayer& NodeLayer::operator=(NodeLayer&&) noexcept = default;

const Table* NodeLayer::table() const { return form_->table(); }
int64_t NodeLayer::scratch_bytes() const { return form_->scratch; }
void NodeLayer::run(const void* const* inputs, void* y, void* scratch) const {
  form_->run(inputs, y, static_cast<uint8_t*>(scratch));
}
void NodeLayer::run(const void* const* inputs, void* y) const {
  std::vector<uint8_t> memory(static_cast<size_t>(form_->scratch + kLine));
  form_->run(inputs, y, memory.data() + (kLine - reinterpret_cast<uintptr_t>(memory.data()) % kLine));
}

}  // namespace facetrain
