// Winograd's minimal filtering F(M, 3): M outputs of a convolution with 3 taps from M + 2
// multiplications (Lavin and Gray, CVPR 2016; points 0, 1, -1, 2, -2 and infinity).
#pragma once

#include "multiply.h"

namespace segstream {
namespace SEGSTREAM_ISA {

template <int kOutputs>
struct Winograd;

template <>
struct Winograd<4> {
  static constexpr int kPoints = 6;
  static constexpr double kFilter[6][3] = {
      {1.0 / 4, 0, 0},
      {-1.0 / 6, -1.0 / 6, -1.0 / 6},
      {-1.0 / 6, 1.0 / 6, -1.0 / 6},
      {1.0 / 24, 1.0 / 12, 1.0 / 6},
      {1.0 / 24, -1.0 / 12, 1.0 / 6},
      {0, 0, 1},
  };

  SEGSTREAM_INLINE void input(const Vec (&d)[6], Vec (&v)[6]) {
    const Vec two = broadcast(2.0f), minus_four = broadcast(-4.0f), four = broadcast(4.0f),
              minus_five = broadcast(-5.0f);
    const Vec even = multiply_add(minus_four, d[2], d[4]);
    const Vec odd = multiply_add(minus_four, d[1], d[3]);
    const Vec even2 = d[4] - d[2], odd2 = d[3] - d[1];
    v[0] = multiply_add(four, d[0], multiply_add(minus_five, d[2], d[4]));
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = multiply_add(two, odd2, even2);
    v[4] = even2 - two * odd2;
    v[5] = multiply_add(four, d[1], multiply_add(minus_five, d[3], d[5]));
  }

  SEGSTREAM_INLINE void output(const Vec (&m)[6], Vec (&y)[4]) {
    const Vec sum1 = m[1] + m[2], difference1 = m[1] - m[2];
    const Vec sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum1 + sum2;
    y[1] = multiply_add(broadcast(2.0f), difference2, difference1);
    y[2] = multiply_add(broadcast(4.0f), sum2, sum1);
    y[3] = multiply_add(broadcast(8.0f), difference2, difference1) + m[5];
  }
};

template <>
struct Winograd<2> {
  static constexpr int kPoints = 4;
  static constexpr double kFilter[4][3] = {
      {1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

  SEGSTREAM_INLINE void input(const Vec (&d)[4], Vec (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }

  SEGSTREAM_INLINE void output(const Vec (&m)[4], Vec (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// Rows or columns that lie `dilation` apart share a tile. Tiles of a line of `length` pixels:
SEGSTREAM_INLINE int num_tiles(int length, int outputs, int dilation) {
  const int span = outputs * dilation;
  return length / span * dilation + minimum(dilation, length % span);
}

// The place of the first output of a tile; its others follow `dilation` apart.
SEGSTREAM_INLINE int tile_start(int tile, int outputs, int dilation) {
  return tile / dilation * outputs * dilation + tile % dilation;
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
