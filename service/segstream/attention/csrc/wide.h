// The forward pass for many value channels. Scores cost as much as a few dozen channels, so they
// are made once for a strip of rows, for all pages, and then used by every block of 64 channels:
//
//   for each strip of kStripRows rows of a batch item
//     in parallel over tiles: scores of the strip -> weights        (stays in the last-level cache)
//     in parallel over channel blocks x groups of tiles: sums       (values are read about once)
#pragma once

#include "forward.h"

namespace segstream {
namespace SEGSTREAM_ISA {

constexpr int kStripRows = 12;
constexpr ptrdiff_t kMaxWeights = 16 << 20;  // floats; longer memories get lower strips
constexpr int kGroupTiles = 64 / kLanes;     // tiles that share a copy of their values

class WideForwardPass {
 public:
  WideForwardPass(const SegstreamProblem& problem, float* out)
      : p_(problem),
        g_(problem.height, problem.width, problem.window_size),
        out_(out),
        strip_rows_(strip_rows(problem, g_)),
        blocks_(ceil_div(problem.value_channels, kChannelBlock)),
        groups_(ceil_div(g_.tiles, kGroupTiles)),
        chunk_rows_(chunk_rows(g_, kTileRows)),
        offsets_size_(static_cast<ptrdiff_t>(g_.window) * kLanes),
        row_size_(g_.window * offsets_size_),
        page_size_(strip_rows_ * row_size_) {
    const int dk = p_.key_channels;
    const ptrdiff_t rows = minimum(g_.height, strip_rows_ + g_.window - 1);
    transposed_ = score_layout_.add(transpose_scratch(dk));
    centres_ = score_layout_.add(static_cast<ptrdiff_t>(strip_rows_) * dk * kLanes);
    band_ = score_layout_.add(rows * Band::row_size(g_, dk));
    const ptrdiff_t columns = minimum(g_.width, kGroupTiles * kLanes + g_.window - 1);
    values_ = sum_layout_.add(rows * columns * kChannelBlock);
    sums_ =
        sum_layout_.add(static_cast<ptrdiff_t>(kGroupTiles) * strip_rows_ * kLanes * kChannelBlock);
    scales_ = shared_layout_.add(static_cast<ptrdiff_t>(g_.tiles) * strip_rows_ * kLanes);
    weights_ = shared_layout_.add(g_.tiles * p_.memory_length * page_size_);
  }

  void run() const {
    const ptrdiff_t own =
        score_layout_.size() > sum_layout_.size() ? score_layout_.size() : sum_layout_.size();
    const Memory own_memory(own, p_.num_threads), shared(shared_layout_.size(), 1);
    for (int item = 0; item < p_.batch; item++) {
      for (int y = 0; y < g_.height; y += strip_rows_) {
        const Strip strip{item, y, minimum(g_.height, y + strip_rows_), num_present(p_, item)};
        parallel_for(g_.tiles, p_.num_threads, [&](int64_t tile, int thread) {
          make_weights(strip, static_cast<int>(tile), own_memory.piece(thread), shared.piece(0));
        });
        parallel_for(
            static_cast<int64_t>(blocks_) * groups_, p_.num_threads, [&](int64_t task, int thread) {
              add_values(strip, static_cast<int>(task / groups_), static_cast<int>(task % groups_),
                         own_memory.piece(thread), shared.piece(0));
            });
      }
    }
  }

 private:
  static int strip_rows(const SegstreamProblem& p, const Geometry& g) {
    const ptrdiff_t row =
        static_cast<ptrdiff_t>(g.tiles) * p.memory_length * g.window * g.window * kLanes;
    const int fit = static_cast<int>(kMaxWeights / (row > 0 ? row : 1));
    return maximum(1, minimum(minimum(kStripRows, g.height), fit));
  }

  struct Strip {
    int item, y_begin, y_end, present;
    int rows() const { return y_end - y_begin; }
  };

  // Neighbour rows that the strip sees.
  Chunk band_of(const Strip& strip) const {
    return {g_.first_neighbour(strip.y_begin), g_.last_neighbour(strip.y_end - 1)};
  }

  // The weights of one tile for one page, [row][row of the window][offset][lane], seen as scores of
  // a chunk that starts at neighbour row `first`.
  Scores weights_of(float* shared, int tile, int page, const Strip& strip, int first) const {
    float* data =
        shared + weights_ + (static_cast<ptrdiff_t>(tile) * p_.memory_length + page) * page_size_;
    data += (first - strip.y_begin + g_.radius) * offsets_size_;
    return Scores(data, offsets_size_, row_size_ - offsets_size_);
  }

  void make_weights(const Strip& strip, int tile_index, float* memory, float* shared) const {
    const Tile tile(g_, tile_index, strip.y_begin, strip.rows());
    const Chunk seen = band_of(strip);
    const int64_t pixels = static_cast<int64_t>(g_.height) * g_.width;
    const Source query(p_.query + strip.item * pixels * p_.key_channels, g_.width, p_.key_channels);
    pack_centres(g_, query, tile.x0, strip.y_begin, strip.y_end, memory + transposed_,
                 memory + centres_);
    Vec peaks[kStripRows];
    for (int i = 0; i < kStripRows; i++) peaks[i] = broadcast(kLowest);
    int page = 0;
    for (int t = 0; t < p_.memory_length; t++) {
      const int slot = p_.slots[strip.item * p_.memory_length + t];
      if (slot < 0) continue;
      const Band band = pack_band(g_, Source(p_.keys, slot, 0, p_.key_channels), tile.x0,
                                  seen.first, seen.last + 1, memory + transposed_, memory + band_);
      score_chunk(g_, tile, memory + centres_, band, seen,
                  weights_of(shared, tile_index, page++, strip, seen.first), peaks);
    }
    for (int i = 0; i < tile.rows; i++) {
      RowState state;
      state.start(peaks[i]);
      const int y = tile.y0 + i, first = g_.first_neighbour(y), last = g_.last_neighbour(y);
      for (page = 0; page < strip.present; page++) {
        const Scores weights = weights_of(shared, tile_index, page, strip, first);
        for (int neighbour = first; neighbour <= last; neighbour++)
          state.total += exponentiate(weights.at(neighbour - first, i), g_.window, state.reference);
      }
      Vec scale = {};
      if (strip.present) scale = state.finish(g_.zeros_outside(y) * strip.present, p_.sink);
      store(shared + scales_ + (static_cast<ptrdiff_t>(tile_index) * strip_rows_ + i) * kLanes,
            scale);
    }
  }

  void add_values(const Strip& strip, int block, int group, float* memory, float* shared) const {
    const int first_tile = group * kGroupTiles;
    const int num_tiles = minimum(kGroupTiles, g_.tiles - first_tile);
    const int channels = minimum(kChannelBlock, p_.value_channels - block * kChannelBlock);
    const int padded = round_up(channels, kLanes);
    const ptrdiff_t tile_size = static_cast<ptrdiff_t>(strip_rows_) * kLanes * padded;
    float* sums = memory + sums_;
    std::memset(sums, 0, num_tiles * tile_size * sizeof(float));

    const Chunk seen = band_of(strip);
    const int x_begin = maximum(0, first_tile * kLanes - g_.radius);
    const int x_end = minimum(g_.width, (first_tile + num_tiles) * kLanes + g_.radius);
    int page = 0;
    for (int t = 0; t < p_.memory_length; t++) {
      const int slot = p_.slots[strip.item * p_.memory_length + t];
      if (slot < 0) continue;
      const Rows values = rows_of(Source(p_.values, slot, block, channels), seen.first,
                                  seen.last + 1, x_begin, x_end, memory + values_);
      for (int i = 0; i < num_tiles; i++) {
        const Tile tile(g_, first_tile + i, strip.y_begin, strip.rows());
        for (int y = seen.first; y <= seen.last; y += chunk_rows_) {
          const Chunk chunk{y, minimum(seen.last, y + chunk_rows_ - 1)};
          accumulate_chunk(g_, tile, chunk, weights_of(shared, first_tile + i, page, strip, y),
                           values, Sums{sums + i * tile_size, padded});
        }
      }
      page++;
    }
    for (int i = 0; i < num_tiles; i++)
      write(Tile(g_, first_tile + i, strip.y_begin, strip.rows()), strip.item, block, channels,
            Sums{sums + i * tile_size, padded},
            shared + scales_ + static_cast<ptrdiff_t>(first_tile + i) * strip_rows_ * kLanes);
  }

  void write(const Tile& tile, int item, int block, int channels, const Sums& sums,
             const float* scales) const {
    for (int i = 0; i < tile.rows; i++) {
      for (int lane = 0; lane < tile.columns; lane++) {
        const int64_t pixel =
            (static_cast<int64_t>(item) * g_.height + tile.y0 + i) * g_.width + tile.x0 + lane;
        float* to = out_ + pixel * p_.value_channels + block * kChannelBlock;
        const float* sum = sums.at(i, lane);
        const float scale = scales[i * kLanes + lane];
        for (int c = 0; c < channels; c++) to[c] = sum[c] * scale;
      }
    }
  }

  const SegstreamProblem& p_;
  const Geometry g_;
  float* const out_;
  const int strip_rows_, blocks_, groups_, chunk_rows_;
  const ptrdiff_t offsets_size_, row_size_, page_size_;  // of the weights, in floats
  Layout score_layout_, sum_layout_, shared_layout_;
  ptrdiff_t transposed_, centres_, band_, values_, sums_, scales_, weights_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
