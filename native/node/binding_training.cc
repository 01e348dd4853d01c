// The FP32 model and the training session, each on a worker thread of its own. What a command needs is copied out of JavaScript's
// values before it is posted; what it gives back becomes values again on JavaScript's thread.
#include <ATen/Parallel.h>

#include "model/executor.h"
#include "model/pictures.h"
#include "node/plain.h"
#include "node/register.h"
#include "node/worker.h"

namespace facetrain {
namespace {

// What an object of JavaScript's and its worker share. `state` is touched on the worker's thread alone, its end included.
template <class State>
class Owner {
 public:
  Owner(Napi::Env env, const char* thread) : worker_(Worker::start(env, thread, [state = state_] { state->reset(); })) {}
  ~Owner() { worker_->dispose(); }

  // Posts a function of State& (of the empty unique_ptr, for the one that makes it) that gives a Worker::Reply.
  template <class Function>
  Napi::Promise make(Napi::Env env, Function function) {
    return worker_->post(env, [state = state_, function = std::move(function)]() mutable {
      *state = function();
      return Worker::Reply();
    });
  }
  template <class Function>
  Napi::Promise post(Napi::Env env, Function function) {
    return worker_->post(env, [state = state_, function = std::move(function)]() mutable { return function(**state); });
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

std::vector<uint8_t> bytes_from(const Napi::Value& value) {
  const auto bytes = value.As<Napi::Uint8Array>();
  return {bytes.Data(), bytes.Data() + bytes.ElementLength()};
}

class Model : public Napi::ObjectWrap<Model> {
 public:
  static void add_to(Napi::Env env, Napi::Object exports) {
    exports.Set("Model", DefineClass(env, "Model",
                                     {InstanceMethod<&Model::open>("open"), InstanceMethod<&Model::embed>("embed"),
                                      InstanceMethod<&Model::close>("close")}));
  }

  explicit Model(const Napi::CallbackInfo& info) : ObjectWrap(info), owner_(info.Env(), "ft-model") {}

 private:
  // open(graph, computeThreads)
  Napi::Value open(const Napi::CallbackInfo& info) {
    return owner_.make(info.Env(), [graph = graph_from(info[0].As<Napi::Object>()), threads = info[1].As<Napi::Number>().Int32Value()] {
      at::set_num_threads(threads);
      return make_executor(graph, at::kCPU);
    });
  }

  // embed(pixels, height, width, channels, flip)
  Napi::Value embed(const Napi::CallbackInfo& info) {
    return owner_.post(info.Env(), [pixels = bytes_from(info[0]), height = info[1].As<Napi::Number>().Int64Value(),
                                    width = info[2].As<Napi::Number>().Int64Value(), channels = info[3].As<Napi::Number>().Int64Value(),
                                    flip = info[4].ToBoolean().Value()](Executor& executor) {
      return floats_reply(facetrain::embed(executor, to_images(pixels, height, width, channels, at::kCPU), flip));
    });
  }

  Napi::Value close(const Napi::CallbackInfo& info) { return owner_.close(info.Env()); }

  Owner<Executor> owner_;
};

}  // namespace

void register_training(Napi::Env env, Napi::Object exports) { Model::add_to(env, exports); }

}  // namespace facetrain
