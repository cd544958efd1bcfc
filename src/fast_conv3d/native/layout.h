// Copies between plain and blocked tensors.
#pragma once

#include <algorithm>

#include "post_ops.h"

namespace fast_conv3d {

// Copies a plain tensor (batch, channels, x, y, z) to a blocked one.
inline void to_blocked(ThreadPool& pool, const float* plain, const Shape& shape, float* blocked) {
  for_each_chunk(pool, shape, Order::kForwards, [&](const Chunk& chunk) {
    const int lanes = std::min(kLanes, shape.channels - chunk.block * kLanes);
    const float* source =
        plain +
        (static_cast<size_t>(chunk.image) * shape.channels + chunk.block * kLanes) * shape.voxels();
    float* target = blocked + block_offset(shape, chunk.image, chunk.block);
    for (size_t voxel = chunk.begin; voxel < chunk.end; ++voxel) {
      float values[kLanes] = {};
      for (int lane = 0; lane < lanes; ++lane) values[lane] = source[lane * shape.voxels() + voxel];
      store(target + voxel * kLanes, load(values));
    }
  });
}

// Copies a blocked tensor to a plain one.
inline void to_plain(ThreadPool& pool, const float* blocked, const Shape& shape, float* plain) {
  for_each_chunk(pool, shape, Order::kForwards, [&](const Chunk& chunk) {
    const int lanes = std::min(kLanes, shape.channels - chunk.block * kLanes);
    const float* source = blocked + block_offset(shape, chunk.image, chunk.block);
    float* target =
        plain +
        (static_cast<size_t>(chunk.image) * shape.channels + chunk.block * kLanes) * shape.voxels();
    for (int lane = 0; lane < lanes; ++lane)
      for (size_t voxel = chunk.begin; voxel < chunk.end; ++voxel)
        target[lane * shape.voxels() + voxel] = source[voxel * kLanes + lane];
  });
}

}  // namespace fast_conv3d
