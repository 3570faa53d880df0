// Threads that run until they say so: one stack each, switched by hand on x86-64 (a few nanoseconds), by ucontext elsewhere.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace vtkernels::emulator {

class Fiber {
 public:
  using Body = void (*)(void* context, int index);
  static constexpr size_t stack_bytes = 64 * 1024 + 576;  // no power of two: the tops of the stacks share a cache

  // `stack` has stack_bytes bytes. The body must not return; it ends with a last yield().
  void prepare(char* stack, Body body, void* context, int index) {
    body_ = body;
    context_ = context;
    index_ = index;
#if defined(__x86_64__)
    auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + stack_bytes) & ~uintptr_t{15});
    *--top = reinterpret_cast<void*>(&Fiber::enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    own_ = top;
    own_[0] = reinterpret_cast<void*>(this);  // popped into r15, then r14
    own_[1] = reinterpret_cast<void*>(&Fiber::run);
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack;
    own_.uc_stack.ss_size = stack_bytes;
    const auto self = reinterpret_cast<uint64_t>(this);
    makecontext(&own_, reinterpret_cast<void (*)()>(&Fiber::enter_halves), 2, static_cast<uint32_t>(self),
                static_cast<uint32_t>(self >> 32));
#endif
  }

  void resume() { swap(&caller_, &own_); }
  void yield() { swap(&own_, &caller_); }

 private:
#if defined(__x86_64__)
  using Context = void**;

  // Saves the registers that a call keeps, changes stacks, restores them, and returns into the other side.
  __attribute__((naked, noinline)) static void exchange(Context*, Context*) {
    asm volatile(
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
  }
  static void swap(Context* from, Context* to) { exchange(from, to); }

  // The first switch lands here with the fiber in r15 and what to call in r14.
  __attribute__((naked, noinline)) static void enter() { asm volatile("movq %r15, %rdi\n callq *%r14\n"); }
#else
  using Context = ucontext_t;
  static void swap(Context* from, Context* to) { swapcontext(from, to); }
  static void enter_halves(uint32_t low, uint32_t high) {
    run(reinterpret_cast<Fiber*>(static_cast<uint64_t>(high) << 32 | low));
  }
#endif

  static void run(Fiber* self) {
    self->body_(self->context_, self->index_);
    std::abort();
  }

  Context own_{}, caller_{};
  Body body_ = nullptr;
  void* context_ = nullptr;
  int index_ = 0;
};

}  // namespace vtkernels::emulator
