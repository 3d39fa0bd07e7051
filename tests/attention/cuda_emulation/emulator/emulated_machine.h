// The kernels' `machine` on the emulator; machine.cuh includes this in place of the hardware.
//
// Built-ins instead of standard headers: the suite compiles this some forty times.
#pragma once

#include "emulator.h"

// Which GPU generation to play: 800 and above have asynchronous copies, 750 has not.
#ifndef SEGSTREAM_EMULATED_ARCH
#define SEGSTREAM_EMULATED_ARCH 800
#endif
#define SEGSTREAM_ASYNC_COPY (SEGSTREAM_EMULATED_ARCH >= 800)

#define SEGSTREAM_DEVICE inline
#define SEGSTREAM_KERNEL(name, threads, blocks_per_sm)     \
  static void name##_body(const Problem& problem);         \
  extern "C" void name(const void* parameters) {           \
    name##_body(*static_cast<const Problem*>(parameters)); \
  }                                                        \
  static void name##_body(const Problem& problem)

namespace machine {

inline u32 thread_index() { return emulator::thread_index(); }
inline u32 block_x() { return emulator::block_index(0); }
inline u32 block_y() { return emulator::block_index(1); }
inline u32 block_z() { return emulator::block_index(2); }
inline u32 shared_base() { return emulator::kSharedBase; }
inline void block_barrier() { emulator::block_barrier(); }

template <typename T>
T read_global_as(const void* from) {
  T value;
  emulator::read_global(&value, from, sizeof value);
  return value;
}

inline u32 load_global_u32(const void* from) { return read_global_as<u32>(from); }
inline float load_global(const float* from) { return read_global_as<float>(from); }
inline float load_global(const Half* from) {
  return emulator::half_to_float(read_global_as<u16>(from));
}
inline float load_global(const BFloat16* from) {
  return emulator::bfloat16_to_float(read_global_as<u16>(from));
}
inline float load_workspace(const float* from) { return read_global_as<float>(from); }
inline void store_global(float* to, float value) {
  emulator::write_global(to, &value, sizeof value);
}
inline void store_global_u32(void* to, u32 value) {
  emulator::write_global(to, &value, sizeof value);
}

inline float load_shared(u32 from) {
  float value;
  emulator::read_shared(&value, from, sizeof value);
  return value;
}
inline void load_shared4(float (&value)[4], u32 from) {
  emulator::read_shared(value, from, sizeof value);
}
inline void store_shared(u32 to, float value) { emulator::write_shared(to, &value, sizeof value); }

inline void copy16(u32 to, const void* from, bool present) {
#if SEGSTREAM_ASYNC_COPY
  emulator::copy_async(to, from, 16, present ? 16 : 0);
#else
  unsigned char bytes[16] = {};
  if (present) emulator::read_global(bytes, from, sizeof bytes);
  emulator::write_shared(to, bytes, sizeof bytes);
#endif
}
inline void commit_copies() {
#if SEGSTREAM_ASYNC_COPY
  emulator::commit_copies();
#endif
}
template <int Pending>
void wait_copies() {
#if SEGSTREAM_ASYNC_COPY
  emulator::wait_copies(Pending);
#endif
}

inline void load_matrices(u32 (&fragment)[4], u32 row) {
  emulator::load_matrices(fragment, row, 4, false);
}
inline void load_matrices_transposed(u32 (&fragment)[4], u32 row) {
  emulator::load_matrices(fragment, row, 4, true);
}

template <typename Element>
constexpr u32 kPairOfOnes = 0x3c003c00u;
template <>
constexpr u32 kPairOfOnes<BFloat16> = 0x3f803f80u;

template <typename Element>
constexpr emulator::Format kFormat = emulator::Format::kHalf;
template <>
constexpr emulator::Format kFormat<BFloat16> = emulator::Format::kBFloat16;

template <typename Element>
void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const u32 b[2] = {b0, b1};
#if SEGSTREAM_ASYNC_COPY
  emulator::multiply_add(sum, a, b, 16, kFormat<Element>);
#else
  emulator::multiply_add(sum, a, b, 8, kFormat<Element>);
  emulator::multiply_add(sum, a + 2, b + 1, 8, kFormat<Element>);
#endif
}

inline float shuffle_xor(float value, int lane_mask) {
  u32 bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits = emulator::shuffle_xor(bits, lane_mask);
  __builtin_memcpy(&value, &bits, sizeof bits);
  return value;
}
inline bool any_lane(bool condition) { return emulator::any_lane(condition); }

inline float negative_infinity() { return -__builtin_inff(); }
inline float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float larger(float a, float b) { return __builtin_fmaxf(a, b); }
inline float exp2_approximate(float x) { return __builtin_exp2f(x); }

template <typename Element>
u32 pack_pair(float low, float high) {
  if constexpr (kFormat<Element> == emulator::Format::kHalf)
    return emulator::float_to_half(low) | static_cast<u32>(emulator::float_to_half(high)) << 16;
  else
    return emulator::float_to_bfloat16(low) | static_cast<u32>(emulator::float_to_bfloat16(high))
                                                  << 16;
}

}  // namespace machine
