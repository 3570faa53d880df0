// The cosine similarity of all pairs of rows, each pair computed once.
//
// Rows are normalised and packed into panels of kPanel rows: panel[d * kPanel + r]. A tile of C is an outer product over one
// block of channels; every entry is one chain of fused multiply-adds in the order of the channels, so its bits depend on the
// two rows alone. Only tiles that touch the lower triangle are computed; the upper triangle is copied, in the same pass that
// sums the first gains.
#pragma once

#include "vtkernels/array.h"
#include "vtkernels/simd.h"

namespace vtkernels::VTKERNELS_ISA {

#if defined(VTKERNELS_ISA_avx512)
constexpr int kTileRows = 8, kTileVecs = 3;
#elif defined(VTKERNELS_ISA_avx2)
constexpr int kTileRows = 4, kTileVecs = 3;
#else
constexpr int kTileRows = 4, kTileVecs = 2;
#endif
constexpr int kPanel = kTileVecs * kWidth;
static_assert(kPanel % kTileRows == 0 && kPanel % kWidth == 0);

// 1 / ||row||, or 0 for a row that is zero or not finite (judged by its squared float32 norm)
template <class T>
float inverse_norm(const T* row, int64_t stride, int64_t channels) {
  Vec sum[kSums] = {};
  int64_t d = 0;
  for (; d + kLanes <= channels && stride == 1; d += kLanes) {
    for (int s = 0; s < kSums; ++s) {
      const Vec x = load_as_float(row + d + s * kWidth);
      sum[s] = fma(x, x, sum[s]);
    }
  }
  for (int s = 0; d < channels; d += kWidth, s = (s + 1) % kSums) {
    const Vec x = load_some(row + d * stride, stride, channels - d < kWidth ? channels - d : kWidth);
    sum[s] = fma(x, x, sum[s]);
  }
  const float square = fold(sum);
  return square > 0 && __builtin_isfinite(square) ? 1 / __builtin_sqrtf(square) : 0;
}

// Channels [first, first + depth) of the panel's rows, scaled; missing and unusable rows are zero.
template <class T>
void pack_panel(const T* rows, const int64_t (&stride)[2], int64_t count, const float* scale, int64_t first, int64_t depth,
                float* panel) {
  for (int group = 0; group < kPanel; group += kWidth) {
    for (int64_t d = 0; d < depth; d += kWidth) {
      const int64_t width = depth - d < kWidth ? depth - d : kWidth;
      Vec block[kWidth];
      for (int r = 0; r < kWidth; ++r) {
        const int64_t row = group + r;
        const bool usable = row < count && scale[row] != 0;
        block[r] =
            usable ? load_some(rows + row * stride[0] + (first + d) * stride[1], stride[1], width) * splat(scale[row]) : Vec{};
      }
      transpose(block);
      for (int l = 0; l < width; ++l) store(panel + (d + l) * kPanel + group, block[l]);
    }
  }
}

// C[kTileRows rows][the first Vecs vectors of a panel of columns] (+)= a b^T over one block of channels
template <int Vecs>
void gram_tile(const float* a, const float* b, int64_t depth, bool accumulate, float* c, int64_t row_stride) {
  Vec sum[kTileRows][Vecs];
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < Vecs; ++v) sum[r][v] = accumulate ? load(c + r * row_stride + v * kWidth) : Vec{};
  }
  for (int64_t d = 0; d < depth; ++d, a += kPanel, b += kPanel) {
    Vec column[Vecs];
    for (int v = 0; v < Vecs; ++v) column[v] = load(b + v * kWidth);
    for (int r = 0; r < kTileRows; ++r) {
      const Vec row = splat(a[r]);
      for (int v = 0; v < Vecs; ++v) sum[r][v] = fma(row, column[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < Vecs; ++v) store(c + r * row_stride + v * kWidth, sum[r][v]);
  }
}

// The tile of rows from i and panel of columns from j, without the vectors of columns that lie right of the diagonal
template <int Vecs = kTileVecs>
void gram_tile_below(int64_t i, int64_t j, const float* a, const float* b, int64_t depth, bool accumulate, float* c,
                     int64_t row_stride) {
  if constexpr (Vecs > 1) {
    if (i + kTileRows <= j + (Vecs - 1) * kWidth) {
      return gram_tile_below<Vecs - 1>(i, j, a, b, depth, accumulate, c, row_stride);
    }
  }
  gram_tile<Vecs>(a, b, depth, accumulate, c, row_stride);
}

// Channels of one pass over a block: a panel of columns then stays in the first-level cache, the rows in the second.
constexpr int64_t kPassDepth = 128;

// The tiles of C[rows[0] .. rows[1])[columns[0] .. columns[1]) that touch the lower triangle, into the block whose first entry
// is c; bounds are multiples of kPanel (that of
// the last rows: of kTileRows)
inline void gram_block(const float* panels, int64_t depth, const int64_t (&rows)[2], const int64_t (&columns)[2],
                       bool accumulate, float* c, int64_t row_stride) {
  for (int64_t first = 0; first == 0 || first < depth; first += kPassDepth, accumulate = true) {
    const int64_t part = depth - first < kPassDepth ? depth - first : kPassDepth;
    for (int64_t j = columns[0]; j < columns[1]; j += kPanel) {
      const float* b = panels + j * depth + first * kPanel;
      for (int64_t i = rows[0] > j ? rows[0] : j; i < rows[1]; i += kTileRows) {
        const float* a = panels + i / kPanel * kPanel * depth + first * kPanel + i % kPanel;
        gram_tile_below(i, j, a, b, part, accumulate, c + (i - rows[0]) * row_stride + (j - columns[0]), row_stride);
      }
    }
  }
}

// c[r][j] = packed row r of one panel . packed row j of several, for r in [0, rows) rounded up to a tile, j in [0, columns)
// rounded up to a panel
inline void product_block(const float* panel, const float* panels, int64_t depth, int64_t rows, int64_t columns, float* c,
                          int64_t row_stride) {
  for (int64_t first = 0; first == 0 || first < depth; first += kPassDepth) {
    const int64_t part = depth - first < kPassDepth ? depth - first : kPassDepth;
    for (int64_t j = 0; j < columns; j += kPanel) {
      for (int64_t i = 0; i < rows; i += kTileRows) {
        gram_tile<kTileVecs>(panel + first * kPanel + i, panels + j * depth + first * kPanel, part, first > 0,
                             c + i * row_stride + j, row_stride);
      }
    }
  }
}

// Rows [begin, begin + kWidth): the part right of the diagonal block from the lower triangle, zeros behind column n
inline void mirror_rows(float* c, int64_t row_stride, int64_t begin, int64_t n) {
  for (int64_t j = begin + kWidth; j < n; j += kWidth) {
    Vec block[kWidth];
    for (int r = 0; r < kWidth; ++r) block[r] = load(c + (j + r) * row_stride + begin);
    transpose(block);
    for (int r = 0; r < kWidth; ++r) store(c + (begin + r) * row_stride + j, block[r]);
  }
  for (int r = 0; r < kWidth; ++r) {
    for (int64_t j = n; j < row_stride; ++j) c[(begin + r) * row_stride + j] = 0;
  }
}

// Sum and sum of squares of one row; items is a multiple of kLanes
inline void row_moments(const float* row, int64_t items, float* sum, float* squares) {
  Vec first[kSums] = {}, second[kSums] = {};
  for (int64_t j = 0; j < items; j += kLanes) {
    for (int s = 0; s < kSums; ++s) {
      const Vec x = load(row + j + s * kWidth);
      first[s] = first[s] + x;
      second[s] = fma(x, x, second[s]);
    }
  }
  *sum = fold(first);
  *squares = fold(second);
}

}  // namespace vtkernels::VTKERNELS_ISA
