// What scope_select and coverage_select share: scratch of the greedy loop and the order of its result.
#pragma once

#include "similarity.h"
#include "vtkernels/cpu.h"
#include "vtkernels/isa.h"

namespace vtkernels::cpu {

struct GreedyScratch {
  float* covered;  // [items]
  float* score;    // [candidates]
  float* weight;   // [candidates]
  float* gains;    // [k]
  int32_t* fresh;  // [candidates]
  int64_t* picks;  // [k]

  static int64_t floats(int64_t items, int64_t candidates);
  GreedyScratch(float* scratch, int64_t items, int64_t candidates);
};

// Weights of one image: max(0, x) ** alpha, NaN where x or its power is not finite. Null where there are none.
const float* load_weights(const Array<1>& values, int64_t n, double alpha, float* weight);

// Runs the loop and writes image b's row; gains may be null.
void select_greedily(Coverage problem, const GreedyScratch& scratch, int64_t k, bool sort, int64_t b,
                     const Output<int64_t>& indices, const Output<float>* gains);

// Test hook: false makes every launch evaluate all candidates in every step.
void set_lazy(bool value);

}  // namespace vtkernels::cpu
