// 5x5x5 convolution, stride 1, same padding, of few voxels, over blocked tensors: the lowest
// levels, where there are many weights and hardly any voxels.
//
// Transforming the weights along all three axes costs more there than the products that it saves.
// So each weight is read once: a thread takes the filters of 16 x 16 channels through all steps in
// its caches, while it prefetches the next ones. Along z all sums are direct, see lines.h; along x
// and y they are one of
// - `Direct`: at each of 25 taps, the lines that it connects are multiplied. Within 4x4 voxels half
//   of the taps lead outside, and cost nothing.
// - `Tiled`: Toom-Cook F(4, 5), as in winograd.h, of tiles of 4x4 voxels: at each of 64 points, a
//   line of every tile is multiplied.
//
// The input gradient is the same convolution with flipped and transposed weights. The weight
// gradient takes the same steps backwards.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>

#include "lines.h"
#include "tensor.h"
#include "thread_pool.h"
#include "winograd_transforms.h"
#include "winograd_weights.h"

namespace fast_conv3d {
namespace few_voxels {

using lines::Pairs;

inline size_t line_floats(const Shape& shape) { return static_cast<size_t>(shape.z) * kLanes; }

// ----------------------------------------------------------------------------------------- direct

// Multiplies lines of the tensors as they are. Like those of `Tiled`, its filters of 16 channels k
// are [place][dz][16 k], where a place is a tap along x and y.
class Direct {
 public:
  static constexpr int kPlaces = kTaps * kTaps;

  // For y = convolution of x.
  Direct(const Shape& in, const float* x)
      : Direct(in, x, in.image_floats(), nullptr, in.block_floats()) {}
  // For the weight gradient.
  Direct(const Shape& in, const float* x, const Shape& out, const float* dy)
      : Direct(in, x, in.image_floats(), dy, out.image_floats()) {}

  // The lines to multiply at a place: of x, and of dy or `sums`, relative to those of a block.
  const Pairs& pairs(int place) const { return pairs_[place]; }
  const float* x(int block, int) const { return x_ + block * shape_.block_floats(); }
  const float* dy(int block, int) const { return dy_ + block * shape_.block_floats(); }
  // Of 16 channels of y: [image][voxel], the same at all places.
  size_t sum_floats() const { return shape_.batch * shape_.block_floats(); }
  float* sums(float* all, int) const { return all; }

  static void load_filter(const float* data, size_t stride, int lanes, bool flipped,
                          float* filter) {
    taps_from_filters(data, stride, lanes, flipped, filter);
  }
  static void store_filter(const float* filter, size_t stride, int lanes, float* data) {
    filters_from_taps(filter, stride, lanes, data);
  }
  // The sums of a block of y's channels -> y, through `epilogue`.
  template <typename Epilogue>
  void write(const float* sums, int block, const Epilogue& epilogue, const Shape& out,
             float* y) const {
    const int voxels = static_cast<int>(out.voxels());
    const ConstView<2> source = ConstView<2>::packed(sums, {out.batch, voxels});
    for (int image = 0; image < out.batch; ++image) {
      const View<4> target = image_view(y, out, image);
      for (int voxel = 0; voxel < voxels; ++voxel)
        store(target(block, 0, 0, 0) + voxel * kLanes,
              epilogue(load(source(image, voxel)), image, block, voxel));
    }
  }

 private:
  Direct(const Shape& shape, const float* x, size_t x_image, const float* dy, size_t y_image)
      : shape_(shape), x_(x), dy_(dy) {
    for (int place = 0; place < kPlaces; ++place) {
      const int dx = place / kTaps - lines::kReach, dy = place % kTaps - lines::kReach;
      for (int image = 0; image < shape.batch; ++image)
        for (int i = std::max(0, -dx); i < std::min(shape.x, shape.x - dx); ++i)
          for (int j = std::max(0, -dy); j < std::min(shape.y, shape.y - dy); ++j) {
            const size_t to = i * shape.y + j, from = (i + dx) * shape.y + j + dy;
            pairs_[place].push_back({image * x_image + from * line_floats(shape),
                                     image * y_image + to * line_floats(shape)});
          }
    }
  }

  Shape shape_;  // of x; only its channels differ from y's
  const float *x_, *dy_;
  std::array<Pairs, kPlaces> pairs_;
};

// ------------------------------------------------------------------------------------------ tiled

// G along x and y: the taps of a filter -> [point x, y][dz][16 k]; and its transpose.
inline void transform_filter(const float* taps, float* filter) {
  float along_x[kPoints * kPlaneStride];
  transform_taps(taps, along_x);
  for (int px = 0; px < kPoints; ++px)
    for (int z = 0; z < kTaps; ++z) {
      Vec in[kTaps], out[kPoints];
      load_all(along_x + px * kPlaneStride + z * kLanes, kTaps * kLanes, in);
      transform_kernel(in, out);
      store_all(filter + (px * kPoints * kTaps + z) * kLanes, kTaps * kLanes, out);
    }
}
inline void gradient_of_filter(const float* filter, float* taps) {
  float along_x[kPoints * kPlaneStride];
  for (int px = 0; px < kPoints; ++px)
    for (int z = 0; z < kTaps; ++z) {
      Vec in[kPoints], out[kTaps];
      load_all(filter + (px * kPoints * kTaps + z) * kLanes, kTaps * kLanes, in);
      transform_kernel_gradient(in, out);
      store_all(along_x + px * kPlaneStride + z * kLanes, kTaps * kLanes, out);
    }
  gradient_of_taps(along_x, taps);
}

// The tiles of 4x4 voxels along x and y of a batch, over all z.
struct TileGrid {
  int batch, x, y;

  explicit TileGrid(const Shape& shape)
      : batch(shape.batch), x(ceil_div(shape.x, kOutputs)), y(ceil_div(shape.y, kOutputs)) {}
  int count() const { return batch * x * y; }
  int image(int tile) const { return tile / (x * y); }
  int first_x(int tile) const { return tile / y % x * kOutputs; }  // of its voxels
  int first_y(int tile) const { return tile % y * kOutputs; }
};

// Bt or A along x and y of one tile and voxel along z: a block of an image, [x][y][z] -> out.
template <typename Transform>
void transform_tile(const ConstView<3>& block, int first_x, int first_y, int z,
                    Vec (&out)[kPoints][kPoints]) {
  constexpr int kSize = Transform::kSize;
  Vec after_x[kPoints][kSize];
  for (int j = 0; j < kSize; ++j) {
    const int y = first_y + j - Transform::kPadding;
    Vec in[kSize], points[kPoints];
    for (int i = 0; i < kSize; ++i) {
      const int x = first_x + i - Transform::kPadding;
      const bool inside = x >= 0 && x < block.size(0) && y >= 0 && y < block.size(1);
      in[i] = inside ? load(block(x, y, z)) : zero();
    }
    Transform::transform(in, points);
    for (int px = 0; px < kPoints; ++px) after_x[px][j] = points[px];
  }
  for (int px = 0; px < kPoints; ++px) Transform::transform(after_x[px], out[px]);
}

// All tiles of a tensor: [block][point x, y][tile][z].
template <typename Transform>
View<4> transform_tiles(ThreadPool& pool, Scratch& scratch, const Shape& shape, const float* data) {
  const TileGrid grid(shape);
  const View<4> values = scratch.view<4>({shape.blocks(), kPoints2, grid.count(), shape.z}, 2);
  pool.for_each(shape.blocks() * grid.count(), [&](int item, int) {
    const int block = item / grid.count(), tile = item % grid.count();
    const ConstView<4> image = image_view(data, shape, grid.image(tile));
    for (int z = 0; z < shape.z; ++z) {
      Vec out[kPoints][kPoints];
      transform_tile<Transform>(image[block], grid.first_x(tile), grid.first_y(tile), z, out);
      for (int px = 0; px < kPoints; ++px)
        store_all(values(block, px * kPoints, tile, z), values.stride(1), out[px]);
    }
  });
  return values;
}

// Multiplies transformed lines; a place is a point along x and y. See Direct.
class Tiled {
 public:
  static constexpr int kPlaces = kPoints2;

  Tiled(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x)
      : grid_(in), x_(transform_tiles<InputTransform>(pool, workspace.shared, in, x)) {
    for (int tile = 0; tile < grid_.count(); ++tile) {
      const size_t line = tile * line_floats(in);
      pairs_.push_back({line, line});
    }
  }
  Tiled(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x, const Shape& out,
        const float* dy)
      : Tiled(pool, workspace, in, x) {
    dy_ = transform_tiles<GradientTransform>(pool, workspace.shared_output, out, dy);
  }

  const Pairs& pairs(int) const { return pairs_; }
  const float* x(int block, int place) const { return x_(block, place, 0, 0); }
  const float* dy(int block, int place) const { return dy_(block, place, 0, 0); }
  size_t sum_floats() const { return sum_view(static_cast<float*>(nullptr)).floats(); }
  float* sums(float* all, int place) const { return sum_view(all)(place, 0, 0); }

  static void load_filter(const float* data, size_t stride, int lanes, bool flipped,
                          float* filter) {
    float taps[kVolumeTaps * kLanes];
    taps_from_filters(data, stride, lanes, flipped, taps);
    transform_filter(taps, filter);
  }
  static void store_filter(const float* filter, size_t stride, int lanes, float* data) {
    float taps[kVolumeTaps * kLanes];
    gradient_of_filter(filter, taps);
    filters_from_taps(taps, stride, lanes, data);
  }
  template <typename Epilogue>
  void write(const float* sums, int block, const Epilogue& epilogue, const Shape& out,
             float* y) const {
    for (int tile = 0; tile < grid_.count(); ++tile)
      for (int z = 0; z < out.z; ++z) write_tile(sum_view(sums), tile, z, block, epilogue, out, y);
  }

 private:
  // [point x, y][tile][z]
  template <typename T>
  View<3, T> sum_view(T* data) const {
    return View<3, T>::packed(data, {kPlaces, grid_.count(), x_.size(3)}, 1);
  }

  // At along y and x of one tile and voxel along z.
  template <typename Epilogue>
  void write_tile(const ConstView<3>& sums, int tile, int z, int block, const Epilogue& epilogue,
                  const Shape& out, float* y) const {
    Vec after_y[kOutputs][kPoints];
    for (int px = 0; px < kPoints; ++px) {
      Vec in[kPoints], rows[kOutputs];
      load_all(sums(px * kPoints, tile, z), sums.stride(0), in);
      transform_output(in, rows);
      for (int j = 0; j < kOutputs; ++j) after_y[j][px] = rows[j];
    }
    const int image = grid_.image(tile), first_x = grid_.first_x(tile);
    const int first_y = grid_.first_y(tile);
    const View<4> target = image_view(y, out, image);
    for (int j = 0; j < std::min(kOutputs, out.y - first_y); ++j) {
      Vec voxels[kOutputs];
      transform_output(after_y[j], voxels);
      for (int i = 0; i < std::min(kOutputs, out.x - first_x); ++i) {
        float* at = target(block, first_x + i, first_y + j, z);
        store(at, epilogue(voxels[i], image, block, (at - target(block, 0, 0, 0)) / kLanes));
      }
    }
  }

  TileGrid grid_;
  View<4> x_, dy_;
  Pairs pairs_;
};

// ------------------------------------------------------------------------------------- the passes

// Prefetches the filters of 16 x 16 channels, if there are any, in equal steps.
class FilterPrefetch {
 public:
  FilterPrefetch(const Weights& weights, int k_block, int c_block, int steps) : steps_(steps) {
    if (c_block >= weights.c_blocks()) return;
    const int k = k_block * kLanes, c = c_block * kLanes;
    data_ = weights.data + k * weights.k_stride + c * weights.c_stride;
    const int k_lanes = std::min(kLanes, weights.k_count - k);
    const int c_lanes = std::min(kLanes, weights.c_count - c);
    // The filters of a row are contiguous.
    const bool k_rows = weights.c_stride == kVolumeTaps;
    rows_ = k_rows ? k_lanes : c_lanes;
    row_stride_ = k_rows ? weights.k_stride : weights.c_stride;
    row_lines_ = ceil_div((k_rows ? c_lanes : k_lanes) * kVolumeTaps, kLineFloats);
  }
  // Inlined, because GCC removes calls of functions that only prefetch.
  FC3D_INLINE void step(int number) const {
    const int count = rows_ * row_lines_;
    for (int i = count * number / steps_; i < count * (number + 1) / steps_; ++i)
      __builtin_prefetch(data_ + i / row_lines_ * row_stride_ + i % row_lines_ * kLineFloats, 0, 2);
  }

 private:
  static constexpr int kLineFloats = 16;  // of a cache line
  int steps_, rows_ = 0, row_lines_ = 1;
  size_t row_stride_ = 0;
  const float* data_ = nullptr;
};

// A thread's scratch for 16 output channels: filters [c][place][dz], 16 k each.
struct LineScratch {
  View<3> filters;
  float* sums;

  LineScratch(ScratchParts& parts, int places, size_t sum_floats)
      : filters(parts.take<3>({kLanes, places, kTaps})), sums(parts.take(sum_floats)) {}
};

// y = epilogue(convolution of x), for 16 output channels after the other, in parallel.
template <typename Method, typename Epilogue>
void convolve_by(const Method& method, ThreadPool& pool, Workspace& workspace,
                 const Weights& weights, const Shape& out, float* y, const Epilogue& epilogue) {
  const auto multiply = lines::kernels_of(out.z).multiply;
  pool.for_each(weights.k_blocks(), [&](int k, int thread) {
    const auto scratch =
        lay_out<LineScratch>(workspace.per_thread[thread], Method::kPlaces, method.sum_floats());
    const auto& [filters, sums] = scratch;
    std::fill_n(sums, method.sum_floats(), 0.f);
    const float* source = weights.data + k * kLanes * weights.k_stride;
    for (int c = 0; c < weights.c_blocks(); ++c) {
      const int channels = std::min(kLanes, weights.c_count - c * kLanes);
      for (int i = 0; i < channels; ++i)
        Method::load_filter(source + (c * kLanes + i) * weights.c_stride, weights.k_stride,
                            std::min(kLanes, weights.k_count - k * kLanes), weights.flipped,
                            filters(i, 0, 0));
      const FilterPrefetch next(weights, k, c + 1, Method::kPlaces);
      for (int place = 0; place < Method::kPlaces; ++place) {
        next.step(place);
        multiply(method.pairs(place), method.x(c, place), channels, filters(0, place, 0),
                 filters.stride(0), method.sums(sums, place));
      }
    }
    method.write(sums, k, epilogue, out, y);
  });
}

template <typename Method>
void weight_gradient_by(const Method& method, ThreadPool& pool, Workspace& workspace,
                        const Shape& in, const Shape& out, float* dw) {
  const auto outer_products = lines::kernels_of(in.z).outer_products;
  const size_t k_stride = static_cast<size_t>(in.channels) * kVolumeTaps;
  pool.for_each(out.blocks() * in.blocks(), [&](int item, int thread) {
    const int k = item / in.blocks(), c = item % in.blocks();
    const auto scratch =
        lay_out<LineScratch>(workspace.per_thread[thread], Method::kPlaces, size_t{0});
    const View<3>& filters = scratch.filters;
    const int channels = std::min(kLanes, in.channels - c * kLanes);
    for (int place = 0; place < Method::kPlaces; ++place)
      outer_products(method.pairs(place), method.x(c, place), method.dy(k, place), channels,
                     filters(0, place, 0), filters.stride(0));
    float* target = dw + k * kLanes * k_stride + c * kLanes * kVolumeTaps;
    for (int i = 0; i < channels; ++i)
      Method::store_filter(filters(i, 0, 0), k_stride, std::min(kLanes, out.channels - k * kLanes),
                           target + i * kVolumeTaps);
  });
}

// --------------------------------------------------------------------------------------- choosing

// The multiply-adds of a convolution for each pair of channels.
struct Cost {
  int direct, tiled, winograd;  // the last by winograd.h

  explicit Cost(const Shape& shape) {
    const int tiles = TileGrid(shape).count();
    direct = shape.batch * along(shape.x) * along(shape.y) * along(shape.z);
    tiled = kPoints2 * tiles * along(shape.z);
    winograd = kPoints3 * tiles * ceil_div(shape.z, kOutputs);
  }

 private:
  // The taps along an axis that lead from a voxel to another one.
  static int along(int side) {
    int count = 0;
    for (int tap = -lines::kReach; tap <= lines::kReach; ++tap)
      count += std::max(0, side - std::abs(tap));
    return count;
  }
};

// What the transforms of a filter cost, in multiply-adds: along x and y, and then along z.
constexpr int kTransforms = 1300, kTransformsAlongZ = kRegisterFloats == 16 ? 1300 : 1600;
// What multiply-adds of winograd.h cost, which load and store more.
constexpr double kWinogradCost = kRegisterFloats == 16 ? 1.5 : 1.1;
constexpr int kMaxTiles = 32;  // the sums of a thread stay in L2

inline bool is_direct(const Shape& shape) {
  const Cost cost(shape);
  return cost.direct <= cost.tiled + kTransforms;
}

// Whether the convolution is faster here than by winograd.h; measured with 64 to 256 channels.
inline bool are_few(const Shape& shape) {
  if (shape.z > lines::kMaxZ || TileGrid(shape).count() > kMaxTiles) return false;
  const Cost cost(shape);
  return std::min(cost.tiled, cost.direct - kTransforms) <=
         kWinogradCost * cost.winograd + kTransformsAlongZ;
}

// As fast_conv3d::convolve, for a shape that are_few.
template <typename Epilogue>
void convolve(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
              const Weights& weights, float* y, const Epilogue& epilogue) {
  assert(in.valid() && !in.plain && are_few(in));
  assert(weights.k_count > 0 && weights.c_count == in.channels);
  assert(x != nullptr && weights.data != nullptr && y != nullptr);
  const Shape out{in.batch, weights.k_count, in.x, in.y, in.z};
  if (is_direct(in))
    convolve_by(Direct(in, x), pool, workspace, weights, out, y, epilogue);
  else
    convolve_by(Tiled(pool, workspace, in, x), pool, workspace, weights, out, y, epilogue);
}

// As fast_conv3d::weight_gradient, for a shape that are_few.
inline void weight_gradient(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
                            const Shape& out, const float* dy, float* dw) {
  assert(in.valid() && !in.plain && out.valid() && !out.plain && are_few(in));
  assert(in.batch == out.batch && in.x == out.x && in.y == out.y && in.z == out.z);
  assert(x != nullptr && dy != nullptr && dw != nullptr);
  if (is_direct(in))
    weight_gradient_by(Direct(in, x, out, dy), pool, workspace, in, out, dw);
  else
    weight_gradient_by(Tiled(pool, workspace, in, x, out, dy), pool, workspace, in, out, dw);
}

}  // namespace few_voxels
}  // namespace fast_conv3d
