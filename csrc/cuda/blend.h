// What the forward and backward blending kernels share: a block of 256 threads works on one tile, a thread on one pixel
// when weights are formed, and on a rectangle of outputs when they are multiplied. Channels are numbered through:
// labels first, then features.
#pragma once
#include "../distortion.h"
#include "../splat.h"
#include "label_sums.h"
#include "matrix.h"

namespace panbench {

constexpr int kSmallChannels = 8;  // up to so many channels a thread sums alone

// What a tile needs to know of a Gaussian to leave it out: the ellipse and the disc of its Footprint. float4 by float4:
// x, y, slope_x, slope_y | a, b, c, r2 | cx, cy.
constexpr int kBounds = 12;

struct BlendInput {
  Frame frame;
  const float* geometry;        // [M, G]
  const float* bounds;          // [M, kBounds]
  const float* features;        // [M, C]
  const float* labels;          // [M, L]
  const int32_t* tile_offsets;  // [T + 1]
  const int32_t* tile_ids;      // [K]
  int feature_count, label_count;
  float near_plane;

  PB_HD int channels() const { return label_count + feature_count; }
};

// Writes the bounds [M, kBounds] of geometry [M, G].
int write_bounds(const float* geometry, int64_t visible, int kind, const Frame& frame, float* bounds, void* stream);

// Where channel c of `row` is in a pair of arrays, [., L] and [., C].
template <typename T>
__device__ T* channel_at(const BlendInput& in, T* labels, T* features, int64_t row, int c) {
  return c < in.label_count ? labels + row * in.label_count + c
                            : features + row * in.feature_count + (c - in.label_count);
}

template <int kind>
__device__ const float* geometry_row(const BlendInput& in, int32_t id) {
  return in.geometry + (int64_t)id * (kind == kDisc ? kDiscGeometry : kEllipsoidGeometry);
}

// Parameters [count, kParams] of the candidates first.. of a tile, and their bounds [count, kBounds], into shared
// memory.
template <int kind>
__device__ void load_candidates(const BlendInput& in, int first, int count, const TilePixel& pixel, float* params,
                                float* bounds) {
  const int hit = (int)threadIdx.x % 32;
  if (hit >= count || threadIdx.x >= 64) return;
  const int32_t id = in.tile_ids[first + hit];
  if (threadIdx.x < 32) {
    tile_parameters(kind, geometry_row<kind>(in, id), pixel.x0, pixel.y0, params + hit * kParams);
    return;
  }
  const float4* const from = reinterpret_cast<const float4*>(in.bounds) + (int64_t)id * (kBounds / 4);
  float4* const to = reinterpret_cast<float4*>(bounds) + hit * (kBounds / 4);
  float4 v = from[0];
  v.x -= pixel.x0, v.y -= pixel.y0;
  to[0] = v;
  to[1] = from[1];
  v = from[2];
  v.x -= pixel.x0, v.y -= pixel.y0;
  to[2] = v;
}

__device__ inline float held(float x, float lo, float hi) { return fminf(fmaxf(x, lo), hi); }

// Whether some pixel of the warp whose first has its centre at (bx, by) lies in the ellipse or the disc of a candidate.
__device__ inline bool touches(const float* bounds, float bx, float by) {
  const float4* const row = reinterpret_cast<const float4*>(bounds);
  const float4 p = row[0], q = row[1], r = row[2];
  constexpr float kWide = kWarpWide - 1, kHigh = kWarpHigh - 1;
  const float lx = bx - p.x, ly = by - p.y, hx = lx + kWide, hy = ly + kHigh;
  // The quadratic form is smallest on an edge that faces the centre, or 0 inside. Far from the centre its terms cancel:
  // what they lose there is allowed for.
  const float ex = held(0.0f, lx, hx), ey = held(0.0f, ly, hy);
  const float fy = held(p.w * ex, ly, hy), fx = held(p.z * ey, lx, hx);
  constexpr float kKept = 1.0f - 1e-6f;
  const float on_x = kKept * (q.x * ex * ex + q.z * fy * fy) + 2.0f * q.y * ex * fy;
  const float on_y = kKept * (q.x * fx * fx + q.z * ey * ey) + 2.0f * q.y * fx * ey;
  const float dx = held(r.x, bx, bx + kWide) - r.x, dy = held(r.y, by, by + kHigh) - r.y;
  return fminf(on_x, on_y) <= 1.0001f || dx * dx + dy * dy <= q.w;
}

// Bits of the candidates of a batch that the warp has to look at; none if all of its pixels are done.
__device__ inline unsigned near_warp(const float* bounds, int count, bool active) {
  const int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x - lane;
  const unsigned open = __ballot_sync(kWholeWarp, active);
  const bool near = lane < count && touches(bounds + lane * kBounds, (float)tile_column(first) + 0.5f,
                                            (float)tile_row(first) + 0.5f);
  const unsigned touched = __ballot_sync(kWholeWarp, near);
  return open != 0 ? touched : 0;
}

}  // namespace panbench
