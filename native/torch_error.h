// Messages of libtorch's exceptions for people, and which of them mean that memory did not suffice.
#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <optional>
#include <regex>
#include <string>

#include "available_memory.h"
#include "error.h"

namespace facetrain {

// The message of an exception without C++ stack frames: what() of c10's exceptions ends with its own, and c10d's quote
// those of others.
inline std::string message_of(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  std::string message = c10_error ? c10_error->what_without_backtrace() : error.what();
  for (const char* trace : {"Exception raised from ", "\nframe #"}) {
    if (const size_t at = message.find(trace); at != std::string::npos) message.resize(at);
  }
  while (!message.empty() && (message.back() == '\n' || message.back() == ' ')) message.pop_back();
  return message;
}

// Error(InsufficientMemory) for an exception that says so, else nothing. That is c10::OutOfMemoryError of the CUDA
// allocator, std::bad_alloc, and by their messages: libtorch's CPU allocator, CUDA's error 2 (also as NCCL reports it),
// and cuBLAS's and cuDNN's ..._STATUS_ALLOC_FAILED.
inline std::optional<Error> memory_error(const std::exception& error) {
  const std::string message = message_of(error);
  const auto says = [&](const char* words) { return message.find(words) != std::string::npos; };
  const bool on_host = dynamic_cast<const std::bad_alloc*>(&error) || says("DefaultCPUAllocator");
  const bool on_device = dynamic_cast<const c10::OutOfMemoryError*>(&error) ||
                         (dynamic_cast<const c10::Error*>(&error) && (says("out of memory") || says("ALLOC_FAILED")));
  if (!on_host && !on_device) return std::nullopt;

  // "... Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 5.06 MiB is free. ..." or
  // "... you tried to allocate 1125899906842624 bytes. ..."
  static const std::regex asked_for(R"([Tt]ried to allocate ([\d.]+ \w+))");
  static const std::regex capacity(R"((GPU \d+) has a total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free)");
  std::smatch match;
  const std::string asked = std::regex_search(message, match, asked_for) ? "no memory for " + match.str(1)
                            : on_host                                    ? "no memory for an object"
                                                                         : message.substr(0, message.find('\n'));
  if (on_device) {
    const bool known = std::regex_search(message, match, capacity);
    return Error(
        "InsufficientMemory", "memory of " + (known ? match.str(1) : std::string("the GPU")),
        asked + (known ? "; " + match.str(3) + " of " + match.str(2) + " are free" : ""),
        "a training that fits: a smaller trainers.microBatchSize, model.checkpointActivations, more trainers.replicas "
        "(each has its part of the batch and of the class centres), a smaller loss.sampleRate, or a GPU with more "
        "memory");
  }
  const auto available = available_memory();
  return Error(
      "InsufficientMemory", "memory of this process",
      asked + (available ? "; " + std::to_string(*available) + " bytes are available" : ""),
      "more memory (in Kubernetes, resources.limits.memory), or less to hold at once: of a training a smaller "
      "trainers.microBatchSize, model.checkpointActivations or more trainers.replicas, of a quantization fewer "
      "calibration.images or computeThreads");
}

// Throws Error(InsufficientMemory) if the exception means that; before a handler takes it for something else.
inline void throw_memory_error(const std::exception& error) {
  if (const auto memory = memory_error(error)) throw *memory;
}

}  // namespace facetrain
