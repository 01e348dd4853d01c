// A native thread that runs commands for JavaScript and settles a promise for each. The addon uses it for everything
// that takes longer than a millisecond, so the event loop never waits.
//
// JavaScript's thread posts commands; the worker's thread runs them in order and passes each result back through a
// thread-safe function. libuv's pool is not used, because a training run would occupy one of its four threads for
// hours.
//
// A thread that is still inside libtorch while the process runs its static destructors crashes the process, and Node's
// cleanup hooks run too late to prevent that. So src/addon.ts calls Worker::shutdown_all from process.on('exit').
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
  // Makes the value that the promise resolves to. A command returns it on the worker's thread; it is called on
  // JavaScript's. Empty: undefined.
  using Reply = std::function<Napi::Value(Napi::Env)>;
  using Command = std::function<Reply()>;

  // Starts the thread, named `name` (at most 15 characters, shown by `top -H`). `last` runs on it before it ends in any
  // way, and destroys what the commands made. The process stays alive while a command is pending.
  static std::shared_ptr<Worker> start(Napi::Env env, const char* name, std::function<void()> last = {});

  // Queues a command. An exception of it rejects the promise (to_javascript in worker.cc). After close(), the promise
  // is rejected at once.
  Napi::Promise post(Napi::Env env, Command command);

  // Long commands must check this regularly and throw Cancelled when it is set.
  const std::atomic<bool>& cancelled() const { return cancelled_; }

  // Cancels the running command, rejects the queued ones and ends the thread. Resolves when the thread has ended. May
  // be called again.
  Napi::Promise close(Napi::Env env);
  // The same without a promise, for finalizers.
  void dispose();

  // Cancels and joins every worker of the process. If one does not stop within two seconds (it may be waiting for a
  // peer), ends the process here with `exit_code`, without static destructors.
  static void shutdown_all(int exit_code);

 private:
  struct Item;
  struct Settled;
  using Deferred = std::shared_ptr<Napi::Promise::Deferred>;
  static void settle(Napi::Env env, Napi::Function, std::nullptr_t*, Settled* raw);
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
  // Used on JavaScript's thread only.
  int pending_ = 0;               // commands whose promises are not settled
  std::vector<Deferred> closed_;  // promises of close()
  bool joined_ = false;
};

}  // namespace facetrain
