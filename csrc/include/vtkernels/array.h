// Raw memory as the kernels see it: a pointer, an element type, sizes and strides (in elements).
#pragma once

#include <cstdint>

// Helpers used by code for every instruction set must be inlined: an out-of-line copy compiled for one set could be linked into
// code for another.
#if defined(__CUDACC__)
#define VTKERNELS_INLINE __host__ __device__ __forceinline__
#else
#define VTKERNELS_INLINE __attribute__((always_inline)) inline
#endif

namespace vtkernels {

enum class DType { float32, float16, bfloat16, float64 };

VTKERNELS_INLINE constexpr int64_t element_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

template <int Rank>
struct Array {
  const void* data;
  DType dtype;
  int64_t size[Rank];
  int64_t stride[Rank];

  // The array at index i of the first dimension.
  VTKERNELS_INLINE Array<Rank - 1> at(int64_t i) const {
    Array<Rank - 1> inner{static_cast<const char*>(data) + i * stride[0] * element_size(dtype), dtype, {}, {}};
    for (int r = 1; r < Rank; ++r) {
      inner.size[r - 1] = size[r];
      inner.stride[r - 1] = stride[r];
    }
    return inner;
  }
};

// Rows [begin, begin + count) of a matrix.
VTKERNELS_INLINE Array<2> rows_of(const Array<2>& matrix, int64_t begin, int64_t count) {
  return {static_cast<const char*>(matrix.data) + begin * matrix.stride[0] * element_size(matrix.dtype),
          matrix.dtype,
          {count, matrix.size[1]},
          {matrix.stride[0], matrix.stride[1]}};
}

// A destination of 64-bit indices or float32 scores, one row per image.
template <class T>
struct Output {
  T* data;
  int64_t stride[2];

  VTKERNELS_INLINE T& operator()(int64_t b, int64_t s) const { return data[b * stride[0] + s * stride[1]]; }
};

// The number of valid tokens of each image; all of them where data is null.
struct Lengths {
  const void* data = nullptr;
  bool is_int64 = false;
  int64_t stride = 0;
  int64_t offset = 0;

  // The lengths of a row that lost its first `prefix` tokens.
  VTKERNELS_INLINE Lengths minus(int64_t prefix) const { return {data, is_int64, stride, offset + prefix}; }

  VTKERNELS_INLINE int64_t operator()(int64_t b, int64_t n) const {
    if (data == nullptr) return n;
    const int64_t length =
        is_int64 ? static_cast<const int64_t*>(data)[b * stride] : static_cast<const int32_t*>(data)[b * stride];
    if (length <= offset) return 0;
    return length < n + offset ? length - offset : n;
  }
};

enum class Combine { multiply, add };
enum class Reduce { mean, sum };

VTKERNELS_INLINE constexpr int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

}  // namespace vtkernels
