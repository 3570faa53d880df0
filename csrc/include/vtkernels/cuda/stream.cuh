// Launches on a CUDA stream. Included by csrc/cuda/*.cu alone.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "vtkernels/cuda/machine.cuh"
#include "vtkernels/cuda/plan.h"
#include "vtkernels/cuda/tensor_map.cuh"

namespace vtkernels::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, 1) entry(const __grid_constant__ typename Kernel::Arguments a) {
  Machine m;
  Kernel::run(m, a);
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it is told here, and must not turn up in somebody else's call
  throw std::runtime_error(std::string("vtkernels: ") + what + ": " + cudaGetErrorString(error));
}

class Stream {
 public:
  explicit Stream(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  static TensorMap tensor_map(const TensorBoxes& boxes) { return encode(boxes); }

  template <class Kernel>
  void run(const typename Kernel::Arguments& arguments, const Shape& shape) const {
    if (shape.shared > 48 * 1024) {
      check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared)),
            Kernel::name);
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y));
    config.blockDim = dim3(Kernel::threads);
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
    config.stream = stream_;
    cudaLaunchAttribute attributes[3];
    if (shape.cluster > 1) {
      if (shape.cluster > 8) {
        check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), Kernel::name);
      }
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
    if (shape.resident) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (shape.dependent) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    config.attrs = attributes;
    check(cudaLaunchKernelEx(&config, entry<Kernel>, arguments), Kernel::name);
  }

 private:
  cudaStream_t stream_;
};

}  // namespace vtkernels::cuda
