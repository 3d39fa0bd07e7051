// The C entry points: check what a wrong value would turn into a wild read, and choose the
// strongest instruction set that was compiled and that the processor has.
#include <new>

#include "attention.h"
#include "thread_pool.h"

SEGSTREAM_DECLARE(void forward(const SegstreamProblem&, float* out);
                  void backward(const SegstreamProblem&, const SegstreamGradients&);)

namespace segstream {
namespace {

bool slots_are_valid(const SegstreamProblem& problem) {
  const int64_t count = static_cast<int64_t>(problem.batch) * problem.memory_length;
  for (int64_t i = 0; i < count; i++)
    if (problem.slots[i] < -1 || problem.slots[i] >= problem.num_pages) return false;
  return true;
}

// Calls the function table entry of the wanted instruction set, or of the best one below it.
template <typename Call>
int32_t guarded(const SegstreamProblem& problem, const Call& call) {
  if (!slots_are_valid(problem)) return kSlotOutOfRange;
  try {
    call(usable_isa(problem.isa));
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kOk;
}

}  // namespace
}  // namespace segstream

SEGSTREAM_EXPORT int32_t segstream_attention_abi() { return 1; }

SEGSTREAM_EXPORT int32_t segstream_attention_isa() { return segstream::best_isa(); }

SEGSTREAM_EXPORT int32_t segstream_attention_forward(const SegstreamProblem* problem, float* out) {
  return segstream::guarded(*problem,
                            [&](int32_t isa) { SEGSTREAM_DISPATCH(isa, forward(*problem, out)) });
}

SEGSTREAM_EXPORT int32_t segstream_attention_backward(const SegstreamProblem* problem,
                                                      const SegstreamGradients* gradients) {
  return segstream::guarded(
      *problem, [&](int32_t isa) { SEGSTREAM_DISPATCH(isa, backward(*problem, *gradients)) });
}
