#include "comm/awaited.h"

#include <mutex>

namespace facetrain {
namespace {

struct Text {
  std::mutex mutex;
  std::string text;
};

// Never destroyed: a thread may still wait when the process ends.
Text& shared() {
  static Text& text = *new Text;
  return text;
}

}  // namespace

std::string awaited() {
  const std::lock_guard lock(shared().mutex);
  return shared().text;
}

void Awaiting::set(std::string whom) {
  const std::lock_guard lock(shared().mutex);
  shared().text = std::move(whom);
}

}  // namespace facetrain
