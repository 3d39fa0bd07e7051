// The C entry points, and the choice of an instruction set.
#include <new>

#include "layer.h"
#include "thread_pool.h"

SEGSTREAM_DECLARE(SegstreamLayer* make_layer(const SegstreamLayerSpec&);)

namespace {

// Multiplications worth a thread: below about a tenth of a millisecond of work, one that is
// scheduled late costs more than it brings.
constexpr int64_t kLeastPerThread = 8 << 20;

SegstreamLayer* make_layer(const SegstreamLayerSpec& spec) {
  SEGSTREAM_DISPATCH(segstream::usable_isa(spec.isa), make_layer(spec));
}

}  // namespace

SEGSTREAM_EXPORT int32_t segstream_network_abi() { return 2; }

SEGSTREAM_EXPORT int32_t segstream_network_isa() { return segstream::best_isa(); }

SEGSTREAM_EXPORT SegstreamLayer* segstream_network_layer(const SegstreamLayerSpec* spec) {
  try {
    return make_layer(*spec);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

SEGSTREAM_EXPORT void segstream_network_free(SegstreamLayer* layer) { delete layer; }

SEGSTREAM_EXPORT int64_t segstream_network_scratch(const SegstreamStep* steps, int32_t count) {
  ptrdiff_t most = 0;
  for (int32_t i = 0; i < count; i++) {
    const ptrdiff_t floats = steps[i].layer->scratch(steps[i]);
    if (floats > most) most = floats;
  }
  return most;
}

SEGSTREAM_EXPORT void segstream_network_run(const SegstreamStep* steps, int32_t count,
                                            int32_t num_threads, float* scratch,
                                            int64_t scratch_floats) {
  for (int32_t i = 0; i < count; i++) {
    const int64_t threads = 1 + steps[i].layer->work(steps[i]) / kLeastPerThread;
    const SegstreamTeam team = {threads < num_threads ? static_cast<int>(threads) : num_threads,
                                scratch, static_cast<ptrdiff_t>(scratch_floats)};
    steps[i].layer->run(steps[i], team);
  }
}
