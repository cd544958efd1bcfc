// The 2x2x2 convolution with stride 2 and its transpose.
//
// Each voxel of the coarse grid covers eight voxels ("taps") of the fine grid, whose sides are
// twice as long.
//
//   conv_down2  computes coarse from fine: the forward pass of nn.Conv3d and the input gradient of
//               nn.Conv3dTranspose
//   conv_up2    computes fine from coarse: the forward pass of nn.Conv3dTranspose and the input
//               gradient of nn.Conv3d
//
// The weights are (coarse channels, fine channels, 2, 2, 2) in both, the layout of either cell.
// Taps do not overlap, so both are matrix products. The inputs of kMR voxels are packed
// contiguously, and a micro-kernel computes kMR voxels x kNR Vecs of outputs over all input
// channels (and taps).
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>

#include "tensor.h"
#include "thread_pool.h"
#include "vector.h"

namespace fast_conv3d {
namespace strided {

constexpr int kTaps = 8;

// The tile of the micro-kernel, in registers: kMR voxels by kNR Vecs of output channels.
constexpr int kMR = kParts == 1 ? 12 : 6;
constexpr int kNR = kParts == 1 ? 2 : 1;
constexpr int kTileFloats = kMR * kLanes;  // packed inputs of one block of channels

// An item of work: tiles that use the same weights while these are in the cache.
constexpr int kMaxItemTiles = 16;
constexpr size_t kItemFloats = 48 * 1024;  // packed inputs: a fraction of the L2 cache

// Whether the fine grid is that of the coarse one's taps.
inline bool covers(const Shape& fine, const Shape& coarse) {
  return fine.valid() && coarse.valid() && fine.batch == coarse.batch && fine.x == 2 * coarse.x &&
         fine.y == 2 * coarse.y && fine.z == 2 * coarse.z;
}

// The fine voxel of the first tap of each of `count` coarse voxels from `voxel` on.
inline void first_tap_voxels(const Shape& coarse, size_t voxel, int count, size_t* fine_voxels) {
  int z = static_cast<int>(voxel % coarse.z), y = static_cast<int>(voxel / coarse.z % coarse.y);
  size_t row = (voxel / coarse.z / coarse.y * 2 * coarse.y + y) * 4 * coarse.z;
  for (int i = 0; i < count; ++i) {
    fine_voxels[i] = row + 2 * z;
    if (++z < coarse.z) continue;
    z = 0;
    row += 4 * coarse.z;  // skips the odd row
    if (++y < coarse.y) continue;
    y = 0;
    row += 4 * static_cast<size_t>(coarse.y) * coarse.z;  // skips the odd plane
  }
}

// The offset of a tap (x, y, z in its three bits) from the first tap, in fine voxels.
inline size_t tap_offset(const Shape& fine, int tap) {
  return (static_cast<size_t>(tap >> 2) * fine.y + (tap >> 1 & 1)) * fine.z + (tap & 1);
}

// Calls set(coarse_block, fine_block, coarse_lane, fine_lane, tap, weight) for each weight of all
// blocks, with weight 0 past the last channel.
template <typename Set>
void for_each_weight(ThreadPool& pool, const float* weights, int coarse_channels, int coarse_blocks,
                     int fine_channels, int fine_blocks, const Set& set) {
  pool.for_each(coarse_blocks * fine_blocks, [&](int item, int) {
    const int coarse_block = item / fine_blocks, fine_block = item % fine_blocks;
    for (int i = 0; i < kLanes; ++i)
      for (int j = 0; j < kLanes; ++j) {
        const size_t k = coarse_block * kLanes + i, c = fine_block * kLanes + j;
        const bool inside = k < size_t(coarse_channels) && c < size_t(fine_channels);
        for (int tap = 0; tap < kTaps; ++tap)
          set(coarse_block, fine_block, i, j, tap,
              inside ? weights[(k * fine_channels + c) * kTaps + tap] : 0.f);
      }
  });
}

// sums[voxel][vector] = sum over channels of inputs[block][voxel][lane] * weights[channel][vector],
// for kMR voxels and kNR vectors.
inline void gemm_microkernel(const float* inputs, int blocks, const float* weights, Vec* sums) {
  Vec sum[kMR][kNR];
#pragma GCC unroll 16
  for (int voxel = 0; voxel < kMR; ++voxel)
#pragma GCC unroll 16
    for (int i = 0; i < kNR; ++i) sum[voxel][i] = zero();
  for (int block = 0; block < blocks; ++block, inputs += kTileFloats)
    for (int lane = 0; lane < kLanes; ++lane, weights += kNR * kLanes)
#pragma GCC unroll 16
      for (int voxel = 0; voxel < kMR; ++voxel)
#pragma GCC unroll 16
        for (int i = 0; i < kNR; ++i)
          sum[voxel][i] += inputs[voxel * kLanes + lane] * load(weights + i * kLanes);
#pragma GCC unroll 16
  for (int voxel = 0; voxel < kMR; ++voxel)
#pragma GCC unroll 16
    for (int i = 0; i < kNR; ++i) sums[voxel * kNR + i] = sum[voxel][i];
}

// Multiplies every tile of kMR voxels by every group of kNR Vecs of outputs. `weights` are packed
// as (group, input channel, vector, 16), with `blocks` blocks of input channels. pack(image, voxel,
// count, fine_voxels, inputs) packs a tile's inputs as (block, kMR, 16); write(image, voxel, count,
// fine_voxels, group, sums) stores a tile's sums.
template <typename Pack, typename Write>
void gemm(ThreadPool& pool, const Shape& coarse, int blocks, int groups, const float* weights,
          float* inputs, const Pack& pack, const Write& write) {
  const size_t tile_floats = static_cast<size_t>(blocks) * kTileFloats;
  const size_t group_floats = static_cast<size_t>(blocks) * kLanes * kNR * kLanes;
  const size_t tiles = ceil_div(coarse.voxels(), kMR);
  // Small enough items that the threads finish together.
  const size_t fair = tiles * coarse.batch / (4 * pool.size());
  const size_t item_tiles =
      std::max<size_t>(1, std::min({size_t{kMaxItemTiles}, kItemFloats / tile_floats, fair}));
  const int image_items = static_cast<int>(ceil_div(tiles, item_tiles));
  pool.for_each(coarse.batch * image_items, [&](int item, int thread) {
    float* item_inputs = inputs + thread * std::max(kItemFloats, tile_floats);
    const int image = item / image_items;
    const size_t first = item % image_items * item_tiles;
    const int count = static_cast<int>(std::min(item_tiles, tiles - first));
    size_t fine_voxels[kMaxItemTiles * kMR];
    const auto tile_voxels = [&](size_t voxel) {
      return static_cast<int>(std::min<size_t>(kMR, coarse.voxels() - voxel));
    };
    for (int tile = 0; tile < count; ++tile) {
      const size_t voxel = (first + tile) * kMR;
      size_t* tile_fine_voxels = fine_voxels + tile * kMR;
      first_tap_voxels(coarse, voxel, tile_voxels(voxel), tile_fine_voxels);
      pack(image, voxel, tile_voxels(voxel), tile_fine_voxels, item_inputs + tile * tile_floats);
    }
    for (int group = 0; group < groups; ++group)
      for (int tile = 0; tile < count; ++tile) {
        const size_t voxel = (first + tile) * kMR;
        Vec sums[kMR * kNR];
        gemm_microkernel(item_inputs + tile * tile_floats, blocks, weights + group * group_floats,
                         sums);
        write(image, voxel, tile_voxels(voxel), fine_voxels + tile * kMR, group, sums);
      }
  });
}

// Scratch for packed inputs of all threads.
inline size_t input_floats(const ThreadPool& pool, int blocks) {
  return pool.size() * std::max(kItemFloats, static_cast<size_t>(blocks) * kTileFloats);
}

// y[k][v] = epilogue(sum over c, tap of weights[k][c][tap] * x[c][2 v + tap]); `fine` and `coarse`
// are the shapes of x and y. epilogue(value, image, block, voxel) returns the vector to store, with
// zeros in the lanes past the last channel.
template <typename Epilogue>
void conv_down2(ThreadPool& pool, Workspace& workspace, const Shape& fine, const float* x,
                const float* weights, const Shape& coarse, float* y, const Epilogue& epilogue) {
  assert(covers(fine, coarse) && !fine.plain && !coarse.plain);
  assert(x != nullptr && weights != nullptr && y != nullptr);
  const int blocks = fine.blocks() * kTaps;
  const int groups = ceil_div(coarse.blocks(), kNR);
  const size_t packed_floats = static_cast<size_t>(groups) * blocks * kLanes * kNR * kLanes;
  float* packed = workspace.shared.get(packed_floats + input_floats(pool, blocks));
  for_each_weight(pool, weights, coarse.channels, groups * kNR, fine.channels, fine.blocks(),
                  [&](int k_block, int c_block, int k, int c, int tap, float weight) {
                    size_t at = static_cast<size_t>(k_block / kNR) * blocks;
                    at = (at + c_block * kTaps + tap) * kLanes + c;
                    packed[(at * kNR + k_block % kNR) * kLanes + k] = weight;
                  });
  gemm(
      pool, coarse, blocks, groups, packed, packed + packed_floats,
      [&](int image, size_t, int count, const size_t* fine_voxels, float* inputs) {
        for (int block = 0; block < blocks; ++block, inputs += kTileFloats) {
          const float* source = x + image * fine.image_floats() +
                                block / kTaps * fine.block_floats() +
                                tap_offset(fine, block % kTaps) * kLanes;
          for (int i = 0; i < count; ++i)
            store(inputs + i * kLanes, load(source + fine_voxels[i] * kLanes));
          std::fill(inputs + count * kLanes, inputs + kTileFloats, 0.f);
        }
      },
      [&](int image, size_t voxel, int count, const size_t*, int group, const Vec* sums) {
        for (int i = 0; i < kNR; ++i) {
          const int block = group * kNR + i;
          if (block >= coarse.blocks()) break;
          float* target =
              y + image * coarse.image_floats() + block * coarse.block_floats() + voxel * kLanes;
          for (int j = 0; j < count; ++j)
            store(target + j * kLanes, epilogue(sums[j * kNR + i], image, block, voxel + j));
        }
      });
}

// y[c][2 v + tap] = epilogue(sum over k of weights[k][c][tap] * x[k][v]); `coarse` and `fine` are
// the shapes of x and y. epilogue as in conv_down2.
template <typename Epilogue>
void conv_up2(ThreadPool& pool, Workspace& workspace, const Shape& coarse, const float* x,
              const float* weights, const Shape& fine, float* y, const Epilogue& epilogue) {
  assert(covers(fine, coarse) && !fine.plain && !coarse.plain);
  assert(x != nullptr && weights != nullptr && y != nullptr);
  const int blocks = coarse.blocks();
  const int groups = fine.blocks() * kTaps / kNR;
  const size_t packed_floats = static_cast<size_t>(groups) * blocks * kLanes * kNR * kLanes;
  float* packed = workspace.shared.get(packed_floats + input_floats(pool, blocks));
  for_each_weight(pool, weights, coarse.channels, blocks, fine.channels, fine.blocks(),
                  [&](int k_block, int c_block, int k, int c, int tap, float weight) {
                    const int vector = c_block * kTaps + tap;
                    size_t at = static_cast<size_t>(vector / kNR) * blocks + k_block;
                    at = (at * kLanes + k) * kNR + vector % kNR;
                    packed[at * kLanes + c] = weight;
                  });
  gemm(
      pool, coarse, blocks, groups, packed, packed + packed_floats,
      [&](int image, size_t voxel, int count, const size_t*, float* inputs) {
        const float* source = x + image * coarse.image_floats() + voxel * kLanes;
        for (int block = 0; block < blocks; ++block, inputs += kTileFloats) {
          std::copy_n(source + block * coarse.block_floats(), count * kLanes, inputs);
          std::fill(inputs + count * kLanes, inputs + kTileFloats, 0.f);
        }
      },
      [&](int image, size_t, int count, const size_t* fine_voxels, int group, const Vec* sums) {
        const int block = group * kNR / kTaps;
        float* target = y + image * fine.image_floats() + block * fine.block_floats();
        for (int j = 0; j < count; ++j)
          for (int i = 0; i < kNR; ++i) {
            const size_t voxel = fine_voxels[j] + tap_offset(fine, (group * kNR + i) % kTaps);
            store(target + voxel * kLanes, epilogue(sums[j * kNR + i], image, block, voxel));
          }
      });
}

// The tile of the weight gradient's micro-kernel: kGradientMR coarse channels by kNR Vecs of (tap,
// fine channels).
constexpr int kGradientMR = kParts == 1 ? 8 : 4;
// Voxels summed in registers before they are added to an item's sums: two levels of summation lose
// less to rounding than one long sum.
constexpr int kGradientVoxels = 128;

// sums[row][vector] += sum over voxels of coarse[voxel][row] * fine[voxel][vector].
inline void gradient_microkernel(const float* coarse, const float* fine, int voxels, float* sums) {
  Vec sum[kGradientMR][kNR];
#pragma GCC unroll 16
  for (int row = 0; row < kGradientMR; ++row)
#pragma GCC unroll 16
    for (int i = 0; i < kNR; ++i) sum[row][i] = zero();
  for (int voxel = 0; voxel < voxels; ++voxel)
#pragma GCC unroll 16
    for (int row = 0; row < kGradientMR; ++row)
#pragma GCC unroll 16
      for (int i = 0; i < kNR; ++i)
        sum[row][i] += coarse[voxel * kLanes + row] * load(fine + (voxel * kNR + i) * kLanes);
#pragma GCC unroll 16
  for (int row = 0; row < kGradientMR; ++row)
#pragma GCC unroll 16
    for (int i = 0; i < kNR; ++i) {
      float* target = sums + (row * kNR + i) * kLanes;
      store(target, load(target) + sum[row][i]);
    }
}

constexpr int kGroups = kTaps / kNR;

// The sums of one part of the voxels: [coarse block][fine block][group of kNR taps][row], kNR Vecs
// of fine channels.
inline View<4> gradient_sums(float* data, int k_blocks, int c_blocks) {
  return View<4>::packed(data, {k_blocks, c_blocks, kGroups, kLanes}, 0, kNR * kLanes);
}

// The work is split by voxels and, where there are few voxels and many weights, by coarse channels
// too. Each part of the voxels has its own sums, which are added in a fixed order at the end.
struct GradientSplit {
  size_t image_runs, runs;  // of kGradientVoxels
  int parts, k_parts;

  GradientSplit(const Shape& coarse, size_t part_floats, int threads) {
    constexpr size_t kMaxPartFloats = 1 << 20;
    image_runs = ceil_div(coarse.voxels(), kGradientVoxels);
    runs = image_runs * coarse.batch;
    const size_t items = 4 * threads;
    parts = static_cast<int>(
        std::max<size_t>(1, std::min({runs, items, kMaxPartFloats / part_floats})));
    k_parts = std::min<int>(coarse.blocks(), ceil_div(static_cast<int>(items), parts));
  }
};

// Copies the fine voxels of a group of kNR taps: target[voxel][tap].
inline void copy_taps(const float* source, const Shape& fine, int group, const size_t* fine_voxels,
                      int count, float* target) {
  for (int i = 0; i < kNR; ++i) {
    const size_t offset = tap_offset(fine, group * kNR + i);
    for (int j = 0; j < count; ++j)
      store(target + (j * kNR + i) * kLanes, load(source + (fine_voxels[j] + offset) * kLanes));
  }
}

// Adds a run of coarse voxels of an image, from `voxel` on, to the sums, for coarse blocks in
// [k_begin, k_end). `copy` is scratch.
inline void add_run(const Shape& coarse, const float* coarse_data, const Shape& fine,
                    const float* fine_data, size_t voxel, int k_begin, int k_end, float* copy,
                    const View<4>& sums) {
  const int count = static_cast<int>(std::min<size_t>(kGradientVoxels, coarse.voxels() - voxel));
  size_t fine_voxels[kGradientVoxels];
  first_tap_voxels(coarse, voxel, count, fine_voxels);
  for (int c_block = 0; c_block < fine.blocks(); ++c_block)
    for (int group = 0; group < kGroups; ++group) {
      copy_taps(fine_data + c_block * fine.block_floats(), fine, group, fine_voxels, count, copy);
      for (int k_block = k_begin; k_block < k_end; ++k_block)
        for (int row = 0; row < kLanes; row += kGradientMR)
          gradient_microkernel(coarse_data + k_block * coarse.block_floats() + voxel * kLanes + row,
                               copy, count, sums(k_block, c_block, group, row));
    }
}

// Writes the sums of all parts as (coarse channels, fine channels, 2, 2, 2). `first` are those of
// the first part.
inline void write_weights(ThreadPool& pool, const PartSums& all, const View<4>& first,
                          int coarse_channels, int fine_channels, float* dw) {
  const int c_blocks = first.size(1);
  pool.for_each(first.size(0) * c_blocks, [&](int pair, int) {
    const int k_block = pair / c_blocks, c_block = pair % c_blocks;
    const int k_first = k_block * kLanes, c_first = c_block * kLanes;
    for (int row = 0; row < std::min(kLanes, coarse_channels - k_first); ++row) {
      float taps[kTaps][kLanes];
      for (int tap = 0; tap < kTaps; ++tap)
        store(taps[tap], all.total(first(k_block, c_block, tap / kNR, row) + tap % kNR * kLanes));
      float* target = dw + (static_cast<size_t>(k_first + row) * fine_channels + c_first) * kTaps;
      for (int c = 0; c < std::min(kLanes, fine_channels - c_first); ++c)
        for (int tap = 0; tap < kTaps; ++tap) target[c * kTaps + tap] = taps[tap][c];
    }
  });
}

// dw[k][c][tap] = sum over batch and voxels of coarse_data[k][v] * fine_data[c][2 v + tap].
inline void weight_gradient(ThreadPool& pool, Workspace& workspace, const Shape& coarse,
                            const float* coarse_data, const Shape& fine, const float* fine_data,
                            float* dw) {
  assert(covers(fine, coarse) && !fine.plain && !coarse.plain);
  assert(coarse_data != nullptr && fine_data != nullptr && dw != nullptr);
  const int k_blocks = coarse.blocks(), c_blocks = fine.blocks();
  const size_t part_floats = gradient_sums(nullptr, k_blocks, c_blocks).floats();
  const GradientSplit split(coarse, part_floats, pool.size());
  const int parts = split.parts, k_parts = split.k_parts;
  constexpr size_t kCopyFloats = size_t{kGradientVoxels} * kNR * kLanes;

  float* copies = workspace.shared.get(pool.size() * kCopyFloats + parts * part_floats);
  float* part_sums = copies + pool.size() * kCopyFloats;
  std::fill_n(part_sums, parts * part_floats, 0.f);
  pool.for_each(parts * k_parts, [&](int item, int thread) {
    const int part = item / k_parts, k_part = item % k_parts;
    const int k_begin = k_blocks * k_part / k_parts, k_end = k_blocks * (k_part + 1) / k_parts;
    const View<4> sums = gradient_sums(part_sums + part * part_floats, k_blocks, c_blocks);
    for (size_t run = split.runs * part / parts; run < split.runs * (part + 1) / parts; ++run) {
      const size_t image = run / split.image_runs, voxel = run % split.image_runs * kGradientVoxels;
      add_run(coarse, coarse_data + image * coarse.image_floats(), fine,
              fine_data + image * fine.image_floats(), voxel, k_begin, k_end,
              copies + thread * kCopyFloats, sums);
    }
  });

  write_weights(pool, {parts, part_floats}, gradient_sums(part_sums, k_blocks, c_blocks),
                coarse.channels, fine.channels, dw);
}

}  // namespace strided
}  // namespace fast_conv3d
