// 3x3 convolutions by Winograd's F(M x M, 3 x 3), the 1-D transforms along both axes; and the two
// layers of the memory that are made of them.
//
//   task = up to kMostTiles tiles of M x M outputs
//     (M + 2)^2 points of every tile and input channel                  -> scratch
//     for each panel of output channels, for each convolution on this input:
//       one multiply per point, back to M x M sums of every tile        -> scratch
//       biases and whatever else the layer does                         -> output
#pragma once

#include "layer.h"
#include "winograd.h"

namespace segstream {
namespace SEGSTREAM_ISA {

template <int kOutputs>
class Plane {
 public:
  static constexpr int kSide = Winograd<kOutputs>::kPoints;
  static constexpr int kPoints = kSide * kSide;
  static constexpr int kSums = kOutputs * kOutputs;
  static constexpr int kMostTiles = 24;
  static constexpr int kMostWidth = kMostVectors * kLanes;

  // A convolution of input channels first .. first + in - 1.
  Plane(const double* weights, const double* biases, int first, int in, int out)
      : first_(first),
        in_(in),
        bias_(biases, out),
        weights_(kPoints * in, out, [&](int k, int n) {
          const double* taps = weights + (static_cast<ptrdiff_t>(n) * in + k % in) * 9;
          const double* down = Winograd<kOutputs>::kFilter[k / in / kSide];
          const double* across = Winograd<kOutputs>::kFilter[k / in % kSide];
          double sum = 0.0;
          for (int i = 0; i < 9; i++) sum += down[i / 3] * across[i % 3] * taps[i];
          return sum;
        }) {}

  // Of the points of one block of tiles, and of the sums of one panel.
  static ptrdiff_t input_size(int channels) { return kPoints * point_size(channels); }
  static constexpr ptrdiff_t kProductSize = kPoints * kMostTiles * kMostWidth;
  static constexpr ptrdiff_t kSumSize = kSums * kMostTiles * kMostWidth;

  // The points of tile number i of a block, whose first output lies at (y, x).
  static void transform(const SegstreamStep& step, int channels, int y, int x, int i,
                        float* inputs) {
    const ptrdiff_t line = static_cast<ptrdiff_t>(step.width) * channels;
    const float* corner = static_cast<const float*>(step.in) + (y - 1) * line +
                          static_cast<ptrdiff_t>(x - 1) * channels;
    for (int c = 0; c < channels; c += kLanes) {
      Vec rows[kSide][kSide];
      for (int v = 0; v < kSide; v++) {
        Vec d[kSide];
        const bool is_row = y + v >= 1 && y + v <= step.height;
        for (int u = 0; u < kSide; u++)
          d[u] = is_row && x + u >= 1 && x + u <= step.width
                     ? load(corner + v * line + u * channels + c)
                     : Vec{};
        Winograd<kOutputs>::input(d, rows[v]);
      }
      for (int u = 0; u < kSide; u++) {
        Vec d[kSide], points[kSide];
        for (int v = 0; v < kSide; v++) d[v] = rows[v][u];
        Winograd<kOutputs>::input(d, points);
        for (int v = 0; v < kSide; v++)
          store(inputs + (v * kSide + u) * point_size(channels) + i * channels + c, points[v]);
      }
    }
  }

  // sums[place in the tile][tile][channel of the panel], biases added.
  template <int kVectors>
  void panel(int count, int n, int channels, const float* inputs, float* products,
             float* sums) const {
    constexpr int kWidth = kVectors * kLanes;
    for (int point = 0; point < kPoints; point++) {
      const Tap tap = {inputs + point * point_size(channels) + first_,
                       weights_.at(n, point * in_), in_};
      float* to = products + point * kMostTiles * kWidth;
      multiply<kVectors>(count, &tap, 1, channels, [to](int row, const Vec (&sum)[kVectors]) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; j++) store(to + row * kWidth + j * kLanes, sum[j]);
      });
    }
    for (int j = 0; j < kWidth; j += kLanes) {
      const Vec bias = load(bias_.at(n + j));
      for (int i = 0; i < count; i++)
        finish<kWidth>(products + i * kWidth + j, bias, sums + i * kWidth + j);
    }
  }

  int panel_vectors() const { return weights_.vectors; }

 private:
  // The points must not lie a multiple of 4 KiB apart.
  static ptrdiff_t point_size(int channels) {
    return static_cast<ptrdiff_t>(kMostTiles) * channels + kGroup;
  }

  template <int kWidth>
  SEGSTREAM_INLINE void finish(const float* products, Vec bias, float* sums) {
    Vec rows[kSide][kOutputs];
    for (int v = 0; v < kSide; v++) {
      Vec m[kSide];
      for (int u = 0; u < kSide; u++) m[u] = load(products + (v * kSide + u) * kMostTiles * kWidth);
      Winograd<kOutputs>::output(m, rows[v]);
    }
    for (int u = 0; u < kOutputs; u++) {
      Vec m[kSide], y[kOutputs];
      for (int v = 0; v < kSide; v++) m[v] = rows[v][u];
      Winograd<kOutputs>::output(m, y);
      for (int v = 0; v < kOutputs; v++)
        store(sums + (v * kOutputs + u) * kMostTiles * kWidth, y[v] + bias);
    }
  }

  const int first_, in_;
  const Numbers bias_;
  const Weights weights_;
};

// The tiles of a map, in blocks that are tasks.
template <int kOutputs>
class Tiles {
 public:
  static constexpr int kMostTiles = Plane<kOutputs>::kMostTiles;

  explicit Tiles(const SegstreamStep& step)
      : height_(step.height),
        width_(step.width),
        across_(ceil_div(step.width, kOutputs)),
        total_(across_ * ceil_div(step.height, kOutputs)) {}

  int num_blocks() const { return ceil_div(total_, kMostTiles); }
  int first(int64_t block) const { return static_cast<int>(total_ * block / num_blocks()); }
  int y(int tile) const { return tile / across_ * kOutputs; }
  int x(int tile) const { return tile % across_ * kOutputs; }

  // Calls body(pixel, place) for the outputs of a tile that are within the map.
  template <typename Body>
  void for_outputs(int tile, const Body& body) const {
    for (int v = 0; v < kOutputs && y(tile) + v < height_; v++)
      for (int u = 0; u < kOutputs && x(tile) + u < width_; u++)
        body(static_cast<ptrdiff_t>(y(tile) + v) * width_ + x(tile) + u, v * kOutputs + u);
  }

 private:
  const int height_, width_, across_, total_;
};

// The layers' common part: kPlanes convolutions of one input, of equal numbers of channels.
template <int kOutputs, int kPlanes>
class PlaneLayer : public SegstreamLayer {
 public:
  using P = Plane<kOutputs>;

  ptrdiff_t scratch(const SegstreamStep&) const final {
    return P::input_size(in_) + P::kProductSize + kPlanes * P::kSumSize;
  }

  int64_t work(const SegstreamStep& step) const final {
    return static_cast<int64_t>(step.height) * step.width * 9 * kPlanes * in_ * out_;
  }

  void run(const SegstreamStep& step, const SegstreamTeam& team) const final {
    const Tiles<kOutputs> tiles(step);
    parallel_for(tiles.num_blocks(), team.num_threads, [&](int64_t block, int thread) {
      float* inputs = team.scratch(thread);
      const int first = tiles.first(block), count = tiles.first(block + 1) - first;
      for (int i = 0; i < count; i++)
        P::transform(step, in_, tiles.y(first + i), tiles.x(first + i), i, inputs);
      with_vectors(panel_vectors(out_), [&](auto vectors) {
        for (int n = 0; n < out_; n += vectors * kLanes)
          run_panel<vectors>(step, tiles, first, count, n, inputs);
      });
    });
  }

 protected:
  PlaneLayer(int in, int out) : in_(in), out_(out) {}
  virtual const P& plane(int index) const = 0;
  // sums[plane], for one vector of channels of one pixel.
  virtual void finish(const SegstreamStep& step, ptrdiff_t pixel, int channel,
                      const Vec (&sums)[kPlanes]) const = 0;

  const int in_, out_;

 private:
  template <int kVectors>
  void run_panel(const SegstreamStep& step, const Tiles<kOutputs>& tiles, int first, int count,
                 int n, const float* inputs) const {
    float* products = const_cast<float*>(inputs) + P::input_size(in_);
    float* sums = products + P::kProductSize;
    for (int p = 0; p < kPlanes; p++)
      plane(p).template panel<kVectors>(count, n, in_, inputs, products, sums + p * P::kSumSize);
    for (int i = 0; i < count; i++)
      tiles.for_outputs(first + i, [&](ptrdiff_t pixel, int place) {
        for (int j = 0; j < kVectors; j++) {
          const float* from =
              sums + ((static_cast<ptrdiff_t>(place) * P::kMostTiles + i) * kVectors + j) * kLanes;
          Vec all[kPlanes];
          for (int p = 0; p < kPlanes; p++) all[p] = load(from + p * P::kSumSize);
          finish(step, pixel, n + j * kLanes, all);
        }
      });
  }
};

template <int kOutputs>
class Heads final : public PlaneLayer<kOutputs, 1> {
 public:
  explicit Heads(const SegstreamLayerSpec& s)
      : PlaneLayer<kOutputs, 1>(s.in_channels, s.out_channels),
        plane_(s.weights[0], s.biases[0], 0, s.in_channels, s.out_channels) {}

 private:
  const Plane<kOutputs>& plane(int) const override { return plane_; }

  void finish(const SegstreamStep& step, ptrdiff_t pixel, int channel,
              const Vec (&sums)[1]) const override {
    const SegstreamGroup& group = step.groups[channel / kGroup];
    store(group.data + pixel * group.pixel_stride + channel % kGroup,
          group.has_relu ? relu(sums[0]) : sums[0]);
  }

  const Plane<kOutputs> plane_;
};

SEGSTREAM_INLINE Vec sigmoid(Vec x) {
  const Vec one = broadcast(1.0f), log2_e = broadcast(1.44269504f);
  const Vec exponent = -(maximum(x, broadcast(-80.0f)) * log2_e);  // 2^127 and more overflow
  return one / (one + exp2(exponent));
}

// relu(query * sigmoid(query gate) + memory * sigmoid(memory gate) + shift + residual); the input is
// query and memory side by side, the residual lies as the output does.
template <int kOutputs>
class Fusion final : public PlaneLayer<kOutputs, 4> {
 public:
  explicit Fusion(const SegstreamLayerSpec& s)
      : PlaneLayer<kOutputs, 4>(s.in_channels, s.out_channels),
        planes_{{s.weights[0], s.biases[0], 0, s.in_channels / 2, s.out_channels},
                {s.weights[1], s.biases[1], s.in_channels / 2, s.in_channels / 2, s.out_channels},
                {s.weights[2], s.biases[2], 0, s.in_channels, s.out_channels},
                {s.weights[3], s.biases[3], 0, s.in_channels, s.out_channels}},
        shift_(s.shift, s.out_channels) {}

 private:
  const Plane<kOutputs>& plane(int index) const override { return planes_[index]; }

  void finish(const SegstreamStep& step, ptrdiff_t pixel, int channel,
              const Vec (&sums)[4]) const override {
    const ptrdiff_t at = pixel * this->out_ + channel;
    const Vec query = multiply_add(sums[0], sigmoid(sums[2]), load(shift_.at(channel)));
    const Vec both = multiply_add(sums[1], sigmoid(sums[3]), query);
    store(static_cast<float*>(step.out) + at,
          relu(step.residual ? both + load(step.residual + at) : both));
  }

  const Plane<kOutputs> planes_[4];
  const Numbers shift_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
