// The tiling of the tensor-core kernel, all of it known at compile time.
//
// A warp owns a patch of 4x4 queries: the 16 rows of one mma. The union of their P x P windows
// spans (P + 3)^2 keys; for P = 21 that is 24 x 24, exactly three 8-wide key tiles by 24 rows. A
// thread block owns kPatchesY x kPatchesX patches and streams the rows of their common halo
// through shared memory, two key rows (a stage) at a time.
//
// variants.py repeats `kThreads` and `kSharedBytes`; a test holds the two together.
#pragma once

#include "problem.cuh"

constexpr int kPatch = 4;
constexpr int kPatchQueries = kPatch * kPatch;
constexpr int kWarp = 32;
constexpr int kMatrix = 8;       // rows and columns of an ldmatrix matrix, keys of a key tile
constexpr int kChunkBytes = 16;  // what one copy moves: 8 elements
constexpr int kChunkElements = 8;
constexpr int kRowsPerStage = 2;
constexpr int kValuePixelBytes = 128;  // 64 channels; fewer leave a gap, so that the swizzle holds
constexpr int kMmaDepth = 16;
// Up to here a warp keeps its queries in registers; beyond, in shared memory.
constexpr int kMaxRegisterQueryChannels = 16;

template <int Window, int KeyChannels, int ValueChannels>
struct Tile {
  static_assert(Window % 2 == 1 && Window <= 29, "windows are odd, and at most 29 here");
  static_assert(KeyChannels % kMmaDepth == 0 && KeyChannels <= 128, "whole mma steps of keys");
  static_assert(ValueChannels % kMmaDepth == 0 && ValueChannels <= 64, "one block of values");

  static constexpr bool kQueryInShared = KeyChannels > kMaxRegisterQueryChannels;
  static constexpr int kRadius = Window / 2;
  static constexpr int kSpan = Window + kPatch - 1;  // key rows and columns a patch sees; even
  static constexpr int kKeyTiles = (kSpan + kMatrix - 1) / kMatrix;

  static constexpr int kPatchesY = 2;
  static constexpr int kPatchesX = kQueryInShared ? 2 : 4;
  static constexpr int kWarps = kPatchesY * kPatchesX;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kBlocksPerSm = 512 / kThreads;  // caps registers at 128
  static constexpr int kQueriesY = kPatch * kPatchesY;
  static constexpr int kQueriesX = kPatch * kPatchesX;

  static constexpr int kHaloY = kQueriesY - kPatch + kSpan;
  static constexpr int kHaloX = kQueriesX - kPatch + kMatrix * kKeyTiles;
  static constexpr int kStagesPerPage = kHaloY / kRowsPerStage;

  // A key row is stored as KeyChannels / 8 planes of kHaloX chunks, a value row as kHaloX pixels.
  static constexpr int kKeyChunks = KeyChannels / kChunkElements;
  static constexpr int kValueChunks = ValueChannels / kChunkElements;
  static constexpr int kKeyRowBytes = kHaloX * kKeyChunks * kChunkBytes;
  static constexpr int kRowBytes = kKeyRowBytes + kHaloX * kValuePixelBytes;
  static constexpr int kStageBytes = kRowsPerStage * kRowBytes;
  static constexpr int kChunksPerPixel = kKeyChunks + kValueChunks;
  static constexpr int kChunksPerStage = kRowsPerStage * kHaloX * kChunksPerPixel;
  static constexpr int kChunksPerThread = (kChunksPerStage + kThreads - 1) / kThreads;

  static constexpr int kRing = SEGSTREAM_ASYNC_COPY && !kQueryInShared ? 3 : 2;
  static constexpr int kPatchQueryBytes = kQueryInShared ? kPatchQueries * KeyChannels * 2 : 0;
  static constexpr int kSharedBytes = kRing * kStageBytes + kWarps * kPatchQueryBytes;

  // The image coordinates of this thread block's first query.
  static SEGSTREAM_DEVICE int tile_row(const Problem& problem) {
    return static_cast<int>(machine::block_x()) / tiles_x(problem) * kQueriesY;
  }
  static SEGSTREAM_DEVICE int tile_column(const Problem& problem) {
    return static_cast<int>(machine::block_x()) % tiles_x(problem) * kQueriesX;
  }
  static SEGSTREAM_DEVICE int tiles_x(const Problem& problem) {
    return (problem.width + kQueriesX - 1) / kQueriesX;
  }
};
