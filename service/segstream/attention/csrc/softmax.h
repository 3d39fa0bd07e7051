// A softmax over scores that arrive chunk by chunk, for each query lane by itself.
//
// Weights are 2^((score - reference) * log2(e)): the difference comes first, so that it is exact
// where it counts however large both are. The reference of a lane starts at the largest score of
// the first chunk that the lane sees, whatever its sign, and moves up when a later score exceeds it
// by more than kSlack / log2(e): sums are then scaled down by what separates the two. So no weight
// exceeds 2^kSlack, and the largest of a lane is at least 1.
#pragma once

#include "accumulate.h"

namespace segstream {
namespace SEGSTREAM_ISA {

constexpr float kSlack = 8.0f;
constexpr float kLowest = -3.4028234663852886e38f;

SEGSTREAM_INLINE Vec weight_of(Vec score, Vec reference) {
  return exp2((score - reference) * broadcast(kLog2E));
}

// Turns the scores of one row at every offset into weights; returns their sum.
SEGSTREAM_INLINE Vec exponentiate(float* scores, int window, Vec reference) {
  Vec sum0 = {}, sum1 = {}, sum2 = {};
  int o = 0;
  for (; o + 3 <= window; o += 3, scores += 3 * kLanes) {
    const Vec w0 = weight_of(load(scores), reference);
    const Vec w1 = weight_of(load(scores + kLanes), reference);
    const Vec w2 = weight_of(load(scores + 2 * kLanes), reference);
    store(scores, w0);
    store(scores + kLanes, w1);
    store(scores + 2 * kLanes, w2);
    sum0 += w0;
    sum1 += w1;
    sum2 += w2;
  }
  for (; o < window; o++, scores += kLanes) {
    const Vec w = weight_of(load(scores), reference);
    store(scores, w);
    sum0 += w;
  }
  return sum0 + sum1 + sum2;
}

// The softmax state of one row of a tile: total = sum of the weights.
struct RowState {
  Vec reference, total;

  void start(Vec peak) {
    reference = peak;
    total = Vec{};
  }

  // Lets the reference follow `peak`. Returns whether it moved: then what was summed so far is to
  // be multiplied by `scale`.
  bool follow(Vec peak, Vec& scale) {
    const Vec rise = (peak - reference) * broadcast(kLog2E);
    if (!any_above(rise, kSlack)) return false;
    // Only the lanes that need it: what a lane computes must not depend on its neighbours.
    const auto moves = rise > broadcast(kSlack);
    scale = moves ? weight_of(reference, peak) : broadcast(1.0f);
    reference = moves ? peak : reference;
    total *= scale;
    return true;
  }

  // Counts `zeros` more scores of exactly 0 and, where there is one, the sink; none of them adds to
  // the sums. Returns by what to multiply these; of the whole softmax `reference` and `total` stay.
  Vec finish(int64_t zeros, const float* sink) {
    Vec top = reference;
    if (zeros > 0) top = maximum(top, Vec{});
    if (sink) top = maximum(top, broadcast(*sink));
    const Vec share = weight_of(reference, top);
    Vec all = total * share;
    if (zeros > 0) all += weight_of(Vec{}, top) * broadcast(static_cast<float>(zeros));
    if (sink) all += weight_of(broadcast(*sink), top);
    reference = top;
    total = all;
    return share / all;
  }
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
