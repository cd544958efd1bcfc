// The operators that MindSpore's ops.Custom calls. Each takes the data pointers and shapes of its
// inputs and then of its outputs, and returns 0, or an error code that MindSpore turns into an
// exception. conv3d.py, loss.py and network.py check dtypes and shapes; protocol.h tells their
// order.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <system_error>
#include <vector>

#include "adam.h"
#include "layout.h"
#include "loss.h"
#include "protocol.h"
#include "units.h"

#define FC3D_EXPORT extern "C" __attribute__((visibility("default")))

namespace fast_conv3d {
namespace {

// The runtime of a process, created by its first operator.
struct State {
  const pid_t process = getpid();
  std::mutex mutex;  // MindSpore may call several operators at once
  std::atomic<int> threads{1};
  std::unique_ptr<Runtime> runtime;
};

std::atomic<State*> current{new State};  // not deleted: workers may wait in it until the end

// The state of this process. A forked child gets one of its own: in its copy of the parent's the
// mutex may be locked and the scratch memory in use, by threads that the child does not have.
State& state() {
  State* known = current.load();
  if (known->process == getpid()) return *known;
  auto own = std::make_unique<State>();
  own->threads = known->threads.load();
  // Another thread of the child may have been first.
  return current.compare_exchange_strong(known, own.get()) ? *own.release() : *known;
}

// Calls work(runtime) under a lock. Returns an error code instead of throwing.
template <typename Work>
int with_runtime(const Work& work) {
  try {
    State& shared = state();
    const std::lock_guard<std::mutex> lock(shared.mutex);
    if (shared.runtime == nullptr) shared.runtime = std::make_unique<Runtime>(shared.threads);
    work(*shared.runtime);
    return 0;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "fast_conv3d: out of memory: a smaller grid, width or batch needs less\n");
  } catch (const std::system_error& error) {
    std::fprintf(stderr, "fast_conv3d: %s: fewer threads, OMP_NUM_THREADS=N, may help\n",
                 error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fast_conv3d: %s\n", error.what());
  }
  return 1;
}

// The inputs and outputs of one call.
struct Arguments {
  void** data;
  const int* ranks;
  int64_t** shapes;

  float* get(int index) const { return static_cast<float*>(data[index]); }
  // The shape of a (batch, channels, x, y, z) tensor.
  Shape shape(int index, int channels) const {
    const int64_t* sides = shapes[index];
    assert(ranks[index] == 5 && sides[1] == channels);
    return {static_cast<int>(sides[0]), channels,
            static_cast<int>(sides[2]), static_cast<int>(sides[3]),
            static_cast<int>(sides[4]), true};
  }
};

// The sum of each channel of a plain tensor over batch and voxels.
void channel_sums(ThreadPool& pool, const Shape& shape, const float* data, float* sums) {
  pool.for_each(shape.channels, [&](int channel, int) {
    double total = 0;
    for (int image = 0; image < shape.batch; ++image) {
      const float* source = data + block_offset(shape, image, channel);
      for (size_t row = 0; row < shape.voxels(); row += shape.z)
        total += std::accumulate(source + row, source + row + shape.z, 0.f);
    }
    sums[channel] = static_cast<float>(total);
  });
}

// A 5x5x5 convolution of plain tensors.
struct Conv5 {
  Shape x, y;
  bool has_bias;
  bool few;  // channels: computed as it is, else with blocked copies of both tensors

  // x and weight are the first two inputs of both operators.
  Conv5(const Arguments& arguments, const ConvSpec& spec)
      : x(arguments.shape(ConvForward::kX, spec.in_channels)),
        y(arguments.shape(ConvForward::kX, spec.in_channels)),
        has_bias(spec.has_bias),
        few(std::min(spec.in_channels, spec.out_channels) <= kPlainChannels) {
    y.channels = spec.out_channels;
    assert(x.valid() && y.valid());
    assert(arguments.shapes[ConvForward::kWeight][0] == y.channels);
    assert(arguments.shapes[ConvForward::kWeight][1] == x.channels);
  }
};

// Replaces a plain tensor by a blocked copy.
void make_blocked(ThreadPool& pool, Scratch& copy, Shape* shape, const float** data) {
  shape->plain = false;
  float* blocked = copy.get(shape->floats());
  to_blocked(pool, *data, *shape, blocked);
  *data = blocked;
}

}  // namespace

FC3D_EXPORT int conv_forward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                             void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = ConvForward;
    const Arguments arguments{data, ranks, shapes};
    Conv5 conv(arguments, ConvSpec(arguments.get(Tensor::kSpec)));
    const float* x = arguments.get(Tensor::kX);
    float* target = arguments.get(Tensor::kY);
    if (!conv.few) {
      make_blocked(shared.pool, shared.copy_of_x, &conv.x, &x);
      conv.y.plain = false;
      target = shared.copy_of_y.get(conv.y.floats());
    }
    const AddBias add_bias(conv.has_bias ? arguments.get(Tensor::kBias) : nullptr, conv.y);
    const Weights weights =
        Weights::forward(arguments.get(Tensor::kWeight), conv.y.channels, conv.x.channels);
    convolve5(shared.pool, shared.workspace, conv.x, x, weights, conv.y, target, add_bias);
    if (!conv.few) to_plain(shared.pool, target, conv.y, arguments.get(Tensor::kY));
  });
}

// The gradients of conv_forward.
FC3D_EXPORT int conv_backward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = ConvBackward;
    const Arguments arguments{data, ranks, shapes};
    Conv5 conv(arguments, ConvSpec(arguments.get(Tensor::kSpec)));
    const float *x = arguments.get(Tensor::kX), *d_y = arguments.get(Tensor::kDY);
    float* target = arguments.get(Tensor::kDX);
    float* d_bias = arguments.get(Tensor::kDBias);
    if (conv.has_bias)
      channel_sums(shared.pool, conv.y, d_y, d_bias);
    else
      std::fill_n(d_bias, conv.y.channels, 0.f);
    if (!conv.few) {
      make_blocked(shared.pool, shared.copy_of_x, &conv.x, &x);
      make_blocked(shared.pool, shared.copy_of_y, &conv.y, &d_y);
    }
    weight_gradient5(shared.pool, shared.workspace, conv.x, x, conv.y, d_y,
                     arguments.get(Tensor::kDWeight));
    if (!conv.few) target = shared.copy_of_x.get(conv.x.floats());
    const Weights weights =
        Weights::input_gradient(arguments.get(Tensor::kWeight), conv.y.channels, conv.x.channels);
    convolve5(shared.pool, shared.workspace, conv.y, d_y, weights, conv.x, target, NoEpilogue());
    if (!conv.few) to_plain(shared.pool, target, conv.x, arguments.get(Tensor::kDX));
  });
}

namespace {

loss::Loss loss_of(const Arguments& arguments, const LossSpec& spec) {
  using Tensor = LossForward;  // prediction and mask are the first two inputs of both operators
  const int64_t* sides = arguments.shapes[Tensor::kPrediction];
  assert(std::equal(sides, sides + 4, arguments.shapes[Tensor::kMask]));
  return {Shape{static_cast<int>(sides[0]), 1, static_cast<int>(sides[1]),
                static_cast<int>(sides[2]), static_cast<int>(sides[3]), true},
          arguments.get(Tensor::kPrediction), arguments.get(Tensor::kMask), spec.logits,
          spec.epsilon};
}

}  // namespace

// The loss of src/loss.py, a scalar.
FC3D_EXPORT int loss_forward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                             void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = LossForward;
    const Arguments arguments{data, ranks, shapes};
    *arguments.get(Tensor::kLoss) =
        loss::forward(shared.pool, loss_of(arguments, LossSpec(arguments.get(Tensor::kSpec))),
                      arguments.get(Tensor::kCoefficients));
  });
}

// The gradient of the prediction of loss_forward.
FC3D_EXPORT int loss_backward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = LossBackward;
    const Arguments arguments{data, ranks, shapes};
    loss::backward(shared.pool, loss_of(arguments, LossSpec(arguments.get(Tensor::kSpec))),
                   arguments.get(Tensor::kCoefficients), *arguments.get(Tensor::kDLoss),
                   arguments.get(Tensor::kDPrediction));
  });
}

// A step of Adam, in place, see adam.py.
FC3D_EXPORT int adam_step(int count, void** data, int* ranks, int64_t** shapes, const char**, void*,
                          void*) {
  return with_runtime([&](Runtime& shared) {
    const Arguments arguments{data, ranks, shapes};
    const AdamNumbers numbers(arguments.get(AdamStep::kNumbers));
    const AdamSettings settings(arguments.get(AdamStep::kSettings));
    const float* decays = arguments.get(AdamStep::kSettings) + sizeof(AdamSettings) / sizeof(float);
    const double correction = std::sqrt(1 - static_cast<double>(numbers.beta2_power)) /
                              (1 - static_cast<double>(numbers.beta1_power));
    const int first = AdamStep::kParameters, parameters = (count - first - 1) / 4;
    std::vector<adam::Parameter> all;
    for (int i = 0; i < parameters; ++i) {
      const auto tensor = [&](int group) { return arguments.get(first + group * parameters + i); };
      const int64_t* sides = shapes[first + i];
      const size_t size = std::accumulate(sides, sides + ranks[first + i], size_t{1},
                                          [](size_t a, int64_t b) { return a * b; });
      all.push_back({size, tensor(0), tensor(1), tensor(2), tensor(3), decays[i]});
    }
    adam::step(shared.pool,
               {static_cast<float>(numbers.rate * correction), settings.beta1, settings.beta2,
                settings.epsilon},
               all);
    *arguments.get(count - 1) = 0;
  });
}

// The version of protocol.h, which operators.py compares with its own.
FC3D_EXPORT int protocol_version() { return kProtocolVersion; }

// Sets the number of threads; may be called between any two operators.
FC3D_EXPORT void set_threads(int threads) {
  State& shared = state();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  shared.threads = std::max(1, threads);
  shared.runtime.reset();
}

}  // namespace fast_conv3d

// The operators of a whole network, and its inference from a weight file.
#include "network_ops.cpp"
#include "vnet_cpu.cpp"
