// vtkernels._host: the launch planner and the hooks of the tests. Knows neither torch nor tensors; no op and no user needs it.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../cpu/greedy.h"
#include "plans.h"
#include "vtkernels/isa.h"

namespace py = pybind11;

namespace {

void set_simd_level(const std::string& level) {
  if (vtkernels::force_isa(level.c_str())) return;
  std::string known;
  for (int i = 0; i < vtkernels::isa_count(); ++i) known += (i > 0 ? ", " : "") + std::string(vtkernels::isa_at(i).name);
  throw std::invalid_argument("level must be one of " + known + " on this machine, got " + level);
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Launch planner and test hooks of the native library.";
  m.def("set_simd_level", &set_simd_level, py::arg("level"), "Use this instruction set from now on, in every thread.");
  m.def("set_lazy", &vtkernels::cpu::set_lazy, py::arg("lazy"),
        "Test hook: False makes the greedy ops evaluate every candidate in every step.");
  vtkernels::host::add_plans(m);
}
