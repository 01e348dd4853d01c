// The command line of the benchmarks that are programs in C++: `--name value` or `--name=value`.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

namespace facetrain::bench {

// bench/ of the repository that has this program in native/build. Not a macro of the build: ccache could not use the
// object of another clone.
inline std::filesystem::path bench_folder() {
  return std::filesystem::canonical("/proc/self/exe").parent_path() / "../../bench";
}

struct Option {
  std::string name;
  std::string value;  // what stands for its value in the usage; empty: a flag, without a value
  std::string help;
};

class Arguments {
 public:
  // Ends the process with the usage: code 0 for --help, 2 for what is not an option.
  Arguments(int argc, char** argv, std::string usage, std::vector<Option> options)
      : usage_(std::move(usage)), options_(std::move(options)) {
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      if (argument == "--help" || argument == "-h") {
        std::fputs(help().c_str(), stdout);
        std::exit(0);
      }
      const size_t equals = argument.find('=');
      const std::string name = argument.rfind("--", 0) == 0 ? argument.substr(2, equals - 2) : "";
      const Option* option = find(name);
      if (option == nullptr) refuse(argument + ": no such option");
      if (option->value.empty()) {
        if (equals != std::string::npos) refuse("--" + name + " takes no value");
        values_[name] = "";
      } else if (equals != std::string::npos) {
        values_[name] = argument.substr(equals + 1);
      } else if (i + 1 < argc) {
        values_[name] = argv[++i];
      } else {
        refuse("--" + name + ": its value is missing");
      }
    }
  }

  bool has(const std::string& name) const { return values_.count(name) > 0; }

  std::string text(const std::string& name, const std::string& otherwise) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : found->second;
  }

  // Ends the process if the text is not an integer of at least `least`.
  int64_t integer(const std::string& name, int64_t otherwise, int64_t least = 1) const {
    return has(name) ? parsed<int64_t>(name, text(name, ""), least, "an integer") : otherwise;
  }

  double number(const std::string& name, double otherwise, double least = 0) const {
    return has(name) ? parsed<double>(name, text(name, ""), least, "a number") : otherwise;
  }

  // Numbers with commas between them.
  std::vector<double> numbers(const std::string& name, const std::vector<double>& otherwise) const {
    if (!has(name)) return otherwise;
    std::vector<double> numbers;
    for (const std::string& part : list(name, "")) numbers.push_back(parsed<double>(name, part, -1e300, "a number"));
    return numbers;
  }

  // Texts with commas between them.
  std::vector<std::string> list(const std::string& name, const std::string& otherwise) const {
    std::vector<std::string> parts;
    std::istringstream in(text(name, otherwise));
    for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
    return parts;
  }

  // Ends the process with this message and the usage.
  [[noreturn]] void refuse(const std::string& message) const {
    std::fprintf(stderr, "%s\n\n%s", message.c_str(), help().c_str());
    std::exit(2);
  }

 private:
  const Option* find(const std::string& name) const {
    for (const Option& option : options_) {
      if (option.name == name) return &option;
    }
    return nullptr;
  }

  template <class T>
  T parsed(const std::string& name, const std::string& value, T least, const char* kind) const {
    T number{};
    const char* end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc() || stop != end || !(number >= least)) {
      std::ostringstream message;
      message << "--" << name << ": " << value << "; allowed is " << kind;
      if (least > T(-1e18)) message << " of at least " << least;
      refuse(message.str());
    }
    return number;
  }

  std::string help() const {
    std::ostringstream out;
    out << usage_ << "\n";
    for (const Option& option : options_) {
      std::string left = "--" + option.name + (option.value.empty() ? "" : " " + option.value);
      left.resize(std::max<size_t>(left.size() + 1, 24), ' ');
      out << "  " << left << option.help << "\n";
    }
    return out.str();
  }

  std::string usage_;
  std::vector<Option> options_;
  std::map<std::string, std::string> values_;
};

}  // namespace facetrain::bench
