// C ABI of the convolution layers for CPUs. Mirrored field by field in ../library.py.
//
// Maps are float32, rows of pixels with the channels of a pixel side by side (h, w, C). Channels
// come in groups of 16. A layer holds its weights, packed for one instruction set; a step is one
// use of a layer, with the memory that it reads and writes.
#pragma once

#include <cstdint>

#include "isa.h"

extern "C" {

enum SegstreamLayerKind : int32_t {
  kStem = 0,    // uint8 or float frame to half its size: 3x3 stride 2 and max-pool, ReLU
  kDown = 1,    // the same on a map
  kPair = 2,    // 3x1, ReLU, 1x3, residual or none, ReLU
  kHeads = 3,   // 3x3, each group of channels to a place of its own, ReLU where asked
  kFusion = 4,  // 3x3 on two joined maps, gates, sum, residual or none, ReLU
  kUp = 5,      // transposed 3x3 stride 2, ReLU
  kLabels = 6,  // transposed 2x2 stride 2 to the best class of each pixel, or to logits
  kAffine = 7,  // scale and shift of each channel, ReLU
};

enum SegstreamElement : int32_t { kFloat32 = 0, kUint8 = 1 };

// What a layer is made of. Weights are as torch has them, batch norms folded in:
//   kStem, kDown  weights[0] (n, in, 3, 3), biases[0] (n); n = out - in
//                 weights[1], biases[1] (in): scale and shift after the pool
//   kPair         weights[0] (out, in, 3), weights[1] likewise; in = out
//   kHeads        weights[0] (out, in, 3, 3)
//   kFusion       weights[0], [1] (out, in / 2, 3, 3) of the first and second half of the input,
//                 weights[2], [3] (out, in, 3, 3) of their gates, shift (out)
//   kUp           weights[0] (in, out, 3, 3)
//   kLabels       weights[0] (in, out, 2, 2)
//   kAffine       weights[0], biases[0] (in)
struct SegstreamLayerSpec {
  const double* weights[4];
  const double* biases[4];
  const double* shift;
  int32_t kind, isa;
  int32_t in_channels, out_channels;
  int32_t dilation;  // kPair
  int32_t tile;      // kPair, kHeads, kFusion: outputs of a Winograd tile; 1 in kPair: none
};

// Where a group of 16 channels goes.
struct SegstreamGroup {
  float* data;
  int32_t pixel_stride;
  int32_t has_relu;
};

struct SegstreamLayer;

struct SegstreamStep {
  const SegstreamLayer* layer;
  const void* in;
  const float* residual;  // kPair, kFusion; null = none
  void* out;
  const SegstreamGroup* groups;  // kHeads
  uint8_t* confidence;  // kLabels with labels: softmax of the best class, 255 = 1; null = none
  // kStem: strides of `in` in elements; kAffine: pixel strides of `in` and, in row_stride, `out`.
  int64_t row_stride, pixel_stride, channel_stride;
  int32_t height, width;  // of the map that is read; kStem: multiples of 8
  // kStem: what of it is there, the rest repeats the border; kLabels: what of the output is wanted
  int32_t frame_height, frame_width;
  int32_t element;      // kStem: of `in`; kLabels: kUint8 = labels, kFloat32 = logits
  int32_t num_classes;  // kLabels: channels that take part
};

int32_t segstream_network_abi();
int32_t segstream_network_isa();  // the strongest usable SegstreamIsa
SegstreamLayer* segstream_network_layer(const SegstreamLayerSpec* spec);  // null: no memory
void segstream_network_free(SegstreamLayer* layer);
// Floats of scratch memory that each thread needs for these steps.
int64_t segstream_network_scratch(const SegstreamStep* steps, int32_t count);
void segstream_network_run(const SegstreamStep* steps, int32_t count, int32_t num_threads,
                           float* scratch, int64_t scratch_floats);
}
