#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& features, const Tensor& indices, const std::optional<Tensor>& labels,
                     const std::optional<Tensor>& lengths) {
  const char* op = "route_tokens";
  Argument{op, "features", features}.rank("B, N, D", 3).floats();
  const int64_t b = features.size(0), n = features.size(1);
  check_indices(op, indices, features, "features");
  if (labels) check_int64(op, "labels", *labels, b, n, "features", features);
  check_lengths(op, lengths, b, "features", features);
}

void run(const Tensor& features, const Tensor& indices, const std::optional<Tensor>& labels, const std::optional<Tensor>& valid,
         const Tensor& out) {
  check_in_range("route_tokens", indices, features.size(1));
  const Parallel threads = parallel();
  const int64_t k = indices.size(1);
  const Scratch scratch(features, cpu::route_tokens_scratch(features.size(0), k, features.size(2), threads.threads));
  const Output<const int64_t> clusters = labels ? index_rows(*labels) : Output<const int64_t>{nullptr, {0, 0}};
  cpu::route_tokens(array<3>(features), index_rows(indices), k, clusters, lengths(valid), output<int64_t>(out), scratch.data(),
                    threads);
}

Tensor route_tokens(Tensor features, Tensor indices, std::optional<Tensor> labels, std::optional<Tensor> lengths) {
  check_arguments(features, indices, labels, lengths);
  Tensor out = empty(features, {features.size(0), features.size(1)}, ScalarType::Long);
  run(features, indices, labels, lengths, out);
  return out;
}

void route_tokens_out(Tensor features, Tensor indices, std::optional<Tensor> labels, std::optional<Tensor> lengths,
                      Tensor out) {
  check_arguments(features, indices, labels, lengths);
  check_out("route_tokens", out, ScalarType::Long, {features.size(0), features.size(1)}, features);
  check_apart("route_tokens", out, {{"features", features}, {"indices", indices}, {"labels", labels}, {"lengths", lengths}});
  run(features, indices, labels, lengths, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("route_tokens", TORCH_BOX(&route_tokens));
  m.impl("route_tokens.out", TORCH_BOX(&route_tokens_out));
}

}  // namespace vtkernels::torch_ops
