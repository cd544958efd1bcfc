// The C interface of vnet_cpu.h.
#include "vnet_cpu.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "network.h"
#include "weight_file.h"

#define VNET_EXPORT extern "C" __attribute__((visibility("default")))

struct vnet_model {
  vnet_model(const char* path, int threads)
      : runtime(threads), file(path, runtime.pool), network(file.description(), file.shape()) {}

  fast_conv3d::Runtime runtime;
  fast_conv3d::weight_file::File file;
  fast_conv3d::Network network;
  std::mutex mutex;
};

namespace {

constexpr int kMaxThreads = 1024;
thread_local char message[4096] = "";

void set_message(const char* text) { std::snprintf(message, sizeof message, "%s", text); }

// Calls work(). Returns whether it succeeded, else with its exception as the message.
template <typename Work>
bool attempt(const Work& work) {
  try {
    work();
    return true;
  } catch (const std::bad_alloc&) {
    set_message("out of memory: a model of a smaller grid or width needs less");
  } catch (const std::system_error& error) {
    std::snprintf(message, sizeof message,
                  "cannot start a thread (%s): use fewer, or raise the limit (ulimit -u)",
                  error.what());
  } catch (const std::exception& error) {
    set_message(error.what());
  } catch (...) {
    set_message("unknown error");
  }
  return false;
}

int available_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Whether this processor has the instructions that the library was compiled for.
bool processor_fits() {
#if defined(__AVX512F__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx512f")) return false;
#endif
#if defined(__AVX512VL__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx512vl")) return false;
#endif
#if defined(__AVX512DQ__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx512dq")) return false;
#endif
#if defined(__AVX512BW__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx512bw")) return false;
#endif
#if defined(__AVX2__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2")) return false;
#endif
#if defined(__FMA__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("fma")) return false;
#endif
#if defined(__BMI2__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("bmi2")) return false;
#endif
  return true;
}

}  // namespace

VNET_EXPORT vnet_model* vnet_load(const char* path, int threads) {
  if (!processor_fits()) {
    set_message("this program was built for a processor with more instructions: build it here");
    return nullptr;
  }
  if (path == nullptr || threads < 0 || threads > kMaxThreads) {
    set_message("vnet_load: expected a path, and 0 to 1024 threads");
    return nullptr;
  }
  std::unique_ptr<vnet_model> model;
  attempt([&] {
    model = std::make_unique<vnet_model>(path, threads > 0 ? threads : available_cores());
  });
  return model.release();
}

VNET_EXPORT void vnet_free(vnet_model* model) { delete model; }

VNET_EXPORT void vnet_grid(const vnet_model* model, int sides[3]) {
  const fast_conv3d::Shape& shape = model->network.volume;
  sides[0] = shape.x;
  sides[1] = shape.y;
  sides[2] = shape.z;
}

VNET_EXPORT int vnet_threads(const vnet_model* model) { return model->runtime.pool.size(); }

VNET_EXPORT int vnet_run(vnet_model* model, const float* volume, float* probability) {
  if (model == nullptr || volume == nullptr || probability == nullptr) {
    set_message("vnet_run: expected a model and two arrays, found a null pointer");
    return -1;
  }
  const bool succeeded = attempt([&] {
    const std::lock_guard<std::mutex> lock(model->mutex);
    fast_conv3d::infer(model->runtime, model->network, model->file.parameters(), {volume},
                       probability);
  });
  return succeeded ? 0 : -1;
}

VNET_EXPORT const char* vnet_error(void) { return message; }
