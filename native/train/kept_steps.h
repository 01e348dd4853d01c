// The state of a training after its last two steps, in a file in memory (tmpfs) that outlives the process: a rank that
// is started again on the same machine goes on from there.
//
// A rank that has done step t knows that every rank has kept step t - 1, as each took part in step t. So the newest
// steps of the ranks differ by one at most, and they can agree on one if each can give its last two back. The file has
//
//   - one copy of the class centres, with what their optimizer keeps: the rows of step t;
//   - a log of the rows that step t has changed, as they were before: with it the copy is that of step t - 1;
//   - two places, used by turns, for what each step changes as a whole: the backbone's part, and a note.
//
// A second copy of the class centres would need more memory than the log, and each step would write the rows of the
// last two steps to it.
//
// SIGKILL may end the process between any two instructions. So two marks in the file say what is whole: copy_step, of
// the copy, and log_step, to which the log leads back. The copy is changed only while log_step is valid, the log only
// while copy_step is. Nothing is flushed to a disk: the kernel has the pages when the process has ended. They do not
// outlive the machine.
//
// There is no digest of the content, which would be computed anew in each step. The file is trusted as the process's
// own memory is; what a file of another training, or of another version, would be taken for is ruled out by `identity`.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace facetrain {

struct KeptLayout {
  std::string identity;            // of the training and this rank; a file with another one is made anew
  int64_t rows;                    // of this rank
  std::vector<int64_t> row_bytes;  // of a row, for each tensor of the class centres
  std::vector<int64_t> parts;      // bytes of what each step changes as a whole
};

// Copies `count` rows of `bytes` each: number i from row from_rows[i] to row to_rows[i]. Null: row i.
void copy_rows(uint8_t* to, const int64_t* to_rows, const uint8_t* from, const int64_t* from_rows, int64_t count,
               int64_t bytes);

class KeptSteps {
 public:
  static constexpr int64_t kLongestNote = 16384, kLongestIdentity = 2048;  // bytes

  // Opens the file, or makes it. Throws Error(StorageFailed), also while another process has it open, and
  // Error(DiskFull) when the file system has no room.
  KeptSteps(std::string path, KeptLayout layout);
  ~KeptSteps();
  KeptSteps(const KeptSteps&) = delete;
  KeptSteps& operator=(const KeptSteps&) = delete;

  // The steps that can be given back, at most two, the newest first.
  std::vector<int64_t> steps() const;
  // Of one of them.
  std::string note(int64_t step) const;

  // Forgets all steps. The caller then writes all rows, and the parts of a step, and calls commit.
  void clear();
  // The state of `step` is about to replace that of step - 1, which must be the newest. Saves these rows, each of
  // which is named once, in the log. The caller then writes them, and the parts of the step, and calls commit. Throws
  // Error(DiskFull) when the log has no room: step - 1 can still be given back.
  void begin(int64_t step, std::span<const int64_t> rows);
  void commit(int64_t step, const std::string& note);
  // Makes the rows those of `step`, one of steps(). It is the newest then.
  void rewind(int64_t step);

  // All rows of a tensor of the class centres: between clear() or begin() and commit() to be written.
  std::span<uint8_t> rows(size_t tensor) const;
  // Of one of the last two steps, or the one that is about to follow.
  std::span<uint8_t> part(int64_t step, size_t index) const;

 private:
  struct Header;

  Header& header() const;
  int64_t row_size() const;                   // bytes of a row in all tensors
  int64_t log_at() const;                     // where the log begins
  int64_t size_with(int64_t log_rows) const;  // of the file
  uint8_t* logged(size_t tensor) const;
  int64_t* logged_rows() const;
  void map(int64_t size);
  bool is_intact() const;
  void create();
  void reserve(int64_t size) const;

  const std::string path_;
  const KeptLayout layout_;
  const std::string identity_;  // with that of the layout
  int fd_ = -1;
  uint8_t* memory_ = nullptr;
  int64_t mapped_ = 0;
};

}  // namespace facetrain
