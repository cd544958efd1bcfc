// The shapes of tensors.
#pragma once

#include <cstddef>

#include "scratch.h"
#include "vector.h"
#include "view.h"

namespace fast_conv3d {

// The shape of a tensor. It is blocked, (batch, blocks(), x, y, z, 16), see vector.h; or plain,
// (batch, channels, x, y, z), where its blocks are its channels and a Vec holds 16 neighbours along
// z.
struct Shape {
  int batch, channels, x, y, z;
  bool plain = false;

  // Of a tensor between units: plain where it has few channels and rows of whole vectors.
  static Shape between_units(int batch, int channels, int x, int y, int z) {
    return {batch, channels, x, y, z, channels <= kPlainChannels && z % kLanes == 0};
  }
  // The shape between units of a tensor with the same voxels.
  Shape with_channels(int count) const { return between_units(batch, count, x, y, z); }

  bool valid() const { return batch > 0 && channels > 0 && x > 0 && y > 0 && z > 0; }
  size_t voxels() const { return static_cast<size_t>(x) * y * z; }
  int blocks() const { return plain ? channels : ceil_div(channels, kLanes); }
  int voxel_floats() const { return plain ? 1 : kLanes; }  // of a block
  size_t block_floats() const { return voxels() * voxel_floats(); }
  size_t image_floats() const { return block_floats() * blocks(); }
  size_t floats() const { return image_floats() * batch; }

  // The Vecs of a block, of a blocked tensor or of one between units.
  size_t vectors() const { return block_floats() / kLanes; }
  int block_channels() const { return plain ? 1 : kLanes; }
  // The channel of a lane; in a blocked tensor it may be past the last one.
  int channel(int block, int lane) const { return plain ? block : block * kLanes + lane; }
};

// One image of a tensor: [block][x][y][z], with 16 floats at each place, or one if it is plain.
template <typename T>
View<4, T> image_view(T* data, const Shape& shape, int image) {
  return View<4, T>::packed(data + image * shape.image_floats(),
                            {shape.blocks(), shape.x, shape.y, shape.z}, 0,
                            static_cast<size_t>(shape.voxel_floats()));
}

// Sums of several parts of the work, `floats` apart. They are added in a fixed order.
struct PartSums {
  int parts;
  size_t floats;

  // The total of 16 sums that the first part has at `lanes`.
  Vec total(const float* lanes) const {
    Vec sum = load(lanes);
    for (int part = 1; part < parts; ++part) sum += load(lanes + part * floats);
    return sum;
  }
};

}  // namespace fast_conv3d
