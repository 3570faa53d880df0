// Encodes tensor maps. The driver's function is looked up at run time, so that nothing links the driver.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "vtkernels/cuda/tensor_map.h"

namespace vtkernels::cuda {

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function) : nullptr;
  }();
  if (encoder == nullptr) throw std::runtime_error("vtkernels: the driver has no cuTensorMapEncodeTiled (CUDA 12 has)");
  return encoder;
}

inline TensorMap encode(const TensorBoxes& x) {
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap), "one format");
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(x.channels), static_cast<cuuint64_t>(x.n),
                               static_cast<cuuint64_t>(x.images)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(x.row_bytes), static_cast<cuuint64_t>(x.image_bytes)};
  const cuuint32_t box[3] = {TensorBoxes::channels_of_box, static_cast<cuuint32_t>(x.rows), 1}, every[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      tensor_map_encoder()(&map, x.bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
                           const_cast<void*>(x.data), sizes, strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("vtkernels: cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(result)));
  }
  TensorMap encoded;
  std::memcpy(&encoded, &map, sizeof map);
  return encoded;
}

}  // namespace vtkernels::cuda
