// Attention of one query row: logits of every head, softmax over tokens, reduction over heads. No map of tokens by tokens.
#pragma once

#include "vtkernels/exp.h"
#include "vtkernels/isa.h"

namespace vtkernels::VTKERNELS_ISA {

constexpr float kMinusInfinity = -__builtin_inff();

// Channels of one head's query, padded with zeros to a multiple of kLanes
template <class T>
void load_query_row(const T* query, int64_t stride, int64_t channels, float* padded) {
  for (int64_t d = 0; d < round_up(channels, kLanes); d += kWidth) {
    const int64_t left = channels - d;
    store(padded + d, left <= 0 ? Vec{} : load_some(query + d * stride, stride, left < kWidth ? left : kWidth));
  }
}

template <class T>
Vec products(const float* query, const T* key, int64_t stride, int64_t channels) {
  Vec sum[kSums] = {};
  int64_t d = 0;
  for (; d + kLanes <= channels && stride == 1; d += kLanes) {
    for (int s = 0; s < kSums; ++s) {
      sum[s] = fma(load_as_float(key + d + s * kWidth), load(query + d + s * kWidth), sum[s]);
    }
  }
  for (int s = 0; d < channels; d += kWidth, s = (s + 1) % kSums) {
    const Vec x = load_some(key + d * stride, stride, channels - d < kWidth ? channels - d : kWidth);
    sum[s] = fma(x, load(query + d), sum[s]);
  }
  return fold_vectors(sum);
}

// Logits of kWidth tokens at once: their lane sums are transposed, then folded by halves.
template <class T>
void attention_logits(const float* query, int64_t query_stride, const T* key, const Array<3>& shape, float scale, int64_t begin,
                      int64_t end, float* logits, int64_t row_stride) {
  const int64_t heads = shape.size[0], channels = shape.size[2];
  for (int64_t t = begin; t < end; t += kWidth) {
    const int64_t count = end - t < kWidth ? end - t : kWidth;
    for (int64_t h = 0; h < heads; ++h) {
      Vec lanes[kWidth] = {};
      for (int r = 0; r < count; ++r) {
        lanes[r] = products(query + h * query_stride, key + h * shape.stride[0] + (t + r) * shape.stride[1], shape.stride[2],
                            channels);
      }
      transpose(lanes);
      for (int half = kWidth / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
      }
      store(logits + h * row_stride + t, finite_or(lanes[0] * splat(scale), splat(kMinusInfinity)));
    }
  }
}

// Turns finite or -inf logits into e**(x - maximum); their sum, 0 where no entry has mass. Padded is a multiple of kLanes.
inline float exponentials(float* row, int64_t tokens, int64_t padded) {
  for (int64_t t = tokens; t < padded; ++t) row[t] = kMinusInfinity;
  Vec highest = splat(kMinusInfinity);
  for (int64_t t = 0; t < padded; t += kWidth) highest = max(highest, load(row + t));
  float lane[kWidth], top = kMinusInfinity;
  store(lane, highest);
  for (int l = 0; l < kWidth; ++l) top = lane[l] > top ? lane[l] : top;
  if (top == kMinusInfinity) return 0;

  Vec sum[kSums] = {};
  for (int64_t t = 0; t < padded; t += kLanes) {
    for (int s = 0; s < kSums; ++s) {
      const Vec e = exp_negative(load(row + t + s * kWidth) - splat(top));
      store(row + t + s * kWidth, e);
      sum[s] = sum[s] + e;
    }
  }
  return fold(sum);
}

inline void softmax_reduce(float* logits, int64_t row_stride, int64_t heads, int64_t tokens, Reduce reduce, float* out) {
  for (int64_t t = 0; t < tokens; ++t) out[t] = 0;
  for (int64_t h = 0; h < heads; ++h) {
    float* row = logits + h * row_stride;
    const float sum = exponentials(row, tokens, round_up(tokens, kLanes));
    if (sum == 0) continue;
    const float share = (reduce == Reduce::mean ? 1.0f / static_cast<float>(heads) : 1.0f) / sum;
    for (int64_t t = 0; t < tokens; ++t) out[t] += share * row[t];
  }
}

}  // namespace vtkernels::VTKERNELS_ISA
