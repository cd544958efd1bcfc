// Loads and stores of 16 neighbours along z of a plain tensor; fewer at the end of a row.
#pragma once

#include <cstring>

#include "vector.h"

namespace fast_conv3d {

// The first `count` floats (1 to 16); the other lanes are zero, or not stored.
FC3D_INLINE Vec load_first_of(const float* source, int count) {
  return count == kLanes ? load(source) : load_first(source, count);
}
FC3D_INLINE void store_first(float* target, int count, Vec value) {
  if (count == kLanes) return store(target, value);
  float lanes[kLanes];
  store(lanes, value);
  std::memcpy(target, lanes, count * sizeof(float));
}

// From voxel `first` on of a row of `z` voxels.
FC3D_INLINE Vec load_row(const float* row, int first, int z) {
  return first + kLanes <= z ? load(row + first) : load_first(row + first, z - first);
}
FC3D_INLINE void store_row(float* row, int first, int z, Vec value) {
  store_first(row + first, first + kLanes <= z ? kLanes : z - first, value);
}

}  // namespace fast_conv3d
