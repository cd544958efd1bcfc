// Training of a whole V-Net: the forward pass with the statistics of the batch, and all gradients.
//
// The tape is one array with everything that the backward pass needs. Gradients of activations take
// the places of tensors that are not needed any more, so that the backward pass uses up the tape.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "network.h"

namespace fast_conv3d {

// ---- The gradients of a unit -------------------------------------------------------------------

// An epilogue that accumulates into the target.
struct AddToTarget {
  const float* target;
  Shape shape;
  FC3D_INLINE Vec operator()(Vec value, int image, int block, size_t voxel) const {
    return value + load(target + block_offset(shape, image, block) + voxel * shape.voxel_floats());
  }
};

// The gradients of a unit's inputs. Those that are null are not computed. Only post_ops.y, the
// gradient of y, is required; it may share memory with y.
struct UnitGradients {
  float* source = nullptr;
  bool adds_to_source = false;  // to what is there, which may be the residual's gradient
  float* weights = nullptr;
  PostOpsGradients post_ops;
};

template <typename Epilogue>
void unit_input_gradient(Runtime& runtime, const Unit& unit, const float* d_y, float* d_x,
                         const Epilogue& epilogue) {
  ThreadPool& pool = runtime.pool;
  Workspace& workspace = runtime.workspace;
  switch (unit.kind) {
    case Kind::kConv5:
      return convolve5(pool, workspace, unit.y, d_y,
                       Weights::input_gradient(unit.weights, unit.y.channels, unit.x.channels),
                       unit.x, d_x, epilogue);
    case Kind::kConvDown2:
      return up2(pool, workspace, unit.y, d_y, unit.weights, unit.x, d_x, epilogue);
    case Kind::kConvUp2:
      return down2(pool, workspace, unit.y, d_y, unit.weights, unit.x, d_x, epilogue);
  }
}

inline void unit_weight_gradient(Runtime& runtime, const Unit& unit, const float* d_y,
                                 float* d_weights) {
  ThreadPool& pool = runtime.pool;
  Workspace& workspace = runtime.workspace;
  switch (unit.kind) {
    case Kind::kConv5:
      return weight_gradient5(pool, workspace, unit.x, unit.source, unit.y, d_y, d_weights);
    case Kind::kConvDown2:
      return weight_gradient2(pool, workspace, unit.y, d_y, unit.x, unit.source, d_weights);
    case Kind::kConvUp2:
      return weight_gradient2(pool, workspace, unit.x, unit.source, unit.y, d_y, d_weights);
  }
}

// `out` is only read if post_ops.backward_reads_out(); mean and variance are those of
// convolve_with_statistics.
inline void unit_backward(Runtime& runtime, const Unit& unit, const float* y, const float* out,
                          const double* mean, const double* variance, const float* d_out,
                          const UnitGradients& gradients) {
  float* split = unit.post_ops.interleaves() ? runtime.copy_of_y.get(unit.y.floats()) : nullptr;
  post_ops_backward(runtime.pool, unit.post_ops, y, out, mean, variance, d_out, split,
                    gradients.post_ops);
  const float* d_y = gradients.post_ops.y;
  if (gradients.source != nullptr && gradients.adds_to_source)
    unit_input_gradient(runtime, unit, d_y, gradients.source,
                        AddToTarget{gradients.source, unit.x});
  else if (gradients.source != nullptr)
    unit_input_gradient(runtime, unit, d_y, gradients.source, NoEpilogue());
  if (gradients.weights != nullptr) unit_weight_gradient(runtime, unit, d_y, gradients.weights);
}

// The gradient of the dropout mask of a unit's skip, (batch, skip channels).
inline void skip_mask_gradient(Runtime& runtime, const PostOps& post_ops, const float* d_out,
                               float* d_mask) {
  PostOps concat = post_ops;
  concat.dropout_mask = nullptr;
  const Shape skip = post_ops.skip_shape();
  float* d_scaled = runtime.d_product.get(skip.floats());
  if (concat.interleaves())
    split_gradient(runtime.pool, concat, d_out, runtime.copy_of_y.get(concat.shape.floats()),
                   d_scaled);
  else
    concat_backward(runtime.pool, concat, d_out, d_scaled);
  scale_mask_gradient(runtime.pool, skip, post_ops.skip, d_scaled, d_mask);
}

// ---- Plan: which tensors are where on the tape -------------------------------------------------

struct TrainingPlan {
  static constexpr size_t kNowhere = SIZE_MAX;

  // Of a layer.
  struct Places {
    size_t y, out, statistics;
    size_t d_out = kNowhere;      // the gradient of out; d_y takes the place of y
    bool adds_to_source = false;  // whether its source has a gradient already, of another reader
  };

  std::vector<Places> layers;  // the last one has none of the tensors
  size_t floats;

  explicit TrainingPlan(const Network& network) : layers(network.count()) {
    Arena arena;
    for (int i = 0; i + 1 < network.count(); ++i) {
      const LayerShapes& shapes = network.shapes[i];
      layers[i].y = arena.take(shapes.y.floats());
      layers[i].out = arena.take(shapes.out.floats());
      layers[i].statistics = arena.take(statistics_floats(shapes.y));
    }
    const auto take_gradient = [&](int tensor) {
      if (tensor < 0 || layers[tensor].d_out != kNowhere) return;
      layers[tensor].d_out = arena.take(network.shape_of(tensor).floats());
    };
    for (int i = network.count() - 1; i >= 0; --i) {
      const Layer& layer = network.layers[i];
      Places& places = layers[i];
      // The residual's gradient takes the place of d_out.
      if (layer.residual >= 0) layers[layer.residual].d_out = places.d_out;
      take_gradient(layer.skip);
      if (!layer.is_last) arena.release(places.out);
      if (!layer.is_last && layer.residual < 0) arena.release(places.d_out);
      places.adds_to_source = layer.source >= 0 && layers[layer.source].d_out != kNowhere;
      take_gradient(layer.source);
      if (!layer.is_last) arena.release(places.y);
    }
    floats = arena.size();
  }

  // Mean and variance of each channel, in double.
  static size_t statistics_floats(const Shape& y) {
    return 2 * y.channels * (sizeof(double) / sizeof(float));
  }
};

// The tensors of a network on a tape.
struct Tape {
  const Network& network;
  TrainingPlan plan;
  float* data;
  std::vector<float*> outs;  // of all layers but the last

  Tape(const Network& of, float* memory) : network(of), plan(of), data(memory) {
    for (int i = 0; i + 1 < of.count(); ++i) outs.push_back(data + plan.layers[i].out);
  }
  float* y(int layer) const { return data + plan.layers[layer].y; }
  float* d_out(int layer) const { return data + plan.layers[layer].d_out; }
  double* mean(int layer) const {
    return reinterpret_cast<double*>(data + plan.layers[layer].statistics);
  }
  double* variance(int layer) const { return mean(layer) + network.shapes[layer].y.channels; }
};

// The number of floats of the tape for a batch. With instance norm each image has its own part.
inline size_t tape_floats(const Network& whole) {
  size_t floats = 0;
  for_each_norm(whole, {nullptr}, [&](const Network& network, const NetworkInput&, size_t) {
    floats += TrainingPlan(network).floats;
  });
  return floats;
}

// Calls task(network, input, tape, first voxel) with the whole batch or each image, see
// for_each_norm.
template <typename Task>
void for_each_tape(const Network& whole, const NetworkInput& input, float* memory,
                   const Task& task) {
  for_each_norm(whole, input, [&](const Network& network, const NetworkInput& part, size_t voxel) {
    const Tape tape(network, memory);
    task(network, part, tape, voxel);
    memory += tape.plan.floats;
  });
}

// ---- Forward -----------------------------------------------------------------------------------

// How a step of training changes the moving statistics of a layer, which are null without.
struct MovingStatistics {
  float *mean = nullptr, *variance = nullptr;
  float momentum = 0;  // the weight of the old value

  void update(const Unit& unit, const double* batch_mean, const double* batch_variance) const {
    const double count = static_cast<double>(unit.y.voxels()) * unit.y.batch;
    const double unbiased = count > 1 ? count / (count - 1) : 1;
    const auto move = [&](float& value, double to) {
      value = static_cast<float>(momentum * value + (1 - momentum) * to);
    };
    for (int channel = 0; channel < unit.y.channels; ++channel) {
      // The mean of y lacks the bias.
      move(mean[channel], batch_mean[channel] + (unit.bias == nullptr ? 0.f : unit.bias[channel]));
      move(variance[channel], batch_variance[channel] * unbiased);
    }
  }
};

inline void forward_layer(Runtime& runtime, const BoundLayer& bound, const Tape& tape, int number,
                          const MovingStatistics& moving) {
  const Unit unit = bound.unit(runtime);
  float* y = tape.y(number);
  double *mean = tape.mean(number), *variance = tape.variance(number);
  convolve_with_statistics(runtime, unit, y, mean, variance);
  if (moving.mean != nullptr) moving.update(unit, mean, variance);
  post_ops_forward(runtime.pool, unit.post_ops, y, mean, variance, tape.outs[number]);
}

// Computes the foreground's probability, or its logit, (batch, x, y, z), and the tape, of
// tape_floats(network). Updates the moving statistics, unless there are none.
inline void forward_pass(Runtime& runtime, const Network& whole,
                         const std::vector<LayerParameters>& parameters,
                         const NetworkInput& whole_input,
                         const std::vector<MovingStatistics>& moving, float* memory, float* output,
                         bool logits) {
  for_each_tape(
      whole, whole_input, memory,
      [&](const Network& network, const NetworkInput& input, const Tape& tape, size_t voxel) {
        for (int i = 0; i < network.count(); ++i) {
          const BoundLayer bound(network, i, parameters[i], input, tape.outs);
          if (network.layers[i].is_last)
            infer_last(runtime, bound, logits, output + voxel);
          else
            forward_layer(runtime, bound, tape, i, moving.empty() ? MovingStatistics() : moving[i]);
        }
      });
}

// ---- Backward ----------------------------------------------------------------------------------

// The gradients of a network's inputs; those that are null are not computed.
struct NetworkGradients {
  std::vector<PerParameter<float*>> parameters;  // of each layer
  float* volume = nullptr;                       // (batch, 1, x, y, z)
  float* dropout_mask = nullptr;                 // (batch, columns)
};

// The gradient of a dropout mask, (batch, columns); nothing is computed where data is null.
struct MaskGradient {
  float* data;
  int columns;

  // From that of a tensor's factors, (batch, channels).
  void put(const std::vector<float>& d_factors, const Shape& tensor, int column) const {
    for (int image = 0; image < tensor.batch; ++image)
      std::copy_n(d_factors.begin() + image * tensor.channels, tensor.channels,
                  data + image * columns + column);
  }
};

// to += from
inline void add(ThreadPool& pool, size_t floats, const float* from, float* to) {
  constexpr size_t kPart = 32 * 1024;
  pool.for_each(static_cast<int>(ceil_div(floats, kPart)), [&](int part, int) {
    const size_t end = std::min((part + 1) * kPart, floats);
    for (size_t i = part * kPart; i < end; ++i) to[i] += from[i];
  });
}

// Where a unit's gradients are written: those of its parameters, if they are wanted, and of the
// tensors that it reads.
inline UnitGradients gradients_of(const BoundLayer& bound, const Tape& tape, int number,
                                  const PerParameter<float*>& parameters, float* d_volume) {
  const Layer& layer = bound.layer();
  const auto place = [&](int tensor) { return tensor < 0 ? nullptr : tape.d_out(tensor); };
  UnitGradients to;
  to.weights = parameters[Parameter::kWeight];
  to.post_ops.y = tape.y(number);
  to.post_ops.gamma = parameters[Parameter::kGamma];
  to.post_ops.beta = parameters[layer.norm == Norm::kNone ? Parameter::kBias : Parameter::kBeta];
  to.post_ops.first_slopes = parameters[Parameter::kFirstSlopes];
  to.post_ops.second_slopes = parameters[Parameter::kSecondSlopes];
  to.post_ops.skip = place(layer.skip);
  const bool reads_volume = layer.source == Layer::kVolume;
  to.post_ops.residual = reads_volume ? d_volume : place(layer.residual);
  to.source = reads_volume ? d_volume : place(layer.source);
  to.adds_to_source = reads_volume || tape.plan.layers[number].adds_to_source;
  return to;
}

// The gradient of the factors of a source, and d_source from that of their product, which is
// overwritten.
inline void source_dropout_backward(Runtime& runtime, const BoundLayer& bound, float* d_product,
                                    bool adds, float* d_source, const MaskGradient& d_mask) {
  const Shape& shape = bound.shapes().x;
  const std::vector<float>& factors = bound.source_factors();
  if (d_mask.data != nullptr) {
    std::vector<float> d_factors(factors.size());
    scale_mask_gradient(runtime.pool, shape, bound.tensor(bound.layer().source), d_product,
                        d_factors.data());
    d_mask.put(d_factors, shape, bound.layer().source_column);
  }
  scale_channels(runtime.pool, shape, d_product, factors.data(), adds ? d_product : d_source);
  if (adds) add(runtime.pool, shape.floats(), d_product, d_source);
}

inline void backward_layer(Runtime& runtime, const BoundLayer& bound, const Tape& tape, int number,
                           const PerParameter<float*>& parameters, float* d_volume,
                           const MaskGradient& d_mask) {
  const Unit unit = bound.unit(runtime);
  const float* d_out = tape.d_out(number);
  if (d_mask.data != nullptr && unit.post_ops.dropout_mask != nullptr) {
    const Shape skip = unit.post_ops.skip_shape();
    std::vector<float> d_factors(static_cast<size_t>(skip.batch) * skip.channels);
    skip_mask_gradient(runtime, unit.post_ops, d_out, d_factors.data());
    d_mask.put(d_factors, skip, bound.layer().skip_column);
  }
  UnitGradients to = gradients_of(bound, tape, number, parameters, d_volume);
  const UnitGradients of_tensors = to;
  const bool drops = !bound.source_factors().empty();
  if (drops) {
    to.source = runtime.d_product.get(unit.x.floats());
    to.adds_to_source = false;
  }
  unit_backward(runtime, unit, tape.y(number), tape.outs[number], tape.mean(number),
                tape.variance(number), d_out, to);
  if (drops)
    source_dropout_backward(runtime, bound, to.source, of_tensors.adds_to_source, of_tensors.source,
                            d_mask);
  float* const d_bias = parameters[Parameter::kBias];
  if (d_bias != nullptr && bound.layer().norm != Norm::kNone)  // the norm subtracts the bias
    std::fill_n(d_bias, unit.y.channels, 0.f);
}

inline void backward_last(Runtime& runtime, const BoundLayer& bound, const Tape& tape, bool logits,
                          const float* out, const float* d_out,
                          const PerParameter<float*>& parameters) {
  const head::Head head = bound.head(logits);
  const Shape& shape = bound.shapes().x;
  float* const d_source = tape.d_out(bound.layer().source);
  const bool copies = head.shape.plain != shape.plain;
  float* const target = copies ? runtime.copy_of_y.get(head.shape.floats()) : d_source;
  std::vector<float> unwanted;
  float* d_weights = parameters[Parameter::kWeight];
  if (d_weights == nullptr) {
    unwanted.resize(2 * head.filter_floats());
    d_weights = unwanted.data();
  }
  head::backward(runtime.pool, runtime.workspace.shared, head, bound.head_source(runtime), out,
                 d_out, target, d_weights, parameters[Parameter::kBias]);
  if (copies) to_blocked(runtime.pool, target, shape, d_source);
}

// The gradients of a layer's parameters. Those of all images but the first are computed beside them
// and added.
class ParameterSum {
 public:
  ParameterSum(Runtime& runtime, const Layer& layer, const PerParameter<float*>& total,
               bool is_first)
      : runtime_(runtime), layer_(layer), total_(total), part(total) {
    if (is_first) return;
    size_t floats = 0;
    each([&](Parameter, size_t count) { floats += count; });
    float* next = runtime.of_image.get(floats);
    each([&](Parameter parameter, size_t count) {
      part[parameter] = next;
      next += count;
    });
  }
  void finish() const {
    each([&](Parameter parameter, size_t count) {
      if (part[parameter] != total_[parameter])
        add(runtime_.pool, count, part[parameter], total_[parameter]);
    });
  }

 private:
  template <typename Visit>
  void each(const Visit& visit) const {
    for (int i = 0; i < kParameters; ++i) {
      const auto parameter = static_cast<Parameter>(i);
      if (total_[parameter] != nullptr) visit(parameter, parameter_floats(layer_, parameter));
    }
  }

  Runtime& runtime_;
  const Layer& layer_;
  const PerParameter<float*>& total_;

 public:
  PerParameter<float*> part;  // where the gradients of this image are written
};

// Computes the gradients from the tape, which it uses up, the output of forward_pass and its
// gradient.
inline void backward_pass(Runtime& runtime, const Network& whole,
                          const std::vector<LayerParameters>& parameters,
                          const NetworkInput& whole_input, float* memory, const float* output,
                          const float* d_output, bool logits, const NetworkGradients& to) {
  int image = 0;
  for_each_tape(
      whole, whole_input, memory,
      [&](const Network& network, const NetworkInput& input, const Tape& tape, size_t voxel) {
        float* const d_volume = to.volume == nullptr ? nullptr : to.volume + voxel;
        const MaskGradient d_mask{
            to.dropout_mask == nullptr ? nullptr : to.dropout_mask + image * input.columns,
            input.columns};
        for (int i = network.count() - 1; i >= 0; --i) {
          const BoundLayer bound(network, i, parameters[i], input, tape.outs);
          const ParameterSum sum(runtime, network.layers[i], to.parameters[i], image == 0);
          if (network.layers[i].is_last)
            backward_last(runtime, bound, tape, logits, output + voxel, d_output + voxel, sum.part);
          else
            backward_layer(runtime, bound, tape, i, sum.part, d_volume, d_mask);
          sum.finish();
        }
        ++image;
      });
}

}  // namespace fast_conv3d
