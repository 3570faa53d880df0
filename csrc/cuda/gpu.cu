// The current device, as the launch planner sees it.
#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

Gpu gpu() {
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  const auto attribute = [&](cudaDeviceAttr what) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, what, device), "device attribute");
    return value;
  };
  Gpu gpu{10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
#if !defined(VTKERNELS_SM90A)
  gpu.warpgroups = false;
#endif
  return gpu;
}

}  // namespace vtkernels::cuda
