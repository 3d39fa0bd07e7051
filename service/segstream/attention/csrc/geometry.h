// The map, the window, and how queries are cut into tiles.
//
// Pixels of one row are the lanes of a vector, so a *tile* is kLanes pixels wide and a few rows
// high. Rows of a tile that see the same neighbour row share its loads:
//
//            lanes x0 .. x0 + L - 1
//           +-----------------------+        u = 0        row 0                   (head)
//      y0   | o o o o o o o o       |        u = 1        rows 0 1                (head)
//      y0+1 | o o o o o o o o       |        u = 2..P-1   rows 0 1 2, all of them
//      y0+2 | o o o o o o o o       |        u = P        rows   1 2              (tail)
//           +-----------------------+        u = P+1      row      2              (tail)
//
// for a block of three rows, where neighbour row y = y0 - P/2 + u. Tiles, segments and the order of
// every sum depend on the shape alone, never on the batch, the slots or the threads: results are
// the same to the bit whatever surrounds an item.
#pragma once

#include "integers.h"
#include "simd.h"

namespace segstream {
namespace SEGSTREAM_ISA {

constexpr int kTileRows = 6;      // of the tiles that keep their scores in the first-level cache
constexpr int kSegmentRows = 24;  // of a task, about
constexpr int kChannelBlock = 64;
constexpr float kLog2E = 1.44269504088896341f;

struct Geometry {
  int height, width, window, radius;
  int tiles;         // across the map
  int segments;      // down the map
  int segment_rows;  // a multiple of kTileRows

  Geometry(int map_height, int map_width, int window_size)
      : height(map_height), width(map_width), window(window_size), radius(window_size / 2) {
    tiles = ceil_div(width, kLanes);
    const int wanted = maximum(1, (height + kSegmentRows / 2) / kSegmentRows);
    segment_rows = round_up(ceil_div(height, wanted), kTileRows);
    segments = ceil_div(height, segment_rows);
  }

  int block_rows() const { return minimum(kBlockRows, window); }
  int first_neighbour(int y) const { return maximum(0, y - radius); }
  int last_neighbour(int y) const { return minimum(height - 1, y + radius); }
  int rows_outside(int y) const { return window - 1 - last_neighbour(y) + first_neighbour(y); }
  // Neighbours of a pixel in row y that lie above or below the map.
  int64_t zeros_outside(int y) const { return static_cast<int64_t>(rows_outside(y)) * window; }
};

// Centre pixels [x0, x0 + columns) x [y0, y0 + rows).
struct Tile {
  int x0, y0, columns, rows;

  Tile(const Geometry& g, int tile, int first_row, int num_rows)
      : x0(tile * kLanes), y0(first_row), columns(minimum(kLanes, g.width - x0)), rows(num_rows) {}
};

// Neighbour rows [first, last], a part of what a tile sees.
struct Chunk {
  int first, last;
  int rows() const { return last - first + 1; }
};

// The neighbour columns of one centre pixel that lie in the map, as offsets into its window.
struct Columns {
  int first, count;

  Columns(const Geometry& g, int x) : first(maximum(0, g.radius - x)) {
    count = minimum(g.window, g.width + g.radius - x) - first;
  }
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
