// Small kernels, most of them with one mistake: what the emulator must let pass and what it must not.
#include <cstring>
#include <functional>
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

void expect(bool right) {
  if (!right) emulator::fail("wrong result");
}

// Shared integers, each written by the thread of its number.
auto numbered(Machine& m) {
  auto s = m.shared<int>(0);
  s[m.thread()] = m.thread();
  return s;
}

struct alignas(16) Letter {
  int64_t round, from;
};

// Two blocks that write to each other in every round: `turns` sets of slots, and `told` letters that a block expects.
struct Post {
  Machine& m;
  int turns;
  emulator::Shared<Letter> slots;
  emulator::Shared<uint64_t> boxes;

  Post(Machine& machine, int turns)
      : m(machine), turns(turns), slots(m.shared<Letter>(0)), boxes(m.shared<uint64_t>(kShared / 2)) {
    if (m.thread() < turns) m.open_mailbox(boxes + m.thread());
    m.sync_cluster();
  }
  int turn(int round) const { return round % turns; }
  void send(int round, int told = 2) {
    if (m.thread() == 0) m.expect(boxes + turn(round), told * static_cast<int>(sizeof(Letter)));
    write(round);
  }
  void write(int round) {
    for (int rank = 0; rank < 2 && m.thread() == 0; ++rank) {
      m.send(slots + (2 * turn(round) + m.cluster_rank()), rank, Letter{round, m.cluster_rank()}, boxes + turn(round));
    }
  }
  void receive(int round) { m.receive(boxes + turn(round), round / turns % 2); }
  Letter from(int round, int rank) const { return slots[2 * turn(round) + rank]; }
};

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
     })},

    {"letters", kernel(
                    [](Machine& m) {
                      Post post(m, 2);
                      for (int round = 0; round < 5; ++round) {
                        post.send(round);
                        post.receive(round);
                        for (int rank = 0; rank < 2; ++rank) {
                          const Letter letter = post.from(round, rank);
                          expect(letter.round == round && letter.from == rank);
                        }
                        m.sync();
                      }
                    },
                    2)},

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

    // letters
    {"letter that was not received", kernel(
                                         [](Machine& m) {
                                           Post post(m, 2);
                                           post.send(0);
                                           m.sync_cluster();
                                           expect(post.from(0, 1 - m.cluster_rank()).round == 0);
                                         },
                                         2)},
    {"letters that take no turns", kernel(
                                       [](Machine& m) {
                                         Post post(m, 1);
                                         for (int round = 0; round < 2; ++round) {
                                           post.send(round);
                                           post.receive(round);
                                           expect(post.from(round, 1 - m.cluster_rank()).round == round);
                                           m.sync();
                                         }
                                       },
                                       2)},
    {"sent before the block has read", kernel(
                                           [](Machine& m) {
                                             Post post(m, 2);
                                             for (int round = 0; round < 3; ++round) {
                                               post.send(round);
                                               post.receive(round);
                                               expect(post.from(round, 1 - m.cluster_rank()).round == round);
                                             }
                                           },
                                           2)},
    {"more letters than expected", kernel(
                                       [](Machine& m) {
                                         Post post(m, 2);
                                         post.write(0);
                                         m.sync_cluster();
                                         if (m.thread() == 0) m.expect(post.boxes, sizeof(Letter));
                                         post.receive(0);
                                       },
                                       2)},
    {"letter that nobody sends", kernel(
                                     [](Machine& m) {
                                       Post post(m, 2);
                                       post.send(0, 3);
                                       post.receive(0);
                                     },
                                     2)},

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
