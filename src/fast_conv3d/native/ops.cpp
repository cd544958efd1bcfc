// The operators that MindSpore's ops.Custom calls. Each takes the data pointers and shapes of its
// inputs and then of its outputs, and returns 0, or an error code that MindSpore turns into an
// exception. conv3d.py and network.py check dtypes and shapes; protocol.h tells their order.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "adam.h"
#include "head.h"
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
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fast_conv3d: %s\n", error.what());
    return 1;
  }
}

// The inputs and outputs of one call.
struct Arguments {
  void** data;
  const int* ranks;
  int64_t** shapes;

  template <typename T = float>
  T* get(int index) const {
    return static_cast<T*>(data[index]);
  }
  // The shape of a plain (batch, channels, x, y, z) or a blocked tensor.
  Shape shape(int index, int channels) const {
    const int64_t* sides = shapes[index];
    const bool plain = ranks[index] == 5;
    assert(plain ? sides[1] == channels : sides[1] * kLanes >= channels && sides[5] == kLanes);
    return {static_cast<int>(sides[0]), channels,
            static_cast<int>(sides[2]), static_cast<int>(sides[3]),
            static_cast<int>(sides[4]), plain};
  }
};

// ------------------------------------------------------------------------------------------ units

// A unit, from the inputs that all unit operators share (those of UnitInfer).
struct UnitOperator : Unit {
  using Input = UnitInfer;

  UnitSpec spec;

  explicit UnitOperator(const Arguments& arguments) : spec(arguments.get(Input::kSpec)) {
    kind = spec.kind;
    x = arguments.shape(Input::kX, spec.in_channels);
    y = convolved_shape(kind, x, spec.out_channels);
    source = arguments.get(Input::kX);
    weights = arguments.get(Input::kWeight);
    if (spec.has_bias) bias = arguments.get(Input::kBias);
    check_shapes(arguments);

    post_ops.shape = y;
    post_ops.epsilon = spec.epsilon;
    post_ops.first = spec.first;
    post_ops.second = spec.second;
    if (spec.has_norm) {
      post_ops.gamma = arguments.get(Input::kGamma);
      post_ops.beta = arguments.get(Input::kBeta);
    }
    if (spec.first == Activation::kPrelu)
      post_ops.first_slopes = arguments.get(Input::kFirstSlopes);
    if (spec.second == Activation::kPrelu)
      post_ops.second_slopes = arguments.get(Input::kSecondSlopes);
    if (spec.residual == Residual::kTensor) post_ops.residual = arguments.get(Input::kResidual);
    if (spec.residual == Residual::kInput) post_ops.residual = source;
    post_ops.residual_is_volume = spec.residual == Residual::kInput && kind == Kind::kFewInput;
    if (spec.skip_channels > 0) {
      post_ops.skip = arguments.get(Input::kSkip);
      post_ops.skip_channels = spec.skip_channels;
      if (spec.has_dropout_mask) post_ops.dropout_mask = arguments.get(Input::kDropoutMask);
    }
  }

  void check_shapes([[maybe_unused]] const Arguments& arguments) const {
    assert(x.valid() && y.valid());
    assert(kind != Kind::kFewInput || (spec.in_channels == 1 && x.plain));
    [[maybe_unused]] const int64_t* sides = arguments.shapes[Input::kWeight];
    assert(sides[0] == (kind == Kind::kConvUp2 ? spec.in_channels : spec.out_channels));
    assert(sides[1] == (kind == Kind::kConvUp2 ? spec.out_channels : spec.in_channels));
  }

  // Whether the convolution's input gradient is added to the residual's, in place.
  bool adds_residual_gradient() const {
    return spec.residual == Residual::kInput && kind == Kind::kConv5;
  }
};

// An epilogue that accumulates into the target.
struct AddToTarget {
  const float* target;
  Shape shape;
  FC3D_INLINE Vec operator()(Vec value, int image, int block, size_t voxel) const {
    return value + load(target + block_offset(shape, image, block) + voxel * shape.voxel_floats());
  }
};

// Writes the moving statistics after a step of training.
void update_statistics(const UnitOperator& unit, const Arguments& arguments, const double* mean,
                       const double* variance) {
  using Tensor = UnitForward;
  const double count = static_cast<double>(unit.y.voxels()) * unit.y.batch;
  const double unbiased = count > 1 ? count / (count - 1) : 1;
  const auto update = [&](int from, int to, int channel, double value) {
    arguments.get(to)[channel] = static_cast<float>(
        unit.spec.momentum * arguments.get(from)[channel] + (1 - unit.spec.momentum) * value);
  };
  for (int channel = 0; channel < unit.y.channels; ++channel) {
    // The mean of y lacks the bias.
    update(Tensor::kMovingMean, Tensor::kNewMovingMean, channel,
           mean[channel] + (unit.bias == nullptr ? 0.f : unit.bias[channel]));
    update(Tensor::kMovingVariance, Tensor::kNewMovingVariance, channel,
           variance[channel] * unbiased);
  }
}

// Where unit_backward writes the gradients of the post-ops; d_y overwrites y.
PostOpsGradients post_ops_gradients(const UnitOperator& unit, const Arguments& arguments) {
  using Tensor = UnitBackward;
  PostOpsGradients gradients;
  gradients.y = arguments.get(Tensor::kY);
  if (unit.spec.has_norm) {
    gradients.gamma = arguments.get(Tensor::kDGamma);
    gradients.beta = arguments.get(Tensor::kDBeta);
  } else if (unit.spec.has_bias) {
    gradients.beta = arguments.get(Tensor::kDBias);
  }
  if (unit.spec.first == Activation::kPrelu)
    gradients.first_slopes = arguments.get(Tensor::kDFirstSlopes);
  if (unit.spec.second == Activation::kPrelu)
    gradients.second_slopes = arguments.get(Tensor::kDSecondSlopes);
  if (unit.adds_residual_gradient()) gradients.residual = arguments.get(Tensor::kDX);
  if (unit.spec.residual == Residual::kTensor)
    gradients.residual = arguments.get(Tensor::kDResidual);
  if (unit.spec.skip_channels > 0) gradients.skip = arguments.get(Tensor::kDSkip);
  return gradients;
}

// d_x and d_weights of a unit's convolution from d_y. The gradient of a volume is that of
// unit_volume_gradient.
void convolution_backward(Runtime& shared, const UnitOperator& unit, const Arguments& arguments,
                          const float* d_y) {
  using Tensor = UnitBackward;
  ThreadPool& pool = shared.pool;
  Workspace& workspace = shared.workspace;
  const Shape &x = unit.x, &y = unit.y;
  const float *source = unit.source, *weights = unit.weights;
  float *d_x = arguments.get(Tensor::kDX), *d_weights = arguments.get(Tensor::kDWeight);
  switch (unit.kind) {
    case Kind::kConv5: {
      const Weights transposed = Weights::input_gradient(weights, y.channels, x.channels);
      if (unit.adds_residual_gradient())
        convolve5(pool, workspace, y, d_y, transposed, x, d_x, AddToTarget{d_x, x});
      else
        convolve5(pool, workspace, y, d_y, transposed, x, d_x, NoEpilogue());
      return weight_gradient5(pool, workspace, x, source, y, d_y, d_weights);
    }
    case Kind::kFewInput:
      return weight_gradient5(pool, workspace, x, source, y, d_y, d_weights);
    case Kind::kConvDown2:
      up2(pool, workspace, y, d_y, weights, x, d_x, NoEpilogue());
      return weight_gradient2(pool, workspace, y, d_y, x, source, d_weights);
    case Kind::kConvUp2:
      down2(pool, workspace, y, d_y, weights, x, d_x, NoEpilogue());
      return weight_gradient2(pool, workspace, x, source, y, d_y, d_weights);
  }
}

}  // namespace

// Training: the unit's output, the tensors that unit_backward needs, and the new moving statistics.
FC3D_EXPORT int unit_forward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                             void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = UnitForward;
    const Arguments arguments{data, ranks, shapes};
    const UnitOperator unit(arguments);
    float* y = arguments.get(Tensor::kY);
    double* mean = arguments.get<double>(Tensor::kMean);
    double* variance = arguments.get<double>(Tensor::kVariance);
    convolve_with_statistics(shared, unit, y, mean, variance);
    if (unit.spec.has_norm) update_statistics(unit, arguments, mean, variance);
    post_ops_forward(shared.pool, unit.post_ops, y, mean, variance, arguments.get(Tensor::kOut));
  });
}

// Evaluation: the unit's output, with the post-ops fused into the convolution.
FC3D_EXPORT int unit_infer(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                           void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = UnitInfer;
    const Arguments arguments{data, ranks, shapes};
    infer_unit(shared, UnitOperator(arguments), arguments.get(Tensor::kMovingMean),
               arguments.get(Tensor::kMovingVariance), arguments.get(Tensor::kOut));
  });
}

// Training: the gradients of the unit's inputs. d_y overwrites y, which is not needed afterwards:
// this saves a tensor of the size of the largest activations.
FC3D_EXPORT int unit_backward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = UnitBackward;
    const Arguments arguments{data, ranks, shapes};
    const UnitOperator unit(arguments);
    float* y = arguments.get(Tensor::kY);
    if (unit.spec.has_norm)  // batch norm subtracts the bias
      std::fill_n(arguments.get(Tensor::kDBias), unit.spec.has_bias ? unit.y.channels : 1, 0.f);
    float* split = unit.post_ops.interleaves() ? shared.copy_of_y.get(unit.y.floats()) : nullptr;
    post_ops_backward(shared.pool, unit.post_ops, y, arguments.get(Tensor::kOut),
                      arguments.get<double>(Tensor::kMean),
                      arguments.get<double>(Tensor::kVariance), arguments.get(Tensor::kDOut), split,
                      post_ops_gradients(unit, arguments));
    convolution_backward(shared, unit, arguments, y);
  });
}

// The gradient of a unit's volume. Training does not need it. y is computed anew, since
// unit_backward may have overwritten it.
FC3D_EXPORT int unit_volume_gradient(int, void** data, int* ranks, int64_t** shapes, const char**,
                                     void*, void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = UnitVolumeGradient;
    const Arguments arguments{data, ranks, shapes};
    const UnitOperator unit(arguments);
    assert(unit.kind == Kind::kFewInput && unit.spec.skip_channels == 0);
    const size_t voxels = unit.x.voxels() * unit.x.batch;
    PostOpsGradients gradients;
    float* y = gradients.y = shared.copy_of_y.get(unit.y.floats());
    if (unit.post_ops.residual_is_volume) gradients.residual = shared.copy_of_x.get(voxels);
    unit.convolution(shared, y, AddBias(unit.spec.has_norm ? nullptr : unit.bias, unit.y));
    post_ops_backward(shared.pool, unit.post_ops, y, arguments.get(Tensor::kOut),
                      arguments.get<double>(Tensor::kMean),
                      arguments.get<double>(Tensor::kVariance), arguments.get(Tensor::kDOut),
                      nullptr, gradients);
    float* d_x = arguments.get(Tensor::kDX);
    const Weights transposed =
        Weights::input_gradient(arguments.get(Tensor::kWeight), unit.y.channels, 1);
    convolve5(shared.pool, shared.workspace, unit.y, y, transposed, unit.x, d_x, NoEpilogue());
    if (gradients.residual != nullptr)
      for (size_t voxel = 0; voxel < voxels; ++voxel) d_x[voxel] += gradients.residual[voxel];
  });
}

// The gradient of the dropout mask of a unit's skip. Training does not need it.
FC3D_EXPORT int unit_mask_gradient(int, void** data, int* ranks, int64_t** shapes, const char**,
                                   void*, void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = UnitMaskGradient;
    const Arguments arguments{data, ranks, shapes};
    const UnitSpec spec(arguments.get(Tensor::kSpec));
    float* d_mask = arguments.get(Tensor::kDDropoutMask);
    if (!spec.has_dropout_mask) {  // the unused tensor in its place
      *d_mask = 0;
      return;
    }
    const Shape out = arguments.shape(Tensor::kDOut, spec.out_channels + spec.skip_channels);
    PostOps concat;
    concat.shape = out.with_channels(spec.out_channels);
    concat.skip = arguments.get(Tensor::kSkip);
    concat.skip_channels = spec.skip_channels;
    float* d_scaled = shared.copy_of_x.get(concat.skip_shape().floats());
    if (concat.interleaves())
      split_gradient(shared.pool, concat, arguments.get(Tensor::kDOut),
                     shared.copy_of_y.get(concat.shape.floats()), d_scaled);
    else
      concat_backward(shared.pool, concat, arguments.get(Tensor::kDOut), d_scaled);
    scale_mask_gradient(shared.pool, concat.skip_shape(), arguments.get(Tensor::kSkip), d_scaled,
                        d_mask);
  });
}

// ------------------------------------------------------------------------------- single operators

namespace {

// Copies a plain tensor (batch, channels, x, y, z) to a blocked one.
void to_blocked(ThreadPool& pool, const float* plain, const Shape& shape, float* blocked) {
  for_each_chunk(pool, shape, Order::kForwards, [&](const Chunk& chunk) {
    const int lanes = std::min(kLanes, shape.channels - chunk.block * kLanes);
    const float* source =
        plain +
        (static_cast<size_t>(chunk.image) * shape.channels + chunk.block * kLanes) * shape.voxels();
    float* target = blocked + block_offset(shape, chunk.image, chunk.block);
    for (size_t voxel = chunk.begin; voxel < chunk.end; ++voxel) {
      float values[kLanes] = {};
      for (int lane = 0; lane < lanes; ++lane) values[lane] = source[lane * shape.voxels() + voxel];
      store(target + voxel * kLanes, load(values));
    }
  });
}
// Copies a blocked tensor to a plain one.
void to_plain(ThreadPool& pool, const float* blocked, const Shape& shape, float* plain) {
  for_each_chunk(pool, shape, Order::kForwards, [&](const Chunk& chunk) {
    const int lanes = std::min(kLanes, shape.channels - chunk.block * kLanes);
    const float* source = blocked + block_offset(shape, chunk.image, chunk.block);
    float* target =
        plain +
        (static_cast<size_t>(chunk.image) * shape.channels + chunk.block * kLanes) * shape.voxels();
    for (int lane = 0; lane < lanes; ++lane)
      for (size_t voxel = chunk.begin; voxel < chunk.end; ++voxel)
        target[lane * shape.voxels() + voxel] = source[voxel * kLanes + lane];
  });
}

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
    assert(x.valid() && y.valid() && x.plain);
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
    if (conv.has_bias) channel_sums(shared.pool, conv.y, d_y, arguments.get(Tensor::kDBias));
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

// x times the factor of each channel.
FC3D_EXPORT int scale_channels(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                               void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = ScaleChannels;
    const Arguments arguments{data, ranks, shapes};
    const int channels = static_cast<int>(shapes[Tensor::kDropoutMask][1]);
    scale_channels(shared.pool, arguments.shape(Tensor::kX, channels), arguments.get(Tensor::kX),
                   arguments.get(Tensor::kDropoutMask), arguments.get(Tensor::kY));
  });
}

// The gradient of the factors of scale_channels.
FC3D_EXPORT int scale_mask_gradient(int, void** data, int* ranks, int64_t** shapes, const char**,
                                    void*, void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = ScaleMaskGradient;
    const Arguments arguments{data, ranks, shapes};
    const int channels = static_cast<int>(shapes[Tensor::kDropoutMask][1]);
    scale_mask_gradient(shared.pool, arguments.shape(Tensor::kX, channels),
                        arguments.get(Tensor::kX), arguments.get(Tensor::kDY),
                        arguments.get(Tensor::kDDropoutMask));
  });
}

namespace {

// x and weight are the first two inputs of both operators.
head::Head head_of(const Arguments& arguments, const HeadSpec& spec, const float* bias) {
  const int64_t* kernel = arguments.shapes[HeadForward::kWeight];
  return {arguments.shape(HeadForward::kX, static_cast<int>(kernel[1])),
          static_cast<int>(kernel[2]),
          spec.foreground,
          arguments.get(HeadForward::kWeight),
          spec.has_bias ? bias : nullptr,
          spec.logits};
}

// Whether `head` needs a plain copy of a blocked input. Makes its shape plain then.
bool make_plain(head::Head* head) {
  const bool copies = head->side > 1 && !head->shape.plain;
  head->shape.plain |= copies;
  return copies;
}
Shape blocked_shape(Shape shape) {
  shape.plain = false;
  return shape;
}

}  // namespace

// The last convolution and softmax: the probability of the foreground, or its logit.
FC3D_EXPORT int head_forward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                             void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = HeadForward;
    const Arguments arguments{data, ranks, shapes};
    head::Head head =
        head_of(arguments, HeadSpec(arguments.get(Tensor::kSpec)), arguments.get(Tensor::kBias));
    const float* x = arguments.get(Tensor::kX);
    if (make_plain(&head)) {
      float* plain = shared.copy_of_x.get(head.shape.floats());
      to_plain(shared.pool, x, blocked_shape(head.shape), plain);
      x = plain;
    }
    head::forward(shared.pool, shared.workspace.shared, head, x, arguments.get(Tensor::kY));
  });
}

// The gradients of head_forward.
FC3D_EXPORT int head_backward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& shared) {
    using Tensor = HeadBackward;
    const Arguments arguments{data, ranks, shapes};
    const HeadSpec spec(arguments.get(Tensor::kSpec));
    head::Head head = head_of(arguments, spec, nullptr);
    const float* x = arguments.get(Tensor::kX);
    float* d_x = arguments.get(Tensor::kDX);
    const bool copies = make_plain(&head);
    if (copies) {
      float* plain = shared.copy_of_x.get(head.shape.floats());
      to_plain(shared.pool, x, blocked_shape(head.shape), plain);
      x = plain;
      d_x = shared.copy_of_y.get(head.shape.floats());
    }
    head::backward(shared.pool, shared.workspace.shared, head, x, arguments.get(Tensor::kY),
                   arguments.get(Tensor::kDY), d_x, arguments.get(Tensor::kDWeight),
                   spec.has_bias ? arguments.get(Tensor::kDBias) : nullptr);
    if (copies) to_blocked(shared.pool, d_x, blocked_shape(head.shape), arguments.get(Tensor::kDX));
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

// A step of Adam, in place, see adam.py: [learning rate, beta1 and beta2 to the power of the step],
// [beta1, beta2, epsilon, each parameter's weight decay], then all parameters, first moments,
// second moments and gradients. The output means nothing.
FC3D_EXPORT int adam_step(int count, void** data, int* ranks, int64_t** shapes, const char**, void*,
                          void*) {
  return with_runtime([&](Runtime& shared) {
    const Arguments arguments{data, ranks, shapes};
    const float *numbers = arguments.get(0), *settings = arguments.get(1);
    const double correction =
        std::sqrt(1 - static_cast<double>(numbers[2])) / (1 - static_cast<double>(numbers[1]));
    const int first = 2, parameters = (count - first - 1) / 4;
    std::vector<adam::Parameter> all;
    for (int i = 0; i < parameters; ++i) {
      const auto tensor = [&](int group) { return arguments.get(first + group * parameters + i); };
      const int64_t* sides = shapes[first + i];
      const size_t size = std::accumulate(sides, sides + ranks[first + i], size_t{1},
                                          [](size_t a, int64_t b) { return a * b; });
      all.push_back({size, tensor(0), tensor(1), tensor(2), tensor(3), settings[3 + i]});
    }
    adam::step(shared.pool,
               {static_cast<float>(numbers[0] * correction), settings[0], settings[1], settings[2]},
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

// The inference of a whole network from a weight file.
#include "vnet_cpu.cpp"
