// Greedy coverage (weighted facility location) with lazy evaluation.
//
// A gain never grows: coverage m only rises, and with one summation order the rounded sum of max(0, C - m) is monotone in m
// too. So a score from an earlier step is an upper bound, and a candidate whose fresh score is the maximum of all (fresh or
// stale) scores, at the lowest index, is exactly the candidate that evaluating all of them would choose.
#pragma once

#include "vtkernels/isa.h"
#include "vtkernels/simd.h"

namespace vtkernels::VTKERNELS_ISA {

// Scores are never negative, so these rank NaN behind every score and taken candidates behind NaN.
constexpr float kRankNaN = -1, kRankTaken = -2;

// sum_i max(0, row_i - covered_i); items is a multiple of kLanes
inline float coverage_gain(const float* row, const float* covered, int64_t items) {
  Vec sum[kSums] = {};
  for (int64_t i = 0; i < items; i += kLanes) {
    for (int s = 0; s < kSums; ++s) sum[s] = sum[s] + max(load(row + i + s * kWidth) - load(covered + i + s * kWidth), Vec{});
  }
  return fold(sum);
}

// The same where nothing is covered: x - 0 is x, so the bits are those of coverage_gain
inline void first_gains(const float* rows, int64_t row_stride, int64_t items, int64_t begin, int64_t end, float* gain) {
  for (int64_t j = begin; j < end; ++j) {
    Vec sum[kSums] = {};
    for (int64_t i = 0; i < items; i += kLanes) {
      for (int s = 0; s < kSums; ++s) sum[s] = sum[s] + max(load(rows + j * row_stride + i + s * kWidth), Vec{});
    }
    gain[j] = fold(sum);
  }
}

inline float rank(float score) { return score == score ? score : kRankNaN; }

// Index of the first maximum; count is a multiple of kLanes
inline int64_t first_maximum(const float* x, int64_t count) {
  Vec best[kSums];
  for (int s = 0; s < kSums; ++s) best[s] = load(x + s * kWidth);
  for (int64_t i = kLanes; i < count; i += kLanes) {
    for (int s = 0; s < kSums; ++s) best[s] = max(best[s], load(x + i + s * kWidth));
  }
  for (int s = 1; s < kSums; ++s) best[0] = max(best[0], best[s]);
  float lane[kWidth], top;
  store(lane, best[0]);
  top = lane[0];
  for (int l = 1; l < kWidth; ++l) top = lane[l] > top ? lane[l] : top;
  const Vec target = splat(top);
  int64_t i = 0;
  uint32_t hits;
  while ((hits = equal_mask(load(x + i), target)) == 0) i += kWidth;
  return i + __builtin_ctz(hits);
}

inline float weighted(const Coverage& p, int64_t j, float gain) {
  if (p.weight == nullptr) return gain;
  const float score = p.combine == Combine::multiply ? gain * p.weight[j] : gain + p.weight[j];
  return rank(score);
}

// Writes k picks in the order of choice, -1 where nothing is left, and their scores (0 for a -1) where scores is not null.
inline void greedy_coverage(const Coverage& p, int64_t k, int64_t* picks, float* scores) {
  const int64_t padded = round_up(p.candidates, kLanes);
  for (int64_t i = 0; i < p.items; i += kWidth) store(p.covered + i, Vec{});
  for (int64_t j = 0; j < p.candidates; ++j) {
    p.score[j] = weighted(p, j, p.score[j]);
    p.fresh[j] = 0;
  }
  for (int64_t j = p.candidates; j < padded; ++j) p.score[j] = kRankTaken;

  const auto evaluate = [&](int64_t j, int64_t step) {
    p.score[j] = weighted(p, j, coverage_gain(p.similarity + j * p.row_stride, p.covered, p.items));
    p.fresh[j] = static_cast<int32_t>(step);
  };
  for (int64_t step = 0; step < k; ++step) {
    if (step >= p.candidates) {
      picks[step] = -1;
      if (scores != nullptr) scores[step] = 0;
      continue;
    }
    if (!p.lazy) {
      for (int64_t j = 0; j < p.candidates; ++j) {
        if (p.score[j] >= 0) evaluate(j, step);
      }
    }
    int64_t best = first_maximum(p.score, padded);
    while (p.fresh[best] != step && p.score[best] >= 0) {
      evaluate(best, step);
      best = first_maximum(p.score, padded);
    }
    picks[step] = best;
    if (scores != nullptr) scores[step] = p.score[best] >= 0 ? p.score[best] : __builtin_nanf("");
    p.score[best] = kRankTaken;
    const float* row = p.similarity + best * p.row_stride;
    for (int64_t i = 0; i < p.items; i += kWidth) store(p.covered + i, max(load(p.covered + i), load(row + i)));
  }
}

// Rows [begin, end) of candidates from a matrix of items by candidates, non-finite entries as 0, zeros behind the items.
template <class T>
void transpose_similarity(const T* similarity, const int64_t (&stride)[2], int64_t items, int64_t begin, int64_t end,
                          float* rows, int64_t row_stride) {
  for (int64_t i = 0; i < items; i += kWidth) {
    const int64_t height = items - i < kWidth ? items - i : kWidth;
    for (int64_t j = begin; j < end; j += kWidth) {
      const int64_t width = end - j < kWidth ? end - j : kWidth;
      Vec block[kWidth] = {};
      if (stride[1] == 1 || stride[0] != 1) {
        for (int r = 0; r < height; ++r) {
          block[r] = finite_or(load_some(similarity + (i + r) * stride[0] + j * stride[1], stride[1], width), Vec{});
        }
        transpose(block);
      } else {
        for (int r = 0; r < width; ++r) block[r] = finite_or(load_some(similarity + i + (j + r) * stride[1], 1, height), Vec{});
      }
      for (int r = 0; r < width; ++r) store(rows + (j + r) * row_stride + i, block[r]);
    }
  }
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t i = round_up(items, kWidth); i < row_stride; i += kWidth) store(rows + j * row_stride + i, Vec{});
  }
}

}  // namespace vtkernels::VTKERNELS_ISA
