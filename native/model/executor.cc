#include "model/executor.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <set>

#include "error.h"
#include "model/checkpoint.h"
#include "model/operators.h"
#include "torch_error.h"

namespace facetrain {
namespace {

// A plan is a list of steps over numbered slots; each slot holds one value of the graph. The last step that reads a
// slot empties it, so in evaluation mode a value's memory is freed when it is no longer needed.
struct Step {
  std::string node;    // for messages
  std::string source;  // the node that makes the output: another one when two nodes are one step
  Operator run;
  struct Input {
    int slot = -1;      // -1: a constant that the operator holds, or an optional input that is left out
    bool last = false;  // whether no later step reads the slot
  };
  std::vector<Input> inputs;
  int output = 0;
  std::vector<std::string> constants;  // initializers that it uses
  int64_t bytes = 0;                   // of its output for two pictures; 0 if the output is a view of its input
};

// The batch norms that are computed in one step with the only node that reads them, a PRelu or an Add, by that node.
std::map<const Node*, const Node*> fused_norms(const Graph& graph) {
  std::map<std::string, std::vector<const Node*>> readers;
  for (const Node& node : graph.nodes) {
    for (const std::string& input : node.inputs) readers[input].push_back(&node);
  }
  std::map<const Node*, const Node*> norms;
  for (const Node& node : graph.nodes) {
    if (node.op != "BatchNormalization" || node.outputs.empty() || node.outputs[0] == graph.output.name) continue;
    const auto& reading = readers[node.outputs[0]];
    if (reading.size() != 1 || reading[0]->outputs.empty()) continue;  // an Add of a value to itself reads it twice
    const Node& reader = *reading[0];
    const bool prelu = reader.op == "PRelu" && reader.inputs[0] == node.outputs[0];
    const bool add = reader.op == "Add" && reader.inputs.size() == 2 && reader.attributes.empty() &&
                     std::ranges::none_of(reader.inputs,
                                          [&](const std::string& input) { return graph.initializers.contains(input); });
    if (prelu || add) norms.emplace(&reader, &node);  // of two batch norms that are added, the first
  }
  return norms;
}

class PlanExecutor final : public Executor {
 public:
  PlanExecutor(const Graph& graph, at::Device device) : range_(graph.input.range) {
    set_precision(Precision::fp32);
    Constants constants(graph, device, compute_);
    std::map<std::string, int> slots{{graph.input.name, 0}};
    std::vector<Step::Input*> last_reader(1, nullptr);
    steps_.reserve(graph.nodes.size());  // last_reader points into it
    const auto norm_of = fused_norms(graph);
    std::set<const Node*> fused;
    for (const auto& [reader, norm] : norm_of) fused.insert(norm);
    for (const Node& node : graph.nodes) {
      if (fused.contains(&node)) continue;  // part of its reader's step
      const auto found = norm_of.find(&node);
      const Node* const norm = found == norm_of.end() ? nullptr : found->second;
      if (node.outputs.empty()) throw Error("InvalidModel", describe(node), "it has no output", "one");
      const std::string& output = node.outputs[0];
      Step& step = steps_.emplace_back();
      step.node = norm ? describe(*norm) : describe(node);
      step.source = describe(node);
      // The inputs of a fused batch norm, and then the other summand, if there is one; a PRelu's slope is a constant.
      std::vector<std::string> names = norm ? norm->inputs : node.inputs;
      if (norm && node.op == "Add") {
        step.run = bind_norm_add(*norm, constants);
        names.push_back(node.inputs[node.inputs[0] == norm->outputs[0] ? 1 : 0]);
      } else {
        step.run = norm ? bind_norm_prelu(*norm, node, constants) : bind(node, constants, output == graph.output.name);
      }
      if (norm && node.op == "PRelu") step.constants.push_back(node.inputs[1]);
      step.inputs.resize(names.size());
      for (size_t i = 0; i < names.size(); ++i) {
        const std::string& name = names[i];
        if (name.empty()) continue;
        if (constants.find(name)) {
          step.constants.push_back(name);
          continue;
        }
        const auto slot = slots.find(name);
        if (slot == slots.end()) {
          throw Error("InvalidModel", step.node, "input '" + name + "' is made by no node before it",
                      "nodes in topological order, and only a node's first output in use");
        }
        step.inputs[i].slot = slot->second;
        last_reader[slot->second] = &step.inputs[i];
      }
      step.output = static_cast<int>(last_reader.size());
      last_reader.push_back(nullptr);
      if (!slots.emplace(output, step.output).second) {
        throw Error("InvalidModel", step.node, "'" + output + "' is made twice", "a name per value");
      }
    }
    const auto output = slots.find(graph.output.name);
    if (output == slots.end() || steps_.empty()) {
      throw Error("InvalidModel", "output '" + graph.output.name + "'", "no node makes it",
                  "the name of a node's output");
    }
    output_ = output->second;
    for (Step::Input* input : last_reader) {
      if (input && input->slot != output_) input->last = true;
    }
    parameters_ = std::move(constants.parameters);
    buffers_ = std::move(constants.buffers);
    fixed_ = std::move(constants.fixed);
    check_shapes(graph, device);
  }

  const PixelRange& range() const override { return range_; }

  Precision precision() const override { return compute_->precision; }
  void set_precision(Precision precision) override {
    compute_->precision = precision;
    use_precision(precision);
  }

  void checkpoint_activations(bool on) override {
    blocks_.clear();
    if (on) make_blocks();
  }

  void join_norms(const JoinedRanks* ranks) override { compute_->norm_ranks = ranks; }

  at::Tensor forward(const at::Tensor& images, Pass pass) override {
    const c10::InferenceMode inference(pass == Pass::evaluation);
    at::Tensor value = images.contiguous(at::MemoryFormat::ChannelsLast);
    if (pass == Pass::evaluation || !c10::GradMode::is_enabled() || blocks_.empty())
      return run_steps({0, steps_.size()}, std::move(value), pass, nullptr).to(at::kFloat);
    for (const Block& block : blocks_) {
      value =
          block.again ? checkpoint(value, block.again, pass) : run_steps(block.steps, std::move(value), pass, nullptr);
    }
    return value.to(at::kFloat);
  }

  void observe(const at::Tensor& images, const Observer& observer) override {
    const c10::InferenceMode inference;
    run_steps({0, steps_.size()}, images.contiguous(at::MemoryFormat::ChannelsLast), Pass::evaluation, observer);
  }

  std::vector<Named>& parameters() override { return parameters_; }
  std::vector<Named>& buffers() override { return buffers_; }
  std::vector<Named>& fixed() override { return fixed_; }

 private:
  // Consecutive steps that take one value and make one; `again` runs them if they are computed twice.
  struct Block {
    StepRange steps;
    std::shared_ptr<const Recomputed> again;
  };

  // Runs steps whose only input is `value`: the images, or the output of the step before. Returns the output of the
  // last one, or of the graph.
  at::Tensor run_steps(StepRange range, at::Tensor value, Pass pass, const Observer& observer) {
    std::vector<at::Tensor> slots(steps_.size() + 1);
    slots[range.first == 0 ? 0 : steps_[range.first - 1].output] = std::move(value);
    std::vector<at::Tensor> inputs;
    for (current_ = range.first; current_ < range.end; ++current_) {
      Step& step = steps_[current_];
      inputs.clear();
      for (const Step::Input& input : step.inputs) {
        inputs.push_back(input.slot < 0 ? at::Tensor() : input.last ? std::move(slots[input.slot]) : slots[input.slot]);
      }
      slots[step.output] = step.run(inputs, pass);
      if (observer) observer(step.source, slots[step.output]);
    }
    return slots[range.end == steps_.size() ? output_ : steps_[range.end - 1].output];
  }

  void make_blocks() {
    std::vector<ActivationStep> activations(steps_.size());
    std::vector<size_t> last_use(steps_.size() + 1, 0);  // by slot
    for (size_t i = 0; i < steps_.size(); ++i) {
      activations[i].bytes = steps_[i].bytes;
      for (const Step::Input& input : steps_[i].inputs) {
        if (input.slot >= 0) last_use[static_cast<size_t>(input.slot)] = i;
      }
    }
    last_use[static_cast<size_t>(output_)] = steps_.size();
    size_t needed = last_use[0];  // the last step that reads a value made before step i
    for (size_t i = 0; i < steps_.size(); ++i) {
      activations[i].is_cut = needed <= i;
      needed = std::max(needed, last_use[static_cast<size_t>(steps_[i].output)]);
    }
    std::map<std::string, at::Tensor> parameters;
    for (const auto& [name, tensor] : parameters_) parameters.emplace(name, tensor);
    for (const StepRange& range : choose_blocks(activations)) {
      Block& block = blocks_.emplace_back(Block{range, nullptr});
      // The backward pass begins with the last block, whose activations are still there; and of one step there is
      // nothing to leave out but its output, which the next block keeps.
      if (range.end == steps_.size() || range.end - range.first == 1) continue;
      Recomputed again;
      again.run = [this, range](const at::Tensor& value, Pass pass) { return run_steps(range, value, pass, nullptr); };
      std::set<std::string> names;
      for (size_t i = range.first; i < range.end; ++i)
        names.insert(steps_[i].constants.begin(), steps_[i].constants.end());
      for (const std::string& name : names) {
        if (const auto found = parameters.find(name); found != parameters.end())
          again.parameters.push_back(found->second);
      }
      block.again = std::make_shared<const Recomputed>(std::move(again));
    }
  }

  // Runs the graph on two blank pictures, which finds shapes that do not fit. With one picture, a graph that an
  // exporter fixed to a batch of 1 would pass.
  void check_shapes(const Graph& graph, at::Device device) {
    const c10::InferenceMode inference;
    at::Tensor embeddings, before;
    const auto measure = [&](const std::string&, const at::Tensor& value) {
      steps_[current_].bytes = before.defined() && value.is_alias_of(before) ? 0 : static_cast<int64_t>(value.nbytes());
      before = value;
    };
    try {
      embeddings = run_steps(
          {0, steps_.size()},
          at::zeros({2, graph.input.channels, graph.input.height, graph.input.width}, at::TensorOptions(device))
              .contiguous(at::MemoryFormat::ChannelsLast),
          Pass::evaluation, measure);
    } catch (const c10::Error& error) {
      throw_memory_error(error);
      throw Error("InvalidModel", steps_[current_].node, message_of(error),
                  "shapes that fit an input of [N, " + std::to_string(graph.input.channels) + ", " +
                      std::to_string(graph.input.height) + ", " + std::to_string(graph.input.width) + "]");
    }
    if (embeddings.dim() != 2 || embeddings.size(0) != 2 || embeddings.size(1) != graph.output.dim) {
      std::string shape;
      for (const int64_t dim : embeddings.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(dim);
      throw Error("InvalidModel", "output '" + graph.output.name + "'", "has the shape [" + shape + "] for 2 pictures",
                  "[2, " + std::to_string(graph.output.dim) + "]");
    }
  }

  const PixelRange range_;
  const std::shared_ptr<Compute> compute_ = std::make_shared<Compute>();
  std::vector<Step> steps_;
  size_t current_ = 0;  // the step that is running, for messages
  int output_ = 0;      // slot of the graph's output
  std::vector<Named> parameters_, buffers_, fixed_;
  std::vector<Block> blocks_;  // of checkpoint_activations; empty: all activations are kept
};

}  // namespace

std::unique_ptr<Executor> make_executor(const Graph& graph, at::Device device) {
  return std::make_unique<PlanExecutor>(graph, device);
}

}  // namespace facetrain
