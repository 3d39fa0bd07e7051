// Compiled once for each instruction set, with SEGSTREAM_ISA naming the namespace.
#include "backward.h"
#include "wide.h"

namespace segstream {
namespace SEGSTREAM_ISA {

void forward(const SegstreamProblem& problem, float* out) {
  if (problem.value_channels > kChannelBlock)
    WideForwardPass(problem, out).run();
  else
    ForwardPass(problem, out, nullptr).run();
}

void backward(const SegstreamProblem& problem, const SegstreamGradients& gradients) {
  BackwardPass(problem, gradients).run();
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
