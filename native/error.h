// The error that people see, before it becomes a FacetrainError in TypeScript: what it is about, what was found, what
// is allowed.
#pragma once

#include <stdexcept>
#include <string>

namespace facetrain {

class Error : public std::runtime_error {
 public:
  // `code` is one of api/src/errors.ts; the message reads "<subject>: <found>; <allowed>".
  Error(std::string code, std::string subject, std::string found, std::string allowed)
      : std::runtime_error(subject + ": " + found + "; " + allowed),
        code(std::move(code)),
        subject(std::move(subject)),
        found(std::move(found)),
        allowed(std::move(allowed)) {}

  const std::string code, subject, found, allowed;
};

// Thrown by long work that was told to stop.
struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("cancelled") {}
};

}  // namespace facetrain
