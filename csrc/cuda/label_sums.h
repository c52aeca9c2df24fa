// Sums of a label image [H, W, L] from which its losses follow, and the gradients of its values: what the stand-alone
// kernels and those of blending share. A pixel whose class is 0 counts nowhere.
#pragma once
#include "tile.h"

namespace panbench {

// What labels are compared with; `semantic` is null if they are not.
struct LabelTargets {
  const int32_t* semantic;  // [H, W]
  const int32_t* mask;      // [H, W], -1 .. K - 1
  const float* weight;      // [H, W]
  int masks, classes, first_query;
  int logits;
  float epsilon;
};

// Sums over tiles, added up in float64: entropy, presence [2, Q], overlap [2, K, Q].
struct LabelTotals {
  double* entropy;
  double* presence;
  double* overlap;
};

inline LabelTotals label_totals(double* sums, int queries) { return {sums, sums + 1, sums + 1 + 2 * queries}; }

// Gradients of the sums; each is null if nothing depends on it.
struct LabelUpstream {
  const float* entropy;   // []
  const float* presence;  // [2, Q]
  const float* overlap;   // [2, K, Q]

  PB_HD bool any() const { return entropy || presence || overlap; }
};

// log of the sum of exponentials of a pixel's class channels.
__device__ inline float log_total(const float* values, int classes) {
  float top = values[0], sum = 0.0f;
  for (int c = 1; c < classes; ++c) top = fmaxf(top, values[c]);
  for (int c = 0; c < classes; ++c) sum += expf(values[c] - top);
  return top + logf(sum);
}

// A pixel's part of the entropy. A class that has no channel makes it NaN: to look for one would stall the GPU.
__device__ inline float label_entropy(const LabelTargets& t, int64_t pixel, const float* values) {
  const int y = t.semantic[pixel];
  if (y > t.classes) return NAN;
  const float picked = values[y - 1];
  return t.weight[pixel] * (t.logits ? log_total(values, t.classes) - picked : -logf(picked + t.epsilon));
}

// dL/d(channel c) at a labelled pixel. `total` is log_total of its channels, and unused unless classes are logits.
__device__ inline float label_gradient(const LabelTargets& t, const LabelUpstream& upstream, int label_count,
                                       int64_t pixel, int c, float value, float total) {
  float gradient = 0.0f;
  if (c < t.classes) {
    const bool own = c == t.semantic[pixel] - 1;
    if (upstream.entropy && (own || t.logits)) {
      const float scale = *upstream.entropy * t.weight[pixel];
      gradient = t.logits ? scale * (expf(value - total) - (own ? 1.0f : 0.0f)) : -scale / (value + t.epsilon);
    }
    return gradient;
  }
  const int q = c - t.first_query, queries = label_count - t.first_query;
  if (q < 0) return 0.0f;
  const bool open = t.epsilon < value && value < 1.0f - t.epsilon;
  const float outside = open ? 1.0f / (1.0f - value) : 0.0f;
  if (upstream.presence) gradient = upstream.presence[q] + upstream.presence[queries + q] * outside;
  const int k = t.mask[pixel];
  if (upstream.overlap && k >= 0 && k < t.masks) {
    const float* const row = upstream.overlap + (int64_t)k * queries + q;
    gradient += row[0];
    if (open) gradient -= row[(int64_t)t.masks * queries] * (outside + 1.0f / value);
  }
  return gradient;
}

// Sums of one query, of which the lane sees one after another the pixels of a tile: those of each mask in a row, so
// that a mask costs one addition to memory.
class QuerySums {
  double presence_ = 0.0, outside_ = 0.0, inside_mask_ = 0.0, ratio_ = 0.0;
  int mask_ = -1;

 public:
  __device__ int mask() const { return mask_; }

  __device__ void add(float presence, float outside, float ratio) {
    presence_ += presence;
    outside_ += outside;
    inside_mask_ += presence;
    ratio_ += ratio;
  }

  // From here on the pixels are those of another mask; -1: of none.
  __device__ void turn_to(const LabelTargets& t, const LabelTotals& to, int queries, int q, int mask) {
    if (mask_ >= 0 && q < queries) {
      double* const row = to.overlap + (int64_t)mask_ * queries + q;
      atomicAdd(row, inside_mask_);
      atomicAdd(row + (int64_t)t.masks * queries, ratio_);
    }
    inside_mask_ = ratio_ = 0.0;
    mask_ = mask;
  }

  __device__ void finish(const LabelTargets& t, const LabelTotals& to, int queries, int q) {
    turn_to(t, to, queries, q, -1);
    if (q >= queries) return;
    atomicAdd(to.presence + q, presence_);
    atomicAdd(to.presence + queries + q, outside_);
  }
};

// Adds up what a tile of the label image has, by all threads of its block. The pixels of a tile are taken in a fixed
// order, in float32 for up to 32 of them and in float64 from there on. The tiles' sums are added atomically in float64,
// so that two runs differ by its rounding at most: what is left in float32 is all but always the same to the bit.
__device__ inline void add_tile_sums(const Frame& frame, int tile, const float* labels, int label_count,
                                     const LabelTargets& t, const LabelTotals& to) {
  const int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32;
  if (t.classes > 0) {
    const TilePixel pixel(frame, tile, thread);
    const bool labelled = pixel.inside && t.semantic[pixel.index] > 0;
    const double entropy =
        sum_lanes<32>(labelled ? (double)label_entropy(t, pixel.index, labels + pixel.index * label_count) : 0.0);
    if (lane == 0 && entropy != 0.0) atomicAdd(to.entropy, entropy);
  }
  // An item of work is 32 queries and a part of the warps' pixels.
  const int queries = label_count - t.first_query, groups = (queries + 31) / 32;
  const int parts = groups > 4 ? 1 : groups > 2 ? 2 : groups > 1 ? 4 : 8;
  for (int item = warp; item < groups * parts; item += kWarps) {
    const int q = item / parts * 32 + lane, part = item % parts;
    QuerySums sums;
    for (int block = part * (kWarps / parts); block < (part + 1) * (kWarps / parts); ++block) {
      const TilePixel pixel(frame, tile, block * 32 + lane);
      const bool labelled = pixel.inside && t.semantic[pixel.index] > 0;
      const int k = labelled ? t.mask[pixel.index] : -1;
      const int mask = k < t.masks ? k : -1;
      // Masks one after another, the last one's first.
      for (unsigned left = __ballot_sync(kWholeWarp, labelled); left != 0;) {
        unsigned same = left & __ballot_sync(kWholeWarp, mask == sums.mask());
        if (same == 0) {
          const int next = __shfl_sync(kWholeWarp, mask, __ffs((int)left) - 1);
          sums.turn_to(t, to, queries, q, next);
          same = left & __ballot_sync(kWholeWarp, mask == next);
        }
        left &= ~same;
        if (q >= queries) continue;
        float presence = 0.0f, outside = 0.0f, ratio = 0.0f;
        for (; same != 0; same &= same - 1) {
          const int64_t at = TilePixel(frame, tile, block * 32 + __ffs((int)same) - 1).index;
          const float value = labels[at * label_count + t.first_query + q];
          const float clamped = fminf(fmaxf(value, t.epsilon), 1.0f - t.epsilon);
          const float log_outside = log1pf(-clamped);
          presence += value;
          outside -= log_outside;
          ratio += log_outside - logf(clamped);
        }
        sums.add(presence, outside, ratio);
      }
    }
    sums.finish(t, to, queries, q);
  }
}

}  // namespace panbench
