// The end of the network: a convolution to two channels of logits, and a softmax. The softmax of
// two channels is the sigmoid of their difference, so both are computed as one convolution with the
// difference of the two filters, and a sigmoid.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstring>
#include <vector>

#include "post_ops.h"
#include "rows.h"

namespace fast_conv3d {
namespace head {

struct Head {
  Shape shape;           // of the input; plain, or blocked for a kernel of 1x1x1
  int side;              // of the kernel, odd
  int foreground;        // which of the two filters is the foreground's
  const float* weights;  // (2, channels, side, side, side)
  const float* bias;     // (2), or null
  bool logits;           // whether the difference of the logits is returned instead of its sigmoid

  int padding() const { return side / 2; }
  int taps() const { return side * side * side; }
  size_t filter_floats() const { return static_cast<size_t>(shape.channels) * taps(); }

  // The foreground's filter minus the other, (channels, taps), with zeros to whole blocks.
  std::vector<float> difference() const {
    std::vector<float> result(filter_floats() + kLanes);
    const float* front = weights + foreground * filter_floats();
    const float* back = weights + (1 - foreground) * filter_floats();
    for (size_t i = 0; i < filter_floats(); ++i) result[i] = front[i] - back[i];
    return result;
  }
  float bias_difference() const {
    return bias == nullptr ? 0.f : bias[foreground] - bias[1 - foreground];
  }
};

FC3D_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp_nonpositive(where_positive(x, -x, x));
  return where_positive(x, broadcast(1.f), e) / (1.f + e);
}
FC3D_INLINE Vec output_of(const Head& head, Vec logit) {
  return head.logits ? logit : sigmoid(logit);
}
// The gradient of the difference of the logits.
FC3D_INLINE Vec logit_gradient(const Head& head, Vec out, Vec d_out) {
  return head.logits ? d_out : d_out * out * (1.f - out);
}

// The sum of the lanes of each of sixteen Vecs.
FC3D_INLINE Vec lane_sums(Vec (&rows)[kLanes]) {
  transpose_lanes(rows);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) rows[i] += rows[i + step];
  return rows[0];
}

// Where the gradients of weights and bias, of one part of the voxels each, are added up.
class GradientSums {
 public:
  GradientSums(const Head& head, int parts)
      : head_(head), size_(head.filter_floats() + 1), sums_(parts * size_, 0.) {}

  double* of_weights(int part) { return sums_.data() + part * size_; }
  double* of_bias(int part) { return of_weights(part) + size_ - 1; }

  // Adds the parts in order; d_bias may be null. The filters' gradients are opposite.
  void write(float* d_weights, float* d_bias) const {
    for (size_t i = 0; i < size_; ++i) {
      double total = 0;
      for (size_t at = i; at < sums_.size(); at += size_) total += sums_[at];
      const bool is_bias = i == size_ - 1;
      if (is_bias && d_bias == nullptr) continue;
      float* target = is_bias ? d_bias : d_weights + i;
      const size_t other = is_bias ? 1 : head_.filter_floats();
      target[head_.foreground * other] = static_cast<float>(total);
      target[(1 - head_.foreground) * other] = static_cast<float>(-total);
    }
  }

 private:
  const Head& head_;
  size_t size_;
  std::vector<double> sums_;
};

// ------------------------------------------------------------------------------- kernels of 1x1x1

constexpr size_t kPartVoxels = 2048;

// Calls task(part, image, first voxel, voxels) for each part of the voxels of a batch.
template <typename Task>
void for_each_part(ThreadPool& pool, const Shape& shape, const Task& task) {
  const size_t image_parts = ceil_div(shape.voxels(), kPartVoxels);
  pool.for_each(static_cast<int>(shape.batch * image_parts), [&](int part, int) {
    const size_t begin = part % image_parts * kPartVoxels;
    task(part, part / static_cast<int>(image_parts), begin,
         std::min(kPartVoxels, shape.voxels() - begin));
  });
}
inline int parts_of(const Shape& shape) {
  return static_cast<int>(shape.batch * ceil_div(shape.voxels(), kPartVoxels));
}

// The logits of 16 voxels (or the `count` at the end of an image) without the bias.
FC3D_INLINE Vec logits_of(const Shape& shape, const float* image, const float* weights,
                          size_t voxel, int count) {
  if (shape.plain) {
    Vec sum = zero();
    for (int channel = 0; channel < shape.channels; ++channel)
      sum += weights[channel] * load_first_of(image + channel * shape.voxels() + voxel, count);
    return sum;
  }
  Vec sums[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    sums[i] = zero();
    for (int block = 0; i < count && block < shape.blocks(); ++block)
      sums[i] += load(image + block * shape.block_floats() + (voxel + i) * kLanes) *
                 load(weights + block * kLanes);
  }
  return lane_sums(sums);
}

inline void pointwise_forward(ThreadPool& pool, const Head& head, const float* input, float* out) {
  const Shape& shape = head.shape;
  const std::vector<float> weights = head.difference();
  const Vec bias = broadcast(head.bias_difference());
  for_each_part(pool, shape, [&](int, int image, size_t begin, size_t voxels) {
    const float* source = input + image * shape.image_floats();
    for (size_t voxel = begin; voxel < begin + voxels; voxel += kLanes) {
      const int count = static_cast<int>(std::min<size_t>(kLanes, begin + voxels - voxel));
      const Vec logit = logits_of(shape, source, weights.data(), voxel, count) + bias;
      store_first(out + image * shape.voxels() + voxel, count, output_of(head, logit));
    }
  });
}

inline void pointwise_backward(ThreadPool& pool, const Head& head, const float* input,
                               const float* out, const float* d_out, float* d_input,
                               float* d_weights, float* d_bias) {
  const Shape& shape = head.shape;
  const std::vector<float> weights = head.difference();
  GradientSums sums(head, parts_of(shape));
  for_each_part(pool, shape, [&](int part, int image, size_t begin, size_t voxels) {
    const size_t first = image * shape.voxels() + begin;
    float d_logits[kPartVoxels + kLanes] = {};
    Vec total = zero();
    for (size_t i = 0; i < voxels; i += kLanes) {
      const int count = static_cast<int>(std::min<size_t>(kLanes, voxels - i));
      const Vec d_logit = logit_gradient(head, load_first_of(out + first + i, count),
                                         load_first_of(d_out + first + i, count));
      store(d_logits + i, d_logit);
      total += d_logit;
    }
    *sums.of_bias(part) = lane_sum(total);
    for (int block = 0; block < shape.blocks(); ++block) {
      const size_t at = image * shape.image_floats() + block * shape.block_floats() +
                        begin * shape.voxel_floats();
      const float *source = input + at, *filter = weights.data() + block * shape.block_channels();
      Vec sum = zero();
      if (shape.plain) {
        for (size_t i = 0; i < voxels; i += kLanes) {
          const int count = static_cast<int>(std::min<size_t>(kLanes, voxels - i));
          const Vec d_logit = load(d_logits + i);
          store_first(d_input + at + i, count, d_logit * *filter);
          sum += d_logit * load_first_of(source + i, count);
        }
        sums.of_weights(part)[block] = lane_sum(sum);
        continue;
      }
      const Vec block_weights = load(filter);
      for (size_t i = 0; i < voxels; ++i) {
        store(d_input + at + i * kLanes, d_logits[i] * block_weights);
        sum += d_logits[i] * load(source + i * kLanes);
      }
      float lanes[kLanes];
      store(lanes, sum);
      for (int lane = 0; lane < std::min(kLanes, shape.channels - block * kLanes); ++lane)
        sums.of_weights(part)[block * kLanes + lane] = lanes[lane];
    }
  });
  sums.write(d_weights, d_bias);
}

// --------------------------------------------------------------------------------- larger kernels

// The shape of a plain tensor with zero padding; Vecs may read past a row's end.
inline Shape padded_shape(const Head& head, int channels) {
  const Shape& shape = head.shape;
  const int z = ceil_div(shape.z, kLanes) * kLanes + kLanes;
  return {shape.batch, channels, shape.x + 2 * head.padding(), shape.y + 2 * head.padding(),
          z,           true};
}

// Copies a plain tensor into `target` with zero padding.
inline void pad(ThreadPool& pool, const Head& head, const float* plain, const Shape& padded,
                float* target) {
  const Shape& shape = head.shape;
  pool.for_each(padded.batch * padded.channels * padded.x, [&](int item, int) {
    const int volume = item / padded.x, x = item % padded.x - head.padding();
    float* plane = target + item * static_cast<size_t>(padded.y) * padded.z;
    std::fill_n(plane, static_cast<size_t>(padded.y) * padded.z, 0.f);
    if (x < 0 || x >= shape.x) return;
    const float* source =
        plain + volume * shape.voxels() + static_cast<size_t>(x) * shape.y * shape.z;
    for (int y = 0; y < shape.y; ++y)
      std::copy_n(source + static_cast<size_t>(y) * shape.z, shape.z,
                  plane + static_cast<size_t>(y + head.padding()) * padded.z + head.padding());
  });
}

// Calls task(image, padded voxel of the kernel's first tap, first voxel of the row in the batch)
// for each row of plane `item`.
template <typename Task>
void for_rows(const Head& head, const Shape& padded, int item, const Task& task) {
  const int image = item / head.shape.x, x = item % head.shape.x;
  for (int y = 0; y < head.shape.y; ++y)
    task(image, (static_cast<size_t>(x) * padded.y + y) * padded.z,
         (static_cast<size_t>(item) * head.shape.y + y) * head.shape.z);
}

// The offset of each tap from the first, in voxels of a padded tensor.
inline std::vector<size_t> tap_offsets(const Head& head, const Shape& padded) {
  std::vector<size_t> offsets(head.taps());
  for (int tap = 0; tap < head.taps(); ++tap)
    offsets[tap] = (static_cast<size_t>(tap / head.side / head.side) * padded.y +
                    tap / head.side % head.side) *
                       padded.z +
                   tap % head.side;
  return offsets;
}

// Computes the foreground's probability, or the logit, (batch, x, y, z) of `input`.
inline void forward(ThreadPool& pool, Scratch& scratch, const Head& head, const float* input,
                    float* out) {
  if (head.side == 1) return pointwise_forward(pool, head, input, out);
  assert(head.shape.plain);
  const Shape padded = padded_shape(head, head.shape.channels);
  float* source = scratch.get(padded.floats());
  pad(pool, head, input, padded, source);
  const std::vector<float> weights = head.difference();
  const std::vector<size_t> offsets = tap_offsets(head, padded);
  const Vec bias = broadcast(head.bias_difference());
  pool.for_each(head.shape.batch * head.shape.x, [&](int item, int) {
    for_rows(head, padded, item, [&](int image, size_t first_tap, size_t row) {
      const float* taps = source + image * padded.image_floats() + first_tap;
      for (int z = 0; z < head.shape.z; z += kLanes) {
        Vec sum = bias;
        for (int channel = 0; channel < padded.channels; ++channel)
          for (int tap = 0; tap < head.taps(); ++tap)
            sum += weights[channel * head.taps() + tap] *
                   load(taps + channel * padded.voxels() + offsets[tap] + z);
        store_row(out + row, z, head.shape.z, output_of(head, sum));
      }
    });
  });
}

// The gradients of a row: d_input's, and those of weights and bias added to the sums of a part. The
// input gradient is a convolution of d_logit with the reversed filter.
struct RowGradient {
  const Head& head;
  const std::vector<float>& weights;
  const std::vector<size_t>& offsets;
  const float *d_taps, *d_row;  // d_logit with and without padding

  void of_input(int channel, float* target) const {
    const float* filter = weights.data() + channel * head.taps();
    for (int z = 0; z < head.shape.z; z += kLanes) {
      Vec sum = zero();
      for (int tap = 0; tap < head.taps(); ++tap)
        sum += filter[head.taps() - 1 - tap] * load(d_taps + offsets[tap] + z);
      store_row(target, z, head.shape.z, sum);
    }
  }
  // A row is summed in float, a plane and all planes in double.
  double of_weight(const float* values) const {
    Vec sum = zero();
    for (int z = 0; z < head.shape.z; z += kLanes)
      sum += load_row(d_row, z, head.shape.z) * load(values + z);
    return lane_sum(sum);
  }
  double of_bias() const {
    Vec sum = zero();
    for (int z = 0; z < head.shape.z; z += kLanes) sum += load_row(d_row, z, head.shape.z);
    return lane_sum(sum);
  }
};

// Computes the gradients of input, weights and bias (null if there is none) from the output of
// `forward` and its gradient.
inline void backward(ThreadPool& pool, Scratch& scratch, const Head& head, const float* input,
                     const float* out, const float* d_out, float* d_input, float* d_weights,
                     float* d_bias) {
  if (head.side == 1)
    return pointwise_backward(pool, head, input, out, d_out, d_input, d_weights, d_bias);
  assert(head.shape.plain);
  const Shape &shape = head.shape, padded = padded_shape(head, shape.channels);
  const Shape one = padded_shape(head, 1);
  float* source = scratch.get(padded.floats() + one.floats() + shape.batch * shape.voxels());
  float* d_padded = source + padded.floats();
  float* d_logit = d_padded + one.floats();
  pad(pool, head, input, padded, source);
  const std::vector<float> weights = head.difference();
  const std::vector<size_t> offsets = tap_offsets(head, padded);
  const int planes = shape.batch * shape.x;
  pool.for_each(planes, [&](int item, int) {
    for_rows(head, padded, item, [&](int, size_t, size_t row) {
      for (int z = 0; z < shape.z; z += kLanes)
        store_row(d_logit + row, z, shape.z,
                  logit_gradient(head, load_row(out + row, z, shape.z),
                                 load_row(d_out + row, z, shape.z)));
    });
  });
  pad(pool, head, d_logit, one, d_padded);

  GradientSums sums(head, planes);
  pool.for_each(planes, [&](int item, int) {
    for_rows(head, padded, item, [&](int image, size_t first_tap, size_t row) {
      const RowGradient gradient{head, weights, offsets,
                                 d_padded + image * one.image_floats() + first_tap, d_logit + row};
      const float* in_taps = source + image * padded.image_floats() + first_tap;
      const size_t in_image = row - static_cast<size_t>(image) * shape.voxels();
      float* d_row = d_input + image * shape.image_floats() + in_image;
      for (int channel = 0; channel < shape.channels; ++channel) {
        gradient.of_input(channel, d_row + channel * shape.voxels());
        for (int tap = 0; tap < head.taps(); ++tap)
          sums.of_weights(item)[channel * head.taps() + tap] +=
              gradient.of_weight(in_taps + channel * padded.voxels() + offsets[tap]);
      }
      *sums.of_bias(item) += gradient.of_bias();
    });
  });
  sums.write(d_weights, d_bias);
}

}  // namespace head
}  // namespace fast_conv3d
