#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

void compact_(Tensor tokens, Tensor indices) {
  const char* op = "compact_";
  Argument{op, "tokens", tokens}.rank("B, N, D", 3).floats();
  check_indices(op, indices, tokens);
  const int64_t b = tokens.size(0), n = tokens.size(1), k = indices.size(1);
  check(k <= n, op, ": indices must have at most N = ", n, " columns, got ", k);
  check_writable(op, "tokens", tokens);
  check_in_range(op, indices, n);
  const auto index = index_rows(indices);
  for (int64_t i = 0; i < b; ++i) {
    int64_t previous = -1;
    for (int64_t s = 0; s < k; ++s) {
      const int64_t at = index(i, s);
      check(at == -1 || (previous < at && (s == 0 || index(i, s - 1) != -1)), op,
            ": indices must be ascending and distinct, with -1 only at the end");
      previous = at == -1 ? n : at;
    }
  }
  cpu::compact_(rows(tokens), b, k, tokens.size(2), index, parallel());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vtkernels, CPU, m) { m.impl("compact_", TORCH_BOX(&compact_)); }

}  // namespace vtkernels::torch_ops
