// What kernels and their launchers share. Under nvcc this is CUDA; with PB_EMULATE the same kernels run on the CPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../hd.h"

#ifdef PB_EMULATE
#include "../emulator/emu.h"
#define PB_EMULATED_BARRIER(name, whole_block)                      \
  do {                                                              \
    static const int number = panbench::emu::barrier_number(#name); \
    panbench::emu::named_barrier(number, whole_block);              \
  } while (0)
// Waits for the block or the warp. A name is unique to a place, so that a test can leave the barrier out and see the harm.
#define PB_BARRIER(name) PB_EMULATED_BARRIER(name, true)
#define PB_WARP_BARRIER(name) PB_EMULATED_BARRIER(name, false)
#else
#include <cuda_runtime.h>
#define PB_BARRIER(name) __syncthreads()
#define PB_WARP_BARRIER(name) __syncwarp()
#endif

namespace panbench {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Bytes of dynamic shared memory that arrays of these sizes take (each is aligned to 128 bytes).
template <typename... Sizes>
PB_HD constexpr std::size_t shared_bytes(Sizes... sizes) {
  return (0 + ... + (((std::size_t)sizes + 127) / 128 * 128));
}

// Hands out the block's dynamic shared memory. Every thread must take the same arrays in the same order.
class Shared {
 public:
  template <typename T>
  __device__ T* take(int count) {
    const std::size_t bytes = (std::size_t)count * sizeof(T);
#ifdef PB_EMULATE
    return static_cast<T*>(emu::shared_array(taken_++, bytes));
#else
    extern __shared__ __align__(128) unsigned char memory[];
    unsigned char* const out = memory + taken_;
    taken_ += (int)shared_bytes(bytes);
    return reinterpret_cast<T*>(out);
#endif
  }

 private:
  int taken_ = 0;
};

// Sum over the lanes of a warp that differ in the bits below `width`.
template <int width, typename T>
__device__ T sum_lanes(T value) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

// Largest value of the same lanes.
template <int width>
__device__ float max_lanes(float value) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}

// Bytes of shared memory that a block may have on the current device.
inline std::size_t shared_limit() {
#ifdef PB_EMULATE
  return emu::shared_limit();
#else
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return (std::size_t)bytes;
#endif
}

inline unsigned blocks_for(int64_t count, int64_t per_block) { return (unsigned)((count + per_block - 1) / per_block); }

// Starts a kernel on a stream. Returns 0 or an error code for pb_cuda_error. A grid without blocks is no error.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared, void* stream,
           Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
#ifdef PB_EMULATE
  (void)stream;
  return emu::launch(grid, threads, shared, [&] { kernel(static_cast<Parameters>(arguments)...); }) ? 0 : 1;
#else
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  if (shared > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess) return (int)error;
  }
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(static_cast<Parameters>(arguments)...);
  return (int)cudaGetLastError();
#endif
}

}  // namespace panbench
