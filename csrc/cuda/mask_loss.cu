// Losses of label channels against the masks of a frame. A warp goes through pixels with a lane to each pair, so that the
// sums of a pair stay in one register, and leaves them for all warps as float64.
#include "api.h"
#include "device.h"

namespace panbench {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRun = 32;                        // pixels a warp goes through
constexpr int kBlockPixels = kWarps * kRun;

struct MaskInput {
  const float* channels;    // [P, stride >= C]
  const int64_t* semantic;  // [P]
  const int64_t* pair;      // [P]
  const int64_t* columns;   // [K]
  const float* weight;      // [P]
  int64_t pixels, stride;
  int channel_count, pairs;
  float epsilon;
};

// Overlap, predicted and true area of the block's 32 pairs into sums; their cross-entropy into tail[1].
__global__ void __launch_bounds__(kThreads) mask_pairs(MaskInput in, double* sums, double* tail) {
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
  const int k = (int)blockIdx.y * 32 + lane;
  const int64_t column = k < in.pairs ? in.columns[k] : -1;
  const bool valid = column >= 0 && column < in.channel_count;
  const int64_t first = (int64_t)blockIdx.x * kBlockPixels + warp * kRun;
  float overlap = 0.0f, predicted = 0.0f, area = 0.0f, cross = 0.0f;
  for (int64_t p = first; p < first + kRun && p < in.pixels; ++p) {
    if (in.semantic[p] < 1) continue;
    const float value = valid ? in.channels[p * in.stride + column] : 0.0f;
    const float clamped = fminf(fmaxf(value, in.epsilon), 1.0f - in.epsilon);
    const bool own = in.pair[p] == k;
    predicted += value;
    if (own) overlap += value, area += 1.0f;
    if (k < in.pairs) cross += logf(own ? clamped : 1.0f - clamped);
  }
  const double total = sum_lanes<32>((double)cross);
  if (lane == 0) atomicAdd(tail + 1, total);
  if (k >= in.pairs) return;
  const double broken = valid ? 0.0 : (double)NAN;
  atomicAdd(sums + k, overlap + broken);
  atomicAdd(sums + in.pairs + k, (double)predicted);
  atomicAdd(sums + 2 * in.pairs + k, (double)area);
}

// Weighted cross-entropy of the classes into tail[0]; sums of weights and of labelled pixels behind those of the pairs.
__global__ void __launch_bounds__(kThreads) mask_classes(MaskInput in, double* sums, double* tail) {
  const int64_t p = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  double entropy = 0.0, weight = 0.0, labelled = 0.0;
  if (p < in.pixels && in.semantic[p] >= 1) {
    const int64_t y = in.semantic[p];
    const bool valid = y <= in.channel_count && in.pair[p] < in.pairs;
    weight = in.weight[p];
    labelled = 1.0;
    entropy = valid ? -weight * logf(in.channels[p * in.stride + y - 1] + in.epsilon) : (double)NAN;
  }
  const double totals[3] = {sum_lanes<32>(entropy), sum_lanes<32>(weight), sum_lanes<32>(labelled)};
  if (threadIdx.x % 32 != 0 || totals[2] == 0.0) return;
  atomicAdd(tail, totals[0]);
  atomicAdd(sums + 3 * in.pairs, totals[1]);
  atomicAdd(sums + 3 * in.pairs + 1, totals[2]);
}

__global__ void __launch_bounds__(32) mask_finish(int pairs, const double* sums, const double* tail, float* losses) {
  double dice = 0.0;
  for (int k = (int)threadIdx.x; k < pairs; k += 32)
    dice += (1.0 - (2 * sums[k] + 1) / (sums[pairs + k] + sums[2 * pairs + k] + 1)) / pairs;
  dice = sum_lanes<32>(dice);
  if (threadIdx.x != 0) return;
  const double weight = sums[3 * pairs], labelled = sums[3 * pairs + 1];
  // Where something is wrong with the classes their sum is NaN, also if no pixel has weight.
  losses[0] = (float)(weight > 0 ? tail[0] / weight : 0.0 * tail[0]);
  losses[1] = (float)dice;
  losses[2] = (float)(pairs > 0 && labelled > 0 ? -tail[1] / (labelled * pairs) : 0.0);
}

// d dice / d I where Y = 1 [K] and where Y = 0 [K]; then the scales of the two cross-entropies.
__global__ void __launch_bounds__(kThreads) mask_factors(int pairs, const double* sums, const float* upstream,
                                                         float* factors) {
  const double labelled = sums[3 * pairs + 1];
  for (int k = (int)threadIdx.x; k < pairs; k += kThreads) {
    const double total = sums[pairs + k] + sums[2 * pairs + k] + 1, share = (2 * sums[k] + 1) / (total * total);
    factors[k] = (float)(upstream[1] / pairs * (share - 2 / total));
    factors[pairs + k] = (float)(upstream[1] / pairs * share);
  }
  if (threadIdx.x != 0) return;
  factors[2 * pairs] = sums[3 * pairs] > 0 ? (float)(upstream[0] / sums[3 * pairs]) : 0.0f;
  factors[2 * pairs + 1] = pairs > 0 && labelled > 0 ? (float)(upstream[2] / (labelled * pairs)) : 0.0f;
}

// A warp to a pixel.
__global__ void __launch_bounds__(kThreads) mask_gradient(MaskInput in, const float* factors, float* grad) {
  const int64_t p = (int64_t)blockIdx.x * kWarps + threadIdx.x / 32;
  const int lane = (int)threadIdx.x % 32;
  if (p >= in.pixels) return;
  float* const g = grad + p * in.channel_count;
  const float* const row = in.channels + p * in.stride;
  const int64_t y = in.semantic[p], pair = in.pair[p];
  for (int c = lane; c < in.channel_count; c += 32)
    g[c] = c == y - 1 ? -factors[2 * in.pairs] * in.weight[p] / (row[c] + in.epsilon) : 0.0f;
  if (y < 1) return;
  PB_WARP_BARRIER(mask_cleared);
  const float cross = factors[2 * in.pairs + 1];
  for (int k = lane; k < in.pairs; k += 32) {
    const int64_t column = in.columns[k];
    if (column < 0 || column >= in.channel_count) continue;
    const float value = row[column];
    const bool open = value > in.epsilon && value < 1.0f - in.epsilon;
    const float slope = !open ? 0.0f : k == pair ? -1.0f / value : 1.0f / (1.0f - value);
    g[column] += factors[k == pair ? k : in.pairs + k] + cross * slope;
  }
}

}  // namespace

extern "C" {

int pb_cuda_mask_losses(const float* channels, int64_t pixels, int channel_count, int64_t stride,
                        const int64_t* semantic, const int64_t* pair, const int64_t* columns, int pairs,
                        const float* weight, float epsilon, double* sums, double* tail, float* losses, void* stream) {
  const MaskInput in{channels, semantic, pair, columns, weight, pixels, stride, channel_count, pairs, epsilon};
  const dim3 grid(blocks_for(pixels, kBlockPixels), blocks_for(pairs, 32));
  int error = launch(mask_pairs, grid, kThreads, 0, stream, in, sums, tail);
  if (!error) error = launch(mask_classes, blocks_for(pixels, kThreads), kThreads, 0, stream, in, sums, tail);
  return error ? error : launch(mask_finish, 1, 32, 0, stream, pairs, sums, tail, losses);
}

int pb_cuda_mask_losses_backward(const float* channels, int64_t pixels, int channel_count, int64_t stride,
                                 const int64_t* semantic, const int64_t* pair, const int64_t* columns, int pairs,
                                 const float* weight, float epsilon, const double* sums, const float* upstream,
                                 float* factors, float* grad, void* stream) {
  const MaskInput in{channels, semantic, pair, columns, weight, pixels, stride, channel_count, pairs, epsilon};
  const int error = launch(mask_factors, 1, kThreads, 0, stream, pairs, sums, upstream, factors);
  return error ? error
               : launch(mask_gradient, blocks_for(pixels, kWarps), kThreads, 0, stream, in, factors, grad);
}

}  // extern "C"

}  // namespace panbench
