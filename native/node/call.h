// A long native call on its own worker thread: src/call.ts's Call.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "node/worker.h"

namespace facetrain {

// Starts a thread with the name `thread` (at most 15 characters) and posts the command that command(worker) returns.
// Returns the JavaScript object {promise, close()}. close() cancels, and its promise resolves when the thread has
// ended.
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
