// The matrix multiply under all layers.
//
// Each sum runs over its products in one order, tap by tap and channel by channel, whatever the
// block it is computed in: no tiling, thread or instruction set that has fused multiply-adds
// changes a bit.
#pragma once

#include <type_traits>

#include "integers.h"
#include "parallel.h"
#include "simd.h"

namespace segstream {
namespace SEGSTREAM_ISA {

constexpr int kGroup = 16;  // channels come in groups

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMostSums = 24;
#else
constexpr int kMostSums = 12;
#endif
constexpr int kMostVectors = 2;

// k values of every row, side by side, and the k x panel weights that they meet.
struct Tap {
  const float* a;
  const float* b;
  int k;
};

// epilogue(row, sums) takes the sums of one row, kVectors vectors.
template <int kRows, int kVectors, typename Epilogue>
static __attribute__((noinline)) void multiply_block(const Tap* taps, int num_taps,
                                                     ptrdiff_t offset, ptrdiff_t stride,
                                                     int first_row, const Epilogue& epilogue) {
  constexpr int kBases = (kRows + 2) / 3;
  Vec sum[kRows][kVectors] = {};
  for (int t = 0; t < num_taps; t++) {
    // Three rows are addressed from one base, so that the bases fit into registers.
    const float* base[kBases];
#pragma GCC unroll 8
    for (int i = 0; i < kBases; i++) base[i] = taps[t].a + offset + 3 * i * stride;
    const float* b = taps[t].b;
    for (int k = taps[t].k; k > 0; k--) {
      Vec w[kVectors];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; j++) {
        w[j] = load(b + j * kLanes);
        SEGSTREAM_IN_REGISTER(w[j]);
      }
#pragma GCC unroll 24
      for (int r = 0; r < kRows; r++) {
        Vec x = broadcast(base[r / 3][(r % 3) * stride]);
        if (kVectors > 1) SEGSTREAM_IN_REGISTER(x);
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; j++) sum[r][j] = multiply_add(x, w[j], sum[r][j]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kBases; i++) base[i]++;
      b += kVectors * kLanes;
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < kRows; r++) epilogue(first_row + r, sum[r]);
}

template <int kRows, int kVectors, typename Epilogue>
static void multiply_rows(int rows, const Tap* taps, int num_taps, ptrdiff_t offset,
                          ptrdiff_t stride, int first_row, const Epilogue& epilogue) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return multiply_rows<kRows - 1, kVectors>(rows, taps, num_taps, offset, stride, first_row,
                                                epilogue);
  }
  multiply_block<kRows, kVectors>(taps, num_taps, offset, stride, first_row, epilogue);
}

// Rows 0 .. rows - 1 of the taps, `stride` floats apart, times one panel of weights.
template <int kVectors, typename Epilogue>
static void multiply(int rows, const Tap* taps, int num_taps, ptrdiff_t stride,
                     const Epilogue& epilogue) {
  constexpr int kRows = kMostSums / kVectors;
  const int blocks = (rows + kRows - 1) / kRows;
  for (int i = 0, row = 0; i < blocks; i++) {
    const int end = static_cast<int>(static_cast<int64_t>(rows) * (i + 1) / blocks);
    multiply_rows<kRows, kVectors>(end - row, taps, num_taps, row * stride, stride, row, epilogue);
    row = end;
  }
}

// Vectors of a panel: as many output channels as one block of the multiply has.
SEGSTREAM_INLINE int panel_vectors(int channels) {
  return channels % (kMostVectors * kLanes) ? 1 : kMostVectors;
}

// Calls body with the number of vectors of a panel as a constant.
template <typename Body>
SEGSTREAM_INLINE void with_vectors(int vectors, const Body& body) {
  if (vectors == 2)
    body(std::integral_constant<int, 2>());
  else
    body(std::integral_constant<int, 1>());
}

// A matrix of `depth` x `channels` weights, for the multiply: panels of `width` channels.
class Weights {
 public:
  // value(k, n) in double.
  template <typename Value>
  Weights(int depth, int channels, const Value& value)
      : vectors(panel_vectors(channels)),
        width(vectors * kLanes),
        depth_(depth),
        memory_(static_cast<ptrdiff_t>(depth) * channels, 1) {
    for (int n = 0; n < channels; n++)
      for (int k = 0; k < depth; k++)
        memory_.piece(0)[(static_cast<ptrdiff_t>(n / width) * depth + k) * width + n % width] =
            static_cast<float>(value(k, n));
  }
  const float* at(int channel, int k) const {
    return memory_.piece(0) + (static_cast<ptrdiff_t>(channel / width) * depth_ + k) * width;
  }

  const int vectors, width;

 private:
  const int depth_;
  const Memory memory_;
};

// `count` numbers, filled up with zeros to whole groups.
class Numbers {
 public:
  Numbers(const double* from, int count) : memory_(round_up(count, kGroup), 1) {
    for (int i = 0; i < round_up(count, kGroup); i++)
      memory_.piece(0)[i] = i < count ? static_cast<float>(from[i]) : 0.0f;
  }
  const float* at(int i) const { return memory_.piece(0) + i; }

 private:
  const Memory memory_;
};

SEGSTREAM_INLINE Vec relu(Vec x) { return maximum(x, Vec{}); }

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
