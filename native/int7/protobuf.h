// Reads protocol buffers from memory that is not trusted, without copying: fields one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "int7/invalid_model.h"

namespace facetrain::int7 {

class Protobuf {
 public:
  Protobuf(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  explicit Protobuf(std::string_view bytes) : Protobuf(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()) {}

  // Goes to the next field; false at the end. Throws InvalidModel if it does not fit the memory.
  bool next() {
    if (at_ == end_) return false;
    const uint64_t tag = varint();
    number_ = tag >> 3;
    type_ = static_cast<int>(tag & 7);
    if (type_ == 0) {
      value_ = varint();
    } else if (type_ == 1) {
      value_ = fixed(8);
    } else if (type_ == 5) {
      value_ = fixed(4);
    } else if (type_ == 2) {
      const uint64_t length = varint();
      if (length > static_cast<uint64_t>(end_ - at_)) damaged();
      bytes_ = {reinterpret_cast<const char*>(at_), static_cast<size_t>(length)};
      at_ += length;
    } else {
      damaged();
    }
    return true;
  }

  uint64_t number() const { return number_; }
  // Of a field of that wire type; another is damage.
  std::string_view bytes() const {
    if (type_ != 2) damaged();
    return bytes_;
  }
  int64_t integer() const {
    if (type_ != 0) damaged();
    return static_cast<int64_t>(value_);
  }
  float real() const {
    if (type_ != 5) damaged();
    const auto bits = static_cast<uint32_t>(value_);
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
  }
  // Calls add(value) for each number of a repeated field, which may be packed.
  template <typename Add>
  void integers(Add add) const {
    if (type_ == 0) return add(integer());
    Protobuf packed(bytes());
    while (packed.at_ != packed.end_) add(static_cast<int64_t>(packed.varint()));
  }
  template <typename Add>
  void reals(Add add) const {
    if (type_ == 5) return add(real());
    Protobuf packed(bytes());
    packed.type_ = 5;
    while (packed.at_ != packed.end_) {
      packed.value_ = packed.fixed(4);
      add(packed.real());
    }
  }

 private:
  [[noreturn]] static void damaged() { throw InvalidModel("damaged", "an ONNX model is wanted"); }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ == end_) damaged();
      const uint8_t byte = *at_++;
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    damaged();
  }
  uint64_t fixed(int size) {
    if (end_ - at_ < size) damaged();
    uint64_t value = 0;
    std::memcpy(&value, at_, size);
    at_ += size;
    return value;
  }

  const uint8_t *at_, *end_;
  uint64_t number_ = 0, value_ = 0;
  int type_ = 0;
  std::string_view bytes_;
};

}  // namespace facetrain::int7
