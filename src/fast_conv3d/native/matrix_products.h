// The micro-kernels: matrix products over the channels of a block of tiles.
#pragma once

#include <array>
#include <cassert>
#include <utility>

#include "tiles.h"

namespace fast_conv3d {

// The tile of the micro-kernel, in registers: kMR tiles of voxels by kNR blocks of output channels.
constexpr int kMR = kRegisterFloats == 16 ? 12 : 6;
constexpr int kNR = kRegisterFloats == 16 ? 2 : 1;

// product[NR][MR tiles][16 k] (+)= sum over c of input[c block][tile][c] * weights[c][NR][16 k],
// over the first `channels` c of each block. The unroll pragmas are needed: GCC would otherwise
// turn the loops that load or store accumulators into calls of memcpy.
template <int MR, int NR, bool Accumulate>
void gemm_microkernel(const float* input, size_t input_stride, int c_blocks, int channels,
                      const float* weights, size_t weight_stride, float* product,
                      size_t product_stride) {
  Vec sum[MR][NR];
#pragma GCC unroll 16
  for (int t = 0; t < MR; ++t)
    for (int g = 0; g < NR; ++g)
      sum[t][g] = Accumulate ? load(product + g * product_stride + t * kLanes) : zero();
  for (int block = 0; block < c_blocks; ++block, input += input_stride)
    for (int c = 0; c < channels; ++c, weights += weight_stride) {
      Vec w[NR];
      for (int g = 0; g < NR; ++g) w[g] = load(weights + g * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < MR; ++t) {
        const Vec value = broadcast(input[t * kLanes + c]);
        for (int g = 0; g < NR; ++g) sum[t][g] += value * w[g];
      }
    }
#pragma GCC unroll 16
  for (int t = 0; t < MR; ++t)
    for (int g = 0; g < NR; ++g) store(product + g * product_stride + t * kLanes, sum[t][g]);
}

using GemmMicrokernel = decltype(&gemm_microkernel<1, 1, false>);

// The micro-kernels for 1 .. kMR tiles.
template <int NR, bool Accumulate, int... Index>
constexpr std::array<GemmMicrokernel, kMR> gemm_microkernels(std::integer_sequence<int, Index...>) {
  return {gemm_microkernel<Index + 1, NR, Accumulate>...};
}

// gemm_microkernel over all tiles, in chunks of nearly equal size.
template <int NR, bool Accumulate>
void gemm_tiles(int tiles, const float* input, size_t input_stride, int c_blocks, int channels,
                const float* weights, size_t weight_stride, float* product, size_t product_stride) {
  static constexpr auto kKernels =
      gemm_microkernels<NR, Accumulate>(std::make_integer_sequence<int, kMR>());
  assert(tiles > 0 && c_blocks > 0 && channels > 0 && channels <= kLanes);
  const int chunks = ceil_div(tiles, kMR);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int begin = tiles * chunk / chunks, end = tiles * (chunk + 1) / chunks;
    kKernels[end - begin - 1](input + begin * kLanes, input_stride, c_blocks, channels, weights,
                              weight_stride, product + begin * kLanes, product_stride);
  }
}

// The matrix product of one point, for all tiles and output channels: input[c block][tile],
// product[k block][tile]. `weights` are those of the point in `PackedWeights`.
inline void gemm_point(const ConstView<2>& input, const float* weights, const View<2>& product) {
  const int tiles = input.size(1), c_blocks = input.size(0), k_blocks = product.size(0);
  assert(tiles > 0 && product.size(1) == tiles && weights != nullptr);
  for (int k = 0; k < k_blocks; k += kNR) {
    const float* group = weights + static_cast<size_t>(k) * c_blocks * kLanes * kLanes;
    const bool whole = k_blocks - k >= kNR;
    const auto multiply = whole ? gemm_tiles<kNR, false> : gemm_tiles<1, false>;
    multiply(tiles, input.data(), input.stride(0), c_blocks, kLanes, group,
             (whole ? kNR : 1) * kLanes, product(k, 0), product.stride(0));
  }
}

// gradient[c][NR][16 k] (+)= sum over tiles of input[tile][c] * output[tile][k], for the first
// `channels` c, a multiple of 8.
template <int NR>
void outer_products(int tiles, const float* input, int channels, const float* output,
                    size_t output_stride, float* gradient, size_t gradient_stride,
                    bool accumulate) {
  constexpr int kChannels = kRegisterFloats == 16 ? 8 : 4;
  assert(tiles > 0 && channels % kChannels == 0);
  for (int c = 0; c < channels; c += kChannels) {
    float* target = gradient + c * gradient_stride;
    Vec sum[kChannels][NR];
#pragma GCC unroll 8
    for (int i = 0; i < kChannels; ++i)
      for (int g = 0; g < NR; ++g) sum[i][g] = zero();
    for (int t = 0; t < tiles; ++t) {
      Vec value[NR];
      for (int g = 0; g < NR; ++g) value[g] = load(output + g * output_stride + t * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kChannels; ++i) {
        const Vec scale = broadcast(input[t * kLanes + c + i]);
        for (int g = 0; g < NR; ++g) sum[i][g] += scale * value[g];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kChannels; ++i)
      for (int g = 0; g < NR; ++g) {
        float* lanes = target + i * gradient_stride + g * kLanes;
        store(lanes, accumulate ? load(lanes) + sum[i][g] : sum[i][g]);
      }
  }
}

}  // namespace fast_conv3d
