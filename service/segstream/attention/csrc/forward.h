// The forward pass for up to 64 value channels: score, softmax and weighted sum of a few neighbour
// rows at a time, so that the scores never leave the first-level cache.
//
//   task = one tile column x one segment of rows of one batch item
//     for each page of the item, oldest first
//       for each tile of kTileRows rows
//         for each chunk of neighbour rows: scores -> weights -> sums
#pragma once

#include "parallel.h"
#include "softmax.h"

namespace segstream {
namespace SEGSTREAM_ISA {

constexpr int kChunkScores = 384;  // of one lane: 12 KiB for all of 8 lanes

SEGSTREAM_INLINE int chunk_rows(const Geometry& g, int tile_rows) {
  const int fit = kChunkScores / (tile_rows * g.window);
  return maximum(1, minimum(fit, g.window + tile_rows - 1));
}

SEGSTREAM_INLINE int num_present(const SegstreamProblem& p, int item) {
  int count = 0;
  for (int t = 0; t < p.memory_length; t++) count += p.slots[item * p.memory_length + t] >= 0;
  return count;
}

// Threads worth waking: below about half a millisecond of work, one that is scheduled late
// costs more than it brings.
SEGSTREAM_INLINE int useful_threads(const SegstreamProblem& p, int64_t pages, int channels) {
  constexpr int64_t kLeastPerThread = 32 << 20;  // multiplications
  const int64_t window = static_cast<int64_t>(p.window_size) * p.window_size;
  const int64_t work = pages * p.height * p.width * window * channels;
  const int64_t threads = work / kLeastPerThread;
  return threads < 1 ? 1 : threads < p.num_threads ? static_cast<int>(threads) : p.num_threads;
}

SEGSTREAM_INLINE int64_t pages_read(const SegstreamProblem& p) {
  int64_t count = 0;
  for (int item = 0; item < p.batch; item++) count += num_present(p, item);
  return count;
}

// A tile column of a segment: the unit that a thread takes.
struct Task {
  int item, tile, y_begin, y_end;  // rows of centres
  int band_begin, band_end;        // rows of neighbours
  int x_begin, x_end;              // columns of neighbours

  Task(const Geometry& g, int64_t index) {
    const int64_t per_item = static_cast<int64_t>(g.tiles) * g.segments;
    item = static_cast<int>(index / per_item);
    tile = static_cast<int>(index % per_item) / g.segments;
    y_begin = static_cast<int>(index % g.segments) * g.segment_rows;
    y_end = minimum(g.height, y_begin + g.segment_rows);
    band_begin = g.first_neighbour(y_begin);
    band_end = g.last_neighbour(y_end - 1) + 1;
    x_begin = maximum(0, tile * kLanes - g.radius);
    x_end = minimum(g.width, (tile + 1) * kLanes + g.radius);
  }

  static int64_t count(const Geometry& g, int items) {
    return static_cast<int64_t>(items) * g.tiles * g.segments;
  }
};

SEGSTREAM_INLINE ptrdiff_t band_rows(const Geometry& g) {
  return minimum(g.height, g.segment_rows + g.window - 1);
}
SEGSTREAM_INLINE ptrdiff_t band_columns(const Geometry& g) {
  return minimum(g.width, kLanes + g.window - 1);
}

class ForwardPass {
 public:
  // Without `out` only the statistics of the softmax are computed, without them only the read-out:
  // [item][row][tile][2][lane], first the reference, then 1 / total.
  ForwardPass(const SegstreamProblem& problem, float* out, float* statistics)
      : p_(problem),
        g_(problem.height, problem.width, problem.window_size),
        out_(out),
        statistics_(statistics),
        padded_(round_up(problem.value_channels, kLanes)),
        chunk_rows_(chunk_rows(g_, kTileRows)),
        num_threads_(useful_threads(problem, pages_read(problem),
                                    problem.key_channels + (out ? problem.value_channels : 0))) {
    const int dk = p_.key_channels;
    transposed_ = layout_.add(transpose_scratch(dk));
    centres_ = layout_.add(static_cast<ptrdiff_t>(g_.segment_rows) * dk * kLanes);
    band_ = layout_.add(band_rows(g_) * Band::row_size(g_, dk));
    scores_ = layout_.add(static_cast<ptrdiff_t>(chunk_rows_) * kTileRows * g_.window * kLanes);
    states_ = layout_.add(static_cast<ptrdiff_t>(g_.segment_rows) * 2 * kLanes);
    values_ = layout_.add(out ? band_rows(g_) * band_columns(g_) * padded_ : 0);
    sums_ = layout_.add(out ? static_cast<ptrdiff_t>(g_.segment_rows) * kLanes * padded_ : 0);
  }

  void run() const {
    const Memory memory(layout_.size(), num_threads_);
    parallel_for(Task::count(g_, p_.batch), num_threads_,
                 [&](int64_t task, int thread) { run(Task(g_, task), memory.piece(thread)); });
  }

 private:
  void run(const Task& task, float* memory) const {
    const int x0 = task.tile * kLanes, present = num_present(p_, task.item);
    float* centres = memory + centres_;
    RowState* states = reinterpret_cast<RowState*>(memory + states_);
    const Sums sums{memory + sums_, padded_};
    if (out_)
      std::memset(sums.data, 0, (task.y_end - task.y_begin) * kLanes * padded_ * sizeof(float));

    const int64_t pixels = static_cast<int64_t>(g_.height) * g_.width;
    const Source query(p_.query + task.item * pixels * p_.key_channels, g_.width, p_.key_channels);
    pack_centres(g_, query, x0, task.y_begin, task.y_end, memory + transposed_, centres);

    bool is_first = true;
    for (int t = 0; t < p_.memory_length; t++) {
      const int slot = p_.slots[task.item * p_.memory_length + t];
      if (slot < 0) continue;
      const Band band =
          pack_band(g_, Source(p_.keys, slot, 0, p_.key_channels), x0, task.band_begin,
                    task.band_end, memory + transposed_, memory + band_);
      Rows values{};
      if (out_)
        values = rows_of(Source(p_.values, slot, 0, p_.value_channels), task.band_begin,
                         task.band_end, task.x_begin, task.x_end, memory + values_);
      for (int y = task.y_begin; y < task.y_end; y += kTileRows) {
        const Tile tile(g_, task.tile, y, minimum(kTileRows, task.y_end - y));
        const int row = y - task.y_begin;
        read(tile, centres + static_cast<ptrdiff_t>(row) * p_.key_channels * kLanes, band, values,
             memory + scores_, states + row, Sums{sums.at(row, 0), padded_}, is_first);
      }
      is_first = false;
    }
    for (int y = task.y_begin; y < task.y_end; y++)
      write(task, y, states[y - task.y_begin], sums, present);
  }

  // One tile reads one page.
  void read(const Tile& tile, const float* centres, const Band& band, const Rows& values,
            float* score_memory, RowState* states, const Sums& sums, bool is_first_page) const {
    const Scores scores(score_memory, g_, kTileRows);
    const int last = g_.last_neighbour(tile.y0 + tile.rows - 1);
    for (int y = g_.first_neighbour(tile.y0); y <= last; y += chunk_rows_) {
      const Chunk chunk{y, minimum(last, y + chunk_rows_ - 1)};
      Vec peaks[kTileRows];
      for (int i = 0; i < tile.rows; i++) peaks[i] = broadcast(kLowest);
      score_chunk(g_, tile, centres, band, chunk, scores, peaks);
      for (int i = 0; i < tile.rows; i++) {
        const int first = g_.first_neighbour(tile.y0 + i);
        const int begin = maximum(chunk.first, first);
        const int end = minimum(chunk.last, g_.last_neighbour(tile.y0 + i)) + 1;
        if (begin >= end) continue;
        RowState& state = states[i];
        Vec scale;
        if (is_first_page && begin == first)
          state.start(peaks[i]);
        else if (__builtin_expect(state.follow(peaks[i], scale), 0) && out_)
          rescale(sums, i, tile.columns, scale);
        for (int neighbour = begin; neighbour < end; neighbour++)
          state.total +=
              exponentiate(scores.at(neighbour - chunk.first, i), g_.window, state.reference);
      }
      if (out_) accumulate_chunk(g_, tile, chunk, scores, values, sums);
    }
  }

  static void rescale(const Sums& sums, int row, int columns, Vec scale) {
    for (int lane = 0; lane < columns; lane++) {
      float* sum = sums.at(row, lane);
      for (int c = 0; c < sums.channels; c += kLanes) store(sum + c, load(sum + c) * scale[lane]);
    }
  }

  void write(const Task& task, int y, RowState state, const Sums& sums, int present) const {
    Vec scale = {};
    if (present) scale = state.finish(g_.zeros_outside(y) * present, p_.sink);
    const int64_t row = static_cast<int64_t>(task.item) * g_.height + y;
    if (statistics_) {
      float* to = statistics_ + (row * g_.tiles + task.tile) * 2 * kLanes;
      store(to, present ? state.reference : Vec{});
      store(to + kLanes, present ? broadcast(1.0f) / state.total : Vec{});
    }
    if (!out_) return;
    const Tile tile(g_, task.tile, y, 1);
    for (int lane = 0; lane < tile.columns; lane++) {
      const float* sum = sums.at(y - task.y_begin, lane);
      float* to = out_ + (row * g_.width + tile.x0 + lane) * p_.value_channels;
      for (int c = 0; c < p_.value_channels; c++) to[c] = sum[c] * scale[lane];
    }
  }

  const SegstreamProblem& p_;
  const Geometry g_;
  float* const out_;
  float* const statistics_;
  const int padded_;
  const int chunk_rows_;
  const int num_threads_;
  Layout layout_;
  ptrdiff_t transposed_, centres_, band_, scores_, states_, values_, sums_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
