// Numbers of things in messages; api/src/counted.ts is the same in TypeScript.
#pragma once

#include <cstdint>
#include <string>

namespace facetrain {

// 1 label, 2 labels, 0 classes, 2 identities. `noun` is the singular.
inline std::string counted(int64_t count, const std::string& noun) {
  std::string words = std::to_string(count) + " " + noun;
  if (count == 1) return words;
  if (noun.back() == 'y') return words.replace(words.size() - 1, 1, "ies");
  return words + (noun.back() == 's' || noun.back() == 'x' ? "es" : "s");
}

}  // namespace facetrain
