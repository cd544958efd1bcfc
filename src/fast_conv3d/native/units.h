// A unit of the network: a convolution and the operations that follow it.
#pragma once

#include <algorithm>
#include <vector>

#include "few_voxels.h"
#include "plane_strided.h"
#include "plane_winograd.h"
#include "post_ops.h"
#include "strided.h"
#include "winograd.h"

namespace fast_conv3d {

// Threads and scratch memory, shared by all operators.
struct Runtime {
  explicit Runtime(int threads) : pool(threads), workspace(threads) {}
  ThreadPool pool;
  Workspace workspace;
  Scratch copy_of_x, copy_of_y;  // in another layout
  Scratch activations;           // of a whole network
  Scratch d_product;             // the gradient of what dropout has scaled
  Scratch of_image;              // the gradients of a layer's parameters, of one image of several
};

// The convolutions, by the layout of their tensors. `in` and `out` are the shapes of x and y.
template <typename Epilogue>
void convolve5(ThreadPool& pool, Workspace& workspace, const Shape& in, const float* x,
               const Weights& weights, const Shape& out, float* y, const Epilogue& epilogue) {
  if (in.plain || out.plain)
    plane::convolve(pool, workspace, in, x, weights, out, y, epilogue);
  else if (few_voxels::are_few(in))
    few_voxels::convolve(pool, workspace, in, x, weights, y, epilogue);
  else
    convolve(pool, workspace, in, x, weights, y, epilogue);
}
inline void weight_gradient5(ThreadPool& pool, Workspace& workspace, const Shape& in,
                             const float* x, const Shape& out, const float* dy, float* dw) {
  const auto gradient = in.plain || out.plain     ? plane::weight_gradient
                        : few_voxels::are_few(in) ? few_voxels::weight_gradient
                                                  : weight_gradient;
  gradient(pool, workspace, in, x, out, dy, dw);
}
template <typename Epilogue>
void down2(ThreadPool& pool, Workspace& workspace, const Shape& fine, const float* x,
           const float* weights, const Shape& coarse, float* y, const Epilogue& epilogue) {
  const auto down =
      fine.plain ? plane_strided::conv_down2<Epilogue> : strided::conv_down2<Epilogue>;
  down(pool, workspace, fine, x, weights, coarse, y, epilogue);
}
template <typename Epilogue>
void up2(ThreadPool& pool, Workspace& workspace, const Shape& coarse, const float* x,
         const float* weights, const Shape& fine, float* y, const Epilogue& epilogue) {
  const auto up = fine.plain ? plane_strided::conv_up2<Epilogue> : strided::conv_up2<Epilogue>;
  up(pool, workspace, coarse, x, weights, fine, y, epilogue);
}
inline void weight_gradient2(ThreadPool& pool, Workspace& workspace, const Shape& coarse,
                             const float* coarse_data, const Shape& fine, const float* fine_data,
                             float* dw) {
  const auto gradient = fine.plain ? plane_strided::weight_gradient : strided::weight_gradient;
  gradient(pool, workspace, coarse, coarse_data, fine, fine_data, dw);
}

// An epilogue that adds a bias, unless null.
class AddBias {
 public:
  AddBias(const float* bias, const Shape& shape) {
    for (int block = 0; block < shape.blocks(); ++block)
      blocks_.push_back(block_parameters(shape, bias, block));
  }
  FC3D_INLINE Vec operator()(Vec value, int, int block, size_t) const {
    return value + blocks_[block];
  }

 private:
  std::vector<Vec> blocks_;
};

// An epilogue that applies the post-ops with the given statistics.
class PostOpsEpilogue {
 public:
  template <typename Statistic>
  PostOpsEpilogue(const PostOps& post_ops, const Statistic* mean, const Statistic* variance,
                  const float* bias)
      : blocks_(post_ops.shape.blocks()), vector_voxels_(post_ops.shape.plain ? kLanes : 1) {
    for (int image = 0; image < post_ops.shape.batch; ++image)
      for (int block = 0; block < blocks_; ++block)
        post_ops_.emplace_back(post_ops, image, block, mean, variance, bias);
  }
  FC3D_INLINE Vec operator()(Vec value, int image, int block, size_t voxel) const {
    return post_ops_[image * blocks_ + block](value, voxel / vector_voxels_);
  }

 private:
  int blocks_;
  size_t vector_voxels_;
  std::vector<BlockPostOps> post_ops_;
};

// An epilogue that stores the value as it is.
struct NoEpilogue {
  FC3D_INLINE Vec operator()(Vec value, int, int, size_t) const { return value; }
};

// The convolution of a layer: 5x5x5, or 2x2x2 with stride 2, transposed where it goes up.
enum class Kind { kConv5, kConvDown2, kConvUp2 };

struct Unit {
  Kind kind;
  Shape x{}, y{};                  // of the convolution's input and output
  const float* source = nullptr;   // x
  const float* weights = nullptr;  // (y channels, x channels, taps); kConvUp2: (x, y, taps)
  const float* bias = nullptr;     // (y channels), or null
  PostOps post_ops;

  // target = epilogue(convolution of source), where epilogue(value, image, block, voxel) returns
  // the vector to store.
  template <typename Epilogue>
  void convolution(Runtime& runtime, float* target, const Epilogue& epilogue) const {
    switch (kind) {
      case Kind::kConv5:
        return convolve5(runtime.pool, runtime.workspace, x, source,
                         Weights::forward(weights, y.channels, x.channels), y, target, epilogue);
      case Kind::kConvDown2:
        return down2(runtime.pool, runtime.workspace, x, source, weights, y, target, epilogue);
      case Kind::kConvUp2:
        return up2(runtime.pool, runtime.workspace, x, source, weights, y, target, epilogue);
    }
  }
};

// The shape of the output of a unit's convolution.
inline Shape convolved_shape(Kind kind, const Shape& x, int out_channels) {
  const auto scaled = [&](int side) {
    return kind == Kind::kConvDown2 ? side / 2 : kind == Kind::kConvUp2 ? 2 * side : side;
  };
  return Shape::between_units(x.batch, out_channels, scaled(x.x), scaled(x.y), scaled(x.z));
}

// Evaluation: `out` gets the unit's output, with the post-ops fused into the convolution. mean and
// variance are those of the norm, not read without norm.
template <typename Statistic>
void infer_unit(Runtime& runtime, const Unit& unit, const Statistic* mean,
                const Statistic* variance, float* out) {
  const PostOpsEpilogue epilogue(unit.post_ops, mean, variance, unit.bias);
  if (unit.post_ops.interleaves()) {
    float* y = runtime.copy_of_y.get(unit.y.floats());
    unit.convolution(runtime, y, epilogue);
    return interleave(runtime.pool, unit.post_ops, y, NoEpilogue(), out);
  }
  const bool has_skip = unit.post_ops.skip != nullptr;
  if (!has_skip || unit.y.batch == 1) {
    unit.convolution(runtime, out, epilogue);
  } else {  // the convolution assumes contiguous images, but out has the skip's blocks in between
    for (int image = 0; image < unit.y.batch; ++image) {
      Unit one = unit;
      one.x.batch = one.y.batch = 1;
      one.source = unit.source + image * unit.x.image_floats();
      one.convolution(runtime, out + image * unit.post_ops.out_shape().image_floats(),
                      [&](Vec value, int, int block, size_t voxel) {
                        return epilogue(value, image, block, voxel);
                      });
    }
  }
  if (has_skip) concat_forward(runtime.pool, unit.post_ops, out);
}

// The unit's convolution and the statistics of its output, if it has a norm. The norm would
// subtract the bias again: it is then not added to y.
inline void convolve_with_statistics(Runtime& runtime, const Unit& unit, float* y, double* mean,
                                     double* variance) {
  const bool has_norm = unit.post_ops.gamma != nullptr;
  unit.convolution(runtime, y, AddBias(has_norm ? nullptr : unit.bias, unit.y));
  if (has_norm) batch_statistics(runtime.pool, y, unit.y, mean, variance);
}

}  // namespace fast_conv3d
