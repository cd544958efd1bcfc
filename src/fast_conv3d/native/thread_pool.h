// A fixed set of worker threads for parallel loops. OpenMP would create one team for each of the
// MindSpore threads that call operators. A forked child process has no workers: a parallel loop
// there would wait forever.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fast_conv3d {

class ThreadPool {
 public:
  // `threads` includes the calling thread. Throws std::system_error if a thread cannot be started.
  explicit ThreadPool(int threads) {
    try {
      for (int id = 1; id < threads; ++id) workers_.emplace_back([this, id] { work(id); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~ThreadPool() { stop(); }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(thread) once on each thread, thread in [0, size()), and waits for all of them.
  // Rethrows an exception of a task. Not reentrant: one caller at a time.
  void run(const std::function<void(int)>& task) {
    if (workers_.empty()) return task(0);
    task_ = &task;
    error_ = nullptr;
    pending_.store(static_cast<int>(workers_.size()));
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    attempt(0);
    for (int spins = 0; pending_.load(std::memory_order_acquire) > 0; ++spins)
      if (spins > kSpins) std::this_thread::yield();
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

  // Calls task(item, thread) for each item in [0, count); each thread takes the next free item.
  template <typename Task>
  void for_each(int count, const Task& task) {
    std::atomic<int> next{0};
    run([&](int thread) {
      for (int item; (item = next.fetch_add(1)) < count;) task(item, thread);
    });
  }

 private:
  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  void attempt(int id) {
    try {
      (*task_)(id);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      error_ = std::current_exception();
    }
  }

  void work(int id) {
    for (unsigned seen = 0;;) {
      for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < kSpins) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
      }
      ++seen;
      if (stopping_) return;
      attempt(id);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Busy-wait for some tens of microseconds; then a worker sleeps and the caller yields.
  static constexpr int kSpins = 20000;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> pending_{0};
  bool stopping_ = false;
  const std::function<void(int)>* task_ = nullptr;
  std::exception_ptr error_;
};

}  // namespace fast_conv3d
