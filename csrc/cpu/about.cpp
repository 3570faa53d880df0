// What this library is and how it runs, under C names: callable without a binding, whatever the version of Python.
#include <string>

#include "build_info.h"
#include "vtkernels/isa.h"

extern "C" {

// JSON, fixed by the build.
const char* vtkernels_build_info() { return VTKERNELS_BUILD_INFO; }

// The instruction set in use.
const char* vtkernels_simd_level() { return vtkernels::isa().name; }

// The instruction sets of this build that the machine can run, the best last, separated by spaces.
const char* vtkernels_simd_levels() {
  static const std::string names = [] {
    std::string all;
    for (int i = 0; i < vtkernels::isa_count(); ++i) all += (i > 0 ? " " : "") + std::string(vtkernels::isa_at(i).name);
    return all;
  }();
  return names.c_str();
}
}
