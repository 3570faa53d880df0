#include "vtkernels/cuda/compact_.cuh"

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void compact_(const Plan& plan, char* tokens, int64_t element, const int64_t (&stride)[3], int64_t images, int64_t k,
              int64_t channels, const Output<const int64_t>& indices, void* stream) {
  compact_(Stream(stream), plan, tokens, element, stride, images, k, channels, indices);
}

}  // namespace vtkernels::cuda
