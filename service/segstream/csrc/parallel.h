// Tasks spread over threads, and memory for each thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace segstream {
namespace SEGSTREAM_ISA {

// Calls body(task, thread) for every task. OpenMP shares its threads with torch, which loads the
// same runtime; without it the tasks run one after the other.
template <typename Body>
static void parallel_for(int64_t tasks, int num_threads, const Body& body) {
#if defined(_OPENMP)
  if (num_threads > 1 && tasks > 1) {
    const int threads = tasks < num_threads ? static_cast<int>(tasks) : num_threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < tasks; task++) body(task, omp_get_thread_num());
    return;
  }
#endif
  (void)num_threads;
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
