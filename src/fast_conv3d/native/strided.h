// The 2x2x2 convolution with stride 2 and its transpose.
//
// Both join a fine grid to a coarse one of half its sides, and each coarse voxel to the eight fine
// voxels ("taps") that it covers. `gather` computes coarse from fine: the forward of nn.Conv3d and
// the gradient of the input of nn.Conv3dTranspose. `scatter` computes fine from coarse: the forward
// of nn.Conv3dTranspose and the gradient of the input of nn.Conv3d. Weights are (coarse channels,
// fine channels, 2, 2, 2) in both, as either cell keeps them.
//
// Taps do not overlap, so each is a matrix product: a tile of voxels is copied side by side, and a
// register tile of voxels x Vecs of output channels runs over all input channels (and taps).
#pragma once

#include <algorithm>
#include <cstddef>

#include "tensor.h"
#include "thread_pool.h"
#include "vector.h"

namespace fast_conv3d {
namespace strided {

constexpr int kTaps = 8;

// The register tile: as many accumulators as registers hold beside weights and inputs.
constexpr int kTileVoxels = kParts == 1 ? 12 : 6;
constexpr int kTileVectors = kParts == 1 ? 2 : 1;
constexpr int kTileFloats = kTileVoxels * kLanes;  // of one block of input channels

// An item of work: tiles that share the weights they pull into the cache.
constexpr int kMaxItemTiles = 16;
constexpr size_t kItemFloats = 48 * 1024;  // of copied inputs: a fraction of the L2 cache

inline Shape fine_shape(const Shape& coarse, int channels) {
  return {coarse.batch, channels, 2 * coarse.x, 2 * coarse.y, 2 * coarse.z};
}

// The fine voxels of the first tap of `count` coarse voxels from `voxel` on.
inline void first_taps(const Shape& coarse, size_t voxel, int count, size_t* fine_voxels) {
  int z = static_cast<int>(voxel % coarse.z), y = static_cast<int>(voxel / coarse.z % coarse.y);
  size_t row = (voxel / coarse.z / coarse.y * 2 * coarse.y + y) * 4 * coarse.z;
  for (int i = 0; i < count; ++i) {
    fine_voxels[i] = row + 2 * z;
    if (++z < coarse.z) continue;
    z = 0;
    row += 4 * coarse.z;  // past the odd row
    if (++y < coarse.y) continue;
    y = 0;
    row += 4 * static_cast<size_t>(coarse.y) * coarse.z;  // past the odd plane
  }
}

// The distance of a tap (x, y, z in its three bits) from the first, in fine voxels.
inline size_t tap_offset(const Shape& fine, int tap) {
  return (static_cast<size_t>(tap >> 2) * fine.y + (tap >> 1 & 1)) * fine.z + (tap & 1);
}

// Calls set(coarse_block, fine_block, coarse_lane, fine_lane, tap, weight) for each weight of whole
// blocks, zeros past the last channel.
template <typename Set>
void for_weights(const float* weights, int coarse_channels, int coarse_blocks, int fine_channels,
                 int fine_blocks, ThreadPool& pool, const Set& set) {
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

// sums[voxel][vector] = sum over channels of inputs[block][voxel][lane] * weights[channel][vector].
inline void multiply_tile(const float* inputs, int blocks, const float* weights, Vec* sums) {
  Vec sum[kTileVoxels][kTileVectors];
#pragma GCC unroll 16
  for (int voxel = 0; voxel < kTileVoxels; ++voxel)
#pragma GCC unroll 16
    for (int i = 0; i < kTileVectors; ++i) sum[voxel][i] = zero();
  for (int block = 0; block < blocks; ++block, inputs += kTileFloats)
    for (int lane = 0; lane < kLanes; ++lane, weights += kTileVectors * kLanes)
#pragma GCC unroll 16
      for (int voxel = 0; voxel < kTileVoxels; ++voxel)
#pragma GCC unroll 16
        for (int i = 0; i < kTileVectors; ++i)
          sum[voxel][i] += inputs[voxel * kLanes + lane] * load(weights + i * kLanes);
#pragma GCC unroll 16
  for (int voxel = 0; voxel < kTileVoxels; ++voxel)
#pragma GCC unroll 16
    for (int i = 0; i < kTileVectors; ++i) sums[voxel * kTileVectors + i] = sum[voxel][i];
}

// The product of every tile with every group of kTileVectors output Vecs. `weights` are packed as
// (group, channel, vector, 16), channels counting `blocks` blocks. copy(image, voxel, count,
// fine_voxels, inputs) copies a tile's inputs as (block, kTileVoxels, 16); keep(image, voxel,
// count, fine_voxels, group, sums) takes its sums.
template <typename Copy, typename Keep>
void multiply(const Shape& coarse, int blocks, int groups, const float* weights, float* inputs,
              ThreadPool& pool, const Copy& copy, const Keep& keep) {
  const size_t tile_floats = static_cast<size_t>(blocks) * kTileFloats;
  const size_t group_floats = static_cast<size_t>(blocks) * kLanes * kTileVectors * kLanes;
  const size_t tiles = (coarse.voxels() + kTileVoxels - 1) / kTileVoxels;
  // Enough items for all threads to end together, where the volume has them.
  const size_t fair = tiles * coarse.batch / (4 * pool.size());
  const size_t item_tiles =
      std::max<size_t>(1, std::min({size_t{kMaxItemTiles}, kItemFloats / tile_floats, fair}));
  const int image_items = static_cast<int>((tiles + item_tiles - 1) / item_tiles);
  pool.for_each(coarse.batch * image_items, [&](int item, int thread) {
    float* item_inputs = inputs + thread * std::max(kItemFloats, tile_floats);
    const int image = item / image_items;
    const size_t first = item % image_items * item_tiles;
    const int count = static_cast<int>(std::min(item_tiles, tiles - first));
    size_t fine_voxels[kMaxItemTiles * kTileVoxels];
    const auto tile_voxels = [&](size_t voxel) {
      return static_cast<int>(std::min<size_t>(kTileVoxels, coarse.voxels() - voxel));
    };
    for (int tile = 0; tile < count; ++tile) {
      const size_t voxel = (first + tile) * kTileVoxels;
      size_t* tile_fine_voxels = fine_voxels + tile * kTileVoxels;
      first_taps(coarse, voxel, tile_voxels(voxel), tile_fine_voxels);
      copy(image, voxel, tile_voxels(voxel), tile_fine_voxels, item_inputs + tile * tile_floats);
    }
    for (int group = 0; group < groups; ++group)
      for (int tile = 0; tile < count; ++tile) {
        const size_t voxel = (first + tile) * kTileVoxels;
        Vec sums[kTileVoxels * kTileVectors];
        multiply_tile(item_inputs + tile * tile_floats, blocks, weights + group * group_floats,
                      sums);
        keep(image, voxel, tile_voxels(voxel), fine_voxels + tile * kTileVoxels, group, sums);
      }
  });
}

inline size_t input_floats(int blocks, const ThreadPool& pool) {
  return pool.size() * std::max(kItemFloats, static_cast<size_t>(blocks) * kTileFloats);
}

// coarse[k][v] = epilogue(sum over c, tap of weights[k][c][tap] * fine[c][2 v + tap]).
// `fine_channels` channels on twice the sides of `shape`, which is the coarse tensor's.
// epilogue(value, image, block, voxel) returns what is stored, and must leave lanes past the last
// channel zero.
template <typename Epilogue>
void gather(const float* fine, int fine_channels, const float* weights, float* coarse,
            const Shape& shape, const Epilogue& epilogue, ThreadPool& pool, Scratch& scratch) {
  const Shape from = fine_shape(shape, fine_channels);
  const int blocks = from.blocks() * kTaps;
  const int groups = (shape.blocks() + kTileVectors - 1) / kTileVectors;
  const size_t packed_floats =
      static_cast<size_t>(groups) * blocks * kLanes * kTileVectors * kLanes;
  float* packed = scratch.get(packed_floats + input_floats(blocks, pool));
  for_weights(weights, shape.channels, groups * kTileVectors, fine_channels, from.blocks(), pool,
              [&](int k_block, int c_block, int k, int c, int tap, float weight) {
                size_t at = static_cast<size_t>(k_block / kTileVectors) * blocks;
                at = (at + c_block * kTaps + tap) * kLanes + c;
                packed[(at * kTileVectors + k_block % kTileVectors) * kLanes + k] = weight;
              });
  multiply(
      shape, blocks, groups, packed, packed + packed_floats, pool,
      [&](int image, size_t, int count, const size_t* fine_voxels, float* inputs) {
        for (int block = 0; block < blocks; ++block, inputs += kTileFloats) {
          const float* source = fine + image * from.image_floats() +
                                block / kTaps * from.block_floats() +
                                tap_offset(from, block % kTaps) * kLanes;
          for (int i = 0; i < count; ++i)
            store(inputs + i * kLanes, load(source + fine_voxels[i] * kLanes));
          std::fill(inputs + count * kLanes, inputs + kTileFloats, 0.f);
        }
      },
      [&](int image, size_t voxel, int count, const size_t*, int group, const Vec* sums) {
        for (int i = 0; i < kTileVectors; ++i) {
          const int block = group * kTileVectors + i;
          if (block >= shape.blocks()) break;
          float* target =
              coarse + image * shape.image_floats() + block * shape.block_floats() + voxel * kLanes;
          for (int j = 0; j < count; ++j)
            store(target + j * kLanes,
                  epilogue(sums[j * kTileVectors + i], image, block, voxel + j));
        }
      });
}

// fine[c][2 v + tap] = epilogue(sum over k of weights[k][c][tap] * coarse[k][v]). `shape` is the
// coarse tensor's; the rest as in `gather`.
template <typename Epilogue>
void scatter(const float* coarse, const Shape& shape, const float* weights, float* fine,
             int fine_channels, const Epilogue& epilogue, ThreadPool& pool, Scratch& scratch) {
  const Shape to = fine_shape(shape, fine_channels);
  const int blocks = shape.blocks();
  const int groups = to.blocks() * kTaps / kTileVectors;
  const size_t packed_floats =
      static_cast<size_t>(groups) * blocks * kLanes * kTileVectors * kLanes;
  float* packed = scratch.get(packed_floats + input_floats(blocks, pool));
  for_weights(weights, shape.channels, blocks, fine_channels, to.blocks(), pool,
              [&](int k_block, int c_block, int k, int c, int tap, float weight) {
                const int vector = c_block * kTaps + tap;
                size_t at = static_cast<size_t>(vector / kTileVectors) * blocks + k_block;
                at = (at * kLanes + k) * kTileVectors + vector % kTileVectors;
                packed[at * kLanes + c] = weight;
              });
  multiply(
      shape, blocks, groups, packed, packed + packed_floats, pool,
      [&](int image, size_t voxel, int count, const size_t*, float* inputs) {
        const float* source = coarse + image * shape.image_floats() + voxel * kLanes;
        for (int block = 0; block < blocks; ++block, inputs += kTileFloats) {
          std::copy_n(source + block * shape.block_floats(), count * kLanes, inputs);
          std::fill(inputs + count * kLanes, inputs + kTileFloats, 0.f);
        }
      },
      [&](int image, size_t, int count, const size_t* fine_voxels, int group, const Vec* sums) {
        const int block = group * kTileVectors / kTaps;
        float* target = fine + image * to.image_floats() + block * to.block_floats();
        for (int j = 0; j < count; ++j)
          for (int i = 0; i < kTileVectors; ++i) {
            const size_t voxel =
                fine_voxels[j] + tap_offset(to, (group * kTileVectors + i) % kTaps);
            store(target + voxel * kLanes,
                  epilogue(sums[j * kTileVectors + i], image, block, voxel));
          }
      });
}

// The register tile of the weight gradient: coarse channels x Vecs of (tap, fine channels).
constexpr int kGradientRows = kParts == 1 ? 8 : 4;
// Voxels summed in registers before they are added to an item's sums: short sums of short sums
// lose less to rounding than one long one.
constexpr int kGradientVoxels = 128;

// sums[row][vector] += sum over voxels of coarse[voxel][row] * fine[voxel][vector].
inline void accumulate_tile(const float* coarse, const float* fine, int voxels, float* sums) {
  Vec sum[kGradientRows][kTileVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kGradientRows; ++row)
#pragma GCC unroll 16
    for (int i = 0; i < kTileVectors; ++i) sum[row][i] = zero();
  for (int voxel = 0; voxel < voxels; ++voxel)
#pragma GCC unroll 16
    for (int row = 0; row < kGradientRows; ++row)
#pragma GCC unroll 16
      for (int i = 0; i < kTileVectors; ++i)
        sum[row][i] +=
            coarse[voxel * kLanes + row] * load(fine + (voxel * kTileVectors + i) * kLanes);
#pragma GCC unroll 16
  for (int row = 0; row < kGradientRows; ++row)
#pragma GCC unroll 16
    for (int i = 0; i < kTileVectors; ++i) {
      float* target = sums + (row * kTileVectors + i) * kLanes;
      store(target, load(target) + sum[row][i]);
    }
}

// target += sum of `voxels` Vecs.
inline void accumulate_sum(const float* source, int voxels, int stride, float* target) {
  Vec sum = zero();
  for (int voxel = 0; voxel < voxels; ++voxel) sum += load(source + voxel * stride);
  store(target, load(target) + sum);
}

// weights_gradient[k][c][tap] = sum over images and voxels of coarse[k][v] * fine[c][2 v + tap],
// and the sums over images and voxels of each channel of either tensor: the gradient of the bias is
// `coarse_sums` for nn.Conv3d, `fine_sums` for nn.Conv3dTranspose; each may be null. `shape` is the
// coarse tensor's.
inline void weight_gradient(const float* coarse, const Shape& shape, const float* fine,
                            int fine_channels, float* weights_gradient, float* coarse_sums,
                            float* fine_sums, ThreadPool& pool, Scratch& scratch) {
  const Shape from = fine_shape(shape, fine_channels);
  const int k_blocks = shape.blocks(), c_blocks = from.blocks();
  constexpr int kGroups = kTaps / kTileVectors;
  constexpr size_t kBlockFloats = kLanes * kTaps * kLanes;  // gradients of a pair of blocks
  const size_t pair_floats = k_blocks * c_blocks * kBlockFloats;
  const size_t item_floats = pair_floats + (k_blocks + c_blocks) * kLanes;
  const size_t copy_floats = static_cast<size_t>(c_blocks) * kTaps * kGradientVoxels * kLanes;

  // Items are parts of the voxels and, where these are few beside the weights, of the coarse
  // channels too; each part of the voxels has sums of its own, added up in order at the end.
  constexpr size_t kMaxPartFloats = 1 << 20;
  const size_t image_runs = (shape.voxels() + kGradientVoxels - 1) / kGradientVoxels;
  const size_t runs = image_runs * shape.batch;
  const size_t items = 4 * pool.size();
  const int parts =
      static_cast<int>(std::max<size_t>(1, std::min({runs, items, kMaxPartFloats / item_floats})));
  const int k_parts = std::min<int>(k_blocks, (static_cast<int>(items) + parts - 1) / parts);

  float* copies = scratch.get(pool.size() * copy_floats + parts * item_floats);
  float* part_sums = copies + pool.size() * copy_floats;
  std::fill_n(part_sums, parts * item_floats, 0.f);
  pool.for_each(parts * k_parts, [&](int item, int thread) {
    const int part = item / k_parts, k_part = item % k_parts;
    const int k_begin = k_blocks * k_part / k_parts, k_end = k_blocks * (k_part + 1) / k_parts;
    float* copy = copies + thread * copy_floats;
    float* sums = part_sums + part * item_floats;
    for (size_t run = runs * part / parts; run < runs * (part + 1) / parts; ++run) {
      const size_t image = run / image_runs, voxel = run % image_runs * kGradientVoxels;
      const int count = static_cast<int>(std::min<size_t>(kGradientVoxels, shape.voxels() - voxel));
      size_t fine_voxels[kGradientVoxels];
      first_taps(shape, voxel, count, fine_voxels);
      const float* k_source = coarse + image * shape.image_floats() + voxel * kLanes;
      for (int c_block = 0; c_block < c_blocks; ++c_block) {
        const float* c_source = fine + image * from.image_floats() + c_block * from.block_floats();
        for (int group = 0; group < kGroups; ++group) {
          float* target =
              copy + (c_block * kGroups + group) * kTileVectors * kGradientVoxels * kLanes;
          for (int i = 0; i < kTileVectors; ++i) {
            const size_t offset = tap_offset(from, group * kTileVectors + i);
            for (int j = 0; j < count; ++j)
              store(target + (j * kTileVectors + i) * kLanes,
                    load(c_source + (fine_voxels[j] + offset) * kLanes));
            if (fine_sums != nullptr && k_part == 0)
              accumulate_sum(target + i * kLanes, count, kTileVectors * kLanes,
                             sums + pair_floats + (k_blocks + c_block) * kLanes);
          }
          for (int k_block = k_begin; k_block < k_end; ++k_block)
            for (int row = 0; row < kLanes; row += kGradientRows)
              accumulate_tile(k_source + k_block * shape.block_floats() + row, target, count,
                              sums + (k_block * c_blocks + c_block) * kBlockFloats +
                                  (group * kLanes + row) * kTileVectors * kLanes);
        }
      }
      for (int k_block = k_begin; coarse_sums != nullptr && k_block < k_end; ++k_block)
        accumulate_sum(k_source + k_block * shape.block_floats(), count, kLanes,
                       sums + pair_floats + k_block * kLanes);
    }
  });

  const auto total = [&](size_t at) {
    Vec sum = load(part_sums + at);
    for (int part = 1; part < parts; ++part) sum += load(part_sums + part * item_floats + at);
    return sum;
  };
  pool.for_each(k_blocks * c_blocks, [&](int pair, int) {
    const int k_first = pair / c_blocks * kLanes, c_first = pair % c_blocks * kLanes;
    for (int row = 0; row < std::min(kLanes, shape.channels - k_first); ++row) {
      float taps[kTaps][kLanes];
      for (int tap = 0; tap < kTaps; ++tap) {
        const int vector = (tap / kTileVectors * kLanes + row) * kTileVectors + tap % kTileVectors;
        store(taps[tap], total(pair * kBlockFloats + vector * kLanes));
      }
      float* target =
          weights_gradient + (static_cast<size_t>(k_first + row) * fine_channels + c_first) * kTaps;
      for (int c = 0; c < std::min(kLanes, fine_channels - c_first); ++c)
        for (int tap = 0; tap < kTaps; ++tap) target[c * kTaps + tap] = taps[tap][c];
    }
  });
  const auto write_sums = [&](float* target, int channels, size_t from_block) {
    for (int first = 0; target != nullptr && first < channels; first += kLanes) {
      const Vec sum = total(pair_floats + from_block * kLanes + first);
      std::memcpy(target + first, &sum, std::min(kLanes, channels - first) * sizeof(float));
    }
  };
  write_sums(coarse_sums, shape.channels, 0);
  write_sums(fine_sums, fine_channels, k_blocks);
}

}  // namespace strided
}  // namespace fast_conv3d
