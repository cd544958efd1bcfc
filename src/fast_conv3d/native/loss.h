// The losses of src/loss.py and their gradients: Dice of probabilities, or Dice plus cross-entropy
// of logits. A pass over prediction and mask each; sums are double.
#pragma once

#include <cstring>
#include <vector>

#include "head.h"

namespace fast_conv3d {
namespace loss {

struct Loss {
  Shape shape;  // of prediction and mask: plain, of one channel
  const float *prediction, *mask;
  bool logits;
  float epsilon;  // added to both sums of Dice
};

// 16 voxels, or `count` at the end of an image. The other lanes get the prediction 0 or its logit,
// of background: they add nothing to the sums.
FC3D_INLINE Vec load_prediction(const Loss& loss, const float* source, int count) {
  if (count == kLanes) return load(source);
  float lanes[kLanes];
  for (float& lane : lanes) lane = loss.logits ? -1e30f : 0.f;
  std::memcpy(lanes, source, count * sizeof(float));
  return load(lanes);
}

// Probabilities of foreground and background, each exact where it is small.
struct Probability {
  Vec foreground, background;
  Vec odds;  // of the less likely one; with probabilities unused
};
FC3D_INLINE Probability probability_of(const Loss& loss, Vec prediction) {
  if (!loss.logits) return {prediction, 1.f - prediction, zero()};
  const Vec odds = exp_nonpositive(where_positive(prediction, -prediction, prediction));
  const Vec likely = 1.f / (1.f + odds), unlikely = odds * likely;
  return {where_positive(prediction, likely, unlikely),
          where_positive(prediction, unlikely, likely), odds};
}

// log(1 + x) for x from 0 to 1, as 2 artanh(s), to 2e-8 of it: s is at most 1/3.
FC3D_INLINE Vec log_one_plus(Vec x) {
  const Vec s = x / (x + 2.f), square = s * s;
  Vec series = broadcast(1.f / 13);
  for (const float divisor : {11.f, 9.f, 7.f, 5.f, 3.f, 1.f})
    series = series * square + 1 / divisor;
  return 2.f * s * series;
}

// Calls task(voxel, count) for each Vec of the voxels from `first` on, counted over the batch.
template <typename Task>
FC3D_INLINE void for_each_vector(size_t first, size_t voxels, const Task& task) {
  for (size_t i = 0; i < voxels; i += kLanes)
    task(first + i, static_cast<int>(std::min<size_t>(kLanes, voxels - i)));
}

struct Sums {
  double overlap = 0, size = 0, cross_entropy = 0;
  void add(const Sums& other) {
    overlap += other.overlap;
    size += other.size;
    cross_entropy += other.cross_entropy;
  }
};

inline Sums sums_of_part(const Loss& loss, size_t first, size_t voxels) {
  double overlap[kLanes] = {}, size[kLanes] = {}, cross_entropy[kLanes] = {};
  for_each_vector(first, voxels, [&](size_t voxel, int count) {
    const Vec x = load_prediction(loss, loss.prediction + voxel, count);
    const Vec g = load_first_of(loss.mask + voxel, count);
    const Probability p = probability_of(loss, x);
    add_to(overlap, p.foreground * g);
    add_to(size, p.foreground * p.foreground + g * g);
    if (loss.logits)
      add_to(cross_entropy, where_positive(x, x, zero()) - x * g + log_one_plus(p.odds));
  });
  Sums sums;
  for (int lane = 0; lane < kLanes; ++lane)
    sums.add({overlap[lane], size[lane], cross_entropy[lane]});
  return sums;
}

// Returns the loss. Writes (batch, 2) coefficients, with which the gradient of Dice is
// coefficients[0] * p - coefficients[1] * g.
inline float forward(ThreadPool& pool, const Loss& loss, float* coefficients) {
  std::vector<Sums> parts(head::parts_of(loss.shape));
  const size_t voxels = loss.shape.voxels();
  const int batch = loss.shape.batch;
  head::for_each_part(pool, loss.shape, [&](int part, int image, size_t begin, size_t count) {
    parts[part] = sums_of_part(loss, image * voxels + begin, count);
  });
  const size_t image_parts = parts.size() / batch;
  double total = 0;
  for (int image = 0; image < batch; ++image) {
    Sums sums;
    for (size_t part = 0; part < image_parts; ++part) sums.add(parts[image * image_parts + part]);
    const double top = 2 * sums.overlap + loss.epsilon, bottom = sums.size + loss.epsilon;
    total += 1 - top / bottom + sums.cross_entropy / static_cast<double>(voxels);
    coefficients[2 * image] = static_cast<float>(2 * top / bottom / bottom / batch);
    coefficients[2 * image + 1] = static_cast<float>(2 / bottom / batch);
  }
  return static_cast<float>(total / batch);
}

// Computes the gradient of the prediction, from the coefficients of `forward`.
inline void backward(ThreadPool& pool, const Loss& loss, const float* coefficients, float d_loss,
                     float* d_prediction) {
  const size_t voxels = loss.shape.voxels();
  const float of_cross_entropy =
      d_loss / (static_cast<float>(voxels) * static_cast<float>(loss.shape.batch));
  head::for_each_part(pool, loss.shape, [&](int, int image, size_t begin, size_t part_voxels) {
    const float of_p = d_loss * coefficients[2 * image];
    const float of_g = d_loss * coefficients[2 * image + 1];
    for_each_vector(image * voxels + begin, part_voxels, [&](size_t voxel, int count) {
      const Vec g = load_first_of(loss.mask + voxel, count);
      const Probability p =
          probability_of(loss, load_prediction(loss, loss.prediction + voxel, count));
      Vec gradient = of_p * p.foreground - of_g * g;
      if (loss.logits)  // p - g, exact where p is close to g
        gradient = gradient * p.foreground * p.background +
                   of_cross_entropy * (p.foreground * (1.f - g) - p.background * g);
      store_first(d_prediction + voxel, count, gradient);
    });
  });
}

}  // namespace loss
}  // namespace fast_conv3d
