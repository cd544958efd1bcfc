// The inference of a whole V-Net of src/vnet.py, from raw parameter pointers; needs no MindSpore.
//
//   const NetworkDescription description = ...;
//   const std::vector<Layer> layers = layers_of(description);
//   std::vector<LayerParameters> parameters = ...;  // one for each layer
//   infer(runtime, description, parameters, {1, 1, 128, 128, 64}, volume, probability);
//
// Layers are the convolutions in the order in which they are computed: the input stage; of each
// stage down, the 2x2x2 convolution and the units of the residual block; the same of each stage up;
// of the head, the 5x5x5 convolution, if any, and the last one.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "head.h"
#include "units.h"

namespace fast_conv3d {

constexpr int kLevels = 5;         // of resolution; each has half the sides of the one above
constexpr int kSideMultiple = 16;  // of the volume's sides, which are halved four times
constexpr int kMaxSide = 1024;     // limits of a valid description: all sizes and offsets in bytes
constexpr int kMaxWidth = 1024;    // then fit into 63 bits, and a plane's into 31
constexpr int kMaxDepth = 64;

enum class Norm { kNone, kBatch, kInstance };

// The arguments of VNet in src/vnet.py.
struct NetworkDescription {
  int width = 16;                                           // channels of the first stage
  std::array<int, kLevels> encoder_depths{1, 1, 2, 3, 2};   // 5x5x5 convolutions of a stage
  std::array<int, kLevels - 1> decoder_depths{2, 2, 1, 1};  // deepest first
  Activation activation = Activation::kElu;
  Norm norm = Norm::kBatch;
  bool activation_before_sum = true;
  bool encoder_bias = false, decoder_bias = false, up_bias = false, head_bias = false;
  bool head_unit = true;
  int head_side = 3;  // of the last convolution's kernel: 1, 3 or 5
  int foreground = 0;
  float epsilon = 1e-5f;  // of the norm

  int channels(int level) const { return width << level; }
};

// What is wrong with a description, or null.
inline const char* fault_of(const NetworkDescription& d) {
  const auto depth_is_valid = [](int depth) { return depth >= 1 && depth <= kMaxDepth; };
  if (d.width < 1 || d.width > kMaxWidth) return "the width";
  if (d.encoder_depths[0] != 1) return "the depth of the input stage";
  if (!std::all_of(d.encoder_depths.begin(), d.encoder_depths.end(), depth_is_valid) ||
      !std::all_of(d.decoder_depths.begin(), d.decoder_depths.end(), depth_is_valid))
    return "a stage's depth";
  if (d.activation != Activation::kElu && d.activation != Activation::kPrelu)
    return "the activation";
  if (d.norm != Norm::kNone && d.norm != Norm::kBatch && d.norm != Norm::kInstance)
    return "the norm";
  if (d.head_side != 1 && d.head_side != 3 && d.head_side != 5) return "the head's kernel";
  if (d.head_side > 1 && !d.head_unit) return "a larger head's kernel without the head's unit";
  if (d.foreground != 0 && d.foreground != 1) return "the foreground's channel";
  if (!(d.epsilon >= 0 && d.epsilon < 1)) return "epsilon";
  return nullptr;
}

// Whether a network takes volumes of this shape. Instance norm needs two voxels at the lowest
// level.
inline bool takes_shape(const NetworkDescription& d, const Shape& volume) {
  const auto side_is_valid = [](int side) {
    return side >= kSideMultiple && side <= kMaxSide && side % kSideMultiple == 0;
  };
  return volume.batch >= 1 && volume.channels == 1 && side_is_valid(volume.x) &&
         side_is_valid(volume.y) && side_is_valid(volume.z) &&
         (d.norm != Norm::kInstance || std::max({volume.x, volume.y, volume.z}) > kSideMultiple);
}

// ---- Layers and their parameters ---------------------------------------------------------------

// A convolution with what follows it, as Unit; the last is none.
struct Layer {
  bool is_last;
  Kind kind;  // of a unit
  int in_channels, out_channels, side;
  bool has_bias;
  Norm norm;
  Activation first, second;
};

// Order of the parameters of a layer; all are (out_channels) but the weight, which has the layout
// of MindSpore and PyTorch.
enum class Parameter {
  kWeight,  // (out_channels, in_channels, side, side, side); kConvUp2: (in_channels, out_channels..
  kBias,
  kGamma,  // of the norm
  kBeta,
  kMean,  // moving statistics of batch norm
  kVariance,
  kFirstSlopes,  // PReLU's before the residual's sum
  kSecondSlopes  // and after it
};
constexpr int kParameters = 8;

// Pointers to the parameters of a layer; not read where `parameter_floats` is 0.
struct LayerParameters {
  std::array<const float*, kParameters> pointers{};

  const float* operator[](Parameter parameter) const {
    return pointers[static_cast<size_t>(parameter)];
  }
};

// The number of floats of a layer's parameter; 0 if it has none of this kind.
inline size_t parameter_floats(const Layer& layer, Parameter parameter) {
  const auto channels = static_cast<size_t>(layer.out_channels);
  const auto if_any = [&](bool has) { return has ? channels : 0; };
  switch (parameter) {
    case Parameter::kWeight:
      return channels * layer.in_channels * layer.side * layer.side * layer.side;
    case Parameter::kBias:
      return if_any(layer.has_bias);
    case Parameter::kGamma:
    case Parameter::kBeta:
      return if_any(layer.norm != Norm::kNone);
    case Parameter::kMean:
    case Parameter::kVariance:
      return if_any(layer.norm == Norm::kBatch);
    case Parameter::kFirstSlopes:
      return if_any(layer.first == Activation::kPrelu);
    case Parameter::kSecondSlopes:
      return if_any(layer.second == Activation::kPrelu);
  }
  return 0;
}

// The layers of a network, in their order.
inline std::vector<Layer> layers_of(const NetworkDescription& d) {
  constexpr Activation kNo = Activation::kNone;
  const Activation act = d.activation;
  std::vector<Layer> layers;
  const auto unit = [&](Kind kind, int in, int out, bool bias, Activation first,
                        Activation second) {
    const int side = kind == Kind::kConvDown2 || kind == Kind::kConvUp2 ? 2 : kTaps;
    layers.push_back({false, kind, in, out, side, bias, d.norm, first, second});
  };
  const auto block = [&](int depth, int channels, bool bias) {
    for (int i = 1; i < depth; ++i) unit(Kind::kConv5, channels, channels, bias, act, kNo);
    unit(Kind::kConv5, channels, channels, bias, d.activation_before_sum ? act : kNo, act);
  };
  unit(Kind::kFewInput, 1, d.width, d.encoder_bias, kNo, act);
  for (int level = 1; level < kLevels; ++level) {
    unit(Kind::kConvDown2, d.channels(level - 1), d.channels(level), d.encoder_bias, act, kNo);
    block(d.encoder_depths[level], d.channels(level), d.encoder_bias);
  }
  int below = d.channels(kLevels - 1);
  for (int level = kLevels - 2; level >= 0; --level) {
    unit(Kind::kConvUp2, below, d.channels(level), d.up_bias, act, kNo);
    below = 2 * d.channels(level);
    block(d.decoder_depths[kLevels - 2 - level], below, d.decoder_bias);
  }
  if (d.head_unit) unit(Kind::kConv5, below, 2, d.encoder_bias, act, kNo);
  layers.push_back({true, Kind::kConv5, d.head_unit ? 2 : below, 2, d.head_side, d.head_bias,
                    Norm::kNone, kNo, kNo});
  return layers;
}

// ---- Plan: which tensors are where -------------------------------------------------------------

// Assigns places in one buffer to tensors. The place of a released tensor is used again.
class Arena {
 public:
  // Returns the offset of a new tensor, in floats.
  size_t take(size_t floats) {
    const size_t length = (floats + kAlign - 1) / kAlign * kAlign;
    size_t at = 0;
    auto next = taken_.begin();  // the first tensor behind the gap at `at`
    for (; next != taken_.end() && next->begin < at + length; ++next) at = next->end;
    taken_.insert(next, {at, at + length});
    size_ = std::max(size_, at + length);
    return at;
  }
  void release(size_t begin) {
    const auto tensor = std::find_if(taken_.begin(), taken_.end(),
                                     [&](const Place& place) { return place.begin == begin; });
    assert(tensor != taken_.end());
    taken_.erase(tensor);
  }
  // The number of floats that all tensors together need.
  size_t size() const { return size_; }

 private:
  struct Place {
    size_t begin, end;
  };
  static constexpr size_t kAlign = 16;  // a cache line

  std::vector<Place> taken_;  // in the order of their offsets
  size_t size_ = 0;
};

// The computation of one layer: where its tensors are in the arena.
struct Step {
  static constexpr size_t kNone = SIZE_MAX;     // no residual or skip
  static constexpr size_t kVolume = kNone - 1;  // the network's input

  Shape x;  // of the source
  size_t source, residual, skip;
  size_t target;  // the last step's: kNone, since it writes the probability
  int skip_channels;
};

struct Plan {
  std::vector<Step> steps;  // one for each layer
  size_t arena_floats;
};

// The tensors of a network that takes volumes of this shape.
inline Plan plan_network(const NetworkDescription& d, const Shape& volume) {
  constexpr size_t kNone = Step::kNone;
  struct Tensor {
    Shape shape;
    size_t at;
  };
  Arena arena;
  Plan plan;
  const auto take = [&](const Shape& grid, int channels) {
    const Shape shape = grid.with_channels(channels);
    return Tensor{shape, arena.take(shape.floats())};
  };
  const auto step = [&](const Tensor& source, const Tensor& target, size_t residual) {
    plan.steps.push_back({source.shape, source.at, residual, kNone, target.at, 0});
  };
  // Releases its input, which is the residual too.
  const auto block = [&](int depth, const Tensor& input) {
    Tensor x = input;
    for (int i = 1; i <= depth; ++i) {
      const Tensor next = take(x.shape, x.shape.channels);
      step(x, next, i == depth ? input.at : kNone);
      if (i > 1) arena.release(x.at);
      x = next;
    }
    arena.release(input.at);
    return x;
  };

  Tensor x = take(volume, d.width);
  step({volume.with_channels(1), Step::kVolume}, x, Step::kVolume);
  std::vector<Tensor> skips;
  for (int level = 1; level < kLevels; ++level) {
    skips.push_back(x);
    const Tensor down = take(convolved_shape(Kind::kConvDown2, x.shape, 1), d.channels(level));
    step(x, down, kNone);
    x = block(d.encoder_depths[level], down);
  }
  for (int level = kLevels - 2; level >= 0; --level) {
    const Tensor skip = skips[level];
    const Tensor joined = take(skip.shape, 2 * skip.shape.channels);
    step(x, joined, kNone);
    plan.steps.back().skip = skip.at;
    plan.steps.back().skip_channels = skip.shape.channels;
    arena.release(x.at);
    arena.release(skip.at);
    x = block(d.decoder_depths[kLevels - 2 - level], joined);
  }
  if (d.head_unit) {
    const Tensor logits = take(x.shape, 2);
    step(x, logits, kNone);
    x = logits;
  }
  step(x, {x.shape, kNone}, kNone);
  plan.arena_floats = arena.size();
  return plan;
}

// ---- Inference ---------------------------------------------------------------------------------

// A layer of the network with its parameters and tensors.
struct BoundLayer {
  const NetworkDescription& network;
  const Layer& layer;
  const LayerParameters& parameters;
  const Step& step;
  const float* volume;
  float* arena;

  const float* parameter(Parameter parameter) const {
    return parameter_floats(layer, parameter) > 0 ? parameters[parameter] : nullptr;
  }
  const float* tensor(size_t at) const {
    if (at == Step::kNone) return nullptr;
    return at == Step::kVolume ? volume : arena + at;
  }
  const float* source() const { return tensor(step.source); }

  PostOps post_ops(const Shape& y) const {
    PostOps post_ops;
    post_ops.shape = y;
    post_ops.gamma = parameter(Parameter::kGamma);
    post_ops.beta = parameter(Parameter::kBeta);
    post_ops.epsilon = network.epsilon;
    post_ops.first = layer.first;
    post_ops.first_slopes = parameter(Parameter::kFirstSlopes);
    post_ops.second = layer.second;
    post_ops.second_slopes = parameter(Parameter::kSecondSlopes);
    post_ops.residual = tensor(step.residual);
    post_ops.residual_is_volume = step.residual == Step::kVolume;
    post_ops.skip = tensor(step.skip);
    post_ops.skip_channels = step.skip_channels;
    return post_ops;
  }
};

inline void infer_layer(Runtime& runtime, const BoundLayer& bound) {
  Unit unit;
  unit.kind = bound.layer.kind;
  unit.x = bound.step.x;
  unit.y = convolved_shape(unit.kind, unit.x, bound.layer.out_channels);
  unit.source = bound.source();
  unit.weights = bound.parameter(Parameter::kWeight);
  unit.bias = bound.parameter(Parameter::kBias);
  unit.post_ops = bound.post_ops(unit.y);
  float* out = bound.arena + bound.step.target;
  if (bound.layer.norm != Norm::kInstance)
    return infer_unit(runtime, unit, bound.parameter(Parameter::kMean),
                      bound.parameter(Parameter::kVariance), out);
  assert(unit.y.batch == 1);
  std::vector<double> mean(unit.y.channels), variance(unit.y.channels);
  if (unit.post_ops.interleaves()) {
    float* y = runtime.copy_of_y.get(unit.y.floats());
    convolve_with_statistics(runtime, unit, y, mean.data(), variance.data());
    return post_ops_forward(runtime.pool, unit.post_ops, y, mean.data(), variance.data(), out);
  }
  // The only image's blocks lie at the beginning of `out`, also where a skip follows.
  convolve_with_statistics(runtime, unit, out, mean.data(), variance.data());
  PostOps in_place = unit.post_ops;
  in_place.skip = nullptr;
  in_place.skip_channels = 0;
  post_ops_forward(runtime.pool, in_place, out, mean.data(), variance.data(), out);
  if (unit.post_ops.skip != nullptr) concat_forward(runtime.pool, unit.post_ops, out);
}

inline void infer_last(Runtime& runtime, const BoundLayer& bound, float* probability) {
  const head::Head last{bound.step.x,
                        bound.layer.side,
                        bound.network.foreground,
                        bound.parameter(Parameter::kWeight),
                        bound.parameter(Parameter::kBias),
                        false};
  head::forward(runtime.pool, runtime.workspace.shared, last, bound.source(), probability);
}

// Computes the foreground's probability (batch, x, y, z) of `volume` (batch, 1, x, y, z).
//
// `parameters` has an entry for each of layers_of(description). The runtime's scratch memory grows
// at the first call and is reused by the next ones. Throws std::bad_alloc.
inline void infer(Runtime& runtime, const NetworkDescription& description,
                  const std::vector<LayerParameters>& parameters, const Shape& shape,
                  const float* volume, float* probability) {
  assert(fault_of(description) == nullptr && takes_shape(description, shape));
  if (description.norm == Norm::kInstance && shape.batch > 1) {  // each has its own statistics
    Shape one = shape;
    one.batch = 1;
    for (size_t image = 0; image < static_cast<size_t>(shape.batch); ++image)
      infer(runtime, description, parameters, one, volume + image * shape.voxels(),
            probability + image * shape.voxels());
    return;
  }
  const std::vector<Layer> layers = layers_of(description);
  const Plan plan = plan_network(description, shape);
  assert(parameters.size() == layers.size() && plan.steps.size() == layers.size());
  float* arena = runtime.activations.get(plan.arena_floats);
  for (size_t i = 0; i < layers.size(); ++i) {
    const BoundLayer bound{description, layers[i], parameters[i], plan.steps[i], volume, arena};
    if (layers[i].is_last)
      infer_last(runtime, bound, probability);
    else
      infer_layer(runtime, bound);
  }
}

}  // namespace fast_conv3d
