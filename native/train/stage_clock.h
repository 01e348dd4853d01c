// Where the time of a training step goes.
//
// A step is cut at marks, and the time between two marks belongs to the stage that the first one entered. So the stages
// of a step add up to its time, and none counts twice.
//
// On a CPU a mark reads the monotonic clock. On CUDA it is an event in the device's current stream, and the host does
// not wait for it: the times are those of the device, and are read a step or more later, when the device has passed the
// marks. There a stage counts what it costs the device: waiting for the loader costs nothing while the device still has
// work from before.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Event.h>

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "comm/comm.h"

namespace facetrain {

// In the order of a step.
enum class Stage {
  data,           // waiting for the loader's batch
  upload,         // pictures and labels to the device, and to floats
  forward,        // of the backbone
  head,           // Partial FC, forward and backward, without its collectives
  backward,       // of the backbone
  communication,  // collectives, with the wait for slower ranks, where no other stage hides them; 0 with one rank
  update,         // clipping the gradient, and SGD of backbone and class centres
};
inline constexpr size_t kStages = 7;
// Their names in api/src/step-stages.ts.
inline constexpr std::array<const char*, kStages> kStageNames{"data",     "upload",        "forward", "head",
                                                              "backward", "communication", "update"};

// Seconds of each stage of one step.
using StageSeconds = std::array<double, kStages>;

class StageClock {
 public:
  // The time in seconds since a fixed moment.
  using Now = double (*)();
  static double monotonic();

  // `now` is used on a CPU.
  explicit StageClock(c10::Device device, Now now = monotonic) : device_(device), now_(now) {}

  // Starts a step in stage `data`. Forgets a step that did not end.
  void begin();
  // What follows belongs to `stage`. Returns the stage before. Does nothing outside of a step.
  Stage enter(Stage stage);
  void end();
  // The oldest complete step that was not returned yet; nothing if there is none. To be called once a step. On CUDA,
  // while more steps than kSteps are not complete, further ones are not measured.
  std::optional<StageSeconds> take();

  static constexpr size_t kSteps = 4;

 private:
  struct Step {
    std::vector<Stage> stages;       // entered, in order; stages[i] lasts from mark i to mark i + 1
    std::vector<double> times;       // of the marks, on a CPU
    std::vector<c10::Event> events;  // the marks on CUDA; those of earlier steps are used again
    size_t marks = 0;
  };
  void mark();
  bool is_complete(const Step& step) const;

  const c10::Device device_;
  const Now now_;
  std::optional<Step> running_;
  Stage stage_ = Stage::data;
  std::deque<Step> ended_;
  std::vector<Step> free_;  // to use their memory and events again
};

// `comm`, whose collectives count as Stage::communication. The clock must outlive it.
std::unique_ptr<Comm> make_timed_comm(std::unique_ptr<Comm> comm, StageClock& clock);

}  // namespace facetrain
