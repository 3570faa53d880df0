#include "vtkernels/cuda/topk_select.cuh"

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void topk_select(const Plan& plan, const Array<2>& scores, const Lengths& lengths, int64_t k, bool sort,
                 const Output<int64_t>& indices, void* workspace, void* stream) {
  topk_select(Stream(stream), plan, scores, lengths, k, sort, indices, workspace);
}

}  // namespace vtkernels::cuda
