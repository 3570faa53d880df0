// The kernels of one instruction set as a table of functions. The table is chosen at run time; everything in it is
// single-threaded and works on float32 state.
#pragma once

#include "vtkernels/array.h"

namespace vtkernels {

struct Coverage {
  const float* similarity;  // [candidates][row_stride], zero behind the items
  int64_t row_stride;
  int64_t items;  // a multiple of 64
  int64_t candidates;
  const float* weight = nullptr;  // [candidates], >= 0 or NaN; null: none
  Combine combine = Combine::multiply;
  bool lazy = true;          // false evaluates every candidate in every step (tests compare the two)
  float* covered = nullptr;  // scratch [items]
  float* score = nullptr;    // in: first gains [candidates]; room for a multiple of 16
  int32_t* fresh = nullptr;  // scratch [candidates]: the step in which the score was computed
};

struct Isa {
  const char* name;
  int64_t width;  // float32 lanes of a vector
  int64_t panel;  // rows of a packed panel

  // scale[i] = 1 / ||row i||, 0 for an unusable row, for i in [begin, end)
  void (*inverse_norms)(const Array<2>& rows, int64_t begin, int64_t end, float* scale);
  // the panel of rows from begin, channels [first, first + depth), scaled
  void (*pack)(const Array<2>& rows, int64_t begin, const float* scale, int64_t first, int64_t depth, float* panel);
  // lower triangle of C[rows[0] .. rows[1])[columns[0] .. columns[1]) (+)= products of packed panels
  void (*gram_block)(const float* panels, int64_t depth, const int64_t (&rows)[2], const int64_t (&columns)[2], bool accumulate,
                     float* c, int64_t row_stride);
  // finish rows [begin, begin + width) of a symmetric C of n rows; their first gains
  void (*mirror)(float* c, int64_t row_stride, int64_t begin, int64_t n, int64_t items, const float* nothing_covered, float* gain);
  // rows [begin, end) of candidates from items by candidates; their first gains
  void (*transpose)(const Array<2>& similarity, int64_t begin, int64_t end, float* rows, int64_t row_stride,
                    const float* nothing_covered, float* gain);
  // k picks in the order of choice and, where scores is not null, their scores
  void (*greedy)(const Coverage& problem, int64_t k, int64_t* picks, float* scores);
  // query[head][channels, padded to 64 by zeros] in float32
  void (*load_query)(const Array<2>& query, float* padded, int64_t row_stride);
  // logits[head][t] for t in [begin, end), begin a multiple of width; -inf where not finite
  void (*logits)(const float* query, int64_t query_stride, const Array<3>& key, float scale, int64_t begin, int64_t end,
                 float* logits, int64_t row_stride);
  // softmax over [0, tokens) of every head, reduced over heads into out[tokens]; the logits are used up
  void (*softmax_reduce)(float* logits, int64_t row_stride, int64_t heads, int64_t tokens, Reduce reduce, float* out);
};

// Levels of this build that the machine can run, the best last.
int isa_count();
const Isa& isa_at(int i);

// The level in use: the best, or the one forced by force_isa or by VTKERNELS_SIMD.
const Isa& isa();
// False where this machine has no level of that name.
bool force_isa(const char* name);

}  // namespace vtkernels
