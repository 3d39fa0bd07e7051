// What one call computes. launch.py fills the same structure, field by field (class Problem there).
#pragma once

#include "machine.cuh"

struct Problem {
  const void* query;     // (batch, height, width, key_channels)
  const void* keys;      // num_slots pages of (height, width, key_channels)
  const void* values;    // num_slots pages; element (block, pixel, channel) by the strides below
  const int* slots;      // (batch, table_length); a slot outside 0..num_slots-1 takes no part
  const float* sink;     // one more logit, or null
  void* out;             // (batch, height, width, value_channels)
  float* partial_sums;   // (table_length, batch * height * width, value_channels), or null
  float* partial_stats;  // (table_length, batch * height * width, value_blocks, 2): reference, sum
  i64 key_page_stride;   // all strides in elements
  i64 value_page_stride;
  i64 value_block_stride;
  int value_pixel_stride;
  int batch;
  int table_length;  // T: columns of the slot table
  int num_slots;
  int height;
  int width;
  int window;  // P, odd
  int key_channels;
  int value_channels;
  int value_blocks;  // blocks of up to 64 value channels
};

// Channels of one value block; only the last block may be narrower.
constexpr int kBlockChannels = 64;
