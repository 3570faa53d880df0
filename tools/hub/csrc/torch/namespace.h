// Where the ops go: the namespace that the kernel builder makes for each build, so that several versions can live in one
// process.
#pragma once

#define VTKERNELS_NAMESPACE TORCH_EXTENSION_NAME
#if defined(CUDA_KERNEL)
#define VTKERNELS_CUDA
#endif
