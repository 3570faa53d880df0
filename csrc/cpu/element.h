// One element of any dtype, for the parts where speed does not matter.
#pragma once

#include <cmath>
#include <cstring>

#include "vtkernels/array.h"

namespace vtkernels::cpu {

inline float float_from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float float_from_half(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

inline float element_as_float(const Array<1>& x, int64_t i) {
  const int64_t at = i * x.stride[0];
  switch (x.dtype) {
    case DType::float32: return static_cast<const float*>(x.data)[at];
    case DType::float16: return float_from_half(static_cast<const uint16_t*>(x.data)[at]);
    case DType::bfloat16: return float_from_bits(uint32_t{static_cast<const uint16_t*>(x.data)[at]} << 16);
    case DType::float64: return static_cast<float>(static_cast<const double*>(x.data)[at]);
  }
  return 0;
}

inline double element_as_double(const Array<1>& x, int64_t i) {
  return x.dtype == DType::float64 ? static_cast<const double*>(x.data)[i * x.stride[0]] : element_as_float(x, i);
}

}  // namespace vtkernels::cpu
