// The test framework: a CHECK that fails prints file, line and values, counts the failure, and continues. main returns
// TEST_RESULT().
#pragma once

#include <cmath>
#include <iostream>
#include <string>

namespace facetrain::test {

inline int failures = 0;

inline std::ostream& fail(const char* file, int line) {
  ++failures;
  return std::cerr << file << ":" << line << ": ";
}

}  // namespace facetrain::test

#undef CHECK  // c10's logging has macros of these names
#undef CHECK_EQ
#define CHECK(condition)                                                                     \
  do {                                                                                       \
    if (!(condition)) facetrain::test::fail(__FILE__, __LINE__) << #condition " is false\n"; \
  } while (false)

#define CHECK_EQ(actual, expected)                                                                                \
  do {                                                                                                            \
    const auto check_a = (actual);                                                                                \
    const decltype(check_a) check_e = (expected);                                                                 \
    if (!(check_a == check_e))                                                                                    \
      facetrain::test::fail(__FILE__, __LINE__) << #actual " is " << check_a << ", expected " << check_e << "\n"; \
  } while (false)

// |actual - expected| <= tolerance; NaN fails.
#define CHECK_NEAR(actual, expected, tolerance)                                                      \
  do {                                                                                               \
    const double check_a = (actual), check_e = (expected), check_t = (tolerance);                    \
    if (!(std::abs(check_a - check_e) <= check_t))                                                   \
      facetrain::test::fail(__FILE__, __LINE__)                                                      \
          << #actual " is " << check_a << ", expected " << check_e << " within " << check_t << "\n"; \
  } while (false)

// The expression throws an exception of `type` whose message contains `text`.
#define CHECK_THROWS(expression, type, text)                                              \
  do {                                                                                    \
    try {                                                                                 \
      expression;                                                                         \
      facetrain::test::fail(__FILE__, __LINE__) << #expression " did not throw\n";        \
    } catch (const type& check_x) {                                                       \
      if (std::string(check_x.what()).find(text) == std::string::npos)                    \
        facetrain::test::fail(__FILE__, __LINE__)                                         \
            << #expression " threw '" << check_x.what() << "', not '" << (text) << "'\n"; \
    }                                                                                     \
  } while (false)

#define TEST_RESULT() (facetrain::test::failures == 0 ? 0 : 1)
