// What a GPU kernel may ask of the machine it runs on. Kernels are templates over a machine, so that the tests can run the same
// source on the host (tests/emulator); this file is the machine of nvcc.
//
// A kernel is a struct with
//   struct Arguments               passed by value
//   static constexpr const char* name, int threads   of a block
//   template <class M> static VTKERNELS_DEVICE void run(M& m, const Arguments& a)
// Warp and block functions are called by all threads of the warp or block, as on the chip.
#pragma once

#include <cstdint>

#include "vtkernels/cuda/tensor_map.h"

#if defined(__CUDACC__)
#define VTKERNELS_DEVICE __device__ __forceinline__
#else
#define VTKERNELS_DEVICE inline
#endif

#if defined(__CUDACC__)
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// One product of a warpgroup: its 64 operands make it long.
#define VTKERNELS_WGMMA(type)                                                                            \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
  " {"                                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                               \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                     \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                     \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, p, 1, 1, 0, 0;\n}"
#define VTKERNELS_WGMMA_C                                                                                                  \
  "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),  \
      "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), \
      "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), \
      "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), \
      "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), \
      "+f"(c[46]), "+f"(c[47]), "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), \
      "+f"(c[55]), "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])

namespace vtkernels::cuda {

struct Machine {
  static constexpr int warp_size = 32;

  VTKERNELS_DEVICE int thread() const { return threadIdx.x; }
  VTKERNELS_DEVICE int threads() const { return blockDim.x; }
  VTKERNELS_DEVICE int lane() const { return threadIdx.x & 31; }
  VTKERNELS_DEVICE int warp() const { return threadIdx.x >> 5; }
  VTKERNELS_DEVICE int warps() const { return blockDim.x >> 5; }
  VTKERNELS_DEVICE int block_x() const { return blockIdx.x; }
  VTKERNELS_DEVICE int block_y() const { return blockIdx.y; }
  VTKERNELS_DEVICE int blocks_x() const { return gridDim.x; }

  VTKERNELS_DEVICE void sync() const { __syncthreads(); }
  VTKERNELS_DEVICE void sync_warp() const { __syncwarp(); }

  template <class T>
  VTKERNELS_DEVICE T shuffle(T x, int lane) const {
    return __shfl_sync(~0u, x, lane);
  }
  template <class T>
  VTKERNELS_DEVICE T shuffle_xor(T x, int mask) const {
    return __shfl_xor_sync(~0u, x, mask);
  }
  VTKERNELS_DEVICE uint32_t ballot(bool x) const { return __ballot_sync(~0u, x); }
  VTKERNELS_DEVICE uint32_t reduce_min(uint32_t x) const { return __reduce_min_sync(~0u, x); }
  VTKERNELS_DEVICE uint32_t reduce_add(uint32_t x) const { return __reduce_add_sync(~0u, x); }

  // Dynamic shared memory from a byte on, as elements of T.
  template <class T>
  using Shared = T*;
  template <class T>
  VTKERNELS_DEVICE Shared<T> shared(int64_t byte) const {
    extern __shared__ __align__(1024) unsigned char memory[];
    return reinterpret_cast<T*>(memory + byte);
  }
  // Integers only: a float sum would depend on the order.
  template <class T>
  VTKERNELS_DEVICE void add_shared(Shared<T> at, T x) const {
    atomicAdd(at, x);
  }
  // The same, with what was there before.
  template <class T>
  VTKERNELS_DEVICE T fetch_add_shared(Shared<T> at, T x) const {
    return atomicAdd(at, x);
  }

  // A cluster of blocks along x: one block alone where the launch asked for none.
#if __CUDA_ARCH__ >= 900
  VTKERNELS_DEVICE int cluster_rank() const { return cooperative_groups::this_cluster().block_rank(); }
  VTKERNELS_DEVICE int cluster_size() const { return cooperative_groups::this_cluster().num_blocks(); }
  VTKERNELS_DEVICE void sync_cluster() const { cooperative_groups::this_cluster().sync(); }
  // The same place in the shared memory of another block of the cluster.
  template <class T>
  VTKERNELS_DEVICE Shared<T> peer(Shared<T> at, int rank) const {
    return cooperative_groups::this_cluster().map_shared_rank(at, rank);
  }
#else
  VTKERNELS_DEVICE int cluster_rank() const { return 0; }
  VTKERNELS_DEVICE int cluster_size() const { return 1; }
  VTKERNELS_DEVICE void sync_cluster() const { __syncthreads(); }
  template <class T>
  VTKERNELS_DEVICE Shared<T> peer(Shared<T> at, int) const {
    return at;
  }
#endif

  // Letters between the blocks of a cluster. A mailbox is 8 bytes of shared memory that count what has come: opened by one
  // thread before the cluster's first barrier; in every round one thread says how many bytes are expected, anybody sends, and
  // all threads receive, with 0, 1, 0, 1, ... as the parity of the round. Unlike a barrier of the cluster this waits for no
  // other memory access, and it leaves the level 1 cache alone. A mailbox of several arrivals waits for that many calls of
  // expect() and arrive().
#if __CUDA_ARCH__ >= 900
  VTKERNELS_DEVICE void open_mailbox(Shared<uint64_t> box, int arrivals = 1) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(box)), "r"(arrivals) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // At the mailbox of the block `rank`: all that the warp read before its last barrier has been read. What it wrote is not
  // promised to the other block: a release to the cluster would wait for the whole GPU's memory, in every stage of a tile.
  VTKERNELS_DEVICE void arrive(Shared<uint64_t> box, int rank) const {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(box)), "r"(rank));
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
  }
  VTKERNELS_DEVICE void expect(Shared<uint64_t> box, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)), "r"(bytes) : "memory");
  }
  // 16 bytes to the same place in the block `rank`, counted by its mailbox.
  template <class T>
  VTKERNELS_DEVICE void send(Shared<T> at, int rank, const T& x, Shared<uint64_t> box) const {
    static_assert(sizeof(T) == 16);
    uint64_t words[2];
    memcpy(words, &x, sizeof x);
    uint32_t there, box_there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(at)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(box_there) : "r"(shared_address(box)), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.u64 [%0], {%1, %2}, [%3];" ::"r"(there),
                 "l"(words[0]), "l"(words[1]), "r"(box_there)
                 : "memory");
  }
  VTKERNELS_DEVICE void receive(Shared<uint64_t> box, int parity) const {
    uint32_t complete = 0;
    while (complete == 0) {
      asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(complete)
                   : "r"(shared_address(box)), "r"(parity)
                   : "memory");
    }
  }
#else
  VTKERNELS_DEVICE void open_mailbox(Shared<uint64_t>, int = 1) const {}
  VTKERNELS_DEVICE void expect(Shared<uint64_t>, int) const {}
  template <class T>
  VTKERNELS_DEVICE void send(Shared<T> at, int, const T& x, Shared<uint64_t>) const {
    at[0] = x;
  }
  VTKERNELS_DEVICE void receive(Shared<uint64_t>, int) const { __syncthreads(); }
#endif

  // Written by other blocks of a grid that waited for each other: not from this block's stale cache.
  template <class T>
  VTKERNELS_DEVICE T fresh(const T* at) const {
    return __ldcg(at);
  }

  // Words that blocks of a grid leave for each other in global memory (all must be resident). A word comes as a whole, and says
  // itself of which round it is: no other memory access is ordered by it. Who waits for one pauses between two looks.
  VTKERNELS_DEVICE void post(uint64_t* at, uint64_t word) const {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
  }
  VTKERNELS_DEVICE void look(const uint64_t* at, uint64_t (&two)[2]) const {  // 16-byte aligned
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(two[0]), "=l"(two[1]) : "l"(at) : "memory");
  }
  VTKERNELS_DEVICE void pause() const {}

  // All blocks of the grid have arrived (all must be resident). `arrived` is a counter in global memory that starts at 0.
  VTKERNELS_DEVICE void sync_grid(uint32_t* arrived, uint32_t round) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrived, 1u);
      const uint32_t all = round * gridDim.x * gridDim.y;
      while (*reinterpret_cast<volatile uint32_t*>(arrived) < all) __nanosleep(32);
      __threadfence();
    }
    __syncthreads();
  }

  // Of launches that follow each other on a stream, where the later one is Shape::dependent. It waits until the one before is
  // complete and all that it wrote can be read; before that it must neither read what that one writes nor write what that one
  // uses. Every thread of it calls this, for the launch after it relies on that. The earlier one may say that it needs no
  // more blocks than it has: the next is started once all blocks have said so or have ended.
#if __CUDA_ARCH__ >= 900
  VTKERNELS_DEVICE void wait_for_previous_launch() const { asm volatile("griddepcontrol.wait;" ::: "memory"); }
  VTKERNELS_DEVICE void let_next_launch_start() const { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
  VTKERNELS_DEVICE void wait_for_previous_launch() const {}
  VTKERNELS_DEVICE void let_next_launch_start() const {}
#endif

  // 16 bytes from global to shared memory behind the thread's back; zeros where not valid.
  VTKERNELS_DEVICE void copy16(void* to, const void* from, bool valid) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0));
  }
  VTKERNELS_DEVICE void commit_copies() const { asm volatile("cp.async.commit_group;"); }
  template <int Pending>
  VTKERNELS_DEVICE void wait_copies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending));
  }

  // c += a b of a warp: a 16 x 16 (row), b 16 x 8 (column), halves packed by two; c 16 x 8 in float32.
  template <bool BFloat16>
  VTKERNELS_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    if constexpr (BFloat16) {
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }

  // Sm_90a alone: products of a warpgroup (128 threads, the first a multiple of 128), and the copies of tensors that feed them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static constexpr bool warpgroups = true;

  // One thread: a box of `map` from (channel, row, image) on, as rows of 128 bytes whose 16-byte pieces are XORed with row & 7.
  // `to` is a multiple of 1024 bytes. The mailbox counts the bytes. Everywhere: to the same place in all blocks of the
  // cluster, counted by the mailbox of each.
  template <bool Everywhere>
  VTKERNELS_DEVICE void copy_box(Shared<unsigned char> to, const TensorMap& map, int channel, int row, int image,
                                 Shared<uint64_t> box) const {
    if constexpr (Everywhere) {
      const auto mask = static_cast<uint16_t>((1 << cluster_size()) - 1);
      asm volatile(
          "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
          "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(to)),
          "l"(&map), "r"(channel), "r"(row), "r"(image), "r"(shared_address(box)), "h"(mask)
          : "memory");
    } else {
      asm volatile(
          "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
              shared_address(to)),
          "l"(&map), "r"(channel), "r"(row), "r"(image), "r"(shared_address(box))
          : "memory");
    }
  }

  // c = a b', or c += a b' where `add`: step `step` (16 channels) of 64 rows of a and 128 rows of b, both in shared memory as
  // copy_box leaves them. Asynchronous: between wgmma_begin() and wgmma_end() nothing touches c, and a and b stay as they are.
  template <bool BFloat16>
  VTKERNELS_DEVICE void wgmma(float (&c)[64], Shared<unsigned char> a, Shared<unsigned char> b, int step, bool add) const {
    const uint64_t of_a = descriptor(a) + 2 * step, of_b = descriptor(b) + 2 * step;
    if constexpr (BFloat16) {
      asm volatile(VTKERNELS_WGMMA("bf16") : VTKERNELS_WGMMA_C : "l"(of_a), "l"(of_b), "r"(static_cast<int>(add)));
    } else {
      asm volatile(VTKERNELS_WGMMA("f16") : VTKERNELS_WGMMA_C : "l"(of_a), "l"(of_b), "r"(static_cast<int>(add)));
    }
  }
  VTKERNELS_DEVICE void wgmma_begin(float (&c)[64]) const {
    asm volatile("wgmma.fence.sync.aligned;" : VTKERNELS_WGMMA_C : : "memory");
  }
  // All products so far are in c, and a and b have been read.
  VTKERNELS_DEVICE void wgmma_end(float (&c)[64]) const {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" : VTKERNELS_WGMMA_C : : "memory");
  }

  // Registers of a thread from here on, for all warps of a warpgroup: fewer than the launch gave, or more once others gave.
  template <int Count>
  VTKERNELS_DEVICE void fewer_registers() const {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
  }
  template <int Count>
  VTKERNELS_DEVICE void more_registers() const {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
  }
#else
  static constexpr bool warpgroups = false;
#endif

 private:
  static VTKERNELS_DEVICE uint32_t shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
  }

  // Rows of 128 bytes, eight of them 1024 bytes from the next eight, pieces of 16 bytes XORed.
  static VTKERNELS_DEVICE uint64_t descriptor(const void* at) {
    return (shared_address(at) & 0x3ffffu) >> 4 | uint64_t{1} << 16 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 62;
  }
};

#undef VTKERNELS_WGMMA
#undef VTKERNELS_WGMMA_C

}  // namespace vtkernels::cuda
#endif
