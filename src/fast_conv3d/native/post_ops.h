// The operations of a unit that follow its convolution (oneDNN's post-ops):
//
//   out = concat( second( first( batch norm(y) ) + residual ), skip )
//
// where `first` and `second` are activations. Each part is optional. All are limited by memory
// bandwidth, so no intermediate result is stored: the forward pass reads y once, and the backward
// pass recomputes from y what it needs.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "protocol.h"
#include "tensor.h"
#include "thread_pool.h"
#include "vector.h"

namespace fast_conv3d {

// ---- ELU ---------------------------------------------------------------------------------------

// exp(x) = power * (1 + fraction) for x <= 0: power is 2^n for the n nearest to x / ln 2, and
// fraction = exp(r) - 1 for the remainder r. Positive x are taken as 0, NaN stays NaN, and x below
// -87.3, where the result would be denormal, as -87.3.
template <int N>
FC3D_INLINE void split_exp(const Registers<N>& x, Registers<N>* power, Registers<N>* fraction) {
  constexpr float kLowest = -87.3f, kLog2e = 1.44269504f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: floats of this size are integers
  // ln 2 in two parts; n * kLn2High is exact.
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  Registers<N> r, shifted;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    r.part[i] = x.part[i] < kLowest ? Register{} + kLowest : x.part[i];
    r.part[i] = r.part[i] > 0.f ? Register{} : r.part[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) shifted.part[i] = r.part[i] * kLog2e + kRound;
  const Registers<N> n = shifted - kRound;
  r = r - n * kLn2High;
  r = r - n * kLn2Low;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    IntRegister bits;  // of `shifted`; the low bits are n
    std::memcpy(&bits, &shifted.part[i], sizeof bits);
    bits = (bits + 127) << 23;
    std::memcpy(&power->part[i], &bits, sizeof bits);
  }
  // Minimax polynomial for (exp(r) - 1 - r) / r^2 where |r| <= ln 2 / 2, to 1e-7.
  Registers<N> q = r * 1.3946159e-3f + 8.366437e-3f;
  q = q * r + 4.1666288e-2f;
  q = q * r + 1.6666545e-1f;
  q = q * r + 0.5f;
  *fraction = q * (r * r) + r;
}

// exp(min(x, 0)) with a relative error below 2e-7.
FC3D_INLINE Vec exp_nonpositive(Vec x) {
  Vec power, fraction;
  split_exp(x, &power, &fraction);
  return power * fraction + power;
}

// x > 0 ? x : exp(x) - 1, without cancellation near 0.
template <int N>
FC3D_INLINE Registers<N> elu(const Registers<N>& x) {
  Registers<N> power, fraction;
  split_exp(x, &power, &fraction);
  return where_positive(x, x, power * fraction + (power - 1.f));
}

// ---- Description -------------------------------------------------------------------------------

// Which operations follow a convolution, with their parameters.
struct PostOps {
  Shape shape{};  // of y, the convolution's output

  // Batch norm unless gamma is null; (channels) each.
  const float* gamma = nullptr;
  const float* beta = nullptr;
  float epsilon = 1e-5f;

  Activation first = Activation::kNone;
  const float* first_slopes = nullptr;  // (channels), of PReLU

  // Shaped like y, or a (batch, x, y, z) volume that is added to every channel.
  const float* residual = nullptr;
  bool residual_is_volume = false;

  Activation second = Activation::kNone;
  const float* second_slopes = nullptr;

  // Concatenation: channel c of `skip`, times dropout_mask[batch, c] unless null,
  // becomes channel shape.channels + c of out.
  const float* skip = nullptr;
  int skip_channels = 0;
  const float* dropout_mask = nullptr;  // (batch, skip_channels)

  Shape skip_shape() const { return shape.with_channels(skip_channels); }
  Shape out_shape() const {
    return skip == nullptr ? shape : shape.with_channels(shape.channels + skip_channels);
  }
  // Whether y and the skip are plain, but out is blocked.
  bool interleaves() const { return shape.plain && !out_shape().plain; }

  // Whether post_ops_backward reads `out`: the derivative of ELU is out + 1 where out < 0, so the
  // residual need not be read. In other cases reading out would save nothing.
  bool backward_reads_out() const {
    return second == Activation::kElu && residual != nullptr && !residual_is_volume;
  }
};

// The per-channel parameters of a block's lanes: zeros past the last channel, and if there are
// none.
FC3D_INLINE Vec block_parameters(const Shape& shape, const float* parameters, int block) {
  if (parameters == nullptr) return zero();
  if (shape.plain) return broadcast(parameters[block]);
  const int first = block * kLanes;
  return load_first(parameters + first, std::min(kLanes, shape.channels - first));
}

// The post-ops of one block of one image, with the parameters of its lanes in vectors.
// Convolutions apply it as the epilogue, to each vector before it is stored:
//
//   const BlockPostOps block_ops(post_ops, image, block, moving_mean, moving_variance, bias);
//   store(out + vector * kLanes, block_ops(value, vector));
//
// Its branches are the same for all vectors. Make it a local constant, so that the compiler can
// move them out of the loop.
class BlockPostOps {
 public:
  // mean and variance are (channels), not read without norm. bias is (channels), to be added to y,
  // or null.
  template <typename Statistic>
  BlockPostOps(const PostOps& post_ops, int image, int block, const Statistic* mean,
               const Statistic* variance, const float* bias = nullptr)
      : has_first_(post_ops.first != Activation::kNone),
        has_second_(post_ops.second != Activation::kNone),
        first_elu_(post_ops.first == Activation::kElu),
        second_elu_(post_ops.second == Activation::kElu) {
    const Shape& shape = post_ops.shape;
    float valid[kLanes] = {}, center[kLanes] = {}, scale[kLanes] = {}, shift[kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const int channel = shape.channel(block, lane);
      if (channel >= shape.channels) break;
      double exact_center = bias == nullptr ? 0. : -static_cast<double>(bias[channel]);
      double factor = 1, offset = 0;
      if (post_ops.gamma != nullptr) {
        exact_center += mean[channel];
        factor = post_ops.gamma[channel] /
                 std::sqrt(static_cast<double>(variance[channel]) + post_ops.epsilon);
        offset = post_ops.beta[channel];
      }
      // y - center has no rounding error where y is near a large mean. The rounding error of
      // center itself is compensated in shift.
      valid[lane] = 1;
      center[lane] = static_cast<float>(exact_center);
      scale[lane] = static_cast<float>(factor);
      shift[lane] = static_cast<float>(offset - (exact_center - center[lane]) * factor);
    }
    valid_ = load(valid);
    center_ = load(center);
    scale_ = load(scale);
    shift_ = load(shift);
    first_slope_ = block_parameters(shape, post_ops.first_slopes, block);
    second_slope_ = block_parameters(shape, post_ops.second_slopes, block);
    if (post_ops.residual != nullptr && post_ops.residual_is_volume && shape.plain)
      residual_ = post_ops.residual + image * shape.voxels();
    else if (post_ops.residual != nullptr && post_ops.residual_is_volume)
      volume_ = post_ops.residual + image * shape.voxels();
    else if (post_ops.residual != nullptr)
      residual_ = post_ops.residual + image * shape.image_floats() + block * shape.block_floats();
  }

  // The output at vector number `vector` of the block, or from it on.
  template <int N>
  FC3D_INLINE Registers<N> operator()(const Registers<N>& y, size_t vector) const {
    const Registers<N> sum = add_residual(first(normalized(centered(y))), vector);
    if (!has_second_) return sum;
    return second_elu_ ? elu(sum) : where_positive(sum, sum, second_slope_ * sum);
  }

  template <int N>
  FC3D_INLINE Registers<N> centered(const Registers<N>& y) const {
    return y - center_;
  }
  FC3D_INLINE Vec scale() const { return scale_; }

  // The backward steps. Each takes the gradient of a step's output, returns that of its input, and
  // adds to the gradient of its PReLU slopes.

  // Through the second activation, whose input is recomputed.
  FC3D_INLINE Vec second_backward(Vec d_out, Vec centered, size_t vector, Vec* d_slope) const {
    d_out = valid_only(d_out);
    if (!has_second_) return d_out;
    const Vec sum = add_residual(first(normalized(centered)), vector);
    return activation_backward(second_elu_, second_slope_, d_out, sum, d_slope);
  }
  // Through a second activation that is ELU, from its output.
  FC3D_INLINE Vec second_elu_backward(Vec d_out, Vec out) const {
    d_out = valid_only(d_out);
    return where_positive(out, d_out, d_out * out + d_out);
  }
  // Through the first activation, whose input is the normalized y.
  FC3D_INLINE Vec first_backward(Vec d_sum, Vec centered, Vec* d_slope) const {
    if (!has_first_) return d_sum;
    return activation_backward(first_elu_, first_slope_, d_sum, normalized(centered), d_slope);
  }

 private:
  template <int N>
  FC3D_INLINE Registers<N> normalized(const Registers<N>& centered) const {
    return centered * scale_ + shift_;
  }
  template <int N>
  FC3D_INLINE Registers<N> first(const Registers<N>& x) const {
    if (!has_first_) return x;
    return first_elu_ ? elu(x) : where_positive(x, x, first_slope_ * x);
  }
  template <int N>
  FC3D_INLINE Registers<N> add_residual(const Registers<N>& x, size_t vector) const {
    if (residual_ != nullptr) return x + load<Registers<N>>(residual_ + vector * kLanes);
    if (volume_ == nullptr) return x;
    Registers<N> voxels;  // one in each Vec
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) voxels.part[i] = volume_[vector + i / kParts] - Register{};
    return x + valid_only(voxels);
  }
  template <int N>
  FC3D_INLINE Registers<N> valid_only(const Registers<N>& x) const {
    return where_positive(valid_, x, zero());
  }
  FC3D_INLINE static Vec activation_backward(bool is_elu, Vec slope, Vec d_value, Vec x,
                                             Vec* d_slope) {
    if (is_elu) return where_positive(x, d_value, d_value * exp_nonpositive(x));
    *d_slope += where_positive(x, zero(), d_value * x);
    return where_positive(x, d_value, d_value * slope);
  }

  bool has_first_, has_second_, first_elu_, second_elu_;
  Vec valid_, center_, scale_, shift_, first_slope_, second_slope_;
  const float* residual_ = nullptr;  // its vectors are those of y
  const float* volume_ = nullptr;    // its voxels are the vectors of y
};

// ---- Loops over tensors ------------------------------------------------------------------------

// A part of one block of one image: vectors [begin, end).
struct Chunk {
  int index, image, block;
  size_t begin, end;
};

constexpr size_t kChunkVectors = 2048;  // 128 KiB of each tensor: several of them fit into L2
constexpr size_t kRunVectors = 64;      // summed in float before the sums are added in double

inline int chunks_per_block(const Shape& shape) {
  return static_cast<int>(ceil_div(shape.vectors(), kChunkVectors));
}
inline int chunk_count(const Shape& shape) {
  return shape.batch * shape.blocks() * chunks_per_block(shape);
}

enum class Order { kForwards, kBackwards };

// Calls task(chunk) for each chunk of a tensor. A pass in the opposite order of the previous pass
// starts with data that is still in the caches. Sums are accumulated per chunk, so that results do
// not depend on which thread computes a chunk.
template <typename Task>
void for_each_chunk(ThreadPool& pool, const Shape& shape, Order order, const Task& task) {
  const int count = chunk_count(shape), per_block = chunks_per_block(shape);
  pool.for_each(count, [&](int item, int) {
    const int index = order == Order::kForwards ? item : count - 1 - item;
    const int plane = index / per_block;
    const size_t begin = index % per_block * kChunkVectors;
    task(Chunk{index, plane / shape.blocks(), plane % shape.blocks(), begin,
               std::min(begin + kChunkVectors, shape.vectors())});
  });
}

// The offset of a block of an image in a tensor, in floats.
inline size_t block_offset(const Shape& shape, int image, int block) {
  return (static_cast<size_t>(image) * shape.blocks() + block) * shape.block_floats();
}

// sums[lane] += value[lane].
FC3D_INLINE void add_to(double* sums, Vec value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] += lanes[lane];
}

// ---- Batch statistics --------------------------------------------------------------------------

// Count, mean and sum of squared deviations of the sixteen lanes of a block. Compute one per item
// of work, not per thread, and merge them in a fixed order, so that the result does not depend on
// scheduling.
struct Moments {
  double count = 0;
  double mean[kLanes] = {}, squares[kLanes] = {};

  // Adds `voxels` vectors at `source`. Each run is read twice, the second time from L1: for its
  // mean, then for the deviations from it. This is as exact as two passes over y, however large the
  // mean.
  void add(const float* source, size_t voxels) {
    constexpr int kSums = 4;  // independent sums, to hide the latency of additions
    for (size_t begin = 0; begin < voxels; begin += 4 * kRunVectors) {
      const size_t run_voxels = std::min(4 * kRunVectors, voxels - begin);
      const float* run = source + begin * kLanes;
      // Differences from the first voxel keep precision where the mean is large.
      const Vec start = load(run);
      const auto sum_over_run = [&](auto term) {
        Vec sums[kSums] = {zero(), zero(), zero(), zero()};
        size_t voxel = 0;
        for (; voxel + kSums <= run_voxels; voxel += kSums)
          for (int i = 0; i < kSums; ++i) sums[i] += term(load(run + (voxel + i) * kLanes));
        for (; voxel < run_voxels; ++voxel) sums[0] += term(load(run + voxel * kLanes));
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
      };
      const Vec sum = sum_over_run([&](Vec y) { return y - start; });
      Moments part;
      part.count = static_cast<double>(run_voxels);
      add_to(part.mean, sum);
      for (double& mean : part.mean) mean /= part.count;
      add_to(part.mean, start);
      const Vec run_mean = start + sum * static_cast<float>(1 / part.count);
      add_to(part.squares, sum_over_run([&](Vec y) { return (y - run_mean) * (y - run_mean); }));
      float rounded_mean[kLanes];
      store(rounded_mean, run_mean);
      for (int lane = 0; lane < kLanes; ++lane) {
        const double rest = part.mean[lane] - rounded_mean[lane];
        part.squares[lane] -= part.count * rest * rest;
      }
      merge(part);
    }
  }

  void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count;
    const double mean_weight = other.count / total, square_weight = count * mean_weight;
    for (int lane = 0; lane < kLanes; ++lane) {
      const double difference = other.mean[lane] - mean[lane];
      mean[lane] += difference * mean_weight;
      squares[lane] += other.squares[lane] + difference * difference * square_weight;
    }
    count = total;
  }

  // Merges all lanes, which belong to one channel, into the first.
  void merge_lanes() {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      for (int lane = 0; lane < step; ++lane) {
        const double difference = mean[lane + step] - mean[lane];
        mean[lane] += difference / 2;
        squares[lane] += squares[lane + step] + difference * difference * count / 2;
      }
      count *= 2;
    }
  }
};

// Computes the mean and biased variance of each channel over batch and voxels, (channels) each, in
// one pass over y.
inline void batch_statistics(ThreadPool& pool, const float* y, const Shape& shape, double* mean,
                             double* variance) {
  assert(shape.valid() && y != nullptr && mean != nullptr && variance != nullptr);
  std::vector<Moments> moments(chunk_count(shape));
  // The end of y is still in the caches: the convolution has just written it.
  for_each_chunk(pool, shape, Order::kBackwards, [&](const Chunk& chunk) {
    const float* block = y + block_offset(shape, chunk.image, chunk.block);
    moments[chunk.index].add(block + chunk.begin * kLanes, chunk.end - chunk.begin);
  });
  const int per_block = chunks_per_block(shape);
  for (int block = 0; block < shape.blocks(); ++block) {
    Moments total;
    for (int image = 0; image < shape.batch; ++image)
      for (int chunk = 0; chunk < per_block; ++chunk)
        total.merge(moments[(image * shape.blocks() + block) * per_block + chunk]);
    if (shape.plain) total.merge_lanes();
    for (int lane = 0; lane < shape.block_channels(); ++lane) {
      const int channel = shape.channel(block, lane);
      if (channel >= shape.channels) break;
      mean[channel] = total.mean[lane];
      // Rounding must not make it negative; std::max keeps NaN with arguments in this order.
      variance[channel] = std::max(total.squares[lane] / total.count, 0.);
    }
  }
}

// ---- Dropout and concatenation -----------------------------------------------------------------

// The dropout factors of one block, zeros in the lanes past the last channel; ones without a mask.
FC3D_INLINE Vec block_factors(const Shape& shape, const float* dropout_mask, int image, int block) {
  if (dropout_mask == nullptr) return broadcast(1);
  return block_parameters(shape, dropout_mask + static_cast<size_t>(image) * shape.channels, block);
}

// out = x * dropout_mask[image, channel]; dropout_mask is (batch, channels). Works in place.
inline void scale_channels(ThreadPool& pool, const Shape& shape, const float* x,
                           const float* dropout_mask, float* out) {
  assert(shape.valid() && x != nullptr && dropout_mask != nullptr && out != nullptr);
  for_each_chunk(pool, shape, Order::kForwards, [&](const Chunk& chunk) {
    const size_t offset = block_offset(shape, chunk.image, chunk.block);
    const Vec factors = block_factors(shape, dropout_mask, chunk.image, chunk.block);
    for (size_t at = offset + chunk.begin * kLanes; at < offset + chunk.end * kLanes;
         at += kLanes) {
      store(out + at, load(x + at) * factors);
    }
  });
}

// The gradient of the factors: for each image and channel the sum over voxels of x * d_out.
inline void scale_mask_gradient(ThreadPool& pool, const Shape& shape, const float* x,
                                const float* d_out, float* d_dropout_mask) {
  assert(shape.valid() && x != nullptr && d_out != nullptr && d_dropout_mask != nullptr);
  pool.for_each(shape.batch * shape.blocks(), [&](int item, int) {
    const int image = item / shape.blocks(), block = item % shape.blocks();
    const size_t offset = block_offset(shape, image, block);
    double sums[kLanes] = {};
    for (size_t at = offset; at < offset + shape.block_floats(); at += kLanes)
      add_to(sums, load(x + at) * load(d_out + at));
    float* target = d_dropout_mask + static_cast<size_t>(image) * shape.channels;
    if (shape.plain) {
      target[block] = static_cast<float>(std::accumulate(sums, sums + kLanes, 0.));
      return;
    }
    const int count = std::min(kLanes, shape.channels - block * kLanes);
    for (int lane = 0; lane < count; ++lane)
      target[block * kLanes + lane] = static_cast<float>(sums[lane]);
  });
}

// Writes the skip channels of `out`. If shape.channels is not a multiple of 16, each block of skip
// spans two blocks of out; the unit's own channels must already be in `out`.
inline void concat_forward(ThreadPool& pool, const PostOps& post_ops, float* out) {
  assert(post_ops.skip_shape().valid() && post_ops.skip != nullptr && out != nullptr);
  const Shape skip_shape = post_ops.skip_shape(), out_shape = post_ops.out_shape();
  const int lane = out_shape.plain ? 0 : post_ops.shape.channels % kLanes;
  const int first_block = post_ops.shape.channels / out_shape.block_channels();
  for_each_chunk(pool, skip_shape, Order::kForwards, [&](const Chunk& chunk) {
    const int out_block = first_block + chunk.block;
    const float* source = post_ops.skip + block_offset(skip_shape, chunk.image, chunk.block);
    float* target = out + block_offset(out_shape, chunk.image, out_block);
    float* next = lane > 0 && out_block + 1 < out_shape.blocks() ? target + out_shape.block_floats()
                                                                 : nullptr;
    // The lanes past the last channel of out belong to no other chunk.
    const bool zero_rest = chunk.block + 1 == skip_shape.blocks();
    const Vec factors = block_factors(skip_shape, post_ops.dropout_mask, chunk.image, chunk.block);
    for (size_t at = chunk.begin * kLanes; at < chunk.end * kLanes; at += kLanes) {
      const Vec value = load(source + at) * factors;
      if (lane == 0) {
        store(target + at, value);
        continue;
      }
      float lanes[2 * kLanes] = {};
      store(lanes, value);
      std::memcpy(target + at + lane, lanes, (kLanes - lane) * sizeof(float));
      if (next != nullptr)
        std::memcpy(next + at, lanes + kLanes - lane, (zero_rest ? kLanes : lane) * sizeof(float));
    }
  });
}

// d_skip from d_out.
inline void concat_backward(ThreadPool& pool, const PostOps& post_ops, const float* d_out,
                            float* d_skip) {
  assert(post_ops.skip_shape().valid() && d_out != nullptr && d_skip != nullptr);
  const Shape skip_shape = post_ops.skip_shape(), out_shape = post_ops.out_shape();
  const int lane = out_shape.plain ? 0 : post_ops.shape.channels % kLanes;
  const int first_block = post_ops.shape.channels / out_shape.block_channels();
  for_each_chunk(pool, skip_shape, Order::kForwards, [&](const Chunk& chunk) {
    const int out_block = first_block + chunk.block;
    const float* source = d_out + block_offset(out_shape, chunk.image, out_block);
    const float* next = lane > 0 && out_block + 1 < out_shape.blocks()
                            ? source + out_shape.block_floats()
                            : nullptr;
    float* target = d_skip + block_offset(skip_shape, chunk.image, chunk.block);
    const Vec factors = block_factors(skip_shape, post_ops.dropout_mask, chunk.image, chunk.block);
    for (size_t at = chunk.begin * kLanes; at < chunk.end * kLanes; at += kLanes) {
      Vec gradient = load(source + at);
      if (lane > 0) {
        float lanes[2 * kLanes] = {};
        store(lanes, gradient);
        if (next != nullptr) store(lanes + kLanes, load(next + at));
        gradient = load(lanes + lane);
      }
      store(target + at, gradient * factors);
    }
  });
}

// Calls task(image, first vector of out, vector of y and skip) for each 16 voxels of an image,
// which are one vector of a plain tensor and 16 of a blocked one.
template <typename Task>
void for_each_sixteen(ThreadPool& pool, const PostOps& post_ops, const Task& task) {
  assert(post_ops.skip_shape().plain && post_ops.out_shape().blocks() == 1);
  const Shape one_channel = post_ops.shape.with_channels(1);
  for_each_chunk(pool, one_channel, Order::kForwards, [&](const Chunk& chunk) {
    for (size_t vector = chunk.begin; vector < chunk.end; ++vector) task(chunk.image, vector);
  });
}

// out = the channels of y, through `first(value, image, channel, vector)`, and of the skip; y and
// the skip are plain, out has one block.
template <typename First>
void interleave(ThreadPool& pool, const PostOps& post_ops, const float* y, const First& first,
                float* out) {
  const Shape &shape = post_ops.shape, skip_shape = post_ops.skip_shape();
  const Shape out_shape = post_ops.out_shape();
  for_each_sixteen(pool, post_ops, [&](int image, size_t vector) {
    Vec rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int skip = lane - shape.channels;
      if (skip < 0)
        rows[lane] = first(load(y + block_offset(shape, image, lane) + vector * kLanes), image,
                           lane, vector);
      else if (skip < skip_shape.channels)
        rows[lane] = load(post_ops.skip + block_offset(skip_shape, image, skip) + vector * kLanes) *
                     block_factors(skip_shape, post_ops.dropout_mask, image, skip);
      else
        rows[lane] = zero();
    }
    transpose_lanes(rows);
    float* target = out + block_offset(out_shape, image, 0) + vector * kLanes * kLanes;
    for (int i = 0; i < kLanes; ++i) store(target + i * kLanes, rows[i]);
  });
}

// The gradients of both parts of an interleaved out, d_own (shaped like y) and d_skip unless null.
inline void split_gradient(ThreadPool& pool, const PostOps& post_ops, const float* d_out,
                           float* d_own, float* d_skip) {
  const Shape &shape = post_ops.shape, skip_shape = post_ops.skip_shape();
  const Shape out_shape = post_ops.out_shape();
  for_each_sixteen(pool, post_ops, [&](int image, size_t vector) {
    Vec rows[kLanes];
    const float* source = d_out + block_offset(out_shape, image, 0) + vector * kLanes * kLanes;
    for (int i = 0; i < kLanes; ++i) rows[i] = load(source + i * kLanes);
    transpose_lanes(rows);
    for (int channel = 0; channel < shape.channels; ++channel)
      store(d_own + block_offset(shape, image, channel) + vector * kLanes, rows[channel]);
    for (int skip = 0; d_skip != nullptr && skip < skip_shape.channels; ++skip)
      store(d_skip + block_offset(skip_shape, image, skip) + vector * kLanes,
            rows[shape.channels + skip] *
                block_factors(skip_shape, post_ops.dropout_mask, image, skip));
  });
}

// ---- Forward and backward ----------------------------------------------------------------------

// Computes out, of post_ops.out_shape(), from y in one pass. mean and variance are those of
// batch_statistics, or null without norm. Works in place where there is neither a skip nor a
// backward pass that needs y.
inline void post_ops_forward(ThreadPool& pool, const PostOps& post_ops, const float* y,
                             const double* mean, const double* variance, float* out) {
  const Shape& shape = post_ops.shape;
  const Shape out_shape = post_ops.out_shape();
  assert(shape.valid() && y != nullptr && out != nullptr);
  assert(post_ops.gamma == nullptr || (mean != nullptr && variance != nullptr));
  assert(out != y || post_ops.skip == nullptr);
  if (post_ops.interleaves()) {
    std::vector<BlockPostOps> blocks;
    for (int image = 0; image < shape.batch; ++image)
      for (int channel = 0; channel < shape.channels; ++channel)
        blocks.emplace_back(post_ops, image, channel, mean, variance);
    return interleave(
        pool, post_ops, y,
        [&](Vec value, int image, int channel, size_t vector) {
          return blocks[image * shape.channels + channel](value, vector);
        },
        out);
  }
  for_each_chunk(pool, shape, Order::kForwards, [&](const Chunk& chunk) {
    const BlockPostOps block(post_ops, chunk.image, chunk.block, mean, variance);
    const float* source = y + block_offset(shape, chunk.image, chunk.block);
    float* target = out + block_offset(out_shape, chunk.image, chunk.block);
    size_t vector = chunk.begin;
    for (; vector + kVecs <= chunk.end; vector += kVecs)
      store(target + vector * kLanes, block(load<Vecs>(source + vector * kLanes), vector));
    for (; vector < chunk.end; ++vector)
      store(target + vector * kLanes, block(load(source + vector * kLanes), vector));
  });
  if (post_ops.skip != nullptr) concat_forward(pool, post_ops, out);
}

// The outputs of post_ops_backward. Gradients whose pointer is null are not computed.
struct PostOpsGradients {
  // Blocked like y. May be the memory of y, or that of d_out where there is no skip.
  float* y = nullptr;
  // (channels) each. Without norm, beta is the gradient of a bias that was added to y.
  float* gamma = nullptr;
  float* beta = nullptr;
  float* first_slopes = nullptr;
  float* second_slopes = nullptr;
  // Shaped like the residual. If blocked, it may be the memory of d_out where there is no skip, but
  // not that of gradients.y. Without second activation and skip it equals d_out: use that instead.
  float* residual = nullptr;
  float* skip = nullptr;
};

// The gradient of a residual volume. It needs its own loop: it sums over all channels.
inline void volume_backward(ThreadPool& pool, const PostOps& post_ops, const float* y,
                            const double* mean, const double* variance, const float* d_out,
                            float* d_volume) {
  assert(post_ops.residual_is_volume && d_volume != nullptr);
  const Shape& shape = post_ops.shape;
  const Shape out_shape = post_ops.out_shape();
  Shape one_block = shape;
  one_block.channels = 1;
  for_each_chunk(pool, one_block, Order::kForwards, [&](const Chunk& chunk) {
    float* target = d_volume + chunk.image * shape.voxels();
    const size_t step = shape.plain ? kLanes : 1;  // voxels of a vector
    std::fill(target + chunk.begin * step, target + chunk.end * step, 0.f);
    for (int index = 0; index < shape.blocks(); ++index) {
      const BlockPostOps block(post_ops, chunk.image, index, mean, variance);
      const float* values = y + block_offset(shape, chunk.image, index);
      const float* gradients = d_out + block_offset(out_shape, chunk.image, index);
      Vec unused = zero();
      for (size_t vector = chunk.begin; vector < chunk.end; ++vector) {
        const Vec gradient =
            block.second_backward(load(gradients + vector * kLanes),
                                  block.centered(load(values + vector * kLanes)), vector, &unused);
        float* voxels = target + vector * step;
        if (shape.plain) {
          store(voxels, load(voxels) + gradient);
          continue;
        }
        float lanes[kLanes];
        store(lanes, gradient);
        for (int lane = 0; lane < kLanes; ++lane) *voxels += lanes[lane];
      }
    }
  });
}

// What the passes of post_ops_backward read, and the blocked residual's gradient, unless null.
struct BackwardTensors {
  const float *y, *out, *d_out;
  const double *mean, *variance;
  float* d_residual;
};

// Sums over the vectors of a chunk, lane by lane. gamma is still to be divided by std.
struct GradientSums {
  double beta[kLanes] = {}, gamma[kLanes] = {};
  double first_slope[kLanes] = {}, second_slope[kLanes] = {};
};

// The first pass over a chunk: the sums, and the residual's gradient if wanted. d_y is that without
// norm, which does not depend on the sums; null with norm.
inline GradientSums sum_gradients(const PostOps& post_ops, const BackwardTensors& tensors,
                                  const Chunk& chunk, float* d_y) {
  const auto [y, out, d_out, mean, variance, d_residual] = tensors;
  const bool reads_out = post_ops.backward_reads_out();
  const BlockPostOps block(post_ops, chunk.image, chunk.block, mean, variance);
  const size_t offset = block_offset(post_ops.shape, chunk.image, chunk.block);
  const size_t out_offset = block_offset(post_ops.out_shape(), chunk.image, chunk.block);
  GradientSums sums;
  for (size_t run = chunk.begin; run < chunk.end; run += kRunVectors) {
    const size_t run_end = std::min(run + kRunVectors, chunk.end);
    Vec beta = zero(), gamma = zero(), first_slope = zero(), second_slope = zero();
    for (size_t vector = run; vector < run_end; ++vector) {
      const size_t at = offset + vector * kLanes, out_at = out_offset + vector * kLanes;
      const Vec centered = block.centered(load(y + at));
      const Vec d_sum =
          reads_out ? block.second_elu_backward(load(d_out + out_at), load(out + out_at))
                    : block.second_backward(load(d_out + out_at), centered, vector, &second_slope);
      const Vec d_normalized = block.first_backward(d_sum, centered, &first_slope);
      beta += d_normalized;
      gamma += d_normalized * centered;
      if (d_residual != nullptr) store(d_residual + at, d_sum);
      if (d_y != nullptr) store(d_y + at, d_normalized);
    }
    add_to(sums.beta, beta);
    add_to(sums.gamma, gamma);
    add_to(sums.first_slope, first_slope);
    add_to(sums.second_slope, second_slope);
  }
  return sums;
}

// How the gradient of batch norm's input depends on the sums. With d the gradient of the normalized
// y,
//   d_y = scale * (d - mean(d) - (y - mean) * mean(d * (y - mean)) / (variance + epsilon)),
// computed as scale * d + slope * (y - center) + constant, with 16 slopes and constants a block.
struct NormTerms {
  std::vector<float> slopes, constants;

  explicit NormTerms(const Shape& shape)
      : slopes(shape.blocks() * kLanes), constants(shape.blocks() * kLanes) {}
};

// Adds the sums of all chunks and writes the gradients of the parameters.
inline NormTerms parameter_gradients(const PostOps& post_ops, const BackwardTensors& tensors,
                                     const std::vector<GradientSums>& chunk_sums,
                                     const PostOpsGradients& gradients) {
  const Shape& shape = post_ops.shape;
  NormTerms terms(shape);
  const int per_block = chunks_per_block(shape);
  const double count = static_cast<double>(shape.batch) * static_cast<double>(shape.voxels());
  for (int channel = 0; channel < shape.channels; ++channel) {
    const int block = channel / shape.block_channels();
    // The lanes of a channel: one, or all of a plain tensor's block.
    const int first_lane = channel % shape.block_channels();
    const int lanes = kLanes / shape.block_channels();
    double beta = 0, gamma = 0, first_slope = 0, second_slope = 0;
    for (int image = 0; image < shape.batch; ++image) {
      const GradientSums* sums = chunk_sums.data() + (image * shape.blocks() + block) * per_block;
      for (int chunk = 0; chunk < per_block; ++chunk)
        for (int lane = first_lane; lane < first_lane + lanes; ++lane) {
          beta += sums[chunk].beta[lane];
          gamma += sums[chunk].gamma[lane];
          first_slope += sums[chunk].first_slope[lane];
          second_slope += sums[chunk].second_slope[lane];
        }
    }
    const auto put = [channel](float* target, double value) {
      if (target != nullptr) target[channel] = static_cast<float>(value);
    };
    if (post_ops.gamma != nullptr) {
      const double mean = tensors.mean[channel];
      const double center_rest = mean - static_cast<float>(mean);
      const double inverse_std = 1 / std::sqrt(tensors.variance[channel] + post_ops.epsilon);
      const double scale = post_ops.gamma[channel] * inverse_std;
      gamma = (gamma - center_rest * beta) * inverse_std;
      const double slope = -scale * inverse_std * gamma / count;
      const int at = block * kLanes + first_lane;
      std::fill_n(terms.slopes.begin() + at, lanes, static_cast<float>(slope));
      std::fill_n(terms.constants.begin() + at, lanes,
                  static_cast<float>(-scale * beta / count - slope * center_rest));
      put(gradients.gamma, gamma);
    }
    put(gradients.beta, beta);
    put(gradients.first_slopes, first_slope);
    put(gradients.second_slopes, second_slope);
  }
  return terms;
}

// The second pass over a chunk, with norm: d_y, from the residual's gradient where the first pass
// has stored it.
inline void norm_backward(const PostOps& post_ops, const BackwardTensors& tensors,
                          const NormTerms& terms, const Chunk& chunk, float* d_y) {
  const auto [y, out, d_out, mean, variance, d_residual] = tensors;
  const bool reads_out = post_ops.backward_reads_out();
  const BlockPostOps block(post_ops, chunk.image, chunk.block, mean, variance);
  const size_t offset = block_offset(post_ops.shape, chunk.image, chunk.block);
  const size_t out_offset = block_offset(post_ops.out_shape(), chunk.image, chunk.block);
  const Vec slope = load(terms.slopes.data() + chunk.block * kLanes);
  const Vec constant = load(terms.constants.data() + chunk.block * kLanes);
  Vec unused = zero();
  for (size_t vector = chunk.begin; vector < chunk.end; ++vector) {
    const size_t at = offset + vector * kLanes, out_at = out_offset + vector * kLanes;
    const Vec centered = block.centered(load(y + at));
    const Vec d_sum = d_residual != nullptr ? load(d_residual + at)
                      : reads_out
                          ? block.second_elu_backward(load(d_out + out_at), load(out + out_at))
                          : block.second_backward(load(d_out + out_at), centered, vector, &unused);
    const Vec d_normalized = block.first_backward(d_sum, centered, &unused);
    store(d_y + at, block.scale() * d_normalized + slope * centered + constant);
  }
}

// post_ops_backward where y and the skip are not interleaved in out.
inline void separate_backward(ThreadPool& pool, const PostOps& post_ops,
                              const BackwardTensors& tensors, const PostOpsGradients& gradients) {
  const Shape& shape = post_ops.shape;
  const bool has_norm = post_ops.gamma != nullptr;
  std::vector<GradientSums> chunk_sums(chunk_count(shape));
  for_each_chunk(pool, shape, Order::kBackwards, [&](const Chunk& chunk) {
    chunk_sums[chunk.index] =
        sum_gradients(post_ops, tensors, chunk, has_norm ? nullptr : gradients.y);
  });
  const NormTerms terms = parameter_gradients(post_ops, tensors, chunk_sums, gradients);
  if (!has_norm || gradients.y == nullptr) return;
  for_each_chunk(pool, shape, Order::kForwards, [&](const Chunk& chunk) {
    norm_backward(post_ops, tensors, terms, chunk, gradients.y);
  });
}

// Computes the gradients in training, where mean and variance depend on y (null without norm).
// `out` is only read if post_ops.backward_reads_out(). `split` is memory of the size of y, which is
// only used if post_ops.interleaves().
inline void post_ops_backward(ThreadPool& pool, const PostOps& post_ops, const float* y,
                              const float* out, const double* mean, const double* variance,
                              const float* d_out, float* split, const PostOpsGradients& gradients) {
  assert(post_ops.shape.valid() && y != nullptr && d_out != nullptr);
  assert(post_ops.gamma == nullptr || (mean != nullptr && variance != nullptr));
  assert(!post_ops.backward_reads_out() || out != nullptr);
  float* const d_residual = post_ops.residual_is_volume ? nullptr : gradients.residual;
  if (post_ops.interleaves()) {
    assert(!post_ops.backward_reads_out() && split != nullptr);
    split_gradient(pool, post_ops, d_out, split, gradients.skip);
    PostOps own = post_ops;
    own.skip = nullptr;
    return separate_backward(pool, own, {y, out, split, mean, variance, d_residual}, gradients);
  }
  // These read d_out, so they come before anything that may overwrite it.
  if (post_ops.skip != nullptr && gradients.skip != nullptr)
    concat_backward(pool, post_ops, d_out, gradients.skip);
  if (post_ops.residual_is_volume && gradients.residual != nullptr)
    volume_backward(pool, post_ops, y, mean, variance, d_out, gradients.residual);
  separate_backward(pool, post_ops, {y, out, d_out, mean, variance, d_residual}, gradients);
}

}  // namespace fast_conv3d
