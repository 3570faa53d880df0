#include "vtkernels/cuda/coverage_select.cuh"

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void coverage_select(const GreedyPlan& plan, const Array<3>& similarity, const Array<2>& weight, const Lengths& lengths,
                     int64_t k, Combine combine, bool sort, const Output<int64_t>& indices, const Output<float>& gains,
                     void* workspace, void* stream) {
  coverage_select(Stream(stream), plan, similarity, weight, lengths, k, combine, sort, indices, gains, workspace);
}

}  // namespace vtkernels::cuda
