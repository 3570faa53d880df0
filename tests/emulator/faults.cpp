// Small kernels, most of them with one mistake: what the emulator must let pass and what it must not.
#include <algorithm>
#include <cstdlib>
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

// A warpgroup that multiplies boxes which its first thread has copied, twice through the same place, and what it does wrong.
enum class Fault { none, not_received, not_waited_for, early_arrival, no_arrival, no_room, twice, other_block, written };

constexpr int kRows = 64, kColumns = 128, kBytes = (kRows + kColumns) * 128;

template <class Number>
const uint16_t* halves(int rows, const Number& number) {
  static const uint16_t bits[] = {0xc000, 0xbc00, 0, 0x3c00, 0x4000};  // -2 to 2
  auto* x = static_cast<uint16_t*>(std::aligned_alloc(64, rows * 128));
  for (int i = 0; i < rows * 64; ++i) x[i] = bits[number(i / 64, i % 64) + 2];
  return x;
}
int of_row(int i, int k) { return (i + k) % 3 - 1; }
int of_column(int j, int k) { return (j + 2 * k) % 5 - 2; }

struct Warpgroup {
  static constexpr const char* name = "warpgroup";
  static constexpr int threads = 128;
  struct Arguments {
    Fault fault;
    cuda::TensorMap rows, columns;
  };

  static void run(Machine& m, const Arguments& a) {
    const auto rows = m.shared<unsigned char>(0), columns = m.shared<unsigned char>(kRows * 128);
    const auto full = m.shared<uint64_t>(kBytes), empty = full + 1;
    const int blocks = m.cluster_size();
    if (m.thread() == 0) {
      m.open_mailbox(full);
      m.open_mailbox(empty, a.fault == Fault::other_block ? 4 : 4 * blocks);
    }
    for (int i = m.thread(); a.fault == Fault::written && i < kRows * 128; i += threads) rows[i] = 0;
    m.sync_cluster();
    for (int round = 0; round < 2; ++round) {
      if (m.thread() == 0) {
        if (round > 0 && a.fault != Fault::no_room) m.receive(empty, 0);
        const int times = a.fault == Fault::twice ? 2 : 1;
        m.expect(full, a.fault == Fault::written ? kColumns * 128 : times * kBytes);
        for (int i = 0; i < times; ++i) {
          if (blocks == 1) m.copy_box<false>(columns, a.columns, 0, 0, 0, full);
          if (blocks == 2) m.copy_box<true>(columns + m.cluster_rank() * 8192, a.columns, 0, m.cluster_rank() * 64, 0, full);
          if (a.fault != Fault::written) m.copy_box<false>(rows, a.rows, 0, 0, 0, full);
        }
      }
      const auto arrive = [&] {
        if (m.lane() >= blocks) return;
        if (a.fault != Fault::other_block) m.arrive(empty, m.lane());
        if (a.fault == Fault::other_block && m.lane() == 0) m.arrive(empty, m.cluster_rank());
      };
      if (a.fault != Fault::not_received) m.receive(full, round);
      float c[64];
      m.wgmma_begin(c);
      for (int step = 0; step < 4; ++step) m.wgmma<false>(c, rows, columns, step, step > 0);
      if (a.fault == Fault::early_arrival) arrive();
      if (a.fault == Fault::not_waited_for) expect(c[0] == c[0]);
      m.wgmma_end(c);
      if (a.fault != Fault::early_arrival && (a.fault != Fault::no_arrival || m.warp() != 3)) arrive();
      for (int i = 0; i < 64; ++i) {
        const int row = 16 * m.warp() + 8 * (i / 2 % 2) + m.lane() / 4, column = 8 * (i / 4) + 2 * (m.lane() % 4) + i % 2;
        int sum = 0;
        for (int k = 0; k < 64; ++k) sum += of_row(row, k) * of_column(column, k);
        expect(c[i] == static_cast<float>(sum));
      }
    }
    m.sync_cluster();
  }
};

std::function<void()> warpgroup(Fault fault, int cluster = 1) {
  return [=] {
    static const uint16_t *rows = halves(kRows, of_row), *columns = halves(kColumns, of_column);
    const auto map = [&](const uint16_t* x, int n, int box) {
      return emulator::Stream::tensor_map({x, false, 64, n, 1, 128, 128 * n, box});
    };
    const Warpgroup::Arguments arguments{fault, map(rows, kRows, kRows), map(columns, kColumns, kColumns / cluster)};
    emulator::Stream().run<Warpgroup>(arguments, {cluster, 1, kBytes + 16, cluster, false});
  };
}

// Words between the blocks of a grid.
std::function<void()> words(int posted) {
  return [=] {
    alignas(16) static uint64_t words[2];
    words[0] = words[1] = 0;
    const auto body = [=](Machine& m) {
      if (m.thread() == 0 && m.block_x() < posted) m.post(words + m.block_x(), 7);
      uint64_t two[2];
      for (m.look(words, two); two[0] != 7 || two[1] != 7; m.look(words, two)) m.pause();
    };
    emulator::Stream().run<Kernel<decltype(body)>>({body}, {2, 1, 0, 1, true});
  };
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
    {"products of boxes", warpgroup(Fault::none)},
    {"products of boxes for two blocks", warpgroup(Fault::none, 2)},
    {"words", words(2)},

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
    {"box not received", warpgroup(Fault::not_received)},
    {"product not waited for", warpgroup(Fault::not_waited_for)},
    {"arrival before the product", warpgroup(Fault::early_arrival)},
    {"warp that does not arrive", warpgroup(Fault::no_arrival)},
    {"box without room", warpgroup(Fault::no_room)},
    {"box over a box", warpgroup(Fault::twice)},
    {"box over what the other block multiplies", warpgroup(Fault::other_block, 2)},
    {"product of what a thread wrote", warpgroup(Fault::written)},
    {"word that nobody posts", words(1)},
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
