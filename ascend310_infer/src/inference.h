// Inference with one of the two runtimes: this project's own kernels (inference_native.cc, the
// program `main`) or MindSpore Lite (inference_lite.cc, the program `main_lite`).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "options.h"

namespace vnet {

struct Prediction {
  std::vector<float> values;
  double milliseconds;  // of the inference only
};

class Network {
 public:
  virtual ~Network() = default;

  // The sides of the network grid as a list in JSON, [X,Y,Z].
  std::string grid() const;

  // Throws DataError if the file does not have the size of the model's input.
  void check(const std::filesystem::path& volume) const;

  // Returns the output for a volume of float32. Throws DataError if the file cannot be read, if the
  // inference fails, or if a value of the output is not finite.
  Prediction run(const std::filesystem::path& volume);

 private:
  virtual std::vector<int64_t> input_shape() const = 0;
  virtual float* input() = 0;  // the host's memory of the input
  // Computes the output of the input. Throws DataError that names the volume.
  virtual std::vector<float> compute(const std::filesystem::path& volume) = 0;

  size_t input_bytes() const;
};

// Continues in another program, with its arguments, if the options ask for the other runtime.
// Throws UsageError, or DataError if that program is missing.
void enter_runtime(const Options& options, char** arguments);

// Loads the model. Throws DataError if it cannot run on the device, or does not have exactly one
// input and one output, both float32.
std::unique_ptr<Network> load_network(const Options& options);

// Throws DataError unless it is a file.
void require_model_file(const std::filesystem::path& model);

}  // namespace vnet
