// A 3x1 convolution and the 1x3 convolution behind it, in one pass over the map.
//
//   task = the rows r, r + d, .. r + (M - 1) d          (d = dilation, M = outputs of a tile)
//     3x1 of these rows, whole rows, from up to M + 2 rows of the input -> M rows of scratch
//     1x3 of them, residual, ReLU                                       -> M rows of the output
//
// Between the two nothing leaves the second-level cache, and nothing is computed twice: the 1x3
// needs no rows but its own.
#pragma once

#include "layer.h"
#include "winograd.h"

namespace segstream {
namespace SEGSTREAM_ISA {

// M outputs along one axis, and the M + 2 inputs that they depend on.
struct Tile {
  const float* in;        // the second input, which is where the first output lies
  const float* residual;  // or null
  float* out;
  int first_input, end_input;  // those within the map, of M + 2; the others are zeros
  int outputs;                 // those within the map, of M
};

template <int kOutputs>
class Line {  // a convolution with 3 taps along one axis
 public:
  static constexpr int kPoints = Winograd<kOutputs>::kPoints;
  static constexpr int kMostTiles = 48;

  Line(const double* weights, const double* biases, int channels)
      : channels_(channels),
        bias_(biases, channels),
        weights_(kPoints * channels, channels, [&](int k, int n) {
          const double* taps = weights + (static_cast<ptrdiff_t>(n) * channels + k % channels) * 3;
          const double* filter = Winograd<kOutputs>::kFilter[k / channels];
          return filter[0] * taps[0] + filter[1] * taps[1] + filter[2] * taps[2];
        }) {}

  static ptrdiff_t scratch(int channels) {
    return kPoints * (input_size(channels) + kMostTiles * kMostVectors * kLanes);
  }

  // `step`: floats between neighbouring taps of the input, and of the output.
  void run(const Tile* tiles, int count, ptrdiff_t in_step, ptrdiff_t out_step,
           float* scratch) const {
    transform(tiles, count, in_step, scratch);
    with_vectors(weights_.vectors, [&](auto vectors) {
      for (int n = 0; n < channels_; n += weights_.width)
        panel<vectors>(tiles, count, n, out_step, scratch);
    });
  }

 private:
  // Of one point; the points must not lie a multiple of 4 KiB apart.
  static ptrdiff_t input_size(int channels) {
    return static_cast<ptrdiff_t>(kMostTiles) * channels + kGroup;
  }

  void transform(const Tile* tiles, int count, ptrdiff_t step, float* inputs) const {
    const ptrdiff_t size = input_size(channels_);
    for (int i = 0; i < count; i++) {
      const Tile& tile = tiles[i];
      for (int c = 0; c < channels_; c += kLanes) {
        Vec d[kPoints], v[kPoints];
#pragma GCC unroll 8
        for (int x = 0; x < kPoints; x++)
          d[x] = x >= tile.first_input && x < tile.end_input ? load(tile.in + (x - 1) * step + c)
                                                             : Vec{};
        Winograd<kOutputs>::input(d, v);
#pragma GCC unroll 8
        for (int x = 0; x < kPoints; x++) store(inputs + x * size + i * channels_ + c, v[x]);
      }
    }
  }

  template <int kVectors>
  void panel(const Tile* tiles, int count, int n, ptrdiff_t out_step, float* inputs) const {
    constexpr int kWidth = kVectors * kLanes;
    constexpr ptrdiff_t kSize = kMostTiles * kWidth;
    const ptrdiff_t size = input_size(channels_);
    float* products = inputs + kPoints * size;
    for (int x = 0; x < kPoints; x++) {
      const Tap tap = {inputs + x * size, weights_.at(n, x * channels_), channels_};
      float* to = products + x * kSize;
      multiply<kVectors>(count, &tap, 1, channels_, [to](int row, const Vec (&sum)[kVectors]) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; j++) store(to + row * kWidth + j * kLanes, sum[j]);
      });
    }
    for (int j = 0; j < kVectors; j++) {
      const Vec bias = load(bias_.at(n + j * kLanes));
      const float* from = products + j * kLanes;
      for (int i = 0; i < count; i++, from += kWidth)
        finish(tiles[i], from, kSize, bias, out_step, n + j * kLanes);
    }
  }

  SEGSTREAM_INLINE void finish(const Tile& tile, const float* products, ptrdiff_t size, Vec bias,
                               ptrdiff_t step, int n) {
    Vec m[kPoints], y[kOutputs];
#pragma GCC unroll 8
    for (int x = 0; x < kPoints; x++) m[x] = load(products + x * size);
    Winograd<kOutputs>::output(m, y);
    for (int q = 0; q < tile.outputs; q++) {
      Vec sum = y[q] + bias;
      if (tile.residual) sum += load(tile.residual + q * step + n);
      store(tile.out + q * step + n, relu(sum));
    }
  }

  const int channels_;
  const Numbers bias_;
  const Weights weights_;
};

template <int kOutputs>
class Pair final : public SegstreamLayer {
 public:
  explicit Pair(const SegstreamLayerSpec& spec)
      : channels_(spec.in_channels),
        dilation_(spec.dilation),
        vertical_(spec.weights[0], spec.biases[0], channels_),
        horizontal_(spec.weights[1], spec.biases[1], channels_) {}

  ptrdiff_t scratch(const SegstreamStep& step) const override { return layout(step).size(); }

  int64_t work(const SegstreamStep& step) const override {
    return static_cast<int64_t>(step.height) * step.width * 6 * channels_ * channels_;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const override {
    parallel_for(num_tiles(step.height, kOutputs, dilation_), team.num_threads,
                 [&](int64_t task, int thread) {
                   const int row = tile_start(static_cast<int>(task), kOutputs, dilation_);
                   run_rows(step, row, team.scratch(thread));
                 });
  }

 private:
  static constexpr int kMostTiles = Line<kOutputs>::kMostTiles;

  Layout layout(const SegstreamStep& step) const {
    Layout layout;
    layout.add(Line<kOutputs>::scratch(channels_));
    layout.add(static_cast<ptrdiff_t>(kOutputs) * step.width * channels_);
    return layout;
  }

  // A tile that starts at place `at` of a line of `length` pixels.
  Tile tile(int at, int length) const {
    Tile tile = {};
    tile.first_input = at < dilation_;
    const int inputs = (length - 1 - at) / dilation_ + 2;
    tile.end_input = minimum(inputs, kOutputs + 2);
    tile.outputs = minimum(inputs - 1, kOutputs);
    return tile;
  }

  void run_rows(const SegstreamStep& step, int row, float* scratch) const {
    Tile tiles[kMostTiles];
    const ptrdiff_t line = static_cast<ptrdiff_t>(step.width) * channels_;
    float* rows = scratch + layout(step).size() - (kOutputs * line + 15) / 16 * 16;
    const Tile column = tile(row, step.height);
    in_blocks(step.width, [&](int first, int count) {
      for (int i = 0; i < count; i++) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(first + i) * channels_;
        tiles[i] = column;
        tiles[i].in = static_cast<const float*>(step.in) + row * line + at;
        tiles[i].out = rows + at;
      }
      vertical_.run(tiles, count, dilation_ * line, line, scratch);
    });

    const int per_row = num_tiles(step.width, kOutputs, dilation_);
    in_blocks(per_row * column.outputs, [&](int first, int count) {
      for (int i = 0; i < count; i++) {
        const int q = (first + i) / per_row;
        const int x = tile_start((first + i) % per_row, kOutputs, dilation_);
        const ptrdiff_t at = static_cast<ptrdiff_t>(x) * channels_;
        const ptrdiff_t to = (row + q * dilation_) * line + at;
        tiles[i] = tile(x, step.width);
        tiles[i].in = rows + q * line + at;
        tiles[i].out = static_cast<float*>(step.out) + to;
        tiles[i].residual = step.residual ? step.residual + to : nullptr;
      }
      const ptrdiff_t apart = static_cast<ptrdiff_t>(dilation_) * channels_;
      horizontal_.run(tiles, count, apart, apart, scratch);
    });
  }

  // Calls body(first, count) for nearly equal parts that a block of tiles can take.
  template <typename Body>
  static void in_blocks(int total, const Body& body) {
    const int blocks = (total + kMostTiles - 1) / kMostTiles;
    for (int i = 0, first = 0; i < blocks; i++) {
      const int end = static_cast<int>(static_cast<int64_t>(total) * (i + 1) / blocks);
      body(first, end - first);
      first = end;
    }
  }

  const int channels_, dilation_;
  const Line<kOutputs> vertical_, horizontal_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
