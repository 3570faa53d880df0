// What every token of one head receives and gives: a panel of query rows at a time, so that no map of tokens by tokens exists.
#pragma once

#include "vtkernels/attention.h"
#include "vtkernels/gram.h"

namespace vtkernels::VTKERNELS_ISA {

// Adds up rows and columns [prefix, tokens) of softmax(scale * q k^T), the softmax running over all tokens.
template <class T>
void softmax_profile(const T* query, const T* key, const ProfileHead& p) {
  const int64_t tokens = p.tokens, channels = p.channels, stride = p.row_stride, padded = round_up(tokens, kLanes);
  float* keys = p.scratch;
  float* queries = keys + stride * channels;
  float* block = queries + kPanel * channels;
  float* ones = block + kPanel * stride;
  for (int64_t t = 0; t < stride; ++t) ones[t] = 1;
  for (int64_t t = 0; t < tokens; t += kPanel) {
    pack_panel(key + t * p.key_stride[0], p.key_stride, tokens - t, ones, 0, channels, keys + t * channels);
  }
  for (int64_t first = p.prefix; first < tokens; first += kPanel) {
    const int64_t rows = tokens - first < kPanel ? tokens - first : kPanel;
    pack_panel(query + first * p.query_stride[0], p.query_stride, rows, ones, 0, channels, queries);
    product_block(queries, keys, channels, rows, tokens, block, stride);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = block + i * stride;
      for (int64_t j = 0; j < padded; j += kWidth)
        store(row + j, finite_or(load(row + j) * splat(p.scale), splat(kMinusInfinity)));
      const float sum = exponentials(row, tokens, padded);
      if (sum == 0) continue;
      for (int64_t j = 0; j < p.prefix; ++j) row[j] = 0;
      const Vec share = splat(1 / sum);
      Vec given[kSums] = {};
      for (int64_t j = 0; j < padded; j += kLanes) {
        for (int s = 0; s < kSums; ++s) {
          const Vec attention = load(row + j + s * kWidth) * share;
          store(p.received + j + s * kWidth, load(p.received + j + s * kWidth) + attention);
          given[s] = given[s] + attention;
        }
      }
      p.given[first + i] = fold(given);
    }
  }
}

// The sum of the usable rows [prefix, tokens), padded with zeros to a multiple of kLanes; marks rows that are not finite.
template <class T>
void sum_of_rows(const T* rows, const int64_t (&stride)[2], const ProfileHead& p, float* total, float* unusable) {
  const int64_t padded = round_up(p.channels, kLanes);
  for (int64_t d = 0; d < padded; d += kWidth) store(total + d, Vec{});
  for (int64_t t = 0; t < p.tokens; ++t) {
    const T* row = rows + t * stride[0];
    Vec square[kSums] = {};
    for (int64_t d = 0, s = 0; d < p.channels; d += kWidth, s = (s + 1) % kSums) {
      const Vec x = load_some(row + d * stride[1], stride[1], p.channels - d < kWidth ? p.channels - d : kWidth);
      square[s] = fma(x, x, square[s]);
    }
    const float norm = fold(square);
    unusable[t] = __builtin_isfinite(norm) ? 0 : __builtin_nanf("");
    if (unusable[t] != 0 || t < p.prefix) continue;
    for (int64_t d = 0; d < p.channels; d += kWidth) {
      store(total + d,
            load(total + d) + load_some(row + d * stride[1], stride[1], p.channels - d < kWidth ? p.channels - d : kWidth));
    }
  }
}

// The same sums of the logits themselves: the sum of rows of q k^T is (the sum of q) k^T.
template <class T>
void logit_profile(const T* query, const T* key, const ProfileHead& p) {
  const int64_t padded = round_up(p.channels, kLanes);
  float* queries = p.scratch;
  float* keys = queries + padded;
  float* unusable_query = keys + padded;
  float* unusable_key = unusable_query + p.row_stride;
  sum_of_rows(query, p.query_stride, p, queries, unusable_query);
  sum_of_rows(key, p.key_stride, p, keys, unusable_key);
  const auto dot = [&](const float* total, const T* row, int64_t stride) {
    Vec sum[kSums] = {};
    sum[0] = products(total, row, stride, p.channels);
    return p.scale * fold(sum);
  };
  for (int64_t t = p.prefix; t < p.tokens; ++t) {
    p.received[t] = dot(queries, key + t * p.key_stride[0], p.key_stride[1]) + unusable_key[t];
    p.given[t] = dot(keys, query + t * p.query_stride[0], p.query_stride[1]) + unusable_query[t];
  }
}

}  // namespace vtkernels::VTKERNELS_ISA
