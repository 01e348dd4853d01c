// The functions and classes of src/quantization.ts: EasyQuant's search and the networks.
#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>

#include "available_memory.h"
#include "error.h"
#include "int7/onnx_reader.h"
#include "node/call.h"
#include "node/convert.h"
#include "node/register.h"
#include "quant/search.h"

namespace facetrain {
namespace {

// The parts of a LayerGraph, copied from a JavaScript object. LayerGraph is made of them on the worker's thread,
// because its checks take time.
struct GraphIn {
  Tensor input;
  PixelRange range;
  std::vector<Layer> layers;
  std::vector<std::string> outputs;

  LayerGraph graph() && {
    LayerGraph result(std::move(input), std::move(layers), outputs);
    result.range = std::move(range);
    return result;
  }
};

template <typename Target>
void read_integers(const Napi::Object& object, const char* key, Target& target) {
  const auto values = integers_from(object.Get(key));
  // A number beyond an int stays out of the bounds that LayerGraph checks.
  for (size_t i = 0; i < target.size(); ++i) {
    target[i] = static_cast<int>(std::clamp<int64_t>(values.at(i), INT32_MIN, INT32_MAX));
  }
}

std::vector<std::string> texts_from(const Napi::Value& value) {
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> result;
  for (uint32_t i = 0; i < array.Length(); ++i) result.push_back(array.Get(i).As<Napi::String>());
  return result;
}

// Reads a constant of any type that src/types.ts's TypedArray has.
void read_constant(const Napi::TypedArray& data, FloatArray& constant) {
  const auto read = [&](const auto& array) {
    constant.integers.assign(array.Data(), array.Data() + array.ElementLength());
  };
  switch (data.TypedArrayType()) {
    case napi_float32_array:
      constant.values = floats_from(data);
      return;
    case napi_bigint64_array:
      read(data.As<Napi::BigInt64Array>());
      break;
    case napi_int32_array:
      read(data.As<Napi::Int32Array>());
      break;
    case napi_int8_array:
      read(data.As<Napi::Int8Array>());
      break;
    case napi_uint8_array:
      read(data.As<Napi::Uint8Array>());
      break;
    default:  // its step refuses an array without numbers
      return;
  }
  constant.values.assign(constant.integers.begin(), constant.integers.end());
}

// From src/types.ts's NodeOperand.
FloatStep::Operand operand_from(const Napi::Object& from) {
  using From = FloatStep::Operand::From;
  FloatStep::Operand operand;
  if (from.Has("input") || from.Has("step")) {
    operand.from = from.Has("input") ? From::input : From::step;
    operand.index = static_cast<int>(integer_of(from, from.Has("input") ? "input" : "step"));
  } else if (from.Has("constant")) {
    operand.from = From::constant;
    const auto tensor = from.Get("constant").As<Napi::Object>();
    operand.constant.dims = integers_from(tensor.Get("dims"));
    read_constant(tensor.Get("data").As<Napi::TypedArray>(), operand.constant);
  }
  return operand;
}

// From src/types.ts's NodeStep.
FloatStep step_from(const Napi::Object& from) {
  FloatStep step{.op = text_of(from, "op"), .numbers = {}, .texts = {}, .operands = {}};
  for (const auto& [key, entry] : from.Get("attributes").As<Napi::Object>()) {
    const Napi::Value value = entry;
    const std::string name = key.As<Napi::String>();
    if (value.IsString()) {
      step.texts[name] = value.As<Napi::String>();
    } else if (value.IsNumber()) {
      step.numbers[name] = {value.As<Napi::Number>().DoubleValue()};
    } else {
      const auto list = value.As<Napi::Array>();
      auto& numbers = step.numbers[name];
      for (uint32_t i = 0; i < list.Length(); ++i) numbers.push_back(list.Get(i).As<Napi::Number>().DoubleValue());
    }
  }
  const auto operands = from.Get("operands").As<Napi::Array>();
  for (uint32_t i = 0; i < operands.Length(); ++i)
    step.operands.push_back(operand_from(operands.Get(i).As<Napi::Object>()));
  return step;
}

void read_node(const Napi::Object& from, Layer& layer) {
  layer.kind = Layer::Kind::node;
  layer.input_names = texts_from(from.Get("inputs"));
  layer.real = flag_of(from, "real");
  layer.node.output_dims = integers_from(from.Get("outputDims"));
  const auto dims = from.Get("inputDims").As<Napi::Array>(), steps = from.Get("steps").As<Napi::Array>();
  for (uint32_t i = 0; i < dims.Length(); ++i) layer.node.input_dims.push_back(integers_from(dims.Get(i)));
  for (uint32_t i = 0; i < steps.Length(); ++i) layer.node.steps.push_back(step_from(steps.Get(i).As<Napi::Object>()));
}

Layer layer_from(const Napi::Object& from) {
  Layer layer;
  const std::string kind = text_of(from, "kind");
  layer.name = text_of(from, "name");
  layer.output_name = text_of(from, "output");
  if (kind == "add") {
    layer.kind = Layer::Kind::add;
    layer.input_names = texts_from(from.Get("inputs"));
    return layer;
  }
  if (kind == "node") {
    read_node(from, layer);
    return layer;
  }
  layer.input_names.push_back(text_of(from, "input"));
  if (kind == "pool") {
    layer.kind = Layer::Kind::pool;
  } else if (kind == "pointwise") {
    layer.kind = Layer::Kind::pointwise;
    layer.positive = floats_from(from.Get("positive"));
    layer.negative = floats_from(from.Get("negative"));
    layer.offset = floats_from(from.Get("offset"));
  } else {
    layer.kind = Layer::Kind::conv;
    layer.fully_connected = kind == "fc";
    const auto weight = from.Get("weight").As<Napi::Object>();
    const auto dims = integers_from(weight.Get("dims"));
    layer.weight = floats_from(weight.Get("data"));
    layer.bias = floats_from(from.Get("bias"));
    layer.shape.out_channels = static_cast<int>(dims.at(0));
    if (!layer.fully_connected) {
      layer.shape.kernel = {static_cast<int>(dims.at(2)), static_cast<int>(dims.at(3))};
      read_integers(from, "strides", layer.shape.strides);
      read_integers(from, "pads", layer.shape.pads);
      read_integers(from, "dilations", layer.shape.dilations);
      layer.shape.group = static_cast<int>(integer_of(from, "group"));
    }
  }
  return layer;
}

GraphIn graph_in(const Napi::Object& object) {
  GraphIn result;
  const auto input = object.Get("input").As<Napi::Object>();
  result.input.name = text_of(input, "name");
  result.input.channels = static_cast<int>(integer_of(input, "channels"));
  result.input.height = static_cast<int>(integer_of(input, "height"));
  result.input.width = static_cast<int>(integer_of(input, "width"));
  result.range = range_from(input);
  if (object.Get("outputs").IsArray()) {
    const auto outputs = object.Get("outputs").As<Napi::Array>();
    for (uint32_t i = 0; i < outputs.Length(); ++i)
      result.outputs.push_back(text_of(outputs.Get(i).As<Napi::Object>(), "name"));
  } else {
    result.outputs.push_back(text_of(object.Get("output").As<Napi::Object>(), "name"));
  }
  const auto layers = object.Get("layers").As<Napi::Array>();
  for (uint32_t i = 0; i < layers.Length(); ++i) result.layers.push_back(layer_from(layers.Get(i).As<Napi::Object>()));
  return result;
}

template <typename Array>
auto vector_from(const Napi::Value& value) {
  const auto array = value.As<Array>();
  return std::vector(array.Data(), array.Data() + array.ElementLength());
}

template <typename Array, typename T>
Array array_to(Napi::Env env, const std::vector<T>& values) {
  auto array = Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

NamedScales scales_from(const Napi::Object& object) {
  NamedScales scales;
  for (const auto& [key, value] : object.Get("tensors").As<Napi::Object>()) {
    const auto tensor = Napi::Value(value).As<Napi::Object>();
    scales.tensors[key.As<Napi::String>()] = {static_cast<float>(number_of(tensor, "scale")),
                                              static_cast<int>(integer_of(tensor, "limit")),
                                              static_cast<int>(integer_of(tensor, "zeroPoint"))};
  }
  for (const auto& [key, value] : object.Get("weights").As<Napi::Object>()) {
    const auto layer = Napi::Value(value).As<Napi::Object>();
    auto& conv = scales.convs[key.As<Napi::String>()];
    conv.weight = floats_from(layer.Get("scales"));
    conv.weights = vector_from<Napi::Int8Array>(layer.Get("values"));
  }
  for (const auto& [key, value] : object.Get("biases").As<Napi::Object>()) {
    scales.convs[key.As<Napi::String>()].bias = vector_from<Napi::Int32Array>(value);
  }
  return scales;
}

Napi::Object scales_to(Napi::Env env, const LayerGraph& graph, const Scales& scales) {
  const Napi::Object tensors = Napi::Object::New(env), weights = Napi::Object::New(env),
                     biases = Napi::Object::New(env);
  for (size_t t = 0; t < graph.tensors.size(); ++t) {
    if (!graph.quantized(t)) continue;
    Napi::Object tensor = Napi::Object::New(env);
    tensor.Set("scale", scales.tensors[t]);
    tensor.Set("limit", scales.limits[t]);
    tensor.Set("zeroPoint", scales.zero_points[t]);
    tensors.Set(graph.tensors[t].name, tensor);
  }
  for (size_t l = 0; l < graph.layers.size(); ++l) {
    if (graph.layers[l].kind != Layer::Kind::conv) continue;
    const ConvScales& conv = scales.convs[l];
    Napi::Object layer = Napi::Object::New(env);
    layer.Set("scales", array_to<Napi::Float32Array>(env, conv.weight));
    layer.Set("values", array_to<Napi::Int8Array>(env, conv.weights));
    weights.Set(graph.layers[l].name, layer);
    biases.Set(graph.layers[l].name, array_to<Napi::Int32Array>(env, conv.bias));
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("tensors", tensors);
  result.Set("weights", weights);
  result.Set("biases", biases);
  return result;
}

// The numbers of a layer that equalization changes.
Napi::Object numbers_to(Napi::Env env, const Layer& layer) {
  Napi::Object result = Napi::Object::New(env);
  if (layer.kind == Layer::Kind::conv) {
    result.Set("weight", array_to<Napi::Float32Array>(env, layer.weight));
    result.Set("bias", array_to<Napi::Float32Array>(env, layer.bias));
  } else if (layer.kind == Layer::Kind::pointwise) {
    result.Set("offset", array_to<Napi::Float32Array>(env, layer.offset));
  }
  return result;
}

// src/quantization.ts's LayerResult.
Napi::Object result_to(Napi::Env env, const LayerGraph& graph, const Scales& scales, int l, const LayerResult& from) {
  const Layer& layer = graph.layers[l];
  const bool conv = layer.kind == Layer::Kind::conv;
  Napi::Object result = Napi::Object::New(env);
  result.Set("name", layer.name);
  const bool narrow = conv && scales.limits[layer.input] == kOperandLimit;
  result.Set("bits", narrow ? 7 : layer.real ? 32 : 8);
  result.Set("macs", conv ? static_cast<double>(layer.shape.macs()) : 0.0);
  result.Set("cosineStart", from.cosine_start);
  result.Set("cosine", from.cosine);
  result.Set("inputScale",
             graph.quantized(layer.input) ? Napi::Value::From(env, scales.tensors[layer.input]) : env.Null());
  result.Set("saturation", from.saturation);
  result.Set("weightSumMax", env.Null());
  if (conv) {
    const auto& weights = scales.convs[l].weights;
    const int64_t filter = layer.shape.weights() / layer.shape.out_channels;
    int64_t largest = 0;
    for (int o = 0; o < layer.shape.out_channels; ++o) {
      int64_t sum = 0;
      for (int64_t i = 0; i < filter; ++i) sum += std::abs(int{weights[o * filter + i]});
      largest = std::max(largest, sum);
    }
    result.Set("weightSumMax", static_cast<double>(largest));
  }
  return result;
}

// searchScales(graph, pixels, count, options, space, threads, decided) -> {promise: {numbers, scales, layers},
// progress(), decisions(), close()}. decisions() gives those that were made since it was called before.
Napi::Value search_scales_call(const Napi::CallbackInfo& info) {
  struct Progress {
    std::atomic<SearchStage> stage{SearchStage::equalizing};
    std::atomic<int> done{0}, total{0};
    std::mutex mutex;
    std::vector<Decision> decisions;  // that JavaScript has not seen yet
  };
  struct Found {
    LayerGraph graph;
    SearchResult result;
  };
  auto progress = std::make_shared<Progress>();
  GraphIn graph = graph_in(info[0].As<Napi::Object>());
  auto pixels = vector_from<Napi::Uint8Array>(info[1]);
  const int64_t count = info[2].As<Napi::Number>().Int64Value();
  const auto from = info[3].As<Napi::Object>();
  const SearchOptions options{.rounds = static_cast<int>(integer_of(from, "rounds")),
                              .candidates = static_cast<int>(integer_of(from, "candidates")),
                              .lower = static_cast<float>(number_of(from, "lower")),
                              .upper = static_cast<float>(number_of(from, "upper")),
                              .zero_points = flag_of(from, "zeroPoints"),
                              .equalize = flag_of(from, "equalize"),
                              .bias_correction = flag_of(from, "biasCorrection"),
                              .budget = number_of(from, "budget")};
  const auto space_from = info[4].As<Napi::Object>();
  const ActivationSpace space{.memory_bytes = integer_of(space_from, "memoryBytes"),
                              .directory = text_of(space_from, "directory")};
  const int threads = info[5].As<Napi::Number>().Int32Value();
  std::vector<Decision> decided;
  const auto decided_from = info[6].As<Napi::Array>();
  for (uint32_t i = 0; i < decided_from.Length(); ++i) {
    decided.push_back(vector_from<Napi::Float64Array>(decided_from.Get(i)));
  }
  Napi::Object call = start_call(info.Env(), "ft-search", [&](const Worker& worker) -> Worker::Command {
    return [=, graph = std::move(graph), pixels = std::move(pixels), decided = std::move(decided),
            &cancelled = worker.cancelled()]() mutable {
      const PictureView pictures{pixels.data(), count, graph.input.height, graph.input.width, graph.input.channels};
      ThreadPool pool(threads);
      auto found = std::make_shared<Found>(Found{std::move(graph).graph(), {}});
      found->result = search_scales(found->graph, pictures, options, space, pool,
                                    {.cancelled = cancelled,
                                     .on_progress =
                                         [&](SearchStage stage, int done, int total) {
                                           progress->stage = stage;
                                           progress->done = done;
                                           progress->total = total;
                                         },
                                     .decided = decided,
                                     .on_decision =
                                         [&](const Decision& decision) {
                                           const std::lock_guard lock(progress->mutex);
                                           progress->decisions.push_back(decision);
                                         }});
      return [found](Napi::Env env) -> Napi::Value {
        const auto& [graph, result] = *found;
        Napi::Array numbers = Napi::Array::New(env), layers = Napi::Array::New(env);
        for (uint32_t l = 0; l < graph.layers.size(); ++l) {
          numbers.Set(l, numbers_to(env, graph.layers[l]));
          layers.Set(l, result_to(env, graph, result.scales, static_cast<int>(l), result.layers[l]));
        }
        Napi::Object value = Napi::Object::New(env);
        value.Set("numbers", numbers);
        value.Set("scales", scales_to(env, graph, result.scales));
        value.Set("layers", layers);
        return value;
      };
    };
  });
  call.Set("progress", Napi::Function::New(info.Env(), [progress](const Napi::CallbackInfo& inner) -> Napi::Value {
             Napi::Object value = Napi::Object::New(inner.Env());
             value.Set("stage", progress->stage == SearchStage::equalizing ? "equalizing" : "searching");
             value.Set("done", progress->done.load());
             value.Set("total", progress->total.load());
             return value;
           }));
  call.Set("decisions", Napi::Function::New(info.Env(), [progress](const Napi::CallbackInfo& inner) -> Napi::Value {
             std::vector<Decision> made;
             {
               const std::lock_guard lock(progress->mutex);
               made.swap(progress->decisions);
             }
             Napi::Array value = Napi::Array::New(inner.Env(), made.size());
             for (uint32_t i = 0; i < made.size(); ++i) {
               auto numbers = Napi::Float64Array::New(inner.Env(), made[i].size());
               std::copy(made[i].begin(), made[i].end(), numbers.Data());
               value.Set(i, numbers);
             }
             return value;
           }));
  return call;
}

// 'auto' or the name of an instruction set, which must be supported.
Isa isa_from(const Napi::Value& value) {
  const std::string name = value.As<Napi::String>();
  for (const Isa isa : kIsas) {
    if (name == name_of(isa)) return isa;
  }
  return best_isa();
}

// The name of a part, or null for the whole network.
std::optional<QuantizedPart> part_from(const Napi::Value& value) {
  if (value.IsNull()) return std::nullopt;
  const std::string name = value.As<Napi::String>();
  return name == "weights"    ? QuantizedPart::weights
         : name == "operands" ? QuantizedPart::operands
                              : QuantizedPart::others;
}

// instructionSets() -> {portable: 0, avx2: GMAC/s of its products alone, ...}, those that this machine supports
Napi::Value instruction_sets(const Napi::CallbackInfo& info) {
  Napi::Object result = Napi::Object::New(info.Env());
  for (const Isa isa : kIsas) {
    if (supported(isa)) result.Set(name_of(isa), int7::measure_peak(isa) / 1e9);
  }
  return result;
}

// The network of a model.int7.onnx in memory, as the C library reads it. Throws Error, in which the file has the name
// `subject`.
int7::OnnxModel read_file(const std::vector<uint8_t>& bytes, const std::string& subject) {
  try {
    return int7::read_onnx(bytes.data(), bytes.size());
  } catch (const int7::InvalidModel& e) {
    throw Error("InvalidArtifact", subject, e.found, e.wanted);
  } catch (const Error& e) {
    throw Error("InvalidArtifact", subject + ": " + e.subject, e.found, e.allowed);
  }
}

// The runtime that plans it.
std::unique_ptr<Model> plan_file(int7::Network network, int threads, Isa isa, const std::string& subject) {
  const uint64_t most = available_memory().value_or(INT64_MAX);
  try {
    return make_int7_model(std::move(network), threads, isa, static_cast<int64_t>(std::min<uint64_t>(most, INT64_MAX)));
  } catch (const int7::ModelTooLarge& e) {
    throw Error("InsufficientMemory", subject, e.found, e.wanted + ", which are available");
  } catch (const int7::InvalidModel& e) {
    throw Error("InvalidArtifact", subject, e.found, e.wanted);
  } catch (const Error& e) {
    throw Error("InvalidArtifact", subject + ": " + e.subject, e.found, e.allowed);
  }
}

Napi::Array outputs_to(Napi::Env env, const std::vector<int7::OnnxModel::Output>& outputs) {
  Napi::Array result = Napi::Array::New(env, outputs.size());
  for (uint32_t i = 0; i < outputs.size(); ++i) {
    Napi::Array dims = Napi::Array::New(env, outputs[i].dims.size());
    for (uint32_t d = 0; d < outputs[i].dims.size(); ++d) dims.Set(d, static_cast<double>(outputs[i].dims[d]));
    Napi::Object output = Napi::Object::New(env);
    output.Set("name", outputs[i].name);
    output.Set("dims", dims);
    result.Set(i, output);
  }
  return result;
}

// A network on a worker thread: of a file; else in integers if open() gets scales, otherwise in FP32.
class LayerNetwork : public Napi::ObjectWrap<LayerNetwork> {
 public:
  static void add_to(Napi::Env env, Napi::Object exports) {
    exports.Set(
        "LayerNetwork",
        DefineClass(
            env, "LayerNetwork",
            {InstanceMethod<&LayerNetwork::open>("open"), InstanceMethod<&LayerNetwork::open_file>("openFile"),
             InstanceMethod<&LayerNetwork::embed>("embed"), InstanceMethod<&LayerNetwork::run_layers>("runLayers"),
             InstanceMethod<&LayerNetwork::time_layers>("timeLayers"), InstanceMethod<&LayerNetwork::close>("close")}));
  }

  explicit LayerNetwork(const Napi::CallbackInfo& info)
      : ObjectWrap(info), worker_(Worker::start(info.Env(), "ft-layers", [state = state_] { *state = {}; })) {}
  ~LayerNetwork() override { worker_->dispose(); }

 private:
  // Used on the worker's thread only.
  struct State {
    std::shared_ptr<const LayerGraph> graph;
    Scales scales;
    std::unique_ptr<ThreadPool> pool;
    std::unique_ptr<Model> model;
  };

  // open(graph, scales or null, computeThreads, instruction set, the part to quantize or null: all)
  Napi::Value open(const Napi::CallbackInfo& info) {
    const bool real = info[1].IsNull();
    NamedScales named = real ? NamedScales() : scales_from(info[1].As<Napi::Object>());
    return worker_->post(info.Env(), [state = state_, graph = graph_in(info[0].As<Napi::Object>()), real,
                                      named = std::move(named), threads = info[2].As<Napi::Number>().Int32Value(),
                                      isa = isa_from(info[3]), part = part_from(info[4])]() mutable {
      state->graph = std::make_shared<const LayerGraph>(std::move(graph).graph());
      state->pool = std::make_unique<ThreadPool>(threads);
      if (real) {
        state->model = make_real_model(state->graph, threads);
      } else {
        state->scales = resolve_scales(*state->graph, named);
        state->model = part ? make_partly_quantized_model(*state->graph, state->scales, *part, threads)
                            : make_int7_model(*state->graph, state->scales, threads, isa);
      }
      return Worker::Reply();
    });
  }

  // openFile(bytes, subject, computeThreads, instruction set) -> {input: {name, channels, height, width}, outputs:
  // [{name, dims}]}
  Napi::Value open_file(const Napi::CallbackInfo& info) {
    return worker_->post(
        info.Env(),
        [state = state_, bytes = vector_from<Napi::Uint8Array>(info[0]),
         subject = info[1].As<Napi::String>().Utf8Value(), threads = info[2].As<Napi::Number>().Int32Value(),
         isa = isa_from(info[3])]() -> Worker::Reply {
          int7::OnnxModel file = read_file(bytes, subject);
          const int7::TensorSpec picture = file.network.tensors[0];
          state->model = plan_file(std::move(file.network), threads, isa, subject);
          state->pool = std::make_unique<ThreadPool>(threads);
          return
              [picture, name = std::move(file.input), outputs = std::move(file.outputs)](Napi::Env env) -> Napi::Value {
                Napi::Object input = Napi::Object::New(env), result = Napi::Object::New(env);
                input.Set("name", name);
                input.Set("channels", picture.channels);
                input.Set("height", picture.height);
                input.Set("width", picture.width);
                result.Set("input", input);
                result.Set("outputs", outputs_to(env, outputs));
                return result;
              };
        });
  }

  // embed(pixels, height, width, channels, flip) -> Float32Array [count, dim]
  Napi::Value embed(const Napi::CallbackInfo& info) {
    auto pixels = vector_from<Napi::Uint8Array>(info[0]);
    const int height = info[1].As<Napi::Number>().Int32Value(), width = info[2].As<Napi::Number>().Int32Value();
    const int channels = info[3].As<Napi::Number>().Int32Value();
    const bool flip = info[4].ToBoolean().Value();
    return worker_->post(info.Env(),
                         [state = state_, pixels = std::move(pixels), height, width, channels, flip,
                          &cancelled = worker_->cancelled()]() -> Worker::Reply {
                           PictureView pictures{pixels.data(), 0, height, width, channels};
                           pictures.count = static_cast<int64_t>(pixels.size()) / pictures.size();
                           auto embeddings = std::make_shared<std::vector<float>>(pictures.count * state->model->dim());
                           embed_pictures(*state->model, *state->pool, pictures, flip, embeddings->data(), cancelled);
                           return [embeddings](Napi::Env env) -> Napi::Value {
                             return to_float32_array(env, std::move(*embeddings));
                           };
                         });
  }

  // runLayers(pixels of one picture) -> {name: Int8Array} of every quantized tensor
  Napi::Value run_layers(const Napi::CallbackInfo& info) {
    return worker_->post(info.Env(),
                         [state = state_, pixels = vector_from<Napi::Uint8Array>(info[0])]() -> Worker::Reply {
                           auto integers = facetrain::run_layers(*state->graph, state->scales, pixels.data());
                           return [graph = state->graph, integers = std::move(integers)](Napi::Env env) -> Napi::Value {
                             Napi::Object result = Napi::Object::New(env);
                             for (size_t t = 0; t < graph->tensors.size(); ++t) {
                               if (graph->quantized(t))
                                 result.Set(graph->tensors[t].name, array_to<Napi::Int8Array>(env, integers[t]));
                             }
                             return result;
                           };
                         });
  }

  // timeLayers(pixels of one picture) -> [{name, macs, seconds}]
  Napi::Value time_layers(const Napi::CallbackInfo& info) {
    return worker_->post(info.Env(),
                         [state = state_, pixels = vector_from<Napi::Uint8Array>(info[0])]() -> Worker::Reply {
                           auto times = state->model->time_layers(pixels.data());
                           return [times = std::move(times)](Napi::Env env) -> Napi::Value {
                             Napi::Array result = Napi::Array::New(env);
                             for (uint32_t i = 0; i < times.size(); ++i) {
                               Napi::Object step = Napi::Object::New(env);
                               step.Set("name", times[i].name);
                               step.Set("macs", static_cast<double>(times[i].macs));
                               step.Set("seconds", times[i].seconds);
                               result.Set(i, step);
                             }
                             return result;
                           };
                         });
  }

  Napi::Value close(const Napi::CallbackInfo& info) { return worker_->close(info.Env()); }

  std::shared_ptr<State> state_ = std::make_shared<State>();
  std::shared_ptr<Worker> worker_;
};

}  // namespace

void register_quant(Napi::Env env, Napi::Object exports) {
  exports.Set("searchScales", Napi::Function::New(env, search_scales_call));
  exports.Set("instructionSets", Napi::Function::New(env, instruction_sets));
  LayerNetwork::add_to(env, exports);
}

}  // namespace facetrain
