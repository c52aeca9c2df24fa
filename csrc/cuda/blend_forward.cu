// Blending, forward: the weights W [hits, pixels] of a batch of hits are formed once in shared memory, and every channel
// of every kind is then Out = W^T F.
#include "api.h"
#include "blend.h"

namespace panbench {
namespace {

constexpr int kBatch = 32;

struct BlendOutput {
  float* image;
  float* alpha;
  float* depth;
  float* median;
};

// What a pixel carries from hit to hit.
struct PixelState {
  float transmittance = 1.0f, depth = 0.0f, median = 0.0f;
  bool active;

  // Weight of the candidate with parameters p, 0 if it is not blended.
  template <int kind>
  __device__ float blend(const float* p, const TilePixel& pixel, float near_plane) {
    if (!active) return 0.0f;
    const SplatHit hit = splat_hit<kind>(p, pixel.x, pixel.y, near_plane);
    if (!hit.blended) return 0.0f;
    const float next = transmittance * (1.0f - hit.alpha);
    if (next <= kTransmittanceMin) {
      active = false;
      return 0.0f;
    }
    const float weight = hit.alpha * transmittance;
    depth += weight * hit.depth;
    if (transmittance > 0.5f) median = hit.depth;
    transmittance = next;
    return weight;
  }

  __device__ void write(const TilePixel& pixel, const BlendOutput& out) const {
    if (!pixel.inside) return;
    out.alpha[pixel.index] = 1.0f - transmittance;
    out.depth[pixel.index] = depth;
    out.median[pixel.index] = median;
  }
};

// Few channels: a thread adds up those of its pixel.
template <int kind>
__global__ void __launch_bounds__(kTilePixels) blend_small(BlendInput in, BlendOutput out) {
  Shared shared;
  float* const params = shared.take<float>(kBatch * kParams);
  float* const features = shared.take<float>(kBatch * kSmallChannels);
  const int tile = (int)blockIdx.x, thread = (int)threadIdx.x;
  const TilePixel pixel(in, tile, thread);
  PixelState state;
  state.active = pixel.inside;
  float sum[kSmallChannels] = {};
  const int end = in.tile_offsets[tile + 1];
  for (int first = in.tile_offsets[tile]; first < end; first += kBatch) {
    // Also keeps this batch from overwriting the last one while a thread still reads it.
    if (__syncthreads_count(state.active) == 0) break;
    const int count = end - first < kBatch ? end - first : kBatch;
    load_parameters<kind>(in, first, count, pixel, params);
    const int hit = thread / kSmallChannels, channel = thread % kSmallChannels;
    if (hit < count)
      features[thread] =
          channel < in.channels ? in.features[(int64_t)in.tile_ids[first + hit] * in.channels + channel] : 0.0f;
    PB_BARRIER(small_loaded);
    for (int n = 0; n < count && state.active; ++n) {
      const float weight = state.blend<kind>(params + n * kParams, pixel, in.near_plane);
      if (weight == 0.0f) continue;
#pragma unroll
      for (int c = 0; c < kSmallChannels; ++c) sum[c] += weight * features[n * kSmallChannels + c];
    }
  }
  state.write(pixel, out);
  if (!pixel.inside) return;
#pragma unroll
  for (int c = 0; c < kSmallChannels; ++c)
    if (c < in.channels) out.image[pixel.index * in.channels + c] = sum[c];
}

// Out [256 pixels, channels] += W^T F in fp32: a thread has 8 pixels and every eighth group of `vector` channels.
template <int channels>
class ExactProduct {
  static constexpr int kPixels = 8, kLanes = 8, kVector = channels / kLanes < 4 ? channels / kLanes : 4;
  static constexpr int kGroups = channels / kLanes / kVector;
  float sum_[kPixels][kGroups * kVector] = {};

 public:
  static constexpr int kStaging = 0;

  __device__ void add(const float* weights, const float* features, int count) {
    const float* const w = weights + threadIdx.x / kLanes * kPixels;
    const float* const f = features + threadIdx.x % kLanes * kVector;
    for (int n = 0; n < count; ++n) {
      float a[kPixels], b[kGroups * kVector];
#pragma unroll
      for (int i = 0; i < kPixels; i += 4) {
        const float4 v = *reinterpret_cast<const float4*>(w + n * kPixelRow + i);
        a[i] = v.x, a[i + 1] = v.y, a[i + 2] = v.z, a[i + 3] = v.w;
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const float4 v = *reinterpret_cast<const float4*>(f + n * channels + g * kLanes * kVector);
        b[4 * g] = v.x, b[4 * g + 1] = v.y, b[4 * g + 2] = v.z, b[4 * g + 3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
#pragma unroll
        for (int j = 0; j < kGroups * kVector; ++j) sum_[i][j] += a[i] * b[j];
    }
  }

  // Channels first..first + channels of the image.
  __device__ void write(const BlendInput& in, int tile, int first, float*, float* image) const {
    const int lane = (int)threadIdx.x % kLanes;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const TilePixel pixel(in, tile, (int)threadIdx.x / kLanes * kPixels + i);
      if (!pixel.inside) continue;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const int c = first + (g * kLanes + lane) * kVector + k;
          if (c < in.channels) image[pixel.index * in.channels + c] = sum_[i][g * kVector + k];
        }
    }
  }
};

// The same on tensor cores, factors rounded to TF32: a warp has 32 pixels and all channels.
template <int channels>
class TensorProduct {
  static constexpr int kSide = 16, kDepth = 8, kWarps = kTilePixels / 32, kRows = 2, kColumns = channels / kSide;
  using Weights = wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::col_major>;
  using Features = wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major>;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum_[kRows][kColumns];

 public:
  static constexpr int kStaging = kWarps * kSide * kSide;

  __device__ TensorProduct() {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) wmma::fill_fragment(sum_[i][j], 0.0f);
  }

  __device__ void add(const float* weights, const float* features, int count) {
    const float* const w = weights + threadIdx.x / 32 * (kRows * kSide);
    for (int n = 0; n < count; n += kDepth) {
      Weights a[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        wmma::load_matrix_sync(a[i], w + n * kPixelRow + i * kSide, kPixelRow);
        for (int k = 0; k < a[i].num_elements; ++k) a[i].x[k] = wmma::__float_to_tf32(a[i].x[k]);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        Features b;
        wmma::load_matrix_sync(b, features + n * channels + j * kSide, channels);
        for (int k = 0; k < b.num_elements; ++k) b.x[k] = wmma::__float_to_tf32(b.x[k]);
#pragma unroll
        for (int i = 0; i < kRows; ++i) wmma::mma_sync(sum_[i][j], a[i], b, sum_[i][j]);
      }
    }
  }

  __device__ void write(const BlendInput& in, int tile, int first, float* staging, float* image) const {
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    float* const mine = staging + warp * kSide * kSide;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        PB_WARP_BARRIER(staging_free);
        wmma::store_matrix_sync(mine, sum_[i][j], kSide, wmma::mem_row_major);
        PB_WARP_BARRIER(staging_written);
        for (int k = lane; k < kSide * kSide; k += 32) {
          const TilePixel pixel(in, tile, (warp * kRows + i) * kSide + k / kSide);
          const int c = first + j * kSide + k % kSide;
          if (pixel.inside && c < in.channels) image[pixel.index * in.channels + c] = mine[k];
        }
      }
  }
};

// Any number of channels, `channels` of them to a block; blockIdx.y says which.
template <int kind, int channels, template <int> class Product>
__global__ void __launch_bounds__(kTilePixels) blend_product(BlendInput in, BlendOutput out) {
  Shared shared;
  float* const params = shared.take<float>(kBatch * kParams);
  float* const weights = shared.take<float>(kBatch * kPixelRow);
  float* const features = shared.take<float>(kBatch * channels);
  float* const staging = shared.take<float>(Product<channels>::kStaging);
  const int tile = (int)blockIdx.x, thread = (int)threadIdx.x, first_channel = (int)blockIdx.y * channels;
  const TilePixel pixel(in, tile, thread);
  PixelState state;
  state.active = pixel.inside;
  Product<channels> product;
  const int end = in.tile_offsets[tile + 1];
  for (int first = in.tile_offsets[tile]; first < end; first += kBatch) {
    // Also keeps this batch from overwriting the last one while a thread still reads it.
    if (__syncthreads_count(state.active) == 0) break;
    const int count = end - first < kBatch ? end - first : kBatch;
    load_parameters<kind>(in, first, count, pixel, params);
    for (int i = thread; i < kBatch * channels; i += kTilePixels) {
      const int hit = i / channels, c = first_channel + i % channels;
      features[i] = hit < count && c < in.channels
                        ? in.features[(int64_t)in.tile_ids[first + hit] * in.channels + c]
                        : 0.0f;
    }
    PB_BARRIER(product_loaded);
    for (int n = 0; n < kBatch; ++n)
      weights[n * kPixelRow + thread] =
          n < count ? state.blend<kind>(params + n * kParams, pixel, in.near_plane) : 0.0f;
    // A warp multiplies the weights of its own pixels only.
    PB_WARP_BARRIER(product_weighed);
    product.add(weights, features, count);
  }
  if (first_channel == 0) state.write(pixel, out);
  product.write(in, tile, first_channel, staging, out.image);
}

template <int kind>
int start_small(const BlendInput& in, const BlendOutput& out, void* stream) {
  const std::size_t shared =
      shared_bytes(kBatch * kParams * sizeof(float), kBatch * kSmallChannels * sizeof(float));
  return launch(blend_small<kind>, tile_count(in), kTilePixels, shared, stream, in, out);
}

template <int kind, int channels, template <int> class Product>
int start_product(const BlendInput& in, const BlendOutput& out, void* stream) {
  const std::size_t shared =
      shared_bytes(kBatch * kParams * sizeof(float), kBatch * kPixelRow * sizeof(float),
                   kBatch * channels * sizeof(float), Product<channels>::kStaging * sizeof(float));
  const dim3 grid(tile_count(in), blocks_for(in.channels, channels));
  return launch(blend_product<kind, channels, Product>, grid, kTilePixels, shared, stream, in, out);
}

template <int kind, template <int> class Product>
int start_width(const BlendInput& in, const BlendOutput& out, void* stream) {
  if (in.channels <= 32) return start_product<kind, 32, Product>(in, out, stream);
  if (in.channels <= 64) return start_product<kind, 64, Product>(in, out, stream);
  return start_product<kind, 128, Product>(in, out, stream);
}

template <int kind>
int start(const BlendInput& in, const BlendOutput& out, bool tf32, void* stream) {
  if (in.channels <= kSmallChannels) return start_small<kind>(in, out, stream);
  return tf32 ? start_width<kind, TensorProduct>(in, out, stream) : start_width<kind, ExactProduct>(in, out, stream);
}

}  // namespace

extern "C" int pb_cuda_blend(const float* geometry, const float* features, const int32_t* tile_offsets,
                             const int32_t* tile_ids, int width, int height, int channels, int kind, float near_plane,
                             int tf32, float* image, float* alpha, float* depth, float* median, void* stream) {
  const BlendInput in =
      blend_input(geometry, features, tile_offsets, tile_ids, width, height, channels, near_plane);
  const BlendOutput out{image, alpha, depth, median};
  return kind == kEllipsoid ? start<kEllipsoid>(in, out, tf32 != 0, stream)
                            : start<kDisc>(in, out, tf32 != 0, stream);
}

}  // namespace panbench
