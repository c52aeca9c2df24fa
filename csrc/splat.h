// One projected Gaussian within one tile: its alpha at a pixel, and its geometry gradient from sums over pixels. Shared
// by the CPU and CUDA back ends.
#pragma once
#include <cmath>

#include "hd.h"

namespace panbench {

constexpr int kParams = 16;  // floats of tile-local parameters a candidate has

// Tile-local parameters. Ellipsoid: x, y, a, b, c, opacity, z. Disc: Z0 (3), Zx (3), Zy (3), M_w (3), c_x, c_y, opacity:
// (zeta_x, zeta_y, zeta_z)(p) = Z0 + p_x Zx + p_y Zy is the ray-disc intersection in homogeneous disc coordinates.
// g: one row of geometry; (x0, y0): the tile's corner.
PB_HD void tile_parameters(int kind, const float* g, float x0, float y0, float* p) {
  if (kind == kEllipsoid) {
    p[0] = g[0] - x0;
    p[1] = g[1] - y0;
    for (int k = 2; k < 7; ++k) p[k] = g[k];
    return;
  }
  const Vec3 mw = load3(g + 6);
  const Vec3 mu = load3(g) - x0 * mw, mv = load3(g + 3) - y0 * mw;
  store3(p, cross(mu, mv));
  store3(p + 3, cross(mv, mw));
  store3(p + 6, cross(mw, mu));
  store3(p + 9, mw);
  p[12] = g[9] - x0;
  p[13] = g[10] - y0;
  p[14] = g[11];
}

// Where a pixel's ray meets a disc, in the disc's coordinates, and the squared distances on the disc and on the screen.
struct DiscPoint {
  float u, v, inv, rho3, rho2;
};

PB_HD DiscPoint disc_point(const float* p, float px, float py) {
  const float zx = px * p[3] + (py * p[6] + p[0]);
  const float zy = px * p[4] + (py * p[7] + p[1]);
  const float zz = px * p[5] + (py * p[8] + p[2]);
  DiscPoint d;
  d.inv = 1.0f / zz;
  d.u = zx * d.inv;
  d.v = zy * d.inv;
  d.rho3 = d.u * d.u + d.v * d.v;
  const float dx = p[12] - px, dy = p[13] - py;
  d.rho2 = 2.0f * (dx * dx + dy * dy);
  return d;
}

struct SplatHit {
  float alpha, depth;
  bool blended;  // alpha reaches 1/255, and a disc's hit lies behind the near plane
};

// The Gaussian with parameters p at the tile-local pixel centre (px, py).
template <int kind>
PB_HD SplatHit splat_hit(const float* p, float px, float py, float near_plane) {
  SplatHit h;
  if constexpr (kind == kEllipsoid) {
    const float dx = p[0] - px, dy = p[1] - py;
    const float sigma = 0.5f * (p[2] * dx * dx + p[4] * dy * dy) + p[3] * dx * dy;
    h.alpha = fminf(kAlphaMax, p[5] * expf(-sigma));
    h.depth = p[6];
    h.blended = sigma >= 0.0f && h.alpha >= kAlphaMin;
  } else {
    const DiscPoint d = disc_point(p, px, py);
    h.depth = d.u * p[9] + (d.v * p[10] + p[11]);
    h.alpha = fminf(kAlphaMax, p[14] * expf(-0.5f * fminf(d.rho3, d.rho2)));
    // Comparisons are false for the NaN and infinities of a ray parallel to the disc.
    h.blended = h.depth >= near_plane && h.depth <= 1e10f && h.alpha >= kAlphaMin;
  }
  return h;
}

// Sums over the pixels of a tile from which geometry_gradient follows.
template <int kind>
constexpr int kMoments = kind == kEllipsoid ? 7 : 15;

// Adds a pixel's part to the moments m. grad_log = alpha dL/dalpha, 0 where alpha is clamped; grad_hit = dL/d(depth of
// the hit).
template <int kind>
PB_HD void add_moments(const float* p, float px, float py, float grad_log, float grad_hit, float* m) {
  if constexpr (kind == kEllipsoid) {
    // Of g_sigma times (1, dx, dy, dx^2, dx dy, dy^2), then g_z.
    const float dx = p[0] - px, dy = p[1] - py;
    const float gs = -grad_log, gx = gs * dx, gy = gs * dy;
    m[0] += gs;
    m[1] += gx;
    m[2] += gy;
    m[3] += gx * dx;
    m[4] += gx * dy;
    m[5] += gy * dy;
    m[6] += grad_hit;
  } else {
    // Of g_zeta times (1, p_x, p_y) (9), g_d (u, v, 1) (3), g_c (2), g_opacity.
    const DiscPoint d = disc_point(p, px, py);
    const float g_rho = -0.5f * grad_log;
    const bool flat = d.rho2 <= d.rho3;  // the low-pass branch wins
    const float g3 = flat ? 0.0f : g_rho, g2 = flat ? 4.0f * g_rho : 0.0f;
    const float gu = 2.0f * d.u * g3 + grad_hit * p[9], gv = 2.0f * d.v * g3 + grad_hit * p[10];
    const float zx = gu * d.inv, zy = gv * d.inv, zz = -(zx * d.u + zy * d.v);
    m[0] += zx;
    m[1] += zy;
    m[2] += zz;
    m[3] += zx * px;
    m[4] += zy * px;
    m[5] += zz * px;
    m[6] += zx * py;
    m[7] += zy * py;
    m[8] += zz * py;
    m[9] += grad_hit * d.u;
    m[10] += grad_hit * d.v;
    m[11] += grad_hit;
    m[12] += g2 * (p[12] - px);
    m[13] += g2 * (p[13] - py);
    m[14] += grad_log / p[14];
  }
}

// Gradient of the row g of geometry, from the moments over the tile with corner (x0, y0).
PB_HD void geometry_gradient(int kind, const float* g, float x0, float y0, const float* m, float* out) {
  if (kind == kEllipsoid) {
    out[0] = g[2] * m[1] + g[3] * m[2];
    out[1] = g[3] * m[1] + g[4] * m[2];
    out[2] = 0.5f * m[3];
    out[3] = m[4];
    out[4] = 0.5f * m[5];
    out[5] = -m[0] / g[5];
    out[6] = m[6];
    return;
  }
  const Vec3 mw = load3(g + 6);
  const Vec3 mu = load3(g) - x0 * mw, mv = load3(g + 3) - y0 * mw;
  const Vec3 a0 = load3(m), ax = load3(m + 3), ay = load3(m + 6);
  const Vec3 gu = cross(mv, a0) + cross(ay, mw);
  const Vec3 gv = cross(a0, mu) + cross(mw, ax);
  store3(out, gu);
  store3(out + 3, gv);
  store3(out + 6, cross(ax, mv) + cross(mu, ay) + load3(m + 9) - x0 * gu - y0 * gv);
  out[9] = m[12];
  out[10] = m[13];
  out[11] = m[14];
  out[12] = 0.0f;
}

}  // namespace panbench
