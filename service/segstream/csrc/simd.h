// One vector type per instruction set, and the few operations that the kernel needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SEGSTREAM_INLINE static inline __attribute__((always_inline))

// Keeps a value in a register: the compiler would rather fold its load into every use of it, and
// then the loads, not the multiplications, bound the loop.
#if defined(__x86_64__)
#define SEGSTREAM_IN_REGISTER(value) asm("" : "+v"(value))
#elif defined(__aarch64__)
#define SEGSTREAM_IN_REGISTER(value) asm("" : "+w"(value))
#else
#define SEGSTREAM_IN_REGISTER(value)
#endif

namespace segstream {
namespace SEGSTREAM_ISA {

// kBlockRows x kBlockVectors accumulators, with their operands, fill the register file.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kBlockRows = 6;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kBlockRows = 3;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kBlockRows = 6;
#else
constexpr int kLanes = 4, kBlockRows = 3;
#endif
constexpr int kBlockVectors = 4;
constexpr int kAccumulators = kBlockRows * kBlockVectors;

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVec
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef float Vec4 __attribute__((vector_size(16)));
typedef float UnalignedVec4 __attribute__((vector_size(16), aligned(4), may_alias));

SEGSTREAM_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
SEGSTREAM_INLINE void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }
SEGSTREAM_INLINE Vec broadcast(float x) { return x - Vec{}; }

SEGSTREAM_INLINE Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__x86_64__)
  return _mm_max_ps(a, b);
#elif defined(__aarch64__)
  return vmaxq_f32(a, b);
#else
  return a > b ? a : b;
#endif
}

// a * b + c, rounded once where the instruction set can.
SEGSTREAM_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

SEGSTREAM_INLINE bool any_above(Vec a, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, broadcast(bound), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, broadcast(bound), _CMP_GT_OQ)) != 0;
#else
  bool found = false;
  for (int lane = 0; lane < kLanes; lane++) found |= a[lane] > bound;
  return found;
#endif
}

// 2^x for x <= 127, within 1e-7 of it; 0 for x < -126. Rounds x to an integer by adding 1.5 * 2^23
// (which -ffast-math would optimise away), takes a minimax polynomial of degree 5 for the rest, and
// adds the integer to the exponent. Far below -126 that gives anything, so zeros replace it.
SEGSTREAM_INLINE Vec exp2(Vec x) {
  const Vec rounder = broadcast(12582912.0f);
  const Vec shifted = x + rounder;
  const Vec f = x - (shifted - rounder);
  Vec p = broadcast(1.327647194e-3f);
  p = p * f + broadcast(9.675541334e-3f);
  p = p * f + broadcast(5.550713274e-2f);
  p = p * f + broadcast(2.402211972e-1f);
  p = p * f + broadcast(6.931469671e-1f);
  p = p * f + broadcast(1.000000072f);
  const IntVec is_zero = x < broadcast(-126.0f);
  return (Vec)(((IntVec)p + ((IntVec)shifted << 23)) & ~is_zero);
}

// Transposes the 4 x 4 matrix with rows a, b, c, d.
SEGSTREAM_INLINE void transpose(Vec4& a, Vec4& b, Vec4& c, Vec4& d) {
#if defined(__clang__) || __GNUC__ >= 12
#define SEGSTREAM_SHUFFLE(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
  typedef int32_t Int4 __attribute__((vector_size(16)));
#define SEGSTREAM_SHUFFLE(x, y, i, j, k, l) __builtin_shuffle(x, y, Int4{i, j, k, l})
#endif
  const Vec4 ab_low = SEGSTREAM_SHUFFLE(a, b, 0, 4, 1, 5);
  const Vec4 ab_high = SEGSTREAM_SHUFFLE(a, b, 2, 6, 3, 7);
  const Vec4 cd_low = SEGSTREAM_SHUFFLE(c, d, 0, 4, 1, 5);
  const Vec4 cd_high = SEGSTREAM_SHUFFLE(c, d, 2, 6, 3, 7);
  a = SEGSTREAM_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
  b = SEGSTREAM_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
  c = SEGSTREAM_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
  d = SEGSTREAM_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
#undef SEGSTREAM_SHUFFLE
}

SEGSTREAM_INLINE float half_to_float(uint16_t half) {
  // The exponent is rebiased by a multiplication, which also normalises subnormal halves.
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  float x;
  std::memcpy(&x, &magnitude, sizeof x);
  x *= 5.192296858534828e33f;  // 2^112
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((half & 0x7c00) == 0x7c00) bits = magnitude | 0x7f800000;
  bits |= sign;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

SEGSTREAM_INLINE void widen_half(const uint16_t* from, ptrdiff_t count, float* to) {
  ptrdiff_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(from + i))));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#elif defined(__aarch64__)
  for (; i + 4 <= count; i += 4)
    vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i))));
#endif
  for (; i < count; i++) to[i] = half_to_float(from[i]);
}

SEGSTREAM_INLINE void widen_bfloat(const uint16_t* from, ptrdiff_t count, float* to) {
  for (ptrdiff_t i = 0; i < count; i++) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

}  // namespace SEGSTREAM_ISA
}  // namespace segstream
