// What the CUDA launches of an op look like on a given GPU. Part of every build: planning needs neither CUDA nor a GPU.
#include "plans.h"

#include <stdexcept>
#include <string>
#include <tuple>

#include "vtkernels/cuda/plan.h"

namespace py = pybind11;

namespace vtkernels::host {
namespace {

// A GPU of each architecture, where the caller names none.
struct Usual {
  const char* name;
  cuda::Gpu gpu;
};
constexpr Usual kUsual[] = {{"A100", {80, 108, 163 * 1024, {}}},
                            {"A10G", {86, 80, 99 * 1024, {}}},
                            {"L40S", {89, 142, 99 * 1024, {}}},
                            {"H200", {90, 132, 227 * 1024, {66, 30, 15}}},
                            {"B200", {100, 148, 227 * 1024, {}}}};

const Usual& usual(int arch) {
  std::string known;
  for (const Usual& one : kUsual) {
    if (one.gpu.arch == arch) return one;
    known += (known.empty() ? "" : ", ") + std::to_string(one.gpu.arch);
  }
  throw std::invalid_argument("arch must be one of " + known + " (ten times the compute capability), got " +
                              std::to_string(arch));
}

struct Sizes {
  int64_t images, n, d, k, heads, prefix, items, element;
};

cuda::Plan planned(const std::string& op, const cuda::Gpu& gpu, const Sizes& s) {
  const bool boxes = s.d * s.element % 16 == 0;
  if (op == "scope_select") return cuda::plan_scope_select(gpu, s.images, s.n, s.d, s.element, boxes);
  if (op == "coverage_select") return cuda::plan_coverage_select(gpu, s.images, s.items, s.n);
  if (op == "graph_propagate") return cuda::plan_graph_propagate(gpu, s.images, s.n, s.d, s.element, boxes);
  if (op == "cls_attention") {
    return cuda::plan_attention(gpu, s.images, s.heads, s.n + s.prefix, s.d / s.heads, s.prefix, -1, true);
  }
  if (op == "attention_topk") {
    return cuda::plan_attention(gpu, s.images, s.heads, s.n + s.prefix, s.d / s.heads, s.prefix, s.k, true);
  }
  if (op == "topk_select") return cuda::plan_topk_select(gpu, s.images, s.n, s.k, true);
  if (op == "compact_") return cuda::plan_compact_(gpu, s.images, s.d, s.element, s.d * s.element % 16 == 0);
  throw std::invalid_argument(
      "op must be scope_select, coverage_select, graph_propagate, cls_attention, attention_topk, topk_select or compact_, "
      "got " +
      op);
}

py::dict plan(const std::string& op, int arch, int64_t images, int64_t n, int64_t d, int64_t k, int64_t heads, int64_t prefix,
              const py::object& items, int64_t element, const py::object& multiprocessors, const py::object& shared,
              const py::object& clusters) {
  if (heads < 1 || images < 0 || n < 0 || d < 0 || k < 0 || k > n || prefix < 0 || element < 1) {
    throw std::invalid_argument("sizes must not be negative, k at most n, heads and element at least 1");
  }
  cuda::Gpu gpu = usual(arch).gpu;
  if (!multiprocessors.is_none()) gpu.multiprocessors = multiprocessors.cast<int>();
  if (!shared.is_none()) gpu.shared_per_block = shared.cast<int64_t>();
  if (!clusters.is_none()) {
    const auto [of_2, of_4, of_8] = clusters.cast<std::tuple<int, int, int>>();
    gpu.clusters[0] = of_2, gpu.clusters[1] = of_4, gpu.clusters[2] = of_8;
  }
  const Sizes sizes{images, n, d, k, heads, prefix, items.is_none() ? n : items.cast<int64_t>(), element};
  const cuda::Plan chosen = planned(op, gpu, sizes);
  py::list launches;
  for (int i = 0; i < chosen.launches; ++i) {
    const cuda::Shape& shape = chosen.shape[i];
    py::dict launch;
    launch["blocks"] = shape.blocks_x * shape.blocks_y;
    launch["blocks_y"] = shape.blocks_y;
    launch["cluster"] = shape.cluster;
    launch["shared"] = shape.shared;
    launch["resident"] = shape.resident;
    launch["dependent"] = shape.dependent;
    launches.append(launch);
  }
  py::dict result;
  result["path"] = chosen.path;
  result["launches"] = launches;
  result["workspace"] = chosen.workspace;
  result["gpu"] = usual(arch).name;
  result["multiprocessors"] = gpu.multiprocessors;
  result["shared_per_block"] = gpu.shared_per_block;
  return result;
}

}  // namespace

void add_plans(py::module_& m) {
  m.def("plan", &plan, py::arg("op"), py::kw_only(), py::arg("arch"), py::arg("images") = 1, py::arg("n"), py::arg("d"),
        py::arg("k"), py::arg("heads") = 16, py::arg("prefix") = 1, py::arg("items") = py::none(), py::arg("element") = 2,
        py::arg("multiprocessors") = py::none(), py::arg("shared") = py::none(), py::arg("clusters") = py::none(),
        "The launches of a CUDA op with contiguous arguments of these sizes: path, blocks, clusters, shared memory, workspace. "
        "`arch` is ten times the compute capability; multiprocessors and shared memory of a block are those of its usual GPU. "
        "`clusters`: how many of 2, 4 and 8 blocks run at the same time; as many as fill the multiprocessors, if not given.");
}

}  // namespace vtkernels::host
