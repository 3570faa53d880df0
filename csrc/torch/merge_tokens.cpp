#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

Tensor merge_tokens(Tensor tokens, Tensor indices, Tensor assignment) {
  const char* op = "merge_tokens";
  Argument{op, "tokens", tokens}.rank("B, N, D", 3).floats();
  check_indices(op, indices, tokens);
  const int64_t b = tokens.size(0), n = tokens.size(1), k = indices.size(1);
  check_int64(op, "assignment", assignment, b, n, "tokens", tokens);
  check_in_range(op, indices, n);
  const auto slot = index_rows(assignment);
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t t = 0; t < n; ++t) {
      check(-1 <= slot(i, t) && slot(i, t) < k, op, ": assignment must be -1 or in [0, K) with K = ", k, ", got ", slot(i, t));
    }
  }
  const ScalarType wide = tokens.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor merged = empty(tokens, {b, k, tokens.size(2)}, wide);
  const Parallel threads = parallel();
  const Scratch scratch(tokens, cpu::merge_tokens_scratch(b, n, k, threads.threads));
  cpu::merge_tokens(array<3>(tokens), index_rows(indices), k, slot, merged.mutable_data_ptr(), scratch.data(), threads);
  return tokens.scalar_type() == wide ? merged : torch::stable::to(merged, tokens.scalar_type());
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) { m.impl("merge_tokens", TORCH_BOX(&merge_tokens)); }

}  // namespace vtkernels::torch_ops
