#include "vtkernels/cuda/graph_propagate.cuh"

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void graph_propagate(const GraphPlan& plan, const Array<3>& features, const Lengths& lengths, const GraphOptions& options,
                     const Output<float>& scores, const Output<int32_t>& degree, void* workspace, void* stream) {
  graph_propagate(Stream(stream), plan, features, lengths, options, scores, degree, workspace);
}

}  // namespace vtkernels::cuda
