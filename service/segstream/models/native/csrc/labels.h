// The last layer: a transposed 2x2 convolution with stride 2, and the best class of each pixel.
//
// Lanes are pixels of the input. Each gives a 2 x 2 block of the output, so that the sums of one
// class for the four of them are four vectors, and the best class is found lane by lane. Its softmax
// comes of the same pass over the classes, where it is asked for.
#pragma once

#include "layer.h"
#include "multiply.h"

namespace segstream {
namespace SEGSTREAM_ISA {

class Labels final : public SegstreamLayer {
 public:
  explicit Labels(const SegstreamLayerSpec& spec)
      : in_(spec.in_channels),
        out_(spec.out_channels),
        bias_(spec.biases[0], out_),
        weights_(static_cast<ptrdiff_t>(4) * in_ * out_, 1) {
    // [class][channel][phase]
    for (int n = 0; n < out_; n++)
      for (int c = 0; c < in_; c++)
        for (int phase = 0; phase < 4; phase++)
          weights_.piece(0)[(static_cast<ptrdiff_t>(n) * in_ + c) * 4 + phase] =
              static_cast<float>(spec.weights[0][(static_cast<ptrdiff_t>(c) * out_ + n) * 4 + phase]);
  }

  ptrdiff_t scratch(const SegstreamStep&) const override {
    return static_cast<ptrdiff_t>(in_) * kLanes;
  }

  int64_t work(const SegstreamStep& step) const override {
    return static_cast<int64_t>(step.height) * step.width * 4 * in_ * step.num_classes;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const override {
    parallel_for(ceil_div(step.frame_height, 2), team.num_threads, [&](int64_t y, int thread) {
      float* pixels = team.scratch(thread);
      for (int x = 0; 2 * x < step.frame_width; x += kLanes) {
        transpose_pixels(step, static_cast<int>(y), x, pixels);
        if (step.element == kUint8 && step.confidence != nullptr)
          store_labels<true>(step, static_cast<int>(y), x, pixels);
        else if (step.element == kUint8)
          store_labels<false>(step, static_cast<int>(y), x, pixels);
        else
          store_logits(step, static_cast<int>(y), x, pixels);
      }
    });
  }

 private:
  // pixels[channel][lane], of kLanes pixels from column x of row y; the last one is repeated.
  void transpose_pixels(const SegstreamStep& step, int y, int x, float* pixels) const {
    const float* row = static_cast<const float*>(step.in) + static_cast<ptrdiff_t>(y) * step.width * in_;
    for (int lane = 0; lane < kLanes; lane += 4) {
      const float* from[4];
      for (int i = 0; i < 4; i++) from[i] = row + minimum(x + lane + i, step.width - 1) * in_;
      for (int c = 0; c < in_; c += 4) {
        Vec4 rows[4];
        for (int i = 0; i < 4; i++) rows[i] = *reinterpret_cast<const UnalignedVec4*>(from[i] + c);
        transpose(rows[0], rows[1], rows[2], rows[3]);
        for (int i = 0; i < 4; i++)
          *reinterpret_cast<UnalignedVec4*>(pixels + (c + i) * kLanes + lane) = rows[i];
      }
    }
  }

  // The logits of kClasses classes from n on, for each of the four phases.
  template <int kClasses>
  SEGSTREAM_INLINE void logits(const Labels& self, int n, const float* pixels,
                               Vec (&sum)[kClasses][4]) {
    const float* weights = self.weights_.piece(0) + static_cast<ptrdiff_t>(n) * self.in_ * 4;
    for (int i = 0; i < kClasses; i++)
      for (int phase = 0; phase < 4; phase++) sum[i][phase] = broadcast(*self.bias_.at(n + i));
    for (int c = 0; c < self.in_; c++) {
      const Vec x = load(pixels + c * kLanes);
#pragma GCC unroll 2
      for (int i = 0; i < kClasses; i++)
#pragma GCC unroll 4
        for (int phase = 0; phase < 4; phase++)
          sum[i][phase] = multiply_add(
              x, broadcast(weights[(i * self.in_ + c) * 4 + phase]), sum[i][phase]);
    }
  }

  // What is known of the four phases of a vector of pixels, from the classes so far.
  struct Best {
    Vec logit[4];
    IntVec label[4];
    Vec mass[4];  // the sum over the classes of e^(their logit - the best one)
  };

  template <bool kConfidence>
  void store_labels(const SegstreamStep& step, int y, int x, const float* pixels) const {
    Best best = {};
    for (int phase = 0; phase < 4; phase++) best.logit[phase] = broadcast(-__builtin_inff());
    int n = 0;
    for (; n + 2 <= step.num_classes; n += 2) take_better<2, kConfidence>(n, pixels, best);
    if (n < step.num_classes) take_better<1, kConfidence>(n, pixels, best);
    store_bytes(step, y, x, best.label, static_cast<uint8_t*>(step.out));
    if (!kConfidence) return;
    IntVec confidence[4];
    for (int phase = 0; phase < 4; phase++)
      confidence[phase] =
          __builtin_convertvector(broadcast(255.0f) / best.mass[phase] + broadcast(0.5f), IntVec);
    store_bytes(step, y, x, confidence, step.confidence);
  }

  // One byte of each pixel of a 2 x 2 block.
  void store_bytes(const SegstreamStep& step, int y, int x, const IntVec (&values)[4],
                   uint8_t* to) const {
    const int columns = minimum(2 * kLanes, step.frame_width - 2 * x);
    for (int half = 0; half < 2 && 2 * y + half < step.frame_height; half++) {
      const IntVec both = values[2 * half] | values[2 * half + 1] << 8;  // little-endian
      uint8_t bytes[2 * kLanes];
      for (int lane = 0; lane < kLanes; lane++) {
        bytes[2 * lane] = static_cast<uint8_t>(both[lane]);
        bytes[2 * lane + 1] = static_cast<uint8_t>(both[lane] >> 8);
      }
      std::memcpy(to + (2 * static_cast<ptrdiff_t>(y) + half) * step.frame_width + 2 * x, bytes,
                  columns);
    }
  }

  // Of equal logits the first class is the best.
  template <int kClasses, bool kConfidence>
  void take_better(int n, const float* pixels, Best& best) const {
    Vec sum[kClasses][4];
    logits(*this, n, pixels, sum);
    for (int i = 0; i < kClasses; i++)
      for (int phase = 0; phase < 4; phase++) {
        const IntVec is_better = sum[i][phase] > best.logit[phase];
        const Vec logit = maximum(best.logit[phase], sum[i][phase]);
        if (kConfidence)
          best.mass[phase] = best.mass[phase] * exponential(best.logit[phase] - logit) +
                             exponential(sum[i][phase] - logit);
        best.logit[phase] = logit;
        best.label[phase] = (best.label[phase] & ~is_better) | ((IntVec{} + n + i) & is_better);
      }
  }

  static Vec exponential(Vec x) { return exp2(x * broadcast(1.44269504f)); }

  void store_logits(const SegstreamStep& step, int y, int x, const float* pixels) const {
    const int columns = minimum(2 * kLanes, step.frame_width - 2 * x);
    for (int n = 0; n < step.num_classes; n++) {
      Vec sum[1][4];
      logits(*this, n, pixels, sum);
      for (int half = 0; half < 2 && 2 * y + half < step.frame_height; half++) {
        const ptrdiff_t row = static_cast<ptrdiff_t>(n) * step.frame_height + 2 * y + half;
        float* out = static_cast<float*>(step.out) + row * step.frame_width + 2 * x;
        for (int i = 0; i < columns; i++) out[i] = sum[0][2 * half + i % 2][i / 2];
      }
    }
  }

  const int in_, out_;
  const Numbers bias_;
  const Memory weights_;
};

class Affine final : public SegstreamLayer {
 public:
  explicit Affine(const SegstreamLayerSpec& spec)
      : channels_(spec.in_channels),
        scale_(spec.weights[0], channels_),
        shift_(spec.biases[0], channels_) {}

  ptrdiff_t scratch(const SegstreamStep&) const override { return 0; }

  int64_t work(const SegstreamStep& step) const override {
    return static_cast<int64_t>(step.height) * step.width * channels_;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const override {
    parallel_for(step.height, team.num_threads, [&](int64_t y, int) {
      for (int64_t i = y * step.width; i < (y + 1) * step.width; i++) {
        const float* from = static_cast<const float*>(step.in) + i * step.pixel_stride;
        float* to = static_cast<float*>(step.out) + i * step.row_stride;
        for (int c = 0; c < channels_; c += kLanes)
          store(to + c,
                relu(multiply_add(load(from + c), load(scale_.at(c)), load(shift_.at(c)))));
      }
    });
  }

 private:
  const int channels_;
  const Numbers scale_, shift_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
