// Argument checks: the conditions, order and words of vtkernels/_checks.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace vtkernels::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
void check(bool good, const Parts&... parts) {
  if (good) return;
  std::ostringstream text;
  text << "vtkernels::";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string list(const int64_t* values, size_t count) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < count; ++i) text << (i > 0 ? ", " : "") << values[i];
  text << ']';
  return text.str();
}
inline std::string list(std::initializer_list<int64_t> values) { return list(values.begin(), values.size()); }
inline std::string shape(const Tensor& x) { return list(x.sizes().data(), x.sizes().size()); }

std::string name(ScalarType dtype);
std::string device(const Tensor& x);

// A tensor argument with its name.
struct Argument {
  const char* op;
  const char* name;
  const Tensor& x;

  const Argument& rank(const char* dims, int64_t count) const {
    check(x.dim() == count, op, ": ", name, " must have shape [", dims, "], got ", shape(x));
    return *this;
  }
  const Argument& floats() const {
    const ScalarType t = x.scalar_type();
    check(t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16 || t == ScalarType::Double, op, ": ",
          name, " must be float32, float16, bfloat16 or float64, got ", vtkernels::torch_ops::name(t));
    return *this;
  }
  const Argument& sizes(const char* dims, std::initializer_list<int64_t> expected) const {
    bool same = x.dim() == static_cast<int64_t>(expected.size());
    int64_t i = 0;
    for (const int64_t size : expected) same = same && x.size(i++) == size;
    check(same, op, ": ", name, " must have shape [", dims, "] = ", list(expected), ", got ", shape(x));
    return *this;
  }
  const Argument& like(const char* other_name, const Tensor& other) const {
    check(device(x) == device(other), op, ": ", name, " must be on ", device(other), " like ", other_name, ", got ", device(x));
    return *this;
  }
};

void check_budget(const char* op, int64_t k, const char* what, int64_t n);
void check_lengths(const char* op, const std::optional<Tensor>& lengths, int64_t b, const char* other_name, const Tensor& other,
                   const char* what = "lengths");
void check_indices(const char* op, const Tensor& indices, const Tensor& tokens, const char* tokens_name = "tokens");
// Every index is -1 or a token: a look at the data, which costs no synchronisation on the CPU.
void check_in_range(const char* op, const Tensor& indices, int64_t n);
void check_int64(const char* op, const char* what, const Tensor& x, int64_t b, int64_t n, const char* other_name,
                 const Tensor& other);
void check_attention(const char* op, const Tensor& query, const char* query_dims, const Tensor& key,
                     std::optional<double> scale, int64_t prefix, const std::optional<Tensor>& lengths);
void check_option(const char* op, const char* name, const std::string& value, const char* first, const char* second);
void check_writable(const char* op, const char* name, const Tensor& x);
void check_out(const char* op, const Tensor& out, ScalarType dtype, std::initializer_list<int64_t> sizes, const Tensor& like);

// A tensor that an op reads, with its name; null where an optional one is missing.
struct Read {
  const char* name;
  const Tensor* x;

  Read(const char* argument, const Tensor& tensor) : name(argument), x(&tensor) {}
  Read(const char* argument, const std::optional<Tensor>& tensor) : name(argument), x(tensor ? &*tensor : nullptr) {}
};
// The buffer and what is read lie apart: a kernel may write an element before another thread has read it.
void check_apart(const char* op, const Tensor& out, std::initializer_list<Read> inputs);

}  // namespace vtkernels::torch_ops
