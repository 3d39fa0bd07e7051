// What parallel_for comes down to; thread_pool.h is how.
#pragma once

#include <cstdint>

namespace segstream {

using RunTask = void (*)(const void* body, int64_t task, int thread);

// Calls run_task(body, task, thread) for every task, in any order, and returns when all are done.
// Threads are numbered below num_threads; the calling one is 0.
void run_tasks(int64_t tasks, int num_threads, RunTask run_task, const void* body);

}  // namespace segstream
