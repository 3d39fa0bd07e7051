// A layer of the network, whatever the instruction set it was built for.
#pragma once

#include <cstddef>

#include "network.h"

struct SegstreamLayer {
  virtual ~SegstreamLayer() = default;
  // Floats of scratch memory for each thread.
  virtual ptrdiff_t scratch(const SegstreamStep& step) const = 0;
  // Multiplications, if all were computed directly.
  virtual int64_t work(const SegstreamStep& step) const = 0;
  virtual void run(const SegstreamStep& step, const struct SegstreamTeam& team) const = 0;
};

// The threads of a run, and a piece of scratch memory for each.
struct SegstreamTeam {
  int num_threads;
  float* memory;
  ptrdiff_t stride;
  float* scratch(int thread) const { return memory + thread * stride; }
};
