// Cosine similarity of all pairs of an image's rows, as phases of parallel tasks (see Parallel::for_each_phase).
#pragma once

#include "vtkernels/array.h"
#include "vtkernels/isa.h"

namespace vtkernels::cpu {

// Sizes of the similarity of n rows and of the packed rows that it is computed from.
struct SimilarityLayout {
  int64_t items;       // columns that are summed
  int64_t rows;        // of the similarity, with room for the last panel of any width
  int64_t row_stride;  // of the similarity
  int64_t depth;       // channels packed at a time: all, or as many as keep the packed block no larger than the similarity

  SimilarityLayout(int64_t n, int64_t channels);
  // Floats of scratch: similarity, packed rows and the scale of each row.
  int64_t floats() const { return rows * row_stride + rows * depth + rows; }
};

// Rows and columns of one task of n rows: a square of C, large enough that its rows and columns are read from the second-level
// cache many times, small enough to share the work out evenly. At most kMostSide.
int64_t square_side(int64_t n);
constexpr int64_t kMostSide = 384;

// The lower triangle of C, blocks of channels in turn: pack, multiply, pack, multiply, ...
class Similarity {
 public:
  Similarity(const Array<2>& features, const SimilarityLayout& layout, float* scratch);

  int64_t phases() const { return 2 * blocks_; }
  int64_t tasks(int64_t phase) const { return phase % 2 == 0 ? panels_ : squares_ * squares_; }
  int64_t most_tasks() const { return squares_ * squares_ > panels_ ? squares_ * squares_ : panels_; }
  void run(int64_t phase, int64_t task) const;

  // The phase that completes C, zeros behind column n, and what it takes: rows [task * width, ...).
  int64_t mirror_tasks() const;
  void mirror(int64_t task) const;

  float* matrix() const { return c_; }
  int64_t row_stride() const { return layout_.row_stride; }
  // 1 / ||row||, 0 for a row that is zero or not finite
  const float* scale() const { return scale_; }

 private:
  const Array<2> features_;
  const SimilarityLayout layout_;
  float *c_, *packed_, *scale_;
  int64_t n_, channels_, blocks_, panels_, padded_, side_, squares_;
};

}  // namespace vtkernels::cpu
