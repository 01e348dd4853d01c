// The errors of the native code. Error is for users: native/src/native-errors.ts turns it into a FacetrainError.
#pragma once

#include <stdexcept>
#include <string>

namespace facetrain {

// Names what is wrong (`subject`), what was found there, and what is allowed. The message reads "<subject>: <found>;
// <allowed>".
class Error : public std::runtime_error {
 public:
  // `code` is one of those in api/src/errors.ts.
  Error(std::string code, std::string subject, std::string found, std::string allowed)
      : std::runtime_error(subject + ": " + found + "; " + allowed),
        code(std::move(code)),
        subject(std::move(subject)),
        found(std::move(found)),
        allowed(std::move(allowed)) {}

  const std::string code, subject, found, allowed;
};

// Thrown by a long operation after its `cancelled` flag was set.
struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("cancelled") {}
};

}  // namespace facetrain
