#include <algorithm>
#include <limits>
#include <tuple>

#include "adapt.h"
#include "gpu.h"

namespace vtkernels::torch_ops {
namespace {

std::tuple<Tensor, Tensor> graph_propagate(Tensor features, double threshold, double temperature, int64_t iterations,
                                           std::optional<Tensor> valid) {
  const char* op = "graph_propagate";
  Argument{op, "features", features}.rank("B, N, D", 3).floats();
  check(0 < threshold && threshold <= 1, op, ": threshold must be in (0, 1], got ", threshold);
  check(std::isfinite(temperature) && temperature > 0, op, ": temperature must be a finite number > 0, got ", temperature);
  check(iterations >= 0, op, ": iterations must be >= 0, got ", iterations);
  const int64_t b = features.size(0), n = features.size(1);
  check_lengths(op, valid, b, "features", features);

  Tensor scores = empty(features, {b, n}, ScalarType::Float), degree = empty(features, {b, n}, ScalarType::Int);
#if defined(VTKERNELS_CUDA)
  if (features.is_cuda()) {
    check_gpu_floats(op, "features", features);
    const OnGpu gpu(features);
    const Array<3> x = array<3>(features);
    const cuda::GraphPlan plan =
        cuda::plan_graph_propagate(cuda::gpu(gpu.device()), b, n, x.size[2], element_size(x.dtype), cuda::in_boxes(x));
    const Workspace workspace(features, plan.workspace);
    // what is above 0 in float64 stays above 0 in float32
    const auto narrow = [](double x) { return std::max(static_cast<float>(x), std::numeric_limits<float>::min()); };
    cuda::graph_propagate(plan, x, lengths(valid), {narrow(threshold), narrow(temperature), iterations}, output<float>(scores),
                          output<int32_t>(degree), workspace.data(), gpu.stream());
    return {scores, degree};
  }
#endif
  const Parallel threads = parallel();
  const Scratch scratch(features, cpu::graph_propagate_scratch(n, features.size(2)), b, threads);
  const cpu::GraphOptions options{static_cast<float>(threshold), static_cast<float>(temperature), iterations};
  cpu::graph_propagate(array<3>(features), lengths(valid), options, output<float>(scores), output<int32_t>(degree),
                       scratch.data(), threads);
  return {scores, degree};
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) { m.impl("graph_propagate", TORCH_BOX(&graph_propagate)); }
#if defined(VTKERNELS_CUDA)
VTKERNELS_LIBRARY_IMPL(CUDA, m) { m.impl("graph_propagate", TORCH_BOX(&graph_propagate)); }
#endif

}  // namespace vtkernels::torch_ops
