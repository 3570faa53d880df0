// CUDA launches of the ops that have kernels, as planned. Arguments are checked by the caller; float64 has no kernels.
// Workspace is the caller's, of the plan's size, 256-byte aligned and not initialised; streams are cudaStream_t.
#pragma once

#include "vtkernels/array.h"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::cuda {

// A GPU by torch's index, asked once. It is the current device.
Gpu gpu(int device);

// How many clusters of so many blocks of the greedy loop run at the same time on the current device, with all of a block's
// shared memory.
int greedy_clusters(int blocks, int64_t shared);

struct AttentionOptions {
  float scale;
  int64_t prefix;
  Reduce reduce;
};

// query [B,H,d], key [B,H,T,d] -> scores [B,T-prefix]
void cls_attention(const Plan& plan, const Array<3>& query, const Array<4>& key, const Lengths& lengths,
                   const AttentionOptions& options, const Output<float>& scores, void* workspace, void* stream);

void attention_topk(const Plan& plan, const Array<3>& query, const Array<4>& key, const Lengths& lengths,
                    const AttentionOptions& options, int64_t k, bool sort, const Output<int64_t>& indices,
                    const Output<float>& scores, void* workspace, void* stream);

// tokens [B,N,D], elements of any type: their size in bytes, strides in elements; indices [B,k] ascending, -1 at the end
void compact_(const Plan& plan, char* tokens, int64_t element, const int64_t (&stride)[3], int64_t images, int64_t k,
              int64_t channels, const Output<const int64_t>& indices, void* stream);

void topk_select(const Plan& plan, const Array<2>& scores, const Lengths& lengths, int64_t k, bool sort,
                 const Output<int64_t>& indices, void* workspace, void* stream);

struct ScopeOptions {
  double alpha;
  Combine combine;
  bool sort;
};

// features [B,N,D]; saliency [B,N] or data null, of any float type
void scope_select(const ScopePlan& plan, const Array<3>& features, const Array<2>& saliency, const Lengths& lengths, int64_t k,
                  const ScopeOptions& options, const Output<int64_t>& indices, void* workspace, void* stream);

// similarity [B,M,N]; weight [B,N] or data null, of any float type
void coverage_select(const GreedyPlan& plan, const Array<3>& similarity, const Array<2>& weight, const Lengths& lengths,
                     int64_t k, Combine combine, bool sort, const Output<int64_t>& indices, const Output<float>& gains,
                     void* workspace, void* stream);

struct GraphOptions {
  float threshold;
  float temperature;
  int64_t iterations;
};

// features [B,N,D] -> scores, degree [B,N]
void graph_propagate(const GraphPlan& plan, const Array<3>& features, const Lengths& lengths, const GraphOptions& options,
                     const Output<float>& scores, const Output<int32_t>& degree, void* workspace, void* stream);

}  // namespace vtkernels::cuda
