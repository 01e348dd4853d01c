// The parts of the addon, each in its own binding_*.cc.
#pragma once

#include <napi.h>

namespace facetrain {

void register_data(Napi::Env env, Napi::Object exports);
void register_training(Napi::Env env, Napi::Object exports);
void register_quant(Napi::Env env, Napi::Object exports);

}  // namespace facetrain
