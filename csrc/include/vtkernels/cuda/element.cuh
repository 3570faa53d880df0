// Element types as kernels load them, and the order in which scores rank.
#pragma once

#include "vtkernels/array.h"
#include "vtkernels/cuda/machine.cuh"
#include "vtkernels/half.h"

namespace vtkernels::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

VTKERNELS_DEVICE int population(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __popc(x);
#else
  return __builtin_popcount(x);
#endif
}

VTKERNELS_DEVICE float to_float(float x) { return x; }
VTKERNELS_DEVICE float to_float(BFloat16 x) { return float_from_bfloat16(x.bits); }
VTKERNELS_DEVICE float to_float(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return float_from_float16(x.bits);
#endif
}

// Smaller is better: falling numbers, then -inf, then NaN; -0 equals 0.
VTKERNELS_DEVICE uint32_t rank_bits(float score) {
  if (score != score) return ~0u;
  const uint32_t bits = bits_from_float(score + 0.0f), sign = 0x80000000u;
  return (bits & sign) != 0 ? bits : ~(bits | sign);
}

VTKERNELS_DEVICE bool is_finite(float x) { return (bits_from_float(x) & 0x7f800000u) != 0x7f800000u; }

// Calls f with a value of the element type; float64 has no kernels here.
template <class F>
void with_element(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float16: return f(Half{});
    case DType::bfloat16: return f(BFloat16{});
    default: return f(float{});
  }
}

}  // namespace vtkernels::cuda
