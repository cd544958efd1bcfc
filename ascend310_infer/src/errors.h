// What can go wrong in a user's hands; main() turns these into one line and an exit code.
#pragma once

#include <stdexcept>

namespace vnet {

// The command line is wrong: exit code 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A file, a device or a run is at fault: exit code 1.
struct DataError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace vnet
