// The tensor-core kernel: fp16 or bf16 storage, fp32 accumulation.
//
// Grid: x = query tiles of one map, y = batch * value_blocks, z = 1 or table_length. With z = 1 a
// block runs through all pages of its item and writes the result. Otherwise each block reads one
// page and leaves weighted sums and softmax statistics for the combine kernel.
//
// Scores of two key rows come out of the first mma in just the register layout that the second
// one takes as its left operand, so weights never touch memory.
#pragma once

#include "page_stream.cuh"
#include "softmax.cuh"

// The query rows that a lane holds in its accumulators: m = lane / 4 and m + 8 of the patch.
constexpr int kHalves = 2;

SEGSTREAM_DEVICE i64 first_pixel_of_item(const Problem& problem) {
  const int item = static_cast<int>(machine::block_y()) / problem.value_blocks;
  return static_cast<i64>(item) * problem.height * problem.width;
}

// A warp's 4x4 patch of queries.
template <typename T, typename Element, int KeyChannels>
struct PatchQueries {
  static constexpr int kSteps = KeyChannels / kMmaDepth;
  u32 fragment[T::kQueryInShared ? 1 : kSteps][4];
  u32 shared;  // [key chunk][query] of 16 bytes, where kQueryInShared

  // row, column: image coordinates of the patch.
  SEGSTREAM_DEVICE void load(const Problem& problem, int row, int column, int lane,
                             u32 shared_address) {
    const Element* query = static_cast<const Element*>(problem.query);
    const i64 item_pixel = first_pixel_of_item(problem);
    shared = shared_address;
    if constexpr (T::kQueryInShared) {
#pragma unroll
      for (int i = 0; i < kPatchQueries * T::kKeyChunks / kWarp; i++) {
        const int index = i * kWarp + lane;
        const int chunk = index / kPatchQueries, m = index % kPatchQueries;
        const int y = row + m / kPatch, x = column + m % kPatch;
        const bool inside = y < problem.height && x < problem.width;
        const i64 pixel = inside ? item_pixel + y * problem.width + x : 0;
        machine::copy16(shared + index * kChunkBytes,
                        query + pixel * KeyChannels + chunk * kChunkElements, inside);
      }
      machine::commit_copies();  // awaited with the first stage, which is committed later
    } else {
#pragma unroll
      for (int h = 0; h < kHalves; h++) {
        const int m = lane / 4 + 8 * h;
        const int y = row + m / kPatch, x = column + m % kPatch;
        const bool inside = y < problem.height && x < problem.width;
        const Element* pixel =
            query + (item_pixel + y * problem.width + x) * KeyChannels + 2 * (lane % 4);
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
          fragment[k][h] = inside ? machine::load_global_u32(pixel + k * kMmaDepth) : 0;
          fragment[k][h + 2] = inside ? machine::load_global_u32(pixel + k * kMmaDepth + 8) : 0;
        }
      }
    }
  }

  SEGSTREAM_DEVICE void get(u32 (&a)[4], int step, int lane) const {
    if constexpr (T::kQueryInShared) {
      const int matrix = lane / kMatrix;  // (rows 0-7, 8-15) x (channels 0-7, 8-15)
      const int m = (matrix & 1) * kMatrix + lane % kMatrix;
      const int chunk = 2 * step + matrix / 2;
      machine::load_matrices(a, shared + (chunk * kPatchQueries + m) * kChunkBytes);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = fragment[step][i];
    }
  }
};

// Scores, softmax state and weighted values of a warp's patch.
template <typename T, typename Element, int Window, int KeyChannels, int ValueChannels>
struct PatchAttention {
  static constexpr int kValueTiles = ValueChannels / kMatrix;

  PatchQueries<T, Element, KeyChannels> queries;
  float weighted[kValueTiles][4];
  float reference[kHalves];
  // Sums of weights: the second mma makes them too, from a column of ones, so that they are sums
  // of the very weights, rounded to 16 bits, that the values get. Elements 2h and 2h + 1 agree.
  float sum[4];
  int lane;
  int column_in_halo;  // of the patch, hence of the keys it sees first

  SEGSTREAM_DEVICE void start(const Problem& problem, int patch_row, int patch_column,
                              u32 shared_queries) {
    lane = static_cast<int>(machine::thread_index()) % kWarp;
    column_in_halo = patch_column;
    queries.load(problem, T::tile_row(problem) + patch_row, T::tile_column(problem) + patch_column,
                 lane, shared_queries);
#pragma unroll
    for (int c = 0; c < kValueTiles; c++)
#pragma unroll
      for (int e = 0; e < 4; e++) weighted[c][e] = 0.0f;
#pragma unroll
    for (int e = 0; e < 4; e++) sum[e] = 0.0f;
#pragma unroll
    for (int h = 0; h < kHalves; h++) reference[h] = kNoReference;
  }

  // Takes in two key rows; the first is row `key_row` (0..kSpan-1) of the patch's union of windows.
  SEGSTREAM_DEVICE void read_stage(u32 stage, int key_row) {
    float scores[kRowsPerStage][T::kKeyTiles][4];  // later: weights
    score(scores, stage);
    hide_outside_window(scores, key_row);
    weigh(scores);
    add_values(scores, stage);
  }

  SEGSTREAM_DEVICE bool is_unset(int h) const { return reference[h] == kNoReference; }

  // scores = query . key - reference: the accumulators start at minus the reference.
  SEGSTREAM_DEVICE void score(float (&scores)[kRowsPerStage][T::kKeyTiles][4], u32 stage) {
    float start[kHalves];
#pragma unroll
    for (int h = 0; h < kHalves; h++) start[h] = is_unset(h) ? 0.0f : -reference[h];
#pragma unroll
    for (int r = 0; r < kRowsPerStage; r++)
#pragma unroll
      for (int j = 0; j < T::kKeyTiles; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) scores[r][j][e] = start[e / 2];

    // Matrices: (row 0, channels 0-7) (row 0, 8-15) (row 1, 0-7) (row 1, 8-15).
    const int matrix = lane / kMatrix;
    const u32 row = stage + (matrix / 2) * T::kRowBytes;
    const int pixel = column_in_halo + lane % kMatrix;
#pragma unroll
    for (int k = 0; k < KeyChannels / kMmaDepth; k++) {
      u32 a[4];
      queries.get(a, k, lane);
      const u32 plane = row + (2 * k + (matrix & 1)) * T::kHaloX * kChunkBytes;
#pragma unroll
      for (int j = 0; j < T::kKeyTiles; j++) {
        u32 keys[4];
        machine::load_matrices(keys, plane + (pixel + j * kMatrix) * kChunkBytes);
        machine::multiply_add<Element>(scores[0][j], a, keys[0], keys[1]);
        machine::multiply_add<Element>(scores[1][j], a, keys[2], keys[3]);
      }
    }
  }

  // Each query sees a P x P part of the union; the rest gets no weight.
  SEGSTREAM_DEVICE void hide_outside_window(float (&scores)[kRowsPerStage][T::kKeyTiles][4],
                                            int key_row) const {
    const float hidden = machine::negative_infinity();
    const bool is_edge = key_row < kPatch - 1 || key_row + 1 > Window - 1;  // warp-uniform
    if (is_edge) {
#pragma unroll
      for (int h = 0; h < kHalves; h++) {
        const int query_row = (lane / 4 + 8 * h) / kPatch;
#pragma unroll
        for (int r = 0; r < kRowsPerStage; r++) {
          if (static_cast<u32>(key_row + r - query_row) < static_cast<u32>(Window)) continue;
#pragma unroll
          for (int j = 0; j < T::kKeyTiles; j++)
            scores[r][j][2 * h] = scores[r][j][2 * h + 1] = hidden;
        }
      }
    }
    const int query_column = lane / 4 % kPatch;
#pragma unroll
    for (int j = 0; j < T::kKeyTiles; j++) {
      const bool has_left_edge = j * kMatrix < kPatch - 1;
      const bool has_right_edge = j * kMatrix + kMatrix - 1 > Window - 1;
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int key_column = j * kMatrix + 2 * (lane % 4) + e;
        if ((has_left_edge && key_column < query_column) ||
            (has_right_edge && key_column >= query_column + Window)) {
#pragma unroll
          for (int r = 0; r < kRowsPerStage; r++) scores[r][j][e] = scores[r][j][e + 2] = hidden;
        }
      }
    }
  }

  // scores -> weights, after moving the references if need be.
  SEGSTREAM_DEVICE void weigh(float (&scores)[kRowsPerStage][T::kKeyTiles][4]) {
    float largest[kHalves];
    bool must_move = false;
#pragma unroll
    for (int h = 0; h < kHalves; h++) {
      largest[h] = machine::negative_infinity();
#pragma unroll
      for (int r = 0; r < kRowsPerStage; r++)
#pragma unroll
        for (int j = 0; j < T::kKeyTiles; j++)
#pragma unroll
          for (int e = 0; e < 2; e++)
            largest[h] = machine::larger(largest[h], scores[r][j][2 * h + e]);
      largest[h] = machine::larger(largest[h], machine::shuffle_xor(largest[h], 1));
      largest[h] = machine::larger(largest[h], machine::shuffle_xor(largest[h], 2));
      must_move |= largest[h] > (is_unset(h) ? machine::negative_infinity() : kLazyMargin);
    }
    if (machine::any_lane(must_move)) {
#pragma unroll
      for (int h = 0; h < kHalves; h++) move_reference(scores, h, largest[h]);
    }
#pragma unroll
    for (int r = 0; r < kRowsPerStage; r++)
#pragma unroll
      for (int j = 0; j < T::kKeyTiles; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) scores[r][j][e] = exp_of(scores[r][j][e]);
  }

  // Rare: at a query's first scores, and when its maximum rises far above the reference.
  SEGSTREAM_DEVICE void move_reference(float (&scores)[kRowsPerStage][T::kKeyTiles][4], int h,
                                       float largest) {
    const bool was_unset = is_unset(h);
    if (largest <= (was_unset ? machine::negative_infinity() : 0.0f)) return;
    const float before = was_unset ? 0.0f : reference[h];
    const float after = before + largest;
    const float shift = after - before;  // what `after` really moved by, in float
    const float factor = was_unset ? 0.0f : exp_of(-shift);
    reference[h] = after;
    sum[2 * h] *= factor;
    sum[2 * h + 1] *= factor;
#pragma unroll
    for (int c = 0; c < kValueTiles; c++)
#pragma unroll
      for (int e = 0; e < 2; e++) weighted[c][2 * h + e] *= factor;
#pragma unroll
    for (int r = 0; r < kRowsPerStage; r++)
#pragma unroll
      for (int j = 0; j < T::kKeyTiles; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) scores[r][j][2 * h + e] -= shift;
  }

  // weighted += weights (16 queries x 8 columns of both rows) . values
  SEGSTREAM_DEVICE void add_values(const float (&weights)[kRowsPerStage][T::kKeyTiles][4],
                                   u32 stage) {
    // Matrices: (row 0, tile c) (row 1, tile c) (row 0, tile c + 1) (row 1, tile c + 1).
    const int matrix = lane / kMatrix;
    const int first_pixel = column_in_halo + lane % kMatrix;
    const u32 row =
        stage + (matrix & 1) * T::kRowBytes + T::kKeyRowBytes + first_pixel * kValuePixelBytes;
    // A pixel's chunks are permuted by (first_pixel & 7), the same for every key tile.
    const u32 permutation = ((matrix / 2) ^ (first_pixel & 7)) * kChunkBytes;
#pragma unroll
    for (int j = 0; j < T::kKeyTiles; j++) {
      u32 a[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        a[i] = machine::pack_pair<Element>(weights[i / 2][j][2 * (i % 2)],
                                           weights[i / 2][j][2 * (i % 2) + 1]);
      constexpr u32 kOnes = machine::kPairOfOnes<Element>;
      machine::multiply_add<Element>(sum, a, kOnes, kOnes);
#pragma unroll
      for (int c = 0; c < kValueTiles; c += 2) {
        u32 values[4];
        machine::load_matrices_transposed(
            values, row + j * kMatrix * kValuePixelBytes + (permutation ^ (c * kChunkBytes)));
        machine::multiply_add<Element>(weighted[c], a, values[0], values[1]);
        machine::multiply_add<Element>(weighted[c + 1], a, values[2], values[3]);
      }
    }
  }

  SEGSTREAM_DEVICE void finish(const Problem& problem, int patch_row, int patch_column) {
    const int value_block = static_cast<int>(machine::block_y()) % problem.value_blocks;
    const i64 item_pixel = first_pixel_of_item(problem);
#pragma unroll
    for (int h = 0; h < kHalves; h++) {
      const int m = lane / 4 + 8 * h;
      const int y = T::tile_row(problem) + patch_row + m / kPatch;
      const int x = T::tile_column(problem) + patch_column + m % kPatch;
      if (y >= problem.height || x >= problem.width) continue;
      const i64 pixel = item_pixel + y * problem.width + x;
      const i64 first = pixel * problem.value_channels + value_block * kBlockChannels;
      if (problem.partial_sums)
        write_partial(problem, h, pixel, first, value_block);
      else
        write_result(problem, h, first);
    }
  }

  SEGSTREAM_DEVICE void write_partial(const Problem& problem, int h, i64 pixel, i64 first,
                                      int value_block) const {
    const i64 pixels = static_cast<i64>(problem.batch) * problem.height * problem.width;
    const i64 part = machine::block_z();
    float* stats =
        problem.partial_stats + 2 * ((part * pixels + pixel) * problem.value_blocks + value_block);
    if (lane % 4 == 0) {
      machine::store_global(stats, reference[h]);
      machine::store_global(stats + 1, sum[2 * h]);
    }
    if (is_unset(h)) return;  // an absent page: the combine kernel stops at the sum of 0
    float* sums = problem.partial_sums + part * pixels * problem.value_channels + first;
#pragma unroll
    for (int c = 0; c < kValueTiles; c++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        machine::store_global(sums + c * kMatrix + 2 * (lane % 4) + e, weighted[c][2 * h + e]);
  }

  SEGSTREAM_DEVICE void write_result(const Problem& problem, int h, i64 first) const {
    SoftmaxMerge merge;
    merge.see(reference[h]);
    if (problem.sink) merge.see(machine::load_global(problem.sink));
    const float factor = merge.add(reference[h], sum[2 * h]);
    if (problem.sink) merge.add(machine::load_global(problem.sink), 1.0f);
    Element* out = static_cast<Element*>(problem.out) + first;
#pragma unroll
    for (int c = 0; c < kValueTiles; c++) {
      const float low = merge.normalise(factor * weighted[c][2 * h]);
      const float high = merge.normalise(factor * weighted[c][2 * h + 1]);
      machine::store_global_u32(out + c * kMatrix + 2 * (lane % 4),
                                machine::pack_pair<Element>(low, high));
    }
  }
};

template <typename Element, int Window, int KeyChannels, int ValueChannels>
SEGSTREAM_DEVICE void tensor_core_attention(const Problem& problem) {
  using T = Tile<Window, KeyChannels, ValueChannels>;
  const int thread = static_cast<int>(machine::thread_index());
  const int warp = thread / kWarp;
  const int patch_row = warp / T::kPatchesX * kPatch;  // in the tile
  const int patch_column = warp % T::kPatchesX * kPatch;

  const u32 ring = machine::shared_base();
  const u32 last_stage = ring + (T::kRing - 1) * T::kStageBytes;
  PatchAttention<T, Element, Window, KeyChannels, ValueChannels> patch;
  patch.start(problem, patch_row, patch_column,
              ring + T::kRing * T::kStageBytes + warp * T::kPatchQueryBytes);

  PageStream<T, Element, KeyChannels> stream(problem);
  int stages_left = stream.stages_left;
#pragma unroll
  for (int i = 0; i < T::kRing - 1; i++) stream.prefetch(problem, ring + i * T::kStageBytes);

  int key_row = -patch_row;  // of the stage, in the patch's union of windows
  u32 stage = ring;
  for (; stages_left > 0; stages_left--) {
    machine::wait_copies<T::kRing - 2>();
    machine::block_barrier();  // the stage is here for all, and the one before it is free
    stream.prefetch(problem, stage == ring ? last_stage : stage - T::kStageBytes);
    // Warp-uniform, and no block barrier inside.
    if (key_row >= 0 && key_row < T::kSpan) patch.read_stage(stage, key_row);
    key_row += kRowsPerStage;
    if (key_row == T::kHaloY - patch_row) key_row = -patch_row;
    stage = stage == last_stage ? ring : stage + T::kStageBytes;
  }
  machine::wait_copies<0>();
  patch.finish(problem, patch_row, patch_column);
}

#define SEGSTREAM_TENSOR_CORE(name, Element, window, key_channels, value_channels) \
  SEGSTREAM_KERNEL(name, (Tile<window, key_channels, value_channels>::kThreads),   \
                   (Tile<window, key_channels, value_channels>::kBlocksPerSm)) {   \
    tensor_core_attention<Element, window, key_channels, value_channels>(problem); \
  }
