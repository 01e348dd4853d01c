// Changes a protocol buffer so that it stays one: generic mutations of bytes break a length, and few get behind the
// parser. Nothing is known of ONNX but some words: a field of bytes that can be read as a message is taken for one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace facetrain::int7::testing {

struct Field {
  uint64_t number = 0;
  int type = 0;                 // 0: varint, 1: 8 bytes, 2: bytes or a message, 5: 4 bytes
  uint64_t value = 0;           // of a varint
  std::string bytes;            // of the others
  std::vector<Field> children;  // of a message; else none
};

inline bool read_varint(const std::string& text, size_t& at, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64 && at < text.size(); shift += 7) {
    const auto byte = static_cast<uint8_t>(text[at++]);
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 128) return true;
  }
  return false;
}

// Returns false where `text` is no message.
inline bool read_fields(const std::string& text, std::vector<Field>& fields, int depth = 0) {
  for (size_t at = 0; at < text.size();) {
    Field field;
    uint64_t key;
    if (!read_varint(text, at, key) || key >> 3 == 0 || key >> 3 > 100) return false;
    field.number = key >> 3;
    field.type = static_cast<int>(key & 7);
    uint64_t length = field.type == 1 ? 8 : 4;
    if (field.type == 0) {
      if (!read_varint(text, at, field.value)) return false;
    } else if (field.type == 1 || field.type == 2 || field.type == 5) {
      if (field.type == 2 && !read_varint(text, at, length)) return false;
      if (length > text.size() - at) return false;
      field.bytes = text.substr(at, length);
      at += length;
      if (field.type == 2 && depth < 8 && !read_fields(field.bytes, field.children, depth + 1)) field.children.clear();
    } else {
      return false;
    }
    fields.push_back(std::move(field));
  }
  return true;
}

inline void write_varint(std::string& text, uint64_t value) {
  for (; value > 127; value >>= 7) text += static_cast<char>(value | 128);
  text += static_cast<char>(value);
}

inline std::string written(const std::vector<Field>& fields) {
  std::string text;
  for (const Field& field : fields) {
    write_varint(text, field.number << 3 | static_cast<uint64_t>(field.type));
    if (field.type == 0) {
      write_varint(text, field.value);
      continue;
    }
    const std::string bytes = field.children.empty() ? field.bytes : written(field.children);
    if (field.type == 2) write_varint(text, bytes.size());
    text += bytes;
  }
  return text;
}

using Source = std::minstd_rand;

inline uint64_t below(Source& source, uint64_t count) { return source() % count; }

inline uint64_t odd_number(Source& source, uint64_t before) {
  switch (below(source, 6)) {
    case 0:
      return before + 1;
    case 1:
      return before - 1;
    case 2:
      return below(source, 16);
    case 3:
      return uint64_t{1} << below(source, 64);
    case 4:
      return (uint64_t{1} << below(source, 64)) - 1;
    default:
      return ~below(source, 16);  // a small negative number
  }
}

inline void change_bytes(std::string& bytes, Source& source) {
  static const uint32_t floats[] = {0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x7F7FFFFF, 0x3F800000};
  const size_t at = bytes.empty() ? 0 : below(source, bytes.size());
  switch (below(source, 6)) {
    case 0:
      if (!bytes.empty()) bytes[at] = static_cast<char>(source());
      break;
    case 1:
      bytes.insert(at, 1 + below(source, 8), static_cast<char>(source()));
      break;
    case 2:
      bytes.erase(at, 1 + below(source, 8));
      break;
    case 3:  // a number of four bytes
      if (bytes.size() >= 4) {
        const uint32_t value = floats[below(source, std::size(floats))];
        bytes.replace(at & ~size_t{3}, 4, reinterpret_cast<const char*>(&value), 4);
      }
      break;
    case 4:  // a number of eight bytes
      if (bytes.size() >= 8) {
        const uint64_t value = odd_number(source, 0);
        bytes.replace(at & ~size_t{7}, 8, reinterpret_cast<const char*>(&value), 8);
      }
      break;
    default:
      bytes.clear();
  }
}

// Words that the reader knows: operators, their attributes, and values of these.
inline const std::string& known_word(Source& source) {
  static const std::vector<std::string> words = {"Abs",
                                                 "Add",
                                                 "AveragePool",
                                                 "BatchNormalization",
                                                 "Cast",
                                                 "Ceil",
                                                 "Clip",
                                                 "Concat",
                                                 "Conv",
                                                 "ConvTranspose",
                                                 "DepthToSpace",
                                                 "DequantizeLinear",
                                                 "Div",
                                                 "Elu",
                                                 "Erf",
                                                 "Exp",
                                                 "Expand",
                                                 "Flatten",
                                                 "Floor",
                                                 "Gather",
                                                 "Gemm",
                                                 "GlobalAveragePool",
                                                 "HardSigmoid",
                                                 "HardSwish",
                                                 "Identity",
                                                 "LRN",
                                                 "LayerNormalization",
                                                 "LeakyRelu",
                                                 "Log",
                                                 "LpPool",
                                                 "MatMul",
                                                 "Max",
                                                 "MaxPool",
                                                 "Min",
                                                 "Mul",
                                                 "Neg",
                                                 "PRelu",
                                                 "Pad",
                                                 "Pow",
                                                 "QuantizeLinear",
                                                 "Reciprocal",
                                                 "ReduceL2",
                                                 "ReduceMax",
                                                 "ReduceMean",
                                                 "ReduceMin",
                                                 "ReduceSum",
                                                 "Relu",
                                                 "Reshape",
                                                 "Resize",
                                                 "Round",
                                                 "Sigmoid",
                                                 "Sign",
                                                 "Slice",
                                                 "Softmax",
                                                 "Softplus",
                                                 "Split",
                                                 "Sqrt",
                                                 "Squeeze",
                                                 "Sub",
                                                 "Sum",
                                                 "Tanh",
                                                 "ThresholdedRelu",
                                                 "Tile",
                                                 "Transpose",
                                                 "Unsqueeze",
                                                 "alpha",
                                                 "auto_pad",
                                                 "axes",
                                                 "axis",
                                                 "beta",
                                                 "blocksize",
                                                 "ceil_mode",
                                                 "count_include_pad",
                                                 "dilations",
                                                 "epsilon",
                                                 "group",
                                                 "keepdims",
                                                 "kernel_shape",
                                                 "max",
                                                 "min",
                                                 "mode",
                                                 "output_padding",
                                                 "pads",
                                                 "perm",
                                                 "scales",
                                                 "starts",
                                                 "steps",
                                                 "strides",
                                                 "to",
                                                 "transA",
                                                 "transB",
                                                 "value",
                                                 "NOTSET",
                                                 "SAME_UPPER",
                                                 "asymmetric",
                                                 "constant",
                                                 "edge",
                                                 "half_pixel",
                                                 "linear",
                                                 "nearest",
                                                 "reflect",
                                                 ""};
  return words[below(source, words.size())];
}

// All fields below, in the order of the file.
inline void list(std::vector<Field>& fields, std::vector<std::pair<std::vector<Field>*, size_t>>& all) {
  for (size_t i = 0; i < fields.size(); ++i) {
    all.emplace_back(&fields, i);
    list(fields[i].children, all);
  }
}

// `text` after one to four changes; where it is no message, after changes of single bytes.
inline std::string mutated(std::string text, Source& source) {
  std::vector<Field> fields;
  const bool message = read_fields(text, fields) && !fields.empty();
  for (uint64_t change = below(source, 4) + 1; change > 0; --change) {
    if (!message) {
      change_bytes(text, source);
      continue;
    }
    std::vector<std::pair<std::vector<Field>*, size_t>> all;
    list(fields, all);
    if (all.empty()) break;
    const auto [owner, index] = all[below(source, all.size())];
    const auto [other, other_index] = all[below(source, all.size())];
    Field& field = (*owner)[index];
    switch (below(source, 8)) {
      case 0:
        owner->erase(owner->begin() + static_cast<std::ptrdiff_t>(index));
        break;
      case 1: {
        const Field copy = field;
        owner->insert(owner->begin() + static_cast<std::ptrdiff_t>(below(source, owner->size() + 1)), copy);
        break;
      }
      case 2: {  // another field's contents, where they may have the same meaning
        const Field copy = (*other)[other_index];
        if (copy.type == field.type) {
          field.value = copy.value;
          field.bytes = copy.bytes;
          if (copy.number == field.number) field.children = copy.children;
        }
        break;
      }
      case 3: {  // another field beside this one
        const Field copy = (*other)[other_index];
        owner->insert(owner->begin() + static_cast<std::ptrdiff_t>(index), copy);
        break;
      }
      case 4:
        field.number = 1 + below(source, 20);
        break;
      default:
        if (field.type == 0) {
          field.value = odd_number(source, field.value);
        } else if (field.type == 2 && field.children.empty() && field.bytes.size() < 20 && below(source, 2) == 0) {
          field.bytes = known_word(source);
        } else if (field.children.empty()) {
          change_bytes(field.bytes, source);
          if (field.type != 2) field.bytes.resize(field.type == 1 ? 8 : 4);
        }
    }
  }
  return message ? written(fields) : text;
}

}  // namespace facetrain::int7::testing
