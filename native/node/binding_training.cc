// The classes of src/model.ts and src/training.ts: the FP32 model and the training session, each on its own worker
// thread. A command's arguments are copied from JavaScript's values before it is posted; its result becomes a
// JavaScript value on JavaScript's thread.
#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "comm/awaited.h"
#include "comm/comm.h"
#include "model/executor.h"
#include "model/node_values.h"
#include "model/pictures.h"
#include "node/convert.h"
#include "node/register.h"
#include "node/worker.h"
#include "train/device.h"
#include "train/session.h"

namespace facetrain {
namespace {

// The worker of a JavaScript object, and the state that the worker's commands use. The state is made, used and
// destroyed on the worker's thread only.
template <class State>
class Owner {
 public:
  Owner(Napi::Env env, const char* thread)
      : worker_(Worker::start(env, thread, [state = state_] { state->reset(); })) {}
  ~Owner() { worker_->dispose(); }

  // Posts a function that makes the state. `reply` turns the new state into the Worker::Reply of the promise.
  template <class Function, class Reply>
  Napi::Promise make(Napi::Env env, Function function, Reply reply) {
    return worker_->post(env, [state = state_, function = std::move(function), reply] {
      *state = function();
      return reply(**state);
    });
  }
  // Posts a function of State& that returns a Worker::Reply.
  template <class Function>
  Napi::Promise post(Napi::Env env, Function function) {
    return worker_->post(env, [state = state_, function = std::move(function)] { return function(**state); });
  }
  Napi::Promise close(Napi::Env env) { return worker_->close(env); }
  const std::atomic<bool>& cancelled() const { return worker_->cancelled(); }

 private:
  std::shared_ptr<std::unique_ptr<State>> state_ = std::make_shared<std::unique_ptr<State>>();
  std::shared_ptr<Worker> worker_;
};

Worker::Reply floats_reply(std::vector<float> values) {
  auto shared = std::make_shared<std::vector<float>>(std::move(values));
  return [shared](Napi::Env env) -> Napi::Value { return to_float32_array(env, std::move(*shared)); };
}

// Must be called on a worker's thread before any other function of libtorch, because libtorch's own threads, which are
// made later, inherit the flushing of denormal numbers. Trained networks contain such numbers (below 1.2e-38), which
// processors compute with a hundred times slower: the pretrained MobileFaceNet of our tests takes 69 ms of processor
// time a picture with them, and 6 ms when they are flushed to zero.
//
// If not `deterministic`, cuDNN measures its algorithms for each shape and takes the fastest, and runs are no longer
// equal bit for bit (session.h).
void prepare_thread(int threads, bool deterministic) {
  at::set_num_threads(threads);
  at::globalContext().setFlushDenormal(true);
  at::globalContext().setDeterministicCuDNN(deterministic);
  at::globalContext().setBenchmarkCuDNN(!deterministic);
}

// The arguments (pixels, height, width, channels, flip) of embed; flip may be left out.
struct PicturesIn {
  explicit PicturesIn(const Napi::CallbackInfo& info)
      : height(info[1].As<Napi::Number>().Int64Value()),
        width(info[2].As<Napi::Number>().Int64Value()),
        channels(info[3].As<Napi::Number>().Int64Value()),
        flip(info[4].ToBoolean().Value()) {
    const auto bytes = info[0].As<Napi::Uint8Array>();
    pixels.assign(bytes.Data(), bytes.Data() + bytes.ElementLength());
  }
  at::Tensor images(const Executor& executor, at::Device device) const {
    return to_images(view_pixels(pixels, height, width, channels).to(device), executor.range());
  }
  Worker::Reply embedded(Executor& executor, at::Device device) const {
    return floats_reply(facetrain::embed(executor, images(executor, device), flip));
  }

  int64_t height, width, channels;
  bool flip;
  std::vector<uint8_t> pixels;
};

// An FP32 model and where it computes.
struct PlacedModel {
  std::unique_ptr<Executor> executor;
  at::Device device;
};

class Model : public Napi::ObjectWrap<Model> {
 public:
  static void add_to(Napi::Env env, Napi::Object exports) {
    exports.Set("Model", DefineClass(env, "Model",
                                     {InstanceMethod<&Model::open>("open"), InstanceMethod<&Model::embed>("embed"),
                                      InstanceMethod<&Model::node_values>("nodeValues"),
                                      InstanceMethod<&Model::close>("close")}));
  }

  explicit Model(const Napi::CallbackInfo& info) : ObjectWrap(info), owner_(info.Env(), "ft-model") {}

 private:
  // open(graph, computeThreads, device) -> 'cpu' | 'cuda'
  Napi::Value open(const Napi::CallbackInfo& info) {
    return owner_.make(
        info.Env(),
        [graph = graph_from(info[0].As<Napi::Object>()), threads = info[1].As<Napi::Number>().Int32Value(),
         wanted = info[2].As<Napi::String>().Utf8Value()] {
          prepare_thread(threads, /*deterministic=*/true);
          const at::Device device = choose_device({.wanted = wanted, .local_rank = 0, .local_size = 1});
          return std::make_unique<PlacedModel>(PlacedModel{make_executor(graph, device), device});
        },
        [](PlacedModel& model) -> Worker::Reply {
          return [is_cuda = model.device.is_cuda()](Napi::Env env) -> Napi::Value {
            return Napi::String::New(env, is_cuda ? "cuda" : "cpu");
          };
        });
  }

  // embed(pixels, height, width, channels, flip)
  Napi::Value embed(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [pictures = PicturesIn(info)](PlacedModel& model) {
      return pictures.embedded(*model.executor, model.device);
    });
  }

  // nodeValues(pixels, height, width, channels) -> src/model.ts's NodeValues[]
  Napi::Value node_values(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [pictures = PicturesIn(info)](PlacedModel& model) -> Worker::Reply {
      const at::Tensor images = pictures.images(*model.executor, model.device);
      return [nodes = facetrain::node_values(*model.executor, images)](Napi::Env env) {
        auto list = Napi::Array::New(env, nodes.size());
        for (uint32_t i = 0; i < nodes.size(); ++i) {
          auto node = Napi::Object::New(env);
          node.Set("node", nodes[i].node);
          node.Set("smallest", nodes[i].smallest);
          node.Set("largest", nodes[i].largest);
          node.Set("notFinite", static_cast<double>(nodes[i].not_finite));
          node.Set("samples", static_cast<double>(nodes[i].samples));
          node.Set("channels", static_cast<double>(nodes[i].channels));
          node.Set("constantChannels", static_cast<double>(nodes[i].constant_channels));
          list.Set(i, node);
        }
        return list;
      };
    });
  }

  Napi::Value close(const Napi::CallbackInfo& info) { return owner_.close(info.Env()); }

  Owner<PlacedModel> owner_;
};

RendezvousOptions rendezvous_from(const Napi::Object& comm) {
  return {.rank = static_cast<int>(integer_of(comm, "rank")),
          .size = static_cast<int>(integer_of(comm, "size")),
          .gang = text_of(comm, "gang"),
          .master_addr = text_of(comm, "masterAddr"),
          .master_port = static_cast<int>(integer_of(comm, "masterPort")),
          .bind_addr = "",
          .rendezvous_timeout = std::chrono::milliseconds(integer_of(comm, "rendezvousTimeoutMs")),
          .collective_timeout = std::chrono::milliseconds(integer_of(comm, "collectiveTimeoutMs"))};
}

DeviceChoice device_choice_from(const Napi::Object& from) {
  const auto comm = from.Get("comm").As<Napi::Object>();
  return {.wanted = text_of(from, "device"),
          .local_rank = static_cast<int>(integer_of(comm, "localRank")),
          .local_size = static_cast<int>(integer_of(comm, "localSize"))};
}

std::optional<double> optional_number_of(const Napi::Object& object, const char* key) {
  return object.Get(key).IsNumber() ? std::optional(number_of(object, key)) : std::nullopt;
}

Margin margin_from(const Napi::Object& from) {
  const auto margin = from.Get("margin").As<Napi::Object>();
  const auto number = [&](const char* name) { return static_cast<float>(number_of(margin, name)); };
  const std::string form = text_of(margin, "form");
  return {.m1 = number("m1"),
          .m2 = number("m2"),
          .m3 = number("m3"),
          .form = form == "sphereface" ? MarginForm::sphereface
                  : form == "adaface"  ? MarginForm::adaface
                                       : MarginForm::combined,
          .m = number("m"),
          .h = number("h"),
          .straight_through = text_of(from, "gradient") == "straightThrough"};
}

std::vector<SampleRateChange> sample_rate_changes_from(const Napi::Object& from) {
  const auto list = from.Get("sampleRateChanges").As<Napi::Array>();
  std::vector<SampleRateChange> changes;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto change = list.Get(i).As<Napi::Object>();
    changes.push_back({static_cast<uint64_t>(integer_of(change, "fromStep")), number_of(change, "rate")});
  }
  return changes;
}

RowsMemory rows_memory_from(const Napi::Object& from) {
  return {.device = static_cast<uint64_t>(number_of(from, "deviceBytes")),
          .host = static_cast<uint64_t>(number_of(from, "hostBytes"))};
}

SessionOptions session_options_from(const Napi::Object& from, const RendezvousOptions& rendezvous,
                                    int64_t embedding_dim) {
  const auto seed = static_cast<uint64_t>(integer_of(from, "seed"));
  const auto data = from.Get("data").As<Napi::Object>();
  return {.pfc = {.num_classes = integer_of(from, "numClasses"),
                  .embedding_dim = embedding_dim,
                  .sample_rate = number_of(from, "sampleRate"),
                  .seed = seed,
                  .scale = static_cast<float>(number_of(from, "scale")),
                  .margin = margin_from(from),
                  .interclass_filter = optional_number_of(from, "interclassFilter"),
                  .bf16_rows = text_of(from, "rowsPrecision") == "bf16",
                  .host_rows = text_of(from, "rowsPlacement") == "host",
                  .row_optimizer = row_optimizer_of(text_of(from, "rowsOptimizer")).value(),
                  .dense_update = text_of(from, "rowUpdate") == "dense",
                  .sample_rate_changes = sample_rate_changes_from(from)},
          .auto_host_rows = text_of(from, "rowsPlacement") == "auto"
                                ? std::optional(rows_memory_from(from.Get("rowsMemory").As<Napi::Object>()))
                                : std::nullopt,
          .data = {.global_batch = integer_of(data, "globalBatchSize"),
                   .rank = rendezvous.rank,
                   .size = rendezvous.size,
                   .micro_batch = integer_of(from, "microBatchSize"),
                   .seed = seed,
                   .flip = flag_of(data, "flip"),
                   .shift = static_cast<int>(integer_of(data, "shift")),
                   .bgr = text_of(data, "channelOrder") == "bgr",
                   .threads = static_cast<int>(integer_of(data, "loaderThreads")),
                   .max_bad = integer_of(data, "maxBadPictures"),
                   .crop = number_of(data, "cropProbability"),
                   .low_resolution = number_of(data, "lowResolutionProbability"),
                   .color_jitter = number_of(data, "colorJitterProbability")},
          .momentum = number_of(from, "momentum"),
          .weight_decay = number_of(from, "weightDecay"),
          .clip_norm = optional_number_of(from, "gradientClipNorm"),
          .rows_rate_factor = number_of(from, "rowsRateFactor"),
          .precision = Precision::fp32,  // until the device is known
          .checkpoint_activations = flag_of(from, "checkpointActivations"),
          .sync_batch_norm = flag_of(from, "syncBatchNorm")};
}

// src/training.ts's LossScale.
LossScale loss_scale_from(const Napi::Object& from) {
  return {number_of(from, "value"), integer_of(from, "goodSteps"), integer_of(from, "skippedSteps")};
}

Napi::Object to_object(Napi::Env env, const LossScale& scale) {
  auto object = Napi::Object::New(env);
  object.Set("value", scale.value);
  object.Set("goodSteps", static_cast<double>(scale.good_steps));
  object.Set("skippedSteps", static_cast<double>(scale.skipped_steps));
  return object;
}

// From {name: {dims, data}}, in the order of the object's keys.
std::vector<SavedTensor> tensors_from(const Napi::Object& tensors) {
  std::vector<SavedTensor> list;
  for (const auto& [key, value] : tensors) {
    const auto tensor = Napi::Value(value).As<Napi::Object>();
    list.push_back(
        {key.As<Napi::String>().Utf8Value(), integers_from(tensor.Get("dims")), floats_from(tensor.Get("data"))});
  }
  return list;
}

// To {name: {dims, data}}. Moves the values out of `tensors`.
Napi::Object to_object(Napi::Env env, std::vector<SavedTensor>& tensors) {
  auto object = Napi::Object::New(env);
  for (auto& [name, dims, values] : tensors) {
    auto tensor = Napi::Object::New(env);
    auto list = Napi::Array::New(env, dims.size());
    for (uint32_t i = 0; i < dims.size(); ++i) list.Set(i, static_cast<double>(dims[i]));
    tensor.Set("dims", list);
    tensor.Set("data", to_float32_array(env, std::move(values)));
    object.Set(name, tensor);
  }
  return object;
}

// To {data: seconds, upload: seconds, ...}.
Napi::Value to_object(Napi::Env env, const StageSeconds& seconds) {
  auto object = Napi::Object::New(env);
  for (size_t i = 0; i < kStages; ++i) object.Set(kStageNames[i], seconds[i]);
  return object;
}

// As src/training.ts's BackboneState.
Worker::Reply backbone_reply(const TrainedState& state) {
  return [saved = std::make_shared<SavedBackbone>(state.save_backbone())](Napi::Env env) -> Napi::Value {
    auto object = Napi::Object::New(env);
    object.Set("tensors", to_object(env, saved->tensors));
    object.Set("momentum", to_object(env, saved->momentum));
    return object;
  };
}

const char* name_of(at::ScalarType type) { return type == at::kBFloat16 ? "bfloat16" : "float32"; }

// From {name: {dtype, bytes}}.
std::vector<SavedRows> rows_from(const Napi::Object& tensors) {
  std::vector<SavedRows> list;
  for (const auto& [key, value] : tensors) {
    const auto tensor = Napi::Value(value).As<Napi::Object>();
    const auto bytes = tensor.Get("bytes").As<Napi::Uint8Array>();
    list.push_back({key.As<Napi::String>().Utf8Value(),
                    text_of(tensor, "dtype") == "bfloat16" ? at::kBFloat16 : at::kFloat,
                    {bytes.Data(), bytes.Data() + bytes.ElementLength()}});
  }
  return list;
}

// As {name: {dtype, bytes}}.
Worker::Reply rows_reply(const TrainedState& state, int64_t first, int64_t count) {
  return
      [saved = std::make_shared<std::vector<SavedRows>>(state.save_rows(first, count))](Napi::Env env) -> Napi::Value {
        auto object = Napi::Object::New(env);
        for (auto& [name, type, bytes] : *saved) {
          auto tensor = Napi::Object::New(env);
          tensor.Set("dtype", name_of(type));
          tensor.Set("bytes", to_uint8_array(env, std::move(bytes)));
          object.Set(name, tensor);
        }
        return object;
      };
}

class TrainingSession : public Napi::ObjectWrap<TrainingSession> {
 public:
  static void add_to(Napi::Env env, Napi::Object exports) {
    using S = TrainingSession;
    exports.Set("TrainingSession", DefineClass(env, "TrainingSession",
                                               {InstanceMethod<&S::open>("open"),
                                                InstanceMethod<&S::step>("step"),
                                                InstanceMethod<&S::embed>("embed"),
                                                InstanceMethod<&S::use_precision>("usePrecision"),
                                                InstanceMethod<&S::loss_scale>("lossScale"),
                                                InstanceMethod<&S::norm_statistics>("normStatistics"),
                                                InstanceMethod<&S::use_norm_statistics>("useNormStatistics"),
                                                InstanceMethod<&S::save_backbone>("saveBackbone"),
                                                InstanceMethod<&S::load_backbone>("loadBackbone"),
                                                InstanceMethod<&S::save_rows>("saveRows"),
                                                InstanceMethod<&S::load_rows>("loadRows"),
                                                InstanceMethod<&S::retire>("retire"),
                                                InstanceMethod<&S::copy_state>("copyState"),
                                                InstanceMethod<&S::copied_backbone>("copiedBackbone"),
                                                InstanceMethod<&S::copied_rows>("copiedRows"),
                                                InstanceMethod<&S::drop_copy>("dropCopy"),
                                                InstanceMethod<&S::open_kept_steps>("openKeptSteps"),
                                                InstanceMethod<&S::keep_all>("keepAll"),
                                                InstanceMethod<&S::keep>("keep"),
                                                InstanceMethod<&S::recall>("recall"),
                                                InstanceMethod<&S::all_gather>("allGather"),
                                                InstanceMethod<&S::barrier>("barrier"),
                                                InstanceMethod<&S::close>("close")}));
  }

  explicit TrainingSession(const Napi::CallbackInfo& info)
      : ObjectWrap(info),
        owner_(info.Env(), "ft-training"),
        reader_(Worker::start(info.Env(), "ft-checkpoint", [copy = copy_] { copy->reset(); })) {}
  ~TrainingSession() override { reader_->dispose(); }

 private:
  // open(options) -> {device, precision, rowsPlacement, firstRow, rows, rowTensors, stepsPerEpoch}
  Napi::Value open(const Napi::CallbackInfo& info) {
    const auto from = info[0].As<Napi::Object>();
    Graph graph = graph_from(from.Get("graph").As<Napi::Object>());
    const RendezvousOptions rendezvous = rendezvous_from(from.Get("comm").As<Napi::Object>());
    const SessionOptions options = session_options_from(from, rendezvous, graph.output.dim);
    return owner_.make(
        info.Env(),
        [rendezvous, options, graph = std::move(graph),
         directory = text_of(from.Get("data").As<Napi::Object>(), "directory"), device = device_choice_from(from),
         precision = precision_of(text_of(from, "precision")), deterministic = flag_of(from, "deterministic"),
         threads = static_cast<int>(integer_of(from, "computeThreads")), &cancelled = owner_.cancelled()] {
          prepare_thread(threads, deterministic);
          SessionOptions with_device = options;
          with_device.pfc.device = choose_device(device);
          with_device.precision = resolve_precision(precision, with_device.pfc.device);
          return open_session(graph, directory, rendezvous, with_device, cancelled);
        },
        [](Session& session) -> Worker::Reply {
          return [device = session.device(), precision = session.precision(), host_rows = session.host_rows(),
                  rows = session.centres().rows(), kept = session.state().rows,
                  steps = session.steps_per_epoch()](Napi::Env env) -> Napi::Value {
            auto opened = Napi::Object::New(env);
            opened.Set("device", device.is_cuda() ? "cuda" : "cpu");
            opened.Set("precision", std::string(name_of(precision)));
            opened.Set("rowsPlacement", host_rows ? "host" : "device");
            opened.Set("firstRow", static_cast<double>(rows.first));
            opened.Set("rows", static_cast<double>(rows.count));
            auto tensors = Napi::Array::New(env, kept.size());
            for (uint32_t i = 0; i < kept.size(); ++i) {
              auto tensor = Napi::Object::New(env);
              tensor.Set("name", kept[i].name);
              tensor.Set("dtype", name_of(kept[i].tensor.scalar_type()));
              tensor.Set("columns", static_cast<double>(kept[i].tensor.size(1)));
              tensors.Set(i, tensor);
            }
            opened.Set("rowTensors", tensors);
            opened.Set("stepsPerEpoch", static_cast<double>(steps));
            return opened;
          };
        });
  }

  // step(step, learningRate, stop, checkpoint, writing) -> src/training.ts's StepResult
  Napi::Value step(const Napi::CallbackInfo& info) {
    const Session::Votes votes{info[2].ToBoolean().Value(), info[3].ToBoolean().Value(), info[4].ToBoolean().Value()};
    return owner_.post(
        info.Env(),
        [step = info[0].As<Napi::Number>().Int64Value(), learning_rate = info[1].As<Napi::Number>().DoubleValue(),
         votes](Session& session) -> Worker::Reply {
          const auto result = session.step(step, learning_rate, votes);
          return [result, replaced = session.take_replaced()](Napi::Env env) -> Napi::Value {
            auto voted = Napi::Object::New(env);
            voted.Set("stop", result.votes.stop);
            voted.Set("checkpoint", result.votes.checkpoint);
            voted.Set("writing", result.votes.writing);
            auto object = Napi::Object::New(env);
            object.Set("loss", result.loss);
            object.Set("gradientNorm", result.gradient_norm);
            if (result.skipped_steps) object.Set("skippedSteps", static_cast<double>(*result.skipped_steps));
            object.Set("votes", voted);
            object.Set("replaced", unusable_pictures(env, replaced));
            object.Set("stageSeconds", result.stages ? to_object(env, *result.stages) : env.Null());
            return object;
          };
        });
  }

  // embed(pixels, height, width, channels, flip)
  Napi::Value embed(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [pictures = PicturesIn(info)](Session& session) {
      return pictures.embedded(session.backbone(), session.device());
    });
  }

  // usePrecision(precision, lossScale); the latter may be undefined
  Napi::Value use_precision(const Napi::CallbackInfo& info) {
    const auto precision = precision_of(info[0].As<Napi::String>().Utf8Value());
    const LossScale scale = info[1].IsObject() ? loss_scale_from(info[1].As<Napi::Object>()) : LossScale();
    return owner_.post(info.Env(), [precision, scale](Session& session) -> Worker::Reply {
      session.use_precision(*precision, scale);
      return {};
    });
  }

  // lossScale() -> LossScale, or undefined
  Napi::Value loss_scale(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [](Session& session) -> Worker::Reply {
      return [scale = session.loss_scale()](Napi::Env env) -> Napi::Value {
        return scale ? Napi::Value(to_object(env, *scale)) : env.Undefined();
      };
    });
  }

  // normStatistics() -> NormStatistics, or undefined
  Napi::Value norm_statistics(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [](Session& session) -> Worker::Reply {
      return [statistics = session.norm_statistics()](Napi::Env env) -> Napi::Value {
        if (!statistics) return env.Undefined();
        auto object = Napi::Object::New(env);
        object.Set("normMean", statistics->mean);
        object.Set("normDeviation", statistics->deviation);
        return object;
      };
    });
  }

  // useNormStatistics(statistics)
  Napi::Value use_norm_statistics(const Napi::CallbackInfo& info) {
    const auto from = info[0].As<Napi::Object>();
    const NormStatistics statistics{number_of(from, "normMean"), number_of(from, "normDeviation")};
    return owner_.post(info.Env(), [statistics](Session& session) -> Worker::Reply {
      session.centres().set_norm_statistics(statistics);
      return {};
    });
  }

  // saveBackbone() -> BackboneState
  Napi::Value save_backbone(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [](Session& session) { return backbone_reply(session.state()); });
  }

  // loadBackbone(state)
  Napi::Value load_backbone(const Napi::CallbackInfo& info) {
    const auto from = info[0].As<Napi::Object>();
    SavedBackbone state{tensors_from(from.Get("tensors").As<Napi::Object>()),
                        tensors_from(from.Get("momentum").As<Napi::Object>())};
    return owner_.post(info.Env(), [state = std::move(state)](Session& session) -> Worker::Reply {
      session.state().load_backbone(state);
      return {};
    });
  }

  // saveRows(first, count) -> {name: {dtype, bytes}}; `first` counts from this rank's first row.
  Napi::Value save_rows(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [range = LocalRows(info)](Session& session) {
      return rows_reply(session.state(), range.first, range.count);
    });
  }

  // retire(classes, into), two arrays; `into` is kRemoved for a class that was merged into none
  Napi::Value retire(const Napi::CallbackInfo& info) {
    RetiredLabels labels;
    const std::vector<int64_t> classes = integers_from(info[0]), into = integers_from(info[1]);
    for (size_t i = 0; i < classes.size(); ++i) labels.emplace(classes[i], into[i]);
    return owner_.post(info.Env(), [labels = std::move(labels)](Session& session) -> Worker::Reply {
      session.retire(labels);
      return {};
    });
  }

  // loadRows(first, count, {name: {dtype, bytes}})
  Napi::Value load_rows(const Napi::CallbackInfo& info) {
    return owner_.post(
        info.Env(),
        [range = LocalRows(info), rows = rows_from(info[2].As<Napi::Object>())](Session& session) -> Worker::Reply {
          session.state().load_rows(range.first, range.count, rows);
          return {};
        });
  }

  // copyState(backbone) -> whether there was room for a copy. It is made on the session's thread, between two steps,
  // and replaces the former one, which must not be in use.
  Napi::Value copy_state(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(),
                       [copy = copy_, backbone = info[0].ToBoolean().Value()](Session& session) -> Worker::Reply {
                         std::vector<Executor::Named> former;
                         if (*copy) former = std::move((*copy)->rows);
                         copy->reset();
                         *copy = session.copy_state(backbone, std::move(former));
                         return [made = copy->has_value()](Napi::Env env) { return Napi::Boolean::New(env, made); };
                       });
  }

  // copiedBackbone() and copiedRows(first, count): as saveBackbone and saveRows, of the copy; dropCopy() ends its use.
  // They run on a thread of their own, while the session trains.
  Napi::Value copied_backbone(const Napi::CallbackInfo& info) {
    return reader_->post(info.Env(), [copy = copy_] { return backbone_reply(copy->value()); });
  }
  Napi::Value copied_rows(const Napi::CallbackInfo& info) {
    return reader_->post(info.Env(), [copy = copy_, range = LocalRows(info)] {
      return rows_reply(copy->value(), range.first, range.count);
    });
  }
  Napi::Value drop_copy(const Napi::CallbackInfo& info) {
    return reader_->post(info.Env(), [copy = copy_]() -> Worker::Reply {
      const auto& rows = copy->value().rows;
      const bool on_host =
          std::all_of(rows.begin(), rows.end(), [](const auto& named) { return named.tensor.is_cpu(); });
      // Rows on the host are kept for the next copy. Those on a device are not: steps may need the room, and its
      // allocator is quick.
      if (on_host)
        copy->emplace(TrainedState{{}, {}, rows});
      else
        copy->reset();
      return {};
    });
  }

  // openKeptSteps(path, identity) -> {step, note}[]
  Napi::Value open_kept_steps(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [path = info[0].As<Napi::String>().Utf8Value(),
                                    identity = info[1].As<Napi::String>().Utf8Value()](Session& session) {
      return Worker::Reply([found = session.open_kept_steps(path, identity)](Napi::Env env) -> Napi::Value {
        auto list = Napi::Array::New(env, found.size());
        for (uint32_t i = 0; i < found.size(); ++i) {
          auto kept = Napi::Object::New(env);
          kept.Set("step", static_cast<double>(found[i].step));
          kept.Set("note", found[i].note);
          list.Set(i, kept);
        }
        return list;
      });
    });
  }

  // keepAll(step, note), keep(step, note), recall(step)
  Napi::Value keep_all(const Napi::CallbackInfo& info) { return keep_by(info, &Session::keep_all); }
  Napi::Value keep(const Napi::CallbackInfo& info) { return keep_by(info, &Session::keep); }
  Napi::Value keep_by(const Napi::CallbackInfo& info, void (Session::*way)(int64_t, const std::string&)) {
    return owner_.post(info.Env(),
                       [way, step = info[0].As<Napi::Number>().Int64Value(),
                        note = info[1].As<Napi::String>().Utf8Value()](Session& session) -> Worker::Reply {
                         (session.*way)(step, note);
                         return {};
                       });
  }
  Napi::Value recall(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [step = info[0].As<Napi::Number>().Int64Value()](Session& session) -> Worker::Reply {
      session.recall(step);
      return {};
    });
  }

  // allGather(values) -> Float32Array[]
  Napi::Value all_gather(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [values = floats_from(info[0])](Session& session) -> Worker::Reply {
      auto gathered = std::make_shared<std::vector<std::vector<float>>>(session.all_gather(values));
      return [gathered](Napi::Env env) -> Napi::Value {
        auto list = Napi::Array::New(env, gathered->size());
        for (uint32_t rank = 0; rank < gathered->size(); ++rank)
          list.Set(rank, to_float32_array(env, std::move((*gathered)[rank])));
        return list;
      };
    });
  }

  Napi::Value barrier(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [](Session& session) -> Worker::Reply {
      session.barrier();
      return {};
    });
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    static_cast<void>(reader_->close(info.Env()));  // its commands are short
    return owner_.close(info.Env());
  }

  // The arguments (first, count) of saveRows, loadRows and copiedRows.
  struct LocalRows {
    explicit LocalRows(const Napi::CallbackInfo& info)
        : first(info[0].As<Napi::Number>().Int64Value()), count(info[1].As<Napi::Number>().Int64Value()) {}
    int64_t first, count;
  };

  Owner<Session> owner_;
  // Made on the session's thread, then used on the reader's: JavaScript waits for one before it calls the other.
  std::shared_ptr<std::optional<TrainedState>> copy_ = std::make_shared<std::optional<TrainedState>>();
  std::shared_ptr<Worker> reader_;
};

}  // namespace

void register_training(Napi::Env env, Napi::Object exports) {
  exports.Set("awaited", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                return Napi::String::New(info.Env(), awaited());
              }));
  // capabilities() -> {nccl, cudaDevices, bf16}
  exports.Set("capabilities", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                auto found = Napi::Object::New(info.Env());
                found.Set("nccl", has_nccl());
                found.Set("cudaDevices", cuda_devices());
                found.Set("bf16", bf16_products_of_cpu());
                return found;
              }));
  Model::add_to(env, exports);
  TrainingSession::add_to(env, exports);
}

}  // namespace facetrain
