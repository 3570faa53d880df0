// The launches of every CUDA op on the emulated machine, for Python. Each op returns the path of its plan.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "emulator.h"
#include "vtkernels/cuda/attention.cuh"
#include "vtkernels/cuda/compact_.cuh"
#include "vtkernels/cuda/coverage_select.cuh"
#include "vtkernels/cuda/graph_propagate.cuh"
#include "vtkernels/cuda/scope_select.cuh"
#include "vtkernels/cuda/topk_select.cuh"

namespace py = pybind11;
using namespace vtkernels;

namespace {

DType dtype_of(const py::object& x) {
  const std::string name = py::str(x.attr("dtype"));
  if (name == "torch.float16") return DType::float16;
  if (name == "torch.bfloat16") return DType::bfloat16;
  if (name == "torch.float64") return DType::float64;
  return DType::float32;
}

// NOLINTNEXTLINE(performance-no-int-to-ptr): Python has addresses as integers
void* pointer(const py::object& x) { return reinterpret_cast<void*>(x.attr("data_ptr")().cast<uintptr_t>()); }

template <int Rank>
Array<Rank> array(const py::object& x) {
  if (x.is_none()) return {};
  Array<Rank> a{pointer(x), dtype_of(x), {}, {}};
  for (int r = 0; r < Rank; ++r) {
    a.size[r] = x.attr("size")(r).cast<int64_t>();
    a.stride[r] = x.attr("stride")(r).cast<int64_t>();
  }
  return a;
}

template <class T>
Output<T> output(const py::object& x) {
  return {static_cast<T*>(pointer(x)), {x.attr("stride")(0).cast<int64_t>(), x.attr("stride")(1).cast<int64_t>()}};
}

Lengths lengths(const py::object& x) {
  if (x.is_none()) return {nullptr, false, 0};
  return {pointer(x), std::string(py::str(x.attr("dtype"))) == "torch.int64", x.attr("stride")(0).cast<int64_t>()};
}

// Poisoned: NaN as a float, -1 as an integer. Behind it lies a wall that must not change.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes), memory_(bytes + alignment + wall, 0xff) {
    const auto start = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = memory_.data() + (alignment - start % alignment) % alignment;
    std::fill(data_ + bytes_, memory_.data() + memory_.size(), brick);
  }
  void* data() { return data_; }

  // The path of the plan, if the kernels kept to what it gave them.
  std::string path(const cuda::Plan& plan) const {
    const unsigned char* end = memory_.data() + memory_.size();
    if (std::find_if(static_cast<const unsigned char*>(data_ + bytes_), end, [](auto x) { return x != brick; }) != end) {
      emulator::fail("a kernel leaves the ", bytes_, " bytes of its workspace");
    }
    return plan.path;
  }

 private:
  static constexpr int64_t alignment = 256, wall = 1024;
  static constexpr unsigned char brick = 0xa5;
  int64_t bytes_;
  std::vector<unsigned char> memory_;
  unsigned char* data_;
};

Combine combine_of(const std::string& how) { return how == "add" ? Combine::add : Combine::multiply; }

std::string topk_select(const cuda::Gpu& gpu, const py::object& scores, int64_t k, const py::object& valid, bool sort,
                        const py::object& out) {
  const Array<2> x = array<2>(scores);
  const cuda::Plan plan = cuda::plan_topk_select(gpu, x.size[0], x.size[1], k, sort);
  Workspace workspace(plan.workspace);
  cuda::topk_select(emulator::Stream(), plan, x, lengths(valid), k, sort, output<int64_t>(out), workspace.data());
  return workspace.path(plan);
}

cuda::AttentionOptions attention_options(double scale, int64_t prefix, const std::string& reduce) {
  return {static_cast<float>(scale), prefix, reduce == "sum" ? Reduce::sum : Reduce::mean};
}

std::string cls_attention(const cuda::Gpu& gpu, const py::object& query, const py::object& key, double scale, int64_t prefix,
                          const std::string& reduce, const py::object& valid, const py::object& out) {
  const Array<4> x = array<4>(key);
  const cuda::Plan plan = cuda::plan_attention(gpu, x.size[0], x.size[1], x.size[2], x.size[3], prefix, -1, true);
  Workspace workspace(plan.workspace);
  cuda::attention<false>(emulator::Stream(), plan, array<3>(query), x, lengths(valid), attention_options(scale, prefix, reduce),
                         0, true, output<float>(out), {}, workspace.data());
  return workspace.path(plan);
}

std::string attention_topk(const cuda::Gpu& gpu, const py::object& query, const py::object& key, int64_t k, double scale,
                           int64_t prefix, const py::object& valid, bool sort, const py::object& indices,
                           const py::object& scores) {
  const Array<4> x = array<4>(key);
  const cuda::Plan plan = cuda::plan_attention(gpu, x.size[0], x.size[1], x.size[2], x.size[3], prefix, k, sort);
  Workspace workspace(plan.workspace);
  cuda::attention<true>(emulator::Stream(), plan, array<3>(query), x, lengths(valid), attention_options(scale, prefix, "mean"),
                        k, sort, output<float>(scores), output<int64_t>(indices), workspace.data());
  return workspace.path(plan);
}

std::string compact_(const cuda::Gpu& gpu, const py::object& tokens, const py::object& indices) {
  const Array<3> x = array<3>(tokens);
  char* data = static_cast<char*>(pointer(tokens));
  const int64_t element = element_size(x.dtype), k = indices.attr("size")(1).cast<int64_t>();
  const bool sixteens = cuda::in_sixteens(data, element, x.stride, x.size[2]);
  const cuda::Plan plan = cuda::plan_compact_(gpu, x.size[0], x.size[2], element, sixteens);
  cuda::compact_(emulator::Stream(), plan, data, element, x.stride, x.size[0], k, x.size[2], output<const int64_t>(indices));
  return plan.path;
}

std::string graph_propagate(const cuda::Gpu& gpu, const py::object& features, double threshold, double temperature,
                            int64_t iterations, const py::object& valid, const py::object& scores, const py::object& degree) {
  const Array<3> x = array<3>(features);
  const cuda::GraphPlan plan =
      cuda::plan_graph_propagate(gpu, x.size[0], x.size[1], x.size[2], element_size(x.dtype), cuda::in_boxes(x));
  Workspace workspace(plan.workspace);
  cuda::graph_propagate(emulator::Stream(), plan, x, lengths(valid),
                        {static_cast<float>(threshold), static_cast<float>(temperature), iterations}, output<float>(scores),
                        output<int32_t>(degree), workspace.data());
  return workspace.path(plan);
}

std::string scope_select(const cuda::Gpu& gpu, const py::object& features, const py::object& saliency, int64_t k, double alpha,
                         const std::string& combine, const py::object& valid, bool sort, const py::object& out) {
  const Array<3> x = array<3>(features);
  const cuda::ScopePlan plan =
      cuda::plan_scope_select(gpu, x.size[0], x.size[1], x.size[2], element_size(x.dtype), cuda::in_boxes(x));
  Workspace workspace(plan.workspace);
  cuda::scope_select(emulator::Stream(), plan, x, array<2>(saliency), lengths(valid), k, {alpha, combine_of(combine), sort},
                     output<int64_t>(out), workspace.data());
  return workspace.path(plan);
}

std::string coverage_select(const cuda::Gpu& gpu, const py::object& similarity, const py::object& weight, int64_t k,
                            const std::string& combine, const py::object& valid, bool sort, const py::object& indices,
                            const py::object& gains) {
  const Array<3> x = array<3>(similarity);
  const cuda::GreedyPlan plan = cuda::plan_coverage_select(gpu, x.size[0], x.size[1], x.size[2]);
  Workspace workspace(plan.workspace);
  cuda::coverage_select(emulator::Stream(), plan, x, array<2>(weight), lengths(valid), k, combine_of(combine), sort,
                        output<int64_t>(indices), output<float>(gains), workspace.data());
  return workspace.path(plan);
}

}  // namespace

PYBIND11_MODULE(_emulator, m) {
  py::class_<cuda::Gpu>(m, "Gpu").def(
      py::init([](int arch, int multiprocessors, int64_t shared, const std::array<int, 3>& clusters) {
        return cuda::Gpu{arch, multiprocessors, shared, {clusters[0], clusters[1], clusters[2]}};
      }),
      py::arg("arch"), py::arg("multiprocessors"), py::arg("shared_per_block"), py::arg("clusters") = std::array<int, 3>{});
  m.def("exchanges", [] { return emulator::exchanges(); }, "How often the blocks of clusters have exchanged letters so far.");
  m.def("attention_topk", &attention_topk);
  m.def("cls_attention", &cls_attention);
  m.def("compact_", &compact_);
  m.def("coverage_select", &coverage_select);
  m.def("graph_propagate", &graph_propagate);
  m.def("scope_select", &scope_select);
  m.def("topk_select", &topk_select);
}
