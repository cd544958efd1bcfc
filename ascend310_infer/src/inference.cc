#include "inference.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <system_error>

#include "errors.h"
#include "volume_files.h"

namespace vnet {
namespace fs = std::filesystem;

size_t Network::input_bytes() const {
  size_t bytes = sizeof(float);
  for (const int64_t side : input_shape()) bytes *= static_cast<size_t>(side);
  return bytes;
}

std::string Network::grid() const {
  std::string sides;
  const auto shape = input_shape();
  for (size_t axis = 2; axis < shape.size(); ++axis)
    sides += (sides.empty() ? "" : ",") + std::to_string(shape[axis]);
  return "[" + sides + "]";
}

void Network::check(const fs::path& volume) const {
  const size_t found = size_bytes(volume);
  if (found == input_bytes()) return;
  std::string shape;
  for (const int64_t side : input_shape())
    shape += (shape.empty() ? "" : ", ") + std::to_string(side);
  throw DataError(volume.string() + ": has " + std::to_string(found) + " bytes, expected " +
                  std::to_string(input_bytes()) + ", the model's float32 input (" + shape +
                  "): prepare it for this model, preprocess.py --mindir_path MODEL");
}

Prediction Network::run(const fs::path& volume) {
  read_file(volume, input(), input_bytes());
  const auto start = std::chrono::steady_clock::now();
  Prediction prediction{compute(volume), 0};
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  prediction.milliseconds = time.count();
  if (!std::all_of(prediction.values.begin(), prediction.values.end(),
                   [](float value) { return std::isfinite(value); }))
    throw DataError(volume.string() + ": its output has NaN or infinite values, expected finite " +
                    "ones: check the volume, and try --precision fp32 where it was fp16");
  return prediction;
}

void require_model_file(const fs::path& model) {
  std::error_code ignored;
  if (!fs::is_regular_file(model, ignored))
    throw DataError(model.string() + ": is no file, expected a model: export.py writes it");
}

}  // namespace vnet
