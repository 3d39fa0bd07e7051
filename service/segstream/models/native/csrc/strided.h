// Convolutions that change the resolution, computed directly: row by row, with a 3x3 filter's row
// as one tap of the multiply, because its three pixels lie side by side.
#pragma once

#include "layer.h"
#include "multiply.h"

namespace segstream {
namespace SEGSTREAM_ISA {

// A direct convolution along a row; neighbouring outputs lie `out_step` floats apart, and so do
// their inputs by `in_step`. Channels come in whole groups.
struct RowJob {
  const Weights& weights;
  const Numbers& bias;
  int channels;
  ptrdiff_t in_step, out_step;
};

// Where a tap begins: in the input, and in the depth of the weights.
struct RowTap {
  const float* a;
  int depth, k;
};

// relu(sum + bias + residual) of `count` outputs; the residual, if any, lies as they do.
static void run_row(const RowJob& job, const RowTap* taps, int num_taps, int count,
                    const float* residual, float* out) {
  with_vectors(job.weights.vectors, [&](auto vectors) {
    constexpr int kVectors = vectors;
    for (int n = 0; n < job.channels; n += kVectors * kLanes) {
      Tap panel[3] = {};
      for (int t = 0; t < num_taps; t++)
        panel[t] = {taps[t].a, job.weights.at(n, taps[t].depth), taps[t].k};
      Vec bias[kVectors];
      for (int j = 0; j < kVectors; j++) bias[j] = load(job.bias.at(n + j * kLanes));
      const auto finish = [&](int row, const Vec (&sum)[kVectors]) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; j++) {
          const ptrdiff_t at = row * job.out_step + n + j * kLanes;
          Vec total = sum[j] + bias[j];
          if (residual) total += load(residual + at);
          store(out + at, relu(total));
        }
      };
      multiply<kVectors>(count, panel, num_taps, job.in_step, finish);
    }
  });
}

// The rows of a 3x3 filter with stride 2 and padding 1, as taps; depth = (ky * 3 + kx) * in + c.
class StridedRows {
 public:
  StridedRows(const double* weights, const double* biases, int in, int out)
      : in_(in),
        channels_(round_up(out, kGroup)),
        bias_(biases, out),
        weights_(9 * in, channels_, [&](int k, int n) {
          const ptrdiff_t filter = (static_cast<ptrdiff_t>(n) * in + k % in) * 9;
          return n < out ? weights[filter + k / in] : 0.0;
        }) {}

  // rows[ky]: the three rows of the input, null outside the map; `count` outputs to `out`.
  void run(const float* const* rows, int count, float* out, ptrdiff_t out_step) const {
    const RowJob job = {weights_, bias_, channels_, 2 * in_, out_step};
    RowTap first[3] = {}, others[3] = {};
    int taps = 0;
    for (int ky = 0; ky < 3; ky++) {
      if (!rows[ky]) continue;
      first[taps] = {rows[ky], (ky * 3 + 1) * in_, 2 * in_};
      others[taps++] = {rows[ky] + in_, ky * 3 * in_, 3 * in_};
    }
    run_row(job, first, taps, 1, nullptr, out);
    if (count > 1) run_row(job, others, taps, count - 1, nullptr, out + out_step);
  }

 private:
  const int in_, channels_;
  const Numbers bias_;
  const Weights weights_;
};

class Down final : public SegstreamLayer {
 public:
  explicit Down(const SegstreamLayerSpec& spec)
      : in_(spec.in_channels),
        out_(spec.out_channels),
        rows_(spec.weights[0], spec.biases[0], in_, out_ - in_),
        scale_(spec.weights[1], in_),
        shift_(spec.biases[1], in_) {}

  ptrdiff_t scratch(const SegstreamStep&) const override { return 0; }

  int64_t work(const SegstreamStep& step) const override {
    return static_cast<int64_t>(step.height) * step.width * 9 / 4 * in_ * out_;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const override {
    const int width = step.width / 2;
    const ptrdiff_t line = static_cast<ptrdiff_t>(step.width) * in_;
    parallel_for(step.height / 2, team.num_threads, [&](int64_t y, int) {
      const float* middle = static_cast<const float*>(step.in) + 2 * y * line;
      const float* rows[] = {y ? middle - line : nullptr, middle, middle + line};
      float* out = static_cast<float*>(step.out) + y * width * out_;
      rows_.run(rows, width, out, out_);
      pool(middle, middle + line, width, out + out_ - in_);
    });
  }

 private:
  void pool(const float* upper, const float* lower, int count, float* out) const {
    for (int x = 0; x < count; x++, upper += 2 * in_, lower += 2 * in_, out += out_)
      for (int c = 0; c < in_; c += kLanes) {
        const Vec best = maximum(maximum(load(upper + c), load(upper + in_ + c)),
                                 maximum(load(lower + c), load(lower + in_ + c)));
        store(out + c, relu(multiply_add(best, load(scale_.at(c)), load(shift_.at(c)))));
      }
  }

  const int in_, out_;
  const StridedRows rows_;
  const Numbers scale_, shift_;
};

// Transposed convolution, 3x3, stride 2, padding 1, output padding 1. Each input row gives two
// rows of the output, each of them its even and its odd pixels:
//
//   even, even   in[y, x] w11
//   even, odd    in[y, x] w12 + in[y, x+1] w10
//   odd,  even   in[y, x] w21 + in[y+1, x] w01
//   odd,  odd    in[y, x] w22 + in[y, x+1] w20 + in[y+1, x] w02 + in[y+1, x+1] w00
class Up final : public SegstreamLayer {
 public:
  explicit Up(const SegstreamLayerSpec& spec)
      : in_(spec.in_channels),
        out_(spec.out_channels),
        bias_(spec.biases[0], out_),
        weights_(9 * in_, out_, [&](int k, int n) {
          const ptrdiff_t filter = (static_cast<ptrdiff_t>(k % in_) * out_ + n) * 9;
          return spec.weights[0][filter + kOrder[k / in_]];
        }) {}

  ptrdiff_t scratch(const SegstreamStep&) const override { return 0; }

  int64_t work(const SegstreamStep& step) const override {
    return static_cast<int64_t>(step.height) * step.width * 9 * in_ * out_;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const override {
    const ptrdiff_t line = static_cast<ptrdiff_t>(step.width) * in_;
    parallel_for(step.height, team.num_threads, [&](int64_t y, int) {
      const float* row = static_cast<const float*>(step.in) + y * line;
      const float* below = y + 1 < step.height ? row + line : nullptr;
      float* out = static_cast<float*>(step.out) + 4 * y * step.width * out_;
      run_row_of(nullptr, row, step.width, out);
      run_row_of(row, below, step.width, out + 2 * static_cast<ptrdiff_t>(step.width) * out_);
    });
  }

 private:
  // The 3 x 3 weights as the phases use them, so that neighbouring pixels are one tap.
  static constexpr int kOrder[9] = {4, 5, 3, 7, 8, 6, 1, 2, 0};

  // An even row of the output comes from `centre` by the filter's middle row; an odd one from
  // `upper` by its last row and, within the map, from the row below that by its first.
  void run_row_of(const float* upper, const float* other, int width, float* out) const {
    const RowJob job = {weights_, bias_, out_, in_, 2 * static_cast<ptrdiff_t>(out_)};
    RowTap even[2] = {}, odd[2] = {};
    int taps = 0;
    const auto add = [&](const float* row, int weights) {
      even[taps] = {row, weights * in_, in_};
      odd[taps++] = {row, (weights + 1) * in_, 2 * in_};
    };
    if (upper) add(upper, 3);
    if (other) add(other, upper ? 6 : 0);
    run_row(job, even, taps, width, nullptr, out);
    if (width > 1) run_row(job, odd, taps, width - 1, nullptr, out + out_);
    for (int t = 0; t < taps; t++) odd[t] = {even[t].a + (width - 1) * in_, odd[t].depth, in_};
    run_row(job, odd, taps, 1, nullptr, out + (2 * static_cast<ptrdiff_t>(width) - 1) * out_);
  }

  const int in_, out_;
  const Numbers bias_;
  const Weights weights_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
