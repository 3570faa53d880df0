// The caller's device and stream, and memory from torch's allocator on them. The only file that knows how torch names a stream.
#pragma once

#if defined(VTKERNELS_CUDA)
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "adapt.h"
#include "vtkernels/cuda.h"

namespace vtkernels::torch_ops {

// Makes the tensor's device current for as long as it lives.
class OnGpu {
 public:
  explicit OnGpu(const Tensor& x)
      : device_(x.get_device_index()), guard_(x.get_device_index()), stream_(current_stream(x.get_device_index())) {}
  int device() const { return device_; }
  void* stream() const { return stream_; }

 private:
  // The getter lives in torch's CUDA library, which this library must not link: it also loads where torch has none.
  static void* current_stream(int32_t device) {
    using Getter = int32_t (*)(int32_t, void**);
    static const Getter getter = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library == nullptr ? nullptr : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
    }();
    void* stream = nullptr;
    if (getter == nullptr || getter(device, &stream) != 0) {
      throw std::runtime_error("vtkernels: torch's current CUDA stream was not found (aoti_torch_get_current_cuda_stream)");
    }
    return stream;
  }

  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes) : memory_(empty(like, {bytes}, ScalarType::Byte)) {}
  void* data() const { return memory_.mutable_data_ptr(); }

 private:
  Tensor memory_;
};

inline void check_gpu_floats(const char* op, const char* name, const Tensor& x) {
  check(x.scalar_type() != ScalarType::Double, op, ": ", name,
        " is float64, which the CUDA kernels do not take; use float32, or vtkernels.backend('reference')");
}

}  // namespace vtkernels::torch_ops
#endif
