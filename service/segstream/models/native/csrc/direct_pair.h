// A 3x1 convolution and the 1x3 convolution behind it, computed directly: for so few channels that
// Winograd's transforms cost what they save.
#pragma once

#include "strided.h"

namespace segstream {
namespace SEGSTREAM_ISA {

class DirectPair final : public SegstreamLayer {
 public:
  explicit DirectPair(const SegstreamLayerSpec& spec)
      : channels_(spec.in_channels),
        dilation_(spec.dilation),
        vertical_bias_(spec.biases[0], channels_),
        horizontal_bias_(spec.biases[1], channels_),
        vertical_(weights(spec.weights[0])),
        horizontal_(weights(spec.weights[1])) {}

  ptrdiff_t scratch(const SegstreamStep& step) const override {
    return static_cast<ptrdiff_t>(step.width) * channels_;
  }

  int64_t work(const SegstreamStep& step) const override {
    return static_cast<int64_t>(step.height) * step.width * 6 * channels_ * channels_;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const override {
    const ptrdiff_t line = static_cast<ptrdiff_t>(step.width) * channels_;
    parallel_for(ceil_div(step.height, kRows), team.num_threads, [&](int64_t task, int thread) {
      const int first = static_cast<int>(task) * kRows;
      for (int y = first; y < minimum(step.height, first + kRows); y++) {
        vertical(step, y, team.scratch(thread));
        horizontal(team.scratch(thread), step.width,
                   step.residual ? step.residual + y * line : nullptr,
                   static_cast<float*>(step.out) + y * line);
      }
    });
  }

 private:
  static constexpr int kRows = 4;  // of a task

  Weights weights(const double* from) const {
    return Weights(3 * channels_, channels_, [&](int k, int n) {
      return from[(static_cast<ptrdiff_t>(n) * channels_ + k % channels_) * 3 + k / channels_];
    });
  }

  void vertical(const SegstreamStep& step, int y, float* out) const {
    const ptrdiff_t line = static_cast<ptrdiff_t>(step.width) * channels_;
    RowTap taps[3] = {};
    int count = 0;
    for (int i = 0; i < 3; i++) {
      const int row = y + (i - 1) * dilation_;
      if (row >= 0 && row < step.height)
        taps[count++] = {static_cast<const float*>(step.in) + row * line, i * channels_, channels_};
    }
    run_row({vertical_, vertical_bias_, channels_, channels_, channels_}, taps, count, step.width,
            nullptr, out);
  }

  // Between the places where a tap enters or leaves the row, all outputs have the same taps.
  void horizontal(const float* in, int width, const float* residual, float* out) const {
    const int left = minimum(dilation_, width), right = maximum(width - dilation_, 0);
    const int ends[] = {minimum(left, right), maximum(left, right), width};
    int x = 0;
    for (const int end : ends) {
      RowTap taps[3] = {};
      int count = 0;
      for (int i = 0; i < 3; i++) {
        const int column = x + (i - 1) * dilation_;
        if (column >= 0 && column < width)
          taps[count++] = {in + column * channels_, i * channels_, channels_};
      }
      const ptrdiff_t at = static_cast<ptrdiff_t>(x) * channels_;
      if (end > x)
        run_row({horizontal_, horizontal_bias_, channels_, channels_, channels_}, taps, count,
                end - x, residual ? residual + at : nullptr, out + at);
      x = end;
    }
  }

  const int channels_;
  const ptrdiff_t dilation_;
  const Numbers vertical_bias_, horizontal_bias_;
  const Weights vertical_, horizontal_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
