// vtkernels._host: what this build is and how it runs. Knows neither torch nor tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/greedy.h"
#include "plans.h"
#include "vtkernels/isa.h"

namespace py = pybind11;

namespace {

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  names.reserve(static_cast<size_t>(vtkernels::isa_count()));
  for (int i = 0; i < vtkernels::isa_count(); ++i) names.emplace_back(vtkernels::isa_at(i).name);
  return names;
}

void set_simd_level(const std::string& level) {
  if (vtkernels::force_isa(level.c_str())) return;
  std::string known;
  for (const auto& name : simd_levels()) known += (known.empty() ? "" : ", ") + name;
  throw std::invalid_argument("level must be one of " + known + " on this machine, got " + level);
}

py::dict build_info() {
  py::dict info;
  info["version"] = VTKERNELS_VERSION;
  info["compiler"] = VTKERNELS_COMPILER;
  info["torch_target"] = VTKERNELS_TORCH_TARGET;
  info["torch_headers"] = VTKERNELS_TORCH_HEADERS;
#if defined(VTKERNELS_CUDA)
  info["cuda"] = VTKERNELS_CUDA;
  info["cuda_architectures"] = VTKERNELS_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build information and run-time choices of the native library.";
  m.def("build_info", &build_info, "What this library was built with.");
  m.def("simd_levels", &simd_levels, "Instruction sets of this build that the machine can run, the best last.");
  m.def("simd_level", [] { return std::string(vtkernels::isa().name); }, "The instruction set in use.");
  m.def("set_simd_level", &set_simd_level, py::arg("level"), "Use this instruction set from now on, in every thread.");
  m.def("set_lazy", &vtkernels::cpu::set_lazy, py::arg("lazy"),
        "Test hook: False makes the greedy ops evaluate every candidate in every step.");
  vtkernels::host::add_plans(m);
}
