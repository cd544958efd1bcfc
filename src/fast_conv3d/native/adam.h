// A step of Adam for all parameters at once. Each parameter, its moments and its gradient pass
// through memory once.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <vector>

#include "thread_pool.h"

namespace fast_conv3d {
namespace adam {

struct Settings {
  float rate;  // with the correction of both moments' bias
  float beta1, beta2, epsilon;
};

// A parameter with what belongs to it.
struct Parameter {
  size_t size;
  float *values, *moment1, *moment2;
  const float* gradient;
  float weight_decay;  // of the L2 penalty, whose gradient is added
};

// The pointers are parameters, and the numbers copies: the compiler vectorizes only what it knows
// not to overlap.
inline void update(const Settings settings, const float weight_decay, size_t count,
                   float* __restrict values, float* __restrict moment1, float* __restrict moment2,
                   const float* __restrict gradient) {
  for (size_t i = 0; i < count; ++i) {
    const float g = gradient[i] + weight_decay * values[i];
    moment1[i] += (g - moment1[i]) * (1 - settings.beta1);
    moment2[i] += (g * g - moment2[i]) * (1 - settings.beta2);
    values[i] -= settings.rate * moment1[i] / (std::sqrt(moment2[i]) + settings.epsilon);
  }
}

inline void step(ThreadPool& pool, const Settings& settings,
                 const std::vector<Parameter>& parameters) {
  constexpr size_t kPart = 32 * 1024;
  struct Part {
    const Parameter* parameter;
    size_t begin, end;
  };
  std::vector<Part> parts;
  for (const Parameter& parameter : parameters)
    for (size_t begin = 0; begin < parameter.size; begin += kPart)
      parts.push_back({&parameter, begin, std::min(begin + kPart, parameter.size)});
  pool.for_each(static_cast<int>(parts.size()), [&](int item, int) {
    const auto [parameter, begin, end] = parts[item];
    update(settings, parameter->weight_decay, end - begin, parameter->values + begin,
           parameter->moment1 + begin, parameter->moment2 + begin, parameter->gradient + begin);
  });
}

}  // namespace adam
}  // namespace fast_conv3d
