// Whole numbers.
#pragma once

namespace segstream {
namespace SEGSTREAM_ISA {

static inline __attribute__((always_inline)) int minimum(int a, int b) { return a < b ? a : b; }
static inline __attribute__((always_inline)) int maximum(int a, int b) { return a > b ? a : b; }
static inline __attribute__((always_inline)) int ceil_div(int a, int b) { return (a + b - 1) / b; }
static inline __attribute__((always_inline)) int round_up(int a, int b) {
  return ceil_div(a, b) * b;
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
