// Checks the operators of ops.cpp against sums in double, without MindSpore:
//
//   g++ -std=c++17 -O1 -pthread -Isrc/fast_conv3d/native tests/fast_conv3d/test_native.cpp
//   ./a.out [THREADS ...]
//
// test_native.py does so with sanitizers and for several processors. Prints a
// line for each failure; the exit code is then 1. Tensors are plain here, (batch, channels, x, y,
// z), and converted to the layout of their shape for the operators.
#include <sys/wait.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ops.cpp"

namespace fast_conv3d {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// qemu-user cannot fork a process with threads. It takes twelve times as long: what does not
// depend on the processor is left to the other builds.
#if defined(EMULATED)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

int checks = 0, failures = 0;

void check(bool passed, const std::string& name, const std::string& finding) {
  ++checks;
  if (passed) return;
  ++failures;
  std::printf("%s: %s\n", name.c_str(), finding.c_str());
}

// Checks the largest error, relative to the largest expected value or 1.
void compare(const std::string& name, const Doubles& found, const Doubles& expected,
             double tolerance) {
  double scale = 1, largest = 0;
  size_t where = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    scale = std::max(scale, std::abs(expected[i]));
    const double error = std::abs(found[i] - expected[i]);
    if (error <= largest) continue;  // NaN is larger than anything
    largest = error;
    where = i;
    if (std::isnan(error)) break;
  }
  check(largest <= tolerance * scale, name,
        "entry " + std::to_string(where) + " is " + std::to_string(found[where]) + ", not " +
            std::to_string(expected[where]));
}

// Normally distributed values that are floats.
Doubles random_values(size_t count, double scale = 1, double mean = 0) {
  static std::mt19937 engine(1);
  std::normal_distribution<double> normal(mean, scale);
  Doubles values(count);
  for (double& value : values) value = static_cast<float>(normal(engine));
  return values;
}

// -------------------------------------------------------------------------------------- tensors

size_t plain_size(const Shape& shape) { return shape.voxels() * shape.channels * shape.batch; }

size_t at(const Shape& shape, int image, int channel, int x, int y, int z) {
  const size_t volume = static_cast<size_t>(image) * shape.channels + channel;
  return ((volume * shape.x + x) * shape.y + y) * shape.z + z;
}

// Calls visit(plain index, index in the shape's layout) for each value.
template <typename Visit>
void for_values(const Shape& shape, const Visit& visit) {
  for (size_t i = 0; i < plain_size(shape); ++i) {
    const size_t voxel = i % shape.voxels(), channel = i / shape.voxels() % shape.channels;
    const size_t image = i / shape.voxels() / shape.channels;
    if (shape.plain) {
      visit(i, i);
      continue;
    }
    const size_t block = image * shape.blocks() + channel / kLanes;
    visit(i, (block * shape.voxels() + voxel) * kLanes + channel % kLanes);
  }
}

// An input or output of an operator.
struct Tensor {
  std::vector<int64_t> sides;
  Floats values;
};

size_t count(const std::vector<int64_t>& sides) {
  size_t product = 1;
  for (const int64_t side : sides) product *= static_cast<size_t>(side);
  return product;
}

Tensor tensor(const Doubles& values, std::vector<int64_t> sides = {}) {
  if (sides.empty()) sides = {static_cast<int64_t>(values.size())};
  return {sides, Floats(values.begin(), values.end())};
}
Tensor unused() { return tensor({0}); }

std::vector<int64_t> plain_sides(const Shape& shape) {
  return {shape.batch, shape.channels, shape.x, shape.y, shape.z};
}
std::vector<int64_t> sides_of(const Shape& shape) {
  if (shape.plain) return plain_sides(shape);
  return {shape.batch, shape.blocks(), shape.x, shape.y, shape.z, kLanes};
}

Tensor laid_out(const Shape& shape, const Doubles& plain) {
  Tensor result{sides_of(shape), Floats(shape.floats(), 0.f)};
  for_values(shape,
             [&](size_t from, size_t to) { result.values[to] = static_cast<float>(plain[from]); });
  return result;
}

// Returns a tensor as plain; checks that the lanes past the last channel are zero.
Doubles plain_values(const std::string& name, const Shape& shape, const Tensor& from) {
  Doubles plain(plain_size(shape));
  Floats rest = from.values;
  for_values(shape, [&](size_t to, size_t at) {
    plain[to] = from.values[at];
    rest[at] = 0;
  });
  for (size_t i = 0; i < rest.size(); ++i)
    if (rest[i] != 0) {
      check(false, name, "lane past the last channel is not 0, float " + std::to_string(i));
      break;
    }
  return plain;
}

Doubles doubles(const Tensor& from) { return {from.values.begin(), from.values.end()}; }

using Operator = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);

// Calls an operator on its inputs and outputs.
int call(Operator function, std::vector<Tensor>& tensors) {
  std::vector<void*> data;
  std::vector<int> ranks;
  std::vector<int64_t*> shapes;
  for (Tensor& tensor : tensors) {
    data.push_back(tensor.values.data());
    ranks.push_back(static_cast<int>(tensor.sides.size()));
    shapes.push_back(tensor.sides.data());
  }
  return function(static_cast<int>(data.size()), data.data(), ranks.data(), shapes.data(), nullptr,
                  nullptr, nullptr);
}

// Calls an operator on outputs filled with NaN. With three threads it is called twice, and the bits
// of both results must be equal. `outputs` are the sides.
std::vector<Tensor> run(const std::string& name, Operator function,
                        const std::vector<Tensor>& inputs,
                        const std::vector<std::vector<int64_t>>& outputs) {
  std::vector<std::vector<Tensor>> results(state().threads == 3 ? 2 : 1);
  for (std::vector<Tensor>& result : results) {
    std::vector<Tensor> tensors = inputs;
    for (const auto& sides : outputs)
      tensors.push_back({sides, Floats(count(sides), std::numeric_limits<float>::quiet_NaN())});
    const int code = call(function, tensors);
    check(code == 0, name, "returns " + std::to_string(code));
    result.assign(tensors.begin() + inputs.size(), tensors.end());
  }
  for (size_t i = 0; i < outputs.size(); ++i)
    check(std::memcmp(results[0][i].values.data(), results.back()[i].values.data(),
                      count(outputs[i]) * sizeof(float)) == 0,
          name, "output " + std::to_string(i) + " differs from run to run");
  return results[0];
}

// -------------------------------------------------------------------------------- convolutions

// Calls visit(index in y, in the weights, in x) for each product that a convolution sums.
template <typename Visit>
void for_products(Kind kind, const Shape& x, const Shape& y, int side, const Visit& visit) {
  const bool same_size = kind == Kind::kConv5;
  // Of the two grids, the one whose voxels are visited, and the weights' two axes of channels.
  const Shape& coarse = kind == Kind::kConvUp2 ? x : y;
  const Shape& fine = kind == Kind::kConvUp2 ? y : x;
  const int padding = same_size ? side / 2 : 0, step = same_size ? 1 : 2;
  for (int image = 0; image < coarse.batch; ++image)
    for (int k = 0; k < coarse.channels; ++k)
      for (int c = 0; c < fine.channels; ++c)
        for (int tap = 0; tap < side * side * side; ++tap) {
          const int i = tap / side / side - padding, j = tap / side % side - padding;
          const int l = tap % side - padding;
          const size_t weight = (static_cast<size_t>(k) * fine.channels + c) * side * side * side;
          for (int a = std::max(0, -i); a < std::min(coarse.x, coarse.x * step - i); ++a)
            for (int b = std::max(0, -j); b < std::min(coarse.y, coarse.y * step - j); ++b)
              for (int d = std::max(0, -l); d < std::min(coarse.z, coarse.z * step - l); ++d) {
                const size_t in_coarse = at(coarse, image, k, a, b, d);
                const size_t in_fine = at(fine, image, c, a * step + i, b * step + j, d * step + l);
                if (kind == Kind::kConvUp2)
                  visit(in_fine, weight + tap, in_coarse);
                else
                  visit(in_coarse, weight + tap, in_fine);
              }
        }
}

Doubles convolution(Kind kind, const Shape& x_shape, const Shape& y_shape, int side,
                    const Doubles& x, const Doubles& weights) {
  Doubles y(plain_size(y_shape));
  for_products(kind, x_shape, y_shape, side,
               [&](size_t to, size_t weight, size_t from) { y[to] += weights[weight] * x[from]; });
  return y;
}

void convolution_backward(Kind kind, const Shape& x_shape, const Shape& y_shape, int side,
                          const Doubles& x, const Doubles& weights, const Doubles& d_y,
                          Doubles& d_x, Doubles& d_weights) {
  d_x.resize(x.size());
  d_weights.assign(weights.size(), 0);
  for_products(kind, x_shape, y_shape, side, [&](size_t to, size_t weight, size_t from) {
    d_x[from] += weights[weight] * d_y[to];
    d_weights[weight] += x[from] * d_y[to];
  });
}

Doubles channel_sums(const Shape& shape, const Doubles& values) {
  Doubles sums(shape.channels);
  for (size_t i = 0; i < values.size(); ++i) sums[i / shape.voxels() % shape.channels] += values[i];
  return sums;
}

void add_per_channel(const Shape& shape, const Doubles& bias, Doubles& values) {
  for (size_t i = 0; i < values.size(); ++i) values[i] += bias[i / shape.voxels() % shape.channels];
}

// The tolerance for rounding errors, see `compare`.
constexpr double kTolerance = 2e-4;

// By default up to more threads than the weight gradient has points along an axis (8).
std::vector<int> thread_counts{1, 2, 3, 9};
constexpr size_t kVoxelsForManyThreads = 500;

struct ConvolutionCase {
  int batch, in, out, x, y, z;
  bool bias;
};

void test_convolution(const ConvolutionCase& c) {
  const Shape x_shape{c.batch, c.in, c.x, c.y, c.z}, y_shape{c.batch, c.out, c.x, c.y, c.z};
  const int taps = kVolumeTaps;
  const Doubles x = random_values(plain_size(x_shape), 1, 0.5);
  const Doubles weights =
      random_values(static_cast<size_t>(c.in) * c.out * taps, 1 / std::sqrt(c.in * taps));
  const Doubles bias = c.bias ? random_values(c.out) : Doubles{0};
  const Doubles d_y = random_values(plain_size(y_shape));
  Doubles y = convolution(Kind::kConv5, x_shape, y_shape, kTaps, x, weights);
  if (c.bias) add_per_channel(y_shape, bias, y);
  Doubles d_x, d_weights;
  convolution_backward(Kind::kConv5, x_shape, y_shape, kTaps, x, weights, d_y, d_x, d_weights);

  const Tensor x_tensor = tensor(x, plain_sides(x_shape));
  const Tensor weight_tensor = tensor(weights, {c.out, c.in, kTaps, kTaps, kTaps});
  const Tensor spec = tensor({double(c.in), double(c.out), double(c.bias)});
  for (const int threads : thread_counts) {
    if (threads > 3 && x_shape.voxels() < kVoxelsForManyThreads) continue;
    set_threads(threads);
    const std::string name = "convolution " + std::to_string(c.in) + " -> " +
                             std::to_string(c.out) + ", batch " + std::to_string(c.batch) + ", " +
                             std::to_string(c.x) + "x" + std::to_string(c.y) + "x" +
                             std::to_string(c.z) + ", " + std::to_string(threads) + " threads, ";
    const Tensor found =
        run(name + "y", conv_forward, {x_tensor, weight_tensor, tensor(bias), spec},
            {plain_sides(y_shape)})[0];
    compare(name + "y", doubles(found), y, kTolerance);
    const std::vector<Tensor> gradients =
        run(name + "gradients", conv_backward,
            {x_tensor, weight_tensor, tensor(d_y, plain_sides(y_shape)), spec},
            {x_tensor.sides, weight_tensor.sides, {c.out}});
    compare(name + "d_x", doubles(gradients[0]), d_x, kTolerance);
    compare(name + "d_weight", doubles(gradients[1]), d_weights, kTolerance);
    if (c.bias)
      compare(name + "d_bias", doubles(gradients[2]), channel_sums(y_shape, d_y), kTolerance);
  }
}

// ---------------------------------------------------------------------------------------- units

enum class Residual { kNone, kInput, kTensor };

struct UnitCase {
  Kind kind;
  int batch, in, out, x, y, z;  // sides of the smaller of the two grids
  Activation first = Activation::kNone;
  Residual residual = Residual::kNone;
  Activation second = Activation::kNone;
  bool bias = false, norm = false;
  int skip = 0;  // channels
  bool dropout_mask = false;

  bool same_size() const { return kind == Kind::kConv5; }
  // As a network's first unit, which adds the volume to each channel.
  bool of_volume() const { return in == 1 && residual == Residual::kInput; }
  // That of a volume is added to the residual's, where rows are whole vectors, as a network's are.
  bool has_source_gradient() const { return !of_volume() || z % kLanes == 0; }
  int side() const { return same_size() ? 5 : 2; }
  Shape grid(int channels, bool fine) const {
    const int step = fine ? 2 : 1;
    return Shape::between_units(batch, channels, step * x, step * y, step * z);
  }
  Shape x_shape() const {
    Shape shape = grid(in, kind == Kind::kConvDown2);
    shape.plain |= of_volume();
    return shape;
  }
  Shape y_shape() const { return grid(out, kind == Kind::kConvUp2); }
  Shape skip_shape() const { return grid(skip, kind == Kind::kConvUp2); }
  Shape out_shape() const { return grid(out + skip, kind == Kind::kConvUp2); }
  std::string name() const {
    const char* kinds[] = {"conv5", "conv_down2", "conv_up2"};
    const auto number = [](auto value) { return std::to_string(static_cast<int>(value)); };
    return std::string("unit ") + kinds[static_cast<int>(kind)] + " " + number(in) + " -> " +
           number(out) + ", batch " + number(batch) + ", " + number(x) + "x" + number(y) + "x" +
           number(z) + ", first " + number(first) + ", residual " + number(residual) + ", second " +
           number(second) + (bias ? ", bias" : "") + (norm ? ", norm" : "") + ", skip " +
           number(skip) + (dropout_mask ? ", dropout" : "");
  }
};

constexpr double kEpsilon = 1e-3, kMomentum = 0.75;

// A unit's inputs, or their gradients.
struct Values {
  Doubles x, weight, bias, gamma, beta, moving_mean, moving_variance, first_slopes, second_slopes;
  Doubles residual, skip, dropout_mask;
};

Values random_inputs(const UnitCase& c) {
  const Shape x = c.x_shape(), y = c.y_shape();
  const int taps = c.side() * c.side() * c.side();
  const int fan_in = c.kind == Kind::kConvUp2 ? c.in : c.in * taps;
  Values v;
  v.x = random_values(plain_size(x), 1, 0.3);
  v.weight =
      random_values(static_cast<size_t>(c.in) * c.out * taps, 1 / std::sqrt(fan_in), 0.2 / fan_in);
  const auto channels = [&](bool wanted, double scale, double mean) {
    return wanted ? random_values(c.out, scale, mean) : Doubles{0};
  };
  v.bias = channels(c.bias, 0.5, 0.5);
  v.gamma = channels(c.norm, 0.3, 1);
  v.beta = channels(c.norm, 0.3, 0);
  v.moving_mean = channels(c.norm, 0.5, 0);
  v.moving_variance = channels(c.norm, 0.1, 1);
  v.first_slopes = channels(c.first == Activation::kPrelu, 0.2, 0.25);
  v.second_slopes = channels(c.second == Activation::kPrelu, 0.2, 0.25);
  const bool has_tensor = c.residual == Residual::kTensor;
  v.residual = has_tensor ? random_values(plain_size(y)) : Doubles{0};
  v.skip = c.skip > 0 ? random_values(plain_size(c.skip_shape())) : Doubles{0};
  v.dropout_mask =
      c.dropout_mask ? random_values(static_cast<size_t>(c.batch) * c.skip, 0.5, 1) : Doubles{0};
  return v;
}

double activated(Activation kind, double slope, double value) {
  if (kind == Activation::kNone || value > 0) return value;
  return kind == Activation::kElu ? std::expm1(value) : slope * value;
}
double derivative(Activation kind, double slope, double value) {
  if (kind == Activation::kNone || value > 0) return 1;
  return kind == Activation::kElu ? std::exp(value) : slope;
}

// What a unit computes, by its definition; with d_out also the gradients of its inputs.
struct Reference {
  Doubles y, mean, variance, new_moving_mean, new_moving_variance, out;
  Values gradients;

  Reference(const UnitCase& c, const Values& v, bool training, const Doubles* d_out = nullptr) {
    const Shape x_shape = c.x_shape(), shape = c.y_shape(), out_shape = c.out_shape();
    const size_t size = plain_size(shape);
    const double count = static_cast<double>(shape.voxels()) * shape.batch;
    const auto channel = [&](size_t i) { return i / shape.voxels() % shape.channels; };
    const auto image = [&](size_t i) { return i / shape.voxels() / shape.channels; };
    const auto out_at = [&](size_t i) {
      return i + image(i) * shape.voxels() * static_cast<size_t>(c.skip);
    };
    const auto x_at = [&](size_t i) {  // of one channel: for all of y's
      return c.in == 1 ? image(i) * shape.voxels() + i % shape.voxels() : i;
    };
    y = convolution(c.kind, x_shape, shape, c.side(), v.x, v.weight);
    Doubles z = y;  // with the bias
    if (c.bias) add_per_channel(shape, v.bias, z);

    Doubles scale(c.out, 1);
    Doubles normal = z;  // before gamma and beta
    if (c.norm) {
      mean = channel_sums(shape, z);
      for (double& value : mean) value /= count;
      Doubles squares(size);
      for (size_t i = 0; i < size; ++i) squares[i] = std::pow(z[i] - mean[channel(i)], 2);
      variance = channel_sums(shape, squares);
      for (double& value : variance) value /= count;
      for (int k = 0; k < c.out; ++k) {
        const double unbiased = count > 1 ? variance[k] * count / (count - 1) : variance[k];
        new_moving_mean.push_back(kMomentum * v.moving_mean[k] + (1 - kMomentum) * mean[k]);
        new_moving_variance.push_back(kMomentum * v.moving_variance[k] +
                                      (1 - kMomentum) * unbiased);
        scale[k] = 1 / std::sqrt((training ? variance : v.moving_variance)[k] + kEpsilon);
      }
      const Doubles& center = training ? mean : v.moving_mean;
      for (size_t i = 0; i < size; ++i) normal[i] = (z[i] - center[channel(i)]) * scale[channel(i)];
    }

    Doubles affine(size), sum(size);
    out.resize(plain_size(out_shape));
    const auto first_slope = [&](size_t i) {
      return c.first == Activation::kPrelu ? v.first_slopes[channel(i)] : 0;
    };
    const auto second_slope = [&](size_t i) {
      return c.second == Activation::kPrelu ? v.second_slopes[channel(i)] : 0;
    };
    for (size_t i = 0; i < size; ++i) {
      affine[i] = c.norm ? normal[i] * v.gamma[channel(i)] + v.beta[channel(i)] : normal[i];
      sum[i] = activated(c.first, first_slope(i), affine[i]);
      if (c.residual == Residual::kTensor) sum[i] += v.residual[i];
      if (c.residual == Residual::kInput) sum[i] += v.x[x_at(i)];
      out[out_at(i)] = activated(c.second, second_slope(i), sum[i]);
    }
    const size_t skip_floats = shape.voxels() * c.skip;  // of an image
    const auto skip_at = [&](size_t i) {
      return i + (i / skip_floats + 1) * shape.voxels() * shape.channels;
    };
    const size_t skip_size = c.skip > 0 ? v.skip.size() : 0;
    for (size_t i = 0; i < skip_size; ++i)
      out[skip_at(i)] = v.skip[i] * (c.dropout_mask ? v.dropout_mask[i / shape.voxels()] : 1);
    if (d_out == nullptr) return;

    Values& d = gradients;
    Doubles d_normal(size), d_normal_normal(size), d_y(size);
    for (Doubles* slopes : {&d.first_slopes, &d.second_slopes, &d.gamma, &d.beta})
      slopes->assign(c.out, 0);
    d.x.assign(v.x.size(), 0);
    d.residual.resize(size);
    for (size_t i = 0; i < size; ++i) {
      const size_t k = channel(i);
      const double d_value = (*d_out)[out_at(i)];
      const double d_sum = d_value * derivative(c.second, second_slope(i), sum[i]);
      if (sum[i] < 0) d.second_slopes[k] += d_value * sum[i];
      d.residual[i] = d_sum;
      if (c.residual == Residual::kInput) d.x[x_at(i)] += d_sum;
      const double d_affine = d_sum * derivative(c.first, first_slope(i), affine[i]);
      if (affine[i] < 0) d.first_slopes[k] += d_sum * affine[i];
      d.beta[k] += d_affine;
      d.gamma[k] += d_affine * normal[i];
      d_normal[i] = d_affine * (c.norm ? v.gamma[k] : 1);
      d_normal_normal[i] = d_normal[i] * normal[i];
    }
    const Doubles sums = channel_sums(shape, d_normal);
    const Doubles products = channel_sums(shape, d_normal_normal);
    for (size_t i = 0; i < size; ++i) {
      const size_t k = channel(i);
      d_y[i] = c.norm ? scale[k] * (d_normal[i] - (sums[k] + normal[i] * products[k]) / count)
                      : d_normal[i];
    }
    d.bias = channel_sums(shape, d_y);
    if (c.norm) d.bias.assign(c.out, 0);  // exactly
    convolution_backward(c.kind, x_shape, shape, c.side(), v.x, v.weight, d_y, d.x, d.weight);
    d.skip.resize(skip_size);
    d.dropout_mask.assign(v.dropout_mask.size(), 0);
    for (size_t i = 0; i < skip_size; ++i) {
      const double gradient = (*d_out)[skip_at(i)];
      d.skip[i] = gradient * (c.dropout_mask ? v.dropout_mask[i / shape.voxels()] : 1);
      if (c.dropout_mask) d.dropout_mask[i / shape.voxels()] += gradient * v.skip[i];
    }
  }
};

double dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The reference's gradients against finite differences, each along one random direction.
void test_reference(const UnitCase& c, const Values& values, const Doubles& d_out) {
  const Values gradients = Reference(c, values, true, &d_out).gradients;
  const auto along = [&](const char* field, Doubles Values::* member, bool wanted) {
    if (!wanted) return;
    constexpr double kStep = 1e-6;
    const Doubles direction = random_values((values.*member).size());
    if (kEmulated) return;  // after the draws, as in test_fork
    double losses[2];
    for (const int side : {0, 1}) {
      Values moved = values;
      for (size_t i = 0; i < direction.size(); ++i)
        (moved.*member)[i] += (side == 0 ? -kStep : kStep) * direction[i];
      losses[side] = dot(Reference(c, moved, true).out, d_out);
    }
    const double expected = (losses[1] - losses[0]) / (2 * kStep);
    const double found = dot(gradients.*member, direction);
    double scale = 1;
    for (size_t i = 0; i < direction.size(); ++i)
      scale += std::abs((gradients.*member)[i] * direction[i]);
    check(std::abs(found - expected) <= 1e-5 * scale, c.name() + ", the reference's d_" + field,
          "is " + std::to_string(found) + ", by finite differences " + std::to_string(expected));
  };
  along("x", &Values::x, true);
  along("weight", &Values::weight, true);
  along("bias", &Values::bias, c.bias);
  along("gamma", &Values::gamma, c.norm);
  along("beta", &Values::beta, c.norm);
  along("first_slopes", &Values::first_slopes, c.first == Activation::kPrelu);
  along("second_slopes", &Values::second_slopes, c.second == Activation::kPrelu);
  along("residual", &Values::residual, c.residual == Residual::kTensor);
  along("skip", &Values::skip, c.skip > 0);
  along("dropout_mask", &Values::dropout_mask, c.dropout_mask);
}

// A unit with its data in the layout of the kernels.
struct UnitData {
  Tensor x, weight, bias, gamma, beta, moving_mean, moving_variance, first_slopes, second_slopes;
  Tensor residual, skip, dropout_mask;
  Unit unit;

  UnitData(const UnitCase& c, const Values& v)
      : x(laid_out(c.x_shape(), v.x)),
        weight(tensor(v.weight)),
        bias(tensor(v.bias)),
        gamma(tensor(v.gamma)),
        beta(tensor(v.beta)),
        moving_mean(tensor(v.moving_mean)),
        moving_variance(tensor(v.moving_variance)),
        first_slopes(tensor(v.first_slopes)),
        second_slopes(tensor(v.second_slopes)) {
    unit.kind = c.kind;
    unit.x = c.x_shape();
    unit.y = c.y_shape();
    unit.source = x.values.data();
    unit.weights = weight.values.data();
    if (c.bias) unit.bias = bias.values.data();
    PostOps& post_ops = unit.post_ops;
    post_ops.shape = unit.y;
    post_ops.epsilon = kEpsilon;
    post_ops.first = c.first;
    post_ops.second = c.second;
    if (c.first == Activation::kPrelu) post_ops.first_slopes = first_slopes.values.data();
    if (c.second == Activation::kPrelu) post_ops.second_slopes = second_slopes.values.data();
    if (c.norm) post_ops.gamma = gamma.values.data();
    if (c.norm) post_ops.beta = beta.values.data();
    if (c.residual == Residual::kTensor) residual = laid_out(unit.y, v.residual);
    if (c.residual == Residual::kTensor) post_ops.residual = residual.values.data();
    if (c.residual == Residual::kInput) post_ops.residual = unit.source;
    post_ops.residual_is_volume = c.of_volume();
    if (c.skip == 0) return;
    skip = laid_out(c.skip_shape(), v.skip);
    post_ops.skip = skip.values.data();
    post_ops.skip_channels = c.skip;
    dropout_mask = tensor(v.dropout_mask);
    if (c.dropout_mask) post_ops.dropout_mask = dropout_mask.values.data();
  }
};

// What a step of training computes of a unit, in arrays that were full of NaN.
struct UnitStep {
  Tensor inferred, out, y;
  Doubles mean, variance;
  Floats moving_mean, moving_variance;
  Tensor d_x, d_residual, d_skip;
  Floats d_weight, gamma, beta, first_slopes, second_slopes, d_mask;

  UnitStep(Runtime& runtime, const UnitCase& c, const UnitData& data, const Tensor& d_out)
      : inferred(nans(c.out_shape())),
        out(nans(c.out_shape())),
        y(nans(c.y_shape())),
        mean(c.out, NAN),
        variance(c.out, NAN),
        moving_mean(data.moving_mean.values),
        moving_variance(data.moving_variance.values),
        d_x(nans(c.x_shape())),
        d_residual(nans(c.y_shape())),
        d_skip(nans(c.grid(std::max(1, c.skip), c.kind == Kind::kConvUp2))),
        d_weight(data.weight.values.size(), NAN),
        gamma(c.out, NAN),
        beta(c.out, NAN),
        first_slopes(c.out, NAN),
        second_slopes(c.out, NAN),
        d_mask(static_cast<size_t>(c.batch) * c.skip, NAN) {
    const Unit& unit = data.unit;
    infer_unit(runtime, unit, moving_mean.data(), moving_variance.data(), inferred.values.data());
    float* const y_data = y.values.data();
    convolve_with_statistics(runtime, unit, y_data, mean.data(), variance.data());
    if (c.norm)
      MovingStatistics{moving_mean.data(), moving_variance.data(), kMomentum}.update(
          unit, mean.data(), variance.data());
    post_ops_forward(runtime.pool, unit.post_ops, y_data, mean.data(), variance.data(),
                     out.values.data());
    if (c.dropout_mask)
      skip_mask_gradient(runtime, unit.post_ops, d_out.values.data(), d_mask.data());
    UnitGradients to;
    to.source = c.has_source_gradient() ? d_x.values.data() : nullptr;
    to.weights = d_weight.data();
    to.post_ops.y = y_data;
    to.post_ops.gamma = gamma.data();
    to.post_ops.beta = beta.data();
    to.post_ops.first_slopes = first_slopes.data();
    to.post_ops.second_slopes = second_slopes.data();
    if (c.skip > 0) to.post_ops.skip = d_skip.values.data();
    if (c.residual == Residual::kTensor) to.post_ops.residual = d_residual.values.data();
    to.adds_to_source = c.residual == Residual::kInput;
    if (to.adds_to_source) to.post_ops.residual = to.source;
    unit_backward(runtime, unit, y_data, out.values.data(), mean.data(), variance.data(),
                  d_out.values.data(), to);
  }

  bool same_bits(const UnitStep& other) const {
    const auto same = [&](auto UnitStep::* field) {
      const auto &a = values(this->*field), &b = values(other.*field);
      return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
    };
    return same(&UnitStep::inferred) && same(&UnitStep::out) && same(&UnitStep::y) &&
           same(&UnitStep::d_x) && same(&UnitStep::d_residual) && same(&UnitStep::d_skip) &&
           same(&UnitStep::d_weight) && same(&UnitStep::gamma) && same(&UnitStep::beta) &&
           same(&UnitStep::first_slopes) && same(&UnitStep::second_slopes) &&
           same(&UnitStep::d_mask);
  }

 private:
  static Tensor nans(const Shape& shape) { return {sides_of(shape), Floats(shape.floats(), NAN)}; }
  static const Floats& values(const Tensor& of) { return of.values; }
  static const Floats& values(const Floats& of) { return of; }
};

void test_unit(const UnitCase& c) {
  const Shape x = c.x_shape(), y = c.y_shape(), skip = c.skip_shape(), out = c.out_shape();
  const Values v = random_inputs(c);
  const Doubles d_out = random_values(plain_size(out));
  if (x.voxels() <= 100) test_reference(c, v, d_out);
  const Reference training(c, v, true, &d_out), inference(c, v, false);
  const Values& expected = training.gradients;
  const UnitData data(c, v);
  const Tensor d_out_tensor = laid_out(out, d_out);
  for (const int threads : thread_counts) {
    if (threads > 3 && x.voxels() < kVoxelsForManyThreads) continue;
    Runtime runtime(threads);
    const std::string name = c.name() + ", " + std::to_string(threads) + " threads, ";
    const UnitStep found(runtime, c, data, d_out_tensor);
    if (threads == 3)
      check(found.same_bits(UnitStep(runtime, c, data, d_out_tensor)), name,
            "the second run gives other bits");
    const auto compare_with = [&](const char* field, const Doubles& values, const Doubles& wanted) {
      compare(name + field, values, wanted, kTolerance);
    };
    const auto compare_tensor = [&](const char* field, const Shape& shape, const Tensor& values,
                                    const Doubles& wanted) {
      compare_with(field, plain_values(name + field, shape, values), wanted);
    };
    const auto compare_floats = [&](const char* field, const Floats& values,
                                    const Doubles& wanted) {
      compare_with(field, {values.begin(), values.end()}, wanted);
    };
    compare_tensor("inference", out, found.inferred, inference.out);
    compare_tensor("forward", out, found.out, training.out);
    if (c.norm) compare_floats("moving mean", found.moving_mean, training.new_moving_mean);
    if (c.norm)
      compare_floats("moving variance", found.moving_variance, training.new_moving_variance);
    if (c.has_source_gradient()) compare_tensor("d_x", x, found.d_x, expected.x);
    compare_floats("d_weight", found.d_weight, expected.weight);
    if (c.norm) compare_floats("d_gamma", found.gamma, expected.gamma);
    if (c.norm) compare_floats("d_beta", found.beta, expected.beta);
    if (c.bias && !c.norm) compare_floats("d_bias", found.beta, expected.bias);
    if (c.first == Activation::kPrelu)
      compare_floats("d_first_slopes", found.first_slopes, expected.first_slopes);
    if (c.second == Activation::kPrelu)
      compare_floats("d_second_slopes", found.second_slopes, expected.second_slopes);
    if (c.residual == Residual::kTensor)
      compare_tensor("d_residual", y, found.d_residual, expected.residual);
    if (c.skip > 0) compare_tensor("d_skip", skip, found.d_skip, expected.skip);
    if (c.dropout_mask) compare_floats("d_dropout_mask", found.d_mask, expected.dropout_mask);
  }
}

// Errors of a 2x2x2 convolution and its gradients, as the root of their mean square and the
// largest, in standard deviations of the result.
void test_strided_accuracy(const UnitCase& c) {
  const Shape x = c.x_shape(), y = c.y_shape();
  const Values v = random_inputs(c);
  const Doubles d_out = random_values(plain_size(y));
  const Reference expected(c, v, true, &d_out);
  Runtime runtime(2);
  const UnitData data(c, v);
  const UnitStep found(runtime, c, data, laid_out(y, d_out));
  const auto accurate = [&](const char* field, const Doubles& values, const Doubles& wanted) {
    double squares = 0, largest = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      squares += std::pow(values[i] - wanted[i], 2);
      largest = std::max(largest, std::abs(values[i] - wanted[i]));
    }
    const double deviation = std::sqrt(dot(wanted, wanted) / wanted.size());
    check(std::sqrt(squares / wanted.size()) < 2e-6 * deviation && largest < 5e-5 * deviation,
          c.name() + ", " + field,
          "is inaccurate, the largest error is " + std::to_string(largest));
  };
  accurate("out", plain_values(c.name(), y, found.out), expected.out);
  accurate("d_x", plain_values(c.name(), x, found.d_x), expected.gradients.x);
  accurate("d_weight", {found.d_weight.begin(), found.d_weight.end()}, expected.gradients.weight);
}

// ---------------------------------------------------------------------------------------- others

// The last convolution, to two channels, and the softmax of a foreground, or its logit.
void test_head(const Shape& shape, int side, int foreground, bool has_bias, bool logit) {
  const Shape logits_shape{shape.batch, 2, shape.x, shape.y, shape.z};
  const int taps = side * side * side;
  const Doubles x = random_values(plain_size(shape));
  const Doubles weights =
      random_values(size_t(2) * shape.channels * taps, 1 / std::sqrt(shape.channels * taps), 0.01);
  const Doubles bias = random_values(2);
  const size_t voxels = shape.voxels(), size = voxels * shape.batch;
  const Doubles d_output = random_values(size);
  Doubles logits = convolution(Kind::kConv5, shape, logits_shape, side, x, weights);
  if (has_bias) add_per_channel(logits_shape, bias, logits);
  Doubles output(size), d_logits(2 * size), d_x, d_weights;
  for (size_t i = 0; i < size; ++i) {
    const size_t front = i + (i / voxels + foreground) * voxels;
    const size_t back = i + (i / voxels + 1 - foreground) * voxels;
    const double probability = 1 / (1 + std::exp(logits[back] - logits[front]));
    output[i] = logit ? logits[front] - logits[back] : probability;
    d_logits[front] = d_output[i] * (logit ? 1 : probability * (1 - probability));
    d_logits[back] = -d_logits[front];
  }
  convolution_backward(Kind::kConv5, shape, logits_shape, side, x, weights, d_logits, d_x,
                       d_weights);

  const Tensor x_tensor = laid_out(shape, x), weight_tensor = tensor(weights);
  const Tensor bias_tensor = tensor(bias), d_tensor = tensor(d_output);
  const head::Head head{shape,
                        side,
                        foreground,
                        weight_tensor.values.data(),
                        has_bias ? bias_tensor.values.data() : nullptr,
                        logit};
  for (const int threads : thread_counts) {
    Runtime runtime(threads);
    const std::string name = "head of " + std::to_string(shape.channels) + " channels, kernel " +
                             std::to_string(side) + ", " + std::to_string(threads) + " threads, ";
    Floats found(size, NAN), found_d_x(shape.floats(), NAN), found_d_bias(2, NAN);
    Floats found_d_weights(weights.size(), NAN);
    head::forward(runtime.pool, runtime.workspace.shared, head, x_tensor.values.data(),
                  found.data());
    compare(name + "output", {found.begin(), found.end()}, output, 1e-6);
    head::backward(runtime.pool, runtime.workspace.shared, head, x_tensor.values.data(),
                   found.data(), d_tensor.values.data(), found_d_x.data(), found_d_weights.data(),
                   has_bias ? found_d_bias.data() : nullptr);
    compare(name + "d_x", plain_values(name + "d_x", shape, {sides_of(shape), found_d_x}), d_x,
            1e-5);
    compare(name + "d_weight", {found_d_weights.begin(), found_d_weights.end()}, d_weights, 1e-5);
    if (has_bias)
      compare(name + "d_bias", {found_d_bias.begin(), found_d_bias.end()},
              channel_sums(logits_shape, d_logits), 1e-5);
  }
}

void test_scaling(const Shape& shape) {
  const Doubles x = random_values(plain_size(shape)), d_y = random_values(plain_size(shape));
  const Doubles dropout_mask = random_values(static_cast<size_t>(shape.batch) * shape.channels);
  Doubles expected = x;
  Doubles expected_gradient(dropout_mask.size());
  for (size_t i = 0; i < x.size(); ++i) {
    expected[i] *= dropout_mask[i / shape.voxels()];
    expected_gradient[i / shape.voxels()] += x[i] * d_y[i];
  }
  const Tensor x_tensor = laid_out(shape, x), d_tensor = laid_out(shape, d_y);
  const Tensor mask = tensor(dropout_mask);
  for (const int threads : thread_counts) {
    ThreadPool pool(threads);
    const std::string name = "scaling of " + std::to_string(shape.channels) + " channels";
    Tensor found = x_tensor;  // in place
    scale_channels(pool, shape, found.values.data(), mask.values.data(), found.values.data());
    compare(name, plain_values(name, shape, found), expected, 1e-6);
    Floats gradient(dropout_mask.size(), NAN);
    scale_mask_gradient(pool, shape, x_tensor.values.data(), d_tensor.values.data(),
                        gradient.data());
    compare(name + ", gradient", {gradient.begin(), gradient.end()}, expected_gradient, 1e-6);
  }
}

void test_elu() {
  for (double value = -120; value < 3; value += value < -1 ? 0.37 : 0.013) {
    float found[kLanes];
    store(found, elu(broadcast(static_cast<float>(value))));
    const double expected = activated(Activation::kElu, 0, static_cast<float>(value));
    check(std::abs(found[3] - expected) <= 3e-7 * std::abs(expected),
          "elu(" + std::to_string(value) + ")", "is " + std::to_string(found[3]));
  }
  float tiny[kLanes], nan[kLanes];
  store(tiny, elu(broadcast(-1e-20f)));
  store(nan, elu(broadcast(std::numeric_limits<float>::quiet_NaN())));
  check(tiny[0] == -1e-20f, "elu(-1e-20)", "is " + std::to_string(tiny[0]));
  check(std::isnan(nan[0]), "elu(NaN)", "is " + std::to_string(nan[0]));
}

void test_threads() {
  for (int threads = 1; threads <= 5; ++threads) {
    ThreadPool pool(threads);
    check(pool.size() == threads, "ThreadPool", "expected " + std::to_string(threads) + " threads");
    for (const int count : {0, 1, 2, 7, 1000}) {
      std::vector<int> by_item(count);
      pool.for_each(count, [&](int item, int thread) {
        by_item[item] += thread >= 0 && thread < threads ? 1 : 100;
      });
      const std::vector<int> once(count, 1);
      check(by_item == once, "ThreadPool", std::to_string(count) + " items are not done once each");
    }
  }
}

// A thread that leaves its processor runs on another one, if the process may.
void test_processors() {
  std::thread([] {
    cpu_set_t allowed;
    check(sched_getaffinity(getpid(), sizeof allowed, &allowed) == 0, "processors", "are unknown");
    for (int move = 0; move < 3; ++move) {
      const int left = current_processor();
      leave_processor(left);
      check(CPU_COUNT(&allowed) == 1 || current_processor() != left, "processors", "it stays");
    }
  }).join();
}

void test_view() {
  float data[64];
  // Items of 4 floats; the stride of the first axis is padded.
  const auto view = View<3>::packed(data, {2, 3, 2}, 1, 4);
  check(view.stride(0) == 24 + kPad && view.stride(1) == 8 && view.stride(2) == 4, "view",
        "wrong strides");
  check(view(1, 2, 1) == data + view.stride(0) + 20, "view", "wrong item");
  check(view[1](2, 1) == view(1, 2, 1) && view[1][2](1) == view(1, 2, 1), "view", "wrong part");
#ifndef NDEBUG
  for (const std::array<int, 3> wrong : {std::array<int, 3>{2, 0, 0}, {0, 3, 0}, {0, 0, -1}}) {
    const pid_t child = fork();
    if (child == 0) {
      std::fclose(stderr);
      _exit(view(wrong[0], wrong[1], wrong[2]) == data ? 1 : 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "view", "a wrong index is accepted");
  }
#endif
}

// A child process that is forked while an operator runs has threads of its own.
void test_fork() {
  const Shape x{1, 5, 7, 5, 4};
  const std::vector<Tensor> inputs{tensor(random_values(plain_size(x)), plain_sides(x)),
                                   tensor(random_values(size_t{5} * 5 * 125), {5, 5, 5, 5, 5}),
                                   unused(), tensor({5, 5, 0})};
  if (kEmulated) return;  // after the draws: the other tests' values do not depend on it
  const auto forward = [&] {
    return run("fork", conv_forward, inputs, {plain_sides(x)})[0].values;
  };
  set_threads(3);
  const Floats expected = forward();
  auto pool = std::make_unique<ThreadPool>(3);
  const auto sum = [&] {
    std::atomic<int> sum{0};
    pool->for_each(100, [&](int item, int) { sum += item; });
    return sum.load();
  };
  check(sum() == 4950, "fork", "the parent's pool fails");
  state().mutex.lock();
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const bool equal = sum() == 4950 && forward() == expected;
    pool.reset();
    _exit(equal ? 0 : 1);
  }
  state().mutex.unlock();
  int status = 0;
  check(waitpid(child, &status, 0) == child && status == 0, "fork",
        "the child ends with status " + std::to_string(status));
  check(sum() == 4950 && forward() == expected, "fork", "the parent is disturbed");
}

// MindSpore calls operators from several threads.
void test_calls_at_once() {
  set_threads(2);
  constexpr int kCallers = 4, kCalls = 8;
  std::vector<std::vector<Tensor>> inputs;
  std::vector<std::vector<int64_t>> sides;
  std::vector<Tensor> alone;
  for (int caller = 0; caller < kCallers; ++caller) {
    const Shape x{1, 5 + 6 * caller, 3 + caller, 5, 4}, y{1, 7, x.x, x.y, x.z};
    sides.push_back(plain_sides(y));
    inputs.push_back({tensor(random_values(plain_size(x)), plain_sides(x)),
                      tensor(random_values(size_t(x.channels) * 7 * 125), {7, x.channels, 5, 5, 5}),
                      unused(), tensor({double(x.channels), 7, 0})});
    alone.push_back(run("alone", conv_forward, inputs[caller], {sides[caller]})[0]);
  }
  std::vector<char> same(kCallers, 1);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < kCalls; ++i) {
        Floats y(count(sides[caller]));
        std::vector<Tensor> tensors = inputs[caller];
        tensors.push_back({sides[caller], std::move(y)});
        call(conv_forward, tensors);
        y = std::move(tensors.back().values);
        same[caller] &= y == alone[caller].values;
      }
    });
  for (std::thread& caller : callers) caller.join();
  for (int caller = 0; caller < kCallers; ++caller)
    check(same[caller], "calls at once", "caller " + std::to_string(caller) + " got other values");
}

// ------------------------------------------------------------------------------ whole networks

using ParameterValues = std::array<Doubles, kParameters>;

// What a network computes from.
struct NetworkValues {
  NetworkSpec spec;
  Shape shape;  // of the volume
  std::vector<ParameterValues> parameters;
  Doubles volume, dropout_mask;  // (batch, columns), empty without dropout

  int columns() const { return static_cast<int>(dropout_mask.size()) / shape.batch; }
};

// A V-Net in double, layer by layer. Training changes `moving`.
class ReferenceNetwork {
 public:
  ReferenceNetwork(const NetworkValues& values, bool training)
      : moving(values.parameters),
        v_(values),
        d_(values.spec.description),
        layers_(layers_of(d_)),
        training_(training) {}

  std::vector<ParameterValues> moving;

  Doubles output() {
    Shape shape = v_.shape;
    Doubles volumes;  // the volume for each of the channels
    for (int image = 0; image < shape.batch; ++image)
      for (int channel = 0; channel < d_.width; ++channel)
        volumes.insert(volumes.end(), v_.volume.begin() + image * shape.voxels(),
                       v_.volume.begin() + (image + 1) * shape.voxels());
    Doubles x = layer(v_.volume, shape, &volumes);
    std::vector<std::pair<Shape, Doubles>> skips;
    for (int level = 1; level < kLevels; ++level) {
      skips.emplace_back(shape, x);
      x = layer(x, shape);
      x = block(d_.encoder_depths[level], x, shape, v_.spec.dropout.down[level - 1]);
    }
    for (int stage = 0; stage < kLevels - 1; ++stage) {
      x = dropped(x, shape, v_.spec.dropout.up[stage]);
      const auto [skip_shape, skip] = skips.back();
      x = concatenated(layer(x, shape), shape,
                       dropped(skip, skip_shape, v_.spec.dropout.skip[stage]));
      skips.pop_back();
      shape.channels *= 2;
      x = block(d_.decoder_depths[stage], x, shape, -1);
    }
    if (d_.head_unit) x = layer(x, shape);
    x = layer(x, shape);
    const size_t voxels = shape.voxels();
    Doubles result(voxels * shape.batch);
    for (size_t i = 0; i < result.size(); ++i) {
      const double* both = &x[i / voxels * 2 * voxels + i % voxels];
      const double logit = both[d_.foreground * voxels] - both[(1 - d_.foreground) * voxels];
      result[i] = v_.spec.logits ? logit : 1 / (1 + std::exp(-logit));
    }
    return result;
  }

 private:
  Doubles block(int depth, const Doubles& input, Shape& shape, int column) {
    Doubles x = dropped(input, shape, column);
    for (int i = 1; i <= depth; ++i) x = layer(x, shape, i == depth ? &input : nullptr);
    return x;
  }
  Doubles dropped(Doubles x, const Shape& shape, int column) const {
    if (v_.dropout_mask.empty() || column < 0) return x;
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t image = i / shape.voxels() / shape.channels;
      x[i] *= v_.dropout_mask[image * v_.columns() + column + i / shape.voxels() % shape.channels];
    }
    return x;
  }
  // The next layer; `shape` becomes that of its output.
  Doubles layer(const Doubles& x, Shape& shape, const Doubles* residual = nullptr) {
    const Layer& l = layers_[next_];
    const ParameterValues& p = v_.parameters[next_];
    const Shape out = convolved_shape(l.kind, shape, l.out_channels);
    Doubles y = convolution(l.kind, shape, out, l.side, x, p[0]);
    shape = out;
    if (l.has_bias) add_per_channel(shape, p[1], y);
    if (l.norm != Norm::kNone) normalize(l, p, shape, y);
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t channel = i / shape.voxels() % shape.channels;
      const auto slope = [&](Activation of, const Doubles& slopes) {
        return of == Activation::kPrelu ? slopes[channel] : 0;
      };
      double value = activated(l.first, slope(l.first, p[6]), y[i]);
      if (residual != nullptr) value += (*residual)[i];
      y[i] = activated(l.second, slope(l.second, p[7]), value);
    }
    ++next_;
    return y;
  }
  void normalize(const Layer& l, const ParameterValues& p, const Shape& shape, Doubles& y) {
    const size_t voxels = shape.voxels(), images = shape.batch;
    // Calls visit(value) for each value of a channel, of one image or with batch norm of all.
    const auto each = [&](size_t image, size_t channel, const auto& visit) {
      const bool one = l.norm == Norm::kInstance;
      for (size_t k = one ? image : 0; k < (one ? image + 1 : images); ++k)
        for (size_t i = 0; i < voxels; ++i) visit(y[(k * shape.channels + channel) * voxels + i]);
    };
    for (size_t image = 0; image < (l.norm == Norm::kInstance ? images : 1); ++image)
      for (int channel = 0; channel < shape.channels; ++channel) {
        double mean = 0, variance = 0, count = 0;
        each(image, channel, [&](double value) { mean += value, ++count; });
        mean /= count;
        each(image, channel, [&](double value) { variance += std::pow(value - mean, 2) / count; });
        if (l.norm == Norm::kBatch && training_) {
          const double old = v_.spec.momentum;
          moving[next_][4][channel] = old * p[4][channel] + (1 - old) * mean;
          moving[next_][5][channel] =
              old * p[5][channel] + (1 - old) * variance * count / std::max(1., count - 1);
        } else if (l.norm == Norm::kBatch) {
          mean = p[4][channel];
          variance = p[5][channel];
        }
        const double scale = p[2][channel] / std::sqrt(variance + d_.epsilon);
        each(image, channel,
             [&](double& value) { value = (value - mean) * scale + p[3][channel]; });
      }
  }
  static Doubles concatenated(const Doubles& a, const Shape& shape, const Doubles& b) {
    const size_t image = shape.voxels() * shape.channels;
    Doubles both;
    for (int i = 0; i < shape.batch; ++i) {
      both.insert(both.end(), a.begin() + i * image, a.begin() + (i + 1) * image);
      both.insert(both.end(), b.begin() + i * image, b.begin() + (i + 1) * image);
    }
    return both;
  }

  const NetworkValues& v_;
  const NetworkDescription& d_;
  std::vector<Layer> layers_;
  bool training_;
  size_t next_ = 0;
};

std::vector<ParameterValues> random_parameters(const NetworkDescription& description) {
  std::vector<ParameterValues> parameters;
  for (const Layer& layer : layers_of(description)) {
    parameters.emplace_back();
    for (int i = 0; i < kParameters; ++i) {
      const size_t count = parameter_floats(layer, static_cast<Parameter>(i));
      const double fan_in =
          layer.in_channels * (layer.kind == Kind::kConvUp2 ? 1 : std::pow(layer.side, 3));
      // Weights, then bias, gamma, beta, mean; variances are positive; slopes. These are near 1:
      // each voxel that rounding takes across PReLU's kink changes the gradients by 1 - slope.
      const double scales[] = {1 / std::sqrt(fan_in), 0.2, 0.2, 0.2, 0.2, 0.1, 0.02, 0.02};
      const double means[] = {0, 0, 1, 0, 0, 1, 1, 1};
      parameters.back()[i] = random_values(count, scales[i], means[i]);
    }
  }
  return parameters;
}

// Who wrote each float of an arena last.
class Owners {
 public:
  enum What { kOut, kY, kGradient };

  Owners(const std::string& name, size_t floats) : name_(name), owners_(floats, -1) {}

  void write(What what, int layer, size_t at, size_t floats) {
    check(at + floats <= owners_.size(), name_, "a tensor is outside of the arena");
    for (size_t i = at; i < std::min(at + floats, owners_.size()); ++i)
      owners_[i] = id(what, layer);
  }
  void read(What what, int layer, size_t at, size_t floats) const {
    bool whole = at + floats <= owners_.size();
    for (size_t i = at; whole && i < at + floats; ++i) whole = owners_[i] == id(what, layer);
    check(whole, name_,
          "tensor " + std::to_string(what) + " of layer " + std::to_string(layer) +
              " is written over while it is needed");
  }

 private:
  static int id(What what, int layer) { return 3 * layer + what; }

  std::string name_;
  std::vector<int> owners_;
};

// No tensor is written over while it is needed.
void test_inference_plan(const std::string& name, const Network& network) {
  const InferencePlan plan(network);
  Owners owners(name, plan.floats);
  for (int i = 0; i < network.count(); ++i) {
    const Layer& layer = network.layers[i];
    if (!layer.is_last)
      owners.write(Owners::kOut, i, plan.places[i], network.shapes[i].out.floats());
    for (const int tensor : {layer.source, layer.residual, layer.skip})
      if (tensor >= 0)
        owners.read(Owners::kOut, tensor, plan.places[tensor], network.shape_of(tensor).floats());
  }
}

void test_training_plan(const std::string& name, const Network& network) {
  using What = Owners::What;
  const TrainingPlan plan(network);
  Owners owners(name, plan.floats);
  const auto place_of = [&](What what, int layer) {
    const TrainingPlan::Places& places = plan.layers[layer];
    const LayerShapes& shapes = network.shapes[layer];
    if (what == Owners::kY) return std::pair(places.y, shapes.y.floats());
    return std::pair(what == Owners::kOut ? places.out : places.d_out, shapes.out.floats());
  };
  const auto write = [&](What what, int layer) {
    const auto [at, floats] = place_of(what, layer);
    owners.write(what, layer, at, floats);
  };
  const auto read = [&](What what, int layer) {
    if (layer < 0) return;
    const auto [at, floats] = place_of(what, layer);
    owners.read(what, layer, at, floats);
  };
  for (int i = 0; i + 1 < network.count(); ++i) write(Owners::kY, i), write(Owners::kOut, i);
  for (int i = network.count() - 1; i >= 0; --i) {
    const Layer& layer = network.layers[i];
    if (!layer.is_last) {
      if (layer.skip >= 0) write(Owners::kGradient, layer.skip);
      for (const What what : {Owners::kY, Owners::kOut, Owners::kGradient}) read(what, i);
      for (const int tensor : {layer.residual, layer.skip}) read(Owners::kOut, tensor);
      if (layer.residual >= 0) write(Owners::kGradient, layer.residual);
    }
    if (layer.source < 0) continue;
    if (plan.layers[i].adds_to_source) read(Owners::kGradient, layer.source);
    write(Owners::kGradient, layer.source);
    if (!layer.is_last) read(Owners::kY, i);  // where d_y is
    read(Owners::kOut, layer.source);
  }
}

Tensor spec_tensor(const NetworkSpec& spec) {
  const NetworkDescription& d = spec.description;
  Doubles numbers{double(d.width)};
  numbers.insert(numbers.end(), d.encoder_depths.begin(), d.encoder_depths.end());
  numbers.insert(numbers.end(), d.decoder_depths.begin(), d.decoder_depths.end());
  for (const double number :
       {double(d.activation), double(d.norm), double(d.activation_before_sum),
        double(d.encoder_bias), double(d.decoder_bias), double(d.up_bias), double(d.head_unit),
        double(d.head_side), double(d.head_bias), double(d.foreground), double(d.epsilon)})
    numbers.push_back(number);
  for (const auto& columns : {spec.dropout.down, spec.dropout.up, spec.dropout.skip})
    numbers.insert(numbers.end(), columns.begin(), columns.end());
  numbers.push_back(spec.momentum);
  numbers.push_back(spec.logits);
  return tensor(numbers);
}

// The operators of a network, on arrays of floats.
struct NetworkRun {
  const NetworkValues& values;
  std::vector<Layer> layers = layers_of(values.spec.description);
  std::vector<Tensor> weights, statistics;
  Tensor volume, mask, spec;
  std::vector<int64_t> sides{values.shape.batch, values.shape.x, values.shape.y, values.shape.z};
  int64_t tape;

  explicit NetworkRun(const NetworkValues& of) : values(of) {
    for_each_parameter(layers, [&](size_t layer, Parameter parameter, size_t) {
      auto& list = is_statistic(parameter) ? statistics : weights;
      list.push_back(tensor(of.parameters[layer][static_cast<size_t>(parameter)]));
    });
    volume = tensor(of.volume, plain_sides(of.shape));
    mask = of.columns() == 0 ? unused() : tensor(of.dropout_mask, {of.shape.batch, of.columns()});
    spec = spec_tensor(of.spec);
    tape =
        network_tape_floats(spec.values.data(), of.shape.batch, of.shape.x, of.shape.y, of.shape.z);
  }

  std::vector<Tensor> inputs(std::vector<Tensor> others, bool with_statistics) const {
    std::vector<Tensor> all{volume, mask, spec};
    all.insert(all.end(), others.begin(), others.end());
    all.insert(all.end(), weights.begin(), weights.end());
    if (with_statistics) all.insert(all.end(), statistics.begin(), statistics.end());
    return all;
  }
};

// The gradients of a training step along one direction through all arrays, against a difference of
// the reference. Each array's part is the same, so that none can be wrong unseen.
void test_network_gradients(const std::string& name, const NetworkValues& values,
                            const Doubles& d_output, const std::vector<Doubles*>& arrays,
                            const std::vector<Tensor>& gradients, NetworkValues& moved) {
  constexpr double kStep = 1e-6;
  double found = 0;
  std::vector<Doubles> directions;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const Doubles gradient = doubles(gradients[i]);
    const double norm = std::sqrt(dot(gradient, gradient));
    Doubles direction = random_values(gradient.size());
    const double random_norm = std::sqrt(dot(direction, direction));
    for (size_t k = 0; k < direction.size(); ++k)  // none for a bias before a norm
      direction[k] = norm == 0 ? 0 : (gradient[k] / norm + direction[k] / random_norm) / norm;
    found += dot(gradient, direction);
    directions.push_back(direction);
  }
  double outputs[2];
  for (const int side : {0, 1}) {
    for (size_t i = 0; i < arrays.size(); ++i)
      for (size_t k = 0; k < directions[i].size(); ++k)
        (*arrays[i])[k] += (side == 0 ? -kStep : 2 * kStep) * directions[i][k];
    outputs[side] = dot(ReferenceNetwork(moved, true).output(), d_output);
  }
  const double expected = (outputs[1] - outputs[0]) / (2 * kStep);
  check(std::abs(found - expected) < 0.02, name + ", gradients",
        "of " + std::to_string(arrays.size()) + " arrays: " + std::to_string(found) +
            ", by finite differences " + std::to_string(expected) + " " +
            std::to_string(values.columns()));
}

void test_training(const std::string& name, const NetworkValues& values) {
  NetworkRun of(values);
  ReferenceNetwork reference(values, true);
  const Doubles expected = reference.output(), d_output = random_values(expected.size());
  // In its own memory: the operator changes the moving statistics in place.
  std::vector<Tensor> forward = of.inputs({}, true);
  forward.push_back({of.sides, Floats(expected.size(), NAN)});
  forward.push_back({{of.tape}, Floats(of.tape, NAN)});
  check(call(network_forward, forward) == 0, name, "network_forward fails");
  const Tensor out = *(forward.end() - 2), tape = forward.back();
  compare(name + ", training", doubles(out), expected, kTolerance);
  size_t next = 3 + of.weights.size();
  for_each_parameter(of.layers, [&](size_t layer, Parameter parameter, size_t) {
    if (is_statistic(parameter))
      compare(name + ", moving statistics", doubles(forward[next++]),
              reference.moving[layer][static_cast<size_t>(parameter)], kTolerance);
  });

  const Tensor d_out = tensor(d_output, of.sides);
  std::vector<std::vector<int64_t>> weight_sides;
  for (const Tensor& weight : of.weights) weight_sides.push_back(weight.sides);
  std::vector<Tensor> gradients = run(name + ", backward", network_backward,
                                      of.inputs({tape, out, d_out}, false), weight_sides);
  const std::vector<Tensor> of_inputs =
      run(name + ", input gradients", network_input_gradients, of.inputs({d_out}, false),
          {of.volume.sides, of.mask.sides});
  gradients.insert(gradients.end(), of_inputs.begin(), of_inputs.end());

  NetworkValues moved = values;
  std::vector<Doubles*> arrays;
  for_each_parameter(of.layers, [&](size_t layer, Parameter parameter, size_t) {
    if (!is_statistic(parameter))
      arrays.push_back(&moved.parameters[layer][static_cast<size_t>(parameter)]);
  });
  arrays.push_back(&moved.volume);
  if (values.columns() > 0) arrays.push_back(&moved.dropout_mask);
  test_network_gradients(name, values, d_output, arrays, gradients, moved);
}

void test_network(const std::string& name, const NetworkSpec& spec, const Shape& shape,
                  int columns) {
  const NetworkDescription& d = spec.description;
  check(fault_of(d) == nullptr && takes_shape(d, shape), name, "is refused");
  const Network network(d, shape);
  test_inference_plan(name + ", plan", network);
  test_training_plan(name + ", plan of training", network);
  const size_t factors = static_cast<size_t>(columns) * shape.batch;
  const NetworkValues values{spec, shape, random_parameters(d), random_values(plain_size(shape)),
                             random_values(factors, 0.5, 1)};
  const NetworkRun of(values);
  set_threads(3);
  // Twice, the second time in the first one's memory.
  const Tensor found = run(name, network_infer, of.inputs({}, true), {of.sides})[0];
  compare(name, doubles(found), ReferenceNetwork(values, false).output(), kTolerance);
  // As large a reference takes too long.
  if (d.width < 5) test_training(name, values);
}

// Dropout in all places; returns the number of columns.
int drop_everywhere(NetworkSpec& spec) {
  const int width = spec.description.width;
  int next = 0;
  const auto claim = [&](int channels) { return std::exchange(next, next + channels); };
  for (int i = 0; i < kLevels - 1; ++i) {
    spec.dropout.down[i] = claim(width << (i + 1));
    spec.dropout.up[i] = claim(width << std::min(4, 5 - i));
    spec.dropout.skip[i] = claim(width << (3 - i));
  }
  return next;
}

void drop_nowhere(NetworkSpec& spec) {
  for (auto* columns : {&spec.dropout.down, &spec.dropout.up, &spec.dropout.skip})
    columns->fill(-1);
}

void test_networks() {
  NetworkSpec spec{};
  drop_nowhere(spec);
  spec.momentum = kMomentum;
  NetworkDescription& d = spec.description;
  d.width = 3;  // some skips then span two blocks of channels
  d.encoder_depths = {1, 1, 1, 1, 1};
  d.decoder_depths = {1, 1, 1, 1};
  d.activation = Activation::kElu;
  d.norm = Norm::kBatch;
  d.activation_before_sum = true;
  d.head_unit = true;
  d.head_side = 3;
  d.epsilon = kEpsilon;
  NetworkSpec dropping = spec;
  dropping.logits = true;
  test_network("network with batch norm", dropping, {1, 1, 32, 16, 16}, drop_everywhere(dropping));
  if (kEmulated) return;  // the others differ in their plan
  d.width = 1;
  d.encoder_depths = {1, 1, 2, 3, 2};
  d.decoder_depths = {2, 2, 1, 1};
  d.activation = Activation::kPrelu;
  d.encoder_bias = d.up_bias = d.head_bias = true;
  d.head_side = 1;
  d.foreground = 1;
  d.activation_before_sum = false;
  test_network("network with PReLU and batch norm", spec, {3, 1, 32, 16, 16}, 0);
  d.norm = Norm::kNone;
  d.decoder_bias = true;
  d.encoder_depths = {1, 2, 1, 1, 3};
  d.decoder_depths = {1, 3, 1, 2};
  d.head_unit = false;
  d.head_side = 3;
  test_network("network without norm", spec, {1, 1, 16, 16, 16}, drop_everywhere(spec));
  d.norm = Norm::kInstance;
  d.activation = Activation::kElu;
  d.head_side = 1;
  test_network("network with instance norm", spec, {2, 1, 32, 16, 32}, drop_everywhere(spec));
  d.width = 5;
  d.head_unit = true;
  d.head_side = 5;
  drop_nowhere(spec);
  test_network("network with instance norm and a head's unit", spec, {1, 1, 32, 16, 16}, 0);
  d.width = 16;
  test_training_plan("plan", Network(d, {1, 1, 48, 32, 16}));
  spec.description.head_side = 2;
  check(network_fault(spec_tensor(spec).values.data()) == std::string("the head's kernel"),
        "network_fault", "another answer");
}

// ---------------------------------------------------------------------------------------- tables

// Batches of more than 64 tiles of 4x4x4 voxels take the loop order for many tiles.
const ConvolutionCase kConvolutions[] = {
    // few input channels: plain
    {1, 1, 1, 1, 1, 1, true},
    {2, 1, 16, 3, 5, 7, true},
    {1, 3, 17, 2, 3, 19, true},
    {1, 4, 33, 5, 1, 3, false},
    // few output channels: plain
    {1, 32, 2, 3, 5, 7, true},
    {2, 17, 3, 2, 19, 13, true},
    {1, 5, 4, 7, 1, 1, false},
    {1, 33, 1, 1, 1, 1, false},
    {1, 40, 7, 3, 2, 5, true},
    // few voxels, direct along x and y: lines of 1 to 6 voxels
    {1, 5, 5, 1, 1, 1, true},
    {1, 20, 40, 5, 3, 1, true},
    {2, 33, 17, 4, 4, 2, true},
    {3, 16, 16, 2, 1, 3, true},
    {1, 17, 33, 5, 5, 3, false},
    {1, 5, 17, 3, 2, 4, true},
    {2, 17, 5, 1, 2, 5, false},
    {1, 33, 16, 2, 1, 6, true},
    // few voxels, tiles along x and y
    {1, 5, 17, 16, 13, 1, true},
    {1, 17, 5, 9, 10, 2, false},
    {1, 17, 33, 5, 7, 3, true},
    {2, 40, 5, 4, 4, 4, false},
    {1, 33, 20, 8, 5, 5, true},
    {1, 16, 17, 9, 3, 6, true},
    // few tiles along all axes
    {1, 5, 6, 13, 16, 16, true},
    {1, 17, 33, 5, 7, 9, true},
    {2, 40, 5, 4, 3, 8, false},
    // many tiles
    {1, 5, 6, 17, 13, 16, true},
    {1, 17, 33, 67, 1, 13, true},
    {3, 5, 17, 3, 1, 89, false},
};

constexpr Activation kNoActivation = Activation::kNone, kElu = Activation::kElu;
constexpr Activation kPrelu = Activation::kPrelu;
constexpr Residual kNoResidual = Residual::kNone, kInputResidual = Residual::kInput;
constexpr Residual kTensorResidual = Residual::kTensor;

const UnitCase kUnits[] = {
    {Kind::kConv5, 1, 1, 1, 1, 1, 1},
    {Kind::kConv5, 1, 3, 5, 1, 1, 1, kElu, kNoResidual, kNoActivation, true, true},
    {Kind::kConv5, 2, 3, 5, 1, 2, 1, kPrelu, kNoResidual, kNoActivation, false, true},
    {Kind::kConv5, 1, 17, 3, 2, 3, 5, kElu, kNoResidual, kNoActivation, true, false},
    {Kind::kConv5, 2, 5, 5, 7, 3, 5, kPrelu, kInputResidual, kPrelu, true, true},
    {Kind::kConv5, 1, 33, 17, 5, 7, 3, kElu, kTensorResidual, kElu, true, true},
    {Kind::kConv5, 3, 16, 16, 2, 3, 1, kNoActivation, kInputResidual, kElu, false, true},
    {Kind::kConv5, 1, 40, 40, 3, 2, 5, kPrelu, kTensorResidual, kPrelu, true, false},
    {Kind::kConv5, 2, 17, 17, 3, 5, 9, kElu, kInputResidual, kElu, false, true},
    {Kind::kConv5, 1, 33, 17, 257, 1, 1, kElu, kNoResidual, kNoActivation, false, true},
    {Kind::kConv5, 1, 2, 33, 1, 257, 1},
    {Kind::kConv5, 1, 17, 2, 1, 1, 257, kElu, kTensorResidual, kElu, false, true},
    {Kind::kConv5, 2, 5, 5, 37, 2, 13, kElu, kInputResidual, kElu, false, true},
    {Kind::kConv5, 1, 1, 16, 1, 1, 1, kNoActivation, kInputResidual, kElu, true, true},
    {Kind::kConv5, 2, 1, 5, 3, 5, 7, kNoActivation, kInputResidual, kElu, true, true},
    {Kind::kConv5, 1, 1, 33, 2, 3, 19, kNoActivation, kInputResidual, kPrelu, false, false},
    {Kind::kConvDown2, 1, 3, 5, 1, 1, 1, kElu},
    {Kind::kConvDown2, 2, 17, 33, 2, 3, 5, kElu, kNoResidual, kNoActivation, true, true},
    {Kind::kConvDown2, 1, 33, 17, 7, 1, 13, kPrelu, kNoResidual, kNoActivation, true, false},
    {Kind::kConvDown2, 3, 2, 40, 11, 5, 3, kElu, kNoResidual, kNoActivation, false, true},
    {Kind::kConvUp2, 1, 5, 3, 1, 1, 1, kElu},
    {Kind::kConvUp2, 2, 33, 17, 2, 3, 5, kElu, kNoResidual, kNoActivation, true, true, 17, true},
    {Kind::kConvUp2, 1, 5, 3, 3, 1, 7, kPrelu, kNoResidual, kNoActivation, false, true, 30, false},
    {Kind::kConvUp2, 1, 16, 16, 3, 5, 2, kElu, kNoResidual, kNoActivation, true, false, 16, true},
    {Kind::kConvUp2, 3, 17, 40, 2, 7, 1, kNoActivation, kNoResidual, kNoActivation, false, false, 1,
     true},
    // plain tensors: few channels, rows of whole vectors
    {Kind::kConv5, 2, 5, 5, 7, 6, 16, kElu, kInputResidual, kElu, true, true},
    {Kind::kConv5, 1, 8, 3, 2, 9, 48, kPrelu, kTensorResidual, kPrelu, false, true},
    {Kind::kConv5, 1, 5, 33, 3, 2, 16, kElu, kNoResidual, kNoActivation, true, false},
    {Kind::kConv5, 1, 33, 2, 5, 5, 16, kElu, kNoResidual, kNoActivation, false, true},
    {Kind::kConv5, 1, 1, 8, 5, 9, 32, kNoActivation, kInputResidual, kElu, false, true},
    {Kind::kConv5, 2, 1, 3, 3, 2, 16, kNoActivation, kInputResidual, kPrelu, true, true},
    {Kind::kConvDown2, 2, 3, 5, 3, 2, 16, kPrelu, kNoResidual, kNoActivation, true, true},
    {Kind::kConvDown2, 1, 8, 17, 2, 3, 8, kElu, kNoResidual, kNoActivation, false, true},
    {Kind::kConvDown2, 1, 5, 40, 2, 1, 24, kElu, kNoResidual, kNoActivation, true, false},
    {Kind::kConvUp2, 2, 17, 8, 2, 3, 8, kElu, kNoResidual, kNoActivation, true, true, 8, true},
    {Kind::kConvUp2, 1, 33, 5, 1, 2, 24, kElu, kNoResidual, kNoActivation, false, true, 5},
    {Kind::kConvUp2, 2, 8, 4, 3, 2, 16, kPrelu, kNoResidual, kNoActivation, false, true, 4, true},
};

// Many tiles of many channels: the others have each of both.
template <typename Case>
bool is_large(const Case& c) {
  return static_cast<size_t>(c.in) * c.out * c.batch * c.x * c.y * c.z > 120'000;
}

int test_all() {
  test_threads();
  test_processors();
  test_view();
  test_fork();
  test_elu();
  for (const ConvolutionCase& c : kConvolutions)
    if (!kEmulated || !is_large(c)) test_convolution(c);
  for (const UnitCase& c : kUnits)
    if (!kEmulated || !is_large(c)) test_unit(c);
  test_strided_accuracy({Kind::kConvDown2, 1, 16, 32, 16, 8, 16});
  test_strided_accuracy({Kind::kConvDown2, 1, 128, 256, 2, 2, 2});
  test_strided_accuracy({Kind::kConvUp2, 1, 64, 16, 16, 8, 16});
  test_strided_accuracy({Kind::kConvUp2, 1, 256, 128, 2, 2, 2});
  constexpr bool kPlain = true, kBlocked = false, kLogit = true, kProbability = false;
  test_head({1, 1, 1, 1, 1, kPlain}, 1, 0, true, kProbability);
  test_head({2, 2, 3, 5, 17, kPlain}, 1, 1, true, kProbability);
  test_head({1, 8, 13, 11, 16, kPlain}, 1, 1, false, kLogit);
  test_head({2, 5, 3, 5, 7, kBlocked}, 1, 0, true, kLogit);
  test_head({1, 40, 13, 11, 16, kBlocked}, 1, 1, true, kProbability);
  test_head({1, 2, 5, 1, 37, kPlain}, 3, 1, false, kProbability);
  test_head({3, 5, 2, 7, 16, kPlain}, 5, 0, true, kLogit);
  test_scaling({1, 1, 1, 1, 1});
  test_scaling({2, 17, 3, 5, 7});
  test_scaling({2, 5, 3, 5, 16, true});
  test_calls_at_once();
  test_networks();
  std::printf("%d of %d checks failed\n", failures, checks);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fast_conv3d

int main(int count, char** arguments) {
  if (count > 1) fast_conv3d::thread_counts.clear();
  for (int i = 1; i < count; ++i) fast_conv3d::thread_counts.push_back(std::atoi(arguments[i]));
  return fast_conv3d::test_all();
}
