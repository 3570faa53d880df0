// CPU launches of every op. Arguments are checked by the caller; scratch is the caller's, 64-byte aligned floats.
#pragma once

#include "vtkernels/array.h"
#include "vtkernels/parallel.h"

namespace vtkernels::cpu {

enum class Relevance { max, mean };

// Floats of scratch that one running image needs; each worker has its own, `workers` of them in a row.
int64_t scope_select_scratch(int64_t n, int64_t channels);
int64_t coverage_select_scratch(int64_t items, int64_t candidates);
int64_t cls_attention_scratch(int64_t heads, int64_t tokens, int64_t channels);
int64_t topk_select_scratch(int64_t n);
int64_t row_topk_scratch(int64_t grid_rows);
int64_t graph_propagate_scratch(int64_t n, int64_t channels);
int64_t cluster_topk_scratch(int64_t n);
// Floats of scratch for the whole batch.
int64_t prompt_relevance_scratch(int64_t images, int64_t words, int64_t channels, Relevance reduce, int64_t threads);
int64_t route_tokens_scratch(int64_t images, int64_t k, int64_t channels, int64_t threads);
int64_t merge_tokens_scratch(int64_t images, int64_t n, int64_t k, int64_t threads);
int64_t crop_topk_scratch(int64_t images, int64_t n, int64_t channels, int64_t crops, int64_t threads);
int64_t attention_profile_scratch(int64_t images, int64_t heads, int64_t tokens, int64_t channels, int64_t threads);
int64_t token_clusters_scratch(int64_t images, int64_t n, int64_t channels, int64_t threads);

struct ScopeOptions {
  double alpha;
  Combine combine;
  bool sort;
};

// features [B,N,D]; saliency [B,N] or data null
void scope_select(const Array<3>& features, const Array<2>& saliency, const Lengths& lengths, int64_t k,
                  const ScopeOptions& options, const Output<int64_t>& indices, float* scratch, const Parallel& parallel);

// similarity [B,M,N]; weight [B,N] or data null
void coverage_select(const Array<3>& similarity, const Array<2>& weight, const Lengths& lengths, int64_t k, Combine combine,
                     bool sort, const Output<int64_t>& indices, const Output<float>& gains, float* scratch,
                     const Parallel& parallel);

struct AttentionOptions {
  float scale;
  int64_t prefix;
  Reduce reduce;
};

// query [B,H,d], key [B,H,T,d]
void cls_attention(const Array<3>& query, const Array<4>& key, const Lengths& lengths, const AttentionOptions& options,
                   const Output<float>& scores, float* scratch, const Parallel& parallel);

struct ProfileOptions {
  float scale;
  int64_t prefix;
  bool softmax;
};

// query, key [B,H,T,d] -> received, given [B,T-prefix]
void attention_profile(const Array<4>& query, const Array<4>& key, const Lengths& lengths, const ProfileOptions& options,
                       const Output<float>& received, const Output<float>& given, float* scratch, const Parallel& parallel);

// scores [B,N]
void topk_select(const Array<2>& scores, const Lengths& lengths, int64_t k, bool sort, const Output<int64_t>& indices,
                 float* scratch, const Parallel& parallel);

void attention_topk(const Array<3>& query, const Array<4>& key, const Lengths& lengths, const AttentionOptions& options,
                    int64_t k, bool sort, const Output<int64_t>& indices, const Output<float>& scores, float* scratch,
                    const Parallel& parallel);

// scores [B,N], N a multiple of the width -> indices [B,rows*width]
void row_topk(const Array<2>& scores, int64_t rows, int64_t width, bool sort, const Output<int64_t>& indices, float* scratch,
              const Parallel& parallel);

struct GraphOptions {
  float threshold;
  float temperature;
  int64_t iterations;
};

// features [B,N,D] -> scores, degree [B,N]
void graph_propagate(const Array<3>& features, const Lengths& lengths, const GraphOptions& options, const Output<float>& scores,
                     const Output<int32_t>& degree, float* scratch, const Parallel& parallel);

// features [B,N,D] -> labels [B,N]
void token_clusters(const Array<3>& features, const Lengths& lengths, float threshold, const Output<int64_t>& labels,
                    float* scratch, const Parallel& parallel);

enum class CropVariant { released, full, paper };

struct CropOptions {
  int64_t crops;
  double beta;
  CropVariant variant;
  bool sort;
};

// attention [B,N]; features [B,N,D] or null (a pointer, because a tensor without channels has null memory too)
void crop_topk(const Array<2>& attention, const Array<3>* features, const Lengths& lengths, int64_t k,
               const CropOptions& options, const Output<int64_t>& indices, float* scratch, const Parallel& parallel);

// labels, relevance [B,N]
void cluster_topk(const Output<const int64_t>& labels, const Array<2>& relevance, const Lengths& lengths, int64_t k,
                  double pool, bool sort, const Output<int64_t>& indices, float* scratch, const Parallel& parallel);

// vision [B,N,D], text [B,T,D] -> relevance [B,N]
void prompt_relevance(const Array<3>& vision, const Array<3>& text, const Lengths& lengths, Relevance reduce,
                      const Output<float>& relevance, float* scratch, const Parallel& parallel);

// features [B,N,D], indices [B,k], labels [B,N] or data null -> slots [B,N]
void route_tokens(const Array<3>& features, const Output<const int64_t>& indices, int64_t k,
                  const Output<const int64_t>& labels, const Lengths& lengths, const Output<int64_t>& slots, float* scratch,
                  const Parallel& parallel);

// tokens [B,N,D], indices [B,k], assignment [B,N] -> merged [B,k,D], contiguous, float64 where the tokens are, else float32
void merge_tokens(const Array<3>& tokens, const Output<const int64_t>& indices, int64_t k,
                  const Output<const int64_t>& assignment, void* merged, float* scratch, const Parallel& parallel);

struct Rows {
  char* data;
  int64_t element;    // bytes
  int64_t stride[3];  // in elements: image, row, channel
};

// to[b, s] = from[b, indices[b, s]], zeros for -1
void gather_tokens(const Rows& from, const Rows& to, int64_t images, int64_t k, int64_t channels,
                   const Output<const int64_t>& indices, const Parallel& parallel);

// the same in place; indices ascending
void compact_(const Rows& tokens, int64_t images, int64_t k, int64_t channels, const Output<const int64_t>& indices,
              const Parallel& parallel);

}  // namespace vtkernels::cpu
