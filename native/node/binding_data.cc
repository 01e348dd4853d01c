// The functions of src/data.ts. Each call runs on its own thread and returns {promise, close()}, those over a whole
// dataset also progress(). close() cancels.
#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "data/file_kind.h"
#include "data/image_folder.h"
#include "data/inspect.h"
#include "data/loader.h"
#include "data/open_dataset.h"
#include "data/pack.h"
#include "data/picture.h"
#include "data/summary.h"
#include "error.h"
#include "node/call.h"
#include "node/convert.h"
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

struct Progress {
  std::atomic<int64_t> done{0}, total{0};
};

// Adds progress() to the object of a call: {done, total}.
void set_progress(Napi::Object call, const std::shared_ptr<const Progress>& progress) {
  call.Set("progress", Napi::Function::New(call.Env(), [progress](const Napi::CallbackInfo& info) -> Napi::Value {
             Napi::Object value = Napi::Object::New(info.Env());
             value.Set("done", static_cast<double>(progress->done));
             value.Set("total", static_cast<double>(progress->total));
             return value;
           }));
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

Napi::Array strings(Napi::Env env, const std::vector<std::string>& texts) {
  const auto array = Napi::Array::New(env, texts.size());
  for (size_t i = 0; i < texts.size(); ++i) array.Set(static_cast<uint32_t>(i), texts[i]);
  return array;
}

// Names by label; null for a dataset that is no image folder.
Napi::Value folders_reply(Napi::Env env, const std::vector<std::string>& folders) {
  return folders.empty() ? env.Null() : strings(env, folders);
}

// (directory, decode, threads, listed) -> {images, identities, identitiesSeen, labelMin, labelMax, height, width,
// bytes, bad, badPictures, folders}
Napi::Value inspect_dataset(const Napi::CallbackInfo& info) {
  auto progress = std::make_shared<Progress>();
  const std::string directory = info[0].As<Napi::String>();
  const int64_t decode = info[1].As<Napi::Number>().Int64Value();
  const int threads = info[2].As<Napi::Number>().Int32Value();
  const auto listed = static_cast<size_t>(info[3].As<Napi::Number>().Int64Value());
  Napi::Object call = start_call(info.Env(), "inspect", [&](const Worker& worker) -> Worker::Command {
    return [=, &cancelled = worker.cancelled()]() -> Worker::Reply {
      const auto dataset = open_dataset(directory);
      progress->total = dataset->size();
      const Inspection result = inspect(*dataset, decode, threads, listed, progress->done, cancelled);
      const int64_t bytes = decode >= dataset->size() ? dataset->bytes() : 0;
      const std::vector<std::string> folders = folders_of(*dataset);
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
        value.Set("bad", static_cast<double>(result.bad));
        value.Set("badPictures", unusable_pictures(env, result.bad_pictures));
        value.Set("folders", folders_reply(env, folders));
        return value;
      };
    };
  });
  set_progress(call, progress);
  return call;
}

// (directory, Float64Array of picture numbers, bgr) -> {count, height, width, data, bad}. Pictures that cannot be used
// are left out, and named in `bad`.
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
      std::vector<UnusablePicture> bad;
      for (size_t i = 0; i < indices.size(); ++i) {
        if (cancelled) throw Cancelled();
        const auto picture = static_cast<int64_t>(indices[i]);
        if (picture >= dataset->size()) {
          throw Error("InvalidArgument", directory, "there is no picture " + std::to_string(picture),
                      "pictures 0 to " + std::to_string(dataset->size() - 1));
        }
        try {
          decode_picture(dataset->encoded(picture), height, width, bgr, pixels.data() + (i - bad.size()) * bytes,
                         "InvalidDataset", dataset->name(picture));
        } catch (const BadPicture& error) {
          bad.push_back({picture, error.subject, error.found});
        }
      }
      const size_t count = indices.size() - bad.size();
      pixels.resize(count * bytes);
      const auto reply = pictures_reply(static_cast<int64_t>(count), height, width, std::move(pixels));
      return [=](Napi::Env env) -> Napi::Value {
        const Napi::Value value = reply(env);
        value.As<Napi::Object>().Set("bad", unusable_pictures(env, bad));
        return value;
      };
    };
  });
}

Worker::Reply index_reply(const char* layout, int64_t images, int64_t identities) {
  return [=](Napi::Env env) -> Napi::Value {
    Napi::Object value = Napi::Object::New(env);
    value.Set("layout", layout);
    value.Set("images", static_cast<double>(images));
    value.Set("identities", static_cast<double>(identities));
    return value;
  };
}

// (directory) -> {layout, images, identities}: writes facetrain.index
Napi::Value index_dataset(const Napi::CallbackInfo& info) {
  const std::string directory = info[0].As<Napi::String>();
  return start_call(info.Env(), "index", [&](const Worker&) -> Worker::Command {
    return [=]() -> Worker::Reply {
      const auto listing = list_pictures(directory);
      write_index(*listing, directory);
      return index_reply(listing->kind() == Listing::kTarShards ? "shards" : "folder",
                         static_cast<int64_t>(listing->pictures().size()), listing->identities());
    };
  });
}

// (directory, list) -> {layout, images, identities}: writes train.labels
Napi::Value write_dataset_labels(const Napi::CallbackInfo& info) {
  const std::string directory = info[0].As<Napi::String>(), list = info[1].As<Napi::String>();
  return start_call(info.Env(), "labels", [&](const Worker&) -> Worker::Command {
    return [=]() -> Worker::Reply {
      const auto [pictures, identities] = write_labels_from(list, directory);
      return index_reply("records", pictures, identities);
    };
  });
}

// (directory) -> {labels: Int32Array, identities, folders}; the label of a picture that cannot be read is -1
Napi::Value read_labels(const Napi::CallbackInfo& info) {
  const std::string directory = info[0].As<Napi::String>();
  return start_call(info.Env(), "labels", [&](const Worker& worker) -> Worker::Command {
    return [=, &cancelled = worker.cancelled()]() -> Worker::Reply {
      const auto dataset = open_dataset(directory);
      std::vector<int32_t> labels(static_cast<size_t>(dataset->size()), -1);
      for (size_t picture = 0; picture < labels.size(); ++picture) {
        if (cancelled) throw Cancelled();
        try {
          labels[picture] = static_cast<int32_t>(dataset->label(static_cast<int64_t>(picture)));
        } catch (const Error& error) {
          if (error.code != "InvalidDataset") throw;
        }
      }
      const std::vector<std::string> folders = folders_of(*dataset);
      return [=](Napi::Env env) -> Napi::Value {
        auto array = Napi::Int32Array::New(env, labels.size());
        std::copy(labels.begin(), labels.end(), array.Data());
        Napi::Object value = Napi::Object::New(env);
        value.Set("labels", array);
        value.Set("identities", static_cast<double>(dataset->identities()));
        value.Set("folders", folders_reply(env, folders));
        return value;
      };
    };
  });
}

// (directory, Float64Array of picture numbers) -> (Uint8Array | null)[]: null for a picture that cannot be decoded
Napi::Value read_encoded(const Napi::CallbackInfo& info) {
  const std::string directory = info[0].As<Napi::String>();
  const auto numbers = info[1].As<Napi::Float64Array>();
  const std::vector<double> indices(numbers.Data(), numbers.Data() + numbers.ElementLength());
  return start_call(info.Env(), "encoded", [&](const Worker& worker) -> Worker::Command {
    return [=, &cancelled = worker.cancelled()]() -> Worker::Reply {
      const auto dataset = open_dataset(directory);
      std::vector<uint8_t> pixels(size_t{3} * dataset->height() * dataset->width());
      auto pictures = std::make_shared<std::vector<std::vector<uint8_t>>>(indices.size());
      for (size_t i = 0; i < indices.size(); ++i) {
        if (cancelled) throw Cancelled();
        const auto picture = static_cast<int64_t>(indices[i]);
        try {
          auto encoded = dataset->encoded(picture);
          decode_picture(encoded, dataset->height(), dataset->width(), false, pixels.data(), "InvalidDataset",
                         dataset->name(picture));
          (*pictures)[i] = std::move(encoded);
        } catch (const Error& error) {
          if (error.code != "InvalidDataset") throw;
        }
      }
      return [=](Napi::Env env) -> Napi::Value {
        const auto array = Napi::Array::New(env, pictures->size());
        for (size_t i = 0; i < pictures->size(); ++i) {
          auto& picture = (*pictures)[i];
          array.Set(static_cast<uint32_t>(i), picture.empty() ? env.Null() : to_uint8_array(env, std::move(picture)));
        }
        return array;
      };
    };
  });
}

// (directory, Float64Array that maps labels to new ones or -1, output, shardBytes) -> {images, shards, leftOut}
Napi::Value pack_dataset(const Napi::CallbackInfo& info) {
  auto progress = std::make_shared<Progress>();
  const std::string directory = info[0].As<Napi::String>(), output = info[2].As<Napi::String>();
  const auto labels = info[1].As<Napi::Float64Array>();
  std::vector<int64_t> relabel;
  for (size_t i = 0; i < labels.ElementLength(); ++i) relabel.push_back(static_cast<int64_t>(labels[i]));
  const auto shard_bytes = static_cast<uint64_t>(info[3].As<Napi::Number>().Int64Value());
  Napi::Object call = start_call(info.Env(), "pack", [&](const Worker& worker) -> Worker::Command {
    return [=, &cancelled = worker.cancelled()]() -> Worker::Reply {
      const auto dataset = open_dataset(directory);
      progress->total = dataset->size();
      const Packed packed = pack(*dataset, relabel, output, shard_bytes, progress->done, cancelled);
      std::vector<std::string> names;
      for (int64_t label = 0; label < dataset->identities(); ++label) names.push_back(dataset->identity(label));
      return [=](Napi::Env env) -> Napi::Value {
        Napi::Object value = Napi::Object::New(env);
        value.Set("images", static_cast<double>(packed.pictures));
        value.Set("shards", static_cast<double>(packed.shards));
        value.Set("leftOut", strings(env, packed.left_out));
        value.Set("names", strings(env, names));
        return value;
      };
    };
  });
  set_progress(call, progress);
  return call;
}

// (directory, threads) -> {identities, least, median, most, withOne, within, across}: see Summary
Napi::Value summarize_dataset(const Napi::CallbackInfo& info) {
  auto progress = std::make_shared<Progress>();
  const std::string directory = info[0].As<Napi::String>();
  const int threads = info[1].As<Napi::Number>().Int32Value();
  Napi::Object call = start_call(info.Env(), "summarize", [&](const Worker& worker) -> Worker::Command {
    return [=, &cancelled = worker.cancelled()]() -> Worker::Reply {
      const auto dataset = open_dataset(directory);
      progress->total = dataset->size();
      const Summary summary = summarize(*dataset, threads, progress->done, cancelled);
      return [=](Napi::Env env) -> Napi::Value {
        const auto duplicates = [&](const Summary::Duplicates& found) {
          const auto examples = Napi::Array::New(env, found.examples.size());
          for (size_t i = 0; i < found.examples.size(); ++i) {
            const auto pair = Napi::Array::New(env, 2);
            pair.Set(0u, found.examples[i].first);
            pair.Set(1u, found.examples[i].second);
            examples.Set(static_cast<uint32_t>(i), pair);
          }
          Napi::Object value = Napi::Object::New(env);
          value.Set("count", static_cast<double>(found.count));
          value.Set("examples", examples);
          return value;
        };
        Napi::Object value = Napi::Object::New(env);
        value.Set("identities", static_cast<double>(summary.identities));
        value.Set("least", static_cast<double>(summary.least));
        value.Set("median", static_cast<double>(summary.median));
        value.Set("most", static_cast<double>(summary.most));
        value.Set("withOne", static_cast<double>(summary.with_one));
        value.Set("within", duplicates(summary.within));
        value.Set("across", duplicates(summary.across));
        return value;
      };
    };
  });
  set_progress(call, progress);
  return call;
}

// (Uint8Array[], bgr, height, width, subjects, code, landmarks) -> {count, height, width, data}
Napi::Value decode_pictures(const Napi::CallbackInfo& info) {
  const auto array = info[0].As<Napi::Array>(), names = info[4].As<Napi::Array>();
  std::vector<std::vector<uint8_t>> encoded;  // copies, because the worker's thread must not read JavaScript's memory
  std::vector<std::string> subjects;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const auto picture = array.Get(i).As<Napi::Uint8Array>();
    encoded.emplace_back(picture.Data(), picture.Data() + picture.ElementLength());
    subjects.push_back(names.Get(i).As<Napi::String>());
  }
  const bool bgr = info[1].As<Napi::Boolean>();
  const int height = info[2].As<Napi::Number>().Int32Value(), width = info[3].As<Napi::Number>().Int32Value();
  const std::string code = info[5].As<Napi::String>();
  // Ten numbers for each picture, whose face is aligned by them; without any, pictures have height x width pixels.
  std::vector<Landmarks> landmarks;
  if (info[6].IsTypedArray()) {
    const auto numbers = info[6].As<Napi::Float64Array>();
    landmarks.resize(encoded.size());
    for (size_t i = 0; i < 10 * landmarks.size(); ++i) landmarks[i / 10][i % 10] = numbers[i];
  }
  return start_call(info.Env(), "pictures", [&](const Worker& worker) -> Worker::Command {
    return [=, encoded = std::move(encoded), &cancelled = worker.cancelled()]() -> Worker::Reply {
      const size_t bytes = size_t{3} * height * width;
      std::vector<uint8_t> pixels(encoded.size() * bytes);
      for (size_t i = 0; i < encoded.size(); ++i) {
        if (cancelled) throw Cancelled();
        uint8_t* const out = pixels.data() + i * bytes;
        if (landmarks.empty()) {
          decode_picture(encoded[i], height, width, bgr, out, code, subjects[i]);
        } else {
          decode_aligned(encoded[i], landmarks[i], height, bgr, out, code, subjects[i]);
        }
      }
      return pictures_reply(static_cast<int64_t>(encoded.size()), height, width, std::move(pixels));
    };
  });
}

// (Uint8Array, the start of a file) -> {name, remedy}, or null
Napi::Value name_file_kind(const Napi::CallbackInfo& info) {
  const auto head = info[0].As<Napi::Uint8Array>();
  const FileKind* const kind = name_kind({head.Data(), head.ElementLength()});
  if (kind == nullptr) return info.Env().Null();
  Napi::Object value = Napi::Object::New(info.Env());
  value.Set("name", std::string(kind->name));
  value.Set("remedy", std::string(kind->remedy));
  return value;
}

}  // namespace

void register_data(Napi::Env env, Napi::Object exports) {
  exports.Set("inspectDataset", Napi::Function::New(env, inspect_dataset));
  exports.Set("readPictures", Napi::Function::New(env, read_pictures));
  exports.Set("indexDataset", Napi::Function::New(env, index_dataset));
  exports.Set("readLabels", Napi::Function::New(env, read_labels));
  exports.Set("readEncoded", Napi::Function::New(env, read_encoded));
  exports.Set("packDataset", Napi::Function::New(env, pack_dataset));
  exports.Set("summarizeDataset", Napi::Function::New(env, summarize_dataset));
  exports.Set("writeLabels", Napi::Function::New(env, write_dataset_labels));
  exports.Set("nameFileKind", Napi::Function::New(env, name_file_kind));
  exports.Set("decodePictures", Napi::Function::New(env, decode_pictures));
}

}  // namespace facetrain
