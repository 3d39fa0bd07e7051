// The plain kernel: any element types, any odd window, any number of channels; no tensor cores.
//
// Grid: x = rows * strips of 8 queries, y = batch * value_blocks. A block takes one key row after
// the other: scores of its strip (a thread per query and key), softmax (a warp per two queries),
// weighted values (a thread per channel and four queries). The query is fp32, so is the result.
#pragma once

#include "softmax.cuh"

constexpr int kPlainThreads = 128;
constexpr int kStrip = 8;           // queries of a block, side by side
constexpr int kGroup = 4;           // queries whose weighted values one thread sums
constexpr int kQueriesPerWarp = 2;  // whose softmax a warp keeps
constexpr int kFloatBytes = 4;

// Shared memory of a block, in bytes from its base:
//   weights   [columns][kStrip]       the present key row's scores, then weights
//   factors   [kStrip]                what the weighted values must be scaled by
//   queries   [kStrip][key_channels + 1]; the odd length spreads them over the banks
struct PlainLayout {
  int columns;
  int query_stride;
  SEGSTREAM_DEVICE explicit PlainLayout(const Problem& problem)
      : columns(kStrip + problem.window - 1), query_stride(problem.key_channels + 1) {}
  SEGSTREAM_DEVICE u32 weight(int column, int query) const {
    return machine::shared_base() + (column * kStrip + query) * kFloatBytes;
  }
  SEGSTREAM_DEVICE u32 factor(int query) const { return weight(columns, query); }
  SEGSTREAM_DEVICE u32 query(int query, int channel) const {
    return weight(columns + 1, 0) + (query * query_stride + channel) * kFloatBytes;
  }
};

template <typename Key, typename Value>
struct PlainStrip {
  static constexpr int kWarpThreads = 32;

  const Problem& problem;
  PlainLayout layout;
  int thread = static_cast<int>(machine::thread_index());
  int lane = thread % kWarpThreads;
  int warp = thread / kWarpThreads;
  int channel = thread % kBlockChannels;
  int group = thread / kBlockChannels;
  int first_column;  // image column of the strip's first query
  float reference[kQueriesPerWarp] = {kNoReference, kNoReference};
  float sum[kQueriesPerWarp] = {0.0f, 0.0f};
  float weighted[kGroup] = {0.0f, 0.0f, 0.0f, 0.0f};

  SEGSTREAM_DEVICE PlainStrip(const Problem& p, int column)
      : problem(p), layout(p), first_column(column) {}

  SEGSTREAM_DEVICE void load_queries(i64 first_pixel) {
    const float* queries = static_cast<const float*>(problem.query);
    for (int i = thread; i < kStrip * problem.key_channels; i += kPlainThreads) {
      const int query = i / problem.key_channels, c = i % problem.key_channels;
      const bool inside = first_column + query < problem.width;
      const i64 pixel = first_pixel + query;
      machine::store_shared(
          layout.query(query, c),
          inside ? machine::load_global(queries + pixel * problem.key_channels + c) : 0.0f);
    }
  }

  // `row`: first element of the image row's keys, or null for a row outside the image.
  SEGSTREAM_DEVICE void score(const Key* row) {
    for (int i = thread; i < layout.columns * kStrip; i += kPlainThreads) {
      const int column = i / kStrip, query = i % kStrip;
      const int x = first_column - problem.window / 2 + column;
      const bool in_window = column >= query && column < query + problem.window;
      float value = in_window ? 0.0f : machine::negative_infinity();
      if (in_window && row && x >= 0 && x < problem.width) {
        const Key* key = row + static_cast<i64>(x) * problem.key_channels;
        for (int c = 0; c < problem.key_channels; c++)
          value = machine::fused_multiply_add(machine::load_shared(layout.query(query, c)),
                                              machine::load_global(key + c), value);
      }
      machine::store_shared(layout.weight(column, query), value);
    }
  }

  SEGSTREAM_DEVICE void weigh() {
#pragma unroll
    for (int q = 0; q < kQueriesPerWarp; q++) {
      const int query = warp * kQueriesPerWarp + q;
      float largest = reference[q];
      for (int column = lane; column < layout.columns; column += kWarpThreads)
        largest = machine::larger(largest, machine::load_shared(layout.weight(column, query)));
#pragma unroll
      for (int mask = kWarpThreads / 2; mask; mask /= 2)
        largest = machine::larger(largest, machine::shuffle_xor(largest, mask));
      const float factor = exp_of(reference[q] - largest);
      reference[q] = largest;
      sum[q] *= factor;
      for (int column = lane; column < layout.columns; column += kWarpThreads) {
        const u32 place = layout.weight(column, query);
        const float weight = exp_of(machine::load_shared(place) - largest);
        sum[q] += weight;
        machine::store_shared(place, weight);
      }
      if (lane == 0) machine::store_shared(layout.factor(query), factor);
    }
  }

  // `row`: first element of the image row's values of this block, or null.
  SEGSTREAM_DEVICE void add_values(const Value* row, bool has_channel) {
    scale_weighted();
    if (!row || !has_channel) return;
    const int left = first_column - problem.window / 2;
    const int end = problem.width - left < layout.columns ? problem.width - left : layout.columns;
    for (int column = left < 0 ? -left : 0; column < end; column++) {
      const float value = machine::load_global(
          row + static_cast<i64>(left + column) * problem.value_pixel_stride + channel);
      float weights[kGroup];
      machine::load_shared4(weights, layout.weight(column, group * kGroup));
#pragma unroll
      for (int q = 0; q < kGroup; q++)
        weighted[q] = machine::fused_multiply_add(weights[q], value, weighted[q]);
    }
  }

  SEGSTREAM_DEVICE void scale_weighted() {
    float factors[kGroup];
    machine::load_shared4(factors, layout.factor(group * kGroup));
#pragma unroll
    for (int q = 0; q < kGroup; q++) weighted[q] *= factors[q];
  }

  // Puts 1 / (sum of weights) of each query, sink included, into the factors.
  SEGSTREAM_DEVICE void close_softmax() {
#pragma unroll
    for (int q = 0; q < kQueriesPerWarp; q++) {
#pragma unroll
      for (int mask = kWarpThreads / 2; mask; mask /= 2)
        sum[q] += machine::shuffle_xor(sum[q], mask);
      SoftmaxMerge merge;
      merge.see(reference[q]);
      if (problem.sink) merge.see(machine::load_global(problem.sink));
      const float factor = merge.add(reference[q], sum[q]);
      if (problem.sink) merge.add(machine::load_global(problem.sink), 1.0f);
      if (lane == 0)
        machine::store_shared(layout.factor(warp * kQueriesPerWarp + q), merge.normalise(factor));
    }
  }
};

template <typename Key, typename Value>
SEGSTREAM_DEVICE void plain_attention(const Problem& problem) {
  const int strips = (problem.width + kStrip - 1) / kStrip;
  const int y = static_cast<int>(machine::block_x()) / strips;
  const int first_column = static_cast<int>(machine::block_x()) % strips * kStrip;
  const int value_block = static_cast<int>(machine::block_y()) % problem.value_blocks;
  const int item = static_cast<int>(machine::block_y()) / problem.value_blocks;
  const i64 first_pixel =
      (static_cast<i64>(item) * problem.height + y) * problem.width + first_column;
  const int radius = problem.window / 2;

  PlainStrip<Key, Value> strip(problem, first_column);
  const bool has_channel = value_block * kBlockChannels + strip.channel < problem.value_channels;
  strip.load_queries(first_pixel);

  const int* slots = problem.slots + static_cast<i64>(item) * problem.table_length;
  for (int page = 0; page < problem.table_length; page++) {
    const int slot = static_cast<int>(machine::load_global_u32(slots + page));
    if (static_cast<u32>(slot) >= static_cast<u32>(problem.num_slots)) continue;
    const Key* keys = static_cast<const Key*>(problem.keys) + slot * problem.key_page_stride;
    const Value* values = static_cast<const Value*>(problem.values) +
                          slot * problem.value_page_stride +
                          value_block * problem.value_block_stride;
    for (int key_y = y - radius; key_y <= y + radius; key_y++) {
      const bool inside = key_y >= 0 && key_y < problem.height;
      const i64 row = static_cast<i64>(key_y) * problem.width;
      machine::block_barrier();  // the last row's weights are read, or the queries are written
      strip.score(inside ? keys + row * problem.key_channels : nullptr);
      machine::block_barrier();
      strip.weigh();
      machine::block_barrier();
      strip.add_values(inside ? values + row * problem.value_pixel_stride : nullptr, has_channel);
    }
  }
  machine::block_barrier();
  strip.close_softmax();
  machine::block_barrier();
  strip.scale_weighted();
  if (!has_channel) return;
  float* out = static_cast<float*>(problem.out);
#pragma unroll
  for (int q = 0; q < kGroup; q++) {
    const int query = strip.group * kGroup + q;
    if (first_column + query >= problem.width) continue;
    machine::store_global(out + (first_pixel + query) * problem.value_channels +
                              value_block * kBlockChannels + strip.channel,
                          strip.weighted[q]);
  }
}

#define SEGSTREAM_PLAIN(name, Key, Value) \
  SEGSTREAM_KERNEL(name, kPlainThreads, 1) { plain_attention<Key, Value>(problem); }
