// A whole V-Net of src/vnet.py, from raw parameter pointers: its layers, and inference. training.h
// has the rest. Needs no MindSpore.
//
//   const Network network(description, {1, 1, 128, 128, 64});
//   std::vector<LayerParameters> parameters = ...;  // one for each of network.layers
//   infer(runtime, network, parameters, {volume}, probability);
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
#include <vector>

#include "head.h"
#include "layout.h"
#include "units.h"

namespace fast_conv3d {

constexpr int kLevels = 5;         // of resolution; each has half the sides of the one above
constexpr int kSideMultiple = 16;  // of the volume's sides, which are halved four times
// Limits of a valid description: all sizes and offsets in bytes then fit into 63 bits, and a
// plane's into 31.
constexpr int kMaxSide = 1024;
constexpr int kMaxWidth = 1024;
constexpr int kMaxDepth = 64;

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

// A convolution with what follows it, as Unit; the last is none. Tensors are named by the number of
// the layer that writes them.
struct Layer {
  static constexpr int kVolume = -1, kNone = -2;

  bool is_last;
  Kind kind;  // of a unit
  int in_channels, out_channels, side;
  bool has_bias;
  Norm norm;
  Activation first, second;

  int source;                 // the convolution's input
  int residual = kNone;       // added to the first activation
  int skip = kNone;           // concatenated to the output
  int source_column = kNone;  // column of the dropout mask for the source's first channel
  int skip_column = kNone;    // and for the skip's first channel
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

inline bool is_statistic(Parameter parameter) {
  return parameter == Parameter::kMean || parameter == Parameter::kVariance;
}

// A pointer for each of a layer's parameters: const float* for the parameters themselves, float*
// for their gradients.
template <typename T>
struct PerParameter {
  std::array<T, kParameters> pointers{};

  T& operator[](Parameter parameter) { return pointers[static_cast<size_t>(parameter)]; }
  T operator[](Parameter parameter) const { return pointers[static_cast<size_t>(parameter)]; }
};
using LayerParameters = PerParameter<const float*>;  // not read where `parameter_floats` is 0

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

// Calls visit(layer's number, parameter, floats) for each parameter that a layer has.
template <typename Visit>
void for_each_parameter(const std::vector<Layer>& layers, const Visit& visit) {
  for (size_t layer = 0; layer < layers.size(); ++layer)
    for (int i = 0; i < kParameters; ++i) {
      const auto parameter = static_cast<Parameter>(i);
      if (const size_t floats = parameter_floats(layers[layer], parameter))
        visit(layer, parameter, floats);
    }
}

// The layers of a network, in their order.
class LayerList {
 public:
  LayerList(const NetworkDescription& description, const DropoutColumns* dropout)
      : d_(description), dropout_(dropout) {
    add(Kind::kConv5, 1, channels(0), d_.encoder_bias, kNo, d_.activation).residual =
        Layer::kVolume;
    int skips[kLevels];
    for (int level = 1; level < kLevels; ++level) {
      skips[level - 1] = newest();
      add(Kind::kConvDown2, channels(level - 1), channels(level), d_.encoder_bias, d_.activation);
      add_block(d_.encoder_depths[level], channels(level), d_.encoder_bias,
                column(&DropoutColumns::down, level - 1));
    }
    for (int stage = 0; stage < kLevels - 1; ++stage) {
      const int level = kLevels - 2 - stage;
      Layer& up = add(Kind::kConvUp2, channels(stage == 0 ? level + 1 : level + 2), channels(level),
                      d_.up_bias, d_.activation);
      up.skip = skips[level];
      up.source_column = column(&DropoutColumns::up, stage);
      up.skip_column = column(&DropoutColumns::skip, stage);
      add_block(d_.decoder_depths[stage], channels(level + 1), d_.decoder_bias, Layer::kNone);
    }
    if (d_.head_unit) add(Kind::kConv5, channels(1), 2, d_.encoder_bias, d_.activation);
    layers.push_back({true, Kind::kConv5, d_.head_unit ? 2 : channels(1), 2, d_.head_side,
                      d_.head_bias, Norm::kNone, kNo, kNo, newest()});
  }

  std::vector<Layer> layers;

 private:
  static constexpr Activation kNo = Activation::kNone;

  int channels(int level) const { return d_.width << level; }
  int newest() const { return static_cast<int>(layers.size()) - 1; }
  int column(std::array<int, kLevels - 1> DropoutColumns::* place, int stage) const {
    const int found = dropout_ == nullptr ? -1 : (dropout_->*place)[stage];
    return found < 0 ? Layer::kNone : found;
  }
  Layer& add(Kind kind, int in, int out, bool bias, Activation first, Activation second = kNo) {
    const int side = kind == Kind::kConvDown2 || kind == Kind::kConvUp2 ? 2 : kTaps;
    layers.push_back({false, kind, in, out, side, bias, d_.norm, first, second, newest()});
    return layers.back();
  }
  // A residual block, whose input is dropped by the factors from `column` on.
  void add_block(int depth, int width, bool bias, int column) {
    const int input = newest();
    const Activation last_first = d_.activation_before_sum ? d_.activation : kNo;
    for (int i = 1; i < depth; ++i) add(Kind::kConv5, width, width, bias, d_.activation);
    add(Kind::kConv5, width, width, bias, last_first, d_.activation).residual = input;
    layers[input + 1].source_column = column;
  }

  const NetworkDescription& d_;
  const DropoutColumns* dropout_;
};
inline std::vector<Layer> layers_of(const NetworkDescription& description,
                                    const DropoutColumns* dropout = nullptr) {
  return LayerList(description, dropout).layers;
}

// The tensors of a layer: the convolution's input and output, and the unit's output.
struct LayerShapes {
  Shape x, y, out;
};

// A network that takes volumes of one shape.
struct Network {
  NetworkDescription description;
  Shape volume;
  std::vector<Layer> layers;
  std::vector<LayerShapes> shapes;

  Network(const NetworkDescription& of, const Shape& volume_shape,
          const DropoutColumns* dropout = nullptr)
      : description(of), volume(volume_shape), layers(layers_of(of, dropout)) {
    assert(fault_of(of) == nullptr && volume.valid() && volume.channels == 1);
    volume.plain = true;
    for (const Layer& layer : layers) {
      const Shape x = shape_of(layer.source);
      const Shape y = layer.is_last ? Shape{x.batch, 1, x.x, x.y, x.z, true}
                                    : convolved_shape(layer.kind, x, layer.out_channels);
      const int skipped = layer.skip < 0 ? 0 : shape_of(layer.skip).channels;
      shapes.push_back({x, y, skipped > 0 ? y.with_channels(y.channels + skipped) : y});
    }
  }

  int count() const { return static_cast<int>(layers.size()); }
  const Shape& shape_of(int tensor) const { return tensor < 0 ? volume : shapes[tensor].out; }
};

// ---- Plan: which tensors are where -------------------------------------------------------------

// Assigns places in one buffer to tensors. The place of a released tensor is used again.
class Arena {
 public:
  // Returns the offset of a new tensor, in floats.
  size_t take(size_t floats) {
    const size_t length = ceil_div(floats, kAlign) * kAlign;
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

// Where the outputs of the layers are in an arena; a place is used again after its last reader.
struct InferencePlan {
  std::vector<size_t> places;  // of each layer but the last, whose output is the network's
  size_t floats;

  explicit InferencePlan(const Network& network) {
    const int count = network.count();
    std::vector<int> last_reader(count);
    for (int i = 0; i < count; ++i)
      for (const int tensor :
           {network.layers[i].source, network.layers[i].residual, network.layers[i].skip})
        if (tensor >= 0) last_reader[tensor] = i;
    Arena arena;
    for (int i = 0; i < count; ++i) {
      if (i + 1 < count) places.push_back(arena.take(network.shapes[i].out.floats()));
      for (int tensor = 0; tensor < i; ++tensor)
        if (last_reader[tensor] == i) arena.release(places[tensor]);
    }
    floats = arena.size();
  }
};

// ---- Inference ---------------------------------------------------------------------------------

// What a network computes from.
struct NetworkInput {
  const float* volume;                  // (batch, 1, x, y, z)
  const float* dropout_mask = nullptr;  // (batch, columns), or null
  int columns = 0;

  NetworkInput image(const Network& network, int number) const {
    return {volume + number * network.volume.voxels(),
            dropout_mask == nullptr ? nullptr : dropout_mask + number * columns, columns};
  }
  // The factors of a tensor's channels, (batch, channels); empty without dropout there.
  std::vector<float> factors(int column, const Shape& shape) const {
    std::vector<float> found;
    if (dropout_mask == nullptr || column == Layer::kNone) return found;
    for (int image = 0; image < shape.batch; ++image) {
      const float* first = dropout_mask + image * columns + column;
      found.insert(found.end(), first, first + shape.channels);
    }
    return found;
  }
};

// A layer of the network with its parameters and tensors.
class BoundLayer {
 public:
  // `outs` are the outputs of the layers before.
  BoundLayer(const Network& network, int number, const LayerParameters& parameters,
             const NetworkInput& input, const std::vector<float*>& outs)
      : network_(network),
        number_(number),
        parameters_(parameters),
        input_(input),
        outs_(outs),
        source_factors_(input.factors(layer().source_column, shapes().x)),
        skip_factors_(layer().skip < 0 ? std::vector<float>()
                                       : input.factors(layer().skip_column, skip_shape())) {}

  const Layer& layer() const { return network_.layers[number_]; }
  const LayerShapes& shapes() const { return network_.shapes[number_]; }
  const Shape& skip_shape() const { return network_.shape_of(layer().skip); }
  const float* parameter(Parameter parameter) const {
    return parameter_floats(layer(), parameter) > 0 ? parameters_[parameter] : nullptr;
  }
  const float* tensor(int number) const {
    if (number == Layer::kNone) return nullptr;
    return number == Layer::kVolume ? input_.volume : outs_[number];
  }
  const std::vector<float>& source_factors() const { return source_factors_; }

  // The convolution's input; with dropout it is computed anew, into scratch memory.
  const float* source(Runtime& runtime) const {
    const float* whole = tensor(layer().source);
    if (source_factors_.empty()) return whole;
    float* dropped = runtime.copy_of_x.get(shapes().x.floats());
    scale_channels(runtime.pool, shapes().x, whole, source_factors_.data(), dropped);
    return dropped;
  }

  Unit unit(Runtime& runtime) const {
    Unit unit;
    unit.kind = layer().kind;
    unit.x = shapes().x;
    unit.y = shapes().y;
    unit.source = source(runtime);
    unit.weights = parameter(Parameter::kWeight);
    unit.bias = parameter(Parameter::kBias);
    PostOps& post_ops = unit.post_ops;
    post_ops.shape = unit.y;
    post_ops.gamma = parameter(Parameter::kGamma);
    post_ops.beta = parameter(Parameter::kBeta);
    post_ops.epsilon = network_.description.epsilon;
    post_ops.first = layer().first;
    post_ops.first_slopes = parameter(Parameter::kFirstSlopes);
    post_ops.second = layer().second;
    post_ops.second_slopes = parameter(Parameter::kSecondSlopes);
    post_ops.residual = tensor(layer().residual);
    post_ops.residual_is_volume = layer().residual == Layer::kVolume;
    post_ops.skip = tensor(layer().skip);
    if (post_ops.skip != nullptr) post_ops.skip_channels = skip_shape().channels;
    if (!skip_factors_.empty()) post_ops.dropout_mask = skip_factors_.data();
    return unit;
  }

  // The last layer; larger kernels read a plain input.
  head::Head head(bool logits) const {
    head::Head head{shapes().x,
                    layer().side,
                    network_.description.foreground,
                    parameter(Parameter::kWeight),
                    parameter(Parameter::kBias),
                    logits};
    head.shape.plain |= layer().side > 1;
    return head;
  }
  const float* head_source(Runtime& runtime) const {
    const float* source = tensor(layer().source);
    if (layer().side == 1 || shapes().x.plain) return source;
    float* plain = runtime.copy_of_x.get(shapes().x.floats());
    to_plain(runtime.pool, source, shapes().x, plain);
    return plain;
  }

 private:
  const Network& network_;
  int number_;
  const LayerParameters& parameters_;
  const NetworkInput& input_;
  const std::vector<float*>& outs_;
  std::vector<float> source_factors_, skip_factors_;
};

inline void infer_layer(Runtime& runtime, const BoundLayer& bound, float* out) {
  const Unit unit = bound.unit(runtime);
  if (bound.layer().norm != Norm::kInstance)
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

inline void infer_last(Runtime& runtime, const BoundLayer& bound, bool logits, float* out) {
  head::forward(runtime.pool, runtime.workspace.shared, bound.head(logits),
                bound.head_source(runtime), out);
}

// Calls task(network, input, first voxel) with the whole batch; with instance norm with each image
// alone, since it has its own statistics.
template <typename Task>
void for_each_norm(const Network& network, const NetworkInput& input, const Task& task) {
  if (network.description.norm != Norm::kInstance || network.volume.batch == 1)
    return task(network, input, size_t{0});
  Network one = network;
  one.volume.batch = 1;
  for (LayerShapes& shapes : one.shapes) shapes.x.batch = shapes.y.batch = shapes.out.batch = 1;
  for (int image = 0; image < network.volume.batch; ++image)
    task(one, input.image(network, image), image * network.volume.voxels());
}

// Computes the foreground's probability, or its logit, (batch, x, y, z).
//
// `parameters` has an entry for each of the network's layers. The runtime's scratch memory grows at
// the first call and is reused by the next ones. Throws std::bad_alloc.
inline void infer(Runtime& runtime, const Network& whole,
                  const std::vector<LayerParameters>& parameters, const NetworkInput& whole_input,
                  float* output, bool logits = false) {
  assert(static_cast<int>(parameters.size()) == whole.count());
  for_each_norm(whole, whole_input,
                [&](const Network& network, const NetworkInput& input, size_t voxel) {
                  const InferencePlan plan(network);
                  float* arena = runtime.activations.get(plan.floats);
                  std::vector<float*> outs;
                  for (const size_t place : plan.places) outs.push_back(arena + place);
                  for (int i = 0; i < network.count(); ++i) {
                    const BoundLayer bound(network, i, parameters[i], input, outs);
                    if (network.layers[i].is_last)
                      infer_last(runtime, bound, logits, output + voxel);
                    else
                      infer_layer(runtime, bound, outs[i]);
                  }
                });
}

}  // namespace fast_conv3d
