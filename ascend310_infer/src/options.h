// The command line.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace vnet {

enum class Device { kAscend, kCpu };
enum class Runtime { kNative, kLite };
enum class Precision { kFp32, kFp16 };

struct Options {
  std::filesystem::path mindir_path;
  std::filesystem::path dataset_path = "./results/bin_data";
  std::filesystem::path output_path = "./result_Files";
  Device device = Device::kAscend;
  int device_id = 0;
  std::optional<Runtime> chosen_runtime;
  std::optional<int> threads;          // on a CPU; default: all cores this process may use
  std::optional<Precision> precision;  // default: the runtime's

  // An Ascend device has MindSpore Lite only.
  Runtime runtime() const {
    return chosen_runtime.value_or(device == Device::kCpu ? Runtime::kNative : Runtime::kLite);
  }
};

extern const char* const kHelp;

// Returns no value if the user asks for help. Throws UsageError.
std::optional<Options> parse_options(const std::vector<std::string>& arguments);

}  // namespace vnet
