#include "vtkernels/cuda/scope_select.cuh"

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void scope_select(const ScopePlan& plan, const Array<3>& features, const Array<2>& saliency, const Lengths& lengths, int64_t k,
                  const ScopeOptions& options, const Output<int64_t>& indices, void* workspace, void* stream) {
  scope_select(Stream(stream), plan, features, saliency, lengths, k, options, indices, workspace);
}

}  // namespace vtkernels::cuda
