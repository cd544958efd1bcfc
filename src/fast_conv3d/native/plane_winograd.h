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
constexpr size_t kBlockFloats = 160 * 1024;  // of all intermediate results

inline int chunks_of(int channels) { return ceil_div(channels, kChunk); }

// Channels [first, first + count).
struct Channels {
  int first, count;

  static Channels chunk(int channels, int number) {
    return {number * kChunk, std::min(kChunk, channels - number * kChunk)};
  }
};

// The columns that an item of work computes: one along x, `tiles` neighbours along y.
struct Block {
  int image, x, y, tiles;
};

// How a volume is split: tiles of a block, Vecs of a row along z.
struct Split {
  int tiles, groups;
};

// ------------------------------------------------------------------------------------ scratch

// A view of rows [point][channel][tile][group along z] that begin with 16 zeros, which pad the row
// and the one before it.
inline View<4> padded_rows(ScratchParts& parts, int channels, const Split& split) {
  const size_t row = static_cast<size_t>(split.groups + 1) * kLanes;
  const size_t point = channels * split.tiles * row + kLanes;  // the last row is padded, too
  float* data = parts.take(kPoints * point);
  return {data == nullptr ? nullptr : data + kLanes,
          {kPoints, channels, split.tiles, split.groups},
          {point, split.tiles * row, row, kLanes}};
}
inline void write_padding(const View<4>& values) {
  for (int point = 0; point < values.size(0); ++point)
    for (int row = 0; row <= values.size(1) * values.size(2); ++row)
      store(values.data() + point * values.stride(0) + row * values.stride(2) - kLanes, zero());
}

// Scratch for the transform of a chunk of channels.
template <typename Transform>
struct TransformScratch {
  View<4> after_x, values;  // [point][channel][row][group], see padded_rows
  View<1> zeros;            // a row of voxels outside the volume

  TransformScratch(ScratchParts& parts, const Shape& shape, const Split& split)
      : after_x(parts.take<4>({kPoints, std::min(shape.channels, kChunk),
                               Transform::extent(split.tiles), split.groups},
                              1)),
        values(padded_rows(parts, std::min(shape.channels, kChunk), split)),
        zeros(parts.take<1>({shape.z + kLanes})) {
    if (zeros.data() != nullptr) std::fill_n(zeros.data(), zeros.floats(), 0.f);
    if (values.data() != nullptr) write_padding(values);
  }
};

// Scratch for a block of the convolution. With several chunks the products of all points add up.
struct ConvolutionScratch {
  TransformScratch<InputTransform> input;
  View<4> products, after_y;  // [point][channel][tile or row][group]

  ConvolutionScratch(ScratchParts& parts, const Shape& in, int out_channels, const Split& split)
      : input(parts, in, split),
        products(parts.take<4>(
            {in.channels > kChunk ? kPoints2 : kPoints, out_channels, split.tiles, split.groups},
            1)),
        after_y(parts.take<4>({kPoints, out_channels, kOutputs * split.tiles, split.groups}, 1)) {}
};

inline Split split_of(const Shape& in, int out_channels) {
  const int tiles_y = ceil_div(in.y, kOutputs);
  Split split{1, ceil_div(in.z, kLanes)};
  const auto floats = [&](int tiles) {
    ScratchParts parts;
    ConvolutionScratch(parts, in, out_channels, {tiles, split.groups});
    return parts.used();
  };
  while (split.tiles < tiles_y && floats(split.tiles + 1) <= kBlockFloats) ++split.tiles;
  split.tiles = ceil_div(tiles_y, ceil_div(tiles_y, split.tiles));  // nearly equal blocks
  return split;
}

inline std::vector<Block> blocks_of(const Shape& shape, const Split& split) {
  const int tiles_y = ceil_div(shape.y, kOutputs);
  std::vector<Block> blocks;
  for (int image = 0; image < shape.batch; ++image)
    for (int x = 0; x < ceil_div(shape.x, kOutputs); ++x)
      for (int y = 0; y < tiles_y; y += split.tiles)
        blocks.push_back({image, x, y, std::min(split.tiles, tiles_y - y)});
  return blocks;
}

// ---------------------------------------------------------------------------------- transforms

// The rows of planes that one row of a block depends on; `zeros` outside the volume.
template <typename Transform>
void source_rows(const ConstView<4>& image, int index, const Block& block, int row,
                 const float* zeros, const float* (&rows)[Transform::kSize]) {
  const int y = kOutputs * block.y - Transform::kPadding + row;
  for (int j = 0; j < Transform::kSize; ++j) {
    const int x = kOutputs * block.x - Transform::kPadding + j;
    const bool inside = x >= 0 && x < image.size(1) && y >= 0 && y < image.size(2);
    rows[j] = inside ? image(index, x, y, 0) : zeros;
  }
}

// The transform along x of rows of 16 channels, from voxel z on: [point][channel] in `out`.
template <typename Transform>
void transform_blocked(const float* const (&rows)[Transform::kSize], int z, int size,
                       Vec (&out)[kPoints][kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    Vec in[Transform::kSize], points[kPoints];
    for (int j = 0; j < Transform::kSize; ++j)
      in[j] = z + i < size ? load(rows[j] + (z + i) * kLanes) : zero();
    Transform::transform(in, points);
    for (int point = 0; point < kPoints; ++point) out[point][i] = points[point];
  }
  for (int point = 0; point < kPoints; ++point) transpose_lanes(out[point]);
}

// Along x: some channels of an image -> after_x.
template <typename Transform>
void along_x(const ConstView<4>& image, const Shape& shape, const Channels& channels,
             const Block& block, const TransformScratch<Transform>& scratch) {
  const View<4>& after_x = scratch.after_x;
  const int first = channels.first / shape.block_channels();
  for (int index = 0; index < (shape.plain ? channels.count : 1); ++index)
    for (int row = 0; row < Transform::extent(block.tiles); ++row) {
      const float* rows[Transform::kSize];
      source_rows<Transform>(image, first + index, block, row, scratch.zeros.data(), rows);
      for (int group = 0; group < after_x.size(3); ++group) {
        const int z = group * kLanes;
        if (shape.plain) {
          Vec in[Transform::kSize], out[kPoints];
          for (int j = 0; j < Transform::kSize; ++j) in[j] = load_row(rows[j], z, shape.z);
          Transform::transform(in, out);
          store_all(after_x(0, index, row, group), after_x.stride(0), out);
          continue;
        }
        Vec out[kPoints][kLanes];
        transform_blocked<Transform>(rows, z, shape.z, out);
        float* target = after_x(0, 0, row, group);
        for (int point = 0; point < kPoints; ++point)
          for (int lane = 0; lane < channels.count; ++lane)
            store(target + point * after_x.stride(0) + lane * after_x.stride(1), out[point][lane]);
      }
    }
}

// Along y: one point of after_x, [channel][row][group] -> values.
template <typename Transform>
void along_y(const Channels& channels, const Block& block, const ConstView<3>& after_x,
             const View<4>& values) {
  for (int channel = 0; channel < channels.count; ++channel)
    for (int tile = 0; tile < block.tiles; ++tile)
      for (int group = 0; group < after_x.size(2); ++group) {
        Vec in[Transform::kSize], out[kPoints];
        load_all(after_x(channel, kOutputs * tile, group), after_x.stride(1), in);
        Transform::transform(in, out);
        store_all(values(0, channel, tile, group), values.stride(0), out);
      }
}

// The output transform along y: products of the 8 points from `first_point` on -> one point of
// after_y, [channel][row][group].
inline void output_along_y(const Block& block, const ConstView<4>& products, int first_point,
                           const View<3>& after_y) {
  for (int channel = 0; channel < products.size(1); ++channel)
    for (int tile = 0; tile < block.tiles; ++tile)
      for (int group = 0; group < products.size(3); ++group) {
        Vec in[kPoints], out[kOutputs];
        load_all(products(first_point, channel, tile, group), products.stride(0), in);
        transform_output(in, out);
        store_all(after_y(channel, kOutputs * tile, group), after_y.stride(1), out);
      }
}

// The output transform along x of one channel, row and group along z: planes of 16 voxels.
FC3D_INLINE void output_along_x(const ConstView<4>& after_y, int channel, int row, int group,
                                Vec (&out)[kOutputs]) {
  Vec in[kPoints];
  load_all(after_y(0, channel, row, group), after_y.stride(0), in);
  transform_output(in, out);
}

// The same of 16 channels from `first` on: planes of 16 voxels, with zeros past the last channel.
inline void output_blocked(const ConstView<4>& after_y, int first, int row, int group,
                           Vec (&voxels)[kOutputs][kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    Vec out[kOutputs] = {zero(), zero(), zero(), zero()};
    if (first + lane < after_y.size(1)) output_along_x(after_y, first + lane, row, group, out);
    for (int x = 0; x < kOutputs; ++x) voxels[x][lane] = out[x];
  }
  for (int x = 0; x < kOutputs; ++x) transpose_lanes(voxels[x]);
}

// after_y -> the image, through `epilogue`.
template <typename Epilogue>
void write_image(const Block& block, const Shape& shape, const ConstView<4>& after_y,
                 const Epilogue& epilogue, const View<4>& image) {
  const int first_x = kOutputs * block.x, first_y = kOutputs * block.y;
  const int planes = std::min(kOutputs, shape.x - first_x);
  const int rows = std::min(kOutputs * block.tiles, shape.y - first_y);
  for (int index = 0; index < shape.blocks(); ++index)
    for (int row = 0; row < rows; ++row)
      for (int group = 0; group < after_y.size(3); ++group) {
        const int z = group * kLanes;
        Vec plain[kOutputs], voxels[kOutputs][kLanes];
        if (shape.plain)
          output_along_x(after_y, index, row, group, plain);
        else
          output_blocked(after_y, index * kLanes, row, group, voxels);
        for (int x = 0; x < planes; ++x) {
          const size_t voxel =
              (static_cast<size_t>(first_x + x) * shape.y + first_y + row) * shape.z + z;
          float* target = image(index, first_x + x, first_y + row, z);
          if (shape.plain) {
            store_first(target, std::min(kLanes, shape.z - z),
                        epilogue(plain[x], block.image, index, voxel));
            continue;
          }
          for (int i = 0; i < std::min(kLanes, shape.z - z); ++i)
            store(target + i * kLanes, epilogue(voxels[x][i], block.image, index, voxel + i));
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
void multiply_kernel(const float* values, const ptrdiff_t* offsets, size_t channel_stride,
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
        const Register value = in_register(load_register(sources[v] + at + dz));
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
void multiply_group(int registers, const float* values, const ptrdiff_t* offsets,
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

// Where the registers of a block's rows, at the first tap along z, lie in a channel of `values`.
inline std::vector<ptrdiff_t> register_offsets(const View<4>& values) {
  std::vector<ptrdiff_t> offsets;
  for (int tile = 0; tile < values.size(2); ++tile)
    for (int z = 0; z < values.size(3) * kLanes; z += kRegisterFloats)
      offsets.push_back(static_cast<ptrdiff_t>(tile * values.stride(2)) + z - kTaps / 2);
  return offsets;
}

// The products of one point with some input channels, for all tiles and output channels of a block.
// They are added to those of the channels before. values and products are [channel][tile][group].
inline void multiply_point(const Block& block, const Weights& weights, const Channels& channels,
                           const float* packed, const std::vector<ptrdiff_t>& offsets,
                           const ConstView<3>& values, const View<3>& products) {
  constexpr decltype(&multiply_group<1>) kGroups[] = {multiply_group<1>, multiply_group<2>,
                                                      multiply_group<3>, multiply_group<4>};
  const int registers = block.tiles * products.size(2) * kParts;
  for (int k = 0; k < weights.k_count; k += 4) {
    const int group = std::min(4, weights.k_count - k);
    kGroups[group - 1](
        registers, values.data(), offsets.data(), values.stride(0), channels.count,
        packed + (static_cast<size_t>(k) * weights.c_count + channels.first * group) * kTaps,
        channels.first > 0, products(k, 0, 0), products.stride(0));
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
  const Split split = split_of(in, out.channels);
  const std::vector<Block> blocks = blocks_of(in, split);
  const size_t point_weights = static_cast<size_t>(out.channels) * in.channels * kTaps;
  float* packed = workspace.shared.get(kPoints2 * point_weights);
  pack_weights(pool, weights, packed);
  pool.for_each(static_cast<int>(blocks.size()), [&](int item, int thread) {
    const Block& block = blocks[item];
    const auto scratch =
        lay_out<ConvolutionScratch>(workspace.per_thread[thread], in, out.channels, split);
    const auto& [input, products, after_y] = scratch;
    const std::vector<ptrdiff_t> offsets = register_offsets(input.values);
    const int chunks = chunks_of(in.channels);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const Channels channels = Channels::chunk(in.channels, chunk);
      along_x<InputTransform>(image_view(x, in, block.image), in, channels, block, input);
      for (int px = 0; px < kPoints; ++px) {
        const int first_point = chunks > 1 ? px * kPoints : 0;
        along_y<InputTransform>(channels, block, input.after_x[px], input.values);
        for (int py = 0; py < kPoints; ++py)
          multiply_point(block, weights, channels, packed + (px * kPoints + py) * point_weights,
                         offsets, input.values[py], products[first_point + py]);
        if (chunk == chunks - 1) output_along_y(block, products, first_point, after_y[px]);
      }
    }
    write_image(block, out, after_y, epilogue, image_view(y, out, block.image));
  });
}

// Output channels of the weight gradient's micro-kernel.
constexpr int kGradientKB = kRegisterFloats == 16 ? 4 : 2;

// sums[KB][dz] = sum over a block's rows of gradients[KB][z] * values[z + dz], lane by lane. Both
// are [channel][tile][group] of one layout, from a channel on.
template <int KB>
void gradient_kernel(int tiles, const ConstView<3>& values, const ConstView<3>& gradients, int c,
                     int k, float* sums) {
  Register sum[KB][kTaps];
#pragma GCC unroll 8
  for (int i = 0; i < KB; ++i)
#pragma GCC unroll 5
    for (int dz = 0; dz < kTaps; ++dz) sum[i][dz] = Register{};
  const float *first_value = values(c, 0, 0) - kTaps / 2, *first_gradient = gradients(k, 0, 0);
  const size_t tile_stride = values.stride(1), channel_stride = gradients.stride(0);
  const int row_floats = values.size(2) * kLanes;
  for (int tile = 0; tile < tiles; ++tile)
    for (int z = 0; z < row_floats; z += kRegisterFloats) {
      const float* value = first_value + tile * tile_stride + z;
      const float* gradient = first_gradient + tile * tile_stride + z;
      Register row[KB];
#pragma GCC unroll 8
      for (int i = 0; i < KB; ++i)
        row[i] = in_register(load_register(gradient + i * channel_stride));
#pragma GCC unroll 5
      for (int dz = 0; dz < kTaps; ++dz) {
        const Register shifted = in_register(load_register(value + dz));
#pragma GCC unroll 8
        for (int i = 0; i < KB; ++i) sum[i][dz] += row[i] * shifted;
      }
    }
#pragma GCC unroll 8
  for (int i = 0; i < KB; ++i)
#pragma GCC unroll 5
    for (int dz = 0; dz < kTaps; ++dz)
      store_register(sums + (i * kTaps + dz) * kRegisterFloats, sum[i][dz]);
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

// The weight gradient of one point and block, added to sums[c][k][dz]. lane_sums is scratch.
inline void gradient_point(const Block& block, int c_count, int k_count, const ConstView<3>& values,
                           const ConstView<3>& gradients, float* lane_sums, size_t sum_count,
                           float* sums) {
  constexpr decltype(&gradient_kernel<1>) kKernels[] = {gradient_kernel<1>, gradient_kernel<2>,
                                                        gradient_kernel<3>, gradient_kernel<4>};
  float* target = lane_sums;
  for (int c = 0; c < c_count; ++c)
    for (int k = 0; k < k_count; k += kGradientKB) {
      const int count = std::min(kGradientKB, k_count - k);
      kKernels[count - 1](block.tiles, values, gradients, c, k, target);
      target += count * kTaps * kRegisterFloats;
    }
  std::fill(target, lane_sums + sum_count * kRegisterFloats, 0.f);
  add_lane_sums(lane_sums, sum_count, sums);
}

// A pair of chunks of the input and output channels, for the weight gradient.
struct ChunkPair {
  Channels c, k;

  ChunkPair(const Shape& in, const Shape& out, int pair)
      : c(Channels::chunk(in.channels, pair / chunks_of(out.channels))),
        k(Channels::chunk(out.channels, pair % chunks_of(out.channels))) {}
};

// Gt along y and x: sums[point][c][k][dz] of a pair of chunks -> dw (k, c_total, 5, 5, 5).
inline void write_gradient(const float* sums, size_t sum_count, const ChunkPair& pair, int c_total,
                           float* dw) {
  const size_t valid = static_cast<size_t>(pair.c.count) * pair.k.count * kTaps;
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
          const size_t dz = i % kTaps, k = pair.k.first + i / kTaps % pair.k.count;
          const size_t c = pair.c.first + i / kTaps / pair.k.count;
          dw[(k * c_total + c) * kVolumeTaps + (x * kTaps + y) * kTaps + dz] = values[i - first];
        }
      }
    }
  }
}

// Scratch for a block of the weight gradient.
struct GradientScratch {
  TransformScratch<InputTransform> x;
  TransformScratch<GradientTransform> y;
  float* lane_sums;

  GradientScratch(ScratchParts& parts, const Shape& in, const Shape& out, const Split& split,
                  size_t sum_count)
      : x(parts, in, split),
        y(parts, out, split),
        lane_sums(parts.take(sum_count * kRegisterFloats)) {}
};

// Adds the gradient of a block to sums[point][c][k][dz].
inline void add_block(const Block& block, const Shape& in, const float* x, const Shape& out,
                      const float* dy, const ChunkPair& pair, const GradientScratch& scratch,
                      size_t sum_count, float* sums) {
  along_x<InputTransform>(image_view(x, in, block.image), in, pair.c, block, scratch.x);
  along_x<GradientTransform>(image_view(dy, out, block.image), out, pair.k, block, scratch.y);
  for (int px = 0; px < kPoints; ++px) {
    along_y<InputTransform>(pair.c, block, scratch.x.after_x[px], scratch.x.values);
    along_y<GradientTransform>(pair.k, block, scratch.y.after_x[px], scratch.y.values);
    for (int py = 0; py < kPoints; ++py)
      gradient_point(block, pair.c.count, pair.k.count, scratch.x.values[py], scratch.y.values[py],
                     scratch.lane_sums, sum_count, sums + (px * kPoints + py) * sum_count);
  }
}

// Computes dw (k, c, 5, 5, 5) of a convolution from x (shape `in`) to y (shape `out`).
inline void weight_gradient(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                            const Shape& out, const float* dy, float* dw) {
  assert(in.valid() && out.valid());
  assert(in.batch == out.batch && in.x == out.x && in.y == out.y && in.z == out.z);
  assert(x != nullptr && dy != nullptr && dw != nullptr);
  const Split split = split_of(in, std::min(out.channels, kChunk));
  const std::vector<Block> blocks = blocks_of(in, split);
  const int pairs = chunks_of(in.channels) * chunks_of(out.channels);
  const int most = std::min(in.channels, kChunk) * std::min(out.channels, kChunk) * kTaps;
  const size_t sum_count = ceil_div(most, kLanes) * size_t{kLanes};
  // Ranges of blocks have their own sums, so that these are short and do not depend on scheduling.
  const int ranges = std::min<int>(std::max(8, 2 * pool.size()), static_cast<int>(blocks.size()));
  const PartSums sums{ranges, kPoints2 * sum_count};
  float* all_sums = workspace.shared.get(pairs * ranges * sums.floats);
  pool.for_each(pairs * ranges, [&](int item, int thread) {
    const int range = item % ranges;
    const auto scratch =
        lay_out<GradientScratch>(workspace.per_thread[thread], in, out, split, sum_count);
    float* range_sums = all_sums + item * sums.floats;
    std::fill_n(range_sums, sums.floats, 0.f);
    const size_t end = blocks.size() * (range + 1) / ranges;
    for (size_t number = blocks.size() * range / ranges; number < end; ++number)
      add_block(blocks[number], in, x, out, dy, ChunkPair(in, out, item / ranges), scratch,
                sum_count, range_sums);
  });
  pool.for_each(pairs, [&](int pair, int) {
    float* total = all_sums + static_cast<size_t>(pair) * ranges * sums.floats;
    for (size_t i = 0; i < sums.floats; i += kLanes) store(total + i, sums.total(total + i));
    write_gradient(total, sum_count, ChunkPair(in, out, pair), in.channels, dw);
  });
}

}  // namespace plane
}  // namespace fast_conv3d
