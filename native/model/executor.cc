#include "model/executor.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <set>

#include "error.h"
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
      step.inputs.resize(names.size());
      for (size_t i = 0; i < names.size(); ++i) {
        const std::string& name = names[i];
        if (name.empty() || constants.find(name)) continue;
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

  at::Tensor forward(const at::Tensor& images, bool training) override {
    const c10::InferenceMode inference(!training);
    const c10::AutoGradMode gradients(training);
    return run(images.contiguous(at::MemoryFormat::ChannelsLast), training, nullptr).to(at::kFloat);
  }

  void observe(const at::Tensor& images, const Observer& observer) override {
    const c10::InferenceMode inference;
    run(images.contiguous(at::MemoryFormat::ChannelsLast), /*training=*/false, observer);
  }

  std::vector<Named>& parameters() override { return parameters_; }
  std::vector<Named>& buffers() override { return buffers_; }
  std::vector<Named>& fixed() override { return fixed_; }

 private:
  at::Tensor run(at::Tensor images, bool training, const Observer& observer) {
    std::vector<at::Tensor> slots(steps_.size() + 1);
    slots[0] = std::move(images);
    std::vector<at::Tensor> inputs;
    for (current_ = 0; current_ < steps_.size(); ++current_) {
      const Step& step = steps_[current_];
      inputs.clear();
      for (const Step::Input& input : step.inputs) {
        inputs.push_back(input.slot < 0 ? at::Tensor() : input.last ? std::move(slots[input.slot]) : slots[input.slot]);
      }
      slots[step.output] = step.run(inputs, training);
      if (observer) observer(step.source, slots[step.output]);
    }
    return slots[output_];
  }

  // Runs the graph on two blank pictures, which finds shapes that do not fit. With one picture, a graph that an
  // exporter fixed to a batch of 1 would pass.
  void check_shapes(const Graph& graph, at::Device device) {
    const c10::InferenceMode inference;
    at::Tensor embeddings;
    try {
      embeddings = forward(
          at::zeros({2, graph.input.channels, graph.input.height, graph.input.width}, at::TensorOptions(device)),
          false);
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
};

}  // namespace

std::unique_ptr<Executor> make_executor(const Graph& graph, at::Device device) {
  return std::make_unique<PlanExecutor>(graph, device);
}

}  // namespace facetrain
