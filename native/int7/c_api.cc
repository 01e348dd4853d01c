#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "int7/facetrain_int7.h"
#include "int7/onnx_reader.h"
#include "int7/runtime.h"

using facetrain::ThreadPool;
using facetrain::int7::OnnxModel;
using facetrain::int7::read_onnx;
using facetrain::int7::Runtime;

namespace {

constexpr int64_t kLargestMemory = int64_t{1} << 31;  // of a model's tensors and packed weights: files are not trusted

struct Loaded {
  std::string color_order;
  std::vector<double> mean, std;
  Runtime runtime;

  explicit Loaded(OnnxModel model)
      : color_order(std::move(model.color_order)),
        mean(std::move(model.mean)),
        std(std::move(model.std)),
        runtime(std::move(model.network), facetrain::best_isa(), kLargestMemory) {}
};

thread_local std::string last_error;

struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

ft_int7_status failed(ft_int7_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

// Calls body(), and turns what it throws into a status.
template <typename Body>
ft_int7_status guarded(ft_int7_status of_invalid, Body body) noexcept {
  try {
    last_error.clear();
    body();
    return FT_INT7_OK;
  } catch (const std::bad_alloc&) {
    return failed(FT_INT7_OUT_OF_MEMORY, "memory: too little; more, or a smaller model");
  } catch (const std::length_error&) {
    return failed(FT_INT7_OUT_OF_MEMORY, "memory: too little; more, or a smaller model");
  } catch (const FileError& error) {
    return failed(FT_INT7_FILE, error.what());
  } catch (const std::invalid_argument& error) {
    return failed(of_invalid, error.what());
  } catch (const std::exception& error) {
    return failed(FT_INT7_INTERNAL, error.what());
  } catch (...) {
    return failed(FT_INT7_INTERNAL, "an unknown error");
  }
}

std::vector<uint8_t> read_file(const char* path) {
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path, "rb"), close);
  const auto fail = [&] { throw FileError(std::string(path) + ": " + std::strerror(errno) + "; a readable file"); };
  if (!file) fail();
  std::vector<uint8_t> bytes;
  uint8_t block[1 << 16];
  size_t count;
  do {
    count = std::fread(block, 1, sizeof block, file.get());
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

const char* ft_int7_last_error(void) { return last_error.c_str(); }

ft_int7_status ft_int7_load_memory(const void* data, size_t size, ft_int7_model** model) {
  if (model) *model = nullptr;
  if (!model || !data) return failed(FT_INT7_INVALID_ARGUMENT, "data or model: null; a pointer");
  return guarded(FT_INT7_INVALID_MODEL, [&] {
    auto loaded = std::make_shared<const Loaded>(read_onnx(static_cast<const uint8_t*>(data), size));
    *model = new ft_int7_model{std::move(loaded)};
  });
}

ft_int7_status ft_int7_load_file(const char* path, ft_int7_model** model) {
  if (model) *model = nullptr;
  if (!model || !path) return failed(FT_INT7_INVALID_ARGUMENT, "path or model: null; a pointer");
  return guarded(FT_INT7_INVALID_MODEL, [&] {
    const std::vector<uint8_t> bytes = read_file(path);
    auto loaded = std::make_shared<const Loaded>(read_onnx(bytes.data(), bytes.size()));
    *model = new ft_int7_model{std::move(loaded)};
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
  info->output_size = loaded.runtime.output_size();
  for (size_t c = 0; c < loaded.mean.size() && c < 4; ++c) {
    info->mean[c] = static_cast<float>(loaded.mean[c]);
    info->std[c] = static_cast<float>(loaded.std[c]);
  }
  info->instruction_set = facetrain::name_of(facetrain::best_isa());
  last_error.clear();
  return FT_INT7_OK;
}

ft_int7_status ft_int7_create_context(const ft_int7_model* model, int32_t threads, ft_int7_context** context) {
  if (context) *context = nullptr;
  if (!model || !context) return failed(FT_INT7_INVALID_ARGUMENT, "model or context: null; a pointer");
  if (threads < 1 || threads > 256) return failed(FT_INT7_INVALID_ARGUMENT, "threads: out of range; 1 to 256");
  return guarded(FT_INT7_INVALID_ARGUMENT, [&] {
    auto pool = threads > 1 ? std::make_unique<ThreadPool>(threads) : nullptr;
    *context = new ft_int7_context{model->loaded, Runtime::Context(model->loaded->runtime, threads), std::move(pool)};
  });
}

ft_int7_status ft_int7_run(ft_int7_context* context, const uint8_t* picture, float* embedding) {
  if (!context || !picture || !embedding)
    return failed(FT_INT7_INVALID_ARGUMENT, "context, picture or embedding: null; a pointer");
  return guarded(FT_INT7_INTERNAL, [&] {
    const Runtime& runtime = context->loaded->runtime;
    if (context->pool) {
      runtime.run(context->memory, picture, embedding, *context->pool);
    } else {
      runtime.run(context->memory, picture, embedding);
    }
  });
}

void ft_int7_free_context(ft_int7_context* context) { delete context; }
void ft_int7_free_model(ft_int7_model* model) { delete model; }

}  // extern "C"
