// The operators that MindSpore's ops.Custom calls. Each takes the data pointers and shapes of its
// inputs and then of its outputs, and returns 0, or an error code that MindSpore turns into an
// exception. conv3d.py and network.py check dtypes and shapes.
#include <algorithm>
#include <cassert>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "few_channels.h"
#include "head.h"
#include "post_ops.h"
#include "strided.h"
#include "winograd.h"

#define FC3D_EXPORT extern "C" __attribute__((visibility("default")))

namespace fast_conv3d {
namespace {

// Threads and scratch memory, shared by all operators.
struct Runtime {
  explicit Runtime(int threads) : pool(threads), workspace(threads) {}
  ThreadPool pool;
  Workspace workspace;
  Scratch blocked_x, blocked_y;       // blocked copies of plain tensors
  Scratch weights, weights_gradient;  // smaller kernels, zero-padded to 5x5x5
};

std::mutex mutex;
std::unique_ptr<Runtime> runtime;
int thread_count = 1;

// Calls work(runtime) under a lock, since MindSpore may call several operators at once. Returns an
// error code instead of throwing.
template <typename Work>
int with_runtime(const Work& work) {
  const std::lock_guard<std::mutex> lock(mutex);
  try {
    if (runtime == nullptr) runtime = std::make_unique<Runtime>(thread_count);
    work(*runtime);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fast_conv3d: %s\n", error.what());
    return 1;
  }
}

// The inputs and outputs of one call.
struct Arguments {
  void** data;
  int64_t** shapes;

  template <typename T = float>
  T* get(int index) const {
    return static_cast<T*>(data[index]);
  }
  // The shape of a plain (batch, channels, x, y, z) or a blocked tensor.
  Shape shape(int index, int channels) const {
    const int64_t* sides = shapes[index];
    return {static_cast<int>(sides[0]), channels, static_cast<int>(sides[2]),
            static_cast<int>(sides[3]), static_cast<int>(sides[4])};
  }
};

// ------------------------------------------------------------------------------------------ units

enum class Kind { kConv5, kFewInput, kConvDown2, kConvUp2 };
enum class Residual { kNone, kInput, kTensor };

// Inputs of the unit operators, in order. Inputs that a unit does not use may be any tensor.
enum Input {
  kX,
  kWeight,
  kBias,
  kGamma,
  kBeta,
  kMovingMean,
  kMovingVariance,
  kFirstSlopes,
  kSecondSlopes,
  kResidual,
  kSkip,
  kDropoutMask,
  kSpec,
  kInputs
};
// Outputs of unit_forward; the first four are inputs of unit_backward.
enum Output { kOut = kInputs, kY, kMean, kVariance, kNewMovingMean, kNewMovingVariance };
// The last input of unit_backward, and its outputs.
enum Gradient {
  kDOut = kVariance + 1,
  kDX,
  kDWeight,
  kDBias,
  kDGamma,
  kDBeta,
  kDFirstSlopes,
  kDSecondSlopes,
  kDResidual,
  kDSkip
};

// A unit as UnitSpec in operators.py describes it: the numbers in `spec` are its fields, in order.
struct Unit {
  Kind kind;
  Residual residual;
  bool has_bias, has_norm, has_skip, has_dropout_mask;
  float momentum;
  Shape x, y;
  PostOps post_ops;

  explicit Unit(const Arguments& arguments) {
    const float* spec = arguments.get(kSpec);
    kind = static_cast<Kind>(static_cast<int>(spec[0]));
    const int in_channels = static_cast<int>(spec[1]), out_channels = static_cast<int>(spec[2]);
    post_ops.first = static_cast<Activation>(static_cast<int>(spec[3]));
    residual = static_cast<Residual>(static_cast<int>(spec[4]));
    post_ops.second = static_cast<Activation>(static_cast<int>(spec[5]));
    has_bias = spec[6] != 0;
    has_norm = spec[7] != 0;
    const int skip_channels = static_cast<int>(spec[8]);
    has_skip = skip_channels > 0;
    has_dropout_mask = spec[9] != 0;
    post_ops.epsilon = spec[10];
    momentum = spec[11];

    x = arguments.shape(kX, in_channels);
    y = x;
    y.channels = out_channels;
    if (kind == Kind::kConvDown2) y = {x.batch, out_channels, x.x / 2, x.y / 2, x.z / 2};
    if (kind == Kind::kConvUp2) y = strided::fine_shape(x, out_channels);

    assert(x.valid() && y.valid());
    [[maybe_unused]] const int64_t* x_sides = arguments.shapes[kX];
    assert(kind == Kind::kFewInput ? in_channels == 1
                                   : x_sides[1] == x.blocks() && x_sides[5] == kLanes);
    [[maybe_unused]] const int64_t* weight_sides = arguments.shapes[kWeight];
    assert(weight_sides[0] == (kind == Kind::kConvUp2 ? in_channels : out_channels));
    assert(weight_sides[1] == (kind == Kind::kConvUp2 ? out_channels : in_channels));

    post_ops.shape = y;
    if (has_norm) {
      post_ops.gamma = arguments.get(kGamma);
      post_ops.beta = arguments.get(kBeta);
    }
    if (post_ops.first == Activation::kPrelu) post_ops.first_slopes = arguments.get(kFirstSlopes);
    if (post_ops.second == Activation::kPrelu)
      post_ops.second_slopes = arguments.get(kSecondSlopes);
    if (residual == Residual::kTensor) post_ops.residual = arguments.get(kResidual);
    if (residual == Residual::kInput) post_ops.residual = arguments.get(kX);
    post_ops.residual_is_volume = residual == Residual::kInput && kind == Kind::kFewInput;
    if (has_skip) {
      post_ops.skip = arguments.get(kSkip);
      post_ops.skip_channels = skip_channels;
      if (has_dropout_mask) post_ops.dropout_mask = arguments.get(kDropoutMask);
    }
  }

  // target = epilogue(convolution of x), where epilogue(value, image, block, voxel) returns the
  // vector to store.
  template <typename Epilogue>
  void convolution(ThreadPool& pool, Workspace& workspace, const Arguments& arguments,
                   float* target, const Epilogue& epilogue) const {
    const float* source = arguments.get(kX);
    const float* weights = arguments.get(kWeight);
    switch (kind) {
      case Kind::kConv5:
        return convolve(pool, workspace, x, source,
                        Weights::forward(weights, y.channels, x.channels), target, epilogue);
      case Kind::kFewInput:
        return few_channels::conv_few_input(few_channels::Conv::kPlainToBlocked, source, 1, weights,
                                            target, y, epilogue, pool, workspace.shared);
      case Kind::kConvDown2:
        return strided::conv_down2(source, x.channels, weights, target, y, epilogue, pool,
                                   workspace.shared);
      case Kind::kConvUp2:
        return strided::conv_up2(source, x, weights, target, y.channels, epilogue, pool,
                                 workspace.shared);
    }
  }
};

// An epilogue that adds a bias, unless null.
class AddBias {
 public:
  AddBias(const float* bias, const Shape& shape) : lanes_(shape.blocks() * kLanes, 0.f) {
    if (bias != nullptr) std::copy_n(bias, shape.channels, lanes_.begin());
  }
  FC3D_INLINE Vec operator()(Vec value, int, int block, size_t) const {
    return value + load(lanes_.data() + block * kLanes);
  }

 private:
  std::vector<float> lanes_;
};

// An epilogue that applies the post-ops with the moving statistics, for inference.
class PostOpsEpilogue {
 public:
  PostOpsEpilogue(const PostOps& post_ops, const float* mean, const float* variance,
                  const float* bias)
      : blocks_(post_ops.shape.blocks()) {
    for (int image = 0; image < post_ops.shape.batch; ++image)
      for (int block = 0; block < blocks_; ++block)
        post_ops_.emplace_back(post_ops, image, block, mean, variance, bias);
  }
  FC3D_INLINE Vec operator()(Vec value, int image, int block, size_t voxel) const {
    return post_ops_[image * blocks_ + block](value, voxel);
  }

 private:
  int blocks_;
  std::vector<BlockPostOps> post_ops_;
};

// An epilogue that accumulates into the target.
struct AddToTarget {
  const float* target;
  Shape shape;
  FC3D_INLINE Vec operator()(Vec value, int image, int block, size_t voxel) const {
    return value + load(target + block_offset(shape, image, block) + voxel * kLanes);
  }
};

// An epilogue that stores the value as it is.
struct NoEpilogue {
  FC3D_INLINE Vec operator()(Vec value, int, int, size_t) const { return value; }
};

}  // namespace

// Training: the unit's output, the tensors that unit_backward needs, and the new moving statistics.
FC3D_EXPORT int unit_forward(int, void** data, int*, int64_t** shapes, const char**, void*, void*) {
  return with_runtime([&](Runtime& shared) {
    ThreadPool& pool = shared.pool;
    Workspace& workspace = shared.workspace;
    const Arguments arguments{data, shapes};
    const Unit unit(arguments);
    float* y = arguments.get(kY);
    // Batch norm would subtract the bias again: it is not added to y, only to the moving mean.
    const float* bias = unit.has_bias ? arguments.get(kBias) : nullptr;
    unit.convolution(pool, workspace, arguments, y,
                     AddBias(unit.has_norm ? nullptr : bias, unit.y));
    double* mean = arguments.get<double>(kMean);
    double* variance = arguments.get<double>(kVariance);
    if (unit.has_norm) {
      batch_statistics(pool, y, unit.y, mean, variance);
      const double count = static_cast<double>(unit.y.voxels()) * unit.y.batch;
      const double unbiased = count > 1 ? count / (count - 1) : 1;
      const auto update = [&](int from, int to, int channel, double value) {
        arguments.get(to)[channel] = static_cast<float>(
            unit.momentum * arguments.get(from)[channel] + (1 - unit.momentum) * value);
      };
      for (int channel = 0; channel < unit.y.channels; ++channel) {
        update(kMovingMean, kNewMovingMean, channel,
               mean[channel] + (bias == nullptr ? 0.f : bias[channel]));
        update(kMovingVariance, kNewMovingVariance, channel, variance[channel] * unbiased);
      }
    }
    post_ops_forward(pool, unit.post_ops, y, mean, variance, arguments.get(kOut));
  });
}

// Evaluation: the unit's output, with the post-ops fused into the convolution.
FC3D_EXPORT int unit_infer(int, void** data, int*, int64_t** shapes, const char**, void*, void*) {
  return with_runtime([&](Runtime& shared) {
    ThreadPool& pool = shared.pool;
    Workspace& workspace = shared.workspace;
    const Arguments arguments{data, shapes};
    const Unit unit(arguments);
    const PostOpsEpilogue epilogue(unit.post_ops, arguments.get(kMovingMean),
                                   arguments.get(kMovingVariance),
                                   unit.has_bias ? arguments.get(kBias) : nullptr);
    float* out = arguments.get(kOut);
    if (!unit.has_skip || unit.y.batch == 1) {
      unit.convolution(pool, workspace, arguments, out, epilogue);
    } else {  // the convolution assumes contiguous images, but out has the skip's blocks in between
      for (int image = 0; image < unit.y.batch; ++image) {
        Unit one = unit;
        one.x.batch = one.y.batch = 1;
        void* inputs[kInputs];
        std::copy_n(data, static_cast<int>(kInputs), inputs);
        inputs[kX] = arguments.get(kX) + image * unit.x.image_floats();
        one.convolution(pool, workspace, {inputs, shapes},
                        out + image * unit.post_ops.out_shape().image_floats(),
                        [&](Vec value, int, int block, size_t voxel) {
                          return epilogue(value, image, block, voxel);
                        });
      }
    }
    if (unit.has_skip) concat_forward(pool, unit.post_ops, out);
  });
}

// Training: the gradients of the unit's inputs.
FC3D_EXPORT int unit_backward(int, void** data, int*, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& shared) {
    ThreadPool& pool = shared.pool;
    Workspace& workspace = shared.workspace;
    const Arguments arguments{data, shapes};
    const Unit unit(arguments);
    const Shape &x = unit.x, &y = unit.y;
    const float* weights = arguments.get(kWeight);
    float* d_x = arguments.get(kDX);
    float* d_weights = arguments.get(kDWeight);
    // d_y overwrites y, which is not needed afterwards. This saves a tensor of the size of the
    // largest activations.
    float* d_y = arguments.get(kY);

    PostOpsGradients gradients;
    gradients.y = d_y;
    if (unit.has_norm) {
      gradients.gamma = arguments.get(kDGamma);
      gradients.beta = arguments.get(kDBeta);
      std::fill_n(arguments.get(kDBias), unit.has_bias ? y.channels : 1, 0.f);
    } else if (unit.has_bias) {
      gradients.beta = arguments.get(kDBias);
    }
    if (unit.post_ops.first == Activation::kPrelu)
      gradients.first_slopes = arguments.get(kDFirstSlopes);
    if (unit.post_ops.second == Activation::kPrelu)
      gradients.second_slopes = arguments.get(kDSecondSlopes);
    // The convolution's input gradient is added to the residual's, in place.
    const bool adds = unit.residual == Residual::kInput && unit.kind == Kind::kConv5;
    if (adds) gradients.residual = d_x;
    if (unit.residual == Residual::kTensor) gradients.residual = arguments.get(kDResidual);
    if (unit.has_skip) gradients.skip = arguments.get(kDSkip);
    post_ops_backward(pool, unit.post_ops, arguments.get(kY), arguments.get(kOut),
                      arguments.get<double>(kMean), arguments.get<double>(kVariance),
                      arguments.get(kDOut), gradients);

    switch (unit.kind) {
      case Kind::kConv5: {
        const Weights transposed = Weights::input_gradient(weights, y.channels, x.channels);
        if (adds)
          convolve(pool, workspace, y, d_y, transposed, d_x, AddToTarget{d_x, x});
        else
          convolve(pool, workspace, y, d_y, transposed, d_x, NoEpilogue());
        weight_gradient(pool, workspace, x, arguments.get(kX), y, d_y, d_weights);
        break;
      }
      case Kind::kFewInput:  // the input is the image: its gradient is not needed
        std::fill_n(d_x, x.batch * x.voxels(), 0.f);
        few_channels::weight_gradient(few_channels::Conv::kPlainToBlocked, d_y, y,
                                      arguments.get(kX), 1, d_weights, nullptr, nullptr, pool,
                                      workspace.shared);
        break;
      case Kind::kConvDown2:
        strided::conv_up2(d_y, y, weights, d_x, x.channels, NoEpilogue(), pool, workspace.shared);
        strided::weight_gradient(d_y, y, arguments.get(kX), x.channels, d_weights, nullptr, nullptr,
                                 pool, workspace.shared);
        break;
      case Kind::kConvUp2:
        strided::conv_down2(d_y, y.channels, weights, d_x, x, NoEpilogue(), pool, workspace.shared);
        strided::weight_gradient(arguments.get(kX), x, d_y, y.channels, d_weights, nullptr, nullptr,
                                 pool, workspace.shared);
        break;
    }
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

// An epilogue of conv_few_output, which computes 16 voxels of one channel at a time.
struct AddChannelBias {
  const float* bias;
  FC3D_INLINE Vec operator()(Vec values, int, int channel, size_t) const {
    return bias == nullptr ? values : values + broadcast(bias[channel]);
  }
};

// A convolution of plain tensors, or of a blocked x to a plain y with few channels. The kernel's
// side is 5, 3 or 1; kernels of 3 and 1 are zero-padded to 5.
struct Conv5 {
  static constexpr int kFewChannels = 4;  // up to here direct sums are faster than transforms

  Shape x, y;
  int kernel_side;
  bool x_is_blocked, has_bias, few_input, few_output;

  // spec: input channels, output channels, whether x is blocked, whether there is a bias.
  Conv5(const Arguments& arguments, const float* spec)
      : x(arguments.shape(0, 0)),
        y(x),
        kernel_side(static_cast<int>(arguments.shapes[1][2])),
        x_is_blocked(spec[2] != 0),
        has_bias(spec[3] != 0) {
    x.channels = static_cast<int>(spec[0]);
    y.channels = static_cast<int>(spec[1]);
    assert(x.valid() && y.valid());
    assert(kernel_side == 1 || kernel_side == 3 || kernel_side == kTaps);
    assert(arguments.shapes[1][0] == y.channels && arguments.shapes[1][1] == x.channels);
    few_input = x.channels <= kFewChannels && !x_is_blocked;
    few_output = !few_input && (y.channels <= kFewChannels || x_is_blocked);
  }

  size_t filters() const { return static_cast<size_t>(x.channels) * y.channels; }
  // Calls copy(index in the weights, index in the zero-padded weights) for each weight.
  template <typename Copy>
  void for_taps(const Copy& copy) const {
    const int side = kernel_side, padding = (kTaps - side) / 2;
    for (size_t filter = 0; filter < filters(); ++filter)
      for (int tap = 0; tap < side * side * side; ++tap) {
        const int i = tap / side / side + padding, j = tap / side % side + padding;
        copy(filter * side * side * side + tap,
             filter * kVolumeTaps + (i * kTaps + j) * kTaps + tap % side + padding);
      }
  }
  // The weights with 5x5x5 kernels.
  const float* full_weights(Runtime& shared, const float* weights) const {
    if (kernel_side == kTaps) return weights;
    float* full = shared.weights.get(filters() * kVolumeTaps);
    std::fill_n(full, filters() * kVolumeTaps, 0.f);
    for_taps([&](size_t tap, size_t full_tap) { full[full_tap] = weights[tap]; });
    return full;
  }

  const float* blocked_x(Runtime& shared, const float* source) const {
    if (x_is_blocked) return source;
    float* blocked = shared.blocked_x.get(x.floats());
    to_blocked(shared.pool, source, x, blocked);
    return blocked;
  }
  const float* blocked_y(Runtime& shared, const float* source) const {
    float* blocked = shared.blocked_y.get(y.floats());
    to_blocked(shared.pool, source, y, blocked);
    return blocked;
  }
};

}  // namespace

// x, weight, bias, spec -> y.
FC3D_EXPORT int conv_forward(int, void** data, int*, int64_t** shapes, const char**, void*, void*) {
  return with_runtime([&](Runtime& shared) {
    const Arguments arguments{data, shapes};
    const Conv5 conv(arguments, arguments.get(3));
    const float* x = arguments.get(0);
    const float* weights = conv.full_weights(shared, arguments.get(1));
    const float* bias = conv.has_bias ? arguments.get(2) : nullptr;
    float* y = arguments.get(4);
    if (conv.few_output)
      return few_channels::conv_few_output(
          few_channels::Conv::kBlockedToPlain, conv.blocked_x(shared, x), conv.x, weights, y,
          conv.y.channels, AddChannelBias{bias}, shared.pool, shared.workspace.shared);
    float* blocked = shared.blocked_y.get(conv.y.floats());
    if (conv.few_input)
      few_channels::conv_few_input(few_channels::Conv::kPlainToBlocked, x, conv.x.channels, weights,
                                   blocked, conv.y, AddBias(bias, conv.y), shared.pool,
                                   shared.workspace.shared);
    else
      convolve(shared.pool, shared.workspace, conv.x, conv.blocked_x(shared, x),
               Weights::forward(weights, conv.y.channels, conv.x.channels), blocked,
               AddBias(bias, conv.y));
    to_plain(shared.pool, blocked, conv.y, y);
  });
}

// x, weight, d_y, spec -> d_x, d_weight, d_bias.
FC3D_EXPORT int conv_backward(int, void** data, int*, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& shared) {
    const Arguments arguments{data, shapes};
    const Conv5 conv(arguments, arguments.get(3));
    const float *x = arguments.get(0), *d_y = arguments.get(2);
    const float* weights = conv.full_weights(shared, arguments.get(1));
    float *d_x = arguments.get(4), *d_kernel = arguments.get(5);
    const bool whole = conv.kernel_side == kTaps;
    float* d_weights = whole ? d_kernel : shared.weights_gradient.get(conv.filters() * kVolumeTaps);
    float* d_bias = conv.has_bias ? arguments.get(6) : nullptr;
    ThreadPool& pool = shared.pool;
    Scratch& scratch = shared.workspace.shared;
    if (conv.few_input) {
      const auto kind = few_channels::Conv::kPlainToBlocked;
      const float* blocked = conv.blocked_y(shared, d_y);
      few_channels::conv_few_output(kind, blocked, conv.y, weights, d_x, conv.x.channels,
                                    AddChannelBias{nullptr}, pool, scratch);
      few_channels::weight_gradient(kind, blocked, conv.y, x, conv.x.channels, d_weights, d_bias,
                                    nullptr, pool, scratch);
    } else if (conv.few_output) {
      const float* blocked_x = conv.blocked_x(shared, x);
      const auto kind = few_channels::Conv::kBlockedToPlain;
      few_channels::weight_gradient(kind, blocked_x, conv.x, d_y, conv.y.channels, d_weights,
                                    nullptr, d_bias, pool, scratch);
      float* target = conv.x_is_blocked ? d_x : shared.blocked_x.get(conv.x.floats());
      few_channels::conv_few_input(kind, d_y, conv.y.channels, weights, target, conv.x,
                                   NoEpilogue(), pool, scratch);
      if (!conv.x_is_blocked) to_plain(pool, target, conv.x, d_x);
    } else {
      const float* blocked_x = conv.blocked_x(shared, x);
      const float* blocked_y = conv.blocked_y(shared, d_y);
      weight_gradient(pool, shared.workspace, conv.x, blocked_x, conv.y, blocked_y, d_weights);
      if (conv.has_bias) {
        PostOps none;  // the bias gradient is that of beta without norm
        none.shape = conv.y;
        PostOpsGradients sums;
        sums.beta = d_bias;
        post_ops_backward(pool, none, blocked_y, nullptr, nullptr, nullptr, blocked_y, sums);
      }
      float* target = shared.blocked_x.get(conv.x.floats());
      convolve(pool, shared.workspace, conv.y, blocked_y,
               Weights::input_gradient(weights, conv.y.channels, conv.x.channels), target,
               NoEpilogue());
      to_plain(pool, target, conv.x, d_x);
    }
    if (!whole)
      conv.for_taps([&](size_t tap, size_t full_tap) { d_kernel[tap] = d_weights[full_tap]; });
  });
}

// x (blocked), dropout_mask (batch, channels) -> x times the factor of each channel.
FC3D_EXPORT int scale_channels(int, void** data, int*, int64_t** shapes, const char**, void*,
                               void*) {
  return with_runtime([&](Runtime& shared) {
    const Arguments arguments{data, shapes};
    const Shape shape = arguments.shape(0, static_cast<int>(shapes[1][1]));
    scale_channels(shared.pool, shape, arguments.get(0), arguments.get(1), arguments.get(2));
  });
}

namespace {

// spec: the foreground channel, whether there is a bias.
head::Head head_of(const Arguments& arguments, int spec_index, const float* bias) {
  const float* spec = arguments.get(spec_index);
  const int64_t* kernel = arguments.shapes[1];
  return {arguments.shape(0, static_cast<int>(kernel[1])), static_cast<int>(kernel[2]),
          static_cast<int>(spec[0]), arguments.get(1), spec[1] != 0 ? bias : nullptr};
}

}  // namespace

// x, weight, bias, spec -> probability.
FC3D_EXPORT int head_forward(int, void** data, int*, int64_t** shapes, const char**, void*, void*) {
  return with_runtime([&](Runtime& shared) {
    const Arguments arguments{data, shapes};
    const head::Head head = head_of(arguments, 3, arguments.get(2));
    head::forward(shared.pool, shared.workspace.shared, head, arguments.get(0), arguments.get(4));
  });
}

// x, weight, probability, d_probability, spec -> d_x, d_weight, d_bias.
FC3D_EXPORT int head_backward(int, void** data, int*, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& shared) {
    const Arguments arguments{data, shapes};
    const head::Head head = head_of(arguments, 4, arguments.get(7));
    head::backward(shared.pool, shared.workspace.shared, head, arguments.get(0), arguments.get(2),
                   arguments.get(3), arguments.get(5), arguments.get(6),
                   head.bias == nullptr ? nullptr : arguments.get(7));
  });
}

// Sets the number of threads; may be called between any two operators.
FC3D_EXPORT void set_threads(int threads) {
  const std::lock_guard<std::mutex> lock(mutex);
  thread_count = std::max(1, threads);
  runtime.reset();
}

}  // namespace fast_conv3d
