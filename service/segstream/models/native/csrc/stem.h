// From the frame to the first map: uint8 or float pixels in whatever order, 3x3 stride 2, max-pool.
#pragma once

#include "strided.h"

namespace segstream {
namespace SEGSTREAM_ISA {

class Stem final : public SegstreamLayer {
 public:
  explicit Stem(const SegstreamLayerSpec& spec)
      : in_(spec.in_channels),
        out_(spec.out_channels),
        rows_(spec.weights[0], spec.biases[0], in_, out_ - in_),
        scale_(spec.weights[1], in_),
        shift_(spec.biases[1], in_) {}

  ptrdiff_t scratch(const SegstreamStep& step) const override {
    return (2 * kRows + 1) * line(step);
  }

  int64_t work(const SegstreamStep& step) const override {
    return static_cast<int64_t>(step.height) * step.width * 9 / 4 * in_ * out_;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const override {
    const int height = step.height / 2;
    parallel_for(ceil_div(height, kRows), team.num_threads, [&](int64_t task, int thread) {
      const int first = static_cast<int>(task) * kRows;
      run_rows(step, first, minimum(height, first + kRows), team.scratch(thread));
    });
  }

 private:
  static constexpr int kRows = 4;  // of the output, of a task

  ptrdiff_t line(const SegstreamStep& step) const {
    return round_up(step.width * in_, kGroup);
  }

  void run_rows(const SegstreamStep& step, int first, int end, float* floats) const {
    const int top = maximum(0, 2 * first - 1), width = step.width / 2;
    for (int y = top; y < 2 * end; y++) read_row(step, y, floats + (y - top) * line(step));
    for (int y = first; y < end; y++) {
      const float* middle = floats + (2 * y - top) * line(step);
      const float* rows[] = {y ? middle - line(step) : nullptr, middle, middle + line(step)};
      float* out = static_cast<float*>(step.out) + static_cast<ptrdiff_t>(y) * width * out_;
      // The convolution fills whole groups of channels; the pool then writes those that are its.
      rows_.run(rows, width, out, out_);
      pool(middle, middle + line(step), width, out + out_ - in_);
    }
  }

  void pool(const float* upper, const float* lower, int count, float* out) const {
    for (int x = 0; x < count; x++, upper += 2 * in_, lower += 2 * in_, out += out_)
      for (int c = 0; c < in_; c++) {
        const float up = upper[c] > upper[in_ + c] ? upper[c] : upper[in_ + c];
        const float low = lower[c] > lower[in_ + c] ? lower[c] : lower[in_ + c];
        const float sum = (up > low ? up : low) * *scale_.at(c) + *shift_.at(c);
        out[c] = sum > 0.0f ? sum : 0.0f;
      }
  }

  // A row of the frame as floats in 0..1, channels side by side, the border repeated.
  void read_row(const SegstreamStep& step, int y, float* to) const {
    const int row = minimum(y, step.frame_height - 1);
    if (step.element == kUint8)
      read_pixels(static_cast<const uint8_t*>(step.in) + row * step.row_stride, step, to,
                  [](uint8_t x) { return static_cast<float>(x) / 255.0f; });
    else
      read_pixels(static_cast<const float*>(step.in) + row * step.row_stride, step, to,
                  [](float x) { return x; });
    const float* last = to + (step.frame_width - 1) * in_;
    for (int i = step.frame_width * in_; i < step.width * in_; i++) to[i] = last[i % in_];
  }

  template <typename Element, typename Convert>
  void read_pixels(const Element* from, const SegstreamStep& step, float* to,
                   const Convert& convert) const {
    if (step.pixel_stride == in_ && step.channel_stride == 1) {
      for (int i = 0; i < step.frame_width * in_; i++) to[i] = convert(from[i]);
      return;
    }
    for (int c = 0; c < in_; c++)
      for (int x = 0; x < step.frame_width; x++)
        to[x * in_ + c] = convert(from[x * step.pixel_stride + c * step.channel_stride]);
  }

  const int in_, out_;
  const StridedRows rows_;
  const Numbers scale_, shift_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
