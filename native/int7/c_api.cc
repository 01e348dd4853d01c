#include <algorithm>
#include <array>
#include <atomic>
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

using facetrain::Isa;
using facetrain::ThreadPool;
using facetrain::int7::check_memory;
using facetrain::int7::InvalidModel;
using facetrain::int7::OnnxModel;
using facetrain::int7::PictureSize;
using facetrain::int7::read_onnx;
using facetrain::int7::refuse_file;
using facetrain::int7::Runtime;

namespace {

constexpr int64_t kLargestMemory = int64_t{1} << 31;  // files are not trusted
constexpr int32_t kLargestSide = 1 << 14;
constexpr size_t kLargestFile = (size_t{1} << 31) - 1;  // of protobuf, so of ONNX

// What the options say, with their defaults.
struct Options {
  PictureSize picture;
  int64_t largest_memory = kLargestMemory;
  Isa isa = facetrain::best_isa();
};

struct Loaded {
  std::string color_order;
  std::vector<double> mean, std;
  std::vector<OnnxModel::Output> outputs;
  std::map<std::string, std::string> metadata;
  int version;
  Isa isa;
  Runtime runtime;

  Loaded(OnnxModel model, const Options& options)
      : color_order(std::move(model.color_order)),
        mean(std::move(model.mean)),
        std(std::move(model.std)),
        outputs(std::move(model.outputs)),
        metadata(std::move(model.metadata)),
        version(model.version),
        isa(options.isa),
        runtime(std::move(model.network), options.isa, options.largest_memory) {}
};

std::shared_ptr<const Loaded> load(OnnxModel model, const Options& options) {
  for (const OnnxModel::Output& output : model.outputs) {
    if (output.dims.size() > FT_INT7_MAX_RANK)
      throw InvalidModel(output.name + ": an output of more than seven dimensions", "seven at most");
  }
  return std::make_shared<const Loaded>(std::move(model), options);
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
  } catch (const InvalidModel& error) {
    return failed(of_invalid, error.what(), subject);
  } catch (const facetrain::Error& error) {
    return failed(of_invalid, error.what(), subject);
  } catch (const std::exception& error) {
    return failed(FT_INT7_INTERNAL, error.what());
  } catch (...) {
    return failed(FT_INT7_INTERNAL, "an unknown error");
  }
}

// The instruction set of that name, if this processor has it.
bool read_isa(const char* name, Isa& isa) noexcept {
  std::array<char, 256> own{};  // names, each behind a comma
  for (const Isa each : facetrain::kIsas) {
    if (!facetrain::supported(each)) continue;
    isa = each;
    if (std::strcmp(name, facetrain::name_of(each)) == 0) return true;
    const size_t length = std::strlen(own.data());
    std::snprintf(own.data() + length, own.size() - length, ", %s", facetrain::name_of(each));
  }
  std::array<char, 512> message{};
  std::snprintf(message.data(), message.size(), "instruction_set: %.100s; one that this processor has: %s", name,
                own.data() + 2);
  return failed(FT_INT7_INVALID_ARGUMENT, message.data()), false;
}

// The options that a caller has given. Returns false, and says why, where one is out of its range.
bool read_options(const ft_int7_options* given, Options& read) noexcept {
  if (!given) return true;
  const ft_int7_options& options = *given;
  if (options.height < 0 || options.height > kLargestSide || options.width < 0 || options.width > kLargestSide)
    return failed(FT_INT7_INVALID_ARGUMENT, "height or width: out of range; 1 to 16384, or 0 for the file's"), false;
  if (options.largest_memory < 0)
    return failed(FT_INT7_INVALID_ARGUMENT, "largest_memory: negative; bytes, or 0 for the default"), false;
  read.picture = {.height = options.height, .width = options.width};
  if (options.largest_memory > 0) read.largest_memory = options.largest_memory;
  return options.instruction_set == nullptr || read_isa(options.instruction_set, read.isa);
}

std::vector<uint8_t> read_file(const char* path, int64_t largest_memory) {
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path, "rb"), close);
  const auto fail = [&] { throw FileError(std::string(std::strerror(errno)) + "; a readable file"); };
  if (!file) fail();
  std::vector<uint8_t> bytes;
  // Room for all of a regular file, so that it is not moved while it is read. Something else may have no end to tell.
  if (std::fseek(file.get(), 0, SEEK_END) == 0) {
    const long end = std::ftell(file.get());
    if (end > 0 && end <= static_cast<long>(kLargestFile)) {
      check_memory(end, largest_memory);
      bytes.reserve(end);
    }
    std::rewind(file.get());
  }
  std::clearerr(file.get());
  uint8_t block[1 << 16];
  size_t count;
  do {
    count = std::fread(block, 1, sizeof block, file.get());
    if (count > kLargestFile - bytes.size()) refuse_file("has 2 GiB or more");
    bytes.insert(bytes.end(), block, block + count);
    check_memory(static_cast<int64_t>(bytes.size()), largest_memory);
  } while (count > 0);
  if (std::ferror(file.get())) fail();
  return bytes;
}

// The network in a file. Where the caller chose another size of the pictures, that may be what does not fit.
OnnxModel read_model(const uint8_t* data, size_t size, const PictureSize& picture) {
  try {
    return read_onnx(data, size, picture);
  } catch (const InvalidModel& error) {
    if (picture.height == 0 && picture.width == 0) throw;
    throw InvalidModel("with the height or width of the options: " + error.found,
                       error.wanted + "; or 0 for the size of the file");
  }
}

bool check_threads(int32_t threads) noexcept {
  return (threads >= 1 && threads <= 256) ||
         (failed(FT_INT7_INVALID_ARGUMENT, "threads: out of range; 1 to 256"), false);
}

}  // namespace

struct ft_int7_model {
  std::shared_ptr<const Loaded> loaded;
};

struct ft_int7_context {
  std::shared_ptr<const Loaded> loaded;
  Runtime::Context memory;
  std::unique_ptr<ThreadPool> pool;  // null: one thread
  std::atomic_flag is_running{};
};

extern "C" {

int32_t ft_int7_abi_version(void) { return FT_INT7_ABI_VERSION; }

const char* ft_int7_last_error(void) { return last_error; }

ft_int7_status ft_int7_load_memory(const void* data, size_t size, const ft_int7_options* given, ft_int7_model** model) {
  if (model) *model = nullptr;
  if (!model || !data) return failed(FT_INT7_INVALID_ARGUMENT, "data or model: null; a pointer");
  Options options;
  if (!read_options(given, options)) return FT_INT7_INVALID_ARGUMENT;
  return guarded(FT_INT7_INVALID_MODEL, "data", [&] {
    OnnxModel read = read_model(static_cast<const uint8_t*>(data), size, options.picture);
    *model = new ft_int7_model{load(std::move(read), options)};
  });
}

ft_int7_status ft_int7_load_file(const char* path, const ft_int7_options* given, ft_int7_model** model) {
  if (model) *model = nullptr;
  if (!model || !path) return failed(FT_INT7_INVALID_ARGUMENT, "path or model: null; a pointer");
  Options options;
  if (!read_options(given, options)) return FT_INT7_INVALID_ARGUMENT;
  return guarded(FT_INT7_INVALID_MODEL, path, [&] {
    std::vector<uint8_t> bytes = read_file(path, options.largest_memory);
    OnnxModel read = read_model(bytes.data(), bytes.size(), options.picture);
    check_memory(static_cast<int64_t>(bytes.size()) + read.network.bytes(), options.largest_memory);
    bytes = std::vector<uint8_t>();  // The network has what it needs of them. {} would keep the memory.
    *model = new ft_int7_model{load(std::move(read), options)};
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
  for (size_t c = 0; c < loaded.mean.size() && c < 4; ++c) {
    info->mean[c] = static_cast<float>(loaded.mean[c]);
    info->std[c] = static_cast<float>(loaded.std[c]);
  }
  info->version = loaded.version;
  info->instruction_set = facetrain::name_of(loaded.isa);
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

ft_int7_status ft_int7_get_context_size(const ft_int7_model* model, int32_t threads, int64_t* bytes) {
  if (!model || !bytes) return failed(FT_INT7_INVALID_ARGUMENT, "model or bytes: null; a pointer");
  if (!check_threads(threads)) return FT_INT7_INVALID_ARGUMENT;
  *bytes = model->loaded->runtime.context_bytes(threads);
  last_error[0] = '\0';
  return FT_INT7_OK;
}

ft_int7_status ft_int7_create_context(const ft_int7_model* model, int32_t threads, ft_int7_context** context) {
  if (context) *context = nullptr;
  if (!model || !context) return failed(FT_INT7_INVALID_ARGUMENT, "model or context: null; a pointer");
  if (!check_threads(threads)) return FT_INT7_INVALID_ARGUMENT;
  return guarded(FT_INT7_INVALID_ARGUMENT, nullptr, [&] {
    auto pool = threads > 1 ? std::make_unique<ThreadPool>(threads) : nullptr;
    *context = new ft_int7_context{model->loaded, Runtime::Context(model->loaded->runtime, threads), std::move(pool)};
  });
}

ft_int7_status ft_int7_run(ft_int7_context* context, const uint8_t* picture, float* outputs) {
  if (!context || !picture || !outputs)
    return failed(FT_INT7_INVALID_ARGUMENT, "context, picture or outputs: null; a pointer");
  // Two runs in one context would overwrite each other's tensors, and wait for each other's threads for ever.
  if (context->is_running.test_and_set(std::memory_order_acquire))
    return failed(FT_INT7_INVALID_ARGUMENT, "context: another thread runs it; one thread at a time, or two contexts");
  const ft_int7_status status = guarded(FT_INT7_INTERNAL, nullptr, [&] {
    const Runtime& runtime = context->loaded->runtime;
    if (context->pool) {
      runtime.run(context->memory, picture, outputs, *context->pool);
    } else {
      runtime.run(context->memory, picture, outputs);
    }
  });
  context->is_running.clear(std::memory_order_release);
  return status;
}

void ft_int7_free_context(ft_int7_context* context) { delete context; }
void ft_int7_free_model(ft_int7_model* model) { delete model; }

}  // extern "C"
