// Arrays of several types out of one block of scratch.
#pragma once

#include "vtkernels/array.h"

namespace vtkernels::cpu {

class Carve {
 public:
  explicit Carve(float* scratch) : next_(scratch) {}

  template <class T>
  T* take(int64_t count) {
    T* here = reinterpret_cast<T*>(next_);
    next_ += floats<T>(count);
    return here;
  }

  // Floats that an array takes up; every array begins on a cache line.
  template <class T>
  static int64_t floats(int64_t count) {
    return round_up(count * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(float)), 16);
  }

 private:
  float* next_;
};

}  // namespace vtkernels::cpu
