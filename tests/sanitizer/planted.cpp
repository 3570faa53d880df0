// Faults for a sanitizer to find, in code that is compiled, loaded and run in parallel exactly as the library is. As long as
// these are reported, silence about the library means something.
#include <limits>
#include <vector>

#include "../../csrc/torch/adapt.h"

using vtkernels::torch_ops::parallel;

extern "C" {

__attribute__((visibility("default"))) float read_behind_the_end(int64_t n) {
  const std::vector<float> x(static_cast<size_t>(n), 1.0f);
  return x.data()[n];
}

__attribute__((visibility("default"))) int64_t overflow(int64_t x) { return x + std::numeric_limits<int64_t>::max(); }

// Every thread adds to one number.
__attribute__((visibility("default"))) int64_t race(int64_t tasks) {
  int64_t sum = 0;
  parallel().for_each(tasks * tasks, [&](int64_t task, int64_t) { sum += task; });
  return sum;
}

// Every thread writes its own numbers, the next phase reads those of all, and the caller the result: nothing to report. Again
// on the same threads, because their creation is a fork that anyone sees.
__attribute__((visibility("default"))) int64_t no_race(int64_t tasks) {
  int64_t sum = 0;
  for (int64_t again = 0; again < 3; ++again) {
    std::vector<int64_t> first(static_cast<size_t>(tasks)), second(static_cast<size_t>(tasks));
    parallel().for_each_phase(
        2, tasks, [&](int64_t) { return tasks; },
        [&](int64_t phase, int64_t task, int64_t) {
          const auto i = static_cast<size_t>(task);
          if (phase == 0) {
            first[i] = task;
            return;
          }
          for (const int64_t x : first) second[i] += x;
        });
    for (const int64_t x : second) sum += x;
  }
  return sum;
}

}  // extern "C"
