// A model in MindSpore Lite.
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
  double milliseconds;  // of the inference alone
};

class Network {
 public:
  // Throws DataError where the model can't be run on the device, or has other than one input and
  // one output of float32.
  explicit Network(const Options& options);

  // Throws DataError where the file has not the size of the model's input.
  void check(const std::filesystem::path& volume) const;

  // Throws DataError also where a value is not finite.
  Prediction run(const std::filesystem::path& volume);

 private:
  mindspore::Model model_;
  std::vector<mindspore::MSTensor> inputs_;
};

}  // namespace vnet
