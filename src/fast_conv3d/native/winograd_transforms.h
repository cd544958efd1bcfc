// The transforms of a block of tiles: of the input, of the output gradient and of the output.
//
// Intermediate results have vectors of 16 channels as items:
//   after_x   [point x][tile x][channel block][y][z]       for the point x that are computed
//   after_y   [point y][channel block][row][z]             for one point x; row = (tile x, tile y)
//   values    [point z][channel block][tile]               for one point (x, y)
// and, on the way back,
//   products  [point z][k block][tile]                     for one point (x, y)
//   after_z   [point y][k block][row][z]                   for one point x
//   after_y   [point x][tile x][k block][y][z]
#pragma once

#include <cassert>

#include "tiles.h"

namespace fast_conv3d {

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

// Some of the points along x: those from `first` on.
struct PointSet {
  int first = 0, count = kPoints;
};

// A thread's scratch for the transform of a block of tiles.
template <typename Transform>
struct TransformScratch {
  View<5> after_x;
  View<4> after_y;
  View<1> zeros;  // a line of voxels outside the volume

  TransformScratch(ScratchParts& parts, const Shape& shape, const TileBlock& block,
                   int channel_blocks, int points = kPoints) {
    const int in_y = Transform::extent(block.count_y), in_z = Transform::extent(block.count_z);
    zeros = parts.take<1>({shape.z});
    after_x = parts.take<5>({points, block.count_x, channel_blocks, in_y, in_z}, 1);
    after_y = parts.take<4>({kPoints, channel_blocks, block.rows(), in_z}, 1);
  }
};

// The 8 (or 4) lines of an image along z, at consecutive x, of which line y of a tile is computed.
template <typename Transform>
void lines_along_x(const ConstView<4>& image, int channel, int first_x, int y, const float* zeros,
                   const float* (&lines)[Transform::kSize]) {
  for (int j = 0; j < Transform::kSize; ++j) {
    const int x = first_x + j;
    const bool inside = x >= 0 && x < image.size(1) && y >= 0 && y < image.size(2);
    lines[j] = inside ? image(channel, x, y, 0) : zeros;
  }
}

// Along x: image[channel block][x][y][z] -> after_x, for the given points. Voxels outside the
// volume are zero.
template <typename Transform>
void transform_along_x(const ConstView<4>& image, const TileBlock& block, PointSet points,
                       const TransformScratch<Transform>& scratch) {
  const View<5>& after_x = scratch.after_x;
  assert(points.first >= 0 && points.count == after_x.size(0));
  assert(points.first + points.count <= kPoints && image.size(0) == after_x.size(2));
  const float* zeros = scratch.zeros.data();
  std::fill_n(scratch.zeros.data(), scratch.zeros.floats(), 0.f);
  const size_t point_stride = after_x.stride(0);
  const int size_z = after_x.size(4), first_z = kOutputs * block.z - Transform::kPadding;
  const int begin = std::max(0, -first_z);
  const int end = std::max(begin, std::min(size_z, image.size(3) - first_z));
  for (int tile = 0; tile < block.count_x; ++tile)
    for (int channel = 0; channel < after_x.size(2); ++channel)
      for (int y = 0; y < after_x.size(3); ++y) {
        const float* lines[Transform::kSize];
        lines_along_x<Transform>(image, channel, kOutputs * (block.x + tile) - Transform::kPadding,
                                 kOutputs * block.y - Transform::kPadding + y, zeros, lines);
        for (int i = 0; i < points.count; ++i) {
          float* line = after_x(i, tile, channel, y, 0);
          std::fill(line, line + begin * kLanes, 0.f);
          std::fill(line + end * kLanes, line + size_z * kLanes, 0.f);
        }
        float* target = after_x(0, tile, channel, y, 0);
        for (int z = begin; z < end; ++z) {
          Vec in[Transform::kSize], out[kPoints];
          for (int j = 0; j < Transform::kSize; ++j)
            in[j] = load(lines[j] + (first_z + z) * kLanes);
          Transform::transform(in, out);
          float* voxel = target + z * kLanes;
          if (points.count == kPoints)
            store_all(voxel, point_stride, out);
          else
            for (int i = 0; i < points.count; ++i)
              store(voxel + i * point_stride, out[points.first + i]);
        }
      }
}

// Along y: one point's slice of after_x -> after_y.
template <typename Transform>
void transform_along_y(const TileBlock& block, const ConstView<4>& after_x,
                       const View<4>& after_y) {
  assert(after_x.size(1) == after_y.size(1) && after_x.size(3) == after_y.size(3));
  const size_t line = after_x.stride(2), point_stride = after_y.stride(0);
  for (int tile_x = 0; tile_x < block.count_x; ++tile_x)
    for (int channel = 0; channel < after_x.size(1); ++channel)
      for (int tile_y = 0; tile_y < block.count_y; ++tile_y) {
        const float* source = after_x(tile_x, channel, kOutputs * tile_y, 0);
        float* target = after_y(0, channel, tile_x * block.count_y + tile_y, 0);
        for (size_t i = 0; i < line; i += kLanes) {
          Vec in[Transform::kSize], out[kPoints];
          load_all(source + i, line, in);
          Transform::transform(in, out);
          store_all(target + i, point_stride, out);
        }
      }
}

// Along z: one point's slice of after_y -> values.
template <typename Transform>
void transform_along_z(const TileBlock& block, const ConstView<3>& after_y, const View<3>& values) {
  assert(values.size(0) == kPoints && values.size(1) == after_y.size(0));
  assert(values.size(2) == block.tiles());
  const size_t point_stride = values.stride(0);
  for (int channel = 0; channel < after_y.size(0); ++channel)
    for (int row = 0; row < block.rows(); ++row) {
      const float* source = after_y(channel, row, 0);
      float* target = values(0, channel, row * block.count_z);
      for (int tile = 0; tile < block.count_z; ++tile) {
        Vec in[Transform::kSize], out[kPoints];
        load_all(source + kOutputs * tile * kLanes, kLanes, in);
        Transform::transform(in, out);
        store_all(target + tile * kLanes, point_stride, out);
      }
    }
}

// A thread's scratch for the output transform of a block of tiles.
struct OutputScratch {
  View<4> after_z;
  View<5> after_y;

  OutputScratch(ScratchParts& parts, const TileBlock& block, int k_blocks) {
    after_z = parts.take<4>({kPoints, k_blocks, block.rows(), block.out_z()}, 1);
    after_y = parts.take<5>({kPoints, block.count_x, k_blocks, block.out_y(), block.out_z()}, 1);
  }
};

// Along z: products -> one point's slice of after_z.
inline void output_along_z(const TileBlock& block, const ConstView<3>& products,
                           const View<3>& after_z) {
  assert(products.size(0) == kPoints && products.size(1) == after_z.size(0));
  assert(products.size(2) == block.tiles());
  const size_t point_stride = products.stride(0);
  for (int k = 0; k < after_z.size(0); ++k) {
    const float* source = products(0, k, 0);
    float* target = after_z(k, 0, 0);
    for (int tile = 0; tile < block.tiles(); ++tile) {
      Vec in[kPoints], out[kOutputs];
      load_all(source + tile * kLanes, point_stride, in);
      transform_output(in, out);
      store_all(target + static_cast<size_t>(tile) * kOutputs * kLanes, kLanes, out);
    }
  }
}

// Along y: after_z -> one point's slice of after_y.
inline void output_along_y(const TileBlock& block, const ConstView<4>& after_z,
                           const View<4>& after_y) {
  assert(after_z.size(0) == kPoints && after_z.size(1) == after_y.size(1));
  const size_t line = after_y.stride(2), point_stride = after_z.stride(0);
  for (int tile_x = 0; tile_x < block.count_x; ++tile_x)
    for (int k = 0; k < after_y.size(1); ++k)
      for (int tile_y = 0; tile_y < block.count_y; ++tile_y) {
        const float* source = after_z(0, k, tile_x * block.count_y + tile_y, 0);
        float* target = after_y(tile_x, k, kOutputs * tile_y, 0);
        for (size_t i = 0; i < line; i += kLanes) {
          Vec in[kPoints], out[kOutputs];
          load_all(source + i, point_stride, in);
          transform_output(in, out);
          store_all(target + i, line, out);
        }
      }
}

// Along x: after_y -> the image[channel block][x][y][z], blocks from first_k_block on, through
// `epilogue(value, batch, k block, voxel)`.
template <typename Epilogue>
void output_along_x(const TileBlock& block, const ConstView<5>& after_y, int first_k_block,
                    const Epilogue& epilogue, const View<4>& image) {
  constexpr size_t kPrefetchVoxels = 32;  // prefetch distance
  assert(after_y.size(0) == kPoints && first_k_block + after_y.size(2) <= image.size(0));
  const size_t point_stride = after_y.stride(0);
  const size_t plane = image.stride(1) / kLanes;
  const int last_y = std::min(block.out_y(), image.size(2) - kOutputs * block.y);
  const int last_z = std::min(block.out_z(), image.size(3) - kOutputs * block.z);
  for (int tile_x = 0; tile_x < block.count_x; ++tile_x) {
    const int x = kOutputs * (block.x + tile_x);
    const int count = std::min(kOutputs, image.size(1) - x);
    for (int k = 0; k < after_y.size(2); ++k)
      for (int y = 0; y < last_y; ++y) {
        const float* source = after_y(0, tile_x, k, y, 0);
        float* target = image(first_k_block + k, 0, 0, 0);
        const size_t first_voxel =
            (image(first_k_block + k, x, kOutputs * block.y + y, kOutputs * block.z) - target) /
            kLanes;
        for (int z = 0; z < last_z; ++z) {
          for (int i = 0; i < kOutputs; ++i)  // in four distant planes
            __builtin_prefetch(target + (first_voxel + i * plane + z + kPrefetchVoxels) * kLanes,
                               1);
          Vec in[kPoints], out[kOutputs];
          load_all(source + z * kLanes, point_stride, in);
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

}  // namespace fast_conv3d
