#include "inference.h"

#include <include/api/context.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <memory>
#include <thread>

#include "errors.h"
#include "volume_files.h"

namespace vnet {
namespace fs = std::filesystem;
namespace {

int available_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::shared_ptr<mindspore::Context> make_context(const Options& options) {
  auto context = std::make_shared<mindspore::Context>();
  if (options.device == Device::kCpu) {
    context->SetThreadNum(options.threads.value_or(available_cores()));
    context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
    return context;
  }
  auto ascend = std::make_shared<mindspore::AscendDeviceInfo>();
  ascend->SetDeviceID(static_cast<uint32_t>(options.device_id));
  // Not "enforce_fp32": some chips have no convolution in fp32, and the model would fail to build.
  if (options.precision)
    ascend->SetPrecisionMode(options.precision == Precision::kFp32 ? "preferred_fp32"
                                                                   : "enforce_fp16");
  context->MutableDeviceInfo().push_back(ascend);
  return context;
}

// Calls the runtime. Returns its error or exception as one line, or an empty string on success.
template <typename Call>
std::string failure(const Call& call) {
  std::string reason;
  try {
    const mindspore::Status status = call();
    if (status.IsOk()) return "";
    reason = status.ToString();
  } catch (const std::exception& error) {
    reason = error.what();
  }
  return "MindSpore Lite: " + reason.substr(0, reason.find('\n'));
}

void require_one_float32(const std::vector<mindspore::MSTensor>& tensors, const std::string& kind,
                         const fs::path& model) {
  std::string found = std::to_string(tensors.size());
  if (tensors.size() == 1) {
    const auto type = tensors[0].DataType();
    if (type == mindspore::DataType::kNumberTypeFloat32) return;
    found = "one of data type " + std::to_string(static_cast<int>(type));
  }
  throw DataError(model.string() + ": " + kind + "s: found " + found +
                  ", expected one of float32: give a V-Net that export.py wrote");
}

}  // namespace

Network::Network(const Options& options) {
  const fs::path& model = options.mindir_path;
  if (!fs::is_regular_file(model))
    throw DataError(model.string() + ": is no file, expected a model: export.py writes it");
  const std::string reason = failure(
      [&] { return model_.Build(model.string(), mindspore::kMindIR, make_context(options)); });
  if (!reason.empty())
    throw DataError(
        model.string() + ": can't be built (" + reason + "), expected " +
        (options.device == Device::kCpu
             ? "2-D operators and MindIR version 1, which export.py writes as NAME_lite.mindir"
             : "a model, driver and CANN libraries (LD_LIBRARY_PATH) that fit the Ascend device, "
               "or "
               "--device_type CPU") +
        ": the runtime's log on standard output says more");
  inputs_ = model_.GetInputs();
  require_one_float32(inputs_, "input", model);
  require_one_float32(model_.GetOutputs(), "output", model);
}

void Network::check(const fs::path& volume) const {
  const size_t found = size_bytes(volume);
  const mindspore::MSTensor& input = inputs_[0];
  if (found == input.DataSize()) return;
  std::string shape;
  for (const int64_t side : input.Shape())
    shape += (shape.empty() ? "" : ", ") + std::to_string(side);
  throw DataError(volume.string() + ": has " + std::to_string(found) + " bytes, expected " +
                  std::to_string(input.DataSize()) + ", the model's float32 input (" + shape +
                  "): prepare it for this model, preprocess.py --mindir_path MODEL");
}

Prediction Network::run(const fs::path& volume) {
  read_file(volume, inputs_[0].MutableData(), inputs_[0].DataSize());
  std::vector<mindspore::MSTensor> outputs;
  const auto start = std::chrono::steady_clock::now();
  const std::string reason = failure([&] { return model_.Predict(inputs_, &outputs); });
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  if (!reason.empty())
    throw DataError(volume.string() + ": inference fails (" + reason +
                    "): the runtime's log on standard output says more");

  require_one_float32(outputs, "output", volume);
  const std::shared_ptr<const void> data = outputs[0].Data();  // on the host
  if (data == nullptr)
    throw DataError(volume.string() + ": its output can't be fetched from the device: try again");
  const auto* values = static_cast<const float*>(data.get());
  Prediction prediction{{values, values + outputs[0].ElementNum()}, time.count()};
  if (!std::all_of(prediction.values.begin(), prediction.values.end(),
                   [](float value) { return std::isfinite(value); }))
    throw DataError(volume.string() + ": its output has NaN or infinite values, expected finite " +
                    "ones: check the volume, and try --precision fp32 where it was fp16");
  return prediction;
}

}  // namespace vnet
