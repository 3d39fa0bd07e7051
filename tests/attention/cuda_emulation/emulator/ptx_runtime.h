// What C++ translated from PTX is written in: registers are raw bits, instructions give them types.
#pragma once

#include <cstdint>
#include <type_traits>

#include "emulator.h"

namespace ptx {

using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using f32 = float;

// The bits of a register, or of a constant, as T.
template <typename T, typename Bits>
T as(Bits bits) {
  if constexpr (std::is_same_v<T, f32>) {
    const auto word = static_cast<u32>(bits);
    f32 value;
    __builtin_memcpy(&value, &word, sizeof value);
    return value;
  } else {
    return static_cast<T>(bits);
  }
}

template <typename Register, typename T>
void set(Register& to, T value) {
  if constexpr (std::is_same_v<T, f32>) {
    u32 word;
    __builtin_memcpy(&word, &value, sizeof word);
    to = word;
  } else if constexpr (std::is_same_v<T, bool>) {
    to = value;
  } else {
    to = static_cast<Register>(static_cast<std::make_unsigned_t<T>>(value));
  }
}

// Arithmetic wraps around, and shifts by the width or more give what is left: nothing, or signs.
template <typename T>
using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, s32, u32>,
                                std::conditional_t<std::is_signed_v<T>, s64, u64>>;
template <typename T>
T add(T a, T b) {
  if constexpr (std::is_same_v<T, f32>)
    return a + b;
  else
    return static_cast<T>(static_cast<u64>(a) + static_cast<u64>(b));
}
template <typename T>
T sub(T a, T b) {
  if constexpr (std::is_same_v<T, f32>)
    return a - b;
  else
    return static_cast<T>(static_cast<u64>(a) - static_cast<u64>(b));
}
template <typename T>
T mul(T a, T b) {
  if constexpr (std::is_same_v<T, f32>)
    return a * b;
  else
    return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
}
template <typename T>
Wide<T> mul_wide(T a, T b) {
  return static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b);
}
template <typename T>
T mul_hi(T a, T b) {
  return static_cast<T>(mul_wide(a, b) >> (8 * sizeof(T)));
}
template <typename T>
T div(T a, T b) {
  return a / b;
}
template <typename T>
T rem(T a, T b) {
  return a % b;
}
template <typename T>
T shl(T a, u32 by) {
  return by >= 8 * sizeof(T) ? 0 : static_cast<T>(static_cast<u64>(a) << by);
}
template <typename T>
T shr(T a, u32 by) {
  if (by >= 8 * sizeof(T)) return std::is_signed_v<T> && a < 0 ? static_cast<T>(-1) : 0;
  return static_cast<T>(a >> by);
}
template <typename T>
T bfe(T a, u32 from, u32 bits) {
  return shr<T>(shl<T>(a, 8 * sizeof(T) - from - bits), 8 * sizeof(T) - bits);
}
template <typename T>
T larger(T a, T b) {
  if constexpr (std::is_same_v<T, f32>)
    return __builtin_fmaxf(a, b);
  else
    return a < b ? b : a;
}
template <typename T>
T smaller(T a, T b) {
  if constexpr (std::is_same_v<T, f32>)
    return __builtin_fminf(a, b);
  else
    return b < a ? b : a;
}
template <typename T>
bool unordered(T a, T b) {
  if constexpr (std::is_same_v<T, f32>)
    return __builtin_isnan(a) || __builtin_isnan(b);
  else
    return false;
}

inline void require_whole_warp(u32 members) {
  if (members != 0xffffffffu) emulator::fail("a collective of part of a warp: not modelled");
}

template <typename T>
void load_global(T* to, int count, u64 from) {
  emulator::read_global(to, reinterpret_cast<const void*>(from), count * sizeof(T));
}
template <typename T>
void store_global(u64 to, const T* from, int count) {
  emulator::write_global(reinterpret_cast<void*>(to), from, count * sizeof(T));
}
template <typename T>
void load_shared(T* to, int count, u64 from) {
  emulator::read_shared(to, static_cast<u32>(from), count * sizeof(T));
}
template <typename T>
void store_shared(u64 to, const T* from, int count) {
  emulator::write_shared(static_cast<u32>(to), from, count * sizeof(T));
}
template <typename T>
void load_parameter(T* to, int count, const void* parameters, int offset) {
  __builtin_memcpy(to, static_cast<const char*>(parameters) + offset, count * sizeof(T));
}

}  // namespace ptx
