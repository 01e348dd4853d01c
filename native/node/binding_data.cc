// The functions of src/data.ts. Each call runs on its own thread and returns {promise, close()}; inspectDataset also
// progress(). close() cancels.
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "data/inspect.h"
#include "data/loader.h"
#include "data/picture.h"
#include "error.h"
#include "node/call.h"
#include "node/register.h"

namespace facetrain {
namespace {

// A Uint8Array over the vector's own memory.
Napi::Value to_uint8_array(Napi::Env env, std::vector<uint8_t>&& bytes) {
  auto* owner = new std::vector<uint8_t>(std::move(bytes));
  const auto buffer = Napi::ArrayBuffer::New(
      env, owner->data(), owner->size(), [](Napi::Env, void*, std::vector<uint8_t>* owned) { delete owned; }, owner);
  return Napi::Uint8Array::New(env, owner->size(), buffer, 0);
}

Worker::Reply pictures_reply(int64_t count, int height, int width, std::vector<uint8_t> pixels) {
  auto shared = std::make_shared<std::vector<uint8_t>>(std::move(pixels));
  return [=](Napi::Env env) -> Napi::Value {
    Napi::Object result = Napi::Object::New(env);
    result.Set("count", static_cast<double>(count));
    result.Set("height", height);
    result.Set("width", width);
    result.Set("data", to_uint8_array(env, std::move(*shared)));
    return result;
  };
}

// (directory, decode, threads) -> {images, identities, identitiesSeen, labelMin, labelMax, height, width, bytes}
Napi::Value inspect_dataset(const Napi::CallbackInfo& info) {
  struct Progress {
    std::atomic<int64_t> done{0}, total{0};
  };
  auto progress = std::make_shared<Progress>();
  const std::string directory = info[0].As<Napi::String>();
  const int64_t decode = info[1].As<Napi::Number>().Int64Value();
  const int threads = info[2].As<Napi::Number>().Int32Value();
  Napi::Object call = start_call(info.Env(), "inspect", [&](const Worker& worker) -> Worker::Command {
    return [=, &cancelled = worker.cancelled()]() -> Worker::Reply {
      const auto dataset = open_dataset(directory);
      progress->total = dataset->size();
      const Inspection result = inspect(*dataset, decode, threads, progress->done, cancelled);
      const int64_t bytes = decode >= dataset->size() ? dataset->bytes() : 0;
      return [=](Napi::Env env) -> Napi::Value {
        Napi::Object value = Napi::Object::New(env);
        value.Set("images", static_cast<double>(dataset->size()));
        value.Set("identities", static_cast<double>(dataset->identities()));
        value.Set("identitiesSeen", static_cast<double>(result.identities_seen));
        value.Set("labelMin", static_cast<double>(result.label_min));
        value.Set("labelMax", static_cast<double>(result.label_max));
        value.Set("height", dataset->height());
        value.Set("width", dataset->width());
        value.Set("bytes", static_cast<double>(bytes));
        return value;
      };
    };
  });
  call.Set("progress", Napi::Function::New(info.Env(), [progress](const Napi::CallbackInfo& inner) -> Napi::Value {
             Napi::Object value = Napi::Object::New(inner.Env());
             value.Set("done", static_cast<double>(progress->done));
             value.Set("total", static_cast<double>(progress->total));
             return value;
           }));
  return call;
}

// (directory, Float64Array of picture numbers, bgr) -> {count, height, width, data}
Napi::Value read_pictures(const Napi::CallbackInfo& info) {
  const std::string directory = info[0].As<Napi::String>();
  const auto numbers = info[1].As<Napi::Float64Array>();
  const std::vector<double> indices(numbers.Data(), numbers.Data() + numbers.ElementLength());
  const bool bgr = info[2].As<Napi::Boolean>();
  return start_call(info.Env(), "pictures", [&](const Worker& worker) -> Worker::Command {
    return [=, &cancelled = worker.cancelled()]() -> Worker::Reply {
      const auto dataset = open_dataset(directory);
      const int height = dataset->height(), width = dataset->width();
      const size_t bytes = size_t{3} * height * width;
      std::vector<uint8_t> pixels(indices.size() * bytes);
      for (size_t i = 0; i < indices.size(); ++i) {
        if (cancelled) throw Cancelled();
        const auto picture = static_cast<int64_t>(indices[i]);
        if (picture >= dataset->size()) {
          throw Error("InvalidArgument", directory, "there is no picture " + std::to_string(picture),
                      "pictures 0 to " + std::to_string(dataset->size() - 1));
        }
        decode_picture(dataset->encoded(picture), height, width, bgr, pixels.data() + i * bytes, "InvalidDataset",
                       dataset->name(picture));
      }
      return pictures_reply(static_cast<int64_t>(indices.size()), height, width, std::move(pixels));
    };
  });
}

// (Uint8Array[], bgr, height, width, subject, code, first) -> {count, height, width, data}
Napi::Value decode_pictures(const Napi::CallbackInfo& info) {
  const auto array = info[0].As<Napi::Array>();
  std::vector<std::vector<uint8_t>> encoded;  // copies, because the worker's thread must not read JavaScript's memory
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const auto picture = array.Get(i).As<Napi::Uint8Array>();
    encoded.emplace_back(picture.Data(), picture.Data() + picture.ElementLength());
  }
  const bool bgr = info[1].As<Napi::Boolean>();
  const int height = info[2].As<Napi::Number>().Int32Value(), width = info[3].As<Napi::Number>().Int32Value();
  const std::string subject = info[4].As<Napi::String>(), code = info[5].As<Napi::String>();
  const int64_t first = info[6].As<Napi::Number>().Int64Value();
  return start_call(info.Env(), "pictures", [&](const Worker& worker) -> Worker::Command {
    return [=, encoded = std::move(encoded), &cancelled = worker.cancelled()]() -> Worker::Reply {
      const size_t bytes = size_t{3} * height * width;
      std::vector<uint8_t> pixels(encoded.size() * bytes);
      for (size_t i = 0; i < encoded.size(); ++i) {
        if (cancelled) throw Cancelled();
        decode_picture(encoded[i], height, width, bgr, pixels.data() + i * bytes, code,
                       subject + ", picture " + std::to_string(first + static_cast<int64_t>(i)));
      }
      return pictures_reply(static_cast<int64_t>(encoded.size()), height, width, std::move(pixels));
    };
  });
}

}  // namespace

void register_data(Napi::Env env, Napi::Object exports) {
  exports.Set("inspectDataset", Napi::Function::New(env, inspect_dataset));
  exports.Set("readPictures", Napi::Function::New(env, read_pictures));
  exports.Set("decodePictures", Napi::Function::New(env, decode_pictures));
}

}  // namespace facetrain
