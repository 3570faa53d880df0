// float32 from the bits of the half types, where no instruction does it.
#pragma once

#include <cstring>

#include "vtkernels/array.h"

namespace vtkernels {

VTKERNELS_INLINE float float_from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

VTKERNELS_INLINE uint32_t bits_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

VTKERNELS_INLINE float float_from_bfloat16(uint16_t h) { return float_from_bits(uint32_t{h} << 16); }

VTKERNELS_INLINE float float_from_float16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // A half is 2**112 times smaller than the float of the same fields; the product is exact, subnormals included.
  const float magnitude = float_from_bits(rest << 13) * float_from_bits((127 + 112) << 23);
  return sign ? -magnitude : magnitude;
}

}  // namespace vtkernels
