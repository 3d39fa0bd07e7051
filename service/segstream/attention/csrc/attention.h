// C ABI of the local memory attention for CPUs. Mirrored field by field in ../cpu.py.
//
// Sizes: B batch items, T slots per item, S pages, h x w pixels, Dk key channels, Dv value
// channels, P window size. Every tensor is row-major; strides count elements.
#pragma once

#include <cstdint>

#include "isa.h"

extern "C" {

enum SegstreamElement : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

enum SegstreamStatus : int32_t { kOk = 0, kSlotOutOfRange = 1, kOutOfMemory = 2 };

// Pages of per-pixel vectors. Channel c of a pixel lies in block c / 64 at place c % 64.
struct SegstreamPool {
  const void* data;
  int64_t page_stride;
  int64_t block_stride;
  int64_t row_stride;
  int64_t pixel_stride;
  int32_t element;
};

struct SegstreamProblem {
  const float* query;    // (B, h, w, Dk), contiguous
  const int32_t* slots;  // (B, T), contiguous; -1 = absent
  const float* sink;     // one logit, or null
  SegstreamPool keys;
  SegstreamPool values;
  int32_t batch, memory_length, num_pages, height, width;
  int32_t key_channels, value_channels, window_size;
  int32_t num_threads, isa;
};

struct SegstreamGradients {
  const float* out;       // (B, h, w, Dv), what the forward pass gave
  const float* grad_out;  // (B, h, w, Dv)
  float* grad_query;      // (B, h, w, Dk) or null; the gradients are contiguous and start as zeros
  float* grad_keys;       // (S, h, w, Dk) or null
  float* grad_values;     // laid out as the values, with these strides, or null
  float* grad_sink;       // one element or null
  int64_t value_page_stride, value_block_stride, value_row_stride, value_pixel_stride;
};

int32_t segstream_attention_abi();
int32_t segstream_attention_isa();  // the strongest usable SegstreamIsa
int32_t segstream_attention_forward(const SegstreamProblem* problem, float* out);
int32_t segstream_attention_backward(const SegstreamProblem* problem,
                                     const SegstreamGradients* gradients);
}
