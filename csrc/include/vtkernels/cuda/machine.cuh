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

#if defined(__CUDACC__)
#define VTKERNELS_DEVICE __device__ __forceinline__
#else
#define VTKERNELS_DEVICE inline
#endif

#if defined(__CUDACC__)
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

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
    extern __shared__ __align__(128) unsigned char memory[];
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
  // other memory access, and it leaves the level 1 cache alone.
#if __CUDA_ARCH__ >= 900
  VTKERNELS_DEVICE void open_mailbox(Shared<uint64_t> box) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(box)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  VTKERNELS_DEVICE void expect(Shared<uint64_t> box, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)), "r"(bytes) : "memory");
  }
  // To the same place in the block `rank`, counted by its mailbox.
  VTKERNELS_DEVICE void send(Shared<uint64_t> at, int rank, uint64_t x, Shared<uint64_t> box) const {
    uint32_t there, box_there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(at)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(box_there) : "r"(shared_address(box)), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(there), "l"(x),
                 "r"(box_there)
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
  VTKERNELS_DEVICE void open_mailbox(Shared<uint64_t>) const {}
  VTKERNELS_DEVICE void expect(Shared<uint64_t>, int) const {}
  VTKERNELS_DEVICE void send(Shared<uint64_t> at, int, uint64_t x, Shared<uint64_t>) const { at[0] = x; }
  VTKERNELS_DEVICE void receive(Shared<uint64_t>, int) const { __syncthreads(); }
#endif

  // Written by other blocks of a grid that waited for each other: not from this block's stale cache.
  template <class T>
  VTKERNELS_DEVICE T fresh(const T* at) const {
    return __ldcg(at);
  }

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

 private:
  static VTKERNELS_DEVICE uint32_t shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
  }
};

}  // namespace vtkernels::cuda
#endif
