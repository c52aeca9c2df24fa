// Structural similarity with its gradient: a block has 16 x 16 pixels of one channel and their surroundings, and slides
// the window along rows, then along columns.
#include "api.h"
#include "device.h"

namespace panbench {
namespace {

constexpr int kRadius = 5, kSide = 16, kHalo = kSide + 2 * kRadius, kThreads = kSide * kSide;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

struct ImageSize {
  int height, width, channels;
  PB_HD int64_t values() const { return (int64_t)height * width * channels; }
};

// Half of the window, from its centre outwards; sigma 1.5, sum of all eleven taps 1.
__device__ float tap(int distance) {
  constexpr float kTaps[kRadius + 1] = {0.266011725f, 0.213005538f, 0.10936069f,
                                        0.0360007721f, 0.00759875814f, 0.00102838008f};
  return kTaps[distance];
}

// The block's planes [maps, 26, 26] with the window slid over them: sums[map] at the thread's pixel. between: [maps, 26,
// 16] of working space.
template <int maps>
__device__ void slide(const float* planes, float* between, float (&sums)[maps]) {
  for (int i = (int)threadIdx.x; i < maps * kHalo * kSide; i += kThreads) {
    const float* const at = planes + i / kSide * kHalo + i % kSide + kRadius;
    float sum = tap(0) * at[0];
#pragma unroll
    for (int k = 1; k <= kRadius; ++k) sum += tap(k) * (at[-k] + at[k]);
    between[i] = sum;
  }
  PB_BARRIER(ssim_rows_slid);
  const int x = (int)threadIdx.x % kSide, y = (int)threadIdx.x / kSide + kRadius;
#pragma unroll
  for (int m = 0; m < maps; ++m) {
    const float* const at = between + (m * kHalo + y) * kSide + x;
    float sum = tap(0) * at[0];
#pragma unroll
    for (int k = 1; k <= kRadius; ++k) sum += tap(k) * (at[-k * kSide] + at[k * kSide]);
    sums[m] = sum;
  }
}

// Where entry i of a plane [26, 26] of this block lies in the image, or -1 outside of it.
__device__ int64_t halo_index(const ImageSize& size, int i) {
  const int x = (int)blockIdx.x * kSide + i % kHalo - kRadius, y = (int)blockIdx.y * kSide + i / kHalo - kRadius;
  if (x < 0 || y < 0 || x >= size.width || y >= size.height) return -1;
  return ((int64_t)y * size.width + x) * size.channels + blockIdx.z;
}

// The same of the thread's pixel.
__device__ int64_t pixel_index(const ImageSize& size) {
  const int x = (int)threadIdx.x % kSide, y = (int)threadIdx.x / kSide;
  return halo_index(size, (y + kRadius) * kHalo + x + kRadius);
}

// Sums over the block's pixels of SSIM, and its derivatives by the window averages of x, x^2 and x y.
__global__ void __launch_bounds__(kThreads) ssim_values(const float* x, const float* y, ImageSize size, float* partial,
                                                        double* sums) {
  constexpr int kMaps = 5;
  Shared shared;
  float* const planes = shared.take<float>(kMaps * kHalo * kHalo);
  float* const between = shared.take<float>(kMaps * kHalo * kSide);
  double* const warp_sums = shared.take<double>(kThreads / 32);
  for (int i = (int)threadIdx.x; i < kHalo * kHalo; i += kThreads) {
    const int64_t at = halo_index(size, i);
    const float a = at < 0 ? 0.0f : x[at], b = at < 0 ? 0.0f : y[at];
    planes[i] = a;
    planes[kHalo * kHalo + i] = b;
    planes[2 * kHalo * kHalo + i] = a * a;
    planes[3 * kHalo * kHalo + i] = b * b;
    planes[4 * kHalo * kHalo + i] = a * b;
  }
  PB_BARRIER(ssim_loaded);
  float c[kMaps];
  slide(planes, between, c);
  const float mx = c[0], my = c[1];
  const float a1 = 2 * mx * my + kC1, a2 = 2 * (c[4] - mx * my) + kC2;
  const float b1 = mx * mx + my * my + kC1, b2 = c[2] - mx * mx + c[3] - my * my + kC2;
  const float inverse = 1.0f / (b1 * b2), s = a1 * a2 * inverse;
  const int64_t at = pixel_index(size);
  if (at >= 0) {
    partial[at] = 2 * my * (a2 - a1) * inverse - 2 * mx * s * (1 / b1 - 1 / b2);
    partial[size.values() + at] = -s / b2;
    partial[2 * size.values() + at] = 2 * a1 * inverse;
  }
  const double warp_sum = sum_lanes<32>(at >= 0 ? (double)s : 0.0);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = warp_sum;
  PB_BARRIER(ssim_warps_summed);
  if (threadIdx.x != 0) return;
  double sum = 0.0;
  for (int w = 0; w < kThreads / 32; ++w) sum += warp_sums[w];
  sums[((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) ssim_gradient(const float* x, const float* y, ImageSize size,
                                                          const float* partial, float* grad) {
  constexpr int kMaps = 3;
  Shared shared;
  float* const planes = shared.take<float>(kMaps * kHalo * kHalo);
  float* const between = shared.take<float>(kMaps * kHalo * kSide);
  for (int i = (int)threadIdx.x; i < kHalo * kHalo; i += kThreads) {
    const int64_t at = halo_index(size, i);
    for (int m = 0; m < kMaps; ++m) planes[m * kHalo * kHalo + i] = at < 0 ? 0.0f : partial[m * size.values() + at];
  }
  PB_BARRIER(ssim_partial_loaded);
  float c[kMaps];
  slide(planes, between, c);
  const int64_t at = pixel_index(size);
  if (at >= 0) grad[at] = (c[0] + 2 * x[at] * c[1] + y[at] * c[2]) / (float)size.values();
}

// One warp, in a fixed order.
__global__ void __launch_bounds__(32) ssim_mean(const double* sums, int64_t count, int64_t values, float* mean) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += 32) sum += sums[i];
  sum = sum_lanes<32>(sum);
  if (threadIdx.x == 0) *mean = (float)(sum / (double)values);
}

dim3 ssim_grid(const ImageSize& size) {
  return {blocks_for(size.width, kSide), blocks_for(size.height, kSide), (unsigned)size.channels};
}

constexpr std::size_t plane_bytes(int maps) {
  return shared_bytes(maps * kHalo * kHalo * sizeof(float), maps * kHalo * kSide * sizeof(float));
}

}  // namespace

extern "C" {

int64_t pb_cuda_ssim_blocks(int height, int width, int channels) {
  const dim3 grid = ssim_grid({height, width, channels});
  return (int64_t)grid.x * grid.y * grid.z;
}

int pb_cuda_ssim(const float* x, const float* y, int height, int width, int channels, float* value, float* grad_x,
                 float* partial, double* sums, void* stream) {
  const ImageSize size{height, width, channels};
  const dim3 grid = ssim_grid(size);
  int error = launch(ssim_values, grid, kThreads, plane_bytes(5) + shared_bytes(kThreads / 32 * sizeof(double)), stream,
                     x, y, size, partial, sums);
  if (!error) error = launch(ssim_gradient, grid, kThreads, plane_bytes(3), stream, x, y, size, partial, grad_x);
  return error ? error
               : launch(ssim_mean, 1, 32, 0, stream, sums, pb_cuda_ssim_blocks(height, width, channels), size.values(),
                        value);
}

}  // extern "C"

}  // namespace panbench
