// Where tensors lie in memory: stored layout, and one arena for all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "int7/kernels.h"
#include "int7/network.h"

namespace facetrain::int7 {

// The least multiple of `of` that is `value` or more.
inline int least_multiple(int value, int of) { return (value + of - 1) / of * of; }

// A tensor in memory: [top + height + bottom][left + width + right][pitch] of bytes. Around the picture is a border
// of integers 0 (bytes of `zero`), so that a convolution reads its padding without asking where it is. A real tensor is
// [height][width] [channels] of float32, without border and padding.
struct Stored {
  int width = 0, height = 0, channels = 0;
  int top = 0, left = 0, bottom = 0, right = 0;
  int pitch = 0;  // bytes from pixel to pixel: the channels, padded with zeros
  int zero = 0;   // the byte of the integer 0
  bool real = false;
  int64_t offset = 0;  // of the first byte, border included, in the arena

  int64_t row() const { return int64_t{left + width + right} * pitch; }
  int64_t bytes() const { return row() * (top + height + bottom); }
  // Of pixel (y, x), from -top and -left on.
  int64_t at(int y, int x) const { return offset + (y + top) * row() + int64_t{x + left} * pitch; }
  // Whether the pixels of all rows follow each other at the same distance.
  bool flat() const { return left == 0 && right == 0; }
};

// Pieces of memory that live from one step to another. Two may have the same place unless both live in some step.
class Arena {
 public:
  // `first` and `last` are steps, both included.
  int add(int64_t bytes, int first, int last);
  // Places all pieces, the largest first, each as low as it fits.
  void place();

  int64_t offset(int piece) const { return pieces_[piece].offset; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Piece {
    int64_t bytes, offset;
    int first, last;
  };
  std::vector<Piece> pieces_;
  int64_t bytes_ = 0;
};

// Layers that run as one step: a convolution or a layer without weights, and what follows in its epilogue. Indices of
// layers, -1 for none. Only the last result is stored, and the addition's if something else reads it.
struct Group {
  int head = -1;
  int first = -1, add = -1, last = -1;
  int middle = -1;  // the stored tensor of the addition
  int output = -1;  // tensor
};

// The groups in the order in which they run. A layer joins a group only if nothing else reads what it reads, and an
// addition only behind both of its inputs.
std::vector<Group> fuse(const Network& network);

}  // namespace facetrain::int7
