#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& features, double threshold, const std::optional<Tensor>& lengths) {
  const char* op = "token_clusters";
  Argument{op, "features", features}.rank("B, N, D", 3).floats();
  check(0 < threshold && threshold <= 1, op, ": threshold must be in (0, 1], got ", threshold);
  check_lengths(op, lengths, features.size(0), "features", features);
}

void run(const Tensor& features, double threshold, const std::optional<Tensor>& valid, const Tensor& out) {
  const Parallel threads = parallel();
  const Scratch scratch(features,
                        cpu::token_clusters_scratch(features.size(0), features.size(1), features.size(2), threads.threads));
  cpu::token_clusters(array<3>(features), lengths(valid), static_cast<float>(threshold), output<int64_t>(out), scratch.data(),
                      threads);
}

Tensor token_clusters(Tensor features, double threshold, std::optional<Tensor> lengths) {
  check_arguments(features, threshold, lengths);
  Tensor out = empty(features, {features.size(0), features.size(1)}, ScalarType::Long);
  run(features, threshold, lengths, out);
  return out;
}

void token_clusters_out(Tensor features, double threshold, std::optional<Tensor> lengths, Tensor out) {
  check_arguments(features, threshold, lengths);
  check_out("token_clusters", out, ScalarType::Long, {features.size(0), features.size(1)}, features);
  check_apart("token_clusters", out, {{"features", features}, {"lengths", lengths}});
  run(features, threshold, lengths, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("token_clusters", TORCH_BOX(&token_clusters));
  m.impl("token_clusters.out", TORCH_BOX(&token_clusters_out));
}

}  // namespace vtkernels::torch_ops
