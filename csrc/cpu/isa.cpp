#include "vtkernels/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace vtkernels {
namespace portable {
extern const Isa table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Isa table;
}
namespace avx512 {
extern const Isa table;
}
#endif

namespace {

struct Levels {
  const Isa* level[3] = {};
  int count = 0;

  Levels() {
    level[count++] = &portable::table;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2) level[count++] = &avx2::table;
    if (avx2 && __builtin_cpu_supports("avx512f")) level[count++] = &avx512::table;
#endif
  }
};

const Levels& levels() {
  static const Levels instance;
  return instance;
}

const Isa* find(const char* name) {
  for (int i = 0; i < levels().count; ++i) {
    if (std::strcmp(levels().level[i]->name, name) == 0) return levels().level[i];
  }
  return nullptr;
}

const Isa* first_choice() {
  const char* wanted = std::getenv("VTKERNELS_SIMD");  // NOLINT(concurrency-mt-unsafe): once, while a static is initialised
  const Isa* found = wanted != nullptr ? find(wanted) : nullptr;
  return found != nullptr ? found : levels().level[levels().count - 1];
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> instance{first_choice()};
  return instance;
}

}  // namespace

int isa_count() { return levels().count; }

const Isa& isa_at(int i) { return *levels().level[i]; }

const Isa& isa() { return *current().load(std::memory_order_relaxed); }

bool force_isa(const char* name) {
  const Isa* found = find(name);
  if (found == nullptr) return false;
  current().store(found, std::memory_order_relaxed);
  return true;
}

}  // namespace vtkernels
