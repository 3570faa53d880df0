#include "checks.h"

#include <torch/csrc/stable/device.h>

#include <utility>

namespace vtkernels::torch_ops {

std::string name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return "dtype " + std::to_string(static_cast<int>(dtype));
  }
}

std::string device(const Tensor& x) {
  using torch::headeronly::DeviceType;
  const auto where = x.device();
  std::string type;
  switch (where.type()) {
    case DeviceType::CPU: type = "cpu"; break;
    case DeviceType::CUDA: type = "cuda"; break;
    case DeviceType::Meta: type = "meta"; break;
    default: type = "device type " + std::to_string(static_cast<int>(where.type()));
  }
  return where.index() >= 0 && where.type() == DeviceType::CUDA ? type + ":" + std::to_string(where.index()) : type;
}

void check_budget(const char* op, int64_t k, const char* what, int64_t n) {
  check(0 <= k && k <= n, op, ": k must be between 0 and ", what, " = ", n, ", got ", k);
}

void check_lengths(const char* op, const std::optional<Tensor>& lengths, int64_t b, const char* other_name, const Tensor& other,
                   const char* what) {
  if (!lengths) return;
  const Argument argument{op, what, *lengths};
  argument.rank("B", 1);
  const ScalarType t = lengths->scalar_type();
  check(t == ScalarType::Int || t == ScalarType::Long, op, ": ", what, " must be int32 or int64, got ", name(t));
  argument.sizes("B", {b}).like(other_name, other);
}

void check_indices(const char* op, const Tensor& indices, const Tensor& tokens, const char* tokens_name) {
  const Argument argument{op, "indices", indices};
  argument.rank("B, K", 2);
  check(indices.scalar_type() == ScalarType::Long, op, ": indices must be int64, got ", name(indices.scalar_type()));
  argument.sizes("B, K", {tokens.size(0), indices.size(1)}).like(tokens_name, tokens);
}

void check_in_range(const char* op, const Tensor& indices, int64_t n) {
  const auto* data = static_cast<const int64_t*>(indices.const_data_ptr());
  for (int64_t b = 0; b < indices.size(0); ++b) {
    for (int64_t s = 0; s < indices.size(1); ++s) {
      const int64_t at = data[b * indices.stride(0) + s * indices.stride(1)];
      check(-1 <= at && at < n, op, ": indices must be -1 or in [0, N) with N = ", n, ", got ", at);
    }
  }
}

void check_int64(const char* op, const char* what, const Tensor& x, int64_t b, int64_t n, const char* other_name,
                 const Tensor& other) {
  const Argument argument{op, what, x};
  argument.rank("B, N", 2);
  check(x.scalar_type() == ScalarType::Long, op, ": ", what, " must be int64, got ", name(x.scalar_type()));
  argument.sizes("B, N", {b, n}).like(other_name, other);
}

void check_attention(const char* op, const Tensor& query, const char* query_dims, const Tensor& key,
                     std::optional<double> scale, int64_t prefix, const std::optional<Tensor>& lengths) {
  const int64_t rank = std::string(query_dims) == "B, H, d" ? 3 : 4;
  Argument{op, "query", query}.rank(query_dims, rank).floats();
  Argument{op, "key", key}.rank("B, H, T, d", 4).floats();
  const int64_t b = query.size(0), h = query.size(1), d = query.size(rank - 1), t = rank == 4 ? query.size(2) : key.size(2);
  Argument{op, "key", key}.sizes("B, H, T, d", {b, h, t, d});
  check(h >= 1 && d >= 1, op, ": query must have H >= 1 heads of d >= 1 channels, got H = ", h, ", d = ", d);
  check(key.scalar_type() == query.scalar_type(), op, ": key must be ", name(query.scalar_type()), " like query, got ",
        name(key.scalar_type()));
  Argument{op, "key", key}.like("query", query);
  if (scale) check(std::isfinite(*scale), op, ": scale must be a finite number, got ", *scale);
  check(0 <= prefix && prefix <= t, op, ": prefix must be between 0 and T = ", t, ", got ", prefix);
  check_lengths(op, lengths, b, "query", query);
}

void check_option(const char* op, const char* name, const std::string& value, const char* first, const char* second) {
  check(value == first || value == second, op, ": ", name, " must be '", first, "' or '", second, "', got '", value, "'");
}

void check_writable(const char* op, const char* name, const Tensor& x) {
  for (int64_t r = 0; r < x.dim(); ++r) {
    check(x.numel() == 0 || x.stride(r) != 0 || x.size(r) <= 1, op, ": ", name,
          " must not be an expanded view, it is written in place");
  }
}

void check_out(const char* op, const Tensor& out, ScalarType dtype, std::initializer_list<int64_t> sizes, const Tensor& like) {
  bool same = out.scalar_type() == dtype && out.dim() == static_cast<int64_t>(sizes.size()) && device(out) == device(like);
  int64_t i = 0;
  for (const int64_t size : sizes) same = same && out.size(i++) == size;
  check(same, op, ": out must be ", name(dtype), " ", list(sizes), " on ", device(like), ", got ", name(out.scalar_type()), " ",
        shape(out), " on ", device(out));
  check_writable(op, "out", out);
}

namespace {

// From the first element to behind the last one.
std::pair<const char*, const char*> addresses(const Tensor& x) {
  const auto* first = static_cast<const char*>(x.const_data_ptr());
  if (x.numel() == 0) return {first, first};
  int64_t last = 0;
  for (int64_t r = 0; r < x.dim(); ++r) last += (x.size(r) - 1) * x.stride(r);
  return {first, first + (last + 1) * static_cast<int64_t>(x.element_size())};
}

}  // namespace

void check_apart(const char* op, const Tensor& out, std::initializer_list<Read> inputs) {
  const auto [first, end] = addresses(out);
  if (first == end) return;
  for (const Read& input : inputs) {
    if (input.x == nullptr) continue;
    const auto [begin, behind] = addresses(*input.x);
    check(begin == behind || behind <= first || end <= begin, op, ": out must not overlap ", input.name, " in memory");
  }
}

}  // namespace vtkernels::torch_ops
