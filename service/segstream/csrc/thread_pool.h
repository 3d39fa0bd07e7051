// The threads behind parallel_for. Included by the one file of a library that dispatches.
//
// Not OpenMP's: its threads spin for a late one after every loop, each loop waits for all of them,
// and where other programs want the cores too a frame took three times as long (docs/
// native_engine.md). Here a loop waits for nobody who has not begun a task of it, and whoever
// waits gives the core away and soon sleeps.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "run_tasks.h"

namespace segstream {
namespace {

class ThreadPool {
 public:
  // Whoever has the pool runs on its threads; a call beside it runs on the thread it came on.
  void run(int64_t tasks, int num_threads, RunTask run_task, const void* body) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn) {
      for (int64_t task = 0; task < tasks; task++) run_task(body, task, 0);
      return;
    }
    open(tasks, num_threads, run_task, body);
    work(run_task, body, tasks, 0);
    close();
  }

 private:
  static constexpr std::chrono::microseconds kPatience{100};

  void open(int64_t tasks, int num_threads, RunTask run_task, const void* body) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      start(num_threads - 1);
      tasks_ = tasks;
      run_task_ = run_task;
      body_ = body;
      next_.store(0, std::memory_order_relaxed);
      seats_ = num_threads - 1;
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (num_sleeping_.load() > 0) opened_.notify_all();
  }

  // Nobody takes a seat any more; waits for those who have one.
  void close() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      seats_ = 0;
    }
    if (patiently([this] { return num_working_.load(std::memory_order_acquire) == 0; })) return;
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, [this] { return num_working_.load(std::memory_order_relaxed) == 0; });
  }

  void start(int num_others) {
    try {
      for (; num_started_ < num_others; num_started_++)
        std::thread(&ThreadPool::serve, this, num_started_ + 1).detach();
    } catch (const std::system_error&) {
      // The system has no more threads: those that there are do the work.
    }
  }

  // What each thread of the pool does, for ever.
  void serve(int thread) {
    uint64_t seen = 0;
    for (;;) {
      const auto is_new = [this, seen] { return generation_.load(std::memory_order_acquire) != seen; };
      const bool is_seen = patiently(is_new);
      std::unique_lock<std::mutex> lock(mutex_);
      if (!is_seen) {
        num_sleeping_++;
        opened_.wait(lock, is_new);
        num_sleeping_--;
      }
      seen = generation_.load(std::memory_order_relaxed);
      if (thread > seats_) continue;
      num_working_.fetch_add(1, std::memory_order_relaxed);
      const RunTask run_task = run_task_;
      const void* const body = body_;
      const int64_t tasks = tasks_;
      lock.unlock();
      work(run_task, body, tasks, thread);
      lock.lock();
      const bool is_last = num_working_.fetch_sub(1, std::memory_order_release) == 1;
      lock.unlock();
      if (is_last) left_.notify_one();
    }
  }

  void work(RunTask run_task, const void* body, int64_t tasks, int thread) {
    for (;;) {
      const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      run_task(body, task, thread);
    }
  }

  // Whether the condition came true soon; the core is free for others meanwhile.
  template <typename Condition>
  static bool patiently(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }

  std::mutex turn_;

  std::mutex mutex_;  // guards what follows, but for the atomic parts
  std::condition_variable opened_, left_;
  RunTask run_task_ = nullptr;
  const void* body_ = nullptr;
  int64_t tasks_ = 0;
  int num_started_ = 0;
  int seats_ = 0;  // threads 1 to seats_ take part
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> num_working_{0};
  std::atomic<int> num_sleeping_{0};
};

// The pool of this process. Never destroyed: its threads run until the process ends. A process that
// was forked has none of them and needs a pool of its own.
ThreadPool& pool() {
  struct Owned {
    pid_t owner;
    ThreadPool pool;
  };
  static std::atomic<Owned*> current{nullptr};
  Owned* found = current.load(std::memory_order_acquire);
  const pid_t self = getpid();
  while (found == nullptr || found->owner != self) {
    Owned* const made = new Owned{self, {}};
    if (current.compare_exchange_strong(found, made)) {
      found = made;
    } else {
      delete made;  // another thread was faster; no thread of this one was started
    }
  }
  return found->pool;
}

}  // namespace

void run_tasks(int64_t tasks, int num_threads, RunTask run_task, const void* body) {
  pool().run(tasks, num_threads, run_task, body);
}

}  // namespace segstream
