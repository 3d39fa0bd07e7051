// Dot products of a tile's centre pixels with the neighbours at every offset of one neighbour row.
#pragma once

#include "pack.h"

namespace segstream {
namespace SEGSTREAM_ISA {

// Scores of one tile for a chunk of neighbour rows: at(c, i)[offset * kLanes + lane] for neighbour
// row c of the chunk and row i of the tile.
struct Scores {
  float* data;
  ptrdiff_t chunk_stride, row_stride;

  Scores(float* memory, const Geometry& g, int tile_rows)
      : data(memory),
        chunk_stride(static_cast<ptrdiff_t>(tile_rows) * g.window * kLanes),
        row_stride(static_cast<ptrdiff_t>(g.window) * kLanes) {}
  Scores(float* memory, ptrdiff_t chunk, ptrdiff_t row)
      : data(memory), chunk_stride(chunk), row_stride(row) {}

  float* at(int c, int i) const { return data + c * chunk_stride + i * row_stride; }
};

// The rows of a block that see neighbour row `u` of the block's window (see geometry.h).
struct ActiveRows {
  int first, last;
  ActiveRows(const Geometry& g, int rows, int u)
      : first(maximum(0, u - g.window + 1)), last(minimum(rows - 1, u)) {}
  int count() const { return last - first + 1; }
};

// Up to kWholeChannels are summed in one go. Longer sums are made of parts of kPartChannels, two and
// two, which takes a fifth off the error of a read-out by 128 channels.
constexpr int kWholeChannels = 16, kPartChannels = 8;

// Adds the products of channels [first, last) to sum.
template <int kRows, int kOffsets>
SEGSTREAM_INLINE void add_products(const float* centres, ptrdiff_t centre_stride,
                                   const float* const* neighbour, int first, int last,
                                   Vec (&sum)[kRows][kOffsets]) {
#pragma GCC unroll 2
  for (int d = first; d < last; d++) {
    Vec centre[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; i++) {
      centre[i] = load(centres + i * centre_stride + d * kLanes);
      SEGSTREAM_IN_REGISTER(centre[i]);
    }
#pragma GCC unroll 8
    for (int o = 0; o < kOffsets; o++) {
      Vec x = load(neighbour[o] + d * 2 * kLanes);
      if (kRows > 1) SEGSTREAM_IN_REGISTER(x);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; i++) sum[i][o] += centre[i] * x;
    }
  }
}

// sum = the products of channels [first, last).
template <int kRows, int kOffsets>
static __attribute__((noinline)) void sum_products(const float* centres, ptrdiff_t centre_stride,
                                                   const float* const* neighbour, int first,
                                                   int last, Vec (&sum)[kRows][kOffsets]) {
  if (last - first <= kPartChannels) {
    // Into an array whose address nobody else has: only that stays in registers.
    Vec own[kRows][kOffsets] = {};
    add_products(centres, centre_stride, neighbour, first, last, own);
    std::memcpy(sum, own, sizeof own);
    return;
  }
  const int middle = first + round_up(ceil_div(last - first, 2), kPartChannels);
  sum_products(centres, centre_stride, neighbour, first, middle, sum);
  Vec part[kRows][kOffsets];
  sum_products(centres, centre_stride, neighbour, middle, last, part);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 8
    for (int o = 0; o < kOffsets; o++) sum[i][o] += part[i][o];
}

template <int kRows, int kOffsets>
static __attribute__((noinline)) void score_offsets(const float* centres, const Band& band, int y,
                                                    int offset, float* scores, ptrdiff_t row_stride,
                                                    Vec* peaks) {
  const int channels = band.channels;
  const ptrdiff_t centre_stride = static_cast<ptrdiff_t>(channels) * kLanes;
  const float* neighbour[kOffsets];
#pragma GCC unroll 8
  for (int o = 0; o < kOffsets; o++) neighbour[o] = band.at(y, offset + o);
  Vec sum[kRows][kOffsets] = {};
  if (channels <= kWholeChannels) {
    add_products(centres, centre_stride, neighbour, 0, channels, sum);
  } else {
    Vec parts[kRows][kOffsets];
    sum_products(centres, centre_stride, neighbour, 0, channels, parts);
    std::memcpy(sum, parts, sizeof sum);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++) {
    Vec peak = peaks[i];
#pragma GCC unroll 8
    for (int o = 0; o < kOffsets; o++) {
      store(scores + i * row_stride + (offset + o) * kLanes, sum[i][o]);
      peak = maximum(peak, sum[i][o]);
    }
    peaks[i] = peak;
  }
}

constexpr int offsets_at_once(int rows) {
  return kAccumulators / rows < 7 ? kAccumulators / rows : 7;
}

// Calls score_offsets<kRows, count> for a `count` that is only known when running.
template <int kRows, int kOffsets = offsets_at_once(kRows)>
struct ScoreOffsets {
  static void call(int count, const float* centres, const Band& band, int y, int offset,
                   float* scores, ptrdiff_t row_stride, Vec* peaks) {
    if (count == kOffsets)
      score_offsets<kRows, kOffsets>(centres, band, y, offset, scores, row_stride, peaks);
    else
      ScoreOffsets<kRows, kOffsets - 1>::call(count, centres, band, y, offset, scores, row_stride,
                                              peaks);
  }
};
template <int kRows>
struct ScoreOffsets<kRows, 0> {
  static void call(int, const float*, const Band&, int, int, float*, ptrdiff_t, Vec*) {}
};

template <int kRows>
static void score_rows(const Geometry& g, const float* centres, const Band& band, int y,
                       float* scores, ptrdiff_t row_stride, Vec* peaks) {
  const int parts = ceil_div(g.window, offsets_at_once(kRows));
  for (int part = 0, offset = 0; part < parts; part++) {
    const int count = (g.window - offset + parts - part - 1) / (parts - part);
    ScoreOffsets<kRows>::call(count, centres, band, y, offset, scores, row_stride, peaks);
    offset += count;
  }
}

template <int kRows = kBlockRows>
struct ScoreRows {
  static void call(int rows, const Geometry& g, const float* centres, const Band& band, int y,
                   float* scores, ptrdiff_t row_stride, Vec* peaks) {
    if (rows == kRows)
      score_rows<kRows>(g, centres, band, y, scores, row_stride, peaks);
    else
      ScoreRows<kRows - 1>::call(rows, g, centres, band, y, scores, row_stride, peaks);
  }
};
template <>
struct ScoreRows<0> {
  static void call(int, const Geometry&, const float*, const Band&, int, float*, ptrdiff_t, Vec*) {}
};

// Scores `centres` ([row][channel][lane], from the tile's first row on) against a chunk of `band`;
// raises peaks[row] to the largest score of each lane.
static void score_chunk(const Geometry& g, const Tile& tile, const float* centres, const Band& band,
                        Chunk chunk, const Scores& scores, Vec* peaks) {
  const ptrdiff_t centre_stride = static_cast<ptrdiff_t>(band.channels) * kLanes;
  for (int y = chunk.first; y <= chunk.last; y++) {
    for (int row = 0; row < tile.rows; row += g.block_rows()) {
      const int rows = minimum(g.block_rows(), tile.rows - row);
      const ActiveRows active(g, rows, y - (tile.y0 + row - g.radius));
      if (active.count() <= 0) continue;
      const int first = row + active.first;
      ScoreRows<>::call(active.count(), g, centres + first * centre_stride, band, y,
                        scores.at(y - chunk.first, first), scores.row_stride, peaks + first);
    }
  }
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
