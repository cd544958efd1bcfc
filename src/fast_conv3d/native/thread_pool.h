// A fixed set of worker threads for parallel loops. OpenMP would create one team for each of the
// MindSpore threads that call operators.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fast_conv3d {

// Tells the processor that this thread waits in a loop.
inline void pause_processor() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The number of the processor that runs the calling thread; -1 if unknown.
inline int current_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves the calling thread to another of its processors, if it has any. Linux may move it back
// later.
inline void leave_processor([[maybe_unused]] int processor) {
#if defined(__linux__)
  cpu_set_t all;
  if (processor < 0 || sched_getaffinity(0, sizeof all, &all) != 0) return;
  cpu_set_t others = all;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) == 0) return;
  sched_setaffinity(0, sizeof others, &others);
  sched_setaffinity(0, sizeof all, &all);
#endif
}

class ThreadPool {
 public:
  // `threads` includes the calling thread. Throws std::system_error if a thread cannot be started.
  explicit ThreadPool(int threads) : threads_(threads), team_(std::make_unique<Team>(threads)) {
    assert(threads > 0);
  }
  ~ThreadPool() { forget_workers_of_parent(); }

  int size() const { return threads_; }

  // Calls task(thread) once on each thread, thread in [0, size()), and waits for all of them.
  // Rethrows an exception of a task. Not reentrant: one caller at a time.
  void run(const std::function<void(int)>& task) {
    if (threads_ == 1) return task(0);
    forget_workers_of_parent();
    if (team_ == nullptr) team_ = std::make_unique<Team>(threads_);
    team_->run(task);
  }

  // Calls task(item, thread) for each item in [0, count); each thread takes the next free item.
  template <typename Task>
  void for_each(int count, const Task& task) {
    assert(count >= 0);
    std::atomic<int> next{0};
    run([&](int thread) {
      for (int item; (item = next.fetch_add(1)) < count;) task(item, thread);
    });
  }

 private:
  // The workers and what they share with the caller.
  class Team {
   public:
    explicit Team(int threads) {
      try {
        for (int id = 1; id < threads; ++id) workers_.emplace_back([this, id] { work(id); });
      } catch (...) {
        stop();
        throw;
      }
    }
    ~Team() { stop(); }

    void run(const std::function<void(int)>& task) {
      task_ = &task;
      error_ = nullptr;
      pending_.store(static_cast<int>(workers_.size()));
      caller_processor_ = current_processor();
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

    const pid_t process = getpid();

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
        if (!spin_while(seen)) {
          std::unique_lock<std::mutex> lock(mutex_);
          wake_.wait(lock, [&] { return generation_.load() != seen; });
        }
        ++seen;
        if (stopping_) return;
        // Linux may wake a worker on its caller's processor, where the two take turns, although
        // another one is idle; with few processors it does so for many calls.
        if (current_processor() == caller_processor_) leave_processor(caller_processor_);
        attempt(id);
        pending_.fetch_sub(1, std::memory_order_release);
      }
    }

    // Waits for a new task without sleeping; returns whether there is one.
    bool spin_while(unsigned seen) const {
      const auto end = std::chrono::steady_clock::now() + kSpinTime;
      do {
        for (int spins = 0; spins < kSpinsBetweenTimes; ++spins, pause_processor())
          if (generation_.load(std::memory_order_acquire) != seen) return true;
      } while (std::chrono::steady_clock::now() < end);
      return false;
    }

    // A worker sleeps after this time: what a thread computes alone between two parallel loops of a
    // narrow network takes less, and to wake a worker takes some 25 us.
    static constexpr std::chrono::microseconds kSpinTime{200};
    static constexpr int kSpinsBetweenTimes = 64;
    // The caller yields after some microseconds.
    static constexpr int kSpins = 20000;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> generation_{0};
    std::atomic<int> pending_{0};
    int caller_processor_ = -1;
    bool stopping_ = false;
    const std::function<void(int)>* task_ = nullptr;
    std::exception_ptr error_;
  };

  // A forked child has no workers, and its copy of the team's mutex may be locked: it abandons that
  // copy. Only a model of vnet_cpu.h that a fork has copied gets here; the operators of a child
  // have a Runtime of their own.
  void forget_workers_of_parent() {
    if (team_ != nullptr && team_->process != getpid()) static_cast<void>(team_.release());
  }

  int threads_;
  std::unique_ptr<Team> team_;
};

}  // namespace fast_conv3d
