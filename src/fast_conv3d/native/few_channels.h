// Direct 5x5x5 convolutions, stride 1, same padding, for few input or few output channels. The
// tensor with few channels is "plain", (batch, channels, x, y, z); the other is blocked, see
// vector.h.
//
//   conv_few_input   reads plain, writes blocked: the forward pass of a convolution with few input
//                    channels, and the input gradient of one with few output channels
//   conv_few_output  reads blocked, writes plain: the other two
//   weight_gradient  of either convolution
//
// With so few channels the Toom-Cook transforms of winograd.h cost more than they save. The 16
// lanes are the channels of the blocked tensor, and a run of neighbours along z is kept in
// registers, so that each loaded value is used for all five taps along z.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstring>

#include "tensor.h"
#include "thread_pool.h"
#include "vector.h"

namespace fast_conv3d {
namespace few_channels {

constexpr int kSide = 5;
constexpr int kPadding = kSide / 2;
constexpr int kTaps = kSide * kSide * kSide;

// The convolution that the weights (output channels, input channels, 5, 5, 5) belong to.
enum class Conv { kPlainToBlocked, kBlockedToPlain };

// The index of the weight that connects a voxel of channel `blocked` with the voxel of channel
// `plain` at offset `tap` - 2 along each axis. Where the blocked tensor is the input, the offset is
// the opposite of the convolution's own, so its taps are reversed.
inline size_t weight_at(Conv conv, int blocked_channels, int plain_channels, int blocked, int plain,
                        int tap) {
  if (conv == Conv::kPlainToBlocked)
    return (static_cast<size_t>(blocked) * plain_channels + plain) * kTaps + tap;
  return (static_cast<size_t>(plain) * blocked_channels + blocked) * kTaps + kTaps - 1 - tap;
}

// Packs the weights as (plain channel, block, tap, 16) with zeros past the last channel. Taps are
// offsets from the blocked to the plain voxel, or from the plain to the blocked one if `mirrored`.
inline void pack_weights(Conv conv, const float* weights, const Shape& shape, int plain_channels,
                         bool mirrored, float* packed) {
  for (int plain = 0; plain < plain_channels; ++plain)
    for (int block = 0; block < shape.blocks(); ++block)
      for (int tap = 0; tap < kTaps; ++tap)
        for (int lane = 0; lane < kLanes; ++lane) {
          const int blocked = block * kLanes + lane;
          const int to = mirrored ? kTaps - 1 - tap : tap;
          *packed++ =
              blocked < shape.channels
                  ? weights[weight_at(conv, shape.channels, plain_channels, blocked, plain, to)]
                  : 0.f;
        }
}

inline size_t packed_floats(const Shape& shape, int plain_channels) {
  return static_cast<size_t>(plain_channels) * shape.blocks() * kTaps * kLanes;
}

// The length of a zero-padded row along z; runs of up to 16 voxels may read past the row's end.
inline int padded_z(int z) { return (z + kLanes - 1) / kLanes * kLanes + kLanes; }

// The shape of a plain tensor with zero padding.
inline Shape padded_shape(const Shape& shape, int plain_channels) {
  return {shape.batch, plain_channels, shape.x + 2 * kPadding, shape.y + 2 * kPadding,
          padded_z(shape.z)};
}

inline size_t padded_floats(const Shape& padded) {
  return static_cast<size_t>(padded.batch) * padded.channels * padded.voxels();
}

// Copies a plain tensor into `target` with zero padding.
inline void pad(const float* plain, const Shape& shape, const Shape& padded, ThreadPool& pool,
                float* target) {
  pool.for_each(padded.batch * padded.channels * padded.x, [&](int item, int) {
    const int volume = item / padded.x, x = item % padded.x - kPadding;
    float* plane = target + item * static_cast<size_t>(padded.y) * padded.z;
    std::fill_n(plane, static_cast<size_t>(padded.y) * padded.z, 0.f);
    if (x < 0 || x >= shape.x) return;
    const float* source =
        plain + volume * shape.voxels() + static_cast<size_t>(x) * shape.y * shape.z;
    for (int y = 0; y < shape.y; ++y)
      std::copy_n(source + static_cast<size_t>(y) * shape.z, shape.z,
                  plane + static_cast<size_t>(y + kPadding) * padded.z + kPadding);
  });
}

// Output voxels along z whose sums fit in registers beside the weights of five taps.
constexpr int kFewInputRun = kParts == 1 ? 16 : 6;

// Computes a run of kFewInputRun outputs: sums[i] = sum over plain channels and taps of plain *
// weights. `plain` points to the first tap of the run's first output in the padded tensor.
inline void few_input_run(const float* plain, const Shape& padded, const float* weights,
                          size_t channel_weights, Vec* sums) {
  Vec sum[kFewInputRun];
#pragma GCC unroll 16
  for (int i = 0; i < kFewInputRun; ++i) sum[i] = zero();
  for (int channel = 0; channel < padded.channels; ++channel)
    for (int x = 0; x < kSide; ++x)
      for (int y = 0; y < kSide; ++y) {
        const float* row =
            plain + channel * padded.voxels() + (static_cast<size_t>(x) * padded.y + y) * padded.z;
        const float* taps = weights + channel * channel_weights + (x * kSide + y) * kSide * kLanes;
#pragma GCC unroll 20
        for (int z = 0; z < kFewInputRun + kSide - 1; ++z)
#pragma GCC unroll 5
          for (int tap = 0; tap < kSide; ++tap)
            if (z >= tap && z - tap < kFewInputRun)
              sum[z - tap] += row[z] * load(taps + tap * kLanes);
      }
#pragma GCC unroll 16
  for (int i = 0; i < kFewInputRun; ++i) sums[i] = sum[i];
}

// blocked = epilogue(convolution of plain). `shape` is that of `blocked`. epilogue(value, image,
// block, voxel) returns the vector to store, with zeros in the lanes past the last channel.
template <typename Epilogue>
void conv_few_input(Conv conv, const float* plain, int plain_channels, const float* weights,
                    float* blocked, const Shape& shape, const Epilogue& epilogue, ThreadPool& pool,
                    Scratch& scratch) {
  assert(shape.valid() && plain_channels > 0);
  assert(plain != nullptr && weights != nullptr && blocked != nullptr);
  const Shape padded = padded_shape(shape, plain_channels);
  const size_t block_weights = kTaps * kLanes, channel_weights = shape.blocks() * block_weights;
  float* packed = scratch.get(packed_floats(shape, plain_channels) + padded_floats(padded));
  float* source = packed + packed_floats(shape, plain_channels);
  pack_weights(conv, weights, shape, plain_channels, false, packed);
  pad(plain, shape, padded, pool, source);
  pool.for_each(shape.batch * shape.blocks() * shape.x, [&](int item, int) {
    const int x = item % shape.x, image = item / shape.x / shape.blocks();
    const int block = item / shape.x % shape.blocks();
    const float* plane = source + image * plain_channels * padded.voxels() +
                         static_cast<size_t>(x) * padded.y * padded.z;
    float* target = blocked + image * shape.image_floats() + block * shape.block_floats();
    for (int y = 0; y < shape.y; ++y)
      for (int z = 0; z < shape.z; z += kFewInputRun) {
        Vec sums[kFewInputRun];
        few_input_run(plane + static_cast<size_t>(y) * padded.z + z, padded,
                      packed + block * block_weights, channel_weights, sums);
        const size_t voxel = (static_cast<size_t>(x) * shape.y + y) * shape.z + z;
        for (int i = 0; i < std::min(kFewInputRun, shape.z - z); ++i)
          store(target + (voxel + i) * kLanes, epilogue(sums[i], image, block, voxel + i));
      }
  });
}

// conv_few_output computes two plain channels at a time (one at the end of an odd number), so that
// each load of a blocked voxel serves both.
constexpr int kFewOutputChannels = 2;
template <int kChannels>
constexpr int kFewOutputRun = (kParts == 1 ? 16 : 6) / kChannels;

// Computes a run of outputs from one block of channels, lane by lane: sums[channel][i] (+)= sum
// over taps of blocked voxels * weights. `planes` point to the first tap of the run's first output
// in each of the five input planes.
template <int kChannels>
void few_output_run(const float* const* planes, size_t row_floats, const float* weights,
                    size_t channel_weights, bool add, float* sums) {
  constexpr int kRun = kFewOutputRun<kChannels>;
  Vec sum[kChannels][kRun];
#pragma GCC unroll 2
  for (int channel = 0; channel < kChannels; ++channel)
#pragma GCC unroll 16
    for (int i = 0; i < kRun; ++i)
      sum[channel][i] = add ? load(sums + (channel * kRun + i) * kLanes) : zero();
  for (int x = 0; x < kSide; ++x)
    for (int y = 0; y < kSide; ++y) {
      const float* row = planes[x] + y * row_floats;
      const float* taps = weights + (x * kSide + y) * kSide * kLanes;
#pragma GCC unroll 20
      for (int z = 0; z < kRun + kSide - 1; ++z) {
        const Vec value = load(row + z * kLanes);
#pragma GCC unroll 5
        for (int tap = 0; tap < kSide; ++tap)
#pragma GCC unroll 2
          for (int channel = 0; channel < kChannels; ++channel)
            if (z >= tap && z - tap < kRun)
              sum[channel][z - tap] +=
                  value * load(taps + channel * channel_weights + tap * kLanes);
      }
    }
#pragma GCC unroll 2
  for (int channel = 0; channel < kChannels; ++channel)
#pragma GCC unroll 16
    for (int i = 0; i < kRun; ++i) store(sums + (channel * kRun + i) * kLanes, sum[channel][i]);
}

// The sum of 16 floats, always in the same order.
inline float sum_lanes(const float* lanes) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight eights[2];
  std::memcpy(eights, lanes, sizeof eights);
  const Eight eight = eights[0] + eights[1];
  Four fours[2];
  std::memcpy(fours, &eight, sizeof fours);
  const Four four = fours[0] + fours[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The rows that a thread copies next; it prefetches them while it computes.
struct NextPlane {
  const float* data;
  size_t floats, block_stride;

  // Prefetches part `part` of `parts` of a block.
  void prefetch(int block, size_t part, size_t parts) const {
    for (size_t at = floats * part / parts; at < floats * (part + 1) / parts; at += kLanes)
      __builtin_prefetch(data + block * block_stride + at, 0, 2);
  }
};

// A ring buffer with a thread's copy of the five input planes along x that a plane of outputs
// depends on: some rows along y with zero padding, for all blocks. As x advances, the next plane
// overwrites the oldest.
struct PlaneRing {
  float* data;
  int rows;  // along y, without padding
  int z;     // of a padded row; odd, so that rows do not map to the same sets of the L1 cache

  size_t row_floats() const { return static_cast<size_t>(z) * kLanes; }
  size_t block_floats() const { return (rows + 2 * kPadding) * row_floats(); }
  // Plane x (-2 or more) of a block.
  float* plane(int x, int block, int blocks) const {
    return data + (static_cast<size_t>((x + kPadding) % kSide) * blocks + block) * block_floats();
  }

  // The rows that copy(image, shape, x, y) reads.
  NextPlane next_plane(const float* image, const Shape& shape, int x, int y) const {
    if (x >= shape.x) return {image, 0, 0};
    const int begin = std::max(0, y - kPadding), end = std::min(shape.y, y + rows + kPadding);
    const size_t shape_row = static_cast<size_t>(shape.z) * kLanes;
    return {image + (static_cast<size_t>(x) * shape.y + begin) * shape_row,
            (end - begin) * shape_row, shape.block_floats()};
  }

  // Copies the rows of plane x of `image` that outputs from row `y` on depend on; zeros outside the
  // image.
  void copy(const float* image, const Shape& shape, int x, int y) {
    for (int block = 0; block < shape.blocks(); ++block) {
      float* target = plane(x, block, shape.blocks());
      for (int row = y - kPadding; row < y + rows + kPadding; ++row, target += row_floats()) {
        if (x < 0 || x >= shape.x || row < 0 || row >= shape.y) {
          std::fill_n(target, row_floats(), 0.f);
          continue;
        }
        const float* source = image + block * shape.block_floats() +
                              (static_cast<size_t>(x) * shape.y + row) * shape.z * kLanes;
        std::fill_n(target, kPadding * kLanes, 0.f);
        std::copy_n(source, static_cast<size_t>(shape.z) * kLanes, target + kPadding * kLanes);
        std::fill(target + static_cast<size_t>(shape.z + kPadding) * kLanes, target + row_floats(),
                  0.f);
      }
    }
  }
};

// Computes `rows` rows of output plane x for kChannels plain channels: outputs (channel, ring.rows,
// output_z). `sums` is scratch for the partial sums over blocks.
template <int kChannels>
void few_output_plane(const PlaneRing& ring, int x, int rows, int z, int output_z, int blocks,
                      const float* weights, size_t channel_weights, const NextPlane& next,
                      float* sums, float* outputs) {
  constexpr int kRun = kFewOutputRun<kChannels>;
  const size_t runs = static_cast<size_t>((z + kRun - 1) / kRun) * rows;
  // Rows in the innermost loop: of the 25 input rows of one run, 20 are those of the run in the
  // next row and still in the L1 cache.
  for (int block = 0; block < blocks; ++block)
    for (int first = 0; first < z; first += kRun)
      for (int row = 0; row < rows; ++row) {
        const float* planes[kSide];
        for (int i = 0; i < kSide; ++i)
          planes[i] = ring.plane(x - kPadding + i, block, blocks) + row * ring.row_floats() +
                      first * kLanes;
        float* run_sums = sums + (static_cast<size_t>(row) * output_z + first) * kChannels * kLanes;
        few_output_run<kChannels>(planes, ring.row_floats(), weights + block * kTaps * kLanes,
                                  channel_weights, block > 0, run_sums);
        next.prefetch(block, static_cast<size_t>(first / kRun) * rows + row, runs);
        if (block < blocks - 1) continue;
        for (int channel = 0; channel < kChannels; ++channel)
          for (int i = 0; i < kRun; ++i)
            outputs[(static_cast<size_t>(channel) * ring.rows + row) * output_z + first + i] =
                sum_lanes(run_sums + (channel * kRun + i) * kLanes);
      }
}

// plain = epilogue(convolution of blocked). `shape` is that of `blocked`. epilogue(values, image,
// channel, voxel) gets 16 neighbours along z of one plain channel, the first of them at `voxel`,
// and returns the vector to store. At the end of a row the lanes past its last voxel are zero and
// are not stored.
template <typename Epilogue>
void conv_few_output(Conv conv, const float* blocked, const Shape& shape, const float* weights,
                     float* plain, int plain_channels, const Epilogue& epilogue, ThreadPool& pool,
                     Scratch& scratch) {
  assert(shape.valid() && plain_channels > 0);
  assert(blocked != nullptr && weights != nullptr && plain != nullptr);
  constexpr size_t kRingFloats = 320 * 1024;  // most of an L2 cache
  const int blocks = shape.blocks();
  const int ring_z = padded_z(shape.z) + 1, output_z = padded_z(shape.z);
  const size_t planes_row_floats = static_cast<size_t>(kSide) * blocks * ring_z * kLanes;
  const int fitting_rows = static_cast<int>(kRingFloats / planes_row_floats) - 2 * kPadding;
  const int rows = std::min(shape.y, std::max(4, std::min(16, fitting_rows)));
  const int y_items = (shape.y + rows - 1) / rows;
  // Split along x only as far as the threads need it: each split copies four planes twice.
  const int x_items =
      std::min(shape.x, (4 * pool.size() + shape.batch * y_items - 1) / (shape.batch * y_items));

  const size_t channel_weights = static_cast<size_t>(blocks) * kTaps * kLanes;
  const size_t ring_floats = (rows + 2 * kPadding) * planes_row_floats;
  const size_t output_floats = static_cast<size_t>(kFewOutputChannels) * rows * output_z;
  const size_t thread_floats = ring_floats + output_floats * (kLanes + 1);
  float* packed = scratch.get(packed_floats(shape, plain_channels) + pool.size() * thread_floats);
  pack_weights(conv, weights, shape, plain_channels, true, packed);
  pool.for_each(shape.batch * y_items * x_items, [&](int item, int thread) {
    PlaneRing ring = {packed + packed_floats(shape, plain_channels) + thread * thread_floats, rows,
                      ring_z};
    float* sums = ring.data + ring_floats;
    float* outputs = sums + output_floats * kLanes;
    const int x_item = item % x_items, image = item / x_items / y_items;
    const int y = item / x_items % y_items * rows, item_rows = std::min(rows, shape.y - y);
    const int begin = static_cast<int>(static_cast<int64_t>(shape.x) * x_item / x_items);
    const int end = static_cast<int>(static_cast<int64_t>(shape.x) * (x_item + 1) / x_items);
    const float* source = blocked + image * shape.image_floats();
    for (int x = begin - kPadding; x < begin + kPadding; ++x) ring.copy(source, shape, x, y);
    for (int x = begin; x < end; ++x) {
      ring.copy(source, shape, x + kPadding, y);
      for (int first = 0; first < plain_channels; first += kFewOutputChannels) {
        const int channels = std::min(kFewOutputChannels, plain_channels - first);
        const auto plane = channels == 2 ? few_output_plane<2> : few_output_plane<1>;
        plane(ring, x, item_rows, shape.z, output_z, blocks, packed + first * channel_weights,
              channel_weights,
              ring.next_plane(source, shape, x + 1 < end ? x + kPadding + 1 : shape.x, y), sums,
              outputs);
        for (int channel = 0; channel < channels; ++channel)
          for (int row = 0; row < item_rows; ++row)
            for (int z = 0; z < shape.z; z += kLanes) {
              const int count = std::min(kLanes, shape.z - z);
              const size_t voxel = (static_cast<size_t>(x) * shape.y + y + row) * shape.z + z;
              const Vec values = epilogue(
                  load_first(outputs + (static_cast<size_t>(channel) * rows + row) * output_z + z,
                             count),
                  image, first + channel, voxel);
              const size_t volume = static_cast<size_t>(image) * plain_channels + first + channel;
              std::memcpy(plain + volume * shape.voxels() + voxel, &values, count * sizeof(float));
            }
      }
    }
  });
}

// Taps along y whose gradients, for all five taps along z, are summed in registers.
constexpr int kGradientRows = kParts == 1 ? 5 : 1;

// sum[y][z] += sum over a run of blocked voxels * the plain voxels at offset (y, z) from them.
template <int kRun>
FC3D_INLINE void add_run(const float* blocked, const float* plain, size_t plain_row,
                         Vec (&sum)[kGradientRows][kSide]) {
  Vec values[kRun];
#pragma GCC unroll 4
  for (int i = 0; i < kRun; ++i) values[i] = load(blocked + i * kLanes);
#pragma GCC unroll 5
  for (int y = 0; y < kGradientRows; ++y)
#pragma GCC unroll 8
    for (int z = 0; z < kRun + kSide - 1; ++z)
#pragma GCC unroll 4
      for (int i = 0; i < kRun; ++i)
        if (z >= i && z - i < kSide) sum[y][z - i] += plain[y * plain_row + z] * values[i];
}

// sums[y][z] += sum over a row of blocked voxels * the plain voxels at offset (y, z) from them.
inline void add_row(const float* blocked, int count, const float* plain, size_t plain_row,
                    float* sums) {
  constexpr int kRun = 4;
  Vec sum[kGradientRows][kSide];
#pragma GCC unroll 5
  for (int y = 0; y < kGradientRows; ++y)
#pragma GCC unroll 5
    for (int z = 0; z < kSide; ++z) sum[y][z] = zero();
  int done = 0;
  for (; done + kRun <= count; done += kRun) {
    add_run<kRun>(blocked + done * kLanes, plain + done, plain_row, sum);
    // Hides from the compiler that consecutive runs read overlapping plain values: it would keep
    // these in registers that the sums need.
    __asm__("" : "+r"(plain));
  }
  for (; done < count; ++done) add_run<1>(blocked + done * kLanes, plain + done, plain_row, sum);
#pragma GCC unroll 5
  for (int y = 0; y < kGradientRows; ++y)
#pragma GCC unroll 5
    for (int z = 0; z < kSide; ++z) {
      float* target = sums + (y * kSide + z) * kLanes;
      store(target, load(target) + sum[y][z]);
    }
}

// The gradient of the weights of either convolution. Also the sums over batch and voxels of each
// channel of either tensor, unless null; the bias gradient is those of the output gradient.
// `shape` is that of `blocked`.
inline void weight_gradient(Conv conv, const float* blocked, const Shape& shape, const float* plain,
                            int plain_channels, float* weights_gradient, float* blocked_sums,
                            float* plain_sums, ThreadPool& pool, Scratch& scratch) {
  assert(shape.valid() && plain_channels > 0);
  assert(blocked != nullptr && plain != nullptr && weights_gradient != nullptr);
  const Shape padded = padded_shape(shape, plain_channels);
  const int blocks = shape.blocks();
  // Three levels of summation lose less to rounding than one long sum: a row in registers, the rows
  // of a part of the planes, then the parts in a fixed order.
  constexpr size_t kMaxParts = 64, kMaxPartFloats = 1 << 20;
  const size_t block_floats = (plain_channels * kTaps + 1) * kLanes;  // last: sums of `blocked`
  const size_t part_floats = blocks * block_floats + plain_channels * kLanes;
  const size_t planes = static_cast<size_t>(shape.batch) * shape.x;
  const int parts = static_cast<int>(
      std::max<size_t>(1, std::min({planes, kMaxParts, kMaxPartFloats / part_floats})));
  float* source = scratch.get(padded_floats(padded) + parts * part_floats);
  float* part_sums = source + padded_floats(padded);
  pad(plain, shape, padded, pool, source);
  std::fill_n(part_sums, parts * part_floats, 0.f);

  pool.for_each(parts * blocks, [&](int item, int) {
    const int part = item / blocks, block = item % blocks;
    float* sums = part_sums + part * part_floats + block * block_floats;
    float* plain_part_sums = part_sums + part * part_floats + blocks * block_floats;
    for (size_t plane = planes * part / parts; plane < planes * (part + 1) / parts; ++plane) {
      const size_t image = plane / shape.x, x = plane % shape.x;
      for (int y = 0; y < shape.y; ++y) {
        const size_t voxel = (x * shape.y + y) * shape.z;
        const float* row =
            blocked + image * shape.image_floats() + block * shape.block_floats() + voxel * kLanes;
        for (int channel = 0; channel < plain_channels; ++channel) {
          const float* first = source + (image * plain_channels + channel) * padded.voxels();
          for (int tap = 0; tap < kSide * kSide; tap += kGradientRows)
            add_row(row, shape.z,
                    first + ((x + tap / kSide) * padded.y + y + tap % kSide) * padded.z, padded.z,
                    sums + (channel * kTaps + tap * kSide) * kLanes);
          if (plain_sums == nullptr || block > 0) continue;
          float* target = plain_part_sums + channel * kLanes;
          const float* values = plain + (image * plain_channels + channel) * shape.voxels() + voxel;
          Vec sum = zero();
          int z = 0;
          for (; z + kLanes <= shape.z; z += kLanes) sum += load(values + z);
          store(target, load(target) + (sum + load_first(values + z, shape.z - z)));
        }
        if (blocked_sums == nullptr) continue;
        float* target = sums + plain_channels * kTaps * kLanes;
        Vec sum = zero();
        for (int z = 0; z < shape.z; ++z) sum += load(row + z * kLanes);
        store(target, load(target) + sum);
      }
    }
  });

  const auto total = [&](size_t at) {
    Vec sum = load(part_sums + at);
    for (int part = 1; part < parts; ++part) sum += load(part_sums + part * part_floats + at);
    return sum;
  };
  for (int block = 0; block < blocks; ++block) {
    const int lanes = std::min(kLanes, shape.channels - block * kLanes);
    for (int plain_channel = 0; plain_channel < plain_channels; ++plain_channel)
      for (int tap = 0; tap < kTaps; ++tap) {
        float values[kLanes];
        store(values, total(block * block_floats + (plain_channel * kTaps + tap) * kLanes));
        for (int lane = 0; lane < lanes; ++lane)
          weights_gradient[weight_at(conv, shape.channels, plain_channels, block * kLanes + lane,
                                     plain_channel, tap)] = values[lane];
      }
    if (blocked_sums == nullptr) continue;
    const Vec sum = total((block + 1) * block_floats - kLanes);
    std::memcpy(blocked_sums + block * kLanes, &sum, lanes * sizeof(float));
  }
  for (int channel = 0; plain_sums != nullptr && channel < plain_channels; ++channel) {
    float values[kLanes];
    store(values, total(blocks * block_floats + channel * kLanes));
    plain_sums[channel] = sum_lanes(values);
  }
}

}  // namespace few_channels
}  // namespace fast_conv3d
