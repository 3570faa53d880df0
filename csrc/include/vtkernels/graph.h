// The similarity graph: edges where the cosine reaches a threshold, as weights (propagation) or as bits (components).
#pragma once

#include "vtkernels/exp.h"
#include "vtkernels/isa.h"

namespace vtkernels::VTKERNELS_ISA {

// An edge whose weight underflows is still an edge: it keeps the smallest normal number, so that the degree counts it.
constexpr float kSmallestEdge = 1.17549435e-38f;

// Rows [begin, end) up to the end of their diagonal block. Rounding may leave the cosine of a row with itself beside 1; it
// is 1.
inline void edge_weights(float* c, int64_t row_stride, int64_t begin, int64_t end, const float* scale, float threshold,
                         float temperature) {
  const Vec limit = splat(threshold), one = splat(1), per_temperature = splat(1 / temperature);
  for (int64_t i = begin; i < end; ++i) {
    float* row = c + i * row_stride;
    for (int64_t j = 0; j <= i; j += kWidth) {
      const Vec s = load(row + j);
      const Vec below_one = max(one - s, Vec{});
      const Vec weight = max(exp_negative((Vec{} - below_one) * per_temperature), splat(kSmallestEdge));
      store(row + j, where_at_least(s, limit, weight));
    }
    row[i] = scale[i] != 0 ? 1.0f : 0.0f;
  }
}

inline void row_sums(const float* rows, int64_t row_stride, int64_t items, int64_t begin, int64_t end, float* sum,
                     int32_t* count) {
  for (int64_t i = begin; i < end; ++i) {
    const float* row = rows + i * row_stride;
    Vec lanes[kSums] = {};
    int32_t absent = 0;
    for (int64_t j = 0; j < items; j += kLanes) {
      for (int s = 0; s < kSums; ++s) {
        const Vec weight = load(row + j + s * kWidth);
        lanes[s] = lanes[s] + weight;
        absent += __builtin_popcount(equal_mask(weight, Vec{}));
      }
    }
    sum[i] = fold(lanes);
    count[i] = static_cast<int32_t>(items) - absent;
  }
}

inline void row_products(const float* rows, int64_t row_stride, int64_t items, int64_t begin, int64_t end, const float* x,
                         float* out) {
  for (int64_t i = begin; i < end; ++i) {
    const float* row = rows + i * row_stride;
    Vec lanes[kSums] = {};
    for (int64_t j = 0; j < items; j += kLanes) {
      for (int s = 0; s < kSums; ++s) lanes[s] = fma(load(row + j + s * kWidth), load(x + j + s * kWidth), lanes[s]);
    }
    out[i] = fold(lanes);
  }
}

inline void edge_bits(const float* block, int64_t row_stride, int64_t rows, int64_t columns, float threshold, uint8_t* bits,
                      int64_t bits_stride) {
  const Vec limit = splat(threshold);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += kWidth) {
      const uint32_t mask = at_least_mask(load(block + i * row_stride + j), limit);
      uint8_t* out = bits + i * bits_stride + j / 8;
      if constexpr (kWidth >= 8) {
        for (int byte = 0; byte < kWidth / 8; ++byte) out[byte] = static_cast<uint8_t>(mask >> (8 * byte));
      } else {
        *out = static_cast<uint8_t>(j % 8 == 0 ? mask : *out | mask << 4);
      }
    }
  }
}

}  // namespace vtkernels::VTKERNELS_ISA
