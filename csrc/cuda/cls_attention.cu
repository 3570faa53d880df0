#include "vtkernels/cuda.h"
#include "vtkernels/cuda/attention.cuh"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void cls_attention(const Plan& plan, const Array<3>& query, const Array<4>& key, const Lengths& lengths,
                   const AttentionOptions& options, const Output<float>& scores, void* workspace, void* stream) {
  attention<false>(Stream(stream), plan, query, key, lengths, options, 0, true, scores, {}, workspace);
}

}  // namespace vtkernels::cuda
