// Blending, backward. A first sweep front to back finds where each pixel stops; the second goes back to front in batches
// of hits: weights W [hits, pixels] again, dF = W dOut, the signal s = F dOut^T of the attached channels, and from both the
// gradients that each pixel sends into the geometry of each hit, summed over the pixels as a handful of moments.
#include "api.h"
#include "blend.h"

namespace panbench {
namespace {

constexpr int kBatch = 16;
constexpr int kChunk = 32;           // channels multiplied at a time
constexpr int kChunkRow = kChunk + 4;  // floats between two rows of a chunk: spreads them over the banks
constexpr int kParts = kTilePixels / kBatch;  // threads that share a hit's moments

enum Mode { kSmall, kExact, kTensor };

struct BlendUpstream {
  const float* image;   // [H, W, C]
  const float* alpha;   // [H, W]
  const float* depth;   // [H, W]
  const float* median;  // [H, W]
};

struct BlendGradient {
  float* geometry;  // [M, G]
  float* features;  // [M, C]
};

// What a thread knows of its pixel after the first sweep.
struct PixelTrace {
  float transmittance = 1.0f;
  int stop = 0;     // candidates from here on are not blended
  int median = -1;  // the candidate that the median depth is of
};

template <int kind>
__device__ PixelTrace trace(const BlendInput& in, int begin, int end, const TilePixel& pixel, float* params,
                            int& reached) {
  PixelTrace t;
  bool active = pixel.inside;
  t.stop = active ? end : begin;
  reached = begin;
  for (int first = begin; first < end; first += kBatch) {
    // Also keeps this batch from overwriting the last one while a thread still reads it.
    if (__syncthreads_count(active) == 0) break;
    const int count = end - first < kBatch ? end - first : kBatch;
    reached = first + count;
    load_parameters<kind>(in, first, count, pixel, params);
    PB_BARRIER(trace_loaded);
    for (int n = 0; n < count && active; ++n) {
      const SplatHit hit = splat_hit<kind>(params + n * kParams, pixel.x, pixel.y, in.near_plane);
      if (!hit.blended) continue;
      const float next = t.transmittance * (1.0f - hit.alpha);
      if (next <= kTransmittanceMin) {
        t.stop = first + n;
        active = false;
        break;
      }
      if (t.transmittance > 0.5f) t.median = first + n;
      t.transmittance = next;
    }
  }
  return t;
}

// s [16 hits, 256 pixels] += F dOut^T over a chunk: a warp has 4 hits and half of the pixels.
class ExactSignal {
  static constexpr int kHits = 4, kPixels = 4;
  float sum_[kHits][kPixels] = {};

  static __device__ int hit() { return (int)threadIdx.x / 64 * kHits; }
  static __device__ int pixel() { return (int)threadIdx.x / 32 % 2 * 128 + (int)threadIdx.x % 32; }

 public:
  __device__ void add(const float* features, const float* upstream) {
    const float* const f = features + hit() * kChunkRow;
    const float* const g = upstream + pixel() * kChunkRow;
    for (int c = 0; c < kChunk; c += 4) {
      float4 a[kHits], b[kPixels];
#pragma unroll
      for (int i = 0; i < kHits; ++i) a[i] = *reinterpret_cast<const float4*>(f + i * kChunkRow + c);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) b[j] = *reinterpret_cast<const float4*>(g + j * 32 * kChunkRow + c);
#pragma unroll
      for (int i = 0; i < kHits; ++i)
#pragma unroll
        for (int j = 0; j < kPixels; ++j)
          sum_[i][j] += a[i].x * b[j].x + a[i].y * b[j].y + (a[i].z * b[j].z + a[i].w * b[j].w);
    }
  }
  __device__ void write(float* signal) const {
#pragma unroll
    for (int i = 0; i < kHits; ++i)
#pragma unroll
      for (int j = 0; j < kPixels; ++j) signal[(hit() + i) * kPixelRow + pixel() + j * 32] = sum_[i][j];
  }
};

// partial [8, 16 hits, 32 channels] = W dOut, a warp over its 32 pixels.
__device__ void exact_feature_gradient(const float* weights, const float* upstream, float* partial) {
  constexpr int kSide = 4;
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, hit = lane / 8, channel = lane % 8 * 4;
  float sum[kSide][kSide] = {};
  for (int p = warp * 32; p < warp * 32 + 32; p += 4) {
    float4 w[kSide], g[kSide];
#pragma unroll
    for (int i = 0; i < kSide; ++i) w[i] = *reinterpret_cast<const float4*>(weights + (hit + 4 * i) * kPixelRow + p);
#pragma unroll
    for (int j = 0; j < kSide; ++j) g[j] = *reinterpret_cast<const float4*>(upstream + (p + j) * kChunkRow + channel);
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      sum[i][0] += w[i].x * g[0].x + w[i].y * g[1].x + (w[i].z * g[2].x + w[i].w * g[3].x);
      sum[i][1] += w[i].x * g[0].y + w[i].y * g[1].y + (w[i].z * g[2].y + w[i].w * g[3].y);
      sum[i][2] += w[i].x * g[0].z + w[i].y * g[1].z + (w[i].z * g[2].z + w[i].w * g[3].z);
      sum[i][3] += w[i].x * g[0].w + w[i].y * g[1].w + (w[i].z * g[2].w + w[i].w * g[3].w);
    }
  }
#pragma unroll
  for (int i = 0; i < kSide; ++i)
#pragma unroll
    for (int k = 0; k < kSide; ++k) partial[(warp * kBatch + hit + 4 * i) * kChunk + channel + k] = sum[i][k];
}

using Left = wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major>;
using RightRows = wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major>;
using RightColumns = wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::col_major>;
using Sum = wmma::fragment<wmma::accumulator, 16, 16, 8, float>;

template <typename Fragment>
__device__ void load_rounded(Fragment& fragment, const float* from, int stride) {
  wmma::load_matrix_sync(fragment, from, stride);
  for (int k = 0; k < fragment.num_elements; ++k) fragment.x[k] = wmma::__float_to_tf32(fragment.x[k]);
}

// As ExactSignal on tensor cores: a warp has 16 hits and 32 pixels.
class TensorSignal {
  Sum sum_[2];

 public:
  __device__ TensorSignal() {
    wmma::fill_fragment(sum_[0], 0.0f);
    wmma::fill_fragment(sum_[1], 0.0f);
  }
  __device__ void add(const float* features, const float* upstream) {
    const float* const g = upstream + threadIdx.x / 32 * 32 * kChunkRow;
    for (int c = 0; c < kChunk; c += 8) {
      Left f;
      load_rounded(f, features + c, kChunkRow);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        RightColumns b;
        load_rounded(b, g + j * 16 * kChunkRow + c, kChunkRow);
        wmma::mma_sync(sum_[j], f, b, sum_[j]);
      }
    }
  }
  __device__ void write(float* signal) const {
    float* const to = signal + threadIdx.x / 32 * 32;
    wmma::store_matrix_sync(to, sum_[0], kPixelRow, wmma::mem_row_major);
    wmma::store_matrix_sync(to + 16, sum_[1], kPixelRow, wmma::mem_row_major);
  }
};

// partial [4, 16 hits, 32 channels]: a warp has 16 channels and a quarter of the pixels.
__device__ void tensor_feature_gradient(const float* weights, const float* upstream, float* partial) {
  const int warp = (int)threadIdx.x / 32, channel = warp % 2 * 16, quarter = warp / 2;
  Sum sum;
  wmma::fill_fragment(sum, 0.0f);
  for (int p = quarter * 64; p < quarter * 64 + 64; p += 8) {
    Left w;
    RightRows g;
    load_rounded(w, weights + p, kPixelRow);
    load_rounded(g, upstream + p * kChunkRow + channel, kChunkRow);
    wmma::mma_sync(sum, w, g, sum);
  }
  wmma::store_matrix_sync(partial + quarter * kBatch * kChunk + channel, sum, kChunk, wmma::mem_row_major);
}

// Stands for the products where a thread does without them.
struct NoSignal {};

template <int mode>
struct Products;
template <>
struct Products<kSmall> {
  using Signal = NoSignal;
  static constexpr int kRows = kTilePixels * kSmallChannels, kFeatureRows = kBatch * kSmallChannels;
};
template <>
struct Products<kExact> {
  using Signal = ExactSignal;
  static constexpr int kRows = kTilePixels * kChunkRow, kFeatureRows = kBatch * kChunkRow, kPartials = 8;
};
template <>
struct Products<kTensor> {
  using Signal = TensorSignal;
  static constexpr int kRows = kTilePixels * kChunkRow, kFeatureRows = kBatch * kChunkRow, kPartials = 4;
};

// Channels first..first + width of the upstream gradient of the tile's pixels, `stride` floats a row.
__device__ void load_upstream(const BlendInput& in, int tile, const float* image, int first, int width, int stride,
                              float* rows) {
  for (int i = (int)threadIdx.x; i < kTilePixels * width; i += kTilePixels) {
    const int p = i / width, c = i % width;
    const TilePixel pixel(in, tile, p);
    rows[p * stride + c] =
        pixel.inside && first + c < in.channels ? image[pixel.index * in.channels + first + c] : 0.0f;
  }
}

// The same of the features of the batch; those of detached channels count as 0.
__device__ void load_features(const BlendInput& in, int begin, int count, int attached, int first, int width,
                              int stride, float* rows) {
  for (int i = (int)threadIdx.x; i < kBatch * width; i += kTilePixels) {
    const int hit = i / width, c = first + i % width;
    rows[hit * stride + i % width] =
        hit < count && c < attached ? in.features[(int64_t)in.tile_ids[begin + hit] * in.channels + c] : 0.0f;
  }
}

template <int mode>
__device__ void add_feature_gradient(const BlendInput& in, int begin, int count, int first, const float* partial,
                                     float* grad_features) {
  for (int i = (int)threadIdx.x; i < count * kChunk; i += kTilePixels) {
    const int hit = i / kChunk, c = first + i % kChunk;
    if (c >= in.channels) continue;
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < Products<mode>::kPartials; ++k) sum += partial[k * kBatch * kChunk + i];
    if (sum != 0.0f) atomicAdd(grad_features + (int64_t)in.tile_ids[begin + hit] * in.channels + c, sum);
  }
}

template <int kind, int mode>
constexpr std::size_t backward_shared() {
  return shared_bytes(kBatch * kParams * sizeof(float), kBatch * kPixelRow * sizeof(float),
                      kBatch * kPixelRow * sizeof(float), Products<mode>::kRows * sizeof(float),
                      Products<mode>::kFeatureRows * sizeof(float), kTilePixels * sizeof(float),
                      kTilePixels * sizeof(float), kTilePixels * sizeof(int));
}

template <int kind, int mode>
__global__ void __launch_bounds__(kTilePixels) blend_backward(BlendInput in, int attached, BlendUpstream upstream,
                                                              BlendGradient gradient) {
  Shared shared;
  float* const params = shared.take<float>(kBatch * kParams);
  float* const weights = shared.take<float>(kBatch * kPixelRow);
  // First the partial sums of dF, then s, then alpha dL/dalpha.
  float* const signal = shared.take<float>(kBatch * kPixelRow);
  float* const rows = shared.take<float>(Products<mode>::kRows);
  float* const features = shared.take<float>(Products<mode>::kFeatureRows);
  float* const depth_gradients = shared.take<float>(kTilePixels);
  float* const median_gradients = shared.take<float>(kTilePixels);
  int* const medians = shared.take<int>(kTilePixels);

  const int tile = (int)blockIdx.x, thread = (int)threadIdx.x;
  const int begin = in.tile_offsets[tile], end = in.tile_offsets[tile + 1];
  if (begin == end) return;
  const TilePixel pixel(in, tile, thread);
  int reached;
  const PixelTrace traced = trace<kind>(in, begin, end, pixel, params, reached);

  const float grad_depth = pixel.inside ? upstream.depth[pixel.index] : 0.0f;
  const float open = pixel.inside ? traced.transmittance * upstream.alpha[pixel.index] : 0.0f;
  depth_gradients[thread] = grad_depth;
  median_gradients[thread] = pixel.inside ? upstream.median[pixel.index] : 0.0f;
  medians[thread] = traced.median;
  // A tile's upstream gradient that is one chunk is read once.
  const bool resident = mode == kSmall || in.channels <= kChunk;
  if (mode == kSmall) load_upstream(in, tile, upstream.image, 0, kSmallChannels, kSmallChannels, rows);
  if (mode != kSmall && resident) load_upstream(in, tile, upstream.image, 0, kChunk, kChunkRow, rows);

  float transmittance = traced.transmittance, behind = 0.0f;
  for (int first = begin + (reached - begin - 1) / kBatch * kBatch; first >= begin; first -= kBatch) {
    const int count = reached - first < kBatch ? reached - first : kBatch;
    PB_BARRIER(backward_batch);
    load_parameters<kind>(in, first, count, pixel, params);
    if constexpr (mode == kSmall)
      load_features(in, first, count, attached, 0, kSmallChannels, kSmallChannels, features);
    PB_BARRIER(backward_loaded);
    float after = transmittance;
    for (int n = kBatch - 1; n >= 0; --n) {
      float weight = 0.0f;
      if (n < count && first + n < traced.stop) {
        const SplatHit hit = splat_hit<kind>(params + n * kParams, pixel.x, pixel.y, in.near_plane);
        if (hit.blended) {
          after /= 1.0f - hit.alpha;
          weight = hit.alpha * after;
        }
      }
      weights[n * kPixelRow + thread] = weight;
    }
    if constexpr (mode != kSmall) {
      typename Products<mode>::Signal s;
      for (int c = 0; c < in.channels; c += kChunk) {
        if (!resident || c == 0) {
          if (!resident) load_upstream(in, tile, upstream.image, c, kChunk, kChunkRow, rows);
          load_features(in, first, count, attached, c, kChunk, kChunkRow, features);
        }
        PB_BARRIER(chunk_loaded);
        if (c < attached) s.add(features, rows);
        if constexpr (mode == kExact)
          exact_feature_gradient(weights, rows, signal);
        else
          tensor_feature_gradient(weights, rows, signal);
        PB_BARRIER(chunk_multiplied);
        add_feature_gradient<mode>(in, first, count, c, signal, gradient.features);
      }
      PB_BARRIER(partials_read);
      s.write(signal);
      PB_BARRIER(signal_written);
    }
    for (int n = count - 1; n >= 0; --n) {
      const float weight = weights[n * kPixelRow + thread];
      float grad_log = 0.0f;
      if (weight > 0.0f) {
        const SplatHit hit = splat_hit<kind>(params + n * kParams, pixel.x, pixel.y, in.near_plane);
        const float rest = 1.0f - hit.alpha;
        transmittance /= rest;
        float s = hit.depth * grad_depth;
        if constexpr (mode == kSmall) {
#pragma unroll
          for (int c = 0; c < kSmallChannels; ++c)
            s += features[n * kSmallChannels + c] * rows[thread * kSmallChannels + c];
        } else {
          s += signal[n * kPixelRow + thread];
        }
        // dL/dalpha = T s + (T_final g_A - sum behind of w s) / (1 - alpha)
        if (hit.alpha < kAlphaMax) grad_log = hit.alpha * (transmittance * s + (open - behind) / rest);
        behind += weight * s;
      }
      signal[n * kPixelRow + thread] = grad_log;
    }
    PB_BARRIER(gradients_written);
    // Sixteen threads to a hit, each with a column of pixels.
    const int hit = thread / kParts, part = thread % kParts;
    float moments[kMoments<kind>] = {};
    [[maybe_unused]] float sums[kSmallChannels] = {};
    if (hit < count) {
      const float* const p = params + hit * kParams;
      for (int i = 0; i < kTilePixels / kParts; ++i) {
        const int at = i * kParts + part;
        const float weight = weights[hit * kPixelRow + at];
        if (weight == 0.0f) continue;
        const float grad_hit =
            weight * depth_gradients[at] + (medians[at] == first + hit ? median_gradients[at] : 0.0f);
        add_moments<kind>(p, (float)(at % kTile) + 0.5f, (float)(at / kTile) + 0.5f, signal[hit * kPixelRow + at],
                          grad_hit, moments);
        if constexpr (mode == kSmall) {
#pragma unroll
          for (int c = 0; c < kSmallChannels; ++c) sums[c] += weight * rows[at * kSmallChannels + c];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kMoments<kind>; ++k) moments[k] = sum_lanes<kParts>(moments[k]);
    if constexpr (mode == kSmall) {
#pragma unroll
      for (int c = 0; c < kSmallChannels; ++c) sums[c] = sum_lanes<kParts>(sums[c]);
    }
    if (hit >= count || part != 0) continue;
    constexpr int kWidth = kind == kDisc ? kDiscGeometry : kEllipsoidGeometry;
    const int32_t id = in.tile_ids[first + hit];
    float row[kDiscGeometry];
    geometry_gradient(kind, geometry_row<kind>(in, id), pixel.x0, pixel.y0, moments, row);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) atomicAdd(gradient.geometry + (int64_t)id * kWidth + k, row[k]);
    if constexpr (mode == kSmall) {
#pragma unroll
      for (int c = 0; c < kSmallChannels; ++c)
        if (c < in.channels) atomicAdd(gradient.features + (int64_t)id * in.channels + c, sums[c]);
    }
  }
}

template <int kind, int mode>
int start(const BlendInput& in, int attached, const BlendUpstream& upstream, const BlendGradient& gradient,
          void* stream) {
  return launch(blend_backward<kind, mode>, tile_count(in), kTilePixels, backward_shared<kind, mode>(), stream, in,
                attached, upstream, gradient);
}

template <int kind>
int start_mode(const BlendInput& in, int attached, const BlendUpstream& upstream, const BlendGradient& gradient,
               bool tf32, void* stream) {
  if (in.channels <= kSmallChannels) return start<kind, kSmall>(in, attached, upstream, gradient, stream);
  return tf32 ? start<kind, kTensor>(in, attached, upstream, gradient, stream)
              : start<kind, kExact>(in, attached, upstream, gradient, stream);
}

}  // namespace

extern "C" int pb_cuda_blend_backward(const float* geometry, const float* features, const int32_t* tile_offsets,
                                      const int32_t* tile_ids, int width, int height, int channels, int attached,
                                      int kind, float near_plane, int tf32, const float* grad_image,
                                      const float* grad_alpha, const float* grad_depth, const float* grad_median,
                                      float* grad_geometry, float* grad_features, void* stream) {
  const BlendInput in =
      blend_input(geometry, features, tile_offsets, tile_ids, width, height, channels, near_plane);
  const BlendUpstream upstream{grad_image, grad_alpha, grad_depth, grad_median};
  const BlendGradient gradient{grad_geometry, grad_features};
  return kind == kEllipsoid ? start_mode<kEllipsoid>(in, attached, upstream, gradient, tf32 != 0, stream)
                            : start_mode<kDisc>(in, attached, upstream, gradient, tf32 != 0, stream);
}

}  // namespace panbench
