// Whom this process waits for in its rendezvous, for people: a gang whose ranks do not meet would otherwise say nothing
// until its time is over. One text for the process, which has one Comm.
#pragma once

#include <string>

namespace facetrain {

// A noun phrase that changes only when somebody comes, or with the cause ("rank 0 at HOST:PORT: Connection refused");
// empty while nobody is waited for. For any thread.
std::string awaited();

// Sets the text, until the end of its scope.
class Awaiting {
 public:
  Awaiting() = default;
  explicit Awaiting(std::string whom) { set(std::move(whom)); }
  Awaiting(const Awaiting&) = delete;
  ~Awaiting() { set(""); }
  void set(std::string whom);
};

}  // namespace facetrain
