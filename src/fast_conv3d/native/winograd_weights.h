// The transform of the weights, G along x, y and z, and its transpose for their gradient.
#pragma once

#include <algorithm>
#include <cassert>

#include "matrix_products.h"
#include "thread_pool.h"
#include "winograd_transforms.h"

namespace fast_conv3d {

// A view of the weights of a convolution: the strides of filter (k, c), and whether the taps are
// reversed, as for the input gradient.
struct Weights {
  const float* data;
  int k_count, c_count;  // output and input channels
  size_t k_stride, c_stride;
  bool flipped;

  static Weights forward(const float* w, int k, int c) {
    return {w, k, c, static_cast<size_t>(c) * kVolumeTaps, kVolumeTaps, false};
  }
  static Weights input_gradient(const float* w, int k, int c) {
    return {w, c, k, kVolumeTaps, static_cast<size_t>(c) * kVolumeTaps, true};
  }
  int k_blocks() const { return ceil_div(k_count, kLanes); }
  int c_blocks() const { return ceil_div(c_count, kLanes); }
};

constexpr int kSliceChannels = 8;  // the number of channels whose slices fit in L1

// Scratch for the weights of 16 x 16 channels: the filters, with padded rows to avoid cache set
// conflicts; after G along x; and for some channels and one point x after G along y and z
// ("slices").
struct WeightScratch {
  static constexpr size_t kFilterStride = kLanes * kVolumeTaps + kPad;

  View<2> filters;  // [k][c], 125 taps each
  View<3> along_x;  // [c][point x][tap y, z], 16 k each
  View<2> slices;   // [c][point y, z], 16 k each

  explicit WeightScratch(ScratchParts& parts, int slice_channels = kLanes) {
    filters = {parts.take(kLanes * kFilterStride), {kLanes, kLanes}, {kFilterStride, kVolumeTaps}};
    along_x = parts.take<3>({kLanes, kPoints, kTaps * kTaps});
    slices = parts.take<2>({slice_channels, kPoints2}, 1);
  }
};

// The floats of one point x after G along x.
constexpr size_t kPlaneStride = kTaps * kTaps * kLanes;

// std::copy with vectors: `rep movs` is slow for a few kilobytes at unaligned addresses.
inline void copy_floats(const float* source, int count, float* target) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(target + i, load(source + i));
  for (; i < count; ++i) target[i] = source[i];
}

// Transposes between taps[tap][16 lanes] and the 125 taps of each lane at data + lane * stride.
// Lanes from `lanes` on are set to zero in taps, and not written to data.
inline void taps_from_filters(const float* data, size_t stride, int lanes, bool flipped,
                              float* taps) {
  if (lanes < kLanes) std::fill(taps, taps + kVolumeTaps * kLanes, 0.f);
  for (int first = 0; first < lanes; first += kRegisterFloats)
    for (int begin = 0; begin < kVolumeTaps; begin += kRegisterFloats) {
      const int tap = std::min(begin, kVolumeTaps - kRegisterFloats);
      Register square[kRegisterFloats];
      for (int i = 0; i < kRegisterFloats; ++i)
        square[i] =
            first + i < lanes ? load_register(data + (first + i) * stride + tap) : Register{};
      transpose(square);
      for (int i = 0; i < kRegisterFloats; ++i)
        store_register(taps + (flipped ? kVolumeTaps - 1 - tap - i : tap + i) * kLanes + first,
                       square[i]);
    }
}
inline void filters_from_taps(const float* taps, size_t stride, int lanes, float* data) {
  for (int first = 0; first < lanes; first += kRegisterFloats)
    for (int begin = 0; begin < kVolumeTaps; begin += kRegisterFloats) {
      const int tap = std::min(begin, kVolumeTaps - kRegisterFloats);
      Register square[kRegisterFloats];
      for (int i = 0; i < kRegisterFloats; ++i)
        square[i] = load_register(taps + (tap + i) * kLanes + first);
      transpose(square);
      for (int i = 0; i < kRegisterFloats && first + i < lanes; ++i)
        store_register(data + (first + i) * stride + tap, square[i]);
    }
}

// G along x: taps[125][16] -> along_x[point x][25][16]. G along y and z, for one point_x:
// along_x[25][16] -> slice[y, z][16].
inline void transform_taps(const float* taps, float* along_x) {
  for (size_t yz = 0; yz < kPlaneStride; yz += kLanes) {
    Vec in[kTaps], out[kPoints];
    load_all(taps + yz, kPlaneStride, in);
    transform_kernel(in, out);
    store_all(along_x + yz, kPlaneStride, out);
  }
}
inline void transform_slice(const float* along_x, float* slice) {
  float along_y[kPoints * kTaps * kLanes];
  Vec in[kTaps], out[kPoints];
  for (int z = 0; z < kTaps; ++z) {
    load_all(along_x + z * kLanes, kTaps * kLanes, in);
    transform_kernel(in, out);
    store_all(along_y + z * kLanes, kTaps * kLanes, out);
  }
  for (int y = 0; y < kPoints; ++y) {
    load_all(along_y + y * kTaps * kLanes, kLanes, in);
    transform_kernel(in, out);
    store_all(slice + y * kPoints * kLanes, kLanes, out);
  }
}

// The transposes of both, for the weight gradient: slice[y, z][16] -> along_x[25][16], and
// along_x[point x][25][16] -> taps[125][16].
inline void gradient_of_slice(const float* slice, float* along_x) {
  float along_y[kPoints * kTaps * kLanes];
  Vec in[kPoints], out[kTaps];
  for (int y = 0; y < kPoints; ++y) {
    load_all(slice + y * kPoints * kLanes, kLanes, in);
    transform_kernel_gradient(in, out);
    store_all(along_y + y * kTaps * kLanes, kLanes, out);
  }
  for (int z = 0; z < kTaps; ++z) {
    load_all(along_y + z * kLanes, kTaps * kLanes, in);
    transform_kernel_gradient(in, out);
    store_all(along_x + z * kLanes, kTaps * kLanes, out);
  }
}
inline void gradient_of_taps(const float* along_x, float* taps) {
  for (size_t yz = 0; yz < kPlaneStride; yz += kLanes) {
    Vec in[kPoints], out[kTaps];
    load_all(along_x + yz, kPlaneStride, in);
    transform_kernel_gradient(in, out);
    store_all(taps + yz, kPlaneStride, out);
  }
}

// Computes along_x of 16 x 16 channels, zeros past the last channel.
inline void load_weight_block(const Weights& weights, int k_block, int c_block,
                              const WeightScratch& scratch) {
  const int k = k_block * kLanes, c = c_block * kLanes;
  const int k_lanes = std::min(kLanes, weights.k_count - k);
  const int c_lanes = std::min(kLanes, weights.c_count - c);
  const float* source = weights.data + k * weights.k_stride + c * weights.c_stride;
  size_t k_stride = weights.k_stride;
  if (!weights.flipped) {  // filters of one k are contiguous, those of 16 k are far apart
    for (int lane = 0; lane < k_lanes; ++lane)
      copy_floats(source + lane * weights.k_stride, c_lanes * kVolumeTaps,
                  scratch.filters(lane, 0));
    source = scratch.filters.data();
    k_stride = scratch.filters.stride(0);
  }
  for (int i = 0; i < c_lanes; ++i) {
    float taps[kVolumeTaps * kLanes];
    taps_from_filters(source + i * weights.c_stride, k_stride, k_lanes, weights.flipped, taps);
    transform_taps(taps, scratch.along_x(i, 0, 0));
  }
  float* end = scratch.along_x.data() + scratch.along_x.floats();
  std::fill(scratch.along_x.data() + c_lanes * scratch.along_x.stride(0), end, 0.f);
}

// The gradients of `count` channels from `first_c` on: the first `count` of along_x -> filters.
inline void store_gradients(const WeightScratch& scratch, int first_c, int count, int k_lanes) {
  for (int i = 0; i < count; ++i) {
    float taps[kVolumeTaps * kLanes];
    gradient_of_taps(scratch.along_x(i, 0, 0), taps);
    filters_from_taps(taps, scratch.filters.stride(0), k_lanes, scratch.filters(0, first_c + i));
  }
}

// filters -> dw (k_count, c_count, 5, 5, 5).
inline void store_weight_block(const WeightScratch& scratch, int k_block, int c_block, int k_count,
                               int c_count, float* dw) {
  const int k = k_block * kLanes, c = c_block * kLanes;
  for (int lane = 0; lane < std::min(kLanes, k_count - k); ++lane)
    copy_floats(scratch.filters(lane, 0), std::min(kLanes, c_count - c) * kVolumeTaps,
                dw + (static_cast<size_t>(k + lane) * c_count + c) * kVolumeTaps);
}

// Transformed weights of all channels, or their gradient: for each point, groups of kNR blocks of
// output channels (the last may be smaller), [group][c][block of the group][16 k].
struct PackedWeights {
  float* data;
  int k_blocks, c_blocks;

  size_t point_stride() const {
    return static_cast<size_t>(c_blocks) * k_blocks * kLanes * kLanes + kPad;
  }
  size_t floats() const { return kPoints3 * point_stride(); }
  float* point(int point) const { return data + point * point_stride(); }
  // The 16 channels c of a block, [c][16 k], of one point.
  View<1> block(int point, int k_block, int c_block) const {
    const int first = k_block / kNR * kNR, size = std::min(kNR, k_blocks - first);
    const size_t stride = static_cast<size_t>(size) * kLanes;
    const size_t offset =
        (static_cast<size_t>(first) * c_blocks * kLanes + k_block - first) * kLanes +
        c_block * kLanes * stride;
    return {data + point * point_stride() + offset, {kLanes}, {stride}};
  }
};

// Transforms all weights.
inline void transform_weights(ThreadPool& pool, Workspace& workspace, const Weights& weights,
                              const PackedWeights& packed) {
  assert(weights.k_blocks() == packed.k_blocks && weights.c_blocks() == packed.c_blocks);
  const int c_blocks = packed.c_blocks;
  pool.for_each(packed.k_blocks * c_blocks, [&](int item, int thread) {
    const int k = item / c_blocks, c = item % c_blocks;
    const auto scratch = lay_out<WeightScratch>(workspace.per_thread[thread]);
    load_weight_block(weights, k, c, scratch);
    for (int px = 0; px < kPoints; ++px) {
      for (int i = 0; i < kLanes; ++i)
        transform_slice(scratch.along_x(i, px, 0), scratch.slices(i, 0));
      for (int point = 0; point < kPoints2; ++point) {
        const View<1> target = packed.block(px * kPoints2 + point, k, c);
        for (int i = 0; i < kLanes; ++i) store(target(i), load(scratch.slices(i, point)));
      }
    }
  });
}

// The transpose of `transform_weights`: dw (out_channels, in_channels, 5, 5, 5).
inline void gradient_of_weights(ThreadPool& pool, Workspace& workspace, const PackedWeights& packed,
                                int out_channels, int in_channels, float* dw) {
  assert(ceil_div(out_channels, kLanes) == packed.k_blocks);
  assert(ceil_div(in_channels, kLanes) == packed.c_blocks);
  const int c_blocks = packed.c_blocks;
  pool.for_each(packed.k_blocks * c_blocks, [&](int item, int thread) {
    const int k = item / c_blocks, c = item % c_blocks;
    const auto scratch = lay_out<WeightScratch>(workspace.per_thread[thread]);
    for (int px = 0; px < kPoints; ++px) {
      for (int point = 0; point < kPoints2; ++point) {
        const View<1> source = packed.block(px * kPoints2 + point, k, c);
        for (int i = 0; i < kLanes; ++i) store(scratch.slices(i, point), load(source(i)));
      }
      for (int i = 0; i < kLanes; ++i)
        gradient_of_slice(scratch.slices(i, 0), scratch.along_x(i, px, 0));
    }
    store_gradients(scratch, 0, kLanes, std::min(kLanes, out_channels - k * kLanes));
    store_weight_block(scratch, k, c, out_channels, in_channels, dw);
  });
}

}  // namespace fast_conv3d
