// Which tiles a projected Gaussian may touch. Shared by the CPU and CUDA back ends.
#pragma once
#include <cmath>

#include "projection.h"

namespace panbench {

// Screen ellipse {d : a dx^2 + 2 b dx dy + c dy^2 <= 1} around (x, y), together with a disc of squared radius r2 around
// (cx, cy): outside of both a Gaussian's alpha is below 1/255. `unbounded` marks a disc that crosses the camera plane:
// it has no ellipse, only the range of tiles x0..x1, y0..y1 (empty if x1 < x0), and its r2 covers everything.
struct alignas(64) Footprint {
  union {
    struct {
      float x, y, a, b, c, slope_x, slope_y, cx, cy, r2;  // slope_x: -b / a, slope_y: -b / c
      int unbounded, x0, x1, y0, y1;
    };
    float values[16];  // one cache line; the first ten are numbers
  };
};

PB_HD void footprint_from(double xx, double xy, double yy, Footprint& f) {
  // A hair of slack keeps edge-on discs from having an empty or indefinite ellipse.
  xx += 1e-3;
  yy += 1e-3;
  const double inv = 1.0 / (xx * yy - xy * xy);
  f.a = (float)(yy * inv);
  f.b = (float)(-xy * inv);
  f.c = (float)(xx * inv);
  f.slope_x = -f.b / f.a;
  f.slope_y = -f.b / f.c;
}

// Tiles first..last along one axis that a disc in front of the camera can reach: p >= edge needs a point (u, v) of the
// cut disc with (M_p - edge M_w) . (u, v, 1) >= 0, whose largest value has a closed form.
PB_HD void reachable(Vec3 mp, Vec3 mw, float cut, int tiles, int& first, int& last) {
  first = tiles;
  last = -1;
  for (int t = 0; t < tiles; ++t) {
    const Vec3 lo = mp - (float)(t * kTile) * mw, hi = mp - (float)((t + 1) * kTile) * mw;
    if (lo.z + cut * hypotf(lo.x, lo.y) < 0.0f || hi.z - cut * hypotf(hi.x, hi.y) > 0.0f) continue;
    if (last < 0) first = t;
    last = t;
  }
}

// Widens first..last by the tiles within `radius` of `center`.
PB_HD void widen(float center, float radius, int tiles, int& first, int& last) {
  const float lo = fmaxf(center - radius, 0.0f) / kTile, hi = fminf((center + radius) / kTile, tiles - 0.5f);
  if (!(hi >= 0.0f && lo < (float)tiles)) return;
  first = first < (int)lo ? first : (int)lo;
  last = last > (int)hi ? last : (int)hi;
}

// g: one row of geometry.
PB_HD Footprint footprint(const float* g, int kind, int tiles_x, int tiles_y) {
  Footprint f{};
  f.r2 = -1.0f;
  if (kind == kEllipsoid) {
    const double det = (double)g[2] * g[4] - (double)g[3] * g[3];
    const double scale = 2.0f * logf(255.0f * g[5]) / det;
    f.x = f.cx = g[0];
    f.y = f.cy = g[1];
    footprint_from(scale * g[4], -scale * g[3], scale * g[2], f);
    return f;
  }
  const float cut2 = 2.0f * logf(255.0f * g[11]);
  f.cx = g[9];
  f.cy = g[10];
  f.r2 = 0.5f * cut2 * 1.0001f + 1e-4f;
  float xx, xy, yy;
  if (disc_ellipse(load3(g), load3(g + 3), load3(g + 6), fmaxf(cut2, 0.0f), f.x, f.y, xx, xy, yy)) {
    footprint_from(fmaxf(xx, 0.0f), xy, fmaxf(yy, 0.0f), f);
  } else {
    f.unbounded = 1;
    f.x = f.cx;
    f.y = f.cy;
    f.a = f.c = 1e-12f;
    const float cut = sqrtf(fmaxf(cut2, 0.0f)), radius = sqrtf(f.r2);
    reachable(load3(g), load3(g + 6), cut, tiles_x, f.x0, f.x1);
    reachable(load3(g + 3), load3(g + 6), cut, tiles_y, f.y0, f.y1);
    if (f.x0 > f.x1 || f.y0 > f.y1) f.x0 = tiles_x, f.x1 = -1, f.y0 = tiles_y, f.y1 = -1;
    widen(f.cx, radius, tiles_x, f.x0, f.x1);
    widen(f.cy, radius, tiles_y, f.y0, f.y1);
    f.r2 = 1e30f;
  }
  return f;
}

PB_HD double between(double x, double lo, double hi) { return x < lo ? lo : x > hi ? hi : x; }

// How far a footprint's ellipse reaches from its centre; the same for all of its rows of tiles.
struct Reach {
  double det, inverse_a, x, y, y_at_right;
};

PB_HD Reach reach_of(const Footprint& f) {
  Reach r;
  r.det = (double)f.a * f.c - (double)f.b * f.b;
  r.inverse_a = 1.0 / f.a;
  const double inverse_det = 1.0 / r.det;
  r.x = sqrt(f.c * inverse_det);
  r.y = sqrt(f.a * inverse_det);
  r.y_at_right = f.slope_y * r.x;
  return r;
}

// Extent in x of the ellipse within the strip y0 <= y <= y1 (relative to its centre); false if they do not meet.
PB_HD bool ellipse_span(const Footprint& f, const Reach& r, double y0, double y1, double& lo, double& hi) {
  if (y0 > r.y || y1 < -r.y) return false;
  const double a = between(y0, -r.y, r.y), b = between(y1, -r.y, r.y);
  // The chord at height y is centred at slope_x y and half sqrt(a - det y^2) / a long.
  const double under_a = f.a - r.det * a * a, under_b = f.a - r.det * b * b;
  const double half_a = sqrt(under_a > 0.0 ? under_a : 0.0) * r.inverse_a;
  const double half_b = sqrt(under_b > 0.0 ? under_b : 0.0) * r.inverse_a;
  const double mid_a = f.slope_x * a, mid_b = f.slope_x * b;
  lo = mid_a - half_a < mid_b - half_b ? mid_a - half_a : mid_b - half_b;
  hi = mid_a + half_a > mid_b + half_b ? mid_a + half_a : mid_b + half_b;
  if (r.y_at_right >= a && r.y_at_right <= b) hi = r.x;
  if (-r.y_at_right >= a && -r.y_at_right <= b) lo = -r.x;
  return true;
}

// Rows of tiles first..last that a footprint may touch; none if last < first.
PB_HD void tile_rows(const Footprint& f, const Reach& r, int tiles_y, int& first, int& last) {
  first = 0;
  last = -1;
  if (f.unbounded) {
    if (f.x0 <= f.x1) first = f.y0, last = f.y1;
    return;
  }
  float top = f.y - (float)r.y, bottom = f.y + (float)r.y;
  if (f.r2 > 0) {
    const float radius = sqrtf(f.r2);
    top = fminf(top, f.cy - radius);
    bottom = fmaxf(bottom, f.cy + radius);
  }
  const float limit = (float)(tiles_y * kTile);
  if (!(bottom > 0.0f && top < limit)) return;
  first = (int)(fmaxf(top, 0.0f) / kTile);
  last = (int)(fminf(bottom, limit - 1) / kTile);
}

// Tiles first..last of the row of tiles ty that a footprint may touch; false if there are none.
PB_HD bool tile_span(const Footprint& f, const Reach& r, int ty, int tiles_x, int& first, int& last) {
  if (f.unbounded) {
    first = f.x0;
    last = f.x1;
    return first <= last;
  }
  const float y0 = (float)(ty * kTile), y1 = y0 + kTile;
  float lo = 1e30f, hi = -1e30f;
  double left, right;
  if (ellipse_span(f, r, y0 - f.y, y1 - f.y, left, right)) {
    lo = f.x + (float)left;
    hi = f.x + (float)right;
  }
  if (f.r2 > 0) {
    const float dy = fminf(fmaxf(f.cy, y0), y1) - f.cy;
    if (dy * dy <= f.r2) {
      const float w = sqrtf(f.r2 - dy * dy);
      lo = fminf(lo, f.cx - w);
      hi = fmaxf(hi, f.cx + w);
    }
  }
  const float limit = (float)(tiles_x * kTile);
  if (!(hi > 0.0f && lo < limit && lo <= hi)) return false;
  first = (int)(fmaxf(lo, 0.0f) / kTile);
  last = (int)(fminf(hi, limit - 1) / kTile);
  return first <= last;
}

}  // namespace panbench
