// A view of an array with strides.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>

#include "vector.h"

namespace fast_conv3d {

// Extra floats per stride, so that arrays that are read together do not map to the same cache sets.
constexpr size_t kPad = kLanes;

// An array of items, such as the 16 channels of a voxel, along `Rank` axes. view(i, j, ..) points
// to an item, view[i] is the view of the other axes. Debug builds check every index.
template <int Rank, typename T = float>
class View {
 public:
  using Sizes = std::array<int, Rank>;
  using Strides = std::array<size_t, Rank>;

  View() = default;
  View(T* data, const Sizes& sizes, const Strides& strides)
      : data_(data), sizes_(sizes), strides_(strides) {}
  template <typename Other>  // a view of constant floats of one of floats
  View(const View<Rank, Other>& other)
      : data_(other.data()), sizes_(other.sizes()), strides_(other.strides()) {}

  // Contiguous items of `item_floats`, except that `padded_axes` outer axes have padded strides.
  static View packed(T* data, const Sizes& sizes, int padded_axes = 0,
                     size_t item_floats = kLanes) {
    View view(data, sizes, {});
    for (int axis = Rank - 1; axis >= 0; --axis) {
      view.strides_[axis] = item_floats + (axis < padded_axes ? kPad : 0);
      item_floats = view.strides_[axis] * sizes[axis];
    }
    return view;
  }

  template <typename... Index>
  FC3D_INLINE T* operator()(Index... indices) const {
    static_assert(sizeof...(Index) == Rank, "one index for each axis");
    const std::array<int, Rank> index{static_cast<int>(indices)...};
    T* item = data_;
    for (int axis = 0; axis < Rank; ++axis) {
      assert(index[axis] >= 0 && index[axis] < sizes_[axis]);
      item += index[axis] * strides_[axis];
    }
    return item;
  }
  FC3D_INLINE View<Rank - 1, T> operator[](int index) const {
    assert(index >= 0 && index < sizes_[0]);
    std::array<int, Rank - 1> sizes;
    std::array<size_t, Rank - 1> strides;
    for (int axis = 1; axis < Rank; ++axis) {
      sizes[axis - 1] = sizes_[axis];
      strides[axis - 1] = strides_[axis];
    }
    return {data_ + index * strides_[0], sizes, strides};
  }

  T* data() const { return data_; }
  const Sizes& sizes() const { return sizes_; }
  const Strides& strides() const { return strides_; }
  int size(int axis) const { return sizes_[axis]; }
  size_t stride(int axis) const { return strides_[axis]; }
  size_t floats() const { return strides_[0] * sizes_[0]; }  // if the first axis is the outermost

 private:
  T* data_ = nullptr;
  Sizes sizes_{};
  Strides strides_{};
};

template <int Rank>
using ConstView = View<Rank, const float>;

}  // namespace fast_conv3d
