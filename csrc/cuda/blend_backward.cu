// Blending, backward. A first sweep front to back finds where each pixel stops; the second goes back to front in
// batches of hits: weights W [hits, pixels] again, dF = W dOut, the signal s = F dOut^T of the attached channels, and
// from both the gradients that each pixel sends into the geometry of each hit, summed over the pixels as a handful of
// moments. dOut of a tile is formed once, in shared memory, where the device has room for all of its channels; else a
// window at a time.
#include "api.h"
#include "blend.h"

namespace panbench {
namespace {

constexpr int kBatch = 16;
constexpr int kGroup = 16;                    // channels that a warp multiplies
constexpr int kParts = kTilePixels / kBatch;  // threads that share a hit's moments
// Floats between the weights of two hits, between the channels of two pixels beyond those channels, and of two pixels
// if they are few: rows next to each other lie in different banks.
constexpr int kPixelRow = kTilePixels + 4;
constexpr int kPad = 4;
constexpr int kSmallRow = kSmallChannels + 1;
constexpr int kMostItems = kBatch * kPixelRow / (kBatch * kGroup);  // products that fit the array of the signal

enum Mode { kSmall, kExact, kTensor };

// Gradients of what blending gives; each is null if nothing depends on it.
struct BlendUpstream {
  const float* image;        // [H, W, C]
  const float* label_image;  // [H, W, L]
  const float* alpha;        // [H, W]
  const float* depth;        // [H, W]
  const float* median;       // [H, W]
  const float* distortion;   // [H, W]
  LabelUpstream sums;
  const float* blended_labels;  // [H, W, L]: what the forward pass gave
  LabelTargets targets;
};

struct BlendGradient {
  float* geometry;  // [M, G]
  float* features;  // [M, C]
  float* labels;    // [M, L]
  float* absolute;  // [M, 2], or null: not wanted
};

// What a block does at a time: channels of a window, and how they are cut.
struct Window {
  int still, moving;  // channels still..moving - 1 send no gradient into geometry
  int width;           // a multiple of kGroup
  bool whole;          // one window has all channels

  PB_HD int row() const { return width + kPad; }

  // Of the channels from c on those in front of near_end and from far_begin on send gradient into geometry, and some of
  // their groups' neighbours that count as 0.
  __device__ void parts(int c, int& near_end, int& far_begin) const {
    const int end = still > c ? (still - c + kGroup - 1) / kGroup * kGroup : 0;
    const int begin = moving > c ? (moving - c) / kGroup * kGroup : 0;
    near_end = end < width ? end : width;
    far_begin = begin < near_end ? near_end : begin;
  }
};

// What a thread knows of its pixel after the first sweep.
struct PixelTrace {
  float transmittance = 1.0f;
  int stop = 0;     // candidates from here on are not blended
  int median = -1;  // the candidate that the median depth is of
  Distortion<float> distortion{1.0f, 0.0f, 0.0f};  // if its gradient is wanted
};

template <int kind, bool distort>
__device__ PixelTrace trace(const BlendInput& in, int begin, int end, const TilePixel& pixel, float* params,
                            float* bounds, int& reached) {
  PixelTrace t;
  bool active = pixel.inside;
  t.stop = active ? end : begin;
  reached = begin;
  for (int first = begin; first < end; first += kBatch) {
    // Also keeps this batch from overwriting the last one while a thread still reads it.
    if (__syncthreads_count(active) == 0) break;
    const int count = end - first < kBatch ? end - first : kBatch;
    reached = first + count;
    load_candidates<kind>(in, first, count, pixel, params, bounds);
    PB_BARRIER(trace_loaded);
    for (unsigned near = near_warp(bounds, count, active); near != 0 && active; near &= near - 1) {
      const int n = __ffs((int)near) - 1;
      const SplatHit hit = splat_hit<kind>(params + n * kParams, pixel.x, pixel.y, in.near_plane);
      if (!hit.blended) continue;
      const float next = t.transmittance * (1.0f - hit.alpha);
      if (next <= kTransmittanceMin) {
        t.stop = first + n;
        active = false;
        break;
      }
      if constexpr (distort) {
        if (t.transmittance == 1.0f) t.distortion.first = hit.depth;
        t.distortion.add(hit.alpha * t.transmittance, t.distortion.offset(hit.depth));
      }
      if (t.transmittance > 0.5f) t.median = first + n;
      t.transmittance = next;
    }
  }
  return t;
}

// s [16 hits, 256 pixels] += F dOut^T over channels begin..end of a window: a warp has 4 hits and half of the pixels.
class ExactSignal {
  static constexpr int kHits = 4, kPixels = 4;
  float sum_[kHits][kPixels] = {};

  static __device__ int hit() { return (int)threadIdx.x / 64 * kHits; }
  static __device__ int pixel() { return (int)threadIdx.x / 32 % 2 * 128 + (int)threadIdx.x % 32; }

 public:
  __device__ void add(const float* features, const float* upstream, int row, int begin, int end) {
    const float* const f = features + hit() * row;
    const float* const g = upstream + pixel() * row;
    for (int c = begin; c < end; c += 4) {
      float4 a[kHits], b[kPixels];
#pragma unroll
      for (int i = 0; i < kHits; ++i) a[i] = *reinterpret_cast<const float4*>(f + i * row + c);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) b[j] = *reinterpret_cast<const float4*>(g + j * 32 * row + c);
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

// to [16 hits, 16 channels] = W dOut over the pixels begin..end, by a warp.
struct ExactFeatureGradient {
  static __device__ void multiply(const float* weights, const float* upstream, int row, int begin, int end, float* to) {
    constexpr int kHits = 2, kSide = 4;
    const int lane = (int)threadIdx.x % 32, hit = lane / 4, channel = lane % 4 * kSide;
    float sum[kHits][kSide] = {};
    for (int p = begin; p < end; p += kSide) {
      float4 w[kHits], g[kSide];
#pragma unroll
      for (int i = 0; i < kHits; ++i) w[i] = *reinterpret_cast<const float4*>(weights + (hit + 8 * i) * kPixelRow + p);
#pragma unroll
      for (int j = 0; j < kSide; ++j) g[j] = *reinterpret_cast<const float4*>(upstream + (p + j) * row + channel);
#pragma unroll
      for (int i = 0; i < kHits; ++i) {
        sum[i][0] += w[i].x * g[0].x + w[i].y * g[1].x + (w[i].z * g[2].x + w[i].w * g[3].x);
        sum[i][1] += w[i].x * g[0].y + w[i].y * g[1].y + (w[i].z * g[2].y + w[i].w * g[3].y);
        sum[i][2] += w[i].x * g[0].z + w[i].y * g[1].z + (w[i].z * g[2].z + w[i].w * g[3].z);
        sum[i][3] += w[i].x * g[0].w + w[i].y * g[1].w + (w[i].z * g[2].w + w[i].w * g[3].w);
      }
    }
#pragma unroll
    for (int i = 0; i < kHits; ++i)
#pragma unroll
      for (int k = 0; k < kSide; ++k) to[(hit + 8 * i) * kGroup + channel + k] = sum[i][k];
  }
};

#if PB_TENSOR_CORES
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
  __device__ void add(const float* features, const float* upstream, int row, int begin, int end) {
    const float* const g = upstream + threadIdx.x / 32 * 32 * row;
    for (int c = begin; c < end; c += 8) {
      Left f;
      load_rounded(f, features + c, row);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        RightColumns b;
        load_rounded(b, g + j * 16 * row + c, row);
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

struct TensorFeatureGradient {
  static __device__ void multiply(const float* weights, const float* upstream, int row, int begin, int end, float* to) {
    Sum sum;
    wmma::fill_fragment(sum, 0.0f);
    for (int p = begin; p < end; p += 8) {
      Left w;
      RightRows g;
      load_rounded(w, weights + p, kPixelRow);
      load_rounded(g, upstream + p * row, row);
      wmma::mma_sync(sum, w, g, sum);
    }
    wmma::store_matrix_sync(to, sum, kGroup, wmma::mem_row_major);
  }
};
#else
class TensorSignal : public ExactSignal {};
struct TensorFeatureGradient : ExactFeatureGradient {};
#endif

// Stands for the products where a thread does without them.
struct NoProduct {};

template <int mode>
struct Products {
  using Signal = NoProduct;
  using FeatureGradient = NoProduct;
};
template <>
struct Products<kExact> {
  using Signal = ExactSignal;
  using FeatureGradient = ExactFeatureGradient;
};
template <>
struct Products<kTensor> {
  using Signal = TensorSignal;
  using FeatureGradient = TensorFeatureGradient;
};

// dL/d(channel c) of a pixel inside of the image: what comes from its image, and what its labels' sums ask for.
__device__ float channel_upstream(const BlendInput& in, const BlendUpstream& upstream, int64_t pixel, int c,
                                  float log_total) {
  if (c >= in.label_count)
    return upstream.image ? upstream.image[pixel * in.feature_count + (c - in.label_count)] : 0.0f;
  const int64_t at = pixel * in.label_count + c;
  float gradient = upstream.label_image ? upstream.label_image[at] : 0.0f;
  if (upstream.sums.any() && upstream.targets.semantic[pixel] > 0)
    gradient += label_gradient(upstream.targets, upstream.sums, in.label_count, pixel, c, upstream.blended_labels[at],
                               log_total);
  return gradient;
}

// Channels first..first + width of the upstream gradient of the tile's pixels, `row` floats apart. log_totals [256] are
// those of the pixels' classes.
__device__ void load_upstream(const BlendInput& in, const BlendUpstream& upstream, int tile, int first, int width,
                              int row, const float* log_totals, float* rows) {
  for (int i = (int)threadIdx.x; i < kTilePixels * width; i += kTilePixels) {
    const int p = i / width, c = first + i % width;
    const TilePixel pixel(in.frame, tile, p);
    rows[p * row + i % width] =
        pixel.inside && c < in.channels() ? channel_upstream(in, upstream, pixel.index, c, log_totals[p]) : 0.0f;
  }
}

// The same of the features of the batch; those of channels that are not attached count as 0.
__device__ void load_features(const BlendInput& in, const Window& window, int begin, int count, int first, int width,
                              int row, float* rows) {
  for (int i = (int)threadIdx.x; i < kBatch * width; i += kTilePixels) {
    const int hit = i / width, c = first + i % width;
    const bool attached = c < window.still || c >= window.moving;
    rows[hit * row + i % width] = hit < count && attached && c < in.channels()
                                      ? *channel_at(in, in.labels, in.features, in.tile_ids[begin + hit], c)
                                      : 0.0f;
  }
}

// In how many parts the pixels are cut, so that all warps have a share of so many groups of channels.
__device__ int pixel_parts(int groups) { return groups > 4 ? 1 : groups > 2 ? 2 : groups > 1 ? 4 : 8; }

// products [groups x parts, 16 hits, 16 channels] of a window.
template <int mode>
__device__ void multiply_window(const Window& window, const float* weights, const float* upstream, float* products) {
  const int groups = window.width / kGroup, parts = pixel_parts(groups), pixels = kTilePixels / parts;
  for (int item = (int)threadIdx.x / 32; item < groups * parts; item += kWarps) {
    const int begin = item % parts * pixels;
    Products<mode>::FeatureGradient::multiply(weights, upstream + item / parts * kGroup, window.row(), begin,
                                              begin + pixels, products + item * (kBatch * kGroup));
  }
}

__device__ void add_feature_gradient(const BlendInput& in, const Window& window, int begin, int count, int first,
                                     const float* products, const BlendGradient& gradient) {
  const int parts = pixel_parts(window.width / kGroup);
  for (int i = (int)threadIdx.x; i < count * window.width; i += kTilePixels) {
    const int hit = i / window.width, column = i % window.width, c = first + column;
    if (c >= in.channels()) continue;
    const float* const from = products + (column / kGroup * parts * kBatch + hit) * kGroup + column % kGroup;
    float sum = 0.0f;
    for (int k = 0; k < parts; ++k) sum += from[k * (kBatch * kGroup)];
    if (sum != 0.0f)
      atomicAdd(channel_at(in, gradient.labels, gradient.features, in.tile_ids[begin + hit], c), sum);
  }
}

// Bytes of shared memory with rows of so many floats.
constexpr std::size_t backward_shared(int row, bool distort) {
  const std::size_t spreads = distort ? kTilePixels * sizeof(DistortionGradient<float>) : 0;
  return shared_bytes(kBatch * kParams * sizeof(float), kBatch * kBounds * sizeof(float),
                      kBatch * kPixelRow * sizeof(float), kBatch * kPixelRow * sizeof(float),
                      (std::size_t)kTilePixels * row * sizeof(float), (std::size_t)kBatch * row * sizeof(float),
                      kTilePixels * sizeof(float), kTilePixels * sizeof(float), kTilePixels * sizeof(float),
                      kTilePixels * sizeof(int), kWarps * sizeof(unsigned), spreads);
}

// Depth of the hit with parameters p at a pixel that it is blended in.
template <int kind>
__device__ float hit_depth(const float* p, float px, float py) {
  if constexpr (kind == kEllipsoid) return p[6];
  const DiscPoint d = disc_point(p, px, py);
  return d.u * p[9] + (d.v * p[10] + p[11]);
}

// Adds to absolute [M, 2] what the pixels of the tile send to the means of a batch's ellipsoids, each in absolute value.
// signal: alpha dL/dalpha. Sixteen threads to a hit; behind the moments, so that these need no more registers.
__device__ void add_absolute(const BlendInput& in, int first, int count, const float* params, const float* weights,
                             const float* signal, const unsigned* touched, float* absolute) {
  const int hit = (int)threadIdx.x / kParts, part = (int)threadIdx.x % kParts;
  const float* const p = params + hit * kParams;
  float sum_x = 0.0f, sum_y = 0.0f;
  for (int at = part; hit < count && at < kTilePixels; at += kParts) {
    if ((touched[at / 32] >> hit & 1) == 0 || weights[hit * kPixelRow + at] == 0.0f) continue;
    const float dx = p[0] - ((float)tile_column(at) + 0.5f), dy = p[1] - ((float)tile_row(at) + 0.5f);
    const float pull = signal[hit * kPixelRow + at];
    sum_x += fabsf(pull * (p[2] * dx + p[3] * dy));
    sum_y += fabsf(pull * (p[3] * dx + p[4] * dy));
  }
  sum_x = sum_lanes<kParts>(sum_x);
  sum_y = sum_lanes<kParts>(sum_y);
  const float mine = part == 0 ? sum_x : sum_y;
  if (hit < count && part < 2 && mine != 0.0f) atomicAdd(absolute + (int64_t)in.tile_ids[first + hit] * 2 + part, mine);
}

// At least two blocks to a multiprocessor, as far as registers go; see blend_product.
template <int kind, int mode, bool distort>
__global__ void __launch_bounds__(kTilePixels, 2) blend_backward(BlendInput in, Window window, BlendUpstream upstream,
                                                              BlendGradient gradient) {
  const int row = mode == kSmall ? kSmallRow : window.row();
  Shared shared;
  float* const params = shared.take<float>(kBatch * kParams);
  float* const bounds = shared.take<float>(kBatch * kBounds);
  float* const weights = shared.take<float>(kBatch * kPixelRow);
  // First the products of dF, then s, then alpha dL/dalpha.
  float* const signal = shared.take<float>(kBatch * kPixelRow);
  float* const rows = shared.take<float>(kTilePixels * row);
  float* const features = shared.take<float>(kBatch * row);
  float* const log_totals = shared.take<float>(kTilePixels);
  float* const depth_gradients = shared.take<float>(kTilePixels);
  float* const median_gradients = shared.take<float>(kTilePixels);
  int* const medians = shared.take<int>(kTilePixels);
  unsigned* const touched = shared.take<unsigned>(kWarps);  // hits that a warp's pixels may have
  [[maybe_unused]] DistortionGradient<float>* spreads = nullptr;
  if constexpr (distort) spreads = shared.take<DistortionGradient<float>>(kTilePixels);

  const int tile = (int)blockIdx.x, thread = (int)threadIdx.x;
  const int begin = in.tile_offsets[tile], end = in.tile_offsets[tile + 1];
  if (begin == end) return;
  const TilePixel pixel(in.frame, tile, thread);
  const LabelTargets& targets = upstream.targets;
  // Read behind the barriers of the first sweep.
  if (targets.logits && targets.classes > 0 && upstream.sums.entropy && pixel.inside)
    log_totals[thread] = log_total(upstream.blended_labels + pixel.index * in.label_count, targets.classes);
  int reached;
  const PixelTrace traced = trace<kind, distort>(in, begin, end, pixel, params, bounds, reached);

  const float grad_depth = pixel.inside && upstream.depth ? upstream.depth[pixel.index] : 0.0f;
  const float open = pixel.inside && upstream.alpha ? traced.transmittance * upstream.alpha[pixel.index] : 0.0f;
  depth_gradients[thread] = grad_depth;
  median_gradients[thread] = pixel.inside && upstream.median ? upstream.median[pixel.index] : 0.0f;
  medians[thread] = traced.median;
  const DistortionGradient<float> spread(traced.distortion, 1.0f - traced.transmittance,
                                         distort && pixel.inside ? upstream.distortion[pixel.index] : 0.0f);
  if constexpr (distort) spreads[thread] = spread;
  if (mode == kSmall) load_upstream(in, upstream, tile, 0, kSmallChannels, row, log_totals, rows);
  if (mode != kSmall && window.whole) load_upstream(in, upstream, tile, 0, window.width, row, log_totals, rows);

  float transmittance = traced.transmittance, behind = 0.0f;
  for (int first = begin + (reached - begin - 1) / kBatch * kBatch; first >= begin; first -= kBatch) {
    const int count = reached - first < kBatch ? reached - first : kBatch;
    PB_BARRIER(backward_batch);
    load_candidates<kind>(in, first, count, pixel, params, bounds);
    if constexpr (mode == kSmall)
      load_features(in, window, first, count, 0, kSmallChannels, row, features);
    PB_BARRIER(backward_loaded);
    const unsigned near = near_warp(bounds, count, first < traced.stop);
    if (thread % 32 == 0) touched[thread / 32] = near;
    float after = transmittance;
    for (int n = kBatch - 1; n >= 0; --n) {
      float weight = 0.0f;
      if ((near >> n & 1) != 0 && first + n < traced.stop) {
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
      for (int c = 0; c < in.channels(); c += window.width) {
        if (!window.whole) load_upstream(in, upstream, tile, c, window.width, row, log_totals, rows);
        load_features(in, window, first, count, c, window.width, row, features);
        PB_BARRIER(window_loaded);
        // Whole groups that send nothing are left out: the channels in front of them, and those behind.
        int near_end, far_begin;
        window.parts(c, near_end, far_begin);
        s.add(features, rows, row, 0, near_end);
        s.add(features, rows, row, far_begin, window.width);
        multiply_window<mode>(window, weights, rows, signal);
        PB_BARRIER(window_multiplied);
        add_feature_gradient(in, window, first, count, c, signal, gradient);
      }
      PB_BARRIER(products_read);
      s.write(signal);
      PB_BARRIER(signal_written);
    }
    for (unsigned left = near; left != 0;) {
      const int n = 31 - __clz((int)left);
      left &= ~(1u << n);
      const float weight = weights[n * kPixelRow + thread];
      float grad_log = 0.0f;
      if (weight > 0.0f) {
        const SplatHit hit = splat_hit<kind>(params + n * kParams, pixel.x, pixel.y, in.near_plane);
        const float rest = 1.0f - hit.alpha;
        transmittance /= rest;
        float s = hit.depth * grad_depth;
        if constexpr (distort) s += spread.of_weight(spread.offset(hit.depth));
        if constexpr (mode == kSmall) {
#pragma unroll
          for (int c = 0; c < kSmallChannels; ++c) s += features[n * row + c] * rows[thread * row + c];
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
    // Sixteen threads to a hit, each with every sixteenth pixel.
    const int hit = thread / kParts, part = thread % kParts;
    float moments[kMoments<kind>] = {};
    [[maybe_unused]] float sums[kSmallChannels] = {};
    if (hit < count) {
      const float* const p = params + hit * kParams;
      for (int at = part; at < kTilePixels; at += kParts) {
        if ((touched[at / 32] >> hit & 1) == 0) continue;
        const float weight = weights[hit * kPixelRow + at];
        if (weight == 0.0f) continue;
        const float x = (float)tile_column(at) + 0.5f, y = (float)tile_row(at) + 0.5f;
        float grad_hit = weight * depth_gradients[at] + (medians[at] == first + hit ? median_gradients[at] : 0.0f);
        if constexpr (distort) {
          const float depth = hit_depth<kind>(p, x, y);
          grad_hit += spreads[at].of_depth(weight, spreads[at].offset(depth), 1.0f / depth);
        }
        add_moments<kind>(p, x, y, signal[hit * kPixelRow + at], grad_hit, moments);
        if constexpr (mode == kSmall) {
#pragma unroll
          for (int c = 0; c < kSmallChannels; ++c) sums[c] += weight * rows[at * row + c];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kMoments<kind>; ++k) moments[k] = sum_lanes<kParts>(moments[k]);
    if constexpr (mode == kSmall) {
#pragma unroll
      for (int c = 0; c < kSmallChannels; ++c) sums[c] = sum_lanes<kParts>(sums[c]);
    }
    if (kind == kEllipsoid && gradient.absolute)
      add_absolute(in, first, count, params, weights, signal, touched, gradient.absolute);
    if (hit >= count) continue;
    // All sixteen have the sums: each adds one entry of the row, so that they are one access to memory.
    constexpr int kWidth = kind == kDisc ? kDiscGeometry : kEllipsoidGeometry;
    const int32_t id = in.tile_ids[first + hit];
    float out[kDiscGeometry];
    geometry_gradient(kind, geometry_row<kind>(in, id), pixel.x0, pixel.y0, moments, out);
    float mine = 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) mine = k == part ? out[k] : mine;
    if (mine != 0.0f) atomicAdd(gradient.geometry + (int64_t)id * kWidth + part, mine);
    if constexpr (mode == kSmall) {
#pragma unroll
      for (int c = 0; c < kSmallChannels; ++c) mine = c == part ? sums[c] : mine;
      if (part < in.channels()) atomicAdd(channel_at(in, gradient.labels, gradient.features, id, part), mine);
    }
  }
}

// All channels at a time where that fits, else as many as leave room for a second block. The last `detached` labels are
// still.
Window window_of(const BlendInput& in, int detached, bool distort) {
  const int still = in.label_count > detached ? in.label_count - detached : 0;
  if (in.channels() <= kSmallChannels) return {still, in.label_count, kSmallChannels, true};
  const int groups = (int)blocks_for(in.channels(), kGroup);
  const std::size_t limit = shared_limit();
  if (groups <= kMostItems && backward_shared(groups * kGroup + kPad, distort) <= limit)
    return {still, in.label_count, groups * kGroup, true};
  const bool wide = backward_shared(2 * kGroup + kPad, distort) <= limit;
  return {still, in.label_count, wide ? 2 * kGroup : kGroup, false};
}

template <int kind, int mode, bool distort>
int start(const BlendInput& in, int detached, const BlendUpstream& upstream, const BlendGradient& gradient,
          void* stream) {
  const Window window = window_of(in, detached, distort);
  const std::size_t shared = backward_shared(mode == kSmall ? kSmallRow : window.row(), distort);
  return launch(blend_backward<kind, mode, distort>, tile_count(in.frame), kTilePixels, shared, stream, in, window,
                upstream, gradient);
}

template <int kind, bool distort>
int start_mode(const BlendInput& in, int detached, const BlendUpstream& upstream, const BlendGradient& gradient,
               bool tf32, void* stream) {
  if (in.channels() <= kSmallChannels) return start<kind, kSmall, distort>(in, detached, upstream, gradient, stream);
  return tf32 ? start<kind, kTensor, distort>(in, detached, upstream, gradient, stream)
              : start<kind, kExact, distort>(in, detached, upstream, gradient, stream);
}

template <int kind>
int start_kind(const BlendInput& in, int detached, const BlendUpstream& upstream, const BlendGradient& gradient,
               bool tf32, void* stream) {
  return upstream.distortion ? start_mode<kind, true>(in, detached, upstream, gradient, tf32, stream)
                             : start_mode<kind, false>(in, detached, upstream, gradient, tf32, stream);
}

}  // namespace

extern "C" int pb_cuda_blend_backward(
    const float* geometry, const float* features, const float* labels, const int32_t* tile_offsets,
    const int32_t* tile_ids, int64_t visible, int width, int height, int feature_count, int label_count, int kind,
    int detached, float near_plane, int tf32, const int32_t* semantic, const int32_t* mask, const float* weight,
    int masks, int classes, int first_query, int logits, float epsilon, const float* label_image,
    const float* grad_image, const float* grad_label_image, const float* grad_alpha, const float* grad_depth,
    const float* grad_median, const float* grad_entropy, const float* grad_presence, const float* grad_overlap,
    const float* grad_distortion, float* bounds, float* grad_geometry, float* grad_features, float* grad_labels,
    float* grad_absolute, void* stream) {
  const LabelUpstream sums{grad_entropy, grad_presence, grad_overlap};
  const BlendUpstream upstream{grad_image,
                               grad_label_image,
                               grad_alpha,
                               grad_depth,
                               grad_median,
                               grad_distortion,
                               semantic ? sums : LabelUpstream{},
                               label_image,
                               {semantic, mask, weight, masks, classes, first_query, logits, epsilon}};
  // Channels that nothing depends on are left out.
  const int live_features = grad_image ? feature_count : 0;
  const int live_labels = grad_label_image || upstream.sums.any() ? label_count : 0;
  const BlendInput in{frame_of(width, height), geometry, bounds,        features,    labels,
                      tile_offsets,            tile_ids, live_features, live_labels, near_plane};
  const BlendGradient gradient{grad_geometry, grad_features, grad_labels, grad_absolute};
  const int error = write_bounds(geometry, visible, kind, in.frame, bounds, stream);
  if (error) return error;
  return kind == kEllipsoid ? start_kind<kEllipsoid>(in, detached, upstream, gradient, tf32 != 0, stream)
                            : start_kind<kDisc>(in, detached, upstream, gradient, tf32 != 0, stream);
}

}  // namespace panbench
