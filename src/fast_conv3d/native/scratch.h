// Scratch memory of the kernels.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "view.h"

namespace fast_conv3d {

// Asks for huge pages in memory that has not been used yet: the kernels read from many distant
// addresses at once and would miss in the TLB.
inline void use_huge_pages([[maybe_unused]] float* data, [[maybe_unused]] size_t floats) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = ceil_div(reinterpret_cast<uintptr_t>(data), kPage) * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data + floats) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// A buffer that grows to the largest request and is reused, in huge pages. Not thread-safe.
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
      use_huge_pages(data_, floats);
      size_ = floats;
    }
    return data_;
  }
  // The same as a view of vectors; see View::packed.
  template <int Rank>
  View<Rank> view(const std::array<int, Rank>& sizes, int padded_axes = 0) {
    const size_t floats = View<Rank>::packed(nullptr, sizes, padded_axes).floats();
    return View<Rank>::packed(get(floats), sizes, padded_axes);
  }

 private:
  static constexpr size_t kAlignment = size_t{2} << 20;
  float* data_ = nullptr;
  size_t size_ = 0;
};

// Divides an allocation into parts; with a null base it only computes the total size.
class ScratchParts {
 public:
  explicit ScratchParts(float* base = nullptr) : base_(base) {}

  float* take(size_t floats) {
    float* part = base_ == nullptr ? nullptr : base_ + used_;
    used_ += ceil_div(floats, kLanes) * kLanes + kPad;
    return part;
  }
  template <int Rank>
  View<Rank> take(const std::array<int, Rank>& sizes, int padded_axes = 0) {
    const size_t floats = View<Rank>::packed(nullptr, sizes, padded_axes).floats();
    return View<Rank>::packed(take(floats), sizes, padded_axes);
  }
  size_t used() const { return used_; }

 private:
  float* base_;
  size_t used_ = 0;
};

// A struct of scratch arrays, Layout(ScratchParts&, arguments..), in a buffer.
template <typename Layout, typename... Arguments>
Layout lay_out(Scratch& scratch, const Arguments&... arguments) {
  ScratchParts count;
  [[maybe_unused]] const Layout sizes(count, arguments...);
  ScratchParts parts(scratch.get(count.used()));
  return Layout(parts, arguments...);
}

// Scratch memory of the passes, shared and per thread. It grows to what the largest layer needs.
struct Workspace {
  explicit Workspace(int threads) : per_thread(threads) {}
  Scratch shared, shared_output;
  std::vector<Scratch> per_thread;
};

}  // namespace fast_conv3d
