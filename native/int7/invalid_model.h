// Why a model is refused, in the two parts of a message.
#pragma once

#include <stdexcept>
#include <string>

namespace facetrain::int7 {

// what(): "<found>; <wanted>". The caller knows the file's name.
struct InvalidModel : std::invalid_argument {
  InvalidModel(const std::string& found, const std::string& wanted)
      : std::invalid_argument(found + "; " + wanted), found(found), wanted(wanted) {}

  const std::string found, wanted;
};

// It takes more memory than it may.
struct ModelTooLarge : InvalidModel {
  using InvalidModel::InvalidModel;
};

}  // namespace facetrain::int7
