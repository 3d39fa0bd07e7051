// The running softmax of one query.
//
// Weights are kept as exp(score - reference). Any reference gives the same result in exact
// arithmetic. Here it is set to the first maximum seen, whatever its size, and later rises, to a
// maximum really seen, whenever a score exceeds it by more than kLazyMargin. So the largest
// weight lies between 1 and exp(kLazyMargin): nothing overflows, not even in 16 bits, and the sum
// never vanishes. Differences are taken before anything is scaled to powers of two, so scores of
// any size keep what precision they have.
#pragma once

#include "problem.cuh"

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLazyMargin = 5.5f;
// "No score seen yet". Finite, so that differences of references stay numbers.
constexpr float kNoReference = -3.0e38f;

SEGSTREAM_DEVICE float exp_of(float difference) {
  return machine::exp2_approximate(difference * kLog2E);
}

// Brings the partial results of one query to a common reference and closes its softmax.
struct SoftmaxMerge {
  float reference = kNoReference;
  float sum = 0.0f;

  // Before any `add`: every part's reference, and the sink's logit.
  SEGSTREAM_DEVICE void see(float part_reference) {
    reference = machine::larger(reference, part_reference);
  }

  // Takes in a part's sum and returns the factor that its weighted values need.
  SEGSTREAM_DEVICE float add(float part_reference, float part_sum) {
    const float factor = exp_of(part_reference - reference);
    sum = machine::fused_multiply_add(factor, part_sum, sum);
    return factor;
  }

  // weighted / sum; 0 for an item without a page or a sink.
  SEGSTREAM_DEVICE float normalise(float weighted) const {
    return sum == 0.0f ? 0.0f : weighted / sum;
  }
};
