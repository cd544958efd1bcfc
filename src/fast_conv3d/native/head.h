// The end of the network: a convolution to two channels of logits, and a softmax. The softmax of
// two channels is the sigmoid of their difference, so both are computed as one convolution with the
// difference of the two filters, and a sigmoid. Tensors are plain.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "few_channels.h"
#include "post_ops.h"

namespace fast_conv3d {
namespace head {

struct Head {
  Shape shape;           // of the input
  int side;              // of the kernel: 1, 3 or 5
  int foreground;        // which of the two filters is the foreground's
  const float* weights;  // (2, channels, side, side, side)
  const float* bias;     // (2), or null

  int taps() const { return side * side * side; }
  // Where the kernel's first tap lies in the padded tensor, along each axis.
  int first_tap() const { return few_channels::kPadding - side / 2; }
  size_t filter_floats() const { return static_cast<size_t>(shape.channels) * taps(); }
  Shape padded() const { return few_channels::padded_shape(shape, shape.channels); }

  // The foreground's filter minus the other, (channels, taps).
  std::vector<float> difference() const {
    std::vector<float> result(filter_floats());
    const float* front = weights + foreground * filter_floats();
    const float* back = weights + (1 - foreground) * filter_floats();
    for (size_t i = 0; i < result.size(); ++i) result[i] = front[i] - back[i];
    return result;
  }
  float bias_difference() const {
    return bias == nullptr ? 0.f : bias[foreground] - bias[1 - foreground];
  }
};

inline Vec sigmoid(Vec x) {
  const Vec e = exp_nonpositive(where_positive(x, -x, x));
  return where_positive(x, broadcast(1.f), e) / (1.f + e);
}

inline float sum_of_lanes(Vec value) {
  float lanes[kLanes];
  store(lanes, value);
  return few_channels::sum_lanes(lanes);
}

// Stores 16 neighbours along z of a row of `z` voxels, from voxel `first` on; fewer at its end.
FC3D_INLINE void store_row(float* row, int first, int z, Vec value) {
  if (first + kLanes <= z) return store(row + first, value);
  float lanes[kLanes];
  store(lanes, value);
  std::memcpy(row + first, lanes, (z - first) * sizeof(float));
}
FC3D_INLINE Vec load_row(const float* row, int first, int z) {
  return first + kLanes <= z ? load(row + first) : load_first(row + first, z - first);
}

// Calls task(image, padded voxel of the kernel's first tap, first voxel of the row in the batch)
// for each row of plane `item`.
template <typename Task>
void for_rows(const Head& head, int item, const Task& task) {
  const Shape padded = head.padded();
  const int image = item / head.shape.x, x = item % head.shape.x;
  for (int y = 0; y < head.shape.y; ++y)
    task(image,
         (static_cast<size_t>(x + head.first_tap()) * padded.y + y + head.first_tap()) * padded.z +
             head.first_tap(),
         (static_cast<size_t>(item) * head.shape.y + y) * head.shape.z);
}

// The offset of each tap from the first, in voxels of a padded tensor.
inline std::vector<size_t> tap_offsets(const Head& head) {
  const Shape padded = head.padded();
  std::vector<size_t> offsets(head.taps());
  for (int tap = 0; tap < head.taps(); ++tap)
    offsets[tap] = (static_cast<size_t>(tap / head.side / head.side) * padded.y +
                    tap / head.side % head.side) *
                       padded.z +
                   tap % head.side;
  return offsets;
}

// Computes the foreground's probability (batch, x, y, z) of `input` (batch, channels, x, y, z).
inline void forward(ThreadPool& pool, Scratch& scratch, const Head& head, const float* input,
                    float* probability) {
  const Shape padded = head.padded();
  float* source = scratch.get(few_channels::padded_floats(padded));
  few_channels::pad(input, head.shape, padded, pool, source);
  const std::vector<float> weights = head.difference();
  const std::vector<size_t> offsets = tap_offsets(head);
  const Vec bias = broadcast(head.bias_difference());
  pool.for_each(head.shape.batch * head.shape.x, [&](int item, int) {
    for_rows(head, item, [&](int image, size_t first_tap, size_t row) {
      const float* taps = source + image * padded.channels * padded.voxels() + first_tap;
      for (int z = 0; z < head.shape.z; z += kLanes) {
        Vec sum = bias;
        for (int channel = 0; channel < padded.channels; ++channel)
          for (int tap = 0; tap < head.taps(); ++tap)
            sum += weights[channel * head.taps() + tap] *
                   load(taps + channel * padded.voxels() + offsets[tap] + z);
        store_row(probability + row, z, head.shape.z, sigmoid(sum));
      }
    });
  });
}

// Computes the gradients of input, weights and bias (null if there is none).
inline void backward(ThreadPool& pool, Scratch& scratch, const Head& head, const float* input,
                     const float* probability, const float* d_probability, float* d_input,
                     float* d_weights, float* d_bias) {
  const Shape &shape = head.shape, padded = head.padded();
  const Shape one = few_channels::padded_shape(shape, 1);
  float* source = scratch.get(few_channels::padded_floats(padded) +
                              few_channels::padded_floats(one) + shape.batch * shape.voxels());
  float* d_padded = source + few_channels::padded_floats(padded);
  float* d_logit = d_padded + few_channels::padded_floats(one);
  few_channels::pad(input, shape, padded, pool, source);
  const std::vector<float> weights = head.difference();
  const std::vector<size_t> offsets = tap_offsets(head);
  const int taps = head.taps(), planes = shape.batch * shape.x;

  pool.for_each(planes, [&](int item, int) {
    for_rows(head, item, [&](int, size_t, size_t row) {
      for (int z = 0; z < shape.z; z += kLanes) {
        const Vec p = load_row(probability + row, z, shape.z);
        const Vec d = load_row(d_probability + row, z, shape.z);
        store_row(d_logit + row, z, shape.z, d * p * (1.f - p));
      }
    });
  });
  few_channels::pad(d_logit, shape, one, pool, d_padded);

  // A row is summed in float, a plane and all planes in double, in a fixed order.
  const size_t sums_of_plane = head.filter_floats() + 1;
  std::vector<double> sums(planes * sums_of_plane, 0.);
  pool.for_each(planes, [&](int item, int) {
    double* plane_sums = sums.data() + item * sums_of_plane;
    for_rows(head, item, [&](int image, size_t first_tap, size_t row) {
      // The input gradient is a convolution of d_logit with the reversed filter.
      const float* d_taps = d_padded + image * one.voxels() + first_tap;
      const float* in_taps = source + image * padded.channels * padded.voxels() + first_tap;
      const size_t in_image = row - static_cast<size_t>(image) * shape.voxels();
      float* d_row =
          d_input + static_cast<size_t>(image) * shape.channels * shape.voxels() + in_image;
      for (int channel = 0; channel < shape.channels; ++channel) {
        const float* filter = weights.data() + channel * taps;
        for (int z = 0; z < shape.z; z += kLanes) {
          Vec sum = zero();
          for (int tap = 0; tap < taps; ++tap)
            sum += filter[taps - 1 - tap] * load(d_taps + offsets[tap] + z);
          store_row(d_row + channel * shape.voxels(), z, shape.z, sum);
        }
        for (int tap = 0; tap < taps; ++tap) {
          const float* in_row = in_taps + channel * padded.voxels() + offsets[tap];
          Vec sum = zero();
          for (int z = 0; z < shape.z; z += kLanes)
            sum += load_row(d_logit + row, z, shape.z) * load(in_row + z);
          plane_sums[channel * taps + tap] += sum_of_lanes(sum);
        }
      }
      Vec sum = zero();
      for (int z = 0; z < shape.z; z += kLanes) sum += load_row(d_logit + row, z, shape.z);
      plane_sums[head.filter_floats()] += sum_of_lanes(sum);
    });
  });
  for (size_t i = 0; i < sums_of_plane; ++i) {
    double total = 0;
    for (int plane = 0; plane < planes; ++plane) total += sums[plane * sums_of_plane + i];
    const bool is_bias = i == head.filter_floats();
    if (is_bias && d_bias == nullptr) continue;
    float* target = is_bias ? d_bias : d_weights + i;
    const size_t other = is_bias ? 1 : head.filter_floats();
    target[head.foreground * other] = static_cast<float>(total);
    target[(1 - head.foreground) * other] = static_cast<float>(-total);
  }
}

}  // namespace head
}  // namespace fast_conv3d
