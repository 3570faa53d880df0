#include "vtkernels/cuda/scope_select.cuh"

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {

void scope_select(const ScopePlan& plan, const Array<3>& features, const Array<2>& saliency, const Lengths& lengths, int64_t k,
                  const ScopeOptions& options, const Output<int64_t>& indices, void* workspace, void* stream) {
  scope_select(Stream(stream), plan, features, saliency, lengths, k, options, indices, workspace);
}

int greedy_clusters(int blocks, int64_t shared) {
  using Kernel = Greedy<int32_t, GreedyPlace::resident>;
  check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        Kernel::name);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(Kernel::threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, entry<Kernel>, &config), "clusters at the same time");
  return clusters;
}

}  // namespace vtkernels::cuda
