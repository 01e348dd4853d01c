#include "node/worker.h"

#include <pthread.h>

#include <chrono>
#include <cstdlib>
#include <set>

#include "error.h"
#include "torch_error.h"

namespace facetrain {
namespace {

// The workers whose threads have not been joined.
std::mutex live_mutex;
std::set<std::shared_ptr<Worker>> live;

// A JavaScript Error with `code`, `subject`, `found` and `allowed`, of which src/native-errors.ts makes a
// FacetrainError.
Napi::Value to_javascript(Napi::Env env, const Error& error) {
  Napi::Object value = Napi::Error::New(env, error.what()).Value();
  value.Set("code", error.code);
  value.Set("subject", error.subject);
  value.Set("found", error.found);
  value.Set("allowed", error.allowed);
  return value;
}

// Error keeps its fields; so do exceptions which say that memory did not suffice. Cancelled becomes an AbortError, like
// the errors of Node's own cancelled operations. Any other exception is a defect of the program; only its message is
// kept, without C++ frames.
Napi::Value to_javascript(Napi::Env env, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return to_javascript(env, e);
  } catch (const Cancelled&) {
    Napi::Object value = Napi::Error::New(env, "the operation was cancelled because its owner was closed").Value();
    value.Set("name", "AbortError");
    value.Set("code", "ABORT_ERR");
    return value;
  } catch (const std::exception& e) {
    if (const auto memory = memory_error(e)) return to_javascript(env, *memory);
    return Napi::Error::New(env, message_of(e)).Value();
  }
}

}  // namespace

struct Worker::Item {
  Command command;
  Deferred deferred;
};

struct Worker::Settled {
  std::shared_ptr<Worker> worker;
  Deferred deferred;         // empty when the thread has ended
  Reply reply;               // resolves the promise if `error` is null
  std::exception_ptr error;  // rejects it otherwise
};

std::shared_ptr<Worker> Worker::start(Napi::Env env, const char* name, std::function<void()> last) {
  auto worker = std::make_shared<Worker>();
  worker->bridge_ = Bridge::New(env, name, 0, 1);
  worker->bridge_.Unref(env);
  worker->last_ = std::move(last);
  {
    std::lock_guard lock(live_mutex);
    live.insert(worker);
  }
  worker->thread_ = std::thread([raw = worker.get()] { raw->run(); });
  pthread_setname_np(worker->thread_.native_handle(), name);
  return worker;
}

void Worker::hold(Napi::Env env) {
  if (pending_++ == 0) bridge_.Ref(env);
}

void Worker::release(Napi::Env env) {
  if (--pending_ == 0) bridge_.Unref(env);
}

Napi::Promise Worker::post(Napi::Env env, Command command) {
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  Napi::Promise promise = deferred->Promise();
  std::lock_guard lock(mutex_);
  if (closing_) {
    deferred->Reject(to_javascript(env, std::make_exception_ptr(Cancelled())));
    return promise;
  }
  hold(env);
  queue_.push_back({std::move(command), std::move(deferred)});
  changed_.notify_all();
  return promise;
}

void Worker::run() {
  auto self = shared_from_this();
  for (;;) {
    Item item;
    bool closing;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) break;
      item = std::move(queue_.front());
      queue_.pop_front();
      closing = closing_;
    }
    auto* settled = new Settled{self, std::move(item.deferred), {}, {}};
    try {
      if (closing) throw Cancelled();
      settled->reply = item.command();
    } catch (...) {
      settled->error = std::current_exception();
    }
    item.command = {};
    if (bridge_.BlockingCall(settled) != napi_ok) delete settled;
  }
  if (last_) last_();
  last_ = {};
  auto* end = new Settled{self, {}, {}, {}};
  if (bridge_.BlockingCall(end) != napi_ok) delete end;
  std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

void Worker::settle(Napi::Env env, Napi::Function, std::nullptr_t*, Settled* raw) {
  std::unique_ptr<Settled> settled(raw);
  if (env == nullptr) return;  // Node is shutting down
  auto worker = settled->worker;
  if (settled->deferred) {
    worker->release(env);
    if (settled->error) {
      settled->deferred->Reject(to_javascript(env, settled->error));
      return;
    }
    try {
      settled->deferred->Resolve(settled->reply ? settled->reply(env) : env.Undefined());
    } catch (const Napi::Error& e) {
      settled->deferred->Reject(e.Value());
    } catch (const std::exception&) {
      settled->deferred->Reject(to_javascript(env, std::current_exception()));
    }
    return;
  }
  if (!worker->joined_) worker->thread_.join();
  worker->joined_ = true;
  for (auto& closed : worker->closed_) closed->Resolve(env.Undefined());
  worker->closed_.clear();
  worker->bridge_.Release();
  std::lock_guard lock(live_mutex);
  live.erase(worker);
}

void Worker::dispose() {
  cancelled_ = true;
  std::lock_guard lock(mutex_);
  closing_ = true;
  changed_.notify_all();
}

Napi::Promise Worker::close(Napi::Env env) {
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  if (joined_) {
    deferred->Resolve(env.Undefined());
    return deferred->Promise();
  }
  if (closed_.empty()) hold(env);  // never released: the bridge is destroyed when the thread ends
  closed_.push_back(deferred);
  dispose();
  return deferred->Promise();
}

void Worker::shutdown_all(int exit_code) {
  std::set<std::shared_ptr<Worker>> workers;
  {
    std::lock_guard lock(live_mutex);
    workers = live;
  }
  for (auto& worker : workers) worker->dispose();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  for (auto& worker : workers) {
    {
      std::unique_lock lock(worker->mutex_);
      if (!worker->changed_.wait_until(lock, deadline, [&] { return worker->ended_; })) std::_Exit(exit_code);
    }
    if (!worker->joined_) worker->thread_.join();
    worker->joined_ = true;
  }
}

}  // namespace facetrain
