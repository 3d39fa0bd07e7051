// Tasks spread over threads, and memory for each thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "run_tasks.h"

namespace segstream {
namespace SEGSTREAM_ISA {

// Calls body(task, thread) for every task.
template <typename Body>
static void parallel_for(int64_t tasks, int num_threads, const Body& body) {
  const int threads = tasks < num_threads ? static_cast<int>(tasks) : num_threads;
  if (threads > 1) {
    const RunTask run_task = [](const void* erased, int64_t task, int thread) {
      (*static_cast<const Body*>(erased))(task, thread);
    };
    run_tasks(tasks, threads, run_task, &body);
    return;
  }
  for (int64_t task = 0; task < tasks; task++) body(task, 0);
}

// Sizes of the parts of a piece of memory, each rounded up to cache lines.
class Layout {
 public:
  ptrdiff_t add(ptrdiff_t floats) {
    const ptrdiff_t at = size_;
    size_ += (floats + kLine - 1) / kLine * kLine;
    return at;
  }
  ptrdiff_t size() const { return size_; }

 private:
  static constexpr ptrdiff_t kLine = 16;
  ptrdiff_t size_ = 0;
};

// `count` equal pieces of uninitialised memory on cache lines. Throws std::bad_alloc.
class Memory {
 public:
  Memory(ptrdiff_t floats, int count) : stride_(floats) {
    const size_t bytes = (static_cast<size_t>(floats) * count + kSpare) * sizeof(float);
    data_ = static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!data_) throw std::bad_alloc();
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  float* piece(int64_t index) const { return data_ + index * stride_; }

 private:
  static constexpr size_t kSpare = 64;
  ptrdiff_t stride_;
  float* data_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
