// Converts between JavaScript's values and C++ ones, on JavaScript's thread only. Types are not checked: the TypeScript
// side has validated the values.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>
#include <vector>

#include "data/loader.h"
#include "model/graph.h"

namespace facetrain {

inline double number_of(const Napi::Object& object, const char* key) {
  return object.Get(key).As<Napi::Number>().DoubleValue();
}
inline int64_t integer_of(const Napi::Object& object, const char* key) {
  return object.Get(key).As<Napi::Number>().Int64Value();
}
inline std::string text_of(const Napi::Object& object, const char* key) {
  return object.Get(key).As<Napi::String>().Utf8Value();
}
inline bool flag_of(const Napi::Object& object, const char* key) { return object.Get(key).ToBoolean().Value(); }

// From a Float32Array, and from an array of numbers.
std::vector<float> floats_from(const Napi::Value& float32_array);
std::vector<int64_t> integers_from(const Napi::Value& numbers);

// Arrays over the vector's own memory.
Napi::Float32Array to_float32_array(Napi::Env env, std::vector<float> values);
Napi::Uint8Array to_uint8_array(Napi::Env env, std::vector<uint8_t> values);

// From src/types.ts's InputRange, of a graph's input.
PixelRange range_from(const Napi::Object& input);

// As src/data.ts's UnusablePicture[].
Napi::Array unusable_pictures(Napi::Env env, const std::vector<UnusablePicture>& pictures);

// From src/types.ts's Graph.
Graph graph_from(const Napi::Object& object);

}  // namespace facetrain
