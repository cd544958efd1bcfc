// The operators of a whole network, on what network.h and training.h compute; ops.cpp includes this
// file. Parameters are those of all layers in their order, first the trainable ones, then the
// moving statistics of batch norm, which network_forward changes in place.
#include <malloc.h>

#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "training.h"

namespace fast_conv3d {
namespace {

// The inputs that the operators share.
class NetworkCall {
 public:
  // The index of the first parameter, and whether the moving statistics are among them.
  NetworkCall(const Arguments& arguments, int first_parameter, bool has_statistics)
      : spec_(spec_of(arguments)),
        network_(spec_.description, arguments.shape(NetworkInfer::kVolume, 1), &spec_.dropout),
        input_{arguments.get(NetworkInfer::kVolume)},
        parameters_(network_.layers.size()),
        arguments_(arguments),
        next_(first_parameter) {
    if (arguments.ranks[NetworkInfer::kDropoutMask] == 2) {
      input_.dropout_mask = arguments.get(NetworkInfer::kDropoutMask);
      input_.columns = static_cast<int>(arguments.shapes[NetworkInfer::kDropoutMask][1]);
    }
    read<const float>(false, parameters_);
    if (has_statistics) read<const float>(true, parameters_);
  }

  const NetworkSpec& spec() const { return spec_; }
  const Network& network() const { return network_; }
  const NetworkInput& input() const { return input_; }
  const std::vector<LayerParameters>& parameters() const { return parameters_; }
  float* output(int number) const { return arguments_.get(next_ + number); }

  // Outputs, one for each trainable parameter.
  std::vector<PerParameter<float*>> gradients() {
    std::vector<PerParameter<float*>> found(network_.layers.size());
    read<float>(false, found);
    for_each_parameter(network_.layers, [&](size_t layer, Parameter parameter, size_t floats) {
      if (!is_statistic(parameter)) use_huge_pages(found[layer][parameter], floats);
    });
    return found;
  }
  std::vector<MovingStatistics> moving_statistics() const {
    std::vector<MovingStatistics> found;
    for (const LayerParameters& layer : parameters_)
      found.push_back({const_cast<float*>(layer[Parameter::kMean]),
                       const_cast<float*>(layer[Parameter::kVariance]), spec_.momentum});
    return found;
  }

 private:
  static NetworkSpec spec_of(const Arguments& arguments) {
    const NetworkSpec spec(arguments.get(NetworkInfer::kSpec));
    if (const char* fault = fault_of(spec.description)) throw std::invalid_argument(fault);
    const int64_t* sides = arguments.shapes[NetworkInfer::kVolume];
    if (sides[0] <= 0) throw std::invalid_argument("the batch is empty");
    for (int axis = 2; axis < 5; ++axis)
      if (sides[axis] <= 0 || sides[axis] % kSideMultiple != 0)
        throw std::invalid_argument("a side of the volume is " + std::to_string(sides[axis]) +
                                    ", expected a multiple of " + std::to_string(kSideMultiple));
    return spec;
  }

  // The next tensors, of all layers' trainable parameters or moving statistics.
  template <typename T>
  void read(bool statistics, std::vector<PerParameter<T*>>& into) {
    for_each_parameter(network_.layers, [&](size_t layer, Parameter parameter, size_t floats) {
      if (is_statistic(parameter) != statistics) return;
      const int64_t* sides = arguments_.shapes[next_];
      const auto found = std::accumulate(sides, sides + arguments_.ranks[next_], int64_t{1},
                                         [](int64_t a, int64_t b) { return a * b; });
      if (found != static_cast<int64_t>(floats))
        throw std::invalid_argument("a parameter of layer " + std::to_string(layer) + " has " +
                                    std::to_string(found) + " values, expected " +
                                    std::to_string(floats));
      into[layer][parameter] = arguments_.get(next_++);
    });
  }

  NetworkSpec spec_;
  Network network_;
  NetworkInput input_;
  std::vector<LayerParameters> parameters_;
  const Arguments& arguments_;
  int next_;  // tensor
};

// Returns what the graph compiler has freed, some 80 MB that malloc would keep, before the first
// step takes its memory.
void return_freed_memory() {
#if defined(__GLIBC__)
  [[maybe_unused]] static const int once = malloc_trim(0);
#endif
}

}  // namespace

// Evaluation, with batch norm's moving statistics: the foreground's probability, or its logit.
FC3D_EXPORT int network_infer(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                              void*) {
  return with_runtime([&](Runtime& runtime) {
    const Arguments arguments{data, ranks, shapes};
    const NetworkCall call(arguments, NetworkInfer::kParameters, true);
    infer(runtime, call.network(), call.parameters(), call.input(), call.output(NetworkInfer::kOut),
          call.spec().logits);
  });
}

// Training: the same with the statistics of the batch, and the tape for network_backward.
FC3D_EXPORT int network_forward(int, void** data, int* ranks, int64_t** shapes, const char**, void*,
                                void*) {
  return with_runtime([&](Runtime& runtime) {
    const Arguments arguments{data, ranks, shapes};
    const NetworkCall call(arguments, NetworkForward::kParameters, true);
    return_freed_memory();
    use_huge_pages(call.output(NetworkForward::kTape), tape_floats(call.network()));
    forward_pass(runtime, call.network(), call.parameters(), call.input(), call.moving_statistics(),
                 call.output(NetworkForward::kTape), call.output(NetworkForward::kOut),
                 call.spec().logits);
  });
}

// Training: the gradients of the trainable parameters. Uses up the tape.
FC3D_EXPORT int network_backward(int, void** data, int* ranks, int64_t** shapes, const char**,
                                 void*, void*) {
  return with_runtime([&](Runtime& runtime) {
    using Input = NetworkBackward;
    const Arguments arguments{data, ranks, shapes};
    NetworkCall call(arguments, Input::kParameters, false);
    NetworkGradients gradients;
    gradients.parameters = call.gradients();
    backward_pass(runtime, call.network(), call.parameters(), call.input(),
                  arguments.get(Input::kTape), arguments.get(Input::kOut),
                  arguments.get(Input::kDOut), call.spec().logits, gradients);
  });
}

// The gradients of volume and dropout mask. Training does not need them; the tape is computed anew,
// since network_backward may have used it up.
FC3D_EXPORT int network_input_gradients(int, void** data, int* ranks, int64_t** shapes,
                                        const char**, void*, void*) {
  return with_runtime([&](Runtime& runtime) {
    using Input = NetworkInputGradients;
    const Arguments arguments{data, ranks, shapes};
    const NetworkCall call(arguments, Input::kParameters, false);
    const Network& network = call.network();
    float* tape = runtime.activations.get(tape_floats(network));
    std::vector<float> out(network.volume.voxels() * network.volume.batch);
    NetworkGradients gradients;
    gradients.parameters.resize(network.layers.size());
    gradients.volume = call.output(Input::kDVolume);
    float* d_mask = call.output(Input::kDDropoutMask);
    if (call.input().dropout_mask == nullptr)
      *d_mask = 0;  // of the unused tensor in its place
    else
      std::fill_n(gradients.dropout_mask = d_mask, network.volume.batch * call.input().columns,
                  0.f);
    forward_pass(runtime, network, call.parameters(), call.input(), {}, tape, out.data(),
                 call.spec().logits);
    backward_pass(runtime, network, call.parameters(), call.input(), tape, out.data(),
                  arguments.get(Input::kDOut), call.spec().logits, gradients);
  });
}

// What the fast network does not compute of a network, or null; the spec as floats.
FC3D_EXPORT const char* network_fault(const float* spec) {
  return fault_of(NetworkSpec(spec).description);
}

// The floats of the tape for a batch of volumes.
FC3D_EXPORT int64_t network_tape_floats(const float* spec, int batch, int x, int y, int z) {
  return static_cast<int64_t>(
      tape_floats(Network(NetworkSpec(spec).description, {batch, 1, x, y, z})));
}

}  // namespace fast_conv3d
