// The tiles of 4x4x4 outputs of a 5x5x5 convolution, and boxes of them.
#pragma once

#include <algorithm>
#include <vector>

#include "tensor.h"
#include "toom_cook.h"

namespace fast_conv3d {

constexpr int kVolumeTaps = kTaps * kTaps * kTaps;
constexpr int kPoints2 = kPoints * kPoints;
constexpr int kPoints3 = kPoints2 * kPoints;
constexpr int kFewTiles = 64;  // up to here the few-tiles loop order is faster

// The number of tiles of a block. With few channels, a block's intermediate results stay in L2.
// With many, the weights dominate: they pass through L2 once per block, so blocks are larger.
inline int block_tiles(int channels) { return channels < 128 ? 32 : 128; }
inline int gradient_block_tiles(int channels) { return channels < 128 ? 64 : 128; }

// The index of a point of a tile.
inline int point_of(int px, int py, int pz) { return (px * kPoints + py) * kPoints + pz; }

// A box of tiles of one image: its first tile and its number of tiles along each axis.
struct TileBlock {
  int batch, x, y, z, count_x, count_y, count_z;

  int tiles() const { return count_x * count_y * count_z; }
  int rows() const { return count_x * count_y; }
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

}  // namespace fast_conv3d
