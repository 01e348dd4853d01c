// A native thread with a queue of commands, behind promises: how the addon does anything that takes longer than a
// millisecond.
//
// JavaScript's thread posts a command and gets a promise; the worker's thread runs commands in order and hands each
// result back through a thread-safe function, so the event loop never waits. libuv's own pool is not used: a training
// run would hold one of its four threads for hours.
//
// A thread that is still inside libtorch while the process runs its static destructors crashes it, and no cleanup hook
// of Node comes early enough. Therefore addon.ts calls Worker::shutdown_all from process.on('exit').
#pragma once

#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace facetrain {

class Worker : public std::enable_shared_from_this<Worker> {
 public:
  // Made on the worker's thread, called on JavaScript's: the value that the promise resolves to.
  using Reply = std::function<Napi::Value(Napi::Env)>;
  using Command = std::function<Reply()>;

  // Starts the thread; `name` (at most 15 characters) is what `top -H` shows. `last` runs on it just before it ends,
  // however it ends: what the commands made is destroyed there. The process stays alive while a command is pending.
  static std::shared_ptr<Worker> start(Napi::Env env, const char* name, std::function<void()> last = {});

  // Queues a command. What it throws rejects the promise (see errors in worker.cc). After close() the promise rejects
  // at once.
  Napi::Promise post(Napi::Env env, Command command);

  // Long commands look at this now and then and throw Cancelled.
  const std::atomic<bool>& cancelled() const { return cancelled_; }

  // Cancels the running command, rejects the pending ones and ends the thread. Resolves when it has ended; closing
  // twice is allowed.
  Napi::Promise close(Napi::Env env);
  // The same without a promise, for finalizers.
  void dispose();

  // Cancels and joins every worker of the process. A thread that does not stop within two seconds (it waits for a peer,
  // say) cannot be joined and must not outlive the static destructors: the process then ends here, with `exit_code`.
  static void shutdown_all(int exit_code);

 private:
  struct Item;
  struct Settled;
  using Deferred = std::shared_ptr<Napi::Promise::Deferred>;
  static void settle(Napi::Env env, Napi::Function, std::nullptr_t*, Settled* settled);
  using Bridge = Napi::TypedThreadSafeFunction<std::nullptr_t, Settled, settle>;

  void run();
  void hold(Napi::Env env);
  void release(Napi::Env env);

  Bridge bridge_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  std::function<void()> last_;
  std::atomic<bool> cancelled_{false};
  bool closing_ = false, ended_ = false;  // under mutex_
  // JavaScript's thread only.
  int pending_ = 0;
  std::vector<Deferred> closed_;  // who waits for the end
  bool joined_ = false;
};

}  // namespace facetrain
