// The caller's thread pool, as the launches see it.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace vtkernels {

struct Parallel {
  int64_t threads;
  // body(context, worker) for worker in [0, workers), possibly at the same time
  void (*run)(int64_t workers, void (*body)(void* context, int64_t worker), void* context);

  // f(task, worker) for every task; a worker takes the next task when it is free, so that a slow thread delays nobody.
  template <class F>
  void for_each(int64_t tasks, const F& f) const {
    for_each_phase(
        1, tasks, [tasks](int64_t) { return tasks; }, [&](int64_t, int64_t task, int64_t worker) { f(task, worker); });
  }

  // f(phase, task, worker) for every task of every phase; a phase begins when all tasks of the one before are done. Done, not
  // "every thread has arrived": a thread that the machine has not scheduled yet has taken no task and is not waited for.
  template <class Count, class F>
  void for_each_phase(int64_t phases, int64_t most_tasks, const Count& tasks_of, const F& f) const {
    const int64_t workers = threads < most_tasks ? threads : most_tasks;
    if (workers <= 1) {
      for (int64_t phase = 0; phase < phases; ++phase) {
        for (int64_t task = 0, tasks = tasks_of(phase); task < tasks; ++task) f(phase, task, int64_t{0});
      }
      return;
    }
    Shared<Count, F> shared{phases, tasks_of, f};
    run(workers, [](void* context, int64_t worker) { static_cast<Shared<Count, F>*>(context)->work(worker); }, &shared);
  }

  // The batch: whole images side by side while there are enough for all threads, the rest one by one with all threads inside
  // each. f(image, worker, inner) gets the threads it may use.
  template <class F>
  void for_each_image(int64_t images, const F& f) const {
    const Parallel serial{1, nullptr};
    const int64_t side_by_side = threads > 1 ? images / threads * threads : images;
    for_each(side_by_side, [&](int64_t b, int64_t worker) { f(b, worker, serial); });
    for (int64_t b = side_by_side; b < images; ++b) f(b, int64_t{0}, *this);
  }

 private:
  template <class Count, class F>
  struct Shared {
    int64_t phases = 0;
    const Count& tasks_of;
    const F& f;
    std::atomic<int64_t> taken{0};  // over all phases, so that it never has to be reset
    std::atomic<int64_t> done{0};

    void work(int64_t worker) {
      int64_t task = taken.fetch_add(1, std::memory_order_relaxed);
      for (int64_t phase = 0, begin = 0; phase < phases; ++phase) {
        const int64_t end = begin + tasks_of(phase);
        if (task < end) {
          for (int64_t tries = 0; done.load(std::memory_order_acquire) < begin; ++tries) {
            if (tries > 1000) std::this_thread::yield();
          }
        }
        for (; task < end; task = taken.fetch_add(1, std::memory_order_relaxed)) {
          f(phase, task - begin, worker);
          done.fetch_add(1, std::memory_order_release);
        }
        begin = end;
      }
    }
  };
};

}  // namespace vtkernels
