#include "sort.h"

#include "api.h"
#include "device.h"

#ifdef PB_EMULATE
#include <algorithm>
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#endif

namespace panbench {

int sort_pairs(void* scratch, int64_t scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values,
               int32_t* sorted_values, int64_t count, int bits, void* stream) {
#ifdef PB_EMULATE
  (void)scratch, (void)scratch_bytes, (void)stream;
  const uint32_t mask = bits < 32 ? (1u << bits) - 1 : 0xffffffffu;
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int64_t i = 0; i < count; ++i) sorted_keys[i] = keys[order[i]], sorted_values[i] = values[order[i]];
  return 0;
#else
  std::size_t bytes = (std::size_t)scratch_bytes;
  return (int)cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted_keys, values, sorted_values, count, 0, bits,
                                              static_cast<cudaStream_t>(stream));
#endif
}

int running_sum(void* scratch, int64_t scratch_bytes, const int32_t* in, int32_t* out, int64_t count, void* stream) {
#ifdef PB_EMULATE
  (void)scratch, (void)scratch_bytes, (void)stream;
  std::partial_sum(in, in + count, out);
  return 0;
#else
  std::size_t bytes = (std::size_t)scratch_bytes;
  return (int)cub::DeviceScan::InclusiveSum(scratch, bytes, in, out, count, static_cast<cudaStream_t>(stream));
#endif
}

extern "C" {

int64_t pb_cuda_scan_bytes(int64_t count) {
#ifdef PB_EMULATE
  (void)count;
  return 1;
#else
  std::size_t bytes = 0;
  cub::DeviceScan::InclusiveSum(nullptr, bytes, static_cast<const int32_t*>(nullptr), static_cast<int32_t*>(nullptr),
                                count);
  return (int64_t)bytes;
#endif
}

int64_t pb_cuda_sort_bytes(int64_t count) {
#ifdef PB_EMULATE
  (void)count;
  return 1;
#else
  std::size_t bytes = 0;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, static_cast<const uint32_t*>(nullptr),
                                  static_cast<uint32_t*>(nullptr), static_cast<const int32_t*>(nullptr),
                                  static_cast<int32_t*>(nullptr), count);
  return (int64_t)bytes;
#endif
}

#ifndef PB_EMULATE
const char* pb_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
#endif

}  // extern "C"

}  // namespace panbench
