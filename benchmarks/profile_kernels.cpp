// The operators of ops.cpp, which also record when each layer of a network and each kernel inside
// ran, and the processor's peak rates. roofline.py compiles it with the flags of the library
// itself, beside copies of the native sources in which layers and kernels start with a Timer.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace profile {

using Clock = std::chrono::steady_clock;

// A part of a layer's computation or, inside it, of a kernel. `shape` is X, Y, Z of the layer's
// input and its channels, out and in; zeros for a kernel.
struct Record {
  const char* name;
  int is_layer;
  int64_t shape[5];
  double seconds;
};

std::vector<Record> records;
// Of this thread: 0 outside of layers, 1 in a layer, more in a kernel.
thread_local int depth = 0;

class Timer {
 public:
  // A kernel; inside another one, or on a worker thread, it is not recorded.
  explicit Timer(const char* name) : Timer(name, depth == 1, {name, 0, {}, 0}) {}
  // A layer, a BoundLayer.
  template <typename Layer>
  Timer(const char* name, const Layer& bound) : Timer(name, depth == 0, {name, 1, {}, 0}) {
    const auto& x = bound.shapes().x;
    const int64_t shape[] = {x.x, x.y, x.z, bound.layer().out_channels, bound.layer().in_channels};
    std::copy_n(shape, 5, records[index_].shape);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() {
    if (!counts_) return;
    --depth;
    records[index_].seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  }

 private:
  Timer(const char*, bool counts, const Record& record) : counts_(counts) {
    if (!counts) return;
    ++depth;
    index_ = records.size();
    records.push_back(record);
    start_ = Clock::now();
  }

  bool counts_;
  size_t index_ = 0;
  Clock::time_point start_;
};

}  // namespace profile

#include "ops.cpp"

// Number and array of the records so far; profile_clear empties it.
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
