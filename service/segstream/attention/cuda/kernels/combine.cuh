// Joins the parts that a split tensor-core kernel left, one per column of the slot table.
//
// One thread per pair of channels. Parts are taken in table order, and an absent one changes
// nothing, so the result does not depend on how many columns the table has.
#pragma once

#include "softmax.cuh"

constexpr int kCombineThreads = 256;

template <typename Element>
SEGSTREAM_DEVICE void combine_parts(const Problem& problem) {
  const i64 index =
      static_cast<i64>(machine::block_x()) * kCombineThreads + machine::thread_index();
  const int pairs = problem.value_channels / 2;
  const i64 pixels = static_cast<i64>(problem.batch) * problem.height * problem.width;
  if (index >= pixels * pairs) return;
  const i64 pixel = index / pairs;
  const int channel = static_cast<int>(index % pairs) * 2;

  const float* stats =
      problem.partial_stats + 2 * (pixel * problem.value_blocks + channel / kBlockChannels);
  const i64 stats_stride = 2 * pixels * problem.value_blocks;
  const float* sums = problem.partial_sums + pixel * problem.value_channels + channel;
  const i64 sums_stride = pixels * problem.value_channels;

  SoftmaxMerge merge;
  for (int part = 0; part < problem.table_length; part++)
    merge.see(machine::load_workspace(stats + part * stats_stride));
  if (problem.sink) merge.see(machine::load_global(problem.sink));

  float low = 0.0f, high = 0.0f;
  for (int part = 0; part < problem.table_length; part++) {
    const float part_sum = machine::load_workspace(stats + part * stats_stride + 1);
    if (part_sum == 0.0f) continue;
    const float factor = merge.add(machine::load_workspace(stats + part * stats_stride), part_sum);
    const float* part_sums = sums + part * sums_stride;
    low = machine::fused_multiply_add(factor, machine::load_workspace(part_sums), low);
    high = machine::fused_multiply_add(factor, machine::load_workspace(part_sums + 1), high);
  }
  if (problem.sink) merge.add(machine::load_global(problem.sink), 1.0f);
  machine::store_global_u32(
      static_cast<Element*>(problem.out) + pixel * problem.value_channels + channel,
      machine::pack_pair<Element>(merge.normalise(low), merge.normalise(high)));
}

#define SEGSTREAM_COMBINE(name, Element) \
  SEGSTREAM_KERNEL(name, kCombineThreads, 1) { combine_parts<Element>(problem); }
