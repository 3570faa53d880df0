#include "vtkernels/cuda.h"
#include "vtkernels/cuda/attention.cuh"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void attention_topk(const Plan& plan, const Array<3>& query, const Array<4>& key, const Lengths& lengths,
                    const AttentionOptions& options, int64_t k, bool sort, const Output<int64_t>& indices,
                    const Output<float>& scores, void* workspace, void* stream) {
  attention<true>(Stream(stream), plan, query, key, lengths, options, k, sort, scores, indices, workspace);
}

}  // namespace vtkernels::cuda
