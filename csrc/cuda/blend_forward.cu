// Blending, forward: the weights W [hits, pixels] of a batch of hits are formed once in shared memory, and every
// channel of every kind is then Out = W^T F.
#include "api.h"
#include "blend.h"

namespace panbench {
namespace {

constexpr int kBatch = 32;
constexpr int kWidest = 128;  // channels of a block

struct BlendOutput {
  float* image;        // [H, W, C]
  float* label_image;  // [H, W, L]
  float* alpha;        // [H, W], null in a launch that leaves these three to another
  float* depth;
  float* median;
  float* distortion;  // [H, W], of the kernels that form it
  LabelTargets targets;  // those of a launch that has all labels
  LabelTotals totals;
};

// What a pixel carries from hit to hit.
template <bool distort>
struct PixelState {
  float transmittance = 1.0f, depth = 0.0f, median = 0.0f;
  Distortion<float> distortion{1.0f, 0.0f, 0.0f};  // if it is wanted
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
    if constexpr (distort) {
      if (transmittance == 1.0f) distortion.first = hit.depth;
      distortion.add(weight, distortion.offset(hit.depth));
    }
    depth += weight * hit.depth;
    if (transmittance > 0.5f) median = hit.depth;
    transmittance = next;
    return weight;
  }

  __device__ void write(const TilePixel& pixel, const BlendOutput& out) const {
    if (!pixel.inside) return;
    if constexpr (distort) out.distortion[pixel.index] = distortion.value(1.0f - transmittance);
    if (!out.alpha) return;
    out.alpha[pixel.index] = 1.0f - transmittance;
    out.depth[pixel.index] = depth;
    out.median[pixel.index] = median;
  }
};

// Sums of the labels of a tile that the block has just written.
__device__ void add_sums(const BlendInput& in, int tile, const BlendOutput& out) {
  if (!out.targets.semantic) return;
  PB_BARRIER(labels_written);
  add_tile_sums(in.frame, tile, out.label_image, in.label_count, out.targets, out.totals);
}

// Few channels: a thread adds up those of its pixel. Left alone, ptxas spills the sums of the distortion on sm_80 to keep
// 48 registers; four blocks leave 64.
template <int kind, bool distort>
__global__ void __launch_bounds__(kTilePixels, distort ? 4 : 0) blend_small(BlendInput in, BlendOutput out) {
  Shared shared;
  float* const params = shared.take<float>(kBatch * kParams);
  float* const bounds = shared.take<float>(kBatch * kBounds);
  float* const features = shared.take<float>(kBatch * kSmallChannels);
  const int tile = (int)blockIdx.x, thread = (int)threadIdx.x;
  const TilePixel pixel(in.frame, tile, thread);
  PixelState<distort> state;
  state.active = pixel.inside;
  float sum[kSmallChannels] = {};
  const int end = in.tile_offsets[tile + 1];
  for (int first = in.tile_offsets[tile]; first < end; first += kBatch) {
    // Also keeps this batch from overwriting the last one while a thread still reads it.
    if (__syncthreads_count(state.active) == 0) break;
    const int count = end - first < kBatch ? end - first : kBatch;
    load_candidates<kind>(in, first, count, pixel, params, bounds);
    const int hit = thread / kSmallChannels, channel = thread % kSmallChannels;
    if (hit < count)
      features[thread] = channel < in.channels()
                             ? *channel_at(in, in.labels, in.features, in.tile_ids[first + hit], channel)
                             : 0.0f;
    PB_BARRIER(small_loaded);
    for (unsigned near = near_warp(bounds, count, state.active); near != 0; near &= near - 1) {
      const int n = __ffs((int)near) - 1;
      const float weight = state.template blend<kind>(params + n * kParams, pixel, in.near_plane);
      if (weight == 0.0f) continue;
#pragma unroll
      for (int c = 0; c < kSmallChannels; ++c) sum[c] += weight * features[n * kSmallChannels + c];
    }
  }
  state.write(pixel, out);
  if (pixel.inside) {
#pragma unroll
    for (int c = 0; c < kSmallChannels; ++c)
      if (c < in.channels()) *channel_at(in, out.label_image, out.image, pixel.index, c) = sum[c];
  }
  add_sums(in, tile, out);
}

// Floats between the weights of two hits, and between their features: four rows of eight lie in different banks.
constexpr int kPixelRow = kTilePixels + 8;
template <int channels>
constexpr int kFeatureRow = channels + 8;

// Out [256 pixels, channels] += W^T F in fp32: a thread has as many pixels as there are threads to a pixel, and every
// such group of four channels. Only hits that touch the warp are multiplied.
template <int channels>
class ExactProduct {
  static constexpr int kLanes = channels / 4 < 8 ? channels / 4 : 8, kPixels = kLanes;
  static constexpr int kGroups = channels / kLanes / 4;
  float sum_[kPixels][kGroups * 4] = {};

 public:
  static constexpr int kStaging = 0, kWhole = 1;  // weights of a run of so many hits must be there if one is

  __device__ void add(const float* weights, const float* features, unsigned near) {
    const float* const w = weights + threadIdx.x / kLanes * kPixels;
    const float* const f = features + threadIdx.x % kLanes * 4;
    for (; near != 0; near &= near - 1) {
      const int n = __ffs((int)near) - 1;
      float a[kPixels], b[kGroups * 4];
#pragma unroll
      for (int i = 0; i < kPixels; i += 4) {
        const float4 v = *reinterpret_cast<const float4*>(w + n * kPixelRow + i);
        a[i] = v.x, a[i + 1] = v.y, a[i + 2] = v.z, a[i + 3] = v.w;
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const float4 v = *reinterpret_cast<const float4*>(f + n * kFeatureRow<channels> + g * kLanes * 4);
        b[4 * g] = v.x, b[4 * g + 1] = v.y, b[4 * g + 2] = v.z, b[4 * g + 3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
#pragma unroll
        for (int j = 0; j < kGroups * 4; ++j) sum_[i][j] += a[i] * b[j];
    }
  }

  // Channels first..first + channels.
  __device__ void write(const BlendInput& in, int tile, int first, float*, const BlendOutput& out) const {
    const int lane = (int)threadIdx.x % kLanes;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const TilePixel pixel(in.frame, tile, (int)threadIdx.x / kLanes * kPixels + i);
      if (!pixel.inside) continue;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int c = first + (g * kLanes + lane) * 4 + k;
          if (c < in.channels()) *channel_at(in, out.label_image, out.image, pixel.index, c) = sum_[i][g * 4 + k];
        }
    }
  }
};

#if PB_TENSOR_CORES
// The same on tensor cores, factors rounded to TF32: a warp has 32 pixels and all channels.
template <int channels>
class TensorProduct {
  static constexpr int kSide = 16, kDepth = 8, kRows = 2, kColumns = channels / kSide;
  using Weights = wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::col_major>;
  using Features = wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major>;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum_[kRows][kColumns];

 public:
  static constexpr int kStaging = kWarps * kSide * kSide, kWhole = kDepth;

  __device__ TensorProduct() {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) wmma::fill_fragment(sum_[i][j], 0.0f);
  }

  __device__ void add(const float* weights, const float* features, unsigned near) {
    const float* const w = weights + threadIdx.x / 32 * (kRows * kSide);
    for (int n = 0; n < kBatch; n += kDepth) {
      if ((near >> n & 0xff) == 0) continue;
      Weights a[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        wmma::load_matrix_sync(a[i], w + n * kPixelRow + i * kSide, kPixelRow);
        for (int k = 0; k < a[i].num_elements; ++k) a[i].x[k] = wmma::__float_to_tf32(a[i].x[k]);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        Features b;
        wmma::load_matrix_sync(b, features + n * kFeatureRow<channels> + j * kSide, kFeatureRow<channels>);
        for (int k = 0; k < b.num_elements; ++k) b.x[k] = wmma::__float_to_tf32(b.x[k]);
#pragma unroll
        for (int i = 0; i < kRows; ++i) wmma::mma_sync(sum_[i][j], a[i], b, sum_[i][j]);
      }
    }
  }

  __device__ void write(const BlendInput& in, int tile, int first, float* staging, const BlendOutput& out) const {
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
          const TilePixel pixel(in.frame, tile, (warp * kRows + i) * kSide + k / kSide);
          const int c = first + j * kSide + k % kSide;
          if (pixel.inside && c < in.channels())
            *channel_at(in, out.label_image, out.image, pixel.index, c) = mine[k];
        }
      }
  }
};
#else
template <int channels>
class TensorProduct : public ExactProduct<channels> {};
#endif

// Any number of channels, `channels` of them to a block; blockIdx.y says which.
// Told how many blocks a multiprocessor should hold: left alone, the compiler spills registers to have one more.
template <int kind, int channels, template <int> class Product>
__global__ void __launch_bounds__(kTilePixels, channels <= 64 ? 2 : 1) blend_product(BlendInput in, BlendOutput out) {
  Shared shared;
  float* const params = shared.take<float>(kBatch * kParams);
  float* const bounds = shared.take<float>(kBatch * kBounds);
  float* const weights = shared.take<float>(kBatch * kPixelRow);
  float* const features = shared.take<float>(kBatch * kFeatureRow<channels>);
  float* const staging = shared.take<float>(Product<channels>::kStaging);
  const int tile = (int)blockIdx.x, thread = (int)threadIdx.x, first_channel = (int)blockIdx.y * channels;
  const TilePixel pixel(in.frame, tile, thread);
  PixelState<false> state;
  state.active = pixel.inside;
  Product<channels> product;
  const int end = in.tile_offsets[tile + 1];
  for (int first = in.tile_offsets[tile]; first < end; first += kBatch) {
    // Also keeps this batch from overwriting the last one while a thread still reads it.
    if (__syncthreads_count(state.active) == 0) break;
    const int count = end - first < kBatch ? end - first : kBatch;
    load_candidates<kind>(in, first, count, pixel, params, bounds);
    for (int i = thread; i < kBatch * channels; i += kTilePixels) {
      const int hit = i / channels, c = first_channel + i % channels;
      features[hit * kFeatureRow<channels> + i % channels] =
          hit < count && c < in.channels() ? *channel_at(in, in.labels, in.features, in.tile_ids[first + hit], c)
                                           : 0.0f;
    }
    PB_BARRIER(product_loaded);
    const unsigned near = near_warp(bounds, count, state.active);
    constexpr int kWhole = Product<channels>::kWhole;
    constexpr unsigned kRun = (1u << kWhole) - 1;
    for (int n = 0; n < kBatch; ++n) {
      if ((near >> (n / kWhole * kWhole) & kRun) == 0) continue;
      weights[n * kPixelRow + thread] =
          near >> n & 1 ? state.blend<kind>(params + n * kParams, pixel, in.near_plane) : 0.0f;
    }
    // A warp multiplies the weights of its own pixels only.
    PB_WARP_BARRIER(product_weighed);
    product.add(weights, features, near);
  }
  if (first_channel == 0) state.write(pixel, out);
  product.write(in, tile, first_channel, staging, out);
  add_sums(in, tile, out);
}

template <int kind, bool distort>
int start_small(const BlendInput& in, const BlendOutput& out, void* stream) {
  const std::size_t shared = shared_bytes(kBatch * kParams * sizeof(float), kBatch * kBounds * sizeof(float),
                                          kBatch * kSmallChannels * sizeof(float));
  return launch(blend_small<kind, distort>, tile_count(in.frame), kTilePixels, shared, stream, in, out);
}

template <int kind, int channels, template <int> class Product>
int start_product(const BlendInput& in, const BlendOutput& out, void* stream) {
  const std::size_t shared =
      shared_bytes(kBatch * kParams * sizeof(float), kBatch * kBounds * sizeof(float),
                   kBatch * kPixelRow * sizeof(float), kBatch * kFeatureRow<channels> * sizeof(float),
                   Product<channels>::kStaging * sizeof(float));
  const dim3 grid(tile_count(in.frame), blocks_for(in.channels(), channels));
  return launch(blend_product<kind, channels, Product>, grid, kTilePixels, shared, stream, in, out);
}

// As many blocks to a tile as have to be, each with an equal share of the channels.
template <int kind, template <int> class Product>
int start_width(const BlendInput& in, const BlendOutput& out, void* stream) {
  const unsigned share = blocks_for(in.channels(), blocks_for(in.channels(), kWidest));
  if (share <= 16) return start_product<kind, 16, Product>(in, out, stream);
  if (share <= 32) return start_product<kind, 32, Product>(in, out, stream);
  if (share <= 64) return start_product<kind, 64, Product>(in, out, stream);
  return start_product<kind, kWidest, Product>(in, out, stream);
}

template <int kind>
int start(const BlendInput& in, const BlendOutput& out, bool tf32, void* stream) {
  if (in.channels() <= kSmallChannels)
    return out.distortion ? start_small<kind, true>(in, out, stream) : start_small<kind, false>(in, out, stream);
  if (out.distortion) {
    // A sweep of its own, without channels: there are many kernels for many channels, and few views want this.
    BlendInput none = in;
    none.feature_count = none.label_count = 0;
    BlendOutput alone = out;
    alone.alpha = alone.depth = alone.median = nullptr;
    alone.targets.semantic = nullptr;
    const int error = start_small<kind, true>(none, alone, stream);
    if (error) return error;
  }
  return tf32 ? start_width<kind, TensorProduct>(in, out, stream) : start_width<kind, ExactProduct>(in, out, stream);
}

// Labels and features by themselves where a block could not have both: labels that one block has are summed there.
template <int kind>
int start_all(const BlendInput& in, const BlendOutput& out, bool tf32, void* stream) {
  if (in.channels() <= kWidest || in.label_count == 0 || in.feature_count == 0)
    return start<kind>(in, out, tf32, stream);
  BlendInput labels = in, features = in;
  labels.feature_count = features.label_count = 0;
  BlendOutput rest = out;
  rest.alpha = rest.depth = rest.median = rest.distortion = nullptr;
  rest.targets.semantic = nullptr;
  const int error = start<kind>(labels, out, tf32, stream);
  return error ? error : start<kind>(features, rest, tf32, stream);
}

}  // namespace

extern "C" int pb_cuda_blend(const float* geometry, const float* features, const float* labels,
                             const int32_t* tile_offsets, const int32_t* tile_ids, int64_t visible, int width,
                             int height, int feature_count, int label_count, int kind, float near_plane, int tf32,
                             const int32_t* semantic, const int32_t* mask, const float* weight, int masks, int classes,
                             int first_query, int logits, float epsilon, float* bounds, float* image,
                             float* label_image, float* alpha, float* depth, float* median, double* sums,
                             float* distortion, void* stream) {
  const BlendInput in{frame_of(width, height), geometry,    bounds,        features,   labels,
                      tile_offsets,            tile_ids,    feature_count, label_count, near_plane};
  const LabelTargets targets{semantic, mask, weight, masks, classes, first_query, logits, epsilon};
  const bool one_block = label_count <= kWidest;
  BlendOutput out{image, label_image, alpha,   depth,
                  median, distortion, targets, label_totals(sums, label_count - first_query)};
  if (!one_block) out.targets.semantic = nullptr;
  int error = write_bounds(geometry, visible, kind, in.frame, bounds, stream);
  if (!error)
    error = kind == kEllipsoid ? start_all<kEllipsoid>(in, out, tf32 != 0, stream)
                               : start_all<kDisc>(in, out, tf32 != 0, stream);
  if (error || one_block || !semantic) return error;
  return pb_cuda_label_sums(label_image, width, height, label_count, semantic, mask, weight, masks, classes,
                            first_query, logits, epsilon, sums, stream);
}

}  // namespace panbench
