// Written by src/fast_conv3d/toom_cook.py: change that, not this.
// 1-D transforms of Toom-Cook F(4, 5) at the points 0, 1, -1, 2, -2, 1/2, -1/2, infinity.
#pragma once

#include "vector.h"

// clang-format off
namespace fast_conv3d {

constexpr int kOutputs = 4;  // of a tile, along one axis
constexpr int kTaps = 5;
constexpr int kPoints = 8;

// B^T: 8 inputs to their values at the points.
FC3D_INLINE void transform_input(const Vec (&in)[8], Vec (&out)[8]) {
  out[0] = 5.25f * in[2] + in[6] - in[0] - 5.25f * in[4];
  const Vec even1 = in[2] + in[6] - 4.25f * in[4];
  const Vec odd1 = in[1] + in[5] - 4.25f * in[3];
  out[1] = even1 + odd1;
  out[2] = even1 - odd1;
  const Vec even3 = 0.25f * in[2] + in[6] - 1.25f * in[4];
  const Vec odd3 = 0.5f * in[1] + 2.0f * in[5] - 2.5f * in[3];
  out[3] = even3 + odd3;
  out[4] = even3 - odd3;
  const Vec even5 = 4.0f * in[2] + in[6] - 5.0f * in[4];
  const Vec odd5 = 2.0f * in[1] + 0.5f * in[5] - 2.5f * in[3];
  out[5] = even5 + odd5;
  out[6] = even5 - odd5;
  out[7] = 5.25f * in[3] + in[7] - in[1] - 5.25f * in[5];
}

// G: 5 taps to their values at the points.
FC3D_INLINE void transform_kernel(const Vec (&in)[5], Vec (&out)[8]) {
  out[0] = -in[0];
  const Vec even1 = -0.2222222222222222f * in[0] - 0.2222222222222222f * in[2] - 0.2222222222222222f * in[4];
  const Vec odd1 = -0.2222222222222222f * in[1] - 0.2222222222222222f * in[3];
  out[1] = even1 + odd1;
  out[2] = even1 - odd1;
  const Vec even3 = 0.011111111111111112f * in[0] + 0.044444444444444446f * in[2] + 0.17777777777777778f * in[4];
  const Vec odd3 = 0.022222222222222223f * in[1] + 0.08888888888888889f * in[3];
  out[3] = even3 + odd3;
  out[4] = even3 - odd3;
  const Vec even5 = 0.7111111111111111f * in[0] + 0.17777777777777778f * in[2] + 0.044444444444444446f * in[4];
  const Vec odd5 = 0.35555555555555557f * in[1] + 0.08888888888888889f * in[3];
  out[5] = even5 + odd5;
  out[6] = even5 - odd5;
  out[7] = in[4];
}

// A^T: 8 products at the points to 4 outputs.
FC3D_INLINE void transform_output(const Vec (&in)[8], Vec (&out)[4]) {
  const Vec sum1 = in[1] + in[2];
  const Vec difference1 = in[1] - in[2];
  const Vec sum3 = in[3] + in[4];
  const Vec difference3 = in[3] - in[4];
  const Vec sum5 = in[5] + in[6];
  const Vec difference5 = in[5] - in[6];
  out[0] = in[0] + sum1 + sum3 + sum5;
  out[1] = difference1 + 2.0f * difference3 + 0.5f * difference5;
  out[2] = sum1 + 4.0f * sum3 + 0.25f * sum5;
  out[3] = in[7] + difference1 + 8.0f * difference3 + 0.125f * difference5;
}

// A: the gradient of 4 outputs to that of the 8 products.
FC3D_INLINE void transform_output_gradient(const Vec (&in)[4], Vec (&out)[8]) {
  out[0] = in[0];
  const Vec even1 = in[0] + in[2];
  const Vec odd1 = in[1] + in[3];
  out[1] = even1 + odd1;
  out[2] = even1 - odd1;
  const Vec even3 = in[0] + 4.0f * in[2];
  const Vec odd3 = 2.0f * in[1] + 8.0f * in[3];
  out[3] = even3 + odd3;
  out[4] = even3 - odd3;
  const Vec even5 = in[0] + 0.25f * in[2];
  const Vec odd5 = 0.5f * in[1] + 0.125f * in[3];
  out[5] = even5 + odd5;
  out[6] = even5 - odd5;
  out[7] = in[3];
}

// G^T: the gradient at 8 points to that of the 5 taps.
FC3D_INLINE void transform_kernel_gradient(const Vec (&in)[8], Vec (&out)[5]) {
  const Vec sum1 = in[1] + in[2];
  const Vec difference1 = in[1] - in[2];
  const Vec sum3 = in[3] + in[4];
  const Vec difference3 = in[3] - in[4];
  const Vec sum5 = in[5] + in[6];
  const Vec difference5 = in[5] - in[6];
  out[0] = 0.011111111111111112f * sum3 + 0.7111111111111111f * sum5 - in[0] - 0.2222222222222222f * sum1;
  out[1] = 0.022222222222222223f * difference3 + 0.35555555555555557f * difference5 - 0.2222222222222222f * difference1;
  out[2] = 0.044444444444444446f * sum3 + 0.17777777777777778f * sum5 - 0.2222222222222222f * sum1;
  out[3] = 0.08888888888888889f * difference3 + 0.08888888888888889f * difference5 - 0.2222222222222222f * difference1;
  out[4] = in[7] + 0.17777777777777778f * sum3 + 0.044444444444444446f * sum5 - 0.2222222222222222f * sum1;
}

}  // namespace fast_conv3d
// clang-format on
