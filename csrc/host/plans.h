// The launch planner for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace vtkernels::host {

void add_plans(pybind11::module_& m);

}  // namespace vtkernels::host
