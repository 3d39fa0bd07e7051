// The machine under the kernels: every hardware instruction they use, one short wrapper each.
//
// The kernels include no other header, so that NVRTC compiles them without a toolkit. Shared
// memory is addressed by 32-bit shared-window addresses throughout. On a host emulator
// (SEGSTREAM_EMULATOR) the same names come from emulated_machine.h instead.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;

struct Half {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};

#ifdef SEGSTREAM_EMULATOR
#include "emulated_machine.h"
#else

// Asynchronous copies and the 16-deep mma came with sm_80; sm_75 does both in smaller steps.
#if __CUDA_ARCH__ >= 800
#define SEGSTREAM_ASYNC_COPY 1
#else
#define SEGSTREAM_ASYNC_COPY 0
#endif

#define SEGSTREAM_DEVICE __device__ __forceinline__
#define SEGSTREAM_KERNEL(name, threads, blocks_per_sm) \
  extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm) name(const Problem problem)

extern __shared__ __align__(128) unsigned char dynamic_shared[];

namespace machine {

SEGSTREAM_DEVICE u32 thread_index() { return threadIdx.x; }
SEGSTREAM_DEVICE u32 block_x() { return blockIdx.x; }
SEGSTREAM_DEVICE u32 block_y() { return blockIdx.y; }
SEGSTREAM_DEVICE u32 block_z() { return blockIdx.z; }

SEGSTREAM_DEVICE u32 shared_base() {
  return static_cast<u32>(__cvta_generic_to_shared(dynamic_shared));
}

SEGSTREAM_DEVICE void block_barrier() { __syncthreads(); }

// ---- global memory ----------------------------------------------------------------------------

SEGSTREAM_DEVICE u32 load_global_u32(const void* from) {
  u32 value;
  asm("ld.global.nc.b32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}

SEGSTREAM_DEVICE float load_global(const float* from) {
  float value;
  asm("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}

SEGSTREAM_DEVICE float load_global(const Half* from) {
  u16 bits;
  float value;
  asm("ld.global.nc.b16 %0, [%1];" : "=h"(bits) : "l"(from));
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

SEGSTREAM_DEVICE float load_global(const BFloat16* from) {
  u16 bits;
  asm("ld.global.nc.b16 %0, [%1];" : "=h"(bits) : "l"(from));
  return __uint_as_float(static_cast<u32>(bits) << 16);
}

// A plain (not read-only) load, for what an earlier kernel of the same call wrote.
SEGSTREAM_DEVICE float load_workspace(const float* from) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}

SEGSTREAM_DEVICE void store_global(float* to, float value) {
  asm volatile("st.global.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
}

SEGSTREAM_DEVICE void store_global_u32(void* to, u32 value) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// ---- shared memory ----------------------------------------------------------------------------

SEGSTREAM_DEVICE float load_shared(u32 from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}

SEGSTREAM_DEVICE void load_shared4(float (&value)[4], u32 from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value[0]), "=f"(value[1]), "=f"(value[2]), "=f"(value[3])
               : "r"(from)
               : "memory");
}

SEGSTREAM_DEVICE void store_shared(u32 to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

// Copies 16 bytes from global to shared memory, or writes 16 zero bytes where `present` is false.
// Visible to the copying thread after wait_copies, to the others after a block barrier as well.
SEGSTREAM_DEVICE void copy16(u32 to, const void* from, bool present) {
#if SEGSTREAM_ASYNC_COPY
  const u32 source_bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(source_bytes)
               : "memory");
#else
  u32 a = 0, b = 0, c = 0, d = 0;
  if (present)
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "l"(from));
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
#endif
}

SEGSTREAM_DEVICE void commit_copies() {
#if SEGSTREAM_ASYNC_COPY
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `Pending` committed groups of this thread's copies are still under way.
template <int Pending>
SEGSTREAM_DEVICE void wait_copies() {
#if SEGSTREAM_ASYNC_COPY
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

// ---- warp collectives -------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8 and
// receives elements (lane / 4, 2 * (lane % 4) + {0, 1}) of each.
SEGSTREAM_DEVICE void load_matrices(u32 (&fragment)[4], u32 row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row)
               : "memory");
}

// The same with each matrix transposed on the way.
SEGSTREAM_DEVICE void load_matrices_transposed(u32 (&fragment)[4], u32 row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row)
               : "memory");
}

// sum (16x8, float) += a (16x16) * b (16x8), fragments as in the PTX manual, mma.m16n8k16.
template <typename Element>
SEGSTREAM_DEVICE void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
SEGSTREAM_DEVICE void multiply_add<Half>(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if SEGSTREAM_ASYNC_COPY
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#if SEGSTREAM_ASYNC_COPY
template <>
SEGSTREAM_DEVICE void multiply_add<BFloat16>(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Two 16-bit ones in a word.
template <typename Element>
constexpr u32 kPairOfOnes = 0x3c003c00u;
template <>
constexpr u32 kPairOfOnes<BFloat16> = 0x3f803f80u;

SEGSTREAM_DEVICE float shuffle_xor(float value, int lane_mask) {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;"
               : "=f"(other)
               : "f"(value), "r"(lane_mask));
  return other;
}

SEGSTREAM_DEVICE bool any_lane(bool condition) { return __any_sync(0xffffffffu, condition); }

// ---- arithmetic -------------------------------------------------------------------------------

SEGSTREAM_DEVICE float negative_infinity() { return __uint_as_float(0xff800000u); }

SEGSTREAM_DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

SEGSTREAM_DEVICE float larger(float a, float b) { return fmaxf(a, b); }

SEGSTREAM_DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats rounded to 16 bits each, `low` in the lower half of the word.
template <typename Element>
SEGSTREAM_DEVICE u32 pack_pair(float low, float high);

template <>
SEGSTREAM_DEVICE u32 pack_pair<Half>(float low, float high) {
  u32 packed;
#if SEGSTREAM_ASYNC_COPY
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(low), "f"(high));
#else
  asm("{\n\t.reg .b16 l, h;\n\tcvt.rn.f16.f32 l, %1;\n\tcvt.rn.f16.f32 h, %2;\n\t"
      "mov.b32 %0, {l, h};\n\t}"
      : "=r"(packed)
      : "f"(low), "f"(high));
#endif
  return packed;
}

template <>
SEGSTREAM_DEVICE u32 pack_pair<BFloat16>(float low, float high) {
  u32 packed;
#if SEGSTREAM_ASYNC_COPY
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(low), "f"(high));
#else
  // Round to nearest even by hand; finite values and infinities only need this, NaN stays NaN.
  auto round = [](float x) {
    const u32 bits = __float_as_uint(x);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return is_nan ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  };
  packed = round(low) | (round(high) << 16);
#endif
  return packed;
}

}  // namespace machine

#endif  // SEGSTREAM_EMULATOR
