// Copies of pages in the forms that the inner loops read: widened to float, zero outside the map.
#pragma once

#include "attention.h"
#include "geometry.h"

namespace segstream {
namespace SEGSTREAM_ISA {

// One page, or one channel block of it.
struct Source {
  const void* data;
  ptrdiff_t offset, row_stride, pixel_stride;  // in elements
  int32_t element;
  int channels;

  Source(const SegstreamPool& pool, int page, int block, int num_channels)
      : data(pool.data),
        offset(page * pool.page_stride + block * pool.block_stride),
        row_stride(pool.row_stride),
        pixel_stride(pool.pixel_stride),
        element(pool.element),
        channels(num_channels) {}

  Source(const float* pixels, int width, int num_channels)
      : data(pixels),
        offset(0),
        row_stride(static_cast<ptrdiff_t>(width) * num_channels),
        pixel_stride(num_channels),
        element(kFloat32),
        channels(num_channels) {}

  const float* floats(int y, int x) const {
    return static_cast<const float*>(data) + offset + y * row_stride + x * pixel_stride;
  }

  void widen(int y, int x, ptrdiff_t count, float* to) const {
    const ptrdiff_t at = offset + y * row_stride + x * pixel_stride;
    if (element == kFloat16)
      widen_half(static_cast<const uint16_t*>(data) + at, count, to);
    else if (element == kBFloat16)
      widen_bfloat(static_cast<const uint16_t*>(data) + at, count, to);
    else
      std::memcpy(to, floats(y, x), count * sizeof(float));
  }
};

// Pixel (y, x) of some rows, its channels contiguous.
struct Rows {
  const float* data;
  ptrdiff_t row_stride, pixel_stride;
  int y0, x0;
  const float* at(int y, int x) const {
    return data + (y - y0) * row_stride + (x - x0) * pixel_stride;
  }
};

// Pixels [x_begin, x_end) of rows [y_begin, y_end), their channels filled up to whole vectors: the
// page itself where it already has this form, else a copy in `scratch`.
SEGSTREAM_INLINE Rows rows_of(const Source& source, int y_begin, int y_end, int x_begin, int x_end,
                              float* scratch) {
  const int padded = round_up(source.channels, kLanes);
  if (source.element == kFloat32 && padded == source.channels)
    return {source.floats(0, 0), source.row_stride, source.pixel_stride, 0, 0};
  const ptrdiff_t row_stride = static_cast<ptrdiff_t>(x_end - x_begin) * padded;
  for (int y = y_begin; y < y_end; y++) {
    float* to = scratch + (y - y_begin) * row_stride;
    if (padded == source.channels && source.pixel_stride == padded) {
      source.widen(y, x_begin, row_stride, to);
      continue;
    }
    for (int x = x_begin; x < x_end; x++, to += padded) {
      source.widen(y, x, source.channels, to);
      for (int c = source.channels; c < padded; c++) to[c] = 0.0f;
    }
  }
  return {scratch, row_stride, padded, y_begin, x_begin};
}

// Transposes `count` pixels (a multiple of 4) from column x on: calls put(column, channel) for
// where four neighbouring columns of a channel go. Columns outside the map become zeros.
template <typename Put>
SEGSTREAM_INLINE void transpose_pixels(const Source& source, int width, int y, int x, int count,
                                       float* scratch, Put put) {
  const int channels = source.channels;
  float* zeros = scratch;
  float* widened = scratch + channels;
  std::memset(zeros, 0, channels * sizeof(float));
  for (int column = 0; column < count; column += 4) {
    const float* pixel[4];
    for (int i = 0; i < 4; i++) {
      const int at = x + column + i;
      if (at < 0 || at >= width) {
        pixel[i] = zeros;
      } else if (source.element == kFloat32) {
        pixel[i] = source.floats(y, at);
      } else {
        source.widen(y, at, channels, widened + i * channels);
        pixel[i] = widened + i * channels;
      }
    }
    int d = 0;
    for (; d + 4 <= channels; d += 4) {
      Vec4 v[4];
      for (int i = 0; i < 4; i++) v[i] = *reinterpret_cast<const UnalignedVec4*>(pixel[i] + d);
      transpose(v[0], v[1], v[2], v[3]);
      for (int i = 0; i < 4; i++) put(column, d + i, v[i]);
    }
    for (; d < channels; d++)
      put(column, d, Vec4{pixel[0][d], pixel[1][d], pixel[2][d], pixel[3][d]});
  }
}

// Floats of scratch that transpose_pixels needs.
SEGSTREAM_INLINE ptrdiff_t transpose_scratch(int channels) { return 5 * channels; }

SEGSTREAM_INLINE void store4(float* p, Vec4 x) { *reinterpret_cast<UnalignedVec4*>(p) = x; }

// Centre pixels, lanes first: out[row][channel][lane].
SEGSTREAM_INLINE void pack_centres(const Geometry& g, const Source& source, int x0, int y_begin,
                                   int y_end, float* scratch, float* out) {
  for (int y = y_begin; y < y_end; y++, out += source.channels * kLanes)
    transpose_pixels(source, g.width, y, x0, kLanes, scratch,
                     [out](int column, int d, Vec4 v) { store4(out + d * kLanes + column, v); });
}

// Neighbour rows for a tile, lanes first: [row][block][channel][2 * kLanes]. Block j holds the
// columns from x0 - radius + j * kLanes on, so the kLanes neighbours of a tile at any one offset
// lie side by side in block offset / kLanes; with 8 lanes they never straddle two cache lines.
struct Band {
  const float* data;
  ptrdiff_t row_stride, block_stride;
  int y0, channels;

  static int blocks(const Geometry& g) { return ceil_div(g.window, kLanes); }
  static ptrdiff_t row_size(const Geometry& g, int channels) {
    return static_cast<ptrdiff_t>(blocks(g)) * channels * 2 * kLanes;
  }
  const float* at(int y, int offset) const {
    return data + (y - y0) * row_stride + (offset / kLanes) * block_stride + offset % kLanes;
  }
};

SEGSTREAM_INLINE Band pack_band(const Geometry& g, const Source& source, int x0, int y_begin,
                                int y_end, float* scratch, float* out) {
  const int channels = source.channels, last_block = Band::blocks(g) - 1;
  const ptrdiff_t block_stride = static_cast<ptrdiff_t>(channels) * 2 * kLanes;
  const Band band{out, Band::row_size(g, channels), block_stride, y_begin, channels};
  const int columns = round_up(kLanes + g.window - 1, 4);
  for (int y = y_begin; y < y_end; y++, out += band.row_stride)
    transpose_pixels(source, g.width, y, x0 - g.radius, columns, scratch,
                     [=](int column, int d, Vec4 v) {
                       const int block = column / kLanes, lane = column % kLanes;
                       float* to = out + block * block_stride + d * 2 * kLanes + lane;
                       if (block <= last_block) store4(to, v);
                       if (block > 0) store4(to - block_stride + kLanes, v);
                     });
  return band;
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
