// Checks the operators of ops.cpp against sums in double, without MindSpore:
//
//   g++ -std=c++17 -O1 -pthread test_native.cpp -o test_native && ./test_native [THREADS ...]
//
// tests/fast_conv3d/test_native.py does so with sanitizers and for several processors. Prints a
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

// qemu-user cannot fork a process with threads.
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

// Calls an operator on outputs filled with NaN. With three threads it is called twice, and the bits
// of both results must be equal. `outputs` are the sides in floats (a double counts as two).
std::vector<Tensor> run(const std::string& name, Operator function,
                        const std::vector<Tensor>& inputs,
                        const std::vector<std::vector<int64_t>>& outputs) {
  std::vector<std::vector<Tensor>> results(state().threads == 3 ? 2 : 1);
  for (std::vector<Tensor>& result : results) {
    for (const auto& sides : outputs)
      result.push_back({sides, Floats(count(sides), std::numeric_limits<float>::quiet_NaN())});
    std::vector<Tensor> own_inputs = inputs;  // unit_backward overwrites y
    std::vector<void*> data;
    std::vector<int> ranks;
    std::vector<int64_t*> shapes;
    for (std::vector<Tensor>* tensors : {&own_inputs, &result})
      for (Tensor& tensor : *tensors) {
        data.push_back(tensor.values.data());
        ranks.push_back(static_cast<int>(tensor.sides.size()));
        shapes.push_back(tensor.sides.data());
      }
    const int code = function(static_cast<int>(data.size()), data.data(), ranks.data(),
                              shapes.data(), nullptr, nullptr, nullptr);
    check(code == 0, name, "returns " + std::to_string(code));
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
  const bool same_size = kind == Kind::kConv5 || kind == Kind::kFewInput;
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

struct UnitCase {
  Kind kind;
  int batch, in, out, x, y, z;  // sides of the smaller of the two grids
  Activation first = Activation::kNone;
  Residual residual = Residual::kNone;
  Activation second = Activation::kNone;
  bool bias = false, norm = false;
  int skip = 0;  // channels
  bool dropout_mask = false;

  bool same_size() const { return kind == Kind::kConv5 || kind == Kind::kFewInput; }
  int side() const { return same_size() ? 5 : 2; }
  Shape grid(int channels, bool fine) const {
    const int step = fine ? 2 : 1;
    return Shape::between_units(batch, channels, step * x, step * y, step * z);
  }
  Shape x_shape() const {
    Shape shape = grid(in, kind == Kind::kConvDown2);
    shape.plain |= kind == Kind::kFewInput;
    return shape;
  }
  Shape y_shape() const { return grid(out, kind == Kind::kConvUp2); }
  Shape skip_shape() const { return grid(skip, kind == Kind::kConvUp2); }
  Shape out_shape() const { return grid(out + skip, kind == Kind::kConvUp2); }
  std::string name() const {
    const char* kinds[] = {"conv5", "few_input", "conv_down2", "conv_up2"};
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

void test_unit(const UnitCase& c) {
  const Shape x = c.x_shape(), y = c.y_shape(), skip = c.skip_shape(), out = c.out_shape();
  const Values v = random_inputs(c);
  const Doubles d_out = random_values(plain_size(out));
  if (x.voxels() <= 100) test_reference(c, v, d_out);
  const Reference training(c, v, true, &d_out), inference(c, v, false);
  const Values& expected = training.gradients;

  const bool has_residual = c.residual == Residual::kTensor;
  const int side = c.side();
  const int64_t k = c.kind == Kind::kConvUp2 ? c.in : c.out;
  const int64_t channels = c.kind == Kind::kConvUp2 ? c.out : c.in;
  std::vector<Tensor> inputs{
      laid_out(x, v.x),
      tensor(v.weight, {k, channels, side, side, side}),
      tensor(v.bias),
      tensor(v.gamma),
      tensor(v.beta),
      tensor(v.moving_mean),
      tensor(v.moving_variance),
      tensor(v.first_slopes),
      tensor(v.second_slopes),
      has_residual ? laid_out(y, v.residual) : unused(),
      c.skip > 0 ? laid_out(skip, v.skip) : unused(),
      c.dropout_mask ? tensor(v.dropout_mask, {c.batch, c.skip}) : unused(),
      tensor({double(c.kind), double(c.in), double(c.out), double(c.first), double(c.residual),
              double(c.second), double(c.bias), double(c.norm), double(c.skip),
              double(c.dropout_mask), kEpsilon, kMomentum})};

  for (const int threads : thread_counts) {
    if (threads > 3 && x.voxels() < kVoxelsForManyThreads) continue;
    set_threads(threads);
    const std::string name = c.name() + ", " + std::to_string(threads) + " threads, ";
    const Tensor inferred = run(name + "inference", unit_infer, inputs, {sides_of(out)})[0];
    compare(name + "inference", plain_values(name + "inference", out, inferred), inference.out,
            kTolerance);

    const std::vector<int64_t> sides{c.out}, of_doubles{2 * c.out};
    const std::vector<Tensor> forward =
        run(name + "forward", unit_forward, inputs,
            {sides_of(out), sides_of(y), of_doubles, of_doubles, sides, sides});
    compare(name + "forward", plain_values(name + "forward", out, forward[0]), training.out,
            kTolerance);
    if (c.norm) {
      compare(name + "moving mean", doubles(forward[4]), training.new_moving_mean, kTolerance);
      compare(name + "moving variance", doubles(forward[5]), training.new_moving_variance,
              kTolerance);
    }

    std::vector<Tensor> backward_inputs = inputs;
    backward_inputs.insert(backward_inputs.end(), forward.begin(), forward.begin() + 4);
    backward_inputs.push_back(laid_out(out, d_out));
    std::vector<std::vector<int64_t>> gradient_sides;
    using Input = UnitInfer;
    for (const Input::Tensor input :
         {Input::kX, Input::kWeight, Input::kBias, Input::kGamma, Input::kBeta, Input::kFirstSlopes,
          Input::kSecondSlopes, Input::kResidual, Input::kSkip})
      gradient_sides.push_back(inputs[input].sides);
    const std::vector<Tensor> found =
        run(name + "backward", unit_backward, backward_inputs, gradient_sides);
    const auto compare_with = [&](const char* field, const Doubles& values, const Doubles& wanted) {
      compare(name + field, values, wanted, kTolerance);
    };
    if (c.kind == Kind::kFewInput) {
      std::vector<Tensor> without_y = backward_inputs;
      without_y.erase(without_y.begin() + UnitBackward::kY);
      const Tensor d_x =
          run(name + "d_volume", unit_volume_gradient, without_y, {inputs[Input::kX].sides})[0];
      compare_with("d_volume", doubles(d_x), expected.x);
    } else {
      compare_with("d_x", plain_values(name + "d_x", x, found[0]), expected.x);
    }
    compare_with("d_weight", doubles(found[1]), expected.weight);
    if (c.bias) compare_with("d_bias", doubles(found[2]), expected.bias);
    if (c.norm) compare_with("d_gamma", doubles(found[3]), expected.gamma);
    if (c.norm) compare_with("d_beta", doubles(found[4]), expected.beta);
    if (c.first == Activation::kPrelu)
      compare_with("d_first_slopes", doubles(found[5]), expected.first_slopes);
    if (c.second == Activation::kPrelu)
      compare_with("d_second_slopes", doubles(found[6]), expected.second_slopes);
    if (has_residual)
      compare_with("d_residual", plain_values(name + "d_residual", y, found[7]), expected.residual);
    if (c.skip > 0)
      compare_with("d_skip", plain_values(name + "d_skip", skip, found[8]), expected.skip);
    const Tensor& mask = inputs[Input::kDropoutMask];
    const Tensor d_mask =
        run(name + "d_dropout_mask", unit_mask_gradient,
            {inputs[Input::kSkip], mask, inputs[Input::kSpec], backward_inputs.back()},
            {mask.sides})[0];
    compare_with("d_dropout_mask", doubles(d_mask), expected.dropout_mask);
  }
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

  const std::vector<int64_t> sides{shape.batch, shape.x, shape.y, shape.z};
  const Tensor x_tensor = laid_out(shape, x);
  const Tensor weight_tensor = tensor(weights, {2, shape.channels, side, side, side});
  const Tensor spec = tensor({double(foreground), double(has_bias), double(logit)});
  for (const int threads : thread_counts) {
    set_threads(threads);
    const std::string name = "head of " + std::to_string(shape.channels) + " channels, kernel " +
                             std::to_string(side) + ", " + std::to_string(threads) + " threads, ";
    const Tensor found = run(name + "output", head_forward,
                             {x_tensor, weight_tensor, tensor(bias), spec}, {sides})[0];
    compare(name + "output", doubles(found), output, 1e-6);
    const std::vector<Tensor> gradients =
        run(name + "gradients", head_backward,
            {x_tensor, weight_tensor, found, tensor(d_output, sides), spec},
            {x_tensor.sides, weight_tensor.sides, {2}});
    compare(name + "d_x", plain_values(name + "d_x", shape, gradients[0]), d_x, 1e-5);
    compare(name + "d_weight", doubles(gradients[1]), d_weights, 1e-5);
    if (has_bias)
      compare(name + "d_bias", doubles(gradients[2]), channel_sums(logits_shape, d_logits), 1e-5);
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
  for (const int threads : thread_counts) {
    set_threads(threads);
    const std::string name = "scaling of " + std::to_string(shape.channels) + " channels";
    const Tensor found =
        run(name, scale_channels,
            {laid_out(shape, x), tensor(dropout_mask, {shape.batch, shape.channels})},
            {sides_of(shape)})[0];
    compare(name, plain_values(name, shape, found), expected, 1e-6);
    const Tensor mask = tensor(dropout_mask, {shape.batch, shape.channels});
    const Tensor gradient = run(name + ", gradient", scale_mask_gradient,
                                {laid_out(shape, x), mask, laid_out(shape, d_y)}, {mask.sides})[0];
    compare(name + ", gradient", doubles(gradient), expected_gradient, 1e-6);
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
      for (int call = 0; call < kCalls; ++call) {
        Floats y(count(sides[caller]));
        std::vector<void*> data;
        std::vector<int> ranks;
        std::vector<int64_t*> shapes;
        for (Tensor& input : inputs[caller]) {
          data.push_back(input.values.data());
          ranks.push_back(static_cast<int>(input.sides.size()));
          shapes.push_back(input.sides.data());
        }
        data.push_back(y.data());
        ranks.push_back(5);
        shapes.push_back(sides[caller].data());
        conv_forward(5, data.data(), ranks.data(), shapes.data(), nullptr, nullptr, nullptr);
        same[caller] &= y == alone[caller].values;
      }
    });
  for (std::thread& caller : callers) caller.join();
  for (int caller = 0; caller < kCallers; ++caller)
    check(same[caller], "calls at once", "caller " + std::to_string(caller) + " got other values");
}

// ---------------------------------------------------------------------------------------- tables

// ------------------------------------------------------------------------------ whole networks

using ParameterValues = std::array<Doubles, kParameters>;

// A V-Net in double, layer by layer.
class ReferenceNetwork {
 public:
  ReferenceNetwork(const NetworkDescription& description,
                   const std::vector<ParameterValues>& parameters)
      : d_(description), layers_(layers_of(description)), parameters_(parameters) {}

  Doubles probability(const Shape& volume_shape, const Doubles& volume) {
    next_ = 0;
    Shape shape = volume_shape;
    Doubles volumes;  // the volume for each of the channels
    for (int image = 0; image < shape.batch; ++image)
      for (int channel = 0; channel < d_.width; ++channel)
        volumes.insert(volumes.end(), volume.begin() + image * shape.voxels(),
                       volume.begin() + (image + 1) * shape.voxels());
    Doubles x = layer(volume, shape, &volumes);
    std::vector<std::pair<Shape, Doubles>> skips;
    for (int level = 1; level < kLevels; ++level) {
      skips.emplace_back(shape, x);
      x = layer(x, shape);
      x = block(d_.encoder_depths[level], x, shape);
    }
    for (int stage = 0; stage < kLevels - 1; ++stage) {
      x = concatenated(layer(x, shape), shape, skips.back().second);
      skips.pop_back();
      shape.channels *= 2;
      x = block(d_.decoder_depths[stage], x, shape);
    }
    if (d_.head_unit) x = layer(x, shape);
    x = layer(x, shape);
    const size_t voxels = shape.voxels();
    Doubles result(voxels * shape.batch);
    for (size_t i = 0; i < result.size(); ++i) {
      const double* logits = &x[i / voxels * 2 * voxels + i % voxels];
      result[i] =
          1 / (1 + std::exp(logits[(1 - d_.foreground) * voxels] - logits[d_.foreground * voxels]));
    }
    return result;
  }

 private:
  Doubles block(int depth, const Doubles& input, Shape& shape) {
    Doubles x = input;
    for (int i = 1; i <= depth; ++i) x = layer(x, shape, i == depth ? &input : nullptr);
    return x;
  }
  // The next layer; `shape` becomes that of its output.
  Doubles layer(const Doubles& x, Shape& shape, const Doubles* residual = nullptr) {
    const Layer& l = layers_[next_];
    const ParameterValues& p = parameters_[next_++];
    const Shape out = convolved_shape(l.kind, shape, l.out_channels);
    Doubles y = convolution(l.kind, shape, out, l.side, x, p[0]);
    shape = out;
    if (l.has_bias) add_per_channel(shape, p[1], y);
    const size_t voxels = shape.voxels();
    for (size_t volume = 0; volume < y.size() / voxels; ++volume) {
      const size_t channel = volume % shape.channels;
      double* values = &y[volume * voxels];
      double mean = 0, variance = 1 - d_.epsilon;
      if (l.norm == Norm::kBatch) {
        mean = p[4][channel];
        variance = p[5][channel];
      } else if (l.norm == Norm::kInstance) {
        mean = std::accumulate(values, values + voxels, 0.) / voxels;
        variance = 0;
        for (size_t i = 0; i < voxels; ++i) variance += (values[i] - mean) * (values[i] - mean);
        variance /= voxels;
      }
      const bool has_norm = l.norm != Norm::kNone;
      const double gamma = has_norm ? p[2][channel] : 1, beta = has_norm ? p[3][channel] : 0;
      for (size_t i = 0; i < voxels; ++i) {
        double value = (values[i] - mean) / std::sqrt(variance + d_.epsilon) * gamma + beta;
        value = activate(l.first, value, p[6], channel);
        if (residual != nullptr) value += (*residual)[volume * voxels + i];
        values[i] = activate(l.second, value, p[7], channel);
      }
    }
    return y;
  }
  static double activate(Activation activation, double x, const Doubles& slopes, size_t channel) {
    if (x > 0 || activation == Activation::kNone) return x;
    return activation == Activation::kElu ? std::expm1(x) : slopes[channel] * x;
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

  NetworkDescription d_;
  std::vector<Layer> layers_;
  const std::vector<ParameterValues>& parameters_;
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
      // Weights, then bias, gamma, beta, mean; variances are positive; slopes.
      const double scales[] = {1 / std::sqrt(fan_in), 0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1};
      const double means[] = {0, 0, 1, 0, 0, 1, 0.2, 0.2};
      parameters.back()[i] = random_values(count, scales[i], means[i]);
    }
  }
  return parameters;
}

// Each tensor of a plan lies in the arena, and none is written over while it is still needed.
void test_plan(const std::string& name, const NetworkDescription& d, const Shape& volume) {
  const Plan plan = plan_network(d, volume);
  const std::vector<Layer> layers = layers_of(d);
  std::vector<int> owner(plan.arena_floats, -1);  // the step that wrote a float
  bool fits = true;
  const auto written_by = [&](size_t at, size_t floats) {
    if (at + floats > owner.size()) fits = false;
    return fits ? std::vector<int>(owner.begin() + at, owner.begin() + at + floats)
                : std::vector<int>{-1};
  };
  // A tensor that is read is whole, all by the same step.
  const auto read = [&](size_t at, const Shape& shape) {
    if (at == Step::kVolume || at == Step::kNone) return;
    const std::vector<int> by = written_by(at, shape.floats());
    if (by[0] < 0 || std::count(by.begin(), by.end(), by[0]) != static_cast<int>(by.size()))
      fits = false;
  };
  for (size_t i = 0; i < plan.steps.size() && fits; ++i) {
    const Step& step = plan.steps[i];
    const Shape y = convolved_shape(layers[i].kind, step.x, layers[i].out_channels);
    read(step.source, step.x);
    read(step.residual, y);
    if (step.skip != Step::kNone) read(step.skip, y.with_channels(step.skip_channels));
    if (step.target == Step::kNone) continue;
    const size_t floats = y.with_channels(y.channels + step.skip_channels).floats();
    written_by(step.target, floats);
    if (!fits) break;
    std::fill_n(owner.begin() + step.target, floats, static_cast<int>(i));
    // What the step reads must not be what it writes.
    read(step.source, step.x);
    read(step.residual, y);
    for (const size_t at : {step.source, step.residual, step.skip})
      if (at < owner.size() && owner[at] == static_cast<int>(i)) fits = false;
  }
  check(fits, name, "a tensor is outside of the arena or written over");
}

void test_network(const std::string& name, const NetworkDescription& d, const Shape& shape) {
  check(fault_of(d) == nullptr && takes_shape(d, shape), name, "is refused");
  test_plan(name, d, shape);
  const std::vector<ParameterValues> values = random_parameters(d);
  std::vector<std::vector<Floats>> floats;
  std::vector<LayerParameters> parameters;
  for (const ParameterValues& of_layer : values) {
    floats.emplace_back();
    for (const Doubles& array : of_layer) floats.back().emplace_back(array.begin(), array.end());
    parameters.emplace_back();
    for (int i = 0; i < kParameters; ++i) parameters.back().pointers[i] = floats.back()[i].data();
  }
  const Doubles volume = random_values(plain_size(shape));
  const Floats volume_floats(volume.begin(), volume.end());
  const Doubles expected = ReferenceNetwork(d, values).probability(shape, volume);
  Runtime network_runtime(thread_counts.back());
  Floats found, first;
  for (int call = 0; call < 2; ++call) {  // the second one in the first one's memory
    found.assign(expected.size(), std::numeric_limits<float>::quiet_NaN());
    infer(network_runtime, d, parameters, shape, volume_floats.data(), found.data());
    if (call == 0) first = found;
  }
  compare(name, {found.begin(), found.end()}, expected, kTolerance);
  check(found == first, name, "a second call gives other bits");
}

void test_networks() {
  NetworkDescription d;  // the zoo's
  d.width = 3;           // some skips then span two blocks of channels
  d.epsilon = kEpsilon;
  d.encoder_depths = {1, 1, 1, 1, 1};
  d.decoder_depths = {1, 1, 1, 1};
  test_network("network with batch norm", d, {1, 1, 16, 16, 16});
  d.width = 1;
  d.encoder_depths = {1, 1, 2, 3, 2};
  d.decoder_depths = {2, 2, 1, 1};
  d.activation = Activation::kPrelu;
  d.encoder_bias = d.up_bias = d.head_bias = true;
  d.head_side = 1;
  d.foreground = 1;
  d.activation_before_sum = false;
  test_network("network with PReLU and batch norm", d, {2, 1, 16, 16, 16});
  d.norm = Norm::kNone;
  d.decoder_bias = true;
  d.encoder_depths = {1, 2, 1, 1, 3};
  d.decoder_depths = {1, 3, 1, 2};
  d.head_unit = false;
  test_network("network without norm", d, {1, 1, 16, 16, 16});
  d.norm = Norm::kInstance;
  d.activation = Activation::kElu;
  test_network("network with instance norm", d, {2, 1, 32, 16, 16});
  d.width = 5;
  d.head_unit = true;
  d.head_side = 5;
  test_network("network with instance norm and a head's unit", d, {1, 1, 32, 16, 16});
  d.width = 16;
  test_plan("plan", d, {1, 1, 48, 32, 16});
}

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
    // transforms: few tiles
    {1, 5, 5, 1, 1, 1, true},
    {3, 16, 16, 2, 1, 3, true},
    {1, 17, 33, 5, 7, 3, true},
    {2, 40, 5, 4, 4, 4, false},
    {1, 5, 6, 13, 16, 16, true},
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
    {Kind::kConv5, 1, 33, 17, 257, 1, 1, kElu, kNoResidual, kNoActivation, false, true},
    {Kind::kConv5, 1, 2, 33, 1, 257, 1},
    {Kind::kConv5, 1, 17, 2, 1, 1, 257, kElu, kTensorResidual, kElu, false, true},
    {Kind::kConv5, 2, 5, 5, 37, 2, 13, kElu, kInputResidual, kElu, false, true},
    {Kind::kFewInput, 1, 1, 16, 1, 1, 1, kNoActivation, kInputResidual, kElu, true, true},
    {Kind::kFewInput, 2, 1, 5, 3, 5, 7, kNoActivation, kInputResidual, kElu, true, true},
    {Kind::kFewInput, 1, 1, 33, 2, 3, 19, kNoActivation, kInputResidual, kPrelu, false, false},
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
    {Kind::kFewInput, 1, 1, 8, 5, 9, 32, kNoActivation, kInputResidual, kElu, false, true},
    {Kind::kFewInput, 2, 1, 3, 3, 2, 16, kNoActivation, kInputResidual, kPrelu, true, true},
    {Kind::kConvDown2, 2, 3, 5, 3, 2, 16, kPrelu, kNoResidual, kNoActivation, true, true},
    {Kind::kConvDown2, 1, 8, 17, 2, 3, 8, kElu, kNoResidual, kNoActivation, false, true},
    {Kind::kConvDown2, 1, 5, 40, 2, 1, 24, kElu, kNoResidual, kNoActivation, true, false},
    {Kind::kConvUp2, 2, 17, 8, 2, 3, 8, kElu, kNoResidual, kNoActivation, true, true, 8, true},
    {Kind::kConvUp2, 1, 33, 5, 1, 2, 24, kElu, kNoResidual, kNoActivation, false, true, 5},
    {Kind::kConvUp2, 2, 8, 4, 3, 2, 16, kPrelu, kNoResidual, kNoActivation, false, true, 4, true},
};

int test_all() {
  test_threads();
  test_view();
  test_fork();
  test_elu();
  for (const ConvolutionCase& c : kConvolutions) test_convolution(c);
  for (const UnitCase& c : kUnits) test_unit(c);
  constexpr bool kPlain = true, kBlocked = false, kLogit = true, kProbability = false;
  test_head({1, 1, 1, 1, 1, kPlain}, 1, 0, true, kProbability);
  test_head({2, 2, 3, 5, 17, kPlain}, 1, 1, true, kProbability);
  test_head({1, 8, 13, 11, 16, kPlain}, 1, 1, false, kLogit);
  test_head({2, 5, 3, 5, 7, kBlocked}, 1, 0, true, kLogit);
  test_head({1, 40, 13, 11, 16, kBlocked}, 1, 1, true, kProbability);
  test_head({1, 2, 5, 1, 37, kPlain}, 3, 1, false, kProbability);
  test_head({3, 5, 2, 7, 16, kPlain}, 5, 0, true, kLogit);
  test_head({1, 17, 3, 2, 5, kBlocked}, 3, 0, true, kProbability);
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
