#include "options.h"

#include <charconv>
#include <map>
#include <utility>

#include "errors.h"

namespace vnet {
namespace {

UsageError unexpected(const std::string& flag, const std::string& found,
                      const std::string& expected) {
  return UsageError(flag + ": found " + found + ", expected " + expected);
}

int number(const std::string& flag, const std::string& value, int minimum, int maximum) {
  int result = 0;
  const char* const end = value.data() + value.size();
  const auto [stop, error] = std::from_chars(value.data(), end, result);
  if (error != std::errc() || stop != end || result < minimum || result > maximum)
    throw unexpected(
        flag, "'" + value + "'",
        "a whole number from " + std::to_string(minimum) + " to " + std::to_string(maximum));
  return result;
}

template <typename Choice>
Choice choice(const std::string& flag, const std::string& value,
              const std::pair<const char*, Choice>& first,
              const std::pair<const char*, Choice>& second) {
  if (value == first.first) return first.second;
  if (value == second.first) return second.second;
  throw unexpected(flag, "'" + value + "'", std::string(first.first) + " or " + second.first);
}

using Setter = void (*)(Options&, const std::string& flag, const std::string& value);

const std::map<std::string, Setter> kSetters = {
    {"--mindir_path", [](Options& options, auto&, auto& value) { options.mindir_path = value; }},
    {"--dataset_path", [](Options& options, auto&, auto& value) { options.dataset_path = value; }},
    {"--output_path", [](Options& options, auto&, auto& value) { options.output_path = value; }},
    {"--device_type",
     [](Options& options, auto& flag, auto& value) {
       options.device =
           choice<Device>(flag, value, {"Ascend", Device::kAscend}, {"CPU", Device::kCpu});
     }},
    {"--runtime",
     [](Options& options, auto& flag, auto& value) {
       options.chosen_runtime =
           choice<Runtime>(flag, value, {"native", Runtime::kNative}, {"lite", Runtime::kLite});
     }},
    {"--device_id", [](Options& options, auto& flag,
                       auto& value) { options.device_id = number(flag, value, 0, 1023); }},
    {"--threads", [](Options& options, auto& flag,
                     auto& value) { options.threads = number(flag, value, 1, 1024); }},
    {"--precision",
     [](Options& options, auto& flag, auto& value) {
       options.precision =
           choice<Precision>(flag, value, {"fp32", Precision::kFp32}, {"fp16", Precision::kFp16});
     }},
};

void check_together(const Options& options) {
  if (options.mindir_path.empty()) throw unexpected("--mindir_path", "nothing", "the model's file");
  if (options.device == Device::kAscend && options.runtime() == Runtime::kNative)
    throw unexpected("--runtime", "native with --device_type Ascend", "lite, or CPU");
  if (options.device == Device::kAscend && options.threads)
    throw unexpected("--threads", "it with --device_type Ascend", "it with CPU only");
  // MindSpore Lite accepts fp16 on a processor that has none and computes in fp32 all the same.
  if (options.device == Device::kCpu && options.precision == Precision::kFp16)
    throw unexpected("--precision", "fp16 with --device_type CPU", "fp32, or Ascend");
}

}  // namespace

const char* const kHelp =
    R"(Runs a V-Net over the volumes that preprocess.py wrote.
  --mindir_path FILE         model that export.py wrote (required): NAME.vnet, or for an Ascend
                             device and --runtime lite NAME_lite.mindir
  --dataset_path FOLDER      with NAME.bin volumes of float32 (default: ./results/bin_data)
  --output_path FOLDER       gets NAME_0.bin of each (default: ./result_Files)
  --device_type Ascend|CPU   device that computes (default: Ascend)
  --runtime native|lite      of a CPU: this project's kernels or MindSpore Lite (default: native)
  --device_id N              number of the Ascend device (default: 0)
  --threads N                of the CPU (default: one for each core that this process may use)
  --precision fp32|fp16      CPU: fp32; Ascend: fp16, or fp32 for the operators that have it
                             (default: what MindSpore Lite chooses; CPU: fp32)
./time_Result/test_perform_static.txt gets the average time of an inference. Standard output has
the progress and MindSpore Lite's log, standard error one line where something fails.
)";

std::optional<Options> parse_options(const std::vector<std::string>& arguments) {
  Options options;
  for (auto argument = arguments.begin(); argument != arguments.end(); ++argument) {
    if (*argument == "--help" || *argument == "-h") return std::nullopt;
    const size_t equals = argument->find('=');
    const std::string flag = argument->substr(0, equals);
    const auto setter = kSetters.find(flag);
    if (setter == kSetters.end())
      throw unexpected(flag, "an unknown flag", "one of those that --help lists");

    std::string value;
    if (equals != std::string::npos)
      value = argument->substr(equals + 1);
    else if (argument + 1 != arguments.end() && (argument + 1)->rfind("--", 0) != 0)
      value = *++argument;
    if (value.empty()) throw unexpected(flag, "no value", flag + "=VALUE or " + flag + " VALUE");
    setter->second(options, flag, value);
  }
  check_together(options);
  return options;
}

}  // namespace vnet
