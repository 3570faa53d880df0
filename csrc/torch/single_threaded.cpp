// The reference counts of libstdc++ ask glibc (2.32 and later) whether the process has one thread, to save an atomic addition.
// A definition of our own keeps the library loadable under glibc 2.28; it answers "several", which is true wherever torch is.
#include <cstddef>

#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 32)
extern "C" {
// NOLINTNEXTLINE(bugprone-reserved-identifier): the name is glibc's
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
