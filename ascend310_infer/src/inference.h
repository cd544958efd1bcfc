// Inference with MindSpore Lite.
#pragma once

#include <include/api/model.h>

#include <cstddef>
#include <filesystem>
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
  // Throws DataError if the model cannot run on the device, or does not have exactly one input and
  // one output, both float32.
  explicit Network(const Options& options);

  // Throws DataError if the file does not have the size of the model's input.
  void check(const std::filesystem::path& volume) const;

  // Returns the output for a volume of float32. Throws DataError if the file cannot be read, if the
  // inference fails, or if a value of the output is not finite.
  Prediction run(const std::filesystem::path& volume);

 private:
  mindspore::Model model_;
  std::vector<mindspore::MSTensor> inputs_;
};

}  // namespace vnet
