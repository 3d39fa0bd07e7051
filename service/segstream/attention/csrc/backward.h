// The gradients. With p = exp(score - reference) / total the weight of a neighbour, g the gradient
// of the read-out o, and d = p * (g . v - g . o) the gradient of a score:
//
//   grad_query = sum over the neighbours of d * key                  (centres are queries)
//   grad_key   = sum over the queries that see the key of d * query  (centres are keys)
//   grad_value = sum over the same queries of p * g                  (centres are keys)
//   grad_sink  = - sum over all queries of p(sink) * (g . o)
//
// Reference and total are those of the forward pass. Their logsumexp would save a multiplication,
// and lose to rounding what the difference of large scores is about.
//
// The window is symmetric: the queries that see a key are the key's own neighbours. So each
// gradient is a sum that one task gathers in a fixed order, by the same two inner loops as the
// forward pass.
#pragma once

#include <cmath>

#include "forward.h"

namespace segstream {
namespace SEGSTREAM_ISA {

// A number per query pixel, readable up to a window's radius beyond the left and right border.
class Plane {
 public:
  Plane(const Geometry& g, int items)
      : height_(g.height),
        radius_(g.radius),
        stride_(g.tiles * kLanes + 2 * g.radius),
        memory_(static_cast<ptrdiff_t>(items) * g.height * stride_, 1) {
    std::memset(memory_.piece(0), 0, items * g.height * stride_ * sizeof(float));
  }
  float* at(int item, int y, int x) const {
    return memory_.piece(0) + (static_cast<ptrdiff_t>(item) * height_ + y) * stride_ + x + radius_;
  }

 private:
  const int height_, radius_;
  const ptrdiff_t stride_;
  const Memory memory_;
};

class BackwardPass {
 public:
  BackwardPass(const SegstreamProblem& problem, const SegstreamGradients& gradients)
      : p_(problem),
        grads_(gradients),
        g_(problem.height, problem.width, problem.window_size),
        pixels_(static_cast<int64_t>(g_.height) * g_.width),
        dk_(round_up(problem.key_channels, kLanes)),
        dv_(round_up(problem.value_channels, kLanes)),
        chunk_rows_(chunk_rows(g_, kTileRows)),
        num_threads_(useful_threads(problem, pages_read(problem),
                                    2 * (problem.key_channels + problem.value_channels))),
        reference_(g_, problem.batch),
        inverse_total_(g_, problem.batch),
        product_(g_, problem.batch) {
    const int channels = maximum(p_.key_channels, p_.value_channels);
    const ptrdiff_t score_size =
        static_cast<ptrdiff_t>(chunk_rows_) * kTileRows * g_.window * kLanes;
    const ptrdiff_t band_pixels = band_rows(g_) * band_columns(g_);
    const ptrdiff_t centres = static_cast<ptrdiff_t>(g_.segment_rows) * kLanes;
    transposed_ = layout_.add(transpose_scratch(channels));
    whole_ = layout_.add(band_pixels * p_.value_channels);
    key_centres_ = layout_.add(centres * p_.key_channels);
    value_centres_ = layout_.add(centres * p_.value_channels);
    key_band_ = layout_.add(band_rows(g_) * Band::row_size(g_, p_.key_channels));
    value_band_ = layout_.add(band_rows(g_) * Band::row_size(g_, p_.value_channels));
    key_rows_ = layout_.add(band_pixels * dk_);
    value_rows_ = layout_.add(band_pixels * dv_);
    scores_ = layout_.add(score_size);
    products_ = layout_.add(score_size);
    key_sums_ = layout_.add(centres * dk_);
    value_sums_ = layout_.add(centres * dv_);
  }

  void run() const {
    fill_planes();
    if (grads_.grad_sink) *grads_.grad_sink = sink_gradient();
    const Memory memory(layout_.size(), num_threads_);
    if (grads_.grad_query)
      parallel_for(Task::count(g_, p_.batch), num_threads_, [&](int64_t task, int thread) {
        query_gradient(Task(g_, task), memory.piece(thread));
      });
    if (grads_.grad_keys || grads_.grad_values) {
      const Memory list(p_.num_pages, 1);
      int32_t* pages = reinterpret_cast<int32_t*>(list.piece(0));
      const int num_pages = list_pages(pages);
      parallel_for(Task::count(g_, num_pages), num_threads_, [&](int64_t index, int thread) {
        const Task task(g_, index);
        page_gradient(task, pages[task.item], memory.piece(thread));
      });
    }
  }

 private:
  // What there is to know of each query: its softmax, and g . o.
  void fill_planes() const {
    const ptrdiff_t row_size = static_cast<ptrdiff_t>(g_.tiles) * 2 * kLanes;
    const Memory tiled(row_size * g_.height * p_.batch, 1);
    ForwardPass(p_, nullptr, tiled.piece(0)).run();
    parallel_for(static_cast<int64_t>(p_.batch) * g_.height, num_threads_, [&](int64_t row, int) {
      const int item = static_cast<int>(row / g_.height), y = static_cast<int>(row % g_.height);
      for (int i = 0; i < g_.tiles; i++) {
        const Tile tile(g_, i, y, 1);
        const float* from = tiled.piece(0) + row * row_size + i * 2 * kLanes;
        const size_t bytes = tile.columns * sizeof(float);
        std::memcpy(reference_.at(item, y, tile.x0), from, bytes);
        std::memcpy(inverse_total_.at(item, y, tile.x0), from + kLanes, bytes);
      }
      float* product = product_.at(item, y, 0);
      for (int x = 0; x < g_.width; x++) {
        const int64_t at = (row * g_.width + x) * p_.value_channels;
        double sum = 0.0;
        for (int c = 0; c < p_.value_channels; c++)
          sum += static_cast<double>(grads_.out[at + c]) * grads_.grad_out[at + c];
        product[x] = static_cast<float>(sum);
      }
    });
  }

  float sink_gradient() const {
    double sum = 0.0;
    for (int item = 0; item < p_.batch; item++) {
      if (!num_present(p_, item)) continue;
      for (int y = 0; y < g_.height; y++) {
        const float* reference = reference_.at(item, y, 0);
        const float* inverse_total = inverse_total_.at(item, y, 0);
        const float* product = product_.at(item, y, 0);
        for (int x = 0; x < g_.width; x++)
          sum -= std::exp(static_cast<double>(*p_.sink) - reference[x]) * inverse_total[x] *
                 product[x];
      }
    }
    return static_cast<float>(sum);
  }

  int list_pages(int32_t* pages) const {
    std::memset(pages, 0, p_.num_pages * sizeof(int32_t));
    const int64_t num_slots = static_cast<int64_t>(p_.batch) * p_.memory_length;
    for (int64_t i = 0; i < num_slots; i++)
      if (p_.slots[i] >= 0) pages[p_.slots[i]] = 1;
    int count = 0;
    for (int page = 0; page < p_.num_pages; page++)
      if (pages[page]) pages[count++] = page;
    return count;
  }

  Source query_of(int item) const {
    return Source(p_.query + item * pixels_ * p_.key_channels, g_.width, p_.key_channels);
  }
  Source grad_out_of(int item) const {
    return Source(grads_.grad_out + item * pixels_ * p_.value_channels, g_.width,
                  p_.value_channels);
  }
  Source key_of(int slot) const { return Source(p_.keys, slot, 0, p_.key_channels); }

  // All value channels of a page side by side: a copy of the band where they lie in blocks.
  Source value_of(int slot, const Task& task, float* scratch) const {
    if (p_.value_channels <= kChannelBlock || p_.values.block_stride == kChannelBlock)
      return Source(p_.values, slot, 0, p_.value_channels);
    const int columns = task.x_end - task.x_begin;
    for (int block = 0; block * kChannelBlock < p_.value_channels; block++) {
      const int channels = minimum(kChannelBlock, p_.value_channels - block * kChannelBlock);
      const Source part(p_.values, slot, block, channels);
      for (int y = task.band_begin; y < task.band_end; y++)
        for (int x = task.x_begin; x < task.x_end; x++) {
          const ptrdiff_t pixel =
              static_cast<ptrdiff_t>(y - task.band_begin) * columns + x - task.x_begin;
          part.widen(y, x, channels, scratch + pixel * p_.value_channels + block * kChannelBlock);
        }
    }
    Source whole(scratch, columns, p_.value_channels);
    whole.offset = -(task.band_begin * whole.row_stride + task.x_begin * whole.pixel_stride);
    return whole;
  }

  Band band_of(const Source& source, const Task& task, float* memory, ptrdiff_t to) const {
    return pack_band(g_, source, task.tile * kLanes, task.band_begin, task.band_end,
                     memory + transposed_, memory + to);
  }
  Rows rows(const Source& source, const Task& task, float* memory, ptrdiff_t to) const {
    return rows_of(source, task.band_begin, task.band_end, task.x_begin, task.x_end, memory + to);
  }

  // Calls `combine(chunk, i, neighbour)` for each row i and neighbour row of each chunk of a tile,
  // after key_scores and value_scores were made, and then `add(tile, chunk)`.
  template <typename Combine, typename Add>
  void for_chunks(const Task& task, const Band& keys, const Band& values, float* memory,
                  const Combine& combine, const Add& add) const {
    const Scores key_scores(memory + scores_, g_, kTileRows);
    const Scores value_scores(memory + products_, g_, kTileRows);
    for (int y0 = task.y_begin; y0 < task.y_end; y0 += kTileRows) {
      const Tile tile(g_, task.tile, y0, minimum(kTileRows, task.y_end - y0));
      const ptrdiff_t row = static_cast<ptrdiff_t>(y0 - task.y_begin) * kLanes;
      const float* key_centres = memory + key_centres_ + row * p_.key_channels;
      const float* value_centres = memory + value_centres_ + row * p_.value_channels;
      const int last = g_.last_neighbour(y0 + tile.rows - 1);
      for (int y = g_.first_neighbour(y0); y <= last; y += chunk_rows_) {
        const Chunk chunk{y, minimum(last, y + chunk_rows_ - 1)};
        Vec peaks[kTileRows] = {};
        score_chunk(g_, tile, key_centres, keys, chunk, key_scores, peaks);
        score_chunk(g_, tile, value_centres, values, chunk, value_scores, peaks);
        for (int i = 0; i < tile.rows; i++) {
          const int begin = maximum(chunk.first, g_.first_neighbour(y0 + i));
          const int end = minimum(chunk.last, g_.last_neighbour(y0 + i)) + 1;
          for (int neighbour = begin; neighbour < end; neighbour++)
            combine(tile.y0 + i, neighbour, key_scores.at(neighbour - chunk.first, i),
                    value_scores.at(neighbour - chunk.first, i));
        }
        add(tile, chunk, key_scores, value_scores);
      }
    }
  }

  void query_gradient(const Task& task, float* memory) const {
    const int x0 = task.tile * kLanes;
    pack_centres(g_, query_of(task.item), x0, task.y_begin, task.y_end, memory + transposed_,
                 memory + key_centres_);
    pack_centres(g_, grad_out_of(task.item), x0, task.y_begin, task.y_end, memory + transposed_,
                 memory + value_centres_);
    const Sums sums{memory + key_sums_, dk_};
    std::memset(sums.data, 0, (task.y_end - task.y_begin) * kLanes * dk_ * sizeof(float));
    for (int t = 0; t < p_.memory_length; t++) {
      const int slot = p_.slots[task.item * p_.memory_length + t];
      if (slot < 0) continue;
      const Band keys = band_of(key_of(slot), task, memory, key_band_);
      const Band values = band_of(value_of(slot, task, memory + whole_), task, memory, value_band_);
      const Rows neighbours = rows(key_of(slot), task, memory, key_rows_);
      for_chunks(
          task, keys, values, memory,
          [&](int y, int, float* scores, const float* products) {
            const Vec reference = load(reference_.at(task.item, y, x0));
            const Vec inverse_total = load(inverse_total_.at(task.item, y, x0));
            const Vec product = load(product_.at(task.item, y, x0));
            for (int o = 0; o < g_.window * kLanes; o += kLanes) {
              const Vec p = weight_of(load(scores + o), reference) * inverse_total;
              store(scores + o, p * (load(products + o) - product));
            }
          },
          [&](const Tile& tile, Chunk chunk, const Scores& weights, const Scores&) {
            accumulate_chunk(g_, tile, chunk, weights, neighbours,
                             Sums{sums.at(tile.y0 - task.y_begin, 0), dk_});
          });
    }
    for (int y = task.y_begin; y < task.y_end; y++) {
      const Tile tile(g_, task.tile, y, 1);
      for (int lane = 0; lane < tile.columns; lane++) {
        const int64_t pixel = task.item * pixels_ + static_cast<int64_t>(y) * g_.width + x0 + lane;
        std::memcpy(grads_.grad_query + pixel * p_.key_channels, sums.at(y - task.y_begin, lane),
                    p_.key_channels * sizeof(float));
      }
    }
  }

  // The key and value gradients of one page, over all batch items that read it, in their order.
  void page_gradient(const Task& task, int page, float* memory) const {
    const int x0 = task.tile * kLanes;
    pack_centres(g_, key_of(page), x0, task.y_begin, task.y_end, memory + transposed_,
                 memory + key_centres_);
    pack_centres(g_, value_of(page, task, memory + whole_), x0, task.y_begin, task.y_end,
                 memory + transposed_, memory + value_centres_);
    const Sums key_sums{memory + key_sums_, dk_}, value_sums{memory + value_sums_, dv_};
    const size_t centres = static_cast<size_t>(task.y_end - task.y_begin) * kLanes;
    std::memset(key_sums.data, 0, centres * dk_ * sizeof(float));
    std::memset(value_sums.data, 0, centres * dv_ * sizeof(float));
    for (int item = 0; item < p_.batch; item++)
      for (int t = 0; t < p_.memory_length; t++)
        if (p_.slots[item * p_.memory_length + t] == page)
          add_reader(task, item, memory, key_sums, value_sums);
    for (int y = task.y_begin; y < task.y_end; y++) {
      const Tile tile(g_, task.tile, y, 1);
      for (int lane = 0; lane < tile.columns; lane++) {
        const int row = y - task.y_begin;
        write_page(page, y, x0 + lane, key_sums.at(row, lane), value_sums.at(row, lane));
      }
    }
  }

  void add_reader(const Task& task, int item, float* memory, const Sums& key_sums,
                  const Sums& value_sums) const {
    const int x0 = task.tile * kLanes;
    const Band keys = band_of(query_of(item), task, memory, key_band_);
    const Band values = band_of(grad_out_of(item), task, memory, value_band_);
    const Rows queries = rows(query_of(item), task, memory, key_rows_);
    const Rows grad_outs = rows(grad_out_of(item), task, memory, value_rows_);
    for_chunks(
        task, keys, values, memory,
        [&](int, int neighbour, float* scores, float* products) {
          const float* reference = reference_.at(item, neighbour, x0 - g_.radius);
          const float* inverse_total = inverse_total_.at(item, neighbour, x0 - g_.radius);
          const float* product = product_.at(item, neighbour, x0 - g_.radius);
          for (int o = 0; o < g_.window; o++, scores += kLanes, products += kLanes) {
            const Vec p = weight_of(load(scores), load(reference + o)) * load(inverse_total + o);
            store(scores, p);
            store(products, p * (load(products) - load(product + o)));
          }
        },
        [&](const Tile& tile, Chunk chunk, const Scores& p, const Scores& d) {
          const int row = tile.y0 - task.y_begin;
          if (grads_.grad_values)
            accumulate_chunk(g_, tile, chunk, p, grad_outs, Sums{value_sums.at(row, 0), dv_});
          if (grads_.grad_keys)
            accumulate_chunk(g_, tile, chunk, d, queries, Sums{key_sums.at(row, 0), dk_});
        });
  }

  void write_page(int page, int y, int x, const float* key, const float* value) const {
    const int64_t pixel = page * pixels_ + static_cast<int64_t>(y) * g_.width + x;
    if (grads_.grad_keys)
      std::memcpy(grads_.grad_keys + pixel * p_.key_channels, key, p_.key_channels * sizeof(float));
    if (!grads_.grad_values) return;
    float* to = grads_.grad_values + page * grads_.value_page_stride + y * grads_.value_row_stride +
                x * grads_.value_pixel_stride;
    for (int c = 0; c < p_.value_channels; c += kChannelBlock) {
      const int count = minimum(kChannelBlock, p_.value_channels - c);
      std::memcpy(to + c / kChannelBlock * grads_.value_block_stride, value + c,
                  count * sizeof(float));
    }
  }

  const SegstreamProblem& p_;
  const SegstreamGradients& grads_;
  const Geometry g_;
  const int64_t pixels_;
  const int dk_, dv_;  // channels, filled up to whole vectors
  const int chunk_rows_;
  const int num_threads_;
  const Plane reference_, inverse_total_, product_;
  Layout layout_;
  ptrdiff_t transposed_, whole_, key_centres_, value_centres_, key_band_, value_band_, key_rows_,
      value_rows_, scores_, products_, key_sums_, value_sums_;
};

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
