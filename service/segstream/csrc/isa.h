// The instruction sets that kernels are compiled for, and the choice among them at run time.
// Included by the file that dispatches, which is compiled for no set in particular.
#pragma once

#include <cstdint>

extern "C" {
// Weakest first. kBestIsa asks for the strongest one that the processor has.
enum SegstreamIsa : int32_t { kBestIsa = 0, kBaseline = 1, kX86V3 = 2, kX86V4 = 3 };
}

#define SEGSTREAM_EXPORT extern "C" __attribute__((visibility("default")))

#if defined(SEGSTREAM_HAS_X86_V3)
#define SEGSTREAM_IF_X86_V3(...) __VA_ARGS__
#else
#define SEGSTREAM_IF_X86_V3(...)
#endif
#if defined(SEGSTREAM_HAS_X86_V4)
#define SEGSTREAM_IF_X86_V4(...) __VA_ARGS__
#else
#define SEGSTREAM_IF_X86_V4(...)
#endif

// Declares the same functions in the namespace of every compiled instruction set.
#define SEGSTREAM_DECLARE(...)                             \
  namespace segstream {                                    \
  namespace baseline {                                     \
  __VA_ARGS__                                              \
  }                                                        \
  SEGSTREAM_IF_X86_V3(namespace x86_v3 { __VA_ARGS__ })    \
  SEGSTREAM_IF_X86_V4(namespace x86_v4 { __VA_ARGS__ })    \
  }

// Returns what the function of an instruction set gives.
#define SEGSTREAM_DISPATCH(isa, ...)                                        \
  switch (isa) {                                                            \
    SEGSTREAM_IF_X86_V4(case kX86V4: return segstream::x86_v4::__VA_ARGS__;) \
    SEGSTREAM_IF_X86_V3(case kX86V3: return segstream::x86_v3::__VA_ARGS__;) \
    default:                                                                \
      return segstream::baseline::__VA_ARGS__;                              \
  }

namespace segstream {

// These name every generation of processors that has the level; compilers do not know all of its
// features by name.
inline bool has_x86_v3() {
#if defined(SEGSTREAM_HAS_X86_V3)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

inline bool has_x86_v4() {
#if defined(SEGSTREAM_HAS_X86_V4)
  return has_x86_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

inline SegstreamIsa best_isa() {
  static const SegstreamIsa best = has_x86_v4() ? kX86V4 : has_x86_v3() ? kX86V3 : kBaseline;
  return best;
}

// The wanted instruction set, or the best one below it.
inline int32_t usable_isa(int32_t wanted) {
  const int32_t best = best_isa();
  return wanted == kBestIsa || wanted > best ? best : wanted;
}

}  // namespace segstream
