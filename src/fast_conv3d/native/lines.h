// The micro-kernels over lines along z, whose voxels are in registers: direct sums of the 5 taps
// along z, for blocked tensors.
//
// A line has z voxels of 16 channels each. Of the 5 taps only those count that lead from one voxel
// of the line to another: 3 if it has two voxels, all from three voxels on.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <utility>
#include <vector>

#include "tiles.h"

namespace fast_conv3d {
namespace lines {

constexpr int kMaxZ = 6;  // voxels of a line
constexpr int kReach = kTaps / 2;

// How far the taps that count reach to both sides.
constexpr int reach(int z) { return z - 1 < kReach ? z - 1 : kReach; }

// A line of x and the line of y that it contributes to, in floats from the first one.
struct Pair {
  size_t x, y;
};
using Pairs = std::vector<Pair>;

// ------------------------------------------------------------------------------------ convolution

// The lines that the micro-kernel computes at once, in registers.
template <int Z>
constexpr int kLinesAtOnce = std::min(8, (kRegisterFloats == 16 ? 24 : 12) / Z);

// y[line][z] += sum over c and taps dz of filters[c][dz] * x[line][z + dz][c], for as many of the
// 16 channels of y as a register has. `filters` is at the first tap.
template <int Z, int Lines>
void multiply_lines(const float* const* x, int channels, const float* filters, size_t filter_stride,
                    float* const* y) {
  constexpr int kSide = reach(Z);
  Register sum[Lines][Z];
#pragma GCC unroll 8
  for (int line = 0; line < Lines; ++line)
#pragma GCC unroll 8
    for (int z = 0; z < Z; ++z) sum[line][z] = load_register(y[line] + z * kLanes);
  filters += (kReach - kSide) * kLanes;
  for (int c = 0; c < channels; ++c, filters += filter_stride) {
    Register taps[2 * kSide + 1];
#pragma GCC unroll 5
    for (int i = 0; i <= 2 * kSide; ++i) taps[i] = load_register(filters + i * kLanes);
#pragma GCC unroll 8
    for (int line = 0; line < Lines; ++line)
#pragma GCC unroll 8
      for (int from = 0; from < Z; ++from) {
        const Register value = x[line][from * kLanes + c] - Register{};
#pragma GCC unroll 8
        for (int z = 0; z < Z; ++z)
          if (std::abs(from - z) <= kSide) sum[line][z] += value * taps[from - z + kSide];
      }
  }
#pragma GCC unroll 8
  for (int line = 0; line < Lines; ++line)
#pragma GCC unroll 8
    for (int z = 0; z < Z; ++z) store_register(y[line] + z * kLanes, sum[line][z]);
}

template <int Z, int... Index>
constexpr auto multiply_kernels(std::integer_sequence<int, Index...>) {
  return std::array<decltype(&multiply_lines<Z, 1>), sizeof...(Index)>{
      multiply_lines<Z, Index + 1>...};
}

// For each pair of lines: y[z][16 k] += sum over the first `channels` c and taps dz of
// filters[c][dz][16 k] * x[z + dz][c].
template <int Z>
void multiply(const Pairs& pairs, const float* x, int channels, const float* filters,
              size_t filter_stride, float* y) {
  constexpr int kLines = kLinesAtOnce<Z>;
  static constexpr auto kKernels = multiply_kernels<Z>(std::make_integer_sequence<int, kLines>());
  const int count = static_cast<int>(pairs.size()), chunks = ceil_div(count, kLines);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int begin = count * chunk / chunks, end = count * (chunk + 1) / chunks;
    const float* from[kLines];
    float* to[kLines];
    for (int part = 0; part < kLanes; part += kRegisterFloats) {
      for (int i = begin; i < end; ++i) {
        from[i - begin] = x + pairs[i].x;
        to[i - begin] = y + pairs[i].y + part;
      }
      kKernels[end - begin - 1](from, channels, filters + part, filter_stride, to);
    }
  }
}

// -------------------------------------------------------------------------------- weight gradient

// The channels of x that the micro-kernel computes at once.
template <int Z>
constexpr int kChannelsAtOnce = kRegisterFloats == 16 ? (Z <= 2 ? 8 : 4) : (Z <= 2 ? 4 : 2);

// filters[c][dz] = sum over pairs of lines and z of x[z + dz][c] * y[z], for some c and as many of
// the 16 channels of y as a register has.
template <int Z>
void outer_lines(const Pairs& pairs, const float* x, const float* y, float* filters,
                 size_t filter_stride) {
  constexpr int kSide = reach(Z), kChannels = kChannelsAtOnce<Z>;
  Register sum[kChannels][kTaps];
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 5
    for (int i = 0; i < kTaps; ++i) sum[c][i] = Register{};
  for (const Pair& pair : pairs) {
    const float *from = x + pair.x, *to = y + pair.y;
    Register gradient[Z];
#pragma GCC unroll 8
    for (int z = 0; z < Z; ++z) gradient[z] = load_register(to + z * kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 8
      for (int z = 0; z < Z; ++z) {
        const Register value = from[z * kLanes + c] - Register{};
#pragma GCC unroll 8
        for (int i = 0; i < Z; ++i)
          if (std::abs(z - i) <= kSide) sum[c][z - i + kReach] += value * gradient[i];
      }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 5
    for (int i = 0; i < kTaps; ++i)
      store_register(filters + c * filter_stride + i * kLanes, sum[c][i]);
}

// filters[c][dz][16 k] = sum over the pairs of lines and z of x[z + dz][c] * y[z][16 k], for the
// first `channels` c, rounded up to at most 16.
template <int Z>
void outer_products(const Pairs& pairs, const float* x, const float* y, int channels,
                    float* filters, size_t filter_stride) {
  for (int part = 0; part < kLanes; part += kRegisterFloats)
    for (int c = 0; c < channels; c += kChannelsAtOnce<Z>)
      outer_lines<Z>(pairs, x + c, y + part, filters + c * filter_stride + part, filter_stride);
}

// -------------------------------------------------------------------------------------- by length

// The functions for lines of 1 to kMaxZ voxels.
struct Kernels {
  decltype(&multiply<1>) multiply;
  decltype(&outer_products<1>) outer_products;
};

template <int... Index>
constexpr std::array<Kernels, kMaxZ> all_kernels(std::integer_sequence<int, Index...>) {
  return {Kernels{multiply<Index + 1>, outer_products<Index + 1>}...};
}
inline const Kernels& kernels_of(int z) {
  static constexpr auto kAll = all_kernels(std::make_integer_sequence<int, kMaxZ>());
  assert(z > 0 && z <= kMaxZ);
  return kAll[z - 1];
}

}  // namespace lines
}  // namespace fast_conv3d
