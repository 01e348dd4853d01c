#include "train/kept_steps.h"

#include <ATen/Parallel.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "available_memory.h"
#include "error.h"

namespace facetrain {
namespace {

constexpr int64_t kNone = -1;
constexpr uint64_t kMagic = 0x3130'7065'7473'7466;  // of this layout of the file; the last bytes that are written
constexpr int64_t kRowsAtOnce = 64;                 // of a thread: enough that starting it is worth it

// Parts of the file begin at cache lines.
constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t sum(const std::vector<int64_t>& sizes) {
  int64_t total = 0;
  for (const int64_t size : sizes) total += aligned(size);
  return total;
}

// The identity, with the sizes that the file's layout depends on.
std::string identity_of(const KeptLayout& layout) {
  std::ostringstream text;
  text << layout.identity << "\n" << layout.rows;
  for (const int64_t bytes : layout.row_bytes) text << " " << bytes;
  text << ";";
  for (const int64_t bytes : layout.parts) text << " " << bytes;
  return text.str();
}

[[noreturn]] void refuse(const std::string& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == ENOMEM;
  throw Error(full ? "DiskFull" : "StorageFailed", path, std::string("cannot be used (") + std::strerror(error) + ")",
              full ? "memory for the state of the last steps: facetrain plan says how much"
                   : "a folder in memory that this user may write");
}

}  // namespace

void copy_rows(uint8_t* to, const int64_t* to_rows, const uint8_t* from, const int64_t* from_rows, int64_t count,
               int64_t bytes) {
  at::parallel_for(0, count, kRowsAtOnce, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) {
      const int64_t to_row = to_rows == nullptr ? i : to_rows[i], from_row = from_rows == nullptr ? i : from_rows[i];
      std::memcpy(to + to_row * bytes, from + from_row * bytes, static_cast<size_t>(bytes));
    }
  });
}

// What is said about a mark holds for a process that is killed after any instruction: what was written before the mark
// is there if the mark is.
struct KeptSteps::Header {
  struct Note {
    int64_t bytes;
    std::array<char, kLongestNote> text;
  };

  uint64_t magic;
  int64_t copy_step;  // whose rows the copy has; kNone while it is changed
  int64_t log_step;   // to which the log leads back, from the copy or from what it is while it is changed; kNone
  int64_t log_rows;   // in the log
  int64_t log_capacity;
  int64_t identity_bytes;
  std::array<char, kLongestIdentity> identity;
  std::array<Note, 2> notes;

  // The compiler must not move other writes to the file over this one.
  static void set(int64_t& mark, int64_t value) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    std::atomic_ref(mark).store(value, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
};

KeptSteps::KeptSteps(std::string path, KeptLayout layout)
    : path_(std::move(path)), layout_(std::move(layout)), identity_(identity_of(layout_)) {
  fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd_ < 0) refuse(path_, errno);
  try {
    if (std::ssize(identity_) > kLongestIdentity) refuse(path_, ENAMETOOLONG);
    // The lock ends with the process.
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0) refuse(path_, errno);
    struct stat found {};
    if (fstat(fd_, &found) != 0) refuse(path_, errno);
    if (found.st_size >= size_with(0)) map(found.st_size);
    if (!is_intact()) create();
  } catch (...) {
    if (memory_ != nullptr) munmap(memory_, static_cast<size_t>(mapped_));
    close(fd_);
    throw;
  }
}

KeptSteps::~KeptSteps() {
  munmap(memory_, static_cast<size_t>(mapped_));
  close(fd_);
}

KeptSteps::Header& KeptSteps::header() const { return *reinterpret_cast<Header*>(memory_); }

int64_t KeptSteps::row_size() const {
  int64_t size = 0;
  for (const int64_t bytes : layout_.row_bytes) size += bytes;
  return size;
}

// Header; the rows, tensor by tensor; the parts of even steps, of odd steps; the log.
int64_t KeptSteps::log_at() const {
  int64_t at = aligned(sizeof(Header)) + 2 * sum(layout_.parts);
  for (const int64_t bytes : layout_.row_bytes) at += aligned(layout_.rows * bytes);
  return at;
}

int64_t KeptSteps::size_with(int64_t log_rows) const {
  return log_at() + log_rows * (static_cast<int64_t>(sizeof(int64_t)) + row_size());
}

std::span<uint8_t> KeptSteps::rows(size_t tensor) const {
  int64_t at = aligned(sizeof(Header));
  for (size_t i = 0; i < tensor; ++i) at += aligned(layout_.rows * layout_.row_bytes[i]);
  return {memory_ + at, static_cast<size_t>(layout_.rows * layout_.row_bytes[tensor])};
}

std::span<uint8_t> KeptSteps::part(int64_t step, size_t index) const {
  int64_t at = log_at() - (step % 2 == 0 ? 2 : 1) * sum(layout_.parts);
  for (size_t i = 0; i < index; ++i) at += aligned(layout_.parts[i]);
  return {memory_ + at, static_cast<size_t>(layout_.parts[index])};
}

// The log: the numbers of its rows, then the rows, tensor by tensor.
int64_t* KeptSteps::logged_rows() const { return reinterpret_cast<int64_t*>(memory_ + log_at()); }

uint8_t* KeptSteps::logged(size_t tensor) const {
  const int64_t capacity = header().log_capacity;
  int64_t at = log_at() + capacity * static_cast<int64_t>(sizeof(int64_t));
  for (size_t i = 0; i < tensor; ++i) at += capacity * layout_.row_bytes[i];
  return memory_ + at;
}

void KeptSteps::map(int64_t size) {
  const auto bytes = static_cast<size_t>(size);
  void* const memory = memory_ == nullptr ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0)
                                          : mremap(memory_, static_cast<size_t>(mapped_), bytes, MREMAP_MAYMOVE);
  if (memory == MAP_FAILED) refuse(path_, errno);
  memory_ = static_cast<uint8_t*>(memory);
  mapped_ = size;
}

bool KeptSteps::is_intact() const {
  if (memory_ == nullptr || header().magic != kMagic) return false;
  const Header& found = header();
  if (found.identity_bytes != std::ssize(identity_) ||
      std::memcmp(found.identity.data(), identity_.data(), identity_.size()) != 0) {
    return false;
  }
  if (found.log_capacity < 0 || found.log_capacity > layout_.rows || mapped_ < size_with(found.log_capacity) ||
      found.log_rows < 0 || found.log_rows > found.log_capacity) {
    return false;
  }
  if (found.log_step == kNone) return true;
  const int64_t* const logged = logged_rows();
  return std::all_of(logged, logged + found.log_rows, [&](int64_t row) { return row >= 0 && row < layout_.rows; });
}

void KeptSteps::create() {
  if (memory_ != nullptr) munmap(memory_, static_cast<size_t>(mapped_));
  memory_ = nullptr;
  mapped_ = 0;
  if (ftruncate(fd_, 0) != 0) refuse(path_, errno);
  reserve(size_with(0));
  map(size_with(0));
  header().copy_step = kNone;
  header().log_step = kNone;
  header().identity_bytes = std::ssize(identity_);
  std::memcpy(header().identity.data(), identity_.data(), identity_.size());
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::atomic_ref(header().magic).store(kMagic, std::memory_order_seq_cst);
}

// Memory is allocated now: without it, a later write would end the process by SIGBUS. Beyond the limit of a container
// the kernel would end the process, and not refuse.
void KeptSteps::reserve(int64_t size) const {
  const auto available = available_memory();
  if (available && static_cast<uint64_t>(size - mapped_) > *available) refuse(path_, ENOMEM);
  int error = 0;
  do {
    error = posix_fallocate(fd_, 0, size);
  } while (error == EINTR);
  if (error != 0) refuse(path_, error);
}

std::vector<int64_t> KeptSteps::steps() const {
  std::vector<int64_t> steps;
  if (header().copy_step != kNone) steps.push_back(header().copy_step);
  if (header().log_step != kNone && header().log_step != header().copy_step) steps.push_back(header().log_step);
  return steps;
}

std::string KeptSteps::note(int64_t step) const {
  const Header::Note& note = header().notes[static_cast<size_t>(step % 2)];
  return {note.text.data(), static_cast<size_t>(std::clamp(note.bytes, int64_t{0}, kLongestNote))};
}

void KeptSteps::clear() {
  Header::set(header().log_step, kNone);
  Header::set(header().copy_step, kNone);
}

void KeptSteps::begin(int64_t step, std::span<const int64_t> rows) {
  if (header().copy_step != step - 1) throw std::logic_error("the newest step is not the one before");
  const auto count = std::ssize(rows);
  Header::set(header().log_step, kNone);
  if (count > header().log_capacity) {
    // A sample's size differs from step to step by about its square root.
    const int64_t capacity = std::min(layout_.rows, count + count / 16 + 64);
    reserve(size_with(capacity));
    map(size_with(capacity));
    Header::set(header().log_capacity, capacity);
  }

  std::memcpy(logged_rows(), rows.data(), rows.size_bytes());
  for (size_t i = 0; i < layout_.row_bytes.size(); ++i) {
    copy_rows(logged(i), nullptr, this->rows(i).data(), rows.data(), count, layout_.row_bytes[i]);
  }
  header().log_rows = count;
  Header::set(header().log_step, step - 1);
  Header::set(header().copy_step, kNone);
}

void KeptSteps::commit(int64_t step, const std::string& note) {
  if (std::ssize(note) > kLongestNote) throw std::logic_error("a note of a step is too long");
  Header::Note& to = header().notes[static_cast<size_t>(step % 2)];
  to.bytes = std::ssize(note);
  std::memcpy(to.text.data(), note.data(), note.size());
  Header::set(header().copy_step, step);
}

void KeptSteps::rewind(int64_t step) {
  if (header().copy_step == step) return;
  if (header().log_step != step) throw std::logic_error("a step that was not kept");
  Header::set(header().copy_step, kNone);
  const int64_t* const rows = logged_rows();
  for (size_t i = 0; i < layout_.row_bytes.size(); ++i) {
    copy_rows(this->rows(i).data(), rows, logged(i), nullptr, header().log_rows, layout_.row_bytes[i]);
  }
  Header::set(header().copy_step, step);
}

}  // namespace facetrain
