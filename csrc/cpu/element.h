// One element of any dtype, for the parts where speed does not matter.
#pragma once

#include "vtkernels/half.h"

namespace vtkernels::cpu {

inline float element_as_float(const Array<1>& x, int64_t i) {
  const int64_t at = i * x.stride[0];
  switch (x.dtype) {
    case DType::float32: return static_cast<const float*>(x.data)[at];
    case DType::float16: return float_from_float16(static_cast<const uint16_t*>(x.data)[at]);
    case DType::bfloat16: return float_from_bfloat16(static_cast<const uint16_t*>(x.data)[at]);
    case DType::float64: return static_cast<float>(static_cast<const double*>(x.data)[at]);
  }
  return 0;
}

inline double element_as_double(const Array<1>& x, int64_t i) {
  return x.dtype == DType::float64 ? static_cast<const double*>(x.data)[i * x.stride[0]] : element_as_float(x, i);
}

}  // namespace vtkernels::cpu
