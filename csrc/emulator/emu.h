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

// Runs body once per thread of the grid. False if threads waited for each other for ever, or took more shared memory
// than the launch had asked for.
bool launch(dim3 grid, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body);

// Waits for all threads of the block that are still running; gives the sum of their arguments.
int block_barrier(int value);

// Number of a barrier's name, and the wait there, unless it is the one that a test has removed.
int barrier_number(const char* name);
void named_barrier(int number);

// The array number `index` of the block's shared memory.
void* shared_array(int index, std::size_t bytes);

// Waits for the warp; each lane gives eight bytes and reads those of lane `from`.
uint64_t exchange(uint64_t bits, int from);
void warp_barrier();
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
inline void __syncwarp() { panbench::emu::warp_barrier(); }

// Only whole warps meet here.
template <typename T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  return panbench::emu::exchange_value(value, panbench::emu::lane() ^ offset);
}

template <typename T>
T atomicAdd(T* to, T value) {
  const T old = *to;
  *to = old + value;
  return old;
}

struct alignas(16) float4 {
  float x, y, z, w;
};

// Stand-ins for the matrix fragments of nvcuda::wmma, 16 x 16 x 8 in TF32. A lane keeps whole factors, and of a sum
// the half row that it owns.
namespace panbench::emu::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
}
enum layout_t { mem_row_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment;

template <typename Use, typename Layout>
struct Factor {
  static constexpr int num_elements = 128;
  float x[num_elements];  // [16 rows or columns, 8]
};
template <typename Layout>
struct fragment<matrix_a, 16, 16, 8, precision::tf32, Layout> : Factor<matrix_a, Layout> {};
template <typename Layout>
struct fragment<matrix_b, 16, 16, 8, precision::tf32, Layout> : Factor<matrix_b, Layout> {};
template <>
struct fragment<accumulator, 16, 16, 8, float, void> {
  static constexpr int num_elements = 8;
  float x[num_elements];
};

inline void load_matrix_sync(fragment<matrix_a, 16, 16, 8, precision::tf32, row_major>& a, const float* p, int ld) {
  warp_barrier();
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 8; ++k) a.x[i * 8 + k] = p[i * ld + k];
}
inline void load_matrix_sync(fragment<matrix_a, 16, 16, 8, precision::tf32, col_major>& a, const float* p, int ld) {
  warp_barrier();
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 8; ++k) a.x[i * 8 + k] = p[k * ld + i];
}
inline void load_matrix_sync(fragment<matrix_b, 16, 16, 8, precision::tf32, row_major>& b, const float* p, int ld) {
  warp_barrier();
  for (int j = 0; j < 16; ++j)
    for (int k = 0; k < 8; ++k) b.x[j * 8 + k] = p[k * ld + j];
}
inline void load_matrix_sync(fragment<matrix_b, 16, 16, 8, precision::tf32, col_major>& b, const float* p, int ld) {
  warp_barrier();
  for (int j = 0; j < 16; ++j)
    for (int k = 0; k < 8; ++k) b.x[j * 8 + k] = p[j * ld + k];
}

using Sum = fragment<accumulator, 16, 16, 8, float, void>;

inline void fill_fragment(Sum& sum, float value) {
  for (float& x : sum.x) x = value;
}

template <typename A, typename B>
void mma_sync(Sum& d, const A& a, const B& b, const Sum& c) {
  const int row = lane() / 2, column = lane() % 2 * 8;
  for (int j = 0; j < 8; ++j) {
    float s = c.x[j];
    for (int k = 0; k < 8; ++k) s += a.x[row * 8 + k] * b.x[(column + j) * 8 + k];
    d.x[j] = s;
  }
}

inline void store_matrix_sync(float* p, const Sum& sum, int ld, layout_t) {
  warp_barrier();
  for (int j = 0; j < 8; ++j) p[lane() / 2 * ld + lane() % 2 * 8 + j] = sum.x[j];
}

// Round to nearest, ties away from zero: ten bits of mantissa stay.
inline float __float_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isfinite(value)) bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace panbench::emu::wmma
