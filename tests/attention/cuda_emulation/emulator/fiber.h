// Switching between stacks: a few instructions on x86-64, ucontext elsewhere.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;  // reserved; the system backs what is used

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (stack_) munmap(stack_, kStackBytes);
  }

  // Makes the next switch to this fiber call `entry`, which must never return.
  void prepare(void (*entry)()) {
    if (!stack_) {
      void* memory =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      stack_ = static_cast<char*>(memory);
    }
#if defined(__x86_64__)
    auto* top = reinterpret_cast<uint64_t*>(stack_ + kStackBytes - 64);
    *--top = 0;  // where a caller's return address would be
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; i++) *--top = 0;  // the callee-saved registers
    pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    makecontext(&context_, entry, 0);
#endif
  }

  static void switch_to(Fiber& from, Fiber& to);

 private:
  char* stack_ = nullptr;
#if defined(__x86_64__)
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

#if defined(__x86_64__)
extern "C" void fiber_switch_stack(void** save, void* load);
asm(R"(
.text
.local fiber_switch_stack
.type fiber_switch_stack, @function
fiber_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline void Fiber::switch_to(Fiber& from, Fiber& to) {
  fiber_switch_stack(&from.pointer_, to.pointer_);
}
#else
inline void Fiber::switch_to(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }
#endif
