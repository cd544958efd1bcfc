// The 2x2x2 convolution with stride 2 and its transpose (see strided.h) where the fine tensor is
// plain, because it has few channels. The coarse tensor may be plain or blocked. A Vec holds 16
// coarse neighbours along z of one channel.
#pragma once

#include <algorithm>
#include <cassert>
#include <vector>

#include "plane_winograd.h"
#include "strided.h"

namespace fast_conv3d {
namespace plane_strided {

using strided::covers;
using strided::kTaps;

constexpr int kPlanes = kTaps / 2;  // pairs of taps along z
constexpr int kMaxFine = kPlainChannels;
// The sums that the kernels keep in registers, in Vecs.
constexpr int kSums = kParts == 1 ? 16 : kParts == 2 ? 4 : 2;

// A run of up to 16 coarse voxels along z.
struct Run {
  int image, x, y, z;

  size_t coarse_voxel(const Shape& coarse) const {
    return (static_cast<size_t>(x) * coarse.y + y) * coarse.z + z;
  }
  // The first fine voxel of a plane of taps, at the beginning of its row.
  size_t fine_row(const Shape& fine, int plane) const {
    return ((2 * static_cast<size_t>(x) + (plane >> 1)) * fine.y + 2 * y + (plane & 1)) * fine.z;
  }
};

// Calls task(run, thread) for each run of the coarse tensor.
template <typename Task>
void for_each_run(ThreadPool& pool, const Shape& coarse, const Task& task) {
  pool.for_each(coarse.batch * coarse.x, [&](int item, int thread) {
    for (int y = 0; y < coarse.y; ++y)
      for (int z = 0; z < coarse.z; z += kLanes)
        task(Run{item / coarse.x, item % coarse.x, y, z}, thread);
  });
}

// Loads the fine voxels of a run: taps[channel][tap]; zeros past the row's end.
inline void load_fine(const float* image, const Shape& fine, const Run& run, Vec (*taps)[kTaps]) {
  for (int channel = 0; channel < fine.channels; ++channel)
    for (int plane = 0; plane < kPlanes; ++plane) {
      const float* row = image + channel * fine.voxels() + run.fine_row(fine, plane);
      const int z = 2 * run.z;
      const Vec second = z + kLanes < fine.z ? load_row(row, z + kLanes, fine.z) : zero();
      separate(load_row(row, z, fine.z), second, &taps[channel][2 * plane],
               &taps[channel][2 * plane + 1]);
    }
}

// Loads the coarse voxels of a run: channels[channel]; zeros past the row's end.
inline void load_coarse(const float* image, const Shape& coarse, const Run& run, Vec* channels) {
  const size_t voxel = run.coarse_voxel(coarse);
  const int count = std::min(kLanes, coarse.z - run.z);
  for (int block = 0; block < coarse.blocks(); ++block) {
    const float* source = image + block * coarse.block_floats() + voxel * coarse.voxel_floats();
    if (coarse.plain) {
      channels[block] = load_first(source, count);
      continue;
    }
    Vec rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = i < count ? load(source + i * kLanes) : zero();
    transpose_lanes(rows);
    for (int lane = 0; lane < std::min(kLanes, coarse.channels - block * kLanes); ++lane)
      channels[block * kLanes + lane] = rows[lane];
  }
}

// Stores the coarse voxels of a run through epilogue(value, image, block, voxel).
template <typename Epilogue>
void store_coarse(float* image, const Shape& coarse, const Run& run, const Vec* channels,
                  const Epilogue& epilogue) {
  const size_t voxel = run.coarse_voxel(coarse);
  const int count = std::min(kLanes, coarse.z - run.z);
  for (int block = 0; block < coarse.blocks(); ++block) {
    float* target = image + block * coarse.block_floats() + voxel * coarse.voxel_floats();
    if (coarse.plain) {
      store_row(target - run.z, run.z, coarse.z,
                epilogue(channels[block], run.image, block, voxel));
      continue;
    }
    Vec rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int channel = block * kLanes + lane;
      rows[lane] = channel < coarse.channels ? channels[channel] : zero();
    }
    transpose_lanes(rows);
    for (int i = 0; i < count; ++i)
      store(target + i * kLanes, epilogue(rows[i], run.image, block, voxel + i));
  }
}

// sums[i] = sum over j of weights[j][i] * inputs[j], for kSums sums.
FC3D_INLINE void multiply(const Vec* inputs, int count, const float* weights, Vec* sums) {
  Vec sum[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sum[i] = zero();
  for (int j = 0; j < count; ++j, weights += kSums) {
    const Vec input = inputs[j];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sum[i] += weights[i] * input;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sums[i] = sum[i];
}

inline int groups_of(int outputs) { return ceil_div(outputs, kSums); }

// Packs weight(output, input) as [group of kSums outputs][input][output], zeros past the last.
template <typename Weight>
void pack(int outputs, int inputs, const Weight& weight, float* packed) {
  for (int group = 0; group < groups_of(outputs); ++group)
    for (int input = 0; input < inputs; ++input)
      for (int i = 0; i < kSums; ++i) {
        const int output = group * kSums + i;
        *packed++ = output < outputs ? weight(output, input) : 0.f;
      }
}

// As strided::conv_down2.
template <typename Epilogue>
void conv_down2(ThreadPool& pool, Workspace& workspace, const Shape& fine, const float* x,
                const float* weights, const Shape& coarse, float* y, const Epilogue& epilogue) {
  assert(covers(fine, coarse) && fine.plain);
  const int inputs = fine.channels * kTaps, groups = groups_of(coarse.channels);
  float* packed = workspace.shared.get(static_cast<size_t>(groups) * inputs * kSums);
  pack(
      coarse.channels, inputs, [&](int k, int input) { return weights[k * inputs + input]; },
      packed);
  std::vector<Vec> sums(pool.size() * static_cast<size_t>(groups) * kSums);
  for_each_run(pool, coarse, [&](const Run& run, int thread) {
    Vec taps[kMaxFine][kTaps];
    load_fine(x + run.image * fine.image_floats(), fine, run, taps);
    Vec* channels = sums.data() + thread * static_cast<size_t>(groups) * kSums;
    for (int group = 0; group < groups; ++group)
      multiply(taps[0], inputs, packed + static_cast<size_t>(group) * inputs * kSums,
               channels + group * kSums);
    store_coarse(y + run.image * coarse.image_floats(), coarse, run, channels, epilogue);
  });
}

// As strided::conv_up2.
template <typename Epilogue>
void conv_up2(ThreadPool& pool, Workspace& workspace, const Shape& coarse, const float* x,
              const float* weights, const Shape& fine, float* y, const Epilogue& epilogue) {
  assert(covers(fine, coarse) && fine.plain);
  const int outputs = fine.channels * kTaps, groups = groups_of(outputs);
  float* packed = workspace.shared.get(static_cast<size_t>(groups) * coarse.channels * kSums);
  pack(
      outputs, coarse.channels, [&](int output, int k) { return weights[k * outputs + output]; },
      packed);
  std::vector<Vec> inputs(pool.size() * static_cast<size_t>(coarse.channels));
  for_each_run(pool, coarse, [&](const Run& run, int thread) {
    Vec* channels = inputs.data() + thread * static_cast<size_t>(coarse.channels);
    load_coarse(x + run.image * coarse.image_floats(), coarse, run, channels);
    Vec taps[kMaxFine * kTaps + kSums];
    for (int group = 0; group < groups; ++group)
      multiply(channels, coarse.channels,
               packed + static_cast<size_t>(group) * coarse.channels * kSums, taps + group * kSums);
    float* image = y + run.image * fine.image_floats();
    for (int channel = 0; channel < fine.channels; ++channel)
      for (int plane = 0; plane < kPlanes; ++plane) {
        Vec values[2];
        merge(taps[channel * kTaps + 2 * plane], taps[channel * kTaps + 2 * plane + 1], &values[0],
              &values[1]);
        const size_t row = run.fine_row(fine, plane);
        for (int half = 0; half < 2; ++half) {
          const int z = 2 * run.z + half * kLanes;
          if (z < fine.z)
            store_row(image + channel * fine.voxels() + row, z, fine.z,
                      epilogue(values[half], run.image, channel, row + z));
        }
      }
  });
}

// Coarse channels and (channel, tap) pairs of the fine tensor whose gradients are in registers.
constexpr int kGradientRows = kParts == 1 ? 4 : 2, kGradientTaps = kParts == 1   ? 4
                                                                   : kParts == 2 ? 2
                                                                                 : 1;

// A thread's copies of some runs: all coarse channels (padded to whole tiles of the micro-kernel)
// and all taps of the fine ones.
class RunBuffer {
 public:
  static constexpr int kRuns = 16;  // summed in registers

  RunBuffer(const Shape& coarse, const Shape& fine)
      : rows_(ceil_div(coarse.channels, kGradientRows) * kGradientRows),
        inputs_(fine.channels * kTaps),
        coarse_(kRuns * rows_, zero()),
        taps_(kRuns * inputs_) {}

  int rows() const { return rows_; }
  bool full() const { return count_ == kRuns; }

  void add(const Shape& coarse, const float* coarse_data, const Shape& fine, const float* fine_data,
           const Run& run) {
    load_coarse(coarse_data + run.image * coarse.image_floats(), coarse, run,
                &coarse_[count_ * rows_]);
    load_fine(fine_data + run.image * fine.image_floats(), fine, run,
              reinterpret_cast<Vec(*)[kTaps]>(&taps_[count_ * inputs_]));
    ++count_;
  }

  // Adds the products of all runs to sums[row][channel, tap], and empties the buffer.
  void flush(float* sums) {
    for (int row = 0; row < rows_; row += kGradientRows)
      for (int input = 0; input < inputs_; input += kGradientTaps)
        multiply(row, input, sums + static_cast<size_t>(row) * inputs_ + input);
    count_ = 0;
  }

 private:
  void multiply(int row, int input, float* sums) const {
    Vec sum[kGradientRows][kGradientTaps];
    for (auto& of_row : sum)
      for (Vec& value : of_row) value = zero();
    for (int run = 0; run < count_; ++run)
#pragma GCC unroll 4
      for (int i = 0; i < kGradientRows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kGradientTaps; ++j)
          sum[i][j] += coarse_[run * rows_ + row + i] * taps_[run * inputs_ + input + j];
    for (int i = 0; i < kGradientRows; ++i)
      for (int j = 0; j < kGradientTaps; ++j) sums[i * inputs_ + j] += lane_sum(sum[i][j]);
  }

  int rows_, inputs_, count_ = 0;
  std::vector<Vec> coarse_, taps_;
};

// As strided::weight_gradient.
inline void weight_gradient(ThreadPool& pool, Workspace& workspace, const Shape& coarse,
                            const float* coarse_data, const Shape& fine, const float* fine_data,
                            float* dw) {
  assert(covers(fine, coarse) && fine.plain);
  assert(coarse_data != nullptr && fine_data != nullptr && dw != nullptr);
  std::vector<RunBuffer> buffers(pool.size(), RunBuffer(coarse, fine));
  // Parts of the planes have their own sums, so that these do not depend on scheduling.
  const int planes = coarse.batch * coarse.x, inputs = fine.channels * kTaps;
  const int parts = std::min(planes, std::max(8, 2 * pool.size()));
  const size_t sum_floats = static_cast<size_t>(buffers[0].rows()) * inputs;
  float* sums = workspace.shared.get(parts * sum_floats);
  std::fill(sums, sums + parts * sum_floats, 0.f);
  pool.for_each(parts, [&](int part, int thread) {
    RunBuffer& buffer = buffers[thread];
    float* part_sums = sums + part * sum_floats;
    for (int plane = planes * part / parts; plane < planes * (part + 1) / parts; ++plane)
      for (int y = 0; y < coarse.y; ++y)
        for (int z = 0; z < coarse.z; z += kLanes) {
          buffer.add(coarse, coarse_data, fine, fine_data,
                     {plane / coarse.x, plane % coarse.x, y, z});
          if (buffer.full()) buffer.flush(part_sums);
        }
    buffer.flush(part_sums);
  });
  for (size_t i = 0; i < static_cast<size_t>(coarse.channels) * inputs; ++i) {
    float total = 0;
    for (int part = 0; part < parts; ++part) total += sums[part * sum_floats + i];
    dw[i] = total;
  }
}

}  // namespace plane_strided
}  // namespace fast_conv3d
