// The operators of ops.cpp, which also record when each of them and each kernel inside ran, and the
// processor's peak rates. roofline.py compiles it with the flags of the library itself, beside
// copies of the native sources in which the kernels start with a Timer and the operators are named
// untimed_NAME; PROFILED_OPERATORS is the list of OPERATOR(NAME).
#include <chrono>
#include <cstdint>
#include <vector>

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
// Of this thread: 0 outside of operators, 1 in an operator, more in a kernel.
thread_local int depth = 0;

class Timer {
 public:
  // A kernel; inside another one, or on a worker thread, it is not recorded.
  explicit Timer(const char* name) : Timer(name, depth == 1, {name, 0, {}, 0}) {}
  // An operator, with the ranks and shapes of its tensors.
  Timer(const char* name, const int* ranks, int64_t** shapes)
      : Timer(name, depth == 0, {name, 1, {}, 0}) {
    if (ranks[0] < 5 || ranks[1] < 2) return;
    for (int i = 0; i < 3; ++i) records[index_].shape[i] = shapes[0][i + 2];
    for (int i = 0; i < 2; ++i) records[index_].shape[i + 3] = shapes[1][i];
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

#define OPERATOR(NAME)                                                                           \
  FC3D_EXPORT int NAME(int count, void** data, int* ranks, int64_t** shapes, const char** types, \
                       void* stream, void* extra) {                                              \
    const profile::Timer timer(#NAME, ranks, shapes);                                            \
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
