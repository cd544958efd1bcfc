// Errors that a user can correct; main() prints them as one line and returns their exit code.
#pragma once

#include <stdexcept>

namespace vnet {

// The command line is wrong: exit code 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A file, a device or the inference failed: exit code 1.
struct DataError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace vnet
