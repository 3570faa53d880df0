#include <tuple>

#include "adapt.h"

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
  const Parallel threads = parallel();
  const Scratch scratch(features, cpu::graph_propagate_scratch(n, features.size(2)), b, threads);
  const cpu::GraphOptions options{static_cast<float>(threshold), static_cast<float>(temperature), iterations};
  cpu::graph_propagate(array<3>(features), lengths(valid), options, output<float>(scores), output<int32_t>(degree),
                       scratch.data(), threads);
  return {scores, degree};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vtkernels, CPU, m) { m.impl("graph_propagate", TORCH_BOX(&graph_propagate)); }

}  // namespace vtkernels::torch_ops
