// The shape of a blocked tensor.
#pragma once

#include <cstddef>

#include "scratch.h"
#include "vector.h"
#include "view.h"

namespace fast_conv3d {

// The shape of a blocked tensor (batch, blocks(), x, y, z, 16); see vector.h.
struct Shape {
  int batch, channels, x, y, z;

  bool valid() const { return batch > 0 && channels > 0 && x > 0 && y > 0 && z > 0; }
  int blocks() const { return (channels + kLanes - 1) / kLanes; }
  size_t voxels() const { return static_cast<size_t>(x) * y * z; }
  size_t block_floats() const { return voxels() * kLanes; }
  size_t image_floats() const { return block_floats() * blocks(); }
  size_t floats() const { return image_floats() * batch; }
};

// One image of a blocked tensor: [channel block][x][y][z].
template <typename T>
View<4, T> image_view(T* data, const Shape& shape, int image) {
  return View<4, T>::packed(data + image * shape.image_floats(),
                            {shape.blocks(), shape.x, shape.y, shape.z});
}

}  // namespace fast_conv3d
