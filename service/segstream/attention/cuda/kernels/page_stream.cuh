// Streams the halo of one thread block, page after page, into the ring of shared-memory stages.
#pragma once

#include "problem.cuh"
#include "tile.cuh"

// Walks the present pages that this thread block reads: all of its item's, or those of one column
// of the slot table where the work is split.
struct PageCursor {
  int column;  // the next to look at
  int slot = -1;

  SEGSTREAM_DEVICE explicit PageCursor(const Problem& problem)
      : column(is_split(problem) ? static_cast<int>(machine::block_z()) : 0) {}

  static SEGSTREAM_DEVICE bool is_split(const Problem& problem) {
    return problem.partial_sums != nullptr;
  }

  // Moves to the next present page; false when there is none.
  SEGSTREAM_DEVICE bool next(const Problem& problem) {
    const int item = static_cast<int>(machine::block_y()) / problem.value_blocks;
    const int* slots = problem.slots + static_cast<i64>(item) * problem.table_length;
    const int end =
        is_split(problem) ? static_cast<int>(machine::block_z()) + 1 : problem.table_length;
    while (column < end) {
      slot = static_cast<int>(machine::load_global_u32(slots + column++));
      if (static_cast<u32>(slot) < static_cast<u32>(problem.num_slots)) return true;
    }
    return false;
  }
};

template <typename T, typename Element, int KeyChannels>
struct PageStream {
  // One 16-byte copy of a stage, for stage 0 of a page; stage s lies 2 * s image rows below.
  struct Chunk {
    u32 to;    // byte offset in the stage; bit 0 set for a key
    int from;  // element offset in the page
    int row;   // image row, or kNoRow where the column lies outside the image
  };
  static constexpr u32 kKeyBit = 1;
  static constexpr int kNoRow = -(1 << 28);
  // Where a thread copies few chunks their description stays in registers from stage to stage.
  static constexpr bool kKeepPlan = SEGSTREAM_ASYNC_COPY && T::kChunksPerThread <= 4;

  PageCursor cursor;
  int stages_left;  // to prefetch, over all pages
  int stage_in_page = T::kStagesPerPage;
  const Element* page_keys = nullptr;
  const Element* page_values = nullptr;
  Chunk plan[kKeepPlan ? T::kChunksPerThread : 1];

  SEGSTREAM_DEVICE explicit PageStream(const Problem& problem)
      : cursor(problem), stages_left(count_stages(problem)) {
    if constexpr (kKeepPlan) {
#pragma unroll
      for (int i = 0; i < T::kChunksPerThread; i++) plan[i] = describe(problem, i);
    }
  }

  static SEGSTREAM_DEVICE int count_stages(const Problem& problem) {
    int stages = 0;
    for (PageCursor page(problem); page.next(problem);) stages += T::kStagesPerPage;
    return stages;
  }

  static SEGSTREAM_DEVICE bool is_mine(int i) {
    return (i + 1) * T::kThreads <= T::kChunksPerStage ||
           i * T::kThreads + static_cast<int>(machine::thread_index()) < T::kChunksPerStage;
  }

  static SEGSTREAM_DEVICE Chunk describe(const Problem& problem, int i) {
    const int index = i * T::kThreads + static_cast<int>(machine::thread_index());
    const int chunk = index % T::kChunksPerPixel;
    const int x = index / T::kChunksPerPixel % T::kHaloX;
    const int y = index / (T::kChunksPerPixel * T::kHaloX);
    const int row = T::tile_row(problem) - T::kRadius + y;
    const int column = T::tile_column(problem) - T::kRadius + x;
    const int value_chunk = chunk - T::kKeyChunks;
    const int pixel = row * problem.width + column;
    Chunk result;
    result.row = column >= 0 && column < problem.width ? row : kNoRow;
    if (chunk < T::kKeyChunks) {
      result.to = (y * T::kRowBytes + (chunk * T::kHaloX + x) * kChunkBytes) | kKeyBit;
      result.from = pixel * KeyChannels + chunk * kChunkElements;
    } else {
      // The XOR spreads eight neighbouring pixels over all banks.
      result.to = y * T::kRowBytes + T::kKeyRowBytes + x * kValuePixelBytes +
                  (value_chunk ^ (x & 7)) * kChunkBytes;
      result.from = pixel * problem.value_pixel_stride + value_chunk * kChunkElements;
    }
    return result;
  }

  // Starts the copies of the next stage, if there is one. Always commits a group, so that the
  // number of groups under way tells which stage has arrived.
  SEGSTREAM_DEVICE void prefetch(const Problem& problem, u32 stage) {
    if (stages_left > 0) {
      if (stage_in_page == T::kStagesPerPage) open_next_page(problem);
      copy_stage(problem, stage);
      stage_in_page++;
    }
    stages_left--;
    machine::commit_copies();
  }

  SEGSTREAM_DEVICE void open_next_page(const Problem& problem) {
    const int value_block = static_cast<int>(machine::block_y()) % problem.value_blocks;
    cursor.next(problem);
    stage_in_page = 0;
    page_keys = static_cast<const Element*>(problem.keys) + cursor.slot * problem.key_page_stride;
    page_values = static_cast<const Element*>(problem.values) +
                  cursor.slot * problem.value_page_stride +
                  value_block * problem.value_block_stride;
  }

  SEGSTREAM_DEVICE void copy_stage(const Problem& problem, u32 stage) const {
    if constexpr (kKeepPlan) {
#pragma unroll
      for (int i = 0; i < T::kChunksPerThread; i++)
        if (is_mine(i)) copy_chunk(problem, stage, plan[i]);
    } else {
#pragma unroll 1
      for (int i = 0; i < T::kChunksPerThread; i++)
        if (is_mine(i)) copy_chunk(problem, stage, describe(problem, i));
    }
  }

  SEGSTREAM_DEVICE void copy_chunk(const Problem& problem, u32 stage, const Chunk& chunk) const {
    const bool is_key = chunk.to & kKeyBit;
    const int pixel_stride = is_key ? KeyChannels : problem.value_pixel_stride;
    const int rows_down = stage_in_page * kRowsPerStage;
    // Outside the image keys and values are zero: the score is exactly 0 and takes part.
    const bool inside = static_cast<u32>(chunk.row + rows_down) < static_cast<u32>(problem.height);
    const int offset = inside ? chunk.from + rows_down * problem.width * pixel_stride : 0;
    machine::copy16(stage + (chunk.to & ~kKeyBit), (is_key ? page_keys : page_values) + offset,
                    inside);
  }
};
