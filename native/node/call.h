// One long native call on a worker thread of its own, as src/call.ts sees it: {promise, close()[, progress()]}.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "node/worker.h"

namespace facetrain {

inline Napi::Object start_call(Napi::Env env, const char* thread,
                               const std::function<Worker::Command(const Worker&)>& command) {
  auto worker = Worker::start(env, thread);
  Napi::Object call = Napi::Object::New(env);
  call.Set("promise", worker->post(env, command(*worker)));
  call.Set("close", Napi::Function::New(env, [worker](const Napi::CallbackInfo& info) -> Napi::Value {
             return worker->close(info.Env());
           }));
  return call;
}

}  // namespace facetrain
