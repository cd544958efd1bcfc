// Inference with this project's own kernels.
#include <unistd.h>
#include <vnet_cpu.h>

#include <cerrno>
#include <system_error>

#include "errors.h"
#include "inference.h"

namespace vnet {
namespace fs = std::filesystem;
namespace {

class NativeNetwork : public Network {
 public:
  explicit NativeNetwork(const Options& options)
      : model_(vnet_load(options.mindir_path.c_str(), options.threads.value_or(0)), vnet_free) {
    if (model_ == nullptr) throw DataError(vnet_error());
    vnet_grid(model_.get(), sides_);
    volume_.resize(static_cast<size_t>(sides_[0]) * static_cast<size_t>(sides_[1]) *
                   static_cast<size_t>(sides_[2]));
  }

 private:
  std::vector<int64_t> input_shape() const override {
    return {1, 1, sides_[0], sides_[1], sides_[2]};
  }
  float* input() override { return volume_.data(); }
  std::vector<float> compute(const fs::path& volume) override {
    std::vector<float> probability(volume_.size());
    if (vnet_run(model_.get(), volume_.data(), probability.data()) != 0)
      throw DataError(volume.string() + ": inference fails (" + vnet_error() + ")");
    return probability;
  }

  std::unique_ptr<vnet_model, decltype(&vnet_free)> model_;
  int sides_[3] = {};
  std::vector<float> volume_;
};

}  // namespace

void enter_runtime(const Options& options, char** arguments) {
  if (options.runtime() == Runtime::kNative) return;
  std::error_code ignored;
  const fs::path program =
      fs::read_symlink("/proc/self/exe", ignored).replace_filename("main_lite");
  execv(program.c_str(), arguments);
  throw DataError(program.string() + ": cannot be started (" +
                  std::generic_category().message(errno) +
                  "), expected it for an Ascend device and --runtime lite: build it, bash "
                  "ascend310_infer/build.sh --runtime lite");
}

std::unique_ptr<Network> load_network(const Options& options) {
  require_model_file(options.mindir_path);
  if (options.mindir_path.extension() == ".mindir")
    throw DataError(options.mindir_path.string() +
                    ": is a MindIR file, expected NAME.vnet, which export.py writes beside it, "
                    "or --runtime lite");
  return std::make_unique<NativeNetwork>(options);
}

}  // namespace vnet
