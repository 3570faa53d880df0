// The kernels of one instruction set as a table of functions. The table is chosen at run time; everything in it is
// single-threaded and works on float32 state.
#pragma once

#include "vtkernels/array.h"

namespace vtkernels {

// Sums run over 64 lanes, and a panel of packed rows has at most 64: sizes of scratch are multiples of this.
constexpr int64_t kPad = 64;

struct Coverage {
  const float* similarity = nullptr;  // [candidates][row_stride], zero behind the items
  int64_t row_stride = 0;
  int64_t items = 0;  // a multiple of 64
  int64_t candidates = 0;
  const float* weight = nullptr;  // [candidates], >= 0 or NaN; null: none
  Combine combine = Combine::multiply;
  bool lazy = true;          // false evaluates every candidate in every step (tests compare the two)
  float* covered = nullptr;  // scratch [items]
  float* score = nullptr;    // in: first gains [candidates]; room for a multiple of 64
  int32_t* fresh = nullptr;  // scratch [candidates]: the step in which the score was computed
};

// One head of attention_profile.
struct ProfileHead {
  int64_t tokens;  // valid ones
  int64_t channels;
  int64_t query_stride[2];
  int64_t key_stride[2];
  int64_t prefix;
  float scale;
  int64_t row_stride;  // at least the tokens, rounded up to a panel and to 64
  float* scratch;      // row_stride * channels + panel * (channels + row_stride) + row_stride, and 2 * (channels + 64)
  float* received;     // [row_stride], 0 on entry
  float* given;        // [tokens], 0 on entry
};

struct Isa {
  const char* name;
  int64_t width;  // float32 lanes of a vector
  int64_t panel;  // rows of a packed panel

  // scale[i] = 1 / ||row i||, 0 for an unusable row, for i in [begin, end)
  void (*inverse_norms)(const Array<2>& rows, int64_t begin, int64_t end, float* scale);
  // the panel of rows from begin, channels [first, first + depth), scaled
  void (*pack)(const Array<2>& rows, int64_t begin, const float* scale, int64_t first, int64_t depth, float* panel);
  // lower triangle of C[rows[0] .. rows[1])[columns[0] .. columns[1]) (+)= products of packed panels; c is the first entry of
  // that block
  void (*gram_block)(const float* panels, int64_t depth, const int64_t (&rows)[2], const int64_t (&columns)[2], bool accumulate,
                     float* c, int64_t row_stride);
  // sum[d] += row[begin + d]
  void (*add_channels)(const Array<1>& row, int64_t begin, int64_t count, double* sum);
  // sum[d] += scale * row[d]
  void (*add_scaled)(const Array<1>& row, float scale, float* sum);
  // products of the rows of one packed panel with those of several
  void (*product_block)(const float* panel, const float* panels, int64_t depth, int64_t rows, int64_t columns, float* c,
                        int64_t row_stride);
  // finish rows [begin, begin + width) of a symmetric C of n rows; zeros behind column n
  void (*mirror)(float* c, int64_t row_stride, int64_t begin, int64_t n);
  // sum and sum of squares of a row of items, a multiple of 64
  void (*row_moments)(const float* row, int64_t items, float* sum, float* squares);
  // gain[j] = coverage gain of rows [begin, end) when nothing is covered
  void (*first_gains)(const float* rows, int64_t row_stride, int64_t items, int64_t begin, int64_t end, float* gain);
  // rows [begin, end) of candidates from items by candidates
  void (*transpose)(const Array<2>& similarity, int64_t begin, int64_t end, float* rows, int64_t row_stride);
  // k picks in the order of choice and, where scores is not null, their scores
  void (*greedy)(const Coverage& problem, int64_t k, int64_t* picks, float* scores);
  // similarity to edge weights e**((S - 1) / temperature), 0 below the threshold: the lower triangle of rows [begin, end)
  void (*edge_weights)(float* c, int64_t row_stride, int64_t begin, int64_t end, const float* scale, float threshold,
                       float temperature);
  // sum and number of the edges of rows [begin, end)
  void (*row_sums)(const float* rows, int64_t row_stride, int64_t items, int64_t begin, int64_t end, float* sum,
                   int32_t* count);
  // out[j] = row j . x for rows [begin, end)
  void (*row_products)(const float* rows, int64_t row_stride, int64_t items, int64_t begin, int64_t end, const float* x,
                       float* out);
  // bit j of row i set where entry [i][j] is at least the threshold; columns is a multiple of 8, bits starts at a byte
  void (*edge_bits)(const float* block, int64_t row_stride, int64_t rows, int64_t columns, float threshold, uint8_t* bits,
                    int64_t bits_stride);
  // query[head][channels, padded to 64 by zeros] in float32
  void (*load_query)(const Array<2>& query, float* padded, int64_t row_stride);
  // logits[head][t] for t in [begin, end), begin a multiple of width; -inf where not finite
  void (*logits)(const float* query, int64_t query_stride, const Array<3>& key, float scale, int64_t begin, int64_t end,
                 float* logits, int64_t row_stride);
  // softmax over [0, tokens) of every head, reduced over heads into out[tokens]; the logits are used up
  void (*softmax_reduce)(float* logits, int64_t row_stride, int64_t heads, int64_t tokens, Reduce reduce, float* out);
  // sums over rows and over columns of one head's attention, or of its logits
  void (*profile)(const void* query, const void* key, DType dtype, bool softmax, const ProfileHead& head);
};

// Levels of this build that the machine can run, the best last.
int isa_count();
const Isa& isa_at(int i);

// The level in use: the best, or the one forced by force_isa or by VTKERNELS_SIMD.
const Isa& isa();
// False where this machine has no level of that name.
bool force_isa(const char* name);

}  // namespace vtkernels
