#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

Tensor gather_tokens(Tensor tokens, Tensor indices) {
  const char* op = "gather_tokens";
  Argument{op, "tokens", tokens}.rank("B, N, D", 3).floats();
  check_indices(op, indices, tokens);
  const int64_t b = tokens.size(0), n = tokens.size(1), k = indices.size(1), channels = tokens.size(2);
  check_in_range(op, indices, n);
  Tensor out = empty(tokens, {b, k, channels}, tokens.scalar_type());
  cpu::gather_tokens(rows(tokens), rows(out), b, k, channels, index_rows(indices), parallel());
  return out;
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) { m.impl("gather_tokens", TORCH_BOX(&gather_tokens)); }

}  // namespace vtkernels::torch_ops
