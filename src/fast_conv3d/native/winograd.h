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
// - few tiles (deep levels, which have many weights; the deepest take few_voxels.h): the input is
//   transformed once; each thread takes 16 output channels and transforms their weights when it
//   needs them. Transformed weights are 4 times as large, so storing and reloading all of them
//   would cost more than the arithmetic.
//
// The input gradient is the same convolution with flipped and transposed weights; the weight
// gradient is dw = Gt [ sum over tiles of (A dy) * (Bt x) ]. See docs/fast_conv3d.md.
#pragma once

#include <algorithm>
#include <cassert>
#include <vector>

#include "matrix_products.h"
#include "thread_pool.h"
#include "winograd_transforms.h"
#include "winograd_weights.h"

namespace fast_conv3d {

// ------------------------------------------------------------------------------------ many tiles

// A thread's scratch for one block of tiles.
struct BlockScratch {
  TransformScratch<InputTransform> input;
  View<3> values, products;
  OutputScratch output;

  BlockScratch(ScratchParts& parts, const Shape& shape, const TileBlock& block, int c_blocks,
               int k_blocks)
      : input(parts, shape, block, c_blocks),
        values(parts.take<3>({kPoints, c_blocks, block.tiles()}, 2)),
        products(parts.take<3>({kPoints, k_blocks, block.tiles()}, 2)),
        output(parts, block, k_blocks) {}
};

// Takes a block of tiles of an image through all steps.
template <typename Epilogue>
void convolve_block(const TileBlock& block, const ConstView<4>& image, const PackedWeights& weights,
                    const BlockScratch& scratch, const Epilogue& epilogue, const View<4>& out) {
  const auto& [input, values, products, output] = scratch;
  transform_along_x(image, block, PointSet(), input);
  for (int px = 0; px < kPoints; ++px) {
    transform_along_y<InputTransform>(block, input.after_x[px], input.after_y);
    for (int py = 0; py < kPoints; ++py) {
      transform_along_z<InputTransform>(block, input.after_y[py], values);
      for (int pz = 0; pz < kPoints; ++pz)
        gemm_point(values[pz], weights.point(point_of(px, py, pz)), products[pz]);
      output_along_z(block, products, output.after_z[py]);
    }
    output_along_y(block, output.after_z, output.after_y[px]);
  }
  output_along_x(block, output.after_y, 0, epilogue, out);
}

// The loop order for many tiles: transform all weights, then the blocks of tiles in parallel.
template <typename Epilogue>
void convolve_many_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                         const Weights& weights, float* y, const Epilogue& epilogue) {
  const Shape out{in.batch, weights.k_count, in.x, in.y, in.z};
  PackedWeights packed{nullptr, weights.k_blocks(), weights.c_blocks()};
  packed.data = workspace.shared.get(packed.floats());
  transform_weights(pool, workspace, weights, packed);
  const std::vector<TileBlock> blocks = tile_blocks(in, block_tiles(in.channels));
  pool.for_each(static_cast<int>(blocks.size()), [&](int item, int thread) {
    const TileBlock& block = blocks[item];
    const auto scratch = lay_out<BlockScratch>(workspace.per_thread[thread], in, block,
                                               packed.c_blocks, packed.k_blocks);
    convolve_block(block, image_view(x, in, block.batch), packed, scratch, epilogue,
                   image_view(y, out, block.batch));
  });
}

// ------------------------------------------------------------------------------------- few tiles

// The part of values[point][tile of the batch] of one point (x, y) and one image, as
// [point z][1 channel block][tile].
template <typename T>
View<3, T> values_of_image(const View<2, T>& values, int px, int py, int batch, int image_tiles) {
  return {values(point_of(px, py, 0), batch * image_tiles),
          {kPoints, 1, image_tiles},
          {values.stride(0), 0, kLanes}};
}

// Transforms all tiles of a tensor: values[channel block][point][tile of the batch].
template <typename Transform>
void transform_all_tiles(ThreadPool& pool, Workspace& workspace, const Shape& shape,
                         const float* data, const View<3>& values) {
  const int tiles = tiles_of_image(shape), blocks = shape.blocks();
  const std::vector<TileBlock> images = tile_blocks(shape, tiles);
  pool.for_each(shape.batch * blocks, [&](int item, int thread) {
    const int batch = item / blocks, channel = item % blocks;
    const TileBlock& block = images[batch];
    const auto scratch =
        lay_out<TransformScratch<Transform>>(workspace.per_thread[thread], shape, block, 1);
    Shape one = shape;
    one.channels = kLanes;
    const ConstView<4> image =
        image_view(data + batch * shape.image_floats() + channel * shape.block_floats(), one, 0);
    transform_along_x(image, block, PointSet(), scratch);
    for (int px = 0; px < kPoints; ++px) {
      transform_along_y<Transform>(block, scratch.after_x[px], scratch.after_y);
      for (int py = 0; py < kPoints; ++py)
        transform_along_z<Transform>(block, scratch.after_y[py],
                                     values_of_image(values[channel], px, py, batch, tiles));
    }
  });
}

// Scratch for the values of all tiles of a batch.
inline View<3> all_tiles(Scratch& scratch, int channel_blocks, int tiles) {
  return scratch.view<3>({channel_blocks, kPoints3, tiles}, 2);
}

// A thread's scratch for 16 output channels of all tiles.
struct ChannelScratch {
  WeightScratch weights;
  View<2> products;  // [point][tile of the batch]
  OutputScratch output;

  ChannelScratch(ScratchParts& parts, const TileBlock& image, int tiles)
      : weights(parts), products(parts.take<2>({kPoints3, tiles}, 1)), output(parts, image, 1) {}
};

// Prefetches the vectors of all tiles at a point, [point][tile]: with 32 tiles the arrays are as
// large as L2. Inlined, because GCC removes calls of functions that only prefetch.
FC3D_INLINE void prefetch_point(const ConstView<2>& values, int point) {
  if (point == values.size(0)) return;
  for (int tile = 0; tile < values.size(1); ++tile) __builtin_prefetch(values(point, tile));
}

// Adds the products with 16 input channels, whose values are [point][tile], to those of 16 output
// channels, or begins the sums. `channels` at a time are transformed and multiplied.
inline void multiply_block(const ConstView<2>& values, const ChannelScratch& scratch, int channels,
                           bool begin) {
  const int tiles = values.size(1);
  const View<2>& slices = scratch.weights.slices;
  for (int px = 0; px < kPoints; ++px)
    for (int c = 0; c < kLanes; c += channels) {
      for (int i = 0; i < channels; ++i)
        transform_slice(scratch.weights.along_x(c + i, px, 0), slices(i, 0));
      const auto multiply = begin && c == 0 ? gemm_tiles<1, false> : gemm_tiles<1, true>;
      for (int i = 0; i < kPoints2; ++i) {
        const int point = px * kPoints2 + i;
        prefetch_point(values, point + 1);
        prefetch_point(scratch.products, point + 1);
        multiply(tiles, values(point, 0) + c, 0, 1, channels, slices(0, i), slices.stride(0),
                 scratch.products(point, 0), 0);
      }
    }
}

// The output transform of 16 output channels of an image.
template <typename Epilogue>
void output_of_image(const TileBlock& image, int k_block, const ChannelScratch& scratch,
                     const Epilogue& epilogue, const View<4>& out) {
  const ConstView<2> products = scratch.products;
  const OutputScratch& output = scratch.output;
  for (int px = 0; px < kPoints; ++px) {
    for (int py = 0; py < kPoints; ++py)
      output_along_z(image, values_of_image(products, px, py, image.batch, image.tiles()),
                     output.after_z[py]);
    output_along_y(image, output.after_z, output.after_y[px]);
  }
  output_along_x(image, output.after_y, k_block, epilogue, out);
}

// The loop order for few tiles: transform the input, then the blocks of output channels in
// parallel.
template <typename Epilogue>
void convolve_few_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                        const Weights& weights, float* y, const Epilogue& epilogue) {
  const Shape out{in.batch, weights.k_count, in.x, in.y, in.z};
  const int c_blocks = weights.c_blocks(), tiles = tiles_of_image(in) * in.batch;
  const View<3> values = all_tiles(workspace.shared, c_blocks, tiles);
  transform_all_tiles<InputTransform>(pool, workspace, in, x, values);
  const std::vector<TileBlock> images = tile_blocks(in, tiles_of_image(in));
  // With very few tiles the products fit in the caches; a channel count whose slices fit in L1 is
  // then faster.
  const int channels = tiles <= kSliceChannels ? kSliceChannels : kLanes;
  pool.for_each(weights.k_blocks(), [&](int k, int thread) {
    const auto scratch = lay_out<ChannelScratch>(workspace.per_thread[thread], images[0], tiles);
    for (int c = 0; c < c_blocks; ++c) {
      load_weight_block(weights, k, c, scratch.weights);
      multiply_block(values[c], scratch, channels, c == 0);
    }
    for (const TileBlock& image : images)
      output_of_image(image, k, scratch, epilogue, image_view(y, out, image.batch));
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

// ------------------------------------------------------------------------- weight gradient, few

// The sums over all tiles of the products of 16 input and 16 output channels, then the transposed
// weight transform: the filters of `scratch`. x and dy are [point][tile].
inline void gradient_of_channels(const ConstView<2>& x, const ConstView<2>& dy, int k_lanes,
                                 const WeightScratch& scratch) {
  const View<2>& slices = scratch.slices;
  for (int first = 0; first < kLanes; first += kSliceChannels) {
    for (int px = 0; px < kPoints; ++px) {
      for (int i = 0; i < kPoints2; ++i) {
        const int point = px * kPoints2 + i;
        outer_products<1>(x.size(1), x(point, 0) + first, kSliceChannels, dy(point, 0), 0,
                          slices(0, i), slices.stride(0), false);
      }
      for (int i = 0; i < kSliceChannels; ++i)
        gradient_of_slice(slices(i, 0), scratch.along_x(i, px, 0));
    }
    store_gradients(scratch, first, kSliceChannels, k_lanes);
  }
}

inline void weight_gradient_few_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in,
                                      const float* x, const Shape& out, const float* dy,
                                      float* dw) {
  const int c_blocks = in.blocks(), tiles = tiles_of_image(in) * in.batch;
  const View<3> x_values = all_tiles(workspace.shared, c_blocks, tiles);
  const View<3> y_values = all_tiles(workspace.shared_output, out.blocks(), tiles);
  transform_all_tiles<InputTransform>(pool, workspace, in, x, x_values);
  transform_all_tiles<GradientTransform>(pool, workspace, out, dy, y_values);
  pool.for_each(out.blocks() * c_blocks, [&](int item, int thread) {
    const int k = item / c_blocks, c = item % c_blocks;
    const auto scratch = lay_out<WeightScratch>(workspace.per_thread[thread], kSliceChannels);
    gradient_of_channels(x_values[c], y_values[k], std::min(kLanes, out.channels - k * kLanes),
                         scratch);
    store_weight_block(scratch, k, c, out.channels, in.channels, dw);
  });
}

// ------------------------------------------------------------------------ weight gradient, many

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

// A thread's scratch for one block of tiles.
struct GradientScratch {
  TransformScratch<InputTransform> x;
  TransformScratch<GradientTransform> y;
  View<3> x_values, y_values;

  GradientScratch(ScratchParts& parts, const Shape& in, const Shape& out, const TileBlock& block,
                  int points)
      : x(parts, in, block, in.blocks(), points),
        y(parts, out, block, out.blocks(), points),
        x_values(parts.take<3>({kPoints, in.blocks(), block.tiles()}, 1)),
        y_values(parts.take<3>({kPoints, out.blocks(), block.tiles()}, 1)) {}
};

// Adds the products of one point to its sums, or begins them. x and y are [channel block][tile].
inline void add_products(const ConstView<2>& x, const ConstView<2>& y, int point, bool begin,
                         const PackedWeights& sums) {
  assert(x.size(0) == sums.c_blocks && y.size(0) == sums.k_blocks && x.size(1) == y.size(1));
  for (int k = 0; k < sums.k_blocks; k += kNR)
    for (int c = 0; c < sums.c_blocks; ++c) {
      const View<1> sum = sums.block(point, k, c);
      const auto multiply = sums.k_blocks - k >= kNR ? outer_products<kNR> : outer_products<1>;
      multiply(x.size(1), x(c, 0), kLanes, y(k, 0), y.stride(0), sum(0), sum.stride(0), !begin);
    }
}

// Adds the products of a block of tiles, at the given points along x, to their sums.
inline void add_block(const TileBlock& block, const ConstView<4>& x, const ConstView<4>& dy,
                      PointSet points, const GradientScratch& scratch, bool begin,
                      const PackedWeights& sums) {
  transform_along_x(x, block, points, scratch.x);
  transform_along_x(dy, block, points, scratch.y);
  for (int i = 0; i < points.count; ++i) {
    transform_along_y<InputTransform>(block, scratch.x.after_x[i], scratch.x.after_y);
    transform_along_y<GradientTransform>(block, scratch.y.after_x[i], scratch.y.after_y);
    for (int py = 0; py < kPoints; ++py) {
      transform_along_z<InputTransform>(block, scratch.x.after_y[py], scratch.x_values);
      transform_along_z<GradientTransform>(block, scratch.y.after_y[py], scratch.y_values);
      for (int pz = 0; pz < kPoints; ++pz)
        add_products(scratch.x_values[pz], scratch.y_values[pz], point_of(points.first + i, py, pz),
                     begin, sums);
    }
  }
}

// Adds the sums of all ranges to those of the first.
inline void add_ranges(ThreadPool& pool, const PackedWeights& sums, int ranges) {
  pool.for_each(kPoints3, [&](int point, int) {
    float* total = sums.point(point);
    for (int range = 1; range < ranges; ++range) {
      const float* part = total + range * sums.floats();
      for (size_t i = 0; i < sums.point_stride() - kPad; i += kLanes)
        store(total + i, load(total + i) + load(part + i));
    }
  });
}

inline void weight_gradient_many_tiles(ThreadPool& pool, Workspace& workspace, const Shape& in,
                                       const float* x, const Shape& out, const float* dy,
                                       float* dw) {
  const std::vector<TileBlock> blocks = tile_blocks(in, gradient_block_tiles(in.channels));
  const auto [parts, ranges] = GradientSplit(pool.size(), static_cast<int>(blocks.size()));
  const int set_size = kPoints / parts;
  PackedWeights sums{nullptr, out.blocks(), in.blocks()};
  sums.data = workspace.shared.get(ranges * sums.floats());
  pool.for_each(parts * ranges, [&, parts = parts, ranges = ranges](int item, int thread) {
    const int range = item / parts;
    const PointSet points{item % parts * set_size, set_size};
    PackedWeights range_sums = sums;
    range_sums.data += range * sums.floats();
    const size_t begin = blocks.size() * range / ranges, end = blocks.size() * (range + 1) / ranges;
    for (size_t number = begin; number < end; ++number) {
      const TileBlock& block = blocks[number];
      const auto scratch =
          lay_out<GradientScratch>(workspace.per_thread[thread], in, out, block, points.count);
      add_block(block, image_view(x, in, block.batch), image_view(dy, out, block.batch), points,
                scratch, number == begin, range_sums);
    }
  });
  add_ranges(pool, sums, ranges);
  gradient_of_weights(pool, workspace, sums, out.channels, in.channels, dw);
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
