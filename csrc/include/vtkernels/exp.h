// The exponential function of non-positive numbers: all that softmax needs.
#pragma once

#include "vtkernels/simd.h"

namespace vtkernels::VTKERNELS_ISA {

// e**x for x <= 0, relative error below 2e-7; exactly 0 below the range of normal numbers
inline Vec exp_negative(Vec x) {
  const Vec lowest = splat(-87.0f);
  const Vec y = max(x, lowest);
  const Vec n = round_to_integer(y * splat(1.44269504f));
  // ln 2 in two parts, the first exact in few bits, so that n * part has no rounding error
  const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), y));
  constexpr float coefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Vec p = splat(1.0f / 5040);
  for (const float c : coefficients) p = fma(p, r, splat(c));
  return where_at_least(x, lowest, p * exp2_integer(n));
}

}  // namespace vtkernels::VTKERNELS_ISA
