// Compiled once for each instruction set, with SEGSTREAM_ISA naming the namespace.
#include "direct_pair.h"
#include "labels.h"
#include "pair.h"
#include "plane.h"
#include "stem.h"
#include "strided.h"

namespace segstream {
namespace SEGSTREAM_ISA {

template <template <int> class Layer>
static SegstreamLayer* tiled(const SegstreamLayerSpec& spec) {
  if (spec.tile == 4) return new Layer<4>(spec);
  return new Layer<2>(spec);
}

SegstreamLayer* make_layer(const SegstreamLayerSpec& spec) {
  switch (spec.kind) {
    case kStem:
      return new Stem(spec);
    case kDown:
      return new Down(spec);
    case kPair:
      return spec.tile == 1 ? new DirectPair(spec) : tiled<Pair>(spec);
    case kHeads:
      return tiled<Heads>(spec);
    case kFusion:
      return tiled<Fusion>(spec);
    case kUp:
      return new Up(spec);
    case kLabels:
      return new Labels(spec);
    default:
      return new Affine(spec);
  }
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
