// From torch tensors to the kernels' raw arrays, and from torch's thread pool and allocator to theirs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include <optional>
#include <string>

#include "checks.h"
#include "namespace.h"
#include "vtkernels/cpu.h"

// STABLE_TORCH_LIBRARY_IMPL makes a string of the namespace: expand the macro first.
#define VTKERNELS_LIBRARY_IMPL(key, m) VTKERNELS_LIBRARY_IMPL_IN(VTKERNELS_NAMESPACE, key, m)
#define VTKERNELS_LIBRARY_IMPL_IN(space, key, m) STABLE_TORCH_LIBRARY_IMPL(space, key, m)

namespace vtkernels::torch_ops {

inline DType dtype(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Double: return DType::float64;
    default: return DType::float32;
  }
}

template <int Rank>
Array<Rank> array(const Tensor& x) {
  Array<Rank> a{x.const_data_ptr(), dtype(x), {}, {}};
  for (int r = 0; r < Rank; ++r) {
    a.size[r] = x.size(r);
    a.stride[r] = x.stride(r);
  }
  return a;
}

template <int Rank>
Array<Rank> array(const std::optional<Tensor>& x) {
  return x ? array<Rank>(*x) : Array<Rank>{};
}

template <class T>
Output<T> output(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), {x.stride(0), x.stride(1)}};
}

inline Output<const int64_t> index_rows(const Tensor& x) {
  return {static_cast<const int64_t*>(x.const_data_ptr()), {x.stride(0), x.stride(1)}};
}

inline cpu::Rows rows(const Tensor& x) {
  return {static_cast<char*>(x.mutable_data_ptr()),
          static_cast<int64_t>(x.element_size()),
          {x.stride(0), x.stride(1), x.stride(2)}};
}

inline Lengths lengths(const std::optional<Tensor>& x) {
  return x ? Lengths{x->const_data_ptr(), x->scalar_type() == ScalarType::Long, x->stride(0)} : Lengths{nullptr, false, 0};
}

inline Combine combine(const std::string& name) { return name == "add" ? Combine::add : Combine::multiply; }

// ThreadSanitizer sees neither the fork nor the join of torch's threads: neither torch nor OpenMP is compiled for it.
template <class T>
inline void tsan_acquire([[maybe_unused]] T* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(const_cast<void*>(static_cast<const void*>(object)));
#endif
}
template <class T>
inline void tsan_release([[maybe_unused]] T* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(const_cast<void*>(static_cast<const void*>(object)));
#endif
}

// A range of workers on one thread of torch's pool. The address of one member stands for the fork, that of the other for the
// join.
struct Workers {
  void (*body)(void*, int64_t);
  void* context;

  void operator()(int64_t begin, int64_t end) const {
    tsan_acquire(&body);
    for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
    tsan_release(&context);
  }
};

inline Parallel parallel() {
  const auto run = [](int64_t count, void (*body)(void*, int64_t), void* context) {
    const Workers workers{body, context};
    tsan_release(&workers.body);
    torch::stable::parallel_for(0, count, 1, workers);
    tsan_acquire(&workers.context);
  };
  return {static_cast<int64_t>(torch::stable::get_num_threads()), run};
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

// Scratch: a number of floats, or as many of them as images run at the same time.
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t floats) : memory_(empty(like, {floats}, ScalarType::Float)) {}
  Scratch(const Tensor& like, int64_t floats, int64_t images, const Parallel& parallel)
      : Scratch(like, floats * std::max<int64_t>(1, std::min(images, parallel.threads))) {}
  float* data() const { return static_cast<float*>(memory_.mutable_data_ptr()); }

 private:
  Tensor memory_;
};

}  // namespace vtkernels::torch_ops
