// A device, as the launch planner sees it.
#include <map>
#include <mutex>
#include <string>

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/stream.cuh"

namespace vtkernels::cuda {
namespace {

Gpu ask(int device) {
  const auto attribute = [&](cudaDeviceAttr what) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, what, device), "device attribute");
    return value;
  };
  Gpu gpu{10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          {}};
#if !defined(VTKERNELS_SM90A)
  gpu.warpgroups = false;
#endif
  if (gpu.arch < 90) return gpu;
  for (int i = 0; i < 3; ++i) gpu.clusters[i] = greedy_clusters(2 << i, gpu.shared_per_block);
  return gpu;
}

}  // namespace

Gpu gpu(int device) {
  static std::mutex mutex;
  static std::map<int, Gpu> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, ask(device)).first->second;
}

}  // namespace vtkernels::cuda

// The same as JSON, for `vtkernels info`; empty where the device cannot be asked.
extern "C" const char* vtkernels_gpu(int device) {
  static thread_local std::string text;
  try {
    const vtkernels::cuda::Gpu gpu = vtkernels::cuda::gpu(device);
    text = "{\"arch\": " + std::to_string(gpu.arch) + ", \"multiprocessors\": " + std::to_string(gpu.multiprocessors) +
           ", \"shared_per_block\": " + std::to_string(gpu.shared_per_block) +
           ", \"clusters\": {\"2\": " + std::to_string(gpu.clusters[0]) + ", \"4\": " + std::to_string(gpu.clusters[1]) +
           ", \"8\": " + std::to_string(gpu.clusters[2]) + "}}";
  } catch (const std::exception&) {
    text.clear();
  }
  return text.c_str();
}
