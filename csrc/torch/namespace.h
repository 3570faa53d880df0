// Where the ops go. The only line that a build under another namespace replaces (tools/hub/csrc/torch/namespace.h).
#pragma once

#define VTKERNELS_NAMESPACE vtkernels
