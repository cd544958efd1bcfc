// 5x5x5 convolution, stride 1, same padding, for few input or few output channels: Toom-Cook
// (Winograd) F(4, 5) along x and y, direct sums along z.
//
// A Vec holds 16 neighbours along z of one channel, so that no lane is wasted on channels that do
// not exist. The volume is split into columns of 4x4 outputs along x and y, over all z, each of
// which depends on 8x8 inputs. With the transforms Bt, G, At along x, then y,
//
//   y = At [ sum over c and dz of (G w)[dz] * (Bt x) shifted by dz along z ]
//
// which is 20 multiplications per output and pair of channels instead of 125. Either tensor may be
// plain or blocked; a blocked one is transposed between the transform along x and the other steps.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>
#include <vector>

#include "rows.h"
#include "tensor.h"
#include "thread_pool.h"
#include "toom_cook.h"
#include "winograd_transforms.h"
#include "winograd_weights.h"

namespace fast_conv3d {
namespace plane {

// Channels are transformed in chunks, whose intermediate results fit in an L2 cache.
constexpr int kChunk = kLanes;
inline int chunks_of(int channels) { return ceil_div(channels, kChunk); }
inline int chunk_channels(int channels, int chunk) {
  return std::min(kChunk, channels - chunk * kChunk);
}

// The columns that an item of work computes: one along x, `tiles` neighbours along y.
struct Block {
  int image, x, y, tiles;

  int out_rows() const { return kOutputs * tiles; }
};

// The layout of a block's intermediate results, all in [channel][row][z]. Rows of `values` begin
// with 16 zeros, which pad the row and the one before it.
struct Layout {
  int tiles;   // of the largest block
  int groups;  // Vecs of a row

  size_t row() const { return static_cast<size_t>(groups) * kLanes; }
  size_t padded_row() const { return row() + kLanes; }
  // Floats between the points of each array, for a number of channels.
  size_t after_x(int channels, int rows) const { return channels * rows * row() + kPad; }
  size_t values(int channels) const { return channels * tiles * padded_row() + kLanes; }
  size_t products(int channels) const { return channels * tiles * row() + kPad; }
  size_t after_y(int channels) const { return channels * kOutputs * tiles * row() + kPad; }
};

constexpr size_t kBlockFloats = 160 * 1024;  // intermediate results: most of an L2 cache

inline Layout layout_of(const Shape& in, int out_channels) {
  const int tiles_y = ceil_div(in.y, kOutputs);
  Layout layout{1, ceil_div(in.z, kLanes)};
  const int chunk = std::min(in.channels, kChunk);
  const auto floats = [&](int tiles) {
    const int rows = InputTransform::extent(tiles);
    const Layout larger{tiles, layout.groups};
    const int planes = in.channels > kChunk ? kPoints : 1;
    return kPoints * (larger.after_x(chunk, rows) + larger.values(chunk) +
                      planes * larger.products(out_channels) + larger.after_y(out_channels));
  };
  while (layout.tiles < tiles_y && floats(layout.tiles + 1) <= kBlockFloats) ++layout.tiles;
  // Blocks of nearly equal size.
  layout.tiles = ceil_div(tiles_y, ceil_div(tiles_y, layout.tiles));
  return layout;
}

inline std::vector<Block> blocks_of(const Shape& shape, const Layout& layout) {
  const int tiles_y = ceil_div(shape.y, kOutputs);
  std::vector<Block> blocks;
  for (int image = 0; image < shape.batch; ++image)
    for (int x = 0; x < ceil_div(shape.x, kOutputs); ++x)
      for (int y = 0; y < tiles_y; y += layout.tiles)
        blocks.push_back({image, x, y, std::min(layout.tiles, tiles_y - y)});
  return blocks;
}

// ---------------------------------------------------------------------------------- transforms

// The rows of planes that one row of a block depends on; `zeros` outside the volume.
template <typename Transform>
void source_rows(const float* channel, const Shape& shape, const Block& block, int row,
                 const float* zeros, const float* (&rows)[Transform::kSize]) {
  const size_t row_floats = static_cast<size_t>(shape.z) * shape.voxel_floats();
  const int y = kOutputs * block.y - Transform::kPadding + row;
  for (int j = 0; j < Transform::kSize; ++j) {
    const int x = kOutputs * block.x - Transform::kPadding + j;
    const bool inside = x >= 0 && x < shape.x && y >= 0 && y < shape.y;
    rows[j] = inside ? channel + (static_cast<size_t>(x) * shape.y + y) * row_floats : zeros;
  }
}

// Along x: a chunk of the channels of an image -> after_x[point][channel][row][z].
template <typename Transform>
void along_x(const float* image, const Shape& shape, int chunk, const Block& block,
             const Layout& layout, const float* zeros, float* after_x) {
  const int rows = Transform::extent(block.tiles);
  const int channels = chunk_channels(shape.channels, chunk);
  const size_t point_stride =
      layout.after_x(std::min(shape.channels, kChunk), Transform::extent(layout.tiles));
  const size_t channel_stride = rows * layout.row();
  const float* first = image + chunk * (shape.plain ? kChunk : 1) * shape.block_floats();
  for (int index = 0; index < (shape.plain ? channels : 1); ++index)
    for (int row = 0; row < rows; ++row) {
      const float* sources[Transform::kSize];
      source_rows<Transform>(first + index * shape.block_floats(), shape, block, row, zeros,
                             sources);
      for (int group = 0; group < layout.groups; ++group) {
        const int z = group * kLanes;
        float* target = after_x + row * layout.row() + z;
        Vec in[Transform::kSize], out[kPoints];
        if (shape.plain) {
          for (int j = 0; j < Transform::kSize; ++j) in[j] = load_row(sources[j], z, shape.z);
          Transform::transform(in, out);
          store_all(target + index * channel_stride, point_stride, out);
          continue;
        }
        Vec voxels[kPoints][kLanes];
        for (int i = 0; i < kLanes; ++i) {
          for (int j = 0; j < Transform::kSize; ++j)
            in[j] = z + i < shape.z ? load(sources[j] + (z + i) * kLanes) : zero();
          Transform::transform(in, out);
          for (int point = 0; point < kPoints; ++point) voxels[point][i] = out[point];
        }
        for (int point = 0; point < kPoints; ++point) {
          transpose_lanes(voxels[point]);
          for (int lane = 0; lane < channels; ++lane)
            store(target + point * point_stride + lane * channel_stride, voxels[point][lane]);
        }
      }
    }
}

// Along y: one point of after_x -> values[point][channel][tile][16 + z].
template <typename Transform>
void along_y(int channels, size_t point_stride, const Block& block, const Layout& layout,
             const float* after_x, float* values) {
  const int rows = Transform::extent(block.tiles);
  for (int channel = 0; channel < channels; ++channel)
    for (int tile = 0; tile < block.tiles; ++tile) {
      const float* source =
          after_x + (static_cast<size_t>(channel) * rows + kOutputs * tile) * layout.row();
      float* target = values +
                      (static_cast<size_t>(channel) * layout.tiles + tile) * layout.padded_row() +
                      kLanes;
      for (size_t z = 0; z < layout.row(); z += kLanes) {
        Vec in[Transform::kSize], out[kPoints];
        load_all(source + z, layout.row(), in);
        Transform::transform(in, out);
        store_all(target + z, point_stride, out);
      }
    }
}

// Writes the zeros that pad the rows of `values`.
inline void pad_values(int channels, const Layout& layout, float* values) {
  for (int point = 0; point < kPoints; ++point)
    for (int row = 0; row <= channels * layout.tiles; ++row)
      store(values + point * layout.values(channels) + row * layout.padded_row(), zero());
}

// The output transform along y: products[point][channel][tile][z] -> after_y[channel][row][z].
inline void output_along_y(int channels, const Block& block, const Layout& layout,
                           const float* products, float* after_y) {
  const size_t point_stride = layout.products(channels);
  for (int channel = 0; channel < channels; ++channel)
    for (int tile = 0; tile < block.tiles; ++tile) {
      const size_t row = static_cast<size_t>(channel) * layout.tiles + tile;
      for (size_t z = 0; z < layout.row(); z += kLanes) {
        Vec in[kPoints], out[kOutputs];
        load_all(products + row * layout.row() + z, point_stride, in);
        transform_output(in, out);
        store_all(after_y + kOutputs * row * layout.row() + z, layout.row(), out);
      }
    }
}

// The output transform along x of one channel, row and group along z: planes of 16 voxels.
FC3D_INLINE void output_along_x(const float* after_y, size_t point_stride, Vec (&out)[kOutputs]) {
  Vec in[kPoints];
  load_all(after_y, point_stride, in);
  transform_output(in, out);
}

// after_y[point][channel][row][z] -> the image, through `epilogue`.
template <typename Epilogue>
void write_image(const Block& block, const Layout& layout, const Shape& shape, const float* after_y,
                 const Epilogue& epilogue, float* image) {
  const size_t point_stride = layout.after_y(shape.channels);
  const size_t channel_stride = kOutputs * layout.tiles * layout.row();
  const int planes = std::min(kOutputs, shape.x - kOutputs * block.x);
  const int rows = std::min(block.out_rows(), shape.y - kOutputs * block.y);
  const size_t plane_voxels = static_cast<size_t>(shape.y) * shape.z;
  for (int index = 0; index < shape.blocks(); ++index)
    for (int row = 0; row < rows; ++row)
      for (int z = 0; z < shape.z; z += kLanes) {
        const size_t first_voxel =
            (static_cast<size_t>(kOutputs * block.x) * shape.y + kOutputs * block.y + row) *
                shape.z +
            z;
        const float* source = after_y + row * layout.row() + z;
        float* target = image + index * shape.block_floats();
        if (shape.plain) {
          Vec out[kOutputs];
          output_along_x(source + index * channel_stride, point_stride, out);
          for (int x = 0; x < planes; ++x) {
            const size_t voxel = first_voxel + x * plane_voxels;
            store_row(target + voxel - z, z, shape.z, epilogue(out[x], block.image, index, voxel));
          }
          continue;
        }
        const int channels = std::min(kLanes, shape.channels - index * kLanes);
        Vec voxels[kOutputs][kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          Vec out[kOutputs];
          if (lane < channels)
            output_along_x(source + (index * kLanes + lane) * channel_stride, point_stride, out);
          for (int x = 0; x < kOutputs; ++x) voxels[x][lane] = lane < channels ? out[x] : zero();
        }
        for (int x = 0; x < planes; ++x) {
          transpose_lanes(voxels[x]);
          for (int i = 0; i < std::min(kLanes, shape.z - z); ++i) {
            const size_t voxel = first_voxel + x * plane_voxels + i;
            store(target + voxel * kLanes, epilogue(voxels[x][i], block.image, index, voxel));
          }
        }
      }
}

// ------------------------------------------------------------------------------------- products

// The tile of the micro-kernel, in registers: KB output channels by VB registers along z.
template <int KB>
constexpr int kVB =
    (kRegisterFloats == 16 ? 24 : 8) / KB > 12 ? 12 : (kRegisterFloats == 16 ? 24 : 8) / KB;

// Transforms the weights to [point][group of up to 4 output channels][c][dz][channel of the group].
inline void pack_weights(ThreadPool& pool, const Weights& weights, float* packed) {
  const int k_count = weights.k_count, c_count = weights.c_count;
  const size_t point_stride = static_cast<size_t>(k_count) * c_count * kTaps;
  pool.for_each(weights.k_blocks() * c_count, [&](int item, int) {
    const int first_k = item / c_count * kLanes, c = item % c_count;
    const int lanes = std::min(kLanes, k_count - first_k);
    float taps[kVolumeTaps * kLanes];
    taps_from_filters(weights.data + first_k * weights.k_stride + c * weights.c_stride,
                      weights.k_stride, lanes, weights.flipped, taps);
    for (int dz = 0; dz < kTaps; ++dz) {
      Vec after_y[kTaps][kPoints];
      for (int x = 0; x < kTaps; ++x) {
        Vec in[kTaps];
        load_all(taps + (x * kTaps * kTaps + dz) * kLanes, kTaps * kLanes, in);
        transform_kernel(in, after_y[x]);
      }
      for (int y = 0; y < kPoints; ++y) {
        Vec in[kTaps], out[kPoints];
        for (int x = 0; x < kTaps; ++x) in[x] = after_y[x][y];
        transform_kernel(in, out);
        for (int x = 0; x < kPoints; ++x) {
          float values[kLanes];
          store(values, out[x]);
          for (int lane = 0; lane < lanes; ++lane) {
            const int k = first_k + lane, group = k / 4 * 4;
            const int group_channels = std::min(4, k_count - group);
            packed[(x * kPoints + y) * point_stride + group * c_count * kTaps +
                   (c * kTaps + dz) * group_channels + k - group] = values[lane];
          }
        }
      }
    }
  });
}

// products[KB][VB] (+)= sum over c and dz of weights[c][dz][KB] * values[c][VB + dz].
template <int KB, int VB>
void multiply_kernel(const float* values, const size_t* offsets, size_t channel_stride,
                     int channels, const float* weights, bool accumulate, float* products,
                     size_t product_stride) {
  Register sum[KB][VB];
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 12
    for (int v = 0; v < VB; ++v)
      sum[k][v] = accumulate ? load_register(products + k * product_stride + v * kRegisterFloats)
                             : Register{};
  const float* sources[VB];
  for (int v = 0; v < VB; ++v) sources[v] = values + offsets[v];
  for (size_t at = 0; channels > 0; --channels, at += channel_stride, weights += kTaps * KB)
#pragma GCC unroll 5
    for (int dz = 0; dz < kTaps; ++dz) {
      Register weight[KB];
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) weight[k] = weights[dz * KB + k] - Register{};
#pragma GCC unroll 12
      for (int v = 0; v < VB; ++v) {
        const Register value = load_register(sources[v] + at + dz);
#pragma GCC unroll 8
        for (int k = 0; k < KB; ++k) sum[k][v] += weight[k] * value;
      }
    }
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 12
    for (int v = 0; v < VB; ++v)
      store_register(products + k * product_stride + v * kRegisterFloats, sum[k][v]);
}

using MultiplyKernel = decltype(&multiply_kernel<1, 1>);

template <int KB, int... Index>
constexpr std::array<MultiplyKernel, kVB<KB>> multiply_kernels(
    std::integer_sequence<int, Index...>) {
  return {multiply_kernel<KB, Index + 1>...};
}

template <int KB>
void multiply_group(int registers, const float* values, const size_t* offsets,
                    size_t channel_stride, int channels, const float* weights, bool accumulate,
                    float* products, size_t product_stride) {
  static constexpr auto kKernels = multiply_kernels<KB>(std::make_integer_sequence<int, kVB<KB>>());
  const int chunks = ceil_div(registers, kVB<KB>);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int begin = registers * chunk / chunks, end = registers * (chunk + 1) / chunks;
    kKernels[end - begin - 1](values, offsets + begin, channel_stride, channels, weights,
                              accumulate, products + begin * kRegisterFloats, product_stride);
  }
}

// Where the registers of a block's rows lie in a channel of `values`, from its first tap on.
inline std::vector<size_t> register_offsets(const Layout& layout) {
  std::vector<size_t> offsets;
  for (int tile = 0; tile < layout.tiles; ++tile)
    for (size_t z = 0; z < layout.row(); z += kRegisterFloats)
      offsets.push_back(tile * layout.padded_row() + kLanes - kTaps / 2 + z);
  return offsets;
}

// The products of one point with a chunk of the input channels, for all tiles and output channels
// of a block. They are added to those of the chunks before.
inline void multiply_point(const Block& block, const Layout& layout, const Weights& weights,
                           int chunk, const float* packed, const std::vector<size_t>& offsets,
                           const float* values, float* products) {
  const size_t channel_stride = layout.tiles * layout.padded_row();
  const size_t product_stride = layout.tiles * layout.row();
  const int registers = static_cast<int>(block.tiles * layout.row() / kRegisterFloats);
  for (int k = 0; k < weights.k_count; k += 4) {
    constexpr decltype(&multiply_group<1>) kGroups[] = {multiply_group<1>, multiply_group<2>,
                                                        multiply_group<3>, multiply_group<4>};
    const int group = std::min(4, weights.k_count - k);
    kGroups[group - 1](
        registers, values, offsets.data(), channel_stride, chunk_channels(weights.c_count, chunk),
        packed + (static_cast<size_t>(k) * weights.c_count + chunk * kChunk * group) * kTaps,
        chunk > 0, products + k * product_stride, product_stride);
  }
}

// ------------------------------------------------------------------------------------ the passes

// y = epilogue(convolution of x). `in` and `out` are the shapes of x and y. epilogue(value, image,
// block, voxel) returns the vector to store: 16 channels of a voxel if y is blocked, 16 neighbours
// along z of channel `block` from `voxel` on if it is plain.
template <typename Epilogue>
void convolve(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
              const Weights& weights, const Shape& out, float* y, const Epilogue& epilogue) {
  assert(in.valid() && weights.c_count == in.channels && weights.k_count == out.channels);
  assert(x != nullptr && weights.data != nullptr && y != nullptr);
  const Layout layout = layout_of(in, out.channels);
  const std::vector<Block> blocks = blocks_of(in, layout);
  const std::vector<size_t> offsets = register_offsets(layout);
  const size_t point_weights = static_cast<size_t>(out.channels) * in.channels * kTaps;
  float* packed = workspace.shared.get(kPoints2 * point_weights);
  pack_weights(pool, weights, packed);

  const int chunks = chunks_of(in.channels), channels = std::min(in.channels, kChunk);
  const size_t zeros_floats = static_cast<size_t>(in.z + kLanes) * kLanes;
  const size_t x_stride = layout.after_x(channels, InputTransform::extent(layout.tiles));
  const size_t value_stride = layout.values(channels);
  const size_t product_stride = layout.products(out.channels);
  const size_t plane_products = kPoints * product_stride;  // of one px; all px if they accumulate
  const size_t y_stride = layout.after_y(out.channels);
  pool.for_each(static_cast<int>(blocks.size()), [&](int item, int thread) {
    const Block& block = blocks[item];
    float* zeros = workspace.per_thread[thread].get(zeros_floats +
                                                    kPoints * (x_stride + value_stride + y_stride) +
                                                    (chunks > 1 ? kPoints : 1) * plane_products);
    float* after_x = zeros + zeros_floats;
    float* values = after_x + kPoints * x_stride;
    float* after_y = values + kPoints * value_stride;
    float* all_products = after_y + kPoints * y_stride;
    std::fill(zeros, zeros + zeros_floats, 0.f);
    pad_values(channels, layout, values);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      along_x<InputTransform>(x + block.image * in.image_floats(), in, chunk, block, layout, zeros,
                              after_x);
      for (int px = 0; px < kPoints; ++px) {
        float* products = all_products + (chunks > 1 ? px : 0) * plane_products;
        along_y<InputTransform>(chunk_channels(in.channels, chunk), value_stride, block, layout,
                                after_x + px * x_stride, values);
        for (int py = 0; py < kPoints; ++py)
          multiply_point(block, layout, weights, chunk,
                         packed + (px * kPoints + py) * point_weights, offsets,
                         values + py * value_stride, products + py * product_stride);
        if (chunk == chunks - 1)
          output_along_y(out.channels, block, layout, products, after_y + px * y_stride);
      }
    }
    write_image(block, layout, out, after_y, epilogue, y + block.image * out.image_floats());
  });
}

// Output channels of the weight gradient's micro-kernel.
constexpr int kGradientKB = kRegisterFloats == 16 ? 4 : 2;

// sums[KB][dz] = sum over a block's rows of gradients[KB][z] * values[z + dz], lane by lane.
template <int KB>
void gradient_kernel(int tiles, const Layout& layout, const float* values, const float* gradients,
                     size_t channel_stride, float* sums) {
  Register sum[KB][kTaps];
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 5
    for (int dz = 0; dz < kTaps; ++dz) sum[k][dz] = Register{};
  for (int tile = 0; tile < tiles; ++tile)
    for (size_t z = 0; z < layout.row(); z += kRegisterFloats) {
      const size_t at = tile * layout.padded_row() + kLanes + z;
      Register gradient[KB];
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) gradient[k] = load_register(gradients + k * channel_stride + at);
#pragma GCC unroll 5
      for (int dz = 0; dz < kTaps; ++dz) {
        const Register value = load_register(values + at + dz - kTaps / 2);
#pragma GCC unroll 8
        for (int k = 0; k < KB; ++k) sum[k][dz] += gradient[k] * value;
      }
    }
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 5
    for (int dz = 0; dz < kTaps; ++dz)
      store_register(sums + (k * kTaps + dz) * kRegisterFloats, sum[k][dz]);
}

// totals[i] += the sum of the lanes of register i.
inline void add_lane_sums(const float* registers, size_t count, float* totals) {
  for (size_t first = 0; first < count; first += kRegisterFloats) {
    Register rows[kRegisterFloats];
    for (int i = 0; i < kRegisterFloats; ++i)
      rows[i] = load_register(registers + (first + i) * kRegisterFloats);
    transpose(rows);
    for (int step = kRegisterFloats / 2; step > 0; step /= 2)
      for (int i = 0; i < step; ++i) rows[i] += rows[i + step];
    store_register(totals + first, load_register(totals + first) + rows[0]);
  }
}

// The weight gradient of one point and block, added to sums[c][k][dz].
inline void gradient_point(const Block& block, const Layout& layout, int c_count, int k_count,
                           const float* values, const float* gradients, float* lane_sums,
                           size_t sum_count, float* sums) {
  const size_t channel_stride = layout.tiles * layout.padded_row();
  float* target = lane_sums;
  for (int c = 0; c < c_count; ++c)
    for (int k = 0; k < k_count; k += kGradientKB) {
      const int count = std::min(kGradientKB, k_count - k);
      constexpr decltype(&gradient_kernel<1>) kKernels[] = {gradient_kernel<1>, gradient_kernel<2>,
                                                            gradient_kernel<3>, gradient_kernel<4>};
      kKernels[count - 1](block.tiles, layout, values + c * channel_stride,
                          gradients + k * channel_stride, channel_stride, target);
      target += count * kTaps * kRegisterFloats;
    }
  std::fill(target, lane_sums + sum_count * kRegisterFloats, 0.f);
  add_lane_sums(lane_sums, sum_count, sums);
}

// A pair of chunks of the input and output channels, for the weight gradient.
struct ChunkPair {
  int c, k, c_count, k_count;  // first channels, and how many

  ChunkPair(const Shape& in, const Shape& out, int pair)
      : c(pair / chunks_of(out.channels) * kChunk),
        k(pair % chunks_of(out.channels) * kChunk),
        c_count(std::min(kChunk, in.channels - c)),
        k_count(std::min(kChunk, out.channels - k)) {}
};

// Gt along y and x: sums[point][c][k][dz] of a pair of chunks -> dw (k, c_total, 5, 5, 5).
inline void write_gradient(const float* sums, size_t sum_count, const ChunkPair& pair, int c_total,
                           float* dw) {
  const size_t valid = static_cast<size_t>(pair.c_count) * pair.k_count * kTaps;
  for (size_t first = 0; first < valid; first += kLanes) {
    Vec after_y[kTaps][kPoints];
    for (int x = 0; x < kPoints; ++x) {
      Vec in[kPoints], out[kTaps];
      load_all(sums + x * kPoints * sum_count + first, sum_count, in);
      transform_kernel_gradient(in, out);
      for (int y = 0; y < kTaps; ++y) after_y[y][x] = out[y];
    }
    for (int y = 0; y < kTaps; ++y) {
      Vec out[kTaps];
      transform_kernel_gradient(after_y[y], out);
      for (int x = 0; x < kTaps; ++x) {
        float values[kLanes];
        store(values, out[x]);
        for (size_t i = first; i < std::min(first + kLanes, valid); ++i) {
          const size_t dz = i % kTaps, k = pair.k + i / kTaps % pair.k_count;
          const size_t c = pair.c + i / kTaps / pair.k_count;
          dw[(k * c_total + c) * kVolumeTaps + (x * kTaps + y) * kTaps + dz] = values[i - first];
        }
      }
    }
  }
}

// Computes dw (k, c, 5, 5, 5) of a convolution from x (shape `in`) to y (shape `out`).
inline void weight_gradient(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                            const Shape& out, const float* dy, float* dw) {
  assert(in.valid() && out.valid());
  assert(in.batch == out.batch && in.x == out.x && in.y == out.y && in.z == out.z);
  assert(x != nullptr && dy != nullptr && dw != nullptr);
  const Layout layout = layout_of(in, std::min(out.channels, kChunk));
  const std::vector<Block> blocks = blocks_of(in, layout);
  const int pairs = chunks_of(in.channels) * chunks_of(out.channels);
  const int c_count = std::min(in.channels, kChunk), k_count = std::min(out.channels, kChunk);
  const size_t sum_count = ceil_div(c_count * k_count * kTaps, kLanes) * size_t{kLanes};
  const size_t pair_floats = kPoints2 * sum_count;
  // Ranges of blocks have their own sums, so that these are short and do not depend on scheduling.
  const int ranges = std::min<int>(std::max(8, 2 * pool.size()), static_cast<int>(blocks.size()));
  float* all_sums = workspace.shared.get(pairs * ranges * pair_floats);

  const size_t zeros_floats = static_cast<size_t>(in.z + kLanes) * kLanes;
  const size_t x_stride = layout.after_x(c_count, InputTransform::extent(layout.tiles));
  const size_t dy_stride = layout.after_x(k_count, GradientTransform::extent(layout.tiles));
  const size_t value_stride = layout.values(c_count), gradient_stride = layout.values(k_count);
  pool.for_each(pairs * ranges, [&](int item, int thread) {
    const int pair = item / ranges, range = item % ranges;
    const ChunkPair chunks(in, out, pair);
    float* zeros = workspace.per_thread[thread].get(
        zeros_floats + kPoints * (x_stride + dy_stride + value_stride + gradient_stride) +
        sum_count * kRegisterFloats);
    float* x_after_x = zeros + zeros_floats;
    float* dy_after_x = x_after_x + kPoints * x_stride;
    float* values = dy_after_x + kPoints * dy_stride;
    float* gradients = values + kPoints * value_stride;
    float* lane_sums = gradients + kPoints * gradient_stride;
    float* sums = all_sums + item * pair_floats;
    std::fill(zeros, zeros + zeros_floats, 0.f);
    std::fill(sums, sums + pair_floats, 0.f);
    pad_values(c_count, layout, values);
    const size_t end = blocks.size() * (range + 1) / ranges;
    for (size_t number = blocks.size() * range / ranges; number < end; ++number) {
      const Block& block = blocks[number];
      along_x<InputTransform>(x + block.image * in.image_floats(), in, chunks.c / kChunk, block,
                              layout, zeros, x_after_x);
      along_x<GradientTransform>(dy + block.image * out.image_floats(), out, chunks.k / kChunk,
                                 block, layout, zeros, dy_after_x);
      for (int px = 0; px < kPoints; ++px) {
        along_y<InputTransform>(chunks.c_count, value_stride, block, layout,
                                x_after_x + px * x_stride, values);
        along_y<GradientTransform>(chunks.k_count, gradient_stride, block, layout,
                                   dy_after_x + px * dy_stride, gradients);
        for (int py = 0; py < kPoints; ++py)
          gradient_point(block, layout, chunks.c_count, chunks.k_count, values + py * value_stride,
                         gradients + py * gradient_stride, lane_sums, sum_count,
                         sums + (px * kPoints + py) * sum_count);
      }
    }
  });
  pool.for_each(pairs, [&](int pair, int) {
    float* total = all_sums + static_cast<size_t>(pair) * ranges * pair_floats;
    for (int range = 1; range < ranges; ++range)
      for (size_t i = 0; i < pair_floats; i += kLanes)
        store(total + i, load(total + i) + load(total + range * pair_floats + i));
    write_gradient(total, sum_count, ChunkPair(in, out, pair), in.channels, dw);
  });
}

}  // namespace plane
}  // namespace fast_conv3d
