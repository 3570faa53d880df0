// A GPU on the host, for tests: runs the kernels of csrc/include/vtkernels/cuda one fiber per thread, in lockstep from barrier
// to barrier. Shared memory is poisoned; reading what nothing wrote, leaving its bounds, racing for it (a write and an access
// of another thread without a barrier between them) and barriers that not all threads reach are errors with a message.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "fiber.h"
#include "vtkernels/cuda/element.cuh"
#include "vtkernels/cuda/machine.cuh"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::emulator {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

struct Barrier {
  int size = 0;
  int64_t passed = 0;  // how often all have arrived
  std::vector<int> waiting;
};

// Who touched a byte last, and when: the barriers that its block, warp and cluster had passed by then.
struct Touch {
  static constexpr int nobody = -1, letter = -2;
  int thread = nobody;  // of the whole group
  int64_t block = 0, warp = 0, cluster = 0;
  int64_t box = 0, round = 0;  // of a letter
};

// Rounds of letters so far, counted once for the blocks of a cluster.
inline int64_t& exchanges() {
  static int64_t count = 0;
  return count;
}

// Counts the arrivals of a round, and the bytes of its letters.
struct Mailbox {
  bool counts = false;            // of the first block
  int arrivals = 1, arrived = 0;  // wanted and seen in this round
  int64_t expected = 0, come = 0, rounds = 0;
  std::vector<int64_t> known, coming;  // the barriers of every block that the senders knew of: of the last round, of this one
  std::map<int, int64_t> heard, hearing;  // and those of the warps that arrived
  std::vector<int> waiting;
};

// A warp whose tensor cores read 1024 bytes of shared memory, and when.
struct TensorRead {
  int warp;  // of the whole group
  Touch when;
};

struct Warp {
  Barrier barrier;
  alignas(16) unsigned char slot[32][32];
};

struct Block {
  int x = 0, y = 0, rank = 0;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;
  std::vector<Touch> written, read, read_before;            // the last reader, and the last one that was another thread
  std::vector<bool> reduced;                                // last written by an atomic, which may follow another one
  std::map<int64_t, std::vector<TensorRead>> tensor_reads;  // by the number of the 1024 bytes, since they were written
  std::map<int64_t, Mailbox> boxes;
};

// Blocks that run at the same time: a cluster, or a whole grid whose blocks wait for each other.
struct Group {
  const char* kernel = "";
  int threads = 0, cluster = 1, grid_x = 1;
  std::vector<Block> blocks;
  std::vector<Barrier> clusters;
  Barrier grid;

  std::vector<Fiber> fibers;
  std::vector<bool> done;
  std::vector<int> ready;  // to run next
  int running = 0;
  bool progress = false;
  std::exception_ptr error;
  std::function<void(int)> body;

  std::function<void()> previous;  // the launch before, where this one may start earlier
  std::vector<int> for_previous;   // who waits for it

  void wait(Barrier& barrier) {
    progress = true;
    if (static_cast<int>(barrier.waiting.size()) + 1 == barrier.size) {
      ++barrier.passed;
      wake(barrier.waiting);
      return;
    }
    sleep(barrier.waiting);
  }

  // Until wake() is called for those who sleep there.
  void sleep(std::vector<int>& waiting) {
    waiting.push_back(running);
    fibers[running].yield();
  }

  // Until the others have run.
  void pause() {
    ready.push_back(running);
    fibers[running].yield();
  }

  void wake(std::vector<int>& waiting) {
    progress = true;
    ready.insert(ready.end(), waiting.begin(), waiting.end());
    waiting.clear();
  }
};

template <class T>
class Shared;

// The machine of one thread; see vtkernels/cuda/machine.cuh for what its members mean.
class Machine {
 public:
  Machine(Group& group, int index)
      : group_(&group),
        index_(index),
        thread_(index % group.threads),
        block_(&group.blocks[index / group.threads]),
        warp_(&block_->warps[thread_ / 32]),
        cluster_(&group.clusters[index / group.threads / group.cluster]),
        known_(group.cluster) {}

  int thread() const { return thread_; }
  int threads() const { return group_->threads; }
  int lane() const { return thread() % 32; }
  int warp() const { return thread() / 32; }
  int warps() const { return group_->threads / 32; }
  int block_x() const { return block().x; }
  int block_y() const { return block().y; }
  int blocks_x() const { return group_->grid_x; }
  int cluster_rank() const { return block().rank; }
  int cluster_size() const { return group_->cluster; }

  void sync() { group_->wait(block().barrier); }
  void sync_warp() { group_->wait(own_warp().barrier); }
  void sync_cluster() {
    group_->wait(block().barrier);
    group_->wait(cluster());
    for (int rank = 0; rank < group_->cluster; ++rank) known_[rank] = of_cluster(rank).barrier.passed;
  }
  // The launch before runs when nobody can do anything else: as late as it may, so that what is read or written too early is
  // wrong. (In the first group of blocks; those that follow find it complete.)
  void wait_for_previous_launch() {
    waited_ = true;
    if (group_->previous) group_->sleep(group_->for_previous);
  }
  bool has_waited() const { return waited_; }
  void let_next_launch_start() {}

  void sync_grid(uint32_t*, uint32_t) {
    group_->wait(block().barrier);
    group_->wait(group_->grid);
  }

  template <class T>
  T shuffle(T x, int lane) {
    static_assert(sizeof(T) <= 32);
    std::memcpy(own_warp().slot[this->lane()], &x, sizeof x);
    sync_warp();
    std::memcpy(&x, own_warp().slot[lane & 31], sizeof x);
    sync_warp();
    return x;
  }
  template <class T>
  T shuffle_xor(T x, int mask) {
    return shuffle(x, lane() ^ mask);
  }
  uint32_t ballot(bool x) {
    own_warp().slot[lane()][0] = x;
    sync_warp();
    uint32_t word = 0;
    for (int i = 0; i < 32; ++i) word |= static_cast<uint32_t>(own_warp().slot[i][0]) << i;
    sync_warp();
    return word;
  }

  uint32_t reduce_min(uint32_t x) {
    std::memcpy(own_warp().slot[lane()], &x, sizeof x);
    sync_warp();
    for (int i = 0; i < 32; ++i) {
      uint32_t other;
      std::memcpy(&other, own_warp().slot[i], sizeof other);
      if (other < x) x = other;
    }
    sync_warp();
    return x;
  }

  uint32_t reduce_add(uint32_t x) {
    std::memcpy(own_warp().slot[lane()], &x, sizeof x);
    sync_warp();
    x = 0;
    for (int i = 0; i < 32; ++i) {
      uint32_t other;
      std::memcpy(&other, own_warp().slot[i], sizeof other);
      x += other;
    }
    sync_warp();
    return x;
  }

  template <class T>
  using Shared = emulator::Shared<T>;
  template <class T>
  Shared<T> shared(int64_t byte) {
    return Shared<T>(*this, block(), byte);
  }
  template <class T>
  void add_shared(Shared<T> at, T x) {
    at.add(x);
  }
  template <class T>
  T fetch_add_shared(Shared<T> at, T x) {
    return at.add(x);
  }
  template <class T>
  Shared<T> peer(Shared<T> at, int rank) {
    if (rank < 0 || rank >= group_->cluster)
      fail(group_->kernel, ": no block of rank ", rank, " in a cluster of ", group_->cluster);
    return at.in(of_cluster(rank));
  }

  // A letter that overwrites what its sender cannot know to have been read is an error, and so is to read one before receive().
  void open_mailbox(Shared<uint64_t> box, int arrivals = 1);
  void arrive(Shared<uint64_t> box, int rank);
  void expect(Shared<uint64_t> box, int bytes);
  template <class T>
  void send(Shared<T> at, int rank, const T& x, Shared<uint64_t> box);
  void receive(Shared<uint64_t> box, int parity);
  bool has_received(int64_t box, int64_t round) const { return received_.count(box) != 0 && received_.at(box) > round; }
  template <class T>
  T fresh(const T* at) const {
    return *at;
  }

  void post(uint64_t* at, uint64_t word) const {
    group_->progress = true;
    *at = word;
  }
  void look(const uint64_t* at, uint64_t (&two)[2]) const {
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0) fail(group_->kernel, ": looks at words that are not aligned to 16");
    std::copy(at, at + 2, two);
  }
  void pause() const { group_->pause(); }

  // Copies arrive when they are waited for, and not before.
  template <class T>
  void copy16(Shared<T> to, const void* from, bool valid) {
    Copy copy{to.place(), {}, open_};
    if (valid) std::memcpy(copy.bytes, from, 16);
    copies_.push_back(copy);
  }
  void commit_copies() { ++open_; }
  template <int Pending>
  void wait_copies() {
    arrive(open_ - Pending);
  }

  template <bool BFloat16>
  void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    std::memcpy(own_warp().slot[lane()], a, 16);
    std::memcpy(own_warp().slot[lane()] + 16, b, 8);
    sync_warp();
    const auto half = [&](int owner, int word, int part) {
      uint16_t bits;
      std::memcpy(&bits, own_warp().slot[owner] + 4 * word + 2 * part, 2);
      return BFloat16 ? float_from_bfloat16(bits) : float_from_float16(bits);
    };
    for (int i = 0; i < 4; ++i) {
      const int row = lane() / 4 + (i >= 2 ? 8 : 0), column = lane() % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        const float x = half(row % 8 * 4 + k % 8 / 2, (row >= 8) + (k >= 8) * 2, k % 2);
        sum += x * half(column * 4 + k % 8 / 2, 4 + (k >= 8), k % 2);
      }
      c[i] += sum;
    }
    sync_warp();
  }

  // Warpgroups read shared memory at wgmma_end() and leave nothing in c before; registers are not counted. What a box is copied
  // over must have been read by warps that have arrived at a mailbox that the copying thread has received from.
  static constexpr bool warpgroups = true;
  template <bool Everywhere>
  void copy_box(Shared<unsigned char> to, const cuda::TensorMap& map, int channel, int row, int image, Shared<uint64_t> box);
  template <bool BFloat16>
  void wgmma(float (&c)[64], Shared<unsigned char> a, Shared<unsigned char> b, int step, bool add);
  void wgmma_begin(float (&c)[64]);
  void wgmma_end(float (&c)[64]);
  template <int Count>
  void fewer_registers() const {}
  template <int Count>
  void more_registers() const {}
  // Whether a warp is known to have passed the barrier that followed a read.
  bool has_heard(int warp, const Touch& when) const { return heard_.count(warp) != 0 && heard_.at(warp) > when.warp; }

  Group& group() const { return *group_; }
  Block& block() const { return *block_; }
  int index() const { return index_; }
  Touch now() const { return {index_, block_->barrier.passed, warp_->barrier.passed, cluster_->passed}; }

 private:
  struct Copy {
    int64_t to;
    unsigned char bytes[16];
    int group;
  };
  // A product that is under way.
  struct Product {
    bool bfloat16, add;
    int64_t a, b;  // bytes of shared memory
    int step;
  };
  void arrive(int before);
  void multiply(const Product& product, float (&c)[64]);
  uint16_t half_of_row(int64_t rows, int row, int channel);
  Block& of_cluster(int rank) const { return *(block_ - block_->rank + rank); }
  Mailbox& mailbox(Block& block, int64_t box) const {
    const auto found = block.boxes.find(box);
    if (found == block.boxes.end()) fail(group_->kernel, ": no mailbox was opened at shared byte ", box, " of block ", block.x);
    return found->second;
  }
  void count(Mailbox& box);
  Warp& own_warp() const { return *warp_; }
  Barrier& cluster() const { return *cluster_; }

  Group* group_;
  int index_, thread_;
  Block* block_;
  Warp* warp_;
  Barrier* cluster_;
  bool waited_ = false;
  int open_ = 0;
  std::vector<Copy> copies_;
  std::vector<int64_t> known_;  // barriers that the blocks of the cluster have passed, as far as this thread has been told
  std::map<int64_t, int64_t> received_;
  std::map<int, int64_t> heard_;  // barriers of the warps that arrived where this thread received
  bool multiplying_ = false;
  float before_[64];  // c, while products are under way
  std::vector<Product> products_;
};

// A pointer into shared memory that watches every access.
template <class T>
class Shared {
 public:
  class Element {
   public:
    Element(const Shared& from, int64_t i) : at_(from + i) {}
    operator T() const { return at_.load(); }
    T operator=(T x) {
      at_.store(x, false);
      return x;
    }
    T operator=(const Element& x) { return *this = static_cast<T>(x); }

   private:
    Shared at_;
  };

  Shared(Machine& machine, Block& block, int64_t byte) : machine_(&machine), block_(&block), byte_(byte) {}
  Element operator[](int64_t i) const { return Element(*this, i); }
  Shared operator+(int64_t i) const { return Shared(*machine_, *block_, byte_ + i * static_cast<int64_t>(sizeof(T))); }
  Shared in(Block& block) const { return Shared(*machine_, block, byte_); }
  int64_t place() const { return byte_; }

  T add(T x) const {
    const T before = load(true);
    store(static_cast<T>(before + x), true);
    return before;
  }

  T load(bool atomic = false) const {
    check();
    const Touch now = machine_->now();
    T x;
    for (size_t i = 0; i < sizeof(T); ++i) {
      const Touch& writer = block_->written[byte_ + i];
      if (writer.thread == Touch::nobody) complain("reads what nothing wrote");
      if (!(atomic && block_->reduced[byte_ + i])) {
        ordered(writer, now, "reads what thread ", " wrote without a barrier in between");
      }
      if (atomic) continue;
      Touch& reader = block_->read[byte_ + i];
      if (reader.thread != now.thread) block_->read_before[byte_ + i] = reader;
      reader = now;
    }
    std::memcpy(&x, block_->memory.data() + byte_, sizeof x);
    return x;
  }

  void store(T x, bool atomic) const {
    check();
    const Touch now = machine_->now();
    for (size_t i = 0; i < sizeof(T); ++i) {
      if (!(atomic && block_->reduced[byte_ + i])) {
        ordered(block_->written[byte_ + i], now, "writes what thread ", " wrote without a barrier in between");
      }
      for (const auto* readers : {&block_->read, &block_->read_before}) {
        ordered((*readers)[byte_ + i], now, "writes what thread ", " reads without a barrier in between");
      }
      block_->written[byte_ + i] = now;
      block_->reduced[byte_ + i] = atomic;
    }
    for (const TensorRead& read : tensor_reads())
      ordered(read.when, now, "writes what thread ", " multiplies without a barrier in between");
    std::memcpy(block_->memory.data() + byte_, &x, sizeof x);
  }

  // As a letter; `known`: barriers that its sender knows the block to have passed.
  void deliver(T x, int64_t known, int64_t box, int64_t round) const {
    check();
    for (size_t i = 0; i < sizeof(T); ++i) {
      if (block_->written[byte_ + i].thread >= 0) complain("sends a letter over what a thread wrote");
      for (const auto* readers : {&block_->read, &block_->read_before}) {
        const Touch& reader = (*readers)[byte_ + i];
        if (reader.thread >= 0 && reader.block >= known) complain("sends a letter over one that may not have been read");
      }
      block_->written[byte_ + i] = {Touch::letter, 0, 0, 0, box, round};
    }
    std::memcpy(block_->memory.data() + byte_, &x, sizeof x);
  }

  // Sixteen bytes of a box that is copied; see deliver().
  void paste(const unsigned char* from, int64_t known, int64_t box, int64_t round) const {
    for (int i = 0; i < 16; ++i) {
      const Touch& writer = block_->written[byte_ + i];
      if (writer.thread >= 0) complain("has a box copied over what a thread wrote");
      if (writer.thread == Touch::letter && block_->boxes.at(writer.box).rounds <= writer.round)
        complain("has a box copied over one that has not come");
      for (const auto* readers : {&block_->read, &block_->read_before}) {
        const Touch& reader = (*readers)[byte_ + i];
        if (reader.thread >= 0 && reader.block >= known && !machine_->has_heard(reader.thread / 32, reader))
          complain("has a box copied over one that may not have been read");
      }
      block_->written[byte_ + i] = {Touch::letter, 0, 0, 0, box, round};
    }
    for (const TensorRead& read : tensor_reads()) {
      if (read.when.block >= known && !machine_->has_heard(read.warp, read.when))
        complain("has a box copied over one that may not have been multiplied");
    }
    std::memcpy(block_->memory.data() + byte_, from, 16);
  }

  // As the tensor cores read: what a box brought.
  void check_box() const {
    check();
    const Touch& writer = block_->written[byte_];
    if (writer.thread == Touch::nobody) complain("multiplies what nothing wrote");
    if (writer.thread >= 0) complain("multiplies what a thread wrote, which the tensor cores may not see");
    if (!machine_->has_received(writer.box, writer.round)) complain("multiplies a box before it came");
  }

  template <class... Parts>
  [[noreturn]] void complain(const Parts&... parts) const {
    fail(machine_->group().kernel, ": thread ", machine_->thread(), " of block ", machine_->block_x(), " ", parts...,
         " (shared byte ", byte_, " of block ", block_->x, ")");
  }

 private:
  const std::vector<TensorRead>& tensor_reads() const {
    static const std::vector<TensorRead> none;
    const auto found = block_->tensor_reads.find(byte_ / 1024);
    return found == block_->tensor_reads.end() ? none : found->second;
  }

  void check() const {
    if (byte_ < 0 || byte_ + static_cast<int64_t>(sizeof(T)) > static_cast<int64_t>(block_->memory.size())) {
      complain("leaves the ", block_->memory.size(), " bytes of shared memory");
    }
    if (byte_ % sizeof(T) != 0) complain("is not aligned to ", sizeof(T));
  }

  void ordered(const Touch& other, const Touch& now, const char* what, const char* rest) const {
    if (other.thread == Touch::letter && !machine_->has_received(other.box, other.round))
      complain("touches a letter before it came");
    if (other.thread < 0 || other.thread == now.thread) return;
    const int threads = machine_->threads();
    const bool same_block = other.thread / threads == now.thread / threads;
    const bool same_warp = same_block && other.thread % threads / 32 == now.thread % threads / 32;
    if (same_block ? other.block < now.block : other.cluster < now.cluster) return;
    if (same_warp && other.warp < now.warp) return;
    complain(what, other.thread % threads, rest);
  }

  Machine* machine_;
  Block* block_;
  int64_t byte_;
};

inline void Machine::arrive(int before) {
  std::vector<Copy> later;
  for (const Copy& copy : copies_) {
    if (copy.group >= before) {
      later.push_back(copy);
      continue;
    }
    const Shared<unsigned char> to(*this, block(), copy.to);
    for (int i = 0; i < 16; ++i) to[i] = copy.bytes[i];
  }
  copies_ = later;
}

inline void Machine::open_mailbox(Shared<uint64_t> box, int arrivals) {
  const std::vector<int64_t> nothing(group_->cluster);
  block().boxes[box.place()] = {block().rank == 0, arrivals, 0, 0, 0, 0, nothing, nothing, {}, {}, {}};
}

inline void Machine::count(Mailbox& box) {
  group_->progress = true;
  if (box.arrived < box.arrivals || box.come < box.expected) return;
  if (box.come > box.expected) fail(group_->kernel, ": ", box.come, " bytes of letters where ", box.expected, " were expected");
  box.known = box.coming;
  box.heard = box.hearing;
  box.arrived = 0;
  box.expected = box.come = 0;
  ++box.rounds;
  exchanges() += box.counts;
  group_->wake(box.waiting);
}

inline void Machine::expect(Shared<uint64_t> at, int bytes) {
  Mailbox& box = mailbox(block(), at.place());
  if (box.arrived == box.arrivals) fail(group_->kernel, ": a mailbox is told twice in a round what to expect");
  ++box.arrived;
  box.expected += bytes;
  count(box);
}

inline void Machine::arrive(Shared<uint64_t> at, int rank) {
  Mailbox& box = mailbox(of_cluster(rank), at.place());
  if (box.arrived == box.arrivals) fail(group_->kernel, ": more than ", box.arrivals, " arrivals in a round of a mailbox");
  box.hearing[index_ / 32] = warp_->barrier.passed;
  ++box.arrived;
  count(box);
}

template <class T>
void Machine::send(Shared<T> at, int rank, const T& x, Shared<uint64_t> to) {
  static_assert(sizeof(T) == 16);
  known_[block().rank] = block().barrier.passed;
  Block& other = of_cluster(rank);
  Mailbox& box = mailbox(other, to.place());
  at.in(other).deliver(x, known_[rank], to.place(), box.rounds);
  for (int r = 0; r < group_->cluster; ++r) box.coming[r] = std::max(box.coming[r], known_[r]);
  box.come += sizeof x;
  count(box);
}

inline void Machine::receive(Shared<uint64_t> at, int parity) {
  Mailbox& box = mailbox(block(), at.place());
  while (box.rounds % 2 == parity) group_->sleep(box.waiting);
  group_->progress = true;
  received_[at.place()] = box.rounds;
  for (int r = 0; r < group_->cluster; ++r) known_[r] = std::max(known_[r], box.known[r]);
  for (const auto& [warp, passed] : box.heard) heard_[warp] = std::max(heard_[warp], passed);
}

template <bool Everywhere>
void Machine::copy_box(Shared<unsigned char> to, const cuda::TensorMap& map, int channel, int row, int image,
                       Shared<uint64_t> box) {
  cuda::TensorBoxes boxes;
  std::memcpy(&boxes, map.opaque, sizeof boxes);
  if (to.place() % 1024 != 0) to.complain("has a box copied to no multiple of 1024");
  known_[block().rank] = block().barrier.passed;
  for (int rank = 0; rank < group_->cluster; ++rank) {
    if (!Everywhere && rank != block().rank) continue;
    Block& other = of_cluster(rank);
    Mailbox& counted = mailbox(other, box.place());
    for (int r = 0; r < boxes.rows; ++r) {
      for (int piece = 0; piece < 8; ++piece) {
        uint16_t halves[8] = {};
        for (int e = 0; e < 8; ++e) {
          const int64_t c = channel + 8 * piece + e;
          if (c >= boxes.channels || row + r >= boxes.n || image >= boxes.images) continue;
          const auto* line = static_cast<const char*>(boxes.data) + image * boxes.image_bytes + (row + r) * boxes.row_bytes;
          std::memcpy(&halves[e], line + 2 * c, 2);
        }
        unsigned char bytes[16];
        std::memcpy(bytes, halves, 16);
        const auto at = (to + 128 * r + 16 * (piece ^ (r & 7))).in(other);
        at.paste(bytes, known_[rank], box.place(), counted.rounds);
      }
    }
    for (int r = 0; r < boxes.rows; r += 8) other.tensor_reads.erase((to.place() + 128 * r) / 1024);
    for (int r = 0; r < group_->cluster; ++r) counted.coming[r] = std::max(counted.coming[r], known_[r]);
    counted.come += int64_t{128} * boxes.rows;
    count(counted);
  }
}

inline void Machine::wgmma_begin(float (&)[64]) {
  if (!products_.empty()) fail(group_->kernel, ": products begin while others are under way");
  multiplying_ = true;
}

template <bool BFloat16>
void Machine::wgmma(float (&c)[64], Shared<unsigned char> a, Shared<unsigned char> b, int step, bool add) {
  if (!multiplying_) fail(group_->kernel, ": a product without wgmma_begin()");
  for (const auto& rows : {a, b}) {
    if (rows.place() % 1024 != 0) rows.complain("multiplies rows that begin at no multiple of 1024");
  }
  if (products_.empty()) {
    for (int e = 0; e < 64; ++e) {
      before_[e] = c[e];
      c[e] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  products_.push_back({BFloat16, add, a.place(), b.place(), step});
}

inline void Machine::wgmma_end(float (&c)[64]) {
  sync_warp();
  for (const Product& product : products_) multiply(product, before_);
  if (!products_.empty()) std::copy(before_, before_ + 64, c);
  products_.clear();
  multiplying_ = false;
  sync_warp();
}

inline uint16_t Machine::half_of_row(int64_t rows, int row, int channel) {
  uint16_t bits;
  std::memcpy(&bits, block().memory.data() + rows + 128 * row + 16 * (channel / 8 ^ (row & 7)) + 2 * (channel % 8), 2);
  return bits;
}

// A lane has rows g and g + 8 of its warp, and columns 2 t and 2 t + 1 of every eight.
inline void Machine::multiply(const Product& product, float (&c)[64]) {
  const int first = warp() % 4 * 16, g = lane() / 4, t = lane() % 4;
  const auto check = [&](int64_t rows, int row, int piece) {
    shared<unsigned char>(rows + 128 * row + 16 * ((2 * product.step + piece) ^ (row & 7))).check_box();
  };
  check(product.a, first + lane() / 2, lane() % 2);
  for (int i = 0; i < 8; ++i) check(product.b, 16 * i + lane() / 2, lane() % 2);
  if (lane() == 0) {
    for (int i = 0; i < 18; ++i) {
      const int64_t byte = i < 2 ? product.a + 128 * (first + 8 * i) : product.b + 1024 * (i - 2);
      block().tensor_reads[byte / 1024].push_back({index_ / 32, now()});
    }
  }
  const auto number = [&](int64_t rows, int row, int k) {
    const uint16_t bits = half_of_row(rows, row, 16 * product.step + k);
    return product.bfloat16 ? float_from_bfloat16(bits) : float_from_float16(bits);
  };
  float a[2][16];
  for (int r = 0; r < 2; ++r) {
    for (int k = 0; k < 16; ++k) a[r][k] = number(product.a, first + g + 8 * r, k);
  }
  for (int column = 0; column < 16; ++column) {
    for (int e = 0; e < 2; ++e) {
      float b[16];
      for (int k = 0; k < 16; ++k) b[k] = number(product.b, 8 * column + 2 * t + e, k);
      for (int r = 0; r < 2; ++r) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += a[r][k] * b[k];
        float& to = c[4 * column + 2 * r + e];
        to = product.add ? to + sum : sum;
      }
    }
  }
}

// Runs all blocks of a launch, cluster by cluster: at the next launch that waits for it, or at the end.
class Stream {
 public:
  Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() noexcept(false) {
    if (std::uncaught_exceptions() == 0) finish();
  }

  static cuda::TensorMap tensor_map(const cuda::TensorBoxes& boxes) {
    static_assert(sizeof boxes <= sizeof(cuda::TensorMap));
    const auto bad = [](int64_t x) { return x <= 0 || x % 16 != 0; };
    if (reinterpret_cast<uintptr_t>(boxes.data) % 16 != 0 || bad(boxes.row_bytes) || bad(boxes.image_bytes)) {
      fail("a tensor map needs multiples of 16 bytes");
    }
    if (boxes.channels < 1 || boxes.n < 1 || boxes.images < 1 || boxes.rows < 1 || boxes.rows > 256) {
      fail("a tensor map of nothing, or with boxes that are too large");
    }
    cuda::TensorMap map{};
    std::memcpy(map.opaque, &boxes, sizeof boxes);
    return map;
  }

  template <class Kernel>
  void run(const typename Kernel::Arguments& arguments, const cuda::Shape& shape) const {
    if (!shape.dependent) finish();
    if (shape.dependent && !pending_) fail(Kernel::name, ": the first launch of a call depends on none before");
    if (shape.dependent && shape.resident) fail(Kernel::name, ": blocks that wait for each other in a dependent launch");
    pending_ = [arguments, shape, previous = pending_] { launch<Kernel>(arguments, shape, previous); };
  }

 private:
  void finish() const {
    const std::function<void()> last = std::exchange(pending_, nullptr);
    if (last) last();
  }

  template <class Kernel>
  static void launch(const typename Kernel::Arguments& arguments, const cuda::Shape& shape, std::function<void()> previous) {
    const int64_t all = shape.blocks_x * shape.blocks_y, together = shape.resident ? all : shape.cluster;
    if (shape.blocks_x % shape.cluster != 0)
      fail("a grid of ", shape.blocks_x, " blocks is no whole number of clusters of ", shape.cluster);
    for (int64_t first = 0; first < all; first += together) {
      Group group;
      group.kernel = Kernel::name;
      group.threads = Kernel::threads;
      group.cluster = shape.cluster;
      group.grid_x = static_cast<int>(shape.blocks_x);
      group.body = [&](int index) {
        Machine machine(group, index);
        Kernel::run(machine, arguments);
        if (shape.dependent && !machine.has_waited()) {
          fail(Kernel::name, ": thread ", machine.thread(), " of block ", machine.block_x(),
               " ends without waiting for the launch before it");
        }
      };
      group.previous = std::exchange(previous, nullptr);
      for (int64_t i = 0; i < together; ++i) {
        Block block;
        block.x = static_cast<int>((first + i) % shape.blocks_x);
        block.y = static_cast<int>((first + i) / shape.blocks_x);
        block.rank = static_cast<int>(i % shape.cluster);
        block.barrier.size = Kernel::threads;
        block.warps.resize(Kernel::threads / 32);
        for (Warp& warp : block.warps) warp.barrier.size = 32;
        block.memory.assign(shape.shared, 0xff);
        block.written.resize(shape.shared);
        block.read.resize(shape.shared);
        block.read_before.resize(shape.shared);
        block.reduced.resize(shape.shared);
        group.blocks.push_back(std::move(block));
      }
      group.clusters.resize(together / shape.cluster);
      for (Barrier& barrier : group.clusters) barrier.size = Kernel::threads * shape.cluster;
      group.grid.size = static_cast<int>(Kernel::threads * together);
      execute(group);
    }
  }

  static void start(void* context, int index) {
    Group& group = *static_cast<Group*>(context);
    try {
      group.body(index);
    } catch (...) {
      if (!group.error) group.error = std::current_exception();
    }
    group.done[index] = true;
    group.progress = true;
    group.fibers[index].yield();
  }

  static void execute(Group& group) {
    const int count = group.threads * static_cast<int>(group.blocks.size());
    static std::vector<std::unique_ptr<char[]>> stacks_at[3];  // a call has three launches at most
    static int depth = 0;                                      // launches that wait for the one before
    auto& stacks = stacks_at[depth];
    while (static_cast<int>(stacks.size()) < count) stacks.emplace_back(new char[Fiber::stack_bytes]);
    group.fibers.resize(count);
    group.done.assign(count, false);
    for (int i = 0; i < count; ++i) {
      group.fibers[i].prepare(stacks[i].get(), &Stream::start, &group, i);
      group.ready.push_back(i);
    }
    int left = count;
    std::vector<int> round;
    while (left > 0) {
      group.progress = false;
      round.clear();
      round.swap(group.ready);
      for (const int i : round) {
        group.running = i;
        group.fibers[i].resume();
        if (group.error) std::rethrow_exception(group.error);
        if (group.done[i]) --left;
      }
      if (!group.progress && !group.for_previous.empty()) {
        struct Deeper {
          Deeper() { ++depth; }
          ~Deeper() { --depth; }
        };
        const Deeper deeper;
        group.previous();
        group.previous = nullptr;
        group.wake(group.for_previous);
      }
      if (!group.progress && left > 0) fail(group.kernel, ": ", left, " threads wait at a barrier that the others never reach");
    }
  }

  mutable std::function<void()> pending_;
};

}  // namespace vtkernels::emulator
