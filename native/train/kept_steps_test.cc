// What is kept of the last two steps, and what of it is there when the process is killed: between any two instructions
// of one thread, and at random moments of several.
#include "train/kept_steps.h"

#include <ATen/Parallel.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

#include "error.h"
#include "random.h"
#include "test/check.h"
#include "test/processes.h"

using namespace facetrain;

namespace {

// A training whose rows are a function of the step: each says by which step it was changed last.
struct Model {
  KeptLayout layout;

  explicit Model(int64_t rows, std::string identity = "training")
      : layout{std::move(identity), rows, {8, 4, 24}, {16, 40}} {}

  static bool changes(int64_t step, int64_t row) {
    return hash_words({static_cast<uint64_t>(step), static_cast<uint64_t>(row)}) % 3 == 0;
  }
  std::vector<int64_t> changed_by(int64_t step) const {
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < layout.rows; ++row) {
      if (changes(step, row)) rows.push_back(row);
    }
    return rows;
  }
  static uint8_t value(int64_t step, int64_t row, size_t tensor) {
    int64_t last = step;
    while (last > 0 && !changes(last, row)) --last;
    return static_cast<uint8_t>(hash_words({static_cast<uint64_t>(last), static_cast<uint64_t>(row), tensor}));
  }
  static std::string note(int64_t step) { return "after " + std::to_string(step) + std::string(step % 5, '.'); }

  void write_row(const KeptSteps& kept, int64_t step, int64_t row) const {
    for (size_t i = 0; i < layout.row_bytes.size(); ++i) {
      const auto bytes = static_cast<size_t>(layout.row_bytes[i]);
      std::memset(kept.rows(i).data() + static_cast<size_t>(row) * bytes, value(step, row, i), bytes);
    }
  }
  void write_parts(const KeptSteps& kept, int64_t step) const {
    for (size_t i = 0; i < layout.parts.size(); ++i)
      std::memset(kept.part(step, i).data(), static_cast<int>(step + 7 * static_cast<int64_t>(i)),
                  kept.part(step, i).size());
  }
  void keep_all(KeptSteps& kept, int64_t step) const {
    kept.clear();
    for (int64_t row = 0; row < layout.rows; ++row) write_row(kept, step, row);
    write_parts(kept, step);
    kept.commit(step, note(step));
  }
  void keep(KeptSteps& kept, int64_t step) const {
    const std::vector<int64_t> rows = changed_by(step);
    kept.begin(step, rows);
    at::parallel_for(0, std::ssize(rows), 64, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) write_row(kept, step, rows[static_cast<size_t>(i)]);
    });
    write_parts(kept, step);
    kept.commit(step, note(step));
  }

  // Whether the file gives back the whole state of this step, and nothing of another. Goes back to it.
  bool gives(KeptSteps& kept, int64_t step) const {
    if (kept.note(step) != note(step)) return false;
    const auto all = [](std::span<const uint8_t> bytes, uint8_t wanted) {
      return std::ranges::all_of(bytes, [=](uint8_t byte) { return byte == wanted; });
    };
    for (size_t i = 0; i < layout.parts.size(); ++i) {
      if (!all(kept.part(step, i), static_cast<uint8_t>(step + 7 * static_cast<int64_t>(i)))) return false;
    }
    kept.rewind(step);
    for (size_t i = 0; i < layout.row_bytes.size(); ++i) {
      const auto bytes = static_cast<size_t>(layout.row_bytes[i]);
      for (int64_t row = 0; row < layout.rows; ++row) {
        if (!all(kept.rows(i).subspan(static_cast<size_t>(row) * bytes, bytes), value(step, row, i))) return false;
      }
    }
    return true;
  }
};

class Folder {
 public:
  Folder() {
    if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no folder for the test");
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_ = "/tmp/kept-steps-XXXXXX";
};

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::vector<int64_t> steps_in(const std::string& path, const Model& model) {
  return KeptSteps(path, model.layout).steps();
}

void test_two_steps() {
  const Folder folder;
  const Model model(50);
  const std::string path = folder / "steps";
  {
    KeptSteps kept(path, model.layout);
    CHECK(kept.steps().empty());
    model.keep_all(kept, 6);
    CHECK(kept.steps() == std::vector<int64_t>{6});
    model.keep(kept, 7);
    model.keep(kept, 8);
    CHECK((kept.steps() == std::vector<int64_t>{8, 7}));
    CHECK(model.gives(kept, 8));
  }
  KeptSteps kept(path, model.layout);
  CHECK((kept.steps() == std::vector<int64_t>{8, 7}));
  CHECK(model.gives(kept, 7));
  CHECK(kept.steps() == std::vector<int64_t>{7});
  model.keep(kept, 8);
  CHECK(model.gives(kept, 8));
  CHECK(model.gives(kept, 7));
  CHECK_THROWS(kept.rewind(8), std::logic_error, "was not kept");
  CHECK_THROWS(kept.begin(9, {}), std::logic_error, "not the one before");
  // A step that changed no row.
  kept.begin(8, {});
  model.write_parts(kept, 8);
  kept.commit(8, Model::note(8));
  CHECK((kept.steps() == std::vector<int64_t>{8, 7}));
  CHECK(model.gives(kept, 7));
  kept.clear();
  CHECK(kept.steps().empty());
}

void test_whose_file() {
  const Folder folder;
  const Model model(50);
  const std::string path = folder / "steps";
  const auto keep = [&] {
    KeptSteps kept(path, model.layout);
    model.keep_all(kept, 1);
    model.keep(kept, 2);
  };
  keep();
  {
    const KeptSteps open(path, model.layout);
    CHECK_THROWS(KeptSteps(path, model.layout), Error, "cannot be used");
  }
  const std::string whole = content(path);
  CHECK_EQ(steps_in(path, model).size(), 2);
  // Another training, another number of rows: the file is made anew.
  CHECK(steps_in(path, Model(50, "other")).empty());
  CHECK(steps_in(path, model).empty());
  write(path, whole);
  CHECK(steps_in(path, Model(51)).empty());
  for (const size_t length : {whole.size() - 1, whole.size() / 2, size_t{100}, size_t{0}}) {
    write(path, whole.substr(0, length));
    CHECK(steps_in(path, model).empty());
  }
  write(path, std::string(whole.size(), 'x'));
  CHECK(steps_in(path, model).empty());
  keep();
  CHECK_EQ(steps_in(path, model).size(), 2);
  CHECK_THROWS(KeptSteps(folder / "absent/steps", model.layout), Error, "absent");
}

// The bytes of a file while another process writes them.
class Watched {
 public:
  explicit Watched(const std::string& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    memory_ = mmap(nullptr, kLargest, PROT_READ, MAP_SHARED, fd_, 0);
    if (fd_ < 0 || memory_ == MAP_FAILED) throw std::runtime_error("cannot watch " + path);
  }
  ~Watched() {
    munmap(memory_, kLargest);
    close(fd_);
  }
  // Whether they are others than those that it last returned.
  bool has_changed() const { return bytes() != last_; }
  const std::string& read() { return last_ = bytes(); }

 private:
  static constexpr size_t kLargest = 1 << 20;
  std::string_view bytes() const {
    struct stat found {};
    fstat(fd_, &found);
    return {static_cast<const char*>(memory_), static_cast<size_t>(found.st_size)};
  }

  const int fd_;
  void* memory_;
  std::string last_;
};

// Runs `work` in a child, one instruction after the other. Calls `look` whenever the file has changed, and returns how
// often that was.
template <class Work, class Look>
int64_t between_instructions(const std::string& path, Work work, Look look) {
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    work();
    _exit(0);
  }
  Watched file(path);
  int status = 0;
  int64_t changes = 0;
  waitpid(child, &status, 0);
  while (WIFSTOPPED(status)) {
    if (file.has_changed()) {
      look(file.read());
      ++changes;
    }
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) break;
    waitpid(child, &status, 0);
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return changes;
}

void test_killed_after_any_instruction() {
  const Folder folder;
  const Model model(9);
  const std::string path = folder / "steps", left = folder / "left";
  {
    KeptSteps kept(path, model.layout);
    model.keep_all(kept, 3);
  }
  // The next process finds at least the newest whole step, and at the moment when a step is whole the one before, too.
  int64_t newest = 3;
  const auto look = [&](const std::string& bytes) {
    write(left, bytes);
    const std::vector<int64_t> steps = steps_in(left, model);
    CHECK(std::ranges::find(steps, newest) != steps.end());
    if (!steps.empty() && steps[0] > newest) {
      CHECK_EQ(steps[0], newest + 1);
      newest = steps[0];
    }
    for (const int64_t step : steps) {
      write(left, bytes);
      KeptSteps kept(left, model.layout);
      CHECK(model.gives(kept, step));
    }
  };
  const int64_t changes = between_instructions(
      path,
      [&] {
        KeptSteps kept(path, model.layout);
        for (int64_t step = 4; step < 6; ++step) model.keep(kept, step);
      },
      look);
  CHECK_EQ(newest, 5);
  CHECK(changes > 50);

  // Going back to the step before: until it is done, and after that, too.
  const int64_t rewinding = between_instructions(
      path, [&] { KeptSteps(path, model.layout).rewind(4); },
      [&](const std::string& bytes) {
        write(left, bytes);
        KeptSteps kept(left, model.layout);
        CHECK(model.gives(kept, 4));
      });
  CHECK(rewinding > 10);
  CHECK(steps_in(path, model) == std::vector<int64_t>{4});
}

constexpr int64_t kManyRows = 3000;

// Keeps one step after the other, on two threads, until it is killed. Goes on from the step that the caller names.
int keep_without_end(const std::string& path, int64_t from) {
  at::set_num_threads(2);
  const Model model(kManyRows);
  KeptSteps kept(path, model.layout);
  if (from == 0)
    model.keep_all(kept, 0);
  else
    kept.rewind(from);
  write(path + "-begun", "");
  for (int64_t step = from + 1;; ++step) model.keep(kept, step);
}

void test_killed_at_random() {
  const Folder folder;
  const Model model(kManyRows);
  const std::string path = folder / "steps";
  int64_t from = 0;
  for (uint64_t round = 0; round < 30 || from < 30; ++round) {
    {
      test::Child child({"keep-without-end", path, std::to_string(from)});
      while (!std::filesystem::exists(path + "-begun")) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::this_thread::sleep_for(std::chrono::microseconds(hash_words({round}) % 30'000));
    }
    std::filesystem::remove(path + "-begun");
    KeptSteps kept(path, model.layout);
    const std::vector<int64_t> steps = kept.steps();
    CHECK(!steps.empty() && steps[0] >= from);
    if (steps.empty()) return;
    for (const int64_t step : steps) CHECK(model.gives(kept, step));
    from = steps.back();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4) return keep_without_end(argv[2], std::stoll(argv[3]));
  test_two_steps();
  test_whose_file();
  test_killed_after_any_instruction();
  test_killed_at_random();
  return TEST_RESULT();
}
