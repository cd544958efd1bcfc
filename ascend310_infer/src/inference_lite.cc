// Inference with MindSpore Lite.
#include <include/api/context.h>
#include <include/api/model.h>
#include <sched.h>

#include <algorithm>
#include <exception>
#include <string>
#include <thread>

#include "errors.h"
#include "inference.h"

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
  } catch (...) {
    reason = "unknown error";
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

class LiteNetwork : public Network {
 public:
  explicit LiteNetwork(const Options& options);

 private:
  std::vector<int64_t> input_shape() const override { return inputs_[0].Shape(); }
  float* input() override {
    void* const data = inputs_[0].MutableData();
    if (data == nullptr)
      throw DataError(
          "MindSpore Lite has no memory for the input: a model of a smaller grid needs less");
    return static_cast<float*>(data);
  }
  std::vector<float> compute(const fs::path& volume) override;

  mindspore::Model model_;
  std::vector<mindspore::MSTensor> inputs_;
};

LiteNetwork::LiteNetwork(const Options& options) {
  const fs::path& model = options.mindir_path;
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

std::vector<float> LiteNetwork::compute(const fs::path& volume) {
  std::vector<mindspore::MSTensor> outputs;
  const std::string reason = failure([&] { return model_.Predict(inputs_, &outputs); });
  if (!reason.empty())
    throw DataError(volume.string() + ": inference fails (" + reason +
                    "): the runtime's log on standard output says more");
  require_one_float32(outputs, "output", volume);
  const std::shared_ptr<const void> data = outputs[0].Data();  // on the host
  if (data == nullptr)
    throw DataError(volume.string() + ": its output can't be fetched from the device: try again");
  const auto* values = static_cast<const float*>(data.get());
  return {values, values + outputs[0].ElementNum()};
}

}  // namespace

void enter_runtime(const Options& options, char**) {
  if (options.chosen_runtime == Runtime::kNative)
    throw UsageError("--runtime: found native, expected lite: the program main has the other");
}

std::unique_ptr<Network> load_network(const Options& options) {
  require_model_file(options.mindir_path);
  if (options.mindir_path.extension() == ".vnet")
    throw DataError(options.mindir_path.string() +
                    ": is a weight file, expected NAME_lite.mindir, which export.py writes beside "
                    "it, or --device_type CPU without --runtime lite");
  return std::make_unique<LiteNetwork>(options);
}

}  // namespace vnet
