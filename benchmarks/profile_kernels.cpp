// The operators of ops.cpp, which also record when each of them and each kernel inside ran, and the
// processor's peak rates. roofline.py compiles it with the flags of the library itself and defines
// PROFILED_OPERATORS, a list of OPERATOR(name).
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "few_channels.h"
#include "head.h"
#include "post_ops.h"
#include "strided.h"
#include "thread_pool.h"
#include "vector.h"
#include "winograd.h"

namespace profile {

using Clock = std::chrono::steady_clock;

// A call of an operator or, inside it, of a kernel. `shape` is X, Y, Z of the operator's first
// input and the first two sides of its second one, the weights; zeros for a kernel.
struct Record {
  const char* name;
  int is_operator;
  int64_t shape[5];
  double seconds;
};

std::vector<Record> records;

class Timer {
 public:
  explicit Timer(const char* name, int64_t** shapes = nullptr) : start_(Clock::now()) {
    index_ = records.size();
    Record record{name, shapes != nullptr, {}, 0};
    for (int i = 0; shapes != nullptr && i < 3; ++i) record.shape[i] = shapes[0][i + 2];
    for (int i = 0; shapes != nullptr && i < 2; ++i) record.shape[i + 3] = shapes[1][i];
    records.push_back(record);
  }
  ~Timer() {
    records[index_].seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  }

 private:
  Clock::time_point start_;
  size_t index_;
};

}  // namespace profile

// Defines timed_NAME, which ops.cpp then calls in place of NAME, in the namespace of both.
#define TIMED(NAME)                              \
  template <typename... Arguments>               \
  void timed_##NAME(Arguments&&... arguments) {  \
    const ::profile::Timer timer(#NAME);         \
    NAME(std::forward<Arguments>(arguments)...); \
  }

namespace fast_conv3d {
TIMED(convolve)
TIMED(weight_gradient)
TIMED(batch_statistics)
TIMED(post_ops_forward)
TIMED(post_ops_backward)
TIMED(concat_forward)
namespace few_channels {
TIMED(conv_few_input)
TIMED(conv_few_output)
TIMED(weight_gradient)
}  // namespace few_channels
namespace strided {
TIMED(conv_down2)
TIMED(conv_up2)
TIMED(weight_gradient)
}  // namespace strided
}  // namespace fast_conv3d

#define convolve timed_convolve
#define weight_gradient timed_weight_gradient
#define batch_statistics timed_batch_statistics
#define post_ops_forward timed_post_ops_forward
#define post_ops_backward timed_post_ops_backward
#define concat_forward timed_concat_forward
#define conv_few_input timed_conv_few_input
#define conv_few_output timed_conv_few_output
#define conv_down2 timed_conv_down2
#define conv_up2 timed_conv_up2

// roofline.py renames the operators of this copy of ops.cpp to untimed_NAME.
#include "untimed_ops.cpp"

#define OPERATOR(NAME)                                                                           \
  FC3D_EXPORT int NAME(int count, void** data, int* ranks, int64_t** shapes, const char** types, \
                       void* stream, void* extra) {                                              \
    const profile::Timer timer(#NAME, shapes);                                                   \
    return fast_conv3d::untimed_##NAME(count, data, ranks, shapes, types, stream, extra);        \
  }
PROFILED_OPERATORS

// The records so far, and none from now on.
FC3D_EXPORT int profile_count() { return static_cast<int>(profile::records.size()); }
FC3D_EXPORT const profile::Record* profile_records() { return profile::records.data(); }
FC3D_EXPORT void profile_clear() {
  profile::records.clear();
  profile::records.reserve(1 << 20);
}

namespace {

// Calls work(thread) on each thread at once; returns the seconds until all have ended.
template <typename Work>
double seconds_of(int threads, const Work& work) {
  fast_conv3d::ThreadPool pool(threads);
  pool.run([&](int thread) { work(thread); });  // starts the threads, and the caches' contents
  const auto start = profile::Clock::now();
  pool.run([&](int thread) { work(thread); });
  return std::chrono::duration<double>(profile::Clock::now() - start).count();
}

}  // namespace

// Floating-point operations per second of multiply-adds on registers only, of all threads.
FC3D_EXPORT double peak_flops(int threads) {
  using fast_conv3d::Register;
  constexpr int kChains = 12, kRounds = 20'000'000;
  constexpr int kFloats = static_cast<int>(sizeof(Register) / sizeof(float));
  std::vector<float> results(threads);
  const double seconds = seconds_of(threads, [&](int thread) {
    Register sums[kChains];
    const float start = static_cast<float>(thread);
    for (int i = 0; i < kChains; ++i) sums[i] = Register{} + (start + static_cast<float>(i));
    Register factor = Register{} + 0.999f, term = Register{} + 0.001f;
    asm volatile("" : "+m"(factor), "+m"(term));  // unknown to the compiler
    const Register a = factor, b = term;
    for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * a + b;
    for (int i = 0; i < kChains; ++i) results[thread] += sums[i][0];
  });
  asm volatile("" : : "r"(results.data()) : "memory");
  return 2.0 * kFloats * kChains * kRounds * threads / seconds;
}

// Bytes per second of a[i] = b[i] + s * c[i] from and to memory, of all threads; three floats each.
FC3D_EXPORT double copy_rate(int threads) {
  constexpr size_t kCount = size_t{24} << 20;  // of each array: 100 MB, more than the caches
  std::vector<float> a(kCount * threads), b(kCount * threads, 1.f), c(kCount * threads, 2.f);
  const double seconds = seconds_of(threads, [&](int thread) {
    const size_t first = kCount * thread;
    float* to = a.data() + first;
    const float *from = b.data() + first, *other = c.data() + first;
    for (size_t i = 0; i < kCount; ++i) to[i] = from[i] + 0.5f * other[i];
    asm volatile("" : : "r"(to) : "memory");
  });
  return 3.0 * sizeof(float) * kCount * threads / seconds;
}
