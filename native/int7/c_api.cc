#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "error.h"
#include "int7/facetrain_int7.h"
#include "int7/onnx_file.h"
#include "int7/onnx_reader.h"
#include "int7/runtime.h"

using facetrain::ThreadPool;
using facetrain::int7::OnnxModel;
using facetrain::int7::read_onnx;
using facetrain::int7::refuse_file;
using facetrain::int7::Runtime;

namespace {

constexpr int64_t kLargestMemory = int64_t{1} << 31;  // of a model's tensors and packed weights: files are not trusted
constexpr int32_t kLargestSide = 1 << 14;
constexpr size_t kLargestFile = (size_t{1} << 31) - 1;  // of protobuf, so of ONNX

struct Loaded {
  std::string color_order;
  std::vector<double> mean, std;
  std::vector<OnnxModel::Output> outputs;
  std::map<std::string, std::string> metadata;
  Runtime runtime;

  Loaded(OnnxModel model, int64_t largest_memory)
      : color_order(std::move(model.color_order)),
        mean(std::move(model.mean)),
        std(std::move(model.std)),
        outputs(std::move(model.outputs)),
        metadata(std::move(model.metadata)),
        runtime(std::move(model.network), facetrain::best_isa(), largest_memory) {}
};

std::shared_ptr<const Loaded> load(const uint8_t* data, size_t size, const ft_int7_options& options) {
  OnnxModel model = read_onnx(data, size, {.height = options.height, .width = options.width});
  for (const OnnxModel::Output& output : model.outputs) {
    if (output.dims.size() > FT_INT7_MAX_RANK)
      throw std::invalid_argument(output.name + ": an output of more than seven dimensions; seven at most");
  }
  return std::make_shared<const Loaded>(std::move(model),
                                        options.largest_memory == 0 ? kLargestMemory : options.largest_memory);
}

// Without a constructor and a destructor: with one, the first access of each thread would allocate memory.
thread_local char last_error[1024];
constexpr size_t kLongestSubject = 512;

struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `subject`: what the message is about, unless it says so itself.
ft_int7_status failed(ft_int7_status status, const char* message, const char* subject = nullptr) noexcept {
  // Of a long path the end, which names the file.
  const size_t length = subject ? std::strlen(subject) : 0;
  const char* const end = length > kLongestSubject ? subject + length - kLongestSubject : subject;
  std::snprintf(last_error, sizeof last_error, "%s%s%s%s", end == subject ? "" : "...", subject ? end : "",
                subject ? ": " : "", message);
  return status;
}

// Calls body(), and turns what it throws into a status. `subject` is that of errors about a file or a model.
template <typename Body>
ft_int7_status guarded(ft_int7_status of_invalid, const char* subject, Body body) noexcept {
  try {
    last_error[0] = '\0';
    body();
    return FT_INT7_OK;
  } catch (const std::bad_alloc&) {
    return failed(FT_INT7_OUT_OF_MEMORY, "memory: too little; more, or a smaller model");
  } catch (const std::length_error&) {
    return failed(FT_INT7_OUT_OF_MEMORY, "memory: too little; more, or a smaller model");
  } catch (const FileError& error) {
    return failed(FT_INT7_FILE, error.what(), subject);
  } catch (const std::invalid_argument& error) {
    return failed(of_invalid, error.what(), subject);
  } catch (const facetrain::Error& error) {
    return failed(of_invalid, error.what(), subject);
  } catch (const std::exception& error) {
    return failed(FT_INT7_INTERNAL, error.what());
  } catch (...) {
    return failed(FT_INT7_INTERNAL, "an unknown error");
  }
}

// The options that a caller has given. Returns false, and says why, where one is out of its range.
bool read_options(const ft_int7_options* given, ft_int7_options& options) noexcept {
  options = {};
  if (given) options = *given;
  if (options.height < 0 || options.height > kLargestSide || options.width < 0 || options.width > kLargestSide)
    return failed(FT_INT7_INVALID_ARGUMENT, "height or width: out of range; 1 to 16384, or 0 for the file's"), false;
  if (options.largest_memory < 0)
    return failed(FT_INT7_INVALID_ARGUMENT, "largest_memory: negative; bytes, or 0 for the default"), false;
  return true;
}

std::vector<uint8_t> read_file(const char* path) {
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path, "rb"), close);
  const auto fail = [&] { throw FileError(std::string(std::strerror(errno)) + "; a readable file"); };
  if (!file) fail();
  std::vector<uint8_t> bytes;
  uint8_t block[1 << 16];
  size_t count;
  do {
    count = std::fread(block, 1, sizeof block, file.get());
    if (count > kLargestFile - bytes.size()) refuse_file("has 2 GiB or more");
    bytes.insert(bytes.end(), block, block + count);
  } while (count > 0);
  if (std::ferror(file.get())) fail();
  return bytes;
}

}  // namespace

struct ft_int7_model {
  std::shared_ptr<const Loaded> loaded;
};

struct ft_int7_context {
  std::shared_ptr<const Loaded> loaded;
  Runtime::Context memory;
  std::unique_ptr<ThreadPool> pool;  // null: one thread
};

extern "C" {

int32_t ft_int7_abi_version(void) { return FT_INT7_ABI_VERSION; }

const char* ft_int7_last_error(void) { return last_error; }

ft_int7_status ft_int7_load_memory(const void* data, size_t size, const ft_int7_options* given, ft_int7_model** model) {
  if (model) *model = nullptr;
  if (!model || !data) return failed(FT_INT7_INVALID_ARGUMENT, "data or model: null; a pointer");
  ft_int7_options options;
  if (!read_options(given, options)) return FT_INT7_INVALID_ARGUMENT;
  return guarded(FT_INT7_INVALID_MODEL, "data",
                 [&] { *model = new ft_int7_model{load(static_cast<const uint8_t*>(data), size, options)}; });
}

ft_int7_status ft_int7_load_file(const char* path, const ft_int7_options* given, ft_int7_model** model) {
  if (model) *model = nullptr;
  if (!model || !path) return failed(FT_INT7_INVALID_ARGUMENT, "path or model: null; a pointer");
  ft_int7_options options;
  if (!read_options(given, options)) return FT_INT7_INVALID_ARGUMENT;
  return guarded(FT_INT7_INVALID_MODEL, path, [&] {
    const std::vector<uint8_t> bytes = read_file(path);
    *model = new ft_int7_model{load(bytes.data(), bytes.size(), options)};
  });
}

ft_int7_status ft_int7_get_info(const ft_int7_model* model, ft_int7_info* info) {
  if (!model || !info) return failed(FT_INT7_INVALID_ARGUMENT, "model or info: null; a pointer");
  const Loaded& loaded = *model->loaded;
  const auto& picture = loaded.runtime.network().tensors[0];
  *info = {};
  info->height = picture.height;
  info->width = picture.width;
  info->channels = picture.channels;
  info->color_order = loaded.color_order == "rgb"   ? FT_INT7_RGB
                      : loaded.color_order == "bgr" ? FT_INT7_BGR
                                                    : FT_INT7_UNKNOWN_ORDER;
  info->output_count = static_cast<int32_t>(loaded.outputs.size());
  info->output_size = loaded.runtime.output_size();
  info->context_size = loaded.runtime.context_bytes(1);
  for (size_t c = 0; c < loaded.mean.size() && c < 4; ++c) {
    info->mean[c] = static_cast<float>(loaded.mean[c]);
    info->std[c] = static_cast<float>(loaded.std[c]);
  }
  info->instruction_set = facetrain::name_of(facetrain::best_isa());
  last_error[0] = '\0';
  return FT_INT7_OK;
}

ft_int7_status ft_int7_get_output(const ft_int7_model* model, int32_t index, ft_int7_output* output) {
  if (!model || !output) return failed(FT_INT7_INVALID_ARGUMENT, "model or output: null; a pointer");
  const std::vector<OnnxModel::Output>& outputs = model->loaded->outputs;
  if (index < 0 || index >= static_cast<int32_t>(outputs.size()))
    return failed(FT_INT7_INVALID_ARGUMENT, "index: out of range; 0 to output_count - 1");
  *output = {};
  for (int32_t i = 0; i <= index; ++i) {
    output->offset += output->size;
    output->size = 1;
    for (const int64_t dim : outputs[i].dims) output->size *= dim;
  }
  output->name = outputs[index].name.c_str();
  output->rank = static_cast<int32_t>(outputs[index].dims.size());
  std::copy(outputs[index].dims.begin(), outputs[index].dims.end(), output->dims);
  last_error[0] = '\0';
  return FT_INT7_OK;
}

const char* ft_int7_get_metadata(const ft_int7_model* model, const char* key) {
  if (!model || !key) {
    failed(FT_INT7_INVALID_ARGUMENT, "model or key: null; a pointer");
    return nullptr;
  }
  const auto& metadata = model->loaded->metadata;
  const auto found =
      std::find_if(metadata.begin(), metadata.end(), [&](const auto& entry) { return entry.first == key; });
  last_error[0] = '\0';
  return found == metadata.end() ? nullptr : found->second.c_str();
}

ft_int7_status ft_int7_create_context(const ft_int7_model* model, int32_t threads, ft_int7_context** context) {
  if (context) *context = nullptr;
  if (!model || !context) return failed(FT_INT7_INVALID_ARGUMENT, "model or context: null; a pointer");
  if (threads < 1 || threads > 256) return failed(FT_INT7_INVALID_ARGUMENT, "threads: out of range; 1 to 256");
  return guarded(FT_INT7_INVALID_ARGUMENT, nullptr, [&] {
    auto pool = threads > 1 ? std::make_unique<ThreadPool>(threads) : nullptr;
    *context = new ft_int7_context{model->loaded, Runtime::Context(model->loaded->runtime, threads), std::move(pool)};
  });
}

ft_int7_status ft_int7_run(ft_int7_context* context, const uint8_t* picture, float* outputs) {
  if (!context || !picture || !outputs)
    return failed(FT_INT7_INVALID_ARGUMENT, "context, picture or outputs: null; a pointer");
  return guarded(FT_INT7_INTERNAL, nullptr, [&] {
    const Runtime& runtime = context->loaded->runtime;
    if (context->pool) {
      runtime.run(context->memory, picture, outputs, *context->pool);
    } else {
      runtime.run(context->memory, picture, outputs);
    }
  });
}

void ft_int7_free_context(ft_int7_context* context) { delete context; }
void ft_int7_free_model(ft_int7_model* model) { delete model; }

}  // extern "C"
