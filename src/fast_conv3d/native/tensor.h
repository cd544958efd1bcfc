// The shape of a blocked tensor, and scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vector.h"

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

// A buffer that grows to the largest request and is reused. It asks for huge pages, because the
// kernels read from many distant addresses at once and would miss in the TLB. Not thread-safe.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // Returns at least `floats` floats, uninitialized. Throws std::bad_alloc.
  float* get(size_t floats) {
    if (floats > size_) {
      std::free(data_);
      size_ = 0;
      data_ = nullptr;
      const size_t bytes = floats * sizeof(float);
      void* memory = nullptr;
      if (posix_memalign(&memory, kAlignment, bytes) != 0) throw std::bad_alloc();
      data_ = static_cast<float*>(memory);
#if defined(__linux__)
      madvise(data_, bytes, MADV_HUGEPAGE);
#endif
      size_ = floats;
    }
    return data_;
  }

 private:
  static constexpr size_t kAlignment = size_t{2} << 20;
  float* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fast_conv3d
