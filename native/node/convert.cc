#include "node/convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

namespace facetrain {
namespace {

template <class Value, class Read>
std::vector<Value> list_from(const Napi::Value& value, Read read) {
  const auto array = value.As<Napi::Array>();
  std::vector<Value> list;
  list.reserve(array.Length());
  for (uint32_t i = 0; i < array.Length(); ++i) list.push_back(read(array.Get(i)));
  return list;
}

std::string text_from(const Napi::Value& value) { return value.As<Napi::String>().Utf8Value(); }
double number_from(const Napi::Value& value) { return value.As<Napi::Number>().DoubleValue(); }

Attribute attribute_from(const Napi::Value& value) {
  if (value.IsString()) return text_from(value);
  const auto whole = [](double number) { return number == std::trunc(number); };
  if (value.IsNumber()) {
    const double number = number_from(value);
    return whole(number) ? Attribute(static_cast<int64_t>(number)) : Attribute(number);
  }
  const auto numbers = list_from<double>(value, number_from);
  if (std::all_of(numbers.begin(), numbers.end(), whole)) return std::vector<int64_t>(numbers.begin(), numbers.end());
  return numbers;
}

Constant constant_from(const Napi::Object& tensor) {
  Constant constant;
  constant.dims = integers_from(tensor.Get("dims"));
  const auto data = tensor.Get("data").As<Napi::TypedArray>();
  if (data.TypedArrayType() == napi_bigint64_array) {
    const auto values = data.As<Napi::BigInt64Array>();
    constant.type = Constant::Type::int64;
    constant.ints.assign(values.Data(), values.Data() + values.ElementLength());
  } else {
    constant.floats = floats_from(data);
  }
  return constant;
}

template <class Array, class Value>
Array to_typed_array(Napi::Env env, std::vector<Value> values) {
  if (values.empty()) return Array::New(env, 0);
  auto owner = std::make_unique<std::vector<Value>>(std::move(values));
  const size_t count = owner->size();
  const auto buffer = Napi::ArrayBuffer::New(
      env, owner->data(), count * sizeof(Value), [](Napi::Env, void*, std::vector<Value>* owned) { delete owned; },
      owner.get());
  static_cast<void>(owner.release());  // the ArrayBuffer's finalizer deletes it
  return Array::New(env, count, buffer, 0);
}

}  // namespace

std::vector<float> floats_from(const Napi::Value& float32_array) {
  const auto values = float32_array.As<Napi::Float32Array>();
  return {values.Data(), values.Data() + values.ElementLength()};
}

std::vector<int64_t> integers_from(const Napi::Value& numbers) {
  return list_from<int64_t>(numbers, [](const Napi::Value& value) { return value.As<Napi::Number>().Int64Value(); });
}

Napi::Float32Array to_float32_array(Napi::Env env, std::vector<float> values) {
  return to_typed_array<Napi::Float32Array>(env, std::move(values));
}

Napi::Uint8Array to_uint8_array(Napi::Env env, std::vector<uint8_t> values) {
  return to_typed_array<Napi::Uint8Array>(env, std::move(values));
}

PixelRange range_from(const Napi::Object& input) {
  if (!input.Has("mean")) return {};
  return {list_from<float>(input.Get("mean"), number_from), list_from<float>(input.Get("std"), number_from)};
}

Napi::Array unusable_pictures(Napi::Env env, const std::vector<UnusablePicture>& pictures) {
  auto array = Napi::Array::New(env, pictures.size());
  for (size_t i = 0; i < pictures.size(); ++i) {
    auto object = Napi::Object::New(env);
    object.Set("picture", static_cast<double>(pictures[i].picture));
    object.Set("name", pictures[i].name);
    object.Set("reason", pictures[i].reason);
    array.Set(static_cast<uint32_t>(i), object);
  }
  return array;
}

Graph graph_from(const Napi::Object& object) {
  Graph graph;
  const auto input = object.Get("input").As<Napi::Object>(), output = object.Get("output").As<Napi::Object>();
  graph.input = {text_of(input, "name"), integer_of(input, "channels"), integer_of(input, "height"),
                 integer_of(input, "width"), range_from(input)};
  graph.output = {text_of(output, "name"), integer_of(output, "dim")};
  const auto nodes = object.Get("nodes").As<Napi::Array>();
  for (uint32_t i = 0; i < nodes.Length(); ++i) {
    const auto from = nodes.Get(i).As<Napi::Object>();
    Node& node = graph.nodes.emplace_back();
    node.name = text_of(from, "name");
    node.op = text_of(from, "op");
    node.inputs = list_from<std::string>(from.Get("inputs"), text_from);
    node.outputs = list_from<std::string>(from.Get("outputs"), text_from);
    for (const auto& [key, value] : from.Get("attributes").As<Napi::Object>()) {
      node.attributes.emplace(text_from(key), attribute_from(value));
    }
  }
  for (const auto& [key, value] : object.Get("initializers").As<Napi::Object>()) {
    graph.initializers.emplace(text_from(key), constant_from(Napi::Value(value).As<Napi::Object>()));
  }
  return graph;
}

}  // namespace facetrain
