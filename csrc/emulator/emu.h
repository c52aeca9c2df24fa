// Runs CUDA kernels on the CPU, from the same source text: one fiber per CUDA thread, blocks one after another. Within a
// block a fiber runs until it waits for others, so that the order of the fibers decides what an unguarded read of
// shared memory finds; that order can be chosen. Shared memory starts as NaN, and each of its arrays is an allocation
// of its own, whose ends AddressSanitizer sees. What it cannot show: the memory model, timing, and races that need two
// threads to run at once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define __global__
#define __device__
#define __launch_bounds__(...)

namespace panbench::emu {

extern dim3 thread_index, block_index, block_size, grid_size;

// Runs body once per thread of the grid. False if threads waited for each other for ever, took more shared memory than
// the launch had asked for, or if it asked for more than there is.
bool launch(dim3 grid, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body);

// Bytes of shared memory that a block may have: 227 KiB, as on sm_90, unless a test says otherwise.
std::size_t shared_limit();

// Waits for all threads of the block that are still running; gives the sum of their arguments.
int block_barrier(int value);

// Number of a barrier's name, and the wait there for block or warp, unless it is the one that a test has removed.
int barrier_number(const char* name);
void named_barrier(int number, bool whole_block);

// The array number `index` of the block's shared memory.
void* shared_array(int index, std::size_t bytes);

// Waits for the warp; each lane gives eight bytes and reads those of lane `from`.
uint64_t exchange(uint64_t bits, int from);
// One bit per lane that is still running, set where the lane's argument is true.
unsigned ballot(bool predicate);
int lane();

template <typename T>
T exchange_value(T value, int from) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace panbench::emu

#define threadIdx ::panbench::emu::thread_index
#define blockIdx ::panbench::emu::block_index
#define blockDim ::panbench::emu::block_size
#define gridDim ::panbench::emu::grid_size

inline int __syncthreads_count(int predicate) { return panbench::emu::block_barrier(predicate != 0); }

// Only whole warps meet here.
template <typename T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  return panbench::emu::exchange_value(value, panbench::emu::lane() ^ offset);
}

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return panbench::emu::exchange_value(value, from);
}

inline unsigned __ballot_sync(unsigned, bool predicate) { return panbench::emu::ballot(predicate); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }

template <typename T>
T atomicAdd(T* to, T value) {
  const T old = *to;
  *to = old + value;
  return old;
}

struct alignas(16) float4 {
  float x, y, z, w;
};
