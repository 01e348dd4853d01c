// The reference of a benchmark: its reference.py in a process of its own, which does a step when it is told to.
#pragma once

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace facetrain::bench {

// The number that a line of JSON has for a key; nothing where it has none.
inline std::optional<double> number_in(const std::string& json, const std::string& key) {
  const size_t at = json.find("\"" + key + "\": ");
  if (at == std::string::npos) return std::nullopt;
  return std::strtod(json.c_str() + at + key.size() + 4, nullptr);
}

class Reference {
 public:
  // Throws std::runtime_error when it does not start, or ends: for example for lack of memory. It writes the reason to
  // standard error. The caller ignores SIGPIPE, so that a reference that has ended is an error of the next step.
  Reference(const std::string& python, const std::string& script, const std::vector<std::string>& arguments) {
    int to_child[2], from_child[2];
    if (pipe(to_child) != 0 || pipe(from_child) != 0) throw std::runtime_error("no pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to_child[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from_child[1], 1);
    for (const int end : {to_child[0], to_child[1], from_child[0], from_child[1]}) {
      posix_spawn_file_actions_addclose(&actions, end);
    }
    std::vector<char*> argv{const_cast<char*>(python.c_str()), const_cast<char*>(script.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const int error = posix_spawnp(&pid_, python.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to_child[0]);
    close(from_child[1]);
    input_.reset(fdopen(to_child[1], "w"));
    output_.reset(fdopen(from_child[0], "r"));
    if (error != 0) {
      pid_ = -1;
      throw std::runtime_error(python + " cannot be started");
    }
  }
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;
  ~Reference() {
    input_.reset();  // the end of its input ends it
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
  }

  // One step: its line of JSON.
  std::string step() {
    std::fputs("step\n", input_.get());
    std::fflush(input_.get());
    return line();
  }
  // Its last line, after which it ends.
  std::string finish() {
    input_.reset();
    return line();
  }
  // Its first line: what it calls itself.
  std::string name() {
    const std::string text = line();
    const size_t at = text.find(": \"") + 3;
    return text.substr(at, text.find('"', at) - at);
  }

 private:
  std::string line() {
    std::string text;
    for (int c = 0; (c = std::fgetc(output_.get())) != '\n';) {
      if (c == EOF) throw std::runtime_error("the reference has ended");
      text += static_cast<char>(c);
    }
    return text;
  }

  struct Close {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  pid_t pid_ = -1;
  std::unique_ptr<FILE, Close> input_, output_;
};

}  // namespace facetrain::bench
