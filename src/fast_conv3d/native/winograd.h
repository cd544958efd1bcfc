// 5x5x5 convolution, stride 1, same padding, by nested 3-D Toom-Cook (Winograd) F(4, 5), over
// blocked tensors.
//
// The volume is split into tiles of 4x4x4 outputs, each of which depends on 8x8x8 inputs. Per tile
//
//   y = At [ sum over c of (G w) * (Bt x) ]
//
// with the 1-D transforms Bt, G, At along x, then y, then z. At each of the 8x8x8 = 512 points this
// is a matrix product over the channels:
//
//   product[point][tile][k] = sum over c of input[point][tile][c] * weights[point][c][k]
//
// That is 8 multiplications per output and pair of channels instead of 125.
//
// There are two loop orders, chosen by the number of tiles in the batch:
// - many tiles: the weights are transformed once; each thread takes blocks of tiles through all
//   steps.
// - few tiles (the deep stages, which have many weights): the input is transformed once; each
//   thread takes 16 output channels and transforms their weights when it needs them. Transformed
//   weights are 4 times as large, so storing and reloading all of them would cost more than the
//   arithmetic.
//
// The input gradient is the same convolution with flipped and transposed weights; the weight
// gradient is dw = Gt [ sum over tiles of (A dy) * (Bt x) ]. See docs/fast_conv3d.md.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>
#include <vector>

#include "tensor.h"
#include "thread_pool.h"
#include "toom_cook.h"

namespace fast_conv3d {

constexpr int kVolumeTaps = kTaps * kTaps * kTaps;
constexpr int kPoints2 = kPoints * kPoints;
constexpr int kPoints3 = kPoints2 * kPoints;
// The tile of the micro-kernel, in registers: kMR tiles of voxels by kNR blocks of output channels.
constexpr int kMR = kRegisterFloats == 16 ? 12 : 6;
constexpr int kNR = kRegisterFloats == 16 ? 2 : 1;
// Extra floats per stride, so that arrays that are read together do not map to the same cache sets.
constexpr size_t kPad = kLanes;
constexpr size_t kPrefetchVoxels = 32;  // prefetch distance
constexpr int kFewTiles = 64;           // up to here the few-tiles loop order is faster

// The number of tiles of a block. With few channels, a block's intermediate results stay in L2.
// With many, the weights dominate: they pass through L2 once per block, so blocks are larger.
inline int block_tiles(int channels) { return channels < 128 ? 32 : 128; }
inline int gradient_block_tiles(int channels) { return channels < 128 ? 64 : 128; }

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// A box of tiles of one image: its first tile and its number of tiles along each axis.
struct TileBlock {
  int batch, x, y, z, count_x, count_y, count_z;

  int tiles() const { return count_x * count_y * count_z; }
  int rows() const { return count_x * count_y; }
  int in_y() const { return kOutputs * count_y + kTaps - 1; }
  int in_z() const { return kOutputs * count_z + kTaps - 1; }
  int out_y() const { return kOutputs * count_y; }
  int out_z() const { return kOutputs * count_z; }
};

// Splits every image of the batch into boxes of at most `limit` tiles, longest along z, then y.
inline std::vector<TileBlock> tile_blocks(const Shape& shape, int limit) {
  const int tiles_x = ceil_div(shape.x, kOutputs), tiles_y = ceil_div(shape.y, kOutputs),
            tiles_z = ceil_div(shape.z, kOutputs);
  const int step_z = std::min(tiles_z, limit);
  const int step_y = std::min(tiles_y, std::max(1, limit / step_z));
  const int step_x = std::min(tiles_x, std::max(1, limit / (step_z * step_y)));
  std::vector<TileBlock> blocks;
  for (int batch = 0; batch < shape.batch; ++batch)
    for (int x = 0; x < tiles_x; x += step_x)
      for (int y = 0; y < tiles_y; y += step_y)
        for (int z = 0; z < tiles_z; z += step_z)
          blocks.push_back({batch, x, y, z, std::min(step_x, tiles_x - x),
                            std::min(step_y, tiles_y - y), std::min(step_z, tiles_z - z)});
  return blocks;
}

inline int tiles_of_image(const Shape& shape) {
  return ceil_div(shape.x, kOutputs) * ceil_div(shape.y, kOutputs) * ceil_div(shape.z, kOutputs);
}

// ---------------------------------------------------------------------------------- transforms

// Loads in[j] from source + j * stride, or stores out[j] there.
template <int N>
FC3D_INLINE void load_all(const float* source, size_t stride, Vec (&in)[N]) {
  for (int j = 0; j < N; ++j) in[j] = load(source + j * stride);
}
template <int N>
FC3D_INLINE void store_all(float* target, size_t stride, const Vec (&out)[N]) {
  for (int j = 0; j < N; ++j) store(target + j * stride, out[j]);
}

// The two transforms of a tensor: Bt of the input, A of the output gradient. They differ in the
// number of values along an axis that a tile depends on (8 overlapping or 4 disjoint ones) and in
// the matrix.
struct InputTransform {
  static constexpr int kSize = kPoints, kPadding = kTaps / 2;
  static int extent(int tiles) { return kOutputs * tiles + kTaps - 1; }
  static FC3D_INLINE void transform(const Vec (&in)[kSize], Vec (&out)[kPoints]) {
    transform_input(in, out);
  }
};
struct GradientTransform {
  static constexpr int kSize = kOutputs, kPadding = 0;
  static int extent(int tiles) { return kOutputs * tiles; }
  static FC3D_INLINE void transform(const Vec (&in)[kSize], Vec (&out)[kPoints]) {
    transform_output_gradient(in, out);
  }
};

// The layout of a block's intermediate results: after x [point_x][tile x][channel block][y][z][16],
// for the point_x that are computed; after y, for one point_x, [point_y][channel block][row][z][16]
// with row = (tile x, tile y).
template <typename Transform>
struct TransformLayout {
  int blocks, rows, in_y, in_z;
  size_t x_stride, y_stride;  // between points

  TransformLayout(const TileBlock& block, int channel_blocks)
      : blocks(channel_blocks),
        rows(block.rows()),
        in_y(Transform::extent(block.count_y)),
        in_z(Transform::extent(block.count_z)) {
    const size_t line = static_cast<size_t>(in_z) * kLanes * blocks;
    x_stride = line * block.count_x * in_y + kPad;
    y_stride = line * rows + kPad;
  }
};

// Along x: image (channel blocks from `image` on, x, y, z, 16) -> after_x, for the given points.
// Voxels outside the volume are zero.
template <typename Transform>
void transform_along_x(const float* image, const Shape& shape, const TileBlock& block,
                       const TransformLayout<Transform>& layout, const int* points, int point_count,
                       const float* zeros, float* after_x) {
  const size_t row_floats = static_cast<size_t>(shape.z) * kLanes;
  const int first_z = kOutputs * block.z - Transform::kPadding;
  const int begin = std::max(0, -first_z);
  const int end = std::max(begin, std::min(layout.in_z, shape.z - first_z));
  for (int tile = 0; tile < block.count_x; ++tile)
    for (int channel = 0; channel < layout.blocks; ++channel)
      for (int y = 0; y < layout.in_y; ++y) {
        float* target =
            after_x + ((static_cast<size_t>(tile) * layout.blocks + channel) * layout.in_y + y) *
                          layout.in_z * kLanes;
        const int image_y = kOutputs * block.y - Transform::kPadding + y;
        const float* rows[Transform::kSize];
        for (int j = 0; j < Transform::kSize; ++j) {
          const int image_x = kOutputs * (block.x + tile) - Transform::kPadding + j;
          const bool inside =
              image_x >= 0 && image_x < shape.x && image_y >= 0 && image_y < shape.y;
          rows[j] = inside ? image + channel * shape.block_floats() +
                                 (static_cast<size_t>(image_x) * shape.y + image_y) * row_floats
                           : zeros;
        }
        for (int i = 0; i < point_count; ++i) {
          float* line = target + i * layout.x_stride;
          std::fill(line, line + begin * kLanes, 0.f);
          std::fill(line + end * kLanes, line + layout.in_z * kLanes, 0.f);
        }
        for (int z = begin; z < end; ++z) {
          Vec in[Transform::kSize], out[kPoints];
          for (int j = 0; j < Transform::kSize; ++j) in[j] = load(rows[j] + (first_z + z) * kLanes);
          Transform::transform(in, out);
          float* voxel = target + z * kLanes;
          if (point_count == kPoints)
            store_all(voxel, layout.x_stride, out);
          else
            for (int i = 0; i < point_count; ++i)
              store(voxel + i * layout.x_stride, out[points[i]]);
        }
      }
}

// Along y: one point's slice of after_x -> after_y.
template <typename Transform>
void transform_along_y(const TileBlock& block, const TransformLayout<Transform>& layout,
                       const float* after_x, float* after_y) {
  const size_t line = static_cast<size_t>(layout.in_z) * kLanes;
  for (int tile_x = 0; tile_x < block.count_x; ++tile_x)
    for (int channel = 0; channel < layout.blocks; ++channel)
      for (int tile_y = 0; tile_y < block.count_y; ++tile_y) {
        const float* source =
            after_x + ((static_cast<size_t>(tile_x) * layout.blocks + channel) * layout.in_y +
                       kOutputs * tile_y) *
                          line;
        float* target =
            after_y +
            (static_cast<size_t>(channel) * layout.rows + tile_x * block.count_y + tile_y) * line;
        for (size_t i = 0; i < line; i += kLanes) {
          Vec in[Transform::kSize], out[kPoints];
          load_all(source + i, line, in);
          Transform::transform(in, out);
          store_all(target + i, layout.y_stride, out);
        }
      }
}

// Along z: one point's slice of after_y -> values[point_z][channel block][tile][16].
template <typename Transform>
void transform_along_z(const TileBlock& block, const TransformLayout<Transform>& layout,
                       const float* after_y, float* values, size_t point_stride,
                       size_t block_stride) {
  for (int channel = 0; channel < layout.blocks; ++channel)
    for (int row = 0; row < layout.rows; ++row) {
      const float* source =
          after_y + (static_cast<size_t>(channel) * layout.rows + row) * layout.in_z * kLanes;
      float* target =
          values + channel * block_stride + static_cast<size_t>(row) * block.count_z * kLanes;
      for (int tile = 0; tile < block.count_z; ++tile) {
        Vec in[Transform::kSize], out[kPoints];
        load_all(source + kOutputs * tile * kLanes, kLanes, in);
        Transform::transform(in, out);
        store_all(target + tile * kLanes, point_stride, out);
      }
    }
}

// The output transform, along z, then y, then x. Along z: products[point_z][k block][tile][16] ->
// after_z[k block][row][z][16].
inline void output_along_z(const TileBlock& block, int k_blocks, const float* products,
                           size_t point_stride, size_t block_stride, float* after_z) {
  for (int k = 0; k < k_blocks; ++k)
    for (int tile = 0; tile < block.tiles(); ++tile) {
      Vec in[kPoints], out[kOutputs];
      load_all(products + k * block_stride + tile * kLanes, point_stride, in);
      transform_output(in, out);
      store_all(after_z + (static_cast<size_t>(k) * block.tiles() + tile) * kOutputs * kLanes,
                kLanes, out);
    }
}

// Along y: after_z of eight points -> after_y[tile x][k block][y][z][16].
inline void output_along_y(const TileBlock& block, int k_blocks, const float* after_z,
                           size_t z_stride, float* after_y) {
  const size_t line = static_cast<size_t>(block.out_z()) * kLanes;
  for (int tile_x = 0; tile_x < block.count_x; ++tile_x)
    for (int k = 0; k < k_blocks; ++k)
      for (int tile_y = 0; tile_y < block.count_y; ++tile_y) {
        const float* source =
            after_z +
            (static_cast<size_t>(k) * block.rows() + tile_x * block.count_y + tile_y) * line;
        float* target = after_y +
                        (static_cast<size_t>(tile_x) * k_blocks + k) * block.out_y() * line +
                        kOutputs * tile_y * line;
        for (size_t i = 0; i < line; i += kLanes) {
          Vec in[kPoints], out[kOutputs];
          load_all(source + i, z_stride, in);
          transform_output(in, out);
          store_all(target + i, line, out);
        }
      }
}

// Along x: after_y of eight points -> the image, through `epilogue(value, batch, k block, voxel)`.
template <typename Epilogue>
void output_along_x(const TileBlock& block, const Shape& shape, int first_k_block, int k_blocks,
                    const float* after_y, size_t y_stride, const Epilogue& epilogue, float* image) {
  const size_t line = static_cast<size_t>(block.out_z()) * kLanes;
  const int last_y = std::min(block.out_y(), shape.y - kOutputs * block.y);
  const int last_z = std::min(block.out_z(), shape.z - kOutputs * block.z);
  for (int tile_x = 0; tile_x < block.count_x; ++tile_x) {
    const int x = kOutputs * (block.x + tile_x);
    const int count = std::min(kOutputs, shape.x - x);
    for (int k = 0; k < k_blocks; ++k)
      for (int y = 0; y < last_y; ++y) {
        const float* source =
            after_y + ((static_cast<size_t>(tile_x) * k_blocks + k) * block.out_y() + y) * line;
        const size_t first_voxel =
            (static_cast<size_t>(x) * shape.y + kOutputs * block.y + y) * shape.z +
            kOutputs * block.z;
        const size_t plane = static_cast<size_t>(shape.y) * shape.z;
        float* target = image + (first_k_block + k) * shape.block_floats();
        for (int z = 0; z < last_z; ++z) {
          for (int i = 0; i < kOutputs; ++i)  // in four distant planes
            __builtin_prefetch(target + (first_voxel + i * plane + z + kPrefetchVoxels) * kLanes,
                               1);
          Vec in[kPoints], out[kOutputs];
          load_all(source + z * kLanes, y_stride, in);
          transform_output(in, out);
          for (int i = 0; i < kOutputs; ++i) {
            if (i >= count) break;
            const size_t voxel = first_voxel + i * plane + z;
            store(target + voxel * kLanes, epilogue(out[i], block.batch, first_k_block + k, voxel));
          }
        }
      }
  }
}

// ----------------------------------------------------------------------------- weight transforms

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

// Scratch for the weights of 16 x 16 channels: the filters, [k][16 * 125 taps], with padded rows to
// avoid cache set conflicts; after G along x, [c][point x][25][16 k]; and for one point_x after G
// along y and z ("slice"), [c][y, z][16 k].
constexpr size_t kFilterStride = kLanes * kVolumeTaps + kPad;
constexpr size_t kPlaneStride = kTaps * kTaps * kLanes;
constexpr size_t kAlongXStride = kPoints * kPlaneStride;
constexpr size_t kSliceStride = kPoints2 * kLanes + kPad;
// The number of channels whose slices fit in L1.
constexpr int kSliceChannels = 8;

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

// Computes along_x[c][point x][25][16 k] of 16 x 16 channels, zeros past the last channel.
// `filters` is scratch.
inline void load_weight_block(const Weights& weights, int k_block, int c_block, float* filters,
                              float* along_x) {
  const int k = k_block * kLanes, c = c_block * kLanes;
  const int k_lanes = std::min(kLanes, weights.k_count - k);
  const int c_lanes = std::min(kLanes, weights.c_count - c);
  const float* source = weights.data + k * weights.k_stride + c * weights.c_stride;
  size_t k_stride = weights.k_stride;
  if (!weights.flipped) {  // filters of one k are contiguous, those of 16 k are far apart
    for (int lane = 0; lane < k_lanes; ++lane)
      copy_floats(source + lane * weights.k_stride, c_lanes * kVolumeTaps,
                  filters + lane * kFilterStride);
    source = filters;
    k_stride = kFilterStride;
  }
  for (int i = 0; i < c_lanes; ++i) {
    float taps[kVolumeTaps * kLanes];
    taps_from_filters(source + i * weights.c_stride, k_stride, k_lanes, weights.flipped, taps);
    transform_taps(taps, along_x + i * kAlongXStride);
  }
  std::fill(along_x + c_lanes * kAlongXStride, along_x + kLanes * kAlongXStride, 0.f);
}

// The gradients of `count` channels from `first_c` on: along_x[c][point x][25][16 k] -> filters.
inline void store_gradients(const float* along_x, int first_c, int count, int k_lanes,
                            float* filters) {
  for (int i = 0; i < count; ++i) {
    float taps[kVolumeTaps * kLanes];
    gradient_of_taps(along_x + i * kAlongXStride, taps);
    filters_from_taps(taps, kFilterStride, k_lanes, filters + (first_c + i) * kVolumeTaps);
  }
}

// filters -> dw (k_count, c_count, 5, 5, 5).
inline void store_weight_block(const float* filters, int k_block, int c_block, int k_count,
                               int c_count, float* dw) {
  const int k = k_block * kLanes, c = c_block * kLanes;
  for (int lane = 0; lane < std::min(kLanes, k_count - k); ++lane)
    copy_floats(filters + lane * kFilterStride, std::min(kLanes, c_count - c) * kVolumeTaps,
                dw + (static_cast<size_t>(k + lane) * c_count + c) * kVolumeTaps);
}

// ------------------------------------------------------------------------------- matrix products

// product[NR][MR tiles][16 k] (+)= sum over c of input[c block][tile][c] * weights[c][NR][16 k],
// over the first `channels` c of each block. The unroll pragmas are needed: GCC would otherwise
// turn the loops that load or store accumulators into calls of memcpy.
template <int MR, int NR, bool Accumulate>
void gemm_microkernel(const float* input, size_t input_stride, int c_blocks, int channels,
                      const float* weights, size_t weight_stride, float* product,
                      size_t product_stride) {
  Vec sum[MR][NR];
#pragma GCC unroll 16
  for (int t = 0; t < MR; ++t)
    for (int g = 0; g < NR; ++g)
      sum[t][g] = Accumulate ? load(product + g * product_stride + t * kLanes) : zero();
  for (int block = 0; block < c_blocks; ++block, input += input_stride)
    for (int c = 0; c < channels; ++c, weights += weight_stride) {
      Vec w[NR];
      for (int g = 0; g < NR; ++g) w[g] = load(weights + g * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < MR; ++t) {
        const Vec value = broadcast(input[t * kLanes + c]);
        for (int g = 0; g < NR; ++g) sum[t][g] += value * w[g];
      }
    }
#pragma GCC unroll 16
  for (int t = 0; t < MR; ++t)
    for (int g = 0; g < NR; ++g) store(product + g * product_stride + t * kLanes, sum[t][g]);
}

using GemmMicrokernel = decltype(&gemm_microkernel<1, 1, false>);

// The micro-kernels for 1 .. kMR tiles.
template <int NR, bool Accumulate, int... Index>
constexpr std::array<GemmMicrokernel, kMR> gemm_microkernels(std::integer_sequence<int, Index...>) {
  return {gemm_microkernel<Index + 1, NR, Accumulate>...};
}

// gemm_microkernel over all tiles, in chunks of nearly equal size.
template <int NR, bool Accumulate>
void gemm_tiles(int tiles, const float* input, size_t input_stride, int c_blocks, int channels,
                const float* weights, size_t weight_stride, float* product, size_t product_stride) {
  static constexpr auto kKernels =
      gemm_microkernels<NR, Accumulate>(std::make_integer_sequence<int, kMR>());
  const int chunks = ceil_div(tiles, kMR);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int begin = tiles * chunk / chunks, end = tiles * (chunk + 1) / chunks;
    kKernels[end - begin - 1](input + begin * kLanes, input_stride, c_blocks, channels, weights,
                              weight_stride, product + begin * kLanes, product_stride);
  }
}

// The matrix product of one point, for all tiles and output channels. weights are packed as
// [group of kNR blocks][c][block of the group][16].
inline void gemm_point(int tiles, const float* input, size_t input_stride, int c_blocks,
                       const float* weights, int k_blocks, float* product, size_t product_stride) {
  for (int k = 0; k < k_blocks; k += kNR) {
    const float* group = weights + static_cast<size_t>(k) * c_blocks * kLanes * kLanes;
    const bool whole = k_blocks - k >= kNR;
    const auto multiply = whole ? gemm_tiles<kNR, false> : gemm_tiles<1, false>;
    multiply(tiles, input, input_stride, c_blocks, kLanes, group, (whole ? kNR : 1) * kLanes,
             product + k * product_stride, product_stride);
  }
}

// gradient[c][NR][16 k] (+)= sum over tiles of input[tile][c] * output[tile][k], for the first
// `channels` c, a multiple of 8.
template <int NR>
void outer_products(int tiles, const float* input, int channels, const float* output,
                    size_t output_stride, float* gradient, size_t gradient_stride,
                    bool accumulate) {
  constexpr int kChannels = kRegisterFloats == 16 ? 8 : 4;
  for (int c = 0; c < channels; c += kChannels) {
    float* target = gradient + c * gradient_stride;
    Vec sum[kChannels][NR];
#pragma GCC unroll 8
    for (int i = 0; i < kChannels; ++i)
      for (int g = 0; g < NR; ++g) sum[i][g] = zero();
    for (int t = 0; t < tiles; ++t) {
      Vec value[NR];
      for (int g = 0; g < NR; ++g) value[g] = load(output + g * output_stride + t * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kChannels; ++i) {
        const Vec scale = broadcast(input[t * kLanes + c + i]);
        for (int g = 0; g < NR; ++g) sum[i][g] += scale * value[g];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kChannels; ++i)
      for (int g = 0; g < NR; ++g) {
        float* lanes = target + i * gradient_stride + g * kLanes;
        store(lanes, accumulate ? load(lanes) + sum[i][g] : sum[i][g]);
      }
  }
}

// ------------------------------------------------------------------------------------ the passes

// Scratch memory of the passes, shared and per thread. It grows to what the largest layer needs.
struct Workspace {
  explicit Workspace(int threads) : per_thread(threads) {}
  Scratch shared, shared_output;
  std::vector<Scratch> per_thread;
};

// Divides an allocation into parts; with a null base it only computes the total size.
class ScratchParts {
 public:
  explicit ScratchParts(float* base = nullptr) : base_(base) {}
  float* take(size_t floats) {
    float* part = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (floats + kLanes - 1) / kLanes * kLanes + kPad;
    return part;
  }
  size_t used() const { return used_; }

 private:
  float* base_;
  size_t used_ = 0;
};

constexpr int kAllPoints[kPoints] = {0, 1, 2, 3, 4, 5, 6, 7};

// A thread's scratch for one block of tiles.
struct BlockScratch {
  float *zeros, *in_x, *in_y, *values, *products, *out_z, *out_y;

  BlockScratch(ScratchParts& parts, const Shape& shape, const TileBlock& block, int c_blocks,
               int k_blocks) {
    const TransformLayout<InputTransform> layout(block, c_blocks);
    const size_t tile_floats = static_cast<size_t>(block.tiles()) * kLanes + kPad;
    zeros = parts.take(static_cast<size_t>(shape.z) * kLanes);
    in_x = parts.take(kPoints * layout.x_stride);
    in_y = parts.take(kPoints * layout.y_stride);
    values = parts.take(kPoints * (tile_floats * c_blocks + kPad));
    products = parts.take(kPoints * (tile_floats * k_blocks + kPad));
    out_z = parts.take(kPoints * out_z_stride(block, k_blocks));
    out_y = parts.take(kPoints * out_y_stride(block, k_blocks));
  }
  static size_t out_z_stride(const TileBlock& block, int k_blocks) {
    return static_cast<size_t>(block.tiles()) * k_blocks * kOutputs * kLanes + kPad;
  }
  static size_t out_y_stride(const TileBlock& block, int k_blocks) {
    return static_cast<size_t>(block.tiles()) * k_blocks * kOutputs * kOutputs * kLanes + kPad;
  }
};

// The position of 16 x 16 channels in the packed weights [group][c][block of the group][16 k] of
// one point.
struct PackedWeightBlock {
  size_t offset, stride;  // of the first c; from one c to the next

  PackedWeightBlock(int k_block, int c_block, int k_blocks, int c_blocks) {
    const int first = k_block / kNR * kNR, size = std::min(kNR, k_blocks - first);
    stride = static_cast<size_t>(size) * kLanes;
    offset = (static_cast<size_t>(first) * c_blocks * kLanes + k_block - first) * kLanes +
             c_block * kLanes * stride;
  }
};

// The loop order for many tiles: transform all weights, then the blocks of tiles in parallel.
template <typename Epilogue>
void convolve_many_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                         const Weights& weights, float* y, const Epilogue& epilogue) {
  const Shape out{in.batch, weights.k_count, in.x, in.y, in.z};
  const int c_blocks = weights.c_blocks(), k_blocks = weights.k_blocks();
  const size_t point_stride = static_cast<size_t>(c_blocks) * k_blocks * kLanes * kLanes + kPad;
  float* points = workspace.shared.get(kPoints3 * point_stride);
  pool.for_each(k_blocks * c_blocks, [&](int item, int thread) {
    const int k = item / c_blocks, c = item % c_blocks;
    float* filters =
        workspace.per_thread[thread].get(kLanes * (kFilterStride + kAlongXStride + kSliceStride));
    float* along_x = filters + kLanes * kFilterStride;
    float* slices = along_x + kLanes * kAlongXStride;
    load_weight_block(weights, k, c, filters, along_x);
    const PackedWeightBlock place(k, c, k_blocks, c_blocks);
    for (int px = 0; px < kPoints; ++px) {
      for (int i = 0; i < kLanes; ++i)
        transform_slice(along_x + i * kAlongXStride + px * kPlaneStride, slices + i * kSliceStride);
      for (int point = 0; point < kPoints2; ++point)
        for (int i = 0; i < kLanes; ++i)
          store(points + (px * kPoints2 + point) * point_stride + place.offset + i * place.stride,
                load(slices + i * kSliceStride + point * kLanes));
    }
  });

  const std::vector<TileBlock> blocks = tile_blocks(in, block_tiles(in.channels));
  pool.for_each(static_cast<int>(blocks.size()), [&](int item, int thread) {
    const TileBlock& block = blocks[item];
    ScratchParts count;
    BlockScratch(count, in, block, c_blocks, k_blocks);
    ScratchParts parts(workspace.per_thread[thread].get(count.used()));
    const BlockScratch scratch(parts, in, block, c_blocks, k_blocks);
    std::fill(scratch.zeros, scratch.zeros + static_cast<size_t>(in.z) * kLanes, 0.f);
    const TransformLayout<InputTransform> layout(block, c_blocks);
    const size_t tile_floats = static_cast<size_t>(block.tiles()) * kLanes + kPad;
    const size_t value_stride = tile_floats * c_blocks + kPad;
    const size_t product_stride = tile_floats * k_blocks + kPad;
    const size_t z_stride = BlockScratch::out_z_stride(block, k_blocks);
    const size_t y_stride = BlockScratch::out_y_stride(block, k_blocks);

    transform_along_x(x + block.batch * in.image_floats(), in, block, layout, kAllPoints, kPoints,
                      scratch.zeros, scratch.in_x);
    for (int px = 0; px < kPoints; ++px) {
      transform_along_y(block, layout, scratch.in_x + px * layout.x_stride, scratch.in_y);
      for (int py = 0; py < kPoints; ++py) {
        transform_along_z(block, layout, scratch.in_y + py * layout.y_stride, scratch.values,
                          value_stride, tile_floats);
        for (int pz = 0; pz < kPoints; ++pz)
          gemm_point(block.tiles(), scratch.values + pz * value_stride, tile_floats, c_blocks,
                     points + ((px * kPoints + py) * kPoints + pz) * point_stride, k_blocks,
                     scratch.products + pz * product_stride, tile_floats);
        output_along_z(block, k_blocks, scratch.products, product_stride, tile_floats,
                       scratch.out_z + py * z_stride);
      }
      output_along_y(block, k_blocks, scratch.out_z, z_stride, scratch.out_y + px * y_stride);
    }
    output_along_x(block, out, 0, k_blocks, scratch.out_y, y_stride, epilogue,
                   y + block.batch * out.image_floats());
  });
}

// Transforms all tiles of a tensor: values[channel block][point][tile of the batch][16].
template <typename Transform>
void transform_all_tiles(ThreadPool& pool, Workspace& workspace, const Shape& shape,
                         const float* data, float* values, size_t point_stride) {
  const std::vector<TileBlock> images = tile_blocks(shape, tiles_of_image(shape));
  const int tiles = tiles_of_image(shape), blocks = shape.blocks();
  pool.for_each(shape.batch * blocks, [&](int item, int thread) {
    const int batch = item / blocks, channel = item % blocks;
    const TileBlock& block = images[batch];
    const TransformLayout<Transform> layout(block, 1);
    const size_t zeros_floats = static_cast<size_t>(shape.z) * kLanes;
    float* zeros = workspace.per_thread[thread].get(zeros_floats +
                                                    kPoints * (layout.x_stride + layout.y_stride));
    float* after_x = zeros + zeros_floats;
    float* after_y = after_x + kPoints * layout.x_stride;
    std::fill(zeros, zeros + zeros_floats, 0.f);
    transform_along_x(data + batch * shape.image_floats() + channel * shape.block_floats(), shape,
                      block, layout, kAllPoints, kPoints, zeros, after_x);
    for (int px = 0; px < kPoints; ++px) {
      transform_along_y(block, layout, after_x + px * layout.x_stride, after_y);
      for (int py = 0; py < kPoints; ++py)
        transform_along_z(block, layout, after_y + py * layout.y_stride,
                          values +
                              (channel * kPoints3 + (px * kPoints + py) * kPoints) * point_stride +
                              static_cast<size_t>(batch) * tiles * kLanes,
                          point_stride, 0);
    }
  });
}

// The loop order for few tiles: transform the input, then the blocks of output channels in
// parallel.
template <typename Epilogue>
void convolve_few_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                        const Weights& weights, float* y, const Epilogue& epilogue) {
  const Shape out{in.batch, weights.k_count, in.x, in.y, in.z};
  const int c_blocks = weights.c_blocks();
  const int image_tiles = tiles_of_image(in), tiles = image_tiles * in.batch;
  const size_t point_stride = static_cast<size_t>(tiles) * kLanes + kPad;
  float* values = workspace.shared.get(c_blocks * kPoints3 * point_stride);
  transform_all_tiles<InputTransform>(pool, workspace, in, x, values, point_stride);

  const std::vector<TileBlock> images = tile_blocks(in, image_tiles);
  // With very few tiles the products fit in the caches; a channel count whose slices fit in L1 is
  // then faster.
  const int channels = tiles <= kSliceChannels ? kSliceChannels : kLanes;
  const size_t z_stride = BlockScratch::out_z_stride(images[0], 1);
  const size_t y_stride = BlockScratch::out_y_stride(images[0], 1);
  pool.for_each(weights.k_blocks(), [&](int k, int thread) {
    float* filters =
        workspace.per_thread[thread].get(kLanes * (kFilterStride + kAlongXStride + kSliceStride) +
                                         kPoints3 * point_stride + kPoints * (z_stride + y_stride));
    float* along_x = filters + kLanes * kFilterStride;
    float* slices = along_x + kLanes * kAlongXStride;
    float* products = slices + kLanes * kSliceStride;
    float* out_z = products + kPoints3 * point_stride;
    float* out_y = out_z + kPoints * z_stride;
    for (int block = 0; block < c_blocks; ++block) {
      load_weight_block(weights, k, block, filters, along_x);
      for (int px = 0; px < kPoints; ++px)
        for (int c = 0; c < kLanes; c += channels) {
          for (int i = 0; i < channels; ++i)
            transform_slice(along_x + (c + i) * kAlongXStride + px * kPlaneStride,
                            slices + i * kSliceStride);
          const auto multiply = block + c > 0 ? gemm_tiles<1, true> : gemm_tiles<1, false>;
          for (int point = 0; point < kPoints2; ++point) {
            const size_t at = px * kPoints2 + point;
            multiply(tiles, values + (block * kPoints3 + at) * point_stride + c, 0, 1, channels,
                     slices + point * kLanes, kSliceStride, products + at * point_stride, 0);
          }
        }
    }
    for (const TileBlock& image : images) {
      const float* first = products + static_cast<size_t>(image.batch) * image_tiles * kLanes;
      for (int px = 0; px < kPoints; ++px) {
        for (int py = 0; py < kPoints; ++py)
          output_along_z(image, 1, first + (px * kPoints + py) * kPoints * point_stride,
                         point_stride, 0, out_z + py * z_stride);
        output_along_y(image, 1, out_z, z_stride, out_y + px * y_stride);
      }
      output_along_x(image, out, k, 1, out_y, y_stride, epilogue,
                     y + image.batch * out.image_floats());
    }
  });
}

// y = epilogue(convolution of x). `in` is the shape of x; y has weights.k_count channels.
// epilogue(value, image, block, voxel) returns the vector to store, with zeros in the lanes past
// the last channel.
template <typename Epilogue>
void convolve(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
              const Weights& weights, float* y, const Epilogue& epilogue) {
  assert(in.valid() && weights.k_count > 0 && weights.c_count == in.channels);
  assert(x != nullptr && weights.data != nullptr && y != nullptr);
  if (tiles_of_image(in) * in.batch <= kFewTiles)
    convolve_few_tiles(pool, workspace, in, x, weights, y, epilogue);
  else
    convolve_many_tiles(pool, workspace, in, x, weights, y, epilogue);
}

inline void weight_gradient_few_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in,
                                      const float* x, const Shape& out, const float* dy,
                                      float* dw) {
  const int c_blocks = in.blocks(), k_blocks = out.blocks();
  const int tiles = tiles_of_image(in) * in.batch;
  const size_t point_stride = static_cast<size_t>(tiles) * kLanes + kPad;
  float* x_values = workspace.shared.get(c_blocks * kPoints3 * point_stride);
  float* y_values = workspace.shared_output.get(k_blocks * kPoints3 * point_stride);
  transform_all_tiles<InputTransform>(pool, workspace, in, x, x_values, point_stride);
  transform_all_tiles<GradientTransform>(pool, workspace, out, dy, y_values, point_stride);
  pool.for_each(k_blocks * c_blocks, [&](int item, int thread) {
    const int k = item / c_blocks, c = item % c_blocks;
    float* filters = workspace.per_thread[thread].get(
        kLanes * kFilterStride + kSliceChannels * (kSliceStride + kAlongXStride));
    float* slices = filters + kLanes * kFilterStride;
    float* along_x = slices + kSliceChannels * kSliceStride;
    for (int first = 0; first < kLanes; first += kSliceChannels) {
      for (int px = 0; px < kPoints; ++px) {
        for (int point = 0; point < kPoints2; ++point) {
          const size_t at = px * kPoints2 + point;
          outer_products<1>(tiles, x_values + (c * kPoints3 + at) * point_stride + first,
                            kSliceChannels, y_values + (k * kPoints3 + at) * point_stride, 0,
                            slices + point * kLanes, kSliceStride, false);
        }
        for (int i = 0; i < kSliceChannels; ++i)
          gradient_of_slice(slices + i * kSliceStride,
                            along_x + i * kAlongXStride + px * kPlaneStride);
      }
      store_gradients(along_x, first, kSliceChannels, std::min(kLanes, out.channels - k * kLanes),
                      filters);
    }
    store_weight_block(filters, k, c, out.channels, in.channels, dw);
  });
}

// How the weight gradient is split among threads: the points along x into `parts` sets, the blocks
// of tiles into `ranges`. Each pair of a set and a range has its own sums. Ranges also make the
// sums short: a single float sum over many blocks would lose precision.
struct GradientSplit {
  int parts, ranges;

  GradientSplit(int threads, int blocks) {
    constexpr int kBlocksOfRange = 32, kMaxRanges = 16;
    parts = threads > 4 ? 8 : threads > 2 ? 4 : threads;
    ranges = std::max(ceil_div(threads, parts), std::min(kMaxRanges, blocks / kBlocksOfRange));
    ranges = std::min(ranges, blocks);
  }
};

inline void weight_gradient_many_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in,
                                       const float* x, const Shape& out, const float* dy,
                                       float* dw) {
  const int c_blocks = in.blocks(), k_blocks = out.blocks();
  const std::vector<TileBlock> blocks = tile_blocks(in, gradient_block_tiles(in.channels));
  const size_t point_stride = static_cast<size_t>(c_blocks) * k_blocks * kLanes * kLanes + kPad;
  const GradientSplit split(pool.size(), static_cast<int>(blocks.size()));
  const int ranges = split.ranges;
  float* points = workspace.shared.get(ranges * kPoints3 * point_stride);
  const int set_size = kPoints / split.parts;

  pool.for_each(split.parts * ranges, [&](int item, int thread) {
    const int range = item / split.parts, first_point = item % split.parts * set_size;
    float* sums = points + range * kPoints3 * point_stride;
    const size_t begin = blocks.size() * range / ranges, end = blocks.size() * (range + 1) / ranges;
    for (size_t number = begin; number < end; ++number) {
      const TileBlock& block = blocks[number];
      const TransformLayout<InputTransform> x_layout(block, c_blocks);
      const TransformLayout<GradientTransform> y_layout(block, k_blocks);
      const size_t tile_floats = static_cast<size_t>(block.tiles()) * kLanes;
      const size_t x_stride = tile_floats * c_blocks + kPad;
      const size_t y_stride = tile_floats * k_blocks + kPad;
      const size_t zeros_floats = static_cast<size_t>(in.z) * kLanes;
      float* zeros = workspace.per_thread[thread].get(
          zeros_floats + set_size * (x_layout.x_stride + y_layout.x_stride) +
          kPoints * (x_layout.y_stride + y_layout.y_stride + x_stride + y_stride));
      float* x_after_x = zeros + zeros_floats;
      float* y_after_x = x_after_x + set_size * x_layout.x_stride;
      float* x_after_y = y_after_x + set_size * y_layout.x_stride;
      float* y_after_y = x_after_y + kPoints * x_layout.y_stride;
      float* x_values = y_after_y + kPoints * y_layout.y_stride;
      float* y_values = x_values + kPoints * x_stride;
      std::fill(zeros, zeros + zeros_floats, 0.f);
      const int* set = kAllPoints + first_point;
      transform_along_x(x + block.batch * in.image_floats(), in, block, x_layout, set, set_size,
                        zeros, x_after_x);
      transform_along_x(dy + block.batch * out.image_floats(), out, block, y_layout, set, set_size,
                        zeros, y_after_x);
      for (int i = 0; i < set_size; ++i) {
        transform_along_y(block, x_layout, x_after_x + i * x_layout.x_stride, x_after_y);
        transform_along_y(block, y_layout, y_after_x + i * y_layout.x_stride, y_after_y);
        for (int py = 0; py < kPoints; ++py) {
          transform_along_z(block, x_layout, x_after_y + py * x_layout.y_stride, x_values, x_stride,
                            tile_floats);
          transform_along_z(block, y_layout, y_after_y + py * y_layout.y_stride, y_values, y_stride,
                            tile_floats);
          for (int pz = 0; pz < kPoints; ++pz) {
            float* sum = sums + (((first_point + i) * kPoints + py) * kPoints + pz) * point_stride;
            for (int k = 0; k < k_blocks; k += kNR)
              for (int c = 0; c < c_blocks; ++c) {
                const PackedWeightBlock place(k, c, k_blocks, c_blocks);
                const auto multiply = k_blocks - k >= kNR ? outer_products<kNR> : outer_products<1>;
                multiply(block.tiles(), x_values + pz * x_stride + c * tile_floats, kLanes,
                         y_values + pz * y_stride + k * tile_floats, tile_floats,
                         sum + place.offset, place.stride, number > begin);
              }
          }
        }
      }
    }
  });
  pool.for_each(kPoints3, [&](int point, int) {
    float* total = points + point * point_stride;
    for (int range = 1; range < ranges; ++range) {
      const float* part = total + range * kPoints3 * point_stride;
      for (size_t i = 0; i < point_stride - kPad; i += kLanes)
        store(total + i, load(total + i) + load(part + i));
    }
  });
  pool.for_each(k_blocks * c_blocks, [&](int item, int thread) {
    const int k = item / c_blocks, c = item % c_blocks;
    float* filters =
        workspace.per_thread[thread].get(kLanes * (kFilterStride + kAlongXStride + kSliceStride));
    float* along_x = filters + kLanes * kFilterStride;
    float* slices = along_x + kLanes * kAlongXStride;
    const PackedWeightBlock place(k, c, k_blocks, c_blocks);
    for (int px = 0; px < kPoints; ++px) {
      for (int point = 0; point < kPoints2; ++point)
        for (int i = 0; i < kLanes; ++i)
          store(slices + i * kSliceStride + point * kLanes,
                load(points + (px * kPoints2 + point) * point_stride + place.offset +
                     i * place.stride));
      for (int i = 0; i < kLanes; ++i)
        gradient_of_slice(slices + i * kSliceStride,
                          along_x + i * kAlongXStride + px * kPlaneStride);
    }
    store_gradients(along_x, 0, kLanes, std::min(kLanes, out.channels - k * kLanes), filters);
    store_weight_block(filters, k, c, out.channels, in.channels, dw);
  });
}

// Computes dw (k, c, 5, 5, 5) of a convolution from x (shape `in`) to y (shape `out`).
inline void weight_gradient(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                            const Shape& out, const float* dy, float* dw) {
  assert(in.valid() && out.valid());
  assert(in.batch == out.batch && in.x == out.x && in.y == out.y && in.z == out.z);
  assert(x != nullptr && dy != nullptr && dw != nullptr);
  if (tiles_of_image(in) * in.batch <= kFewTiles)
    weight_gradient_few_tiles(pool, workspace, in, x, out, dy, dw);
  else
    weight_gradient_many_tiles(pool, workspace, in, x, out, dy, dw);
}

}  // namespace fast_conv3d
