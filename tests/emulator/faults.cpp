// Small kernels, most of them with one mistake: what the emulator must let pass and what it must not.
#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <string>

#include "emulator.h"

namespace {

using namespace vtkernels;
using emulator::Machine;

template <class Body>
struct Kernel {
  static constexpr const char* name = "kernel";
  static constexpr int threads = 64;
  struct Arguments {
    Body body;
  };
  template <class M>
  static void run(M& m, const Arguments& a) {
    a.body(m);
  }
};

constexpr int64_t kShared = 1024;

template <class Body>
std::function<void()> kernel(Body body, int cluster = 1, int64_t blocks = 0) {
  return [=] { emulator::Stream().run<Kernel<Body>>({body}, {blocks != 0 ? blocks : cluster, 1, kShared, cluster, false}); };
}

int global[64];

// Two launches, of which the second may start before the first has ended.
template <class First, class Second>
std::function<void()> launches(First first, Second second) {
  return [=] {
    std::fill(std::begin(global), std::end(global), 0);
    const emulator::Stream stream;
    stream.run<Kernel<First>>({first}, {2, 1, kShared});
    stream.run<Kernel<Second>>({second}, {2, 1, kShared, 1, false, true});
  };
}

void expect(bool right) {
  if (!right) emulator::fail("wrong result");
}

// Shared integers, each written by the thread of its number.
auto numbered(Machine& m) {
  auto s = m.shared<int>(0);
  s[m.thread()] = m.thread();
  return s;
}

const std::map<std::string, std::function<void()>> kKernels{
    // what is right
    {"barrier", kernel([](Machine& m) {
       auto s = numbered(m);
       m.sync();
       expect(s[63 - m.thread()] == 63 - m.thread());
     })},
    {"barrier of the warp", kernel([](Machine& m) {
       auto s = numbered(m);
       m.sync_warp();
       expect(s[m.thread() ^ 31] == (m.thread() ^ 31));
     })},
    {"barrier of the cluster", kernel(
                                   [](Machine& m) {
                                     auto s = numbered(m);
                                     m.sync_cluster();
                                     expect(m.peer(s, 1 - m.cluster_rank())[63 - m.thread()] == 63 - m.thread());
                                     m.sync_cluster();
                                   },
                                   2)},
    {"atomics", kernel([](Machine& m) {
       auto s = m.shared<int>(0);
       if (m.thread() == 0) s[0] = 0;
       m.sync();
       m.add_shared<int>(s, 2);
       m.sync();
       expect(s[0] == 128);
     })},
    {"copies", kernel([](Machine& m) {
       alignas(16) static const int from[4] = {1, 2, 3, 4};
       auto s = m.shared<int>(0);
       if (m.thread() == 0) m.copy16(s, from, true);
       m.commit_copies();
       m.wait_copies<0>();
       m.sync();
       expect(s[m.thread() % 4] == m.thread() % 4 + 1);
     })},
    {"shuffles and votes", kernel([](Machine& m) {
       expect(m.shuffle(m.thread(), 5) == m.warp() * 32 + 5);
       expect(m.shuffle_xor(m.lane(), 1) == (m.lane() ^ 1));
       expect(m.ballot(m.lane() % 2 == 1) == 0xaaaaaaaau);
       expect(m.reduce_min(static_cast<uint32_t>(100 - m.lane())) == 69);
       expect(m.reduce_add(static_cast<uint32_t>(m.lane())) == 496);
     })},

    {"dependent launch", launches(
                             [](Machine& m) {
                               m.let_next_launch_start();
                               if (m.block_x() == 1) global[m.thread()] = m.thread();
                             },
                             [](Machine& m) {
                               m.wait_for_previous_launch();
                               expect(global[63 - m.thread()] == 63 - m.thread());
                             })},

    // races
    {"no barrier", kernel([](Machine& m) {
       auto s = numbered(m);
       expect(s[0] == 0);
     })},
    {"barrier of the warp for the block", kernel([](Machine& m) {
       auto s = numbered(m);
       m.sync_warp();
       expect(s[m.lane()] >= 0);
     })},
    {"barrier of the block for the cluster", kernel(
                                                 [](Machine& m) {
                                                   auto s = numbered(m);
                                                   m.sync_cluster();
                                                   m.peer(s, 1 - m.cluster_rank())[m.thread()] = 7;
                                                   m.sync();
                                                   expect(s[m.thread()] == 7);
                                                 },
                                                 2)},
    {"write under a reader", kernel([](Machine& m) {
       auto s = numbered(m);
       m.sync();
       if (m.thread() == 5) s[0] = 1;
       if (m.thread() != 5) expect(s[0] == 0);
     })},
    {"write under a reader, read last by the writer", kernel([](Machine& m) {
       auto s = numbered(m);
       m.sync();
       expect(s[0] == 0);
       if (m.thread() == 5) s[0] = 1;
     })},
    {"two writers", kernel([](Machine& m) {
       auto s = m.shared<int>(0);
       s[0] = m.thread();
     })},
    {"read among atomics", kernel([](Machine& m) {
       auto s = m.shared<int>(0);
       if (m.thread() == 0) s[0] = 0;
       m.sync();
       m.add_shared<int>(s, 2);
       expect(s[0] >= 2);
     })},

    // barriers
    {"half of the block at a barrier", kernel([](Machine& m) {
       if (m.thread() < 32) m.sync();
     })},
    {"half of the warp at a shuffle", kernel([](Machine& m) {
       if (m.lane() < 16) expect(m.shuffle(1, 0) == 1);
     })},
    {"one block at the barrier of the cluster", kernel(
                                                    [](Machine& m) {
                                                      if (m.cluster_rank() == 0) m.sync_cluster();
                                                    },
                                                    2)},

    // memory
    {"nothing wrote it", kernel([](Machine& m) { expect(m.shared<int>(0)[m.thread()] == 0); })},
    {"copy not waited for", kernel([](Machine& m) {
       alignas(16) static const int from[4] = {1, 2, 3, 4};
       auto s = m.shared<int>(0);
       if (m.thread() == 0) m.copy16(s, from, true);
       m.commit_copies();
       m.sync();
       expect(s[0] == 1);
     })},
    {"behind the end", kernel([](Machine& m) { m.shared<int>(0)[kShared / 4] = 1; })},
    {"half behind the end", kernel([](Machine& m) { m.shared<int64_t>(0)[kShared / 8] = 1; })},
    {"before the start", kernel([](Machine& m) { m.shared<int>(0)[-1] = 1; })},
    {"misaligned", kernel([](Machine& m) { m.shared<int>(2)[0] = 1; })},

    // clusters
    {"rank beyond the cluster", kernel([](Machine& m) { m.peer(m.shared<int>(0), 2)[m.thread()] = 1; }, 2)},
    {"negative rank", kernel([](Machine& m) { m.peer(m.shared<int>(0), -1)[m.thread()] = 1; }, 2)},
    {"half a cluster", kernel([](Machine&) {}, 2, 3)},

    // launches
    {"read before the launch before", launches([](Machine& m) { global[m.thread()] = m.thread(); },
                                               [](Machine& m) {
                                                 const int early = global[63 - m.thread()];
                                                 m.wait_for_previous_launch();
                                                 expect(early == 63 - m.thread());
                                               })},
    {"write under the launch before", launches([](Machine& m) { expect(global[m.thread()] == 0); },
                                               [](Machine& m) {
                                                 global[m.thread()] = 1;
                                                 m.wait_for_previous_launch();
                                               })},
    {"launch before not waited for", launches([](Machine&) {},
                                              [](Machine& m) {
                                                if (m.block_x() == 0) m.wait_for_previous_launch();
                                              })},
    {"first launch that waits",
     [] { emulator::Stream().run<Kernel<void (*)(Machine&)>>({[](Machine&) {}}, {1, 1, kShared, 1, false, true}); }},
};

}  // namespace

// 0 and nothing, 1 and what the emulator says, -1 for an unknown kernel.
extern "C" __attribute__((visibility("default"))) int run_kernel(const char* name, char* message, int size) {
  const auto found = kKernels.find(name);
  if (found == kKernels.end()) return -1;
  try {
    found->second();
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), static_cast<size_t>(size) - 1);
    return 1;
  }
  return 0;
}

extern "C" __attribute__((visibility("default"))) int kernels() { return static_cast<int>(kKernels.size()); }
