// The parts of the addon. Each is one binding_*.cc; only these files know Node.
#pragma once

#include <napi.h>

namespace facetrain {

void register_data(Napi::Env env, Napi::Object exports);
void register_training(Napi::Env env, Napi::Object exports);
void register_quant(Napi::Env env, Napi::Object exports);

}  // namespace facetrain
