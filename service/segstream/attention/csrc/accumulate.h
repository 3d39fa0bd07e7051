// Weighted sums of neighbour vectors: where four fifths of the arithmetic is.
#pragma once

#include "score.h"

namespace segstream {
namespace SEGSTREAM_ISA {

// What a block of rows of one centre column adds up.
struct Accumulation {
  float* sums;  // of the block's first row
  ptrdiff_t sum_stride;
  const float* weights;  // of row 0 of the block for row u = 0 of its window, first valid offset
  ptrdiff_t weight_row_stride, weight_u_stride;
  const float* neighbours;  // the pixel at u = 0, first valid offset
  ptrdiff_t neighbour_row_stride, neighbour_pixel_stride;
  int u_begin, u_end;  // neighbour rows, see geometry.h
  int offsets;         // valid offsets in each row
};

// Adds neighbour row u into rows [kFirst, kLast] of the block.
template <int kFirst, int kLast, int kRows, int kVectors>
SEGSTREAM_INLINE void add_row(const Accumulation& a, int u, Vec (&sum)[kRows][kVectors]) {
  const float* weight = a.weights + u * a.weight_u_stride;
  const float* neighbour = a.neighbours + u * a.neighbour_row_stride;
  for (int k = 0; k < a.offsets; k++) {
    Vec w[kRows];
#pragma GCC unroll 8
    for (int i = kFirst; i <= kLast; i++) {
      w[i] = broadcast(weight[i * a.weight_row_stride]);
      SEGSTREAM_IN_REGISTER(w[i]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) {
      Vec x = load(neighbour + j * kLanes);
      if (kLast > kFirst) SEGSTREAM_IN_REGISTER(x);
#pragma GCC unroll 8
      for (int i = kFirst; i <= kLast; i++) sum[i][j] += w[i] * x;
    }
    weight += kLanes;
    neighbour += a.neighbour_pixel_stride;
  }
}

// The neighbour rows that only rows 0 .. kLast see, kLast < kRows - 1, each of them once.
template <int kLast, int kRows, int kVectors>
SEGSTREAM_INLINE void add_head(const Accumulation& a, int& u, Vec (&sum)[kRows][kVectors]) {
  if constexpr (kLast < kRows - 1) {
    if (u == kLast && u < a.u_end) add_row<0, kLast>(a, u++, sum);
    add_head<kLast + 1>(a, u, sum);
  }
}

// The neighbour rows that only rows kFirst .. kRows - 1 see, kFirst > 0.
template <int kFirst, int kRows, int kVectors>
SEGSTREAM_INLINE void add_tail(const Accumulation& a, int window, int& u,
                               Vec (&sum)[kRows][kVectors]) {
  if constexpr (kFirst < kRows) {
    if (u == window - 1 + kFirst && u < a.u_end) add_row<kFirst, kRows - 1>(a, u++, sum);
    add_tail<kFirst + 1>(a, window, u, sum);
  }
}

template <int kRows, int kVectors>
static __attribute__((noinline)) void accumulate_block(const Accumulation& a, int window) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) sum[i][j] = load(a.sums + i * a.sum_stride + j * kLanes);
  int u = a.u_begin;
  add_head<0>(a, u, sum);
  for (; u < minimum(window, a.u_end); u++) add_row<0, kRows - 1>(a, u, sum);
  add_tail<1>(a, window, u, sum);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) store(a.sums + i * a.sum_stride + j * kLanes, sum[i][j]);
}

template <int kRows>
static void accumulate_rows(Accumulation a, int window, int vectors) {
  while (vectors > 0) {
    const int taken = vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
    if (taken == 4)
      accumulate_block<kRows, 4>(a, window);
    else if (taken == 2)
      accumulate_block<kRows, 2>(a, window);
    else
      accumulate_block<kRows, 1>(a, window);
    vectors -= taken;
    a.sums += taken * kLanes;
    a.neighbours += taken * kLanes;
  }
}

template <int kRows = kBlockRows>
struct AccumulateRows {
  static void call(int rows, const Accumulation& a, int window, int vectors) {
    if (rows == kRows)
      accumulate_rows<kRows>(a, window, vectors);
    else
      AccumulateRows<kRows - 1>::call(rows, a, window, vectors);
  }
};
template <>
struct AccumulateRows<0> {
  static void call(int, const Accumulation&, int, int) {}
};

// The running sums of a tile: [row][lane][channel], channels filled up to whole vectors.
struct Sums {
  float* data;
  int channels;
  float* at(int row, int lane) const {
    return data + (static_cast<ptrdiff_t>(row) * kLanes + lane) * channels;
  }
};

// Adds the chunk's neighbours, weighted, to the sums of a tile.
static void accumulate_chunk(const Geometry& g, const Tile& tile, Chunk chunk,
                             const Scores& weights, const Rows& neighbours, const Sums& sums) {
  for (int row = 0; row < tile.rows; row += g.block_rows()) {
    const int rows = minimum(g.block_rows(), tile.rows - row);
    const int window_top = tile.y0 + row - g.radius;
    Accumulation a;
    a.u_begin = maximum(0, chunk.first - window_top);
    a.u_end = minimum(g.window + rows - 1, chunk.last + 1 - window_top);
    if (a.u_begin >= a.u_end) continue;
    a.sum_stride = static_cast<ptrdiff_t>(kLanes) * sums.channels;
    a.weight_row_stride = weights.row_stride;
    a.weight_u_stride = weights.chunk_stride;
    a.neighbour_row_stride = neighbours.row_stride;
    a.neighbour_pixel_stride = neighbours.pixel_stride;
    for (int lane = 0; lane < tile.columns; lane++) {
      const int x = tile.x0 + lane;
      const Columns columns(g, x);
      a.sums = sums.at(row, lane);
      a.weights = weights.at(window_top - chunk.first, row) + columns.first * kLanes + lane;
      a.neighbours = neighbours.at(window_top, x - g.radius + columns.first);
      a.offsets = columns.count;
      AccumulateRows<>::call(rows, a, g.window, sums.channels / kLanes);
    }
  }
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
