// The addon's entry point: each register_* function adds one part to `exports`.
#include <napi.h>

#include <cstdlib>

#include "node/register.h"
#include "node/worker.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  // shutdown(exitCode): see Worker::shutdown_all; src/addon.ts calls it from process.on('exit').
  exports.Set("shutdown", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                facetrain::Worker::shutdown_all(info[0].IsNumber() ? info[0].As<Napi::Number>().Int32Value() : 0);
              }));
  // exitNow(exitCode): see src/addon.ts.
  exports.Set("exitNow", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                std::_Exit(info[0].As<Napi::Number>().Int32Value());
              }));
#ifdef FACETRAIN_BINDING_DATA
  facetrain::register_data(env, exports);
#endif
#ifdef FACETRAIN_BINDING_TRAINING
  facetrain::register_training(env, exports);
#endif
#ifdef FACETRAIN_BINDING_QUANT
  facetrain::register_quant(env, exports);
#endif
  return exports;
}

}  // namespace

NODE_API_MODULE(facetrain, init)
