// The hot loops of the CPU back end. Compiled once per instruction set: PB_TABLE names the table this object exports.
//
// A tile is 16 x 16 pixels, worked through as sixteen blocks of 4 x 4: one SIMD register holds a value per pixel of a
// block. For a block, the blending weights W [hits, 16 pixels] are formed first; every channel of every kind is then
// Out = W^T F, the gradient of the features is dF = W dOut, and only dW = F dOut^T of the attached channels goes back
// into geometry.
#include "../splat.h"
#include "kernels.h"
#include "simd.h"

namespace panbench {
namespace {

constexpr int kLanes = 16;
#if defined(__AVX512F__)
constexpr int kPixelGroup = 16;  // accumulators that fit the register file
constexpr int kHitGroup = 8;
#else
constexpr int kPixelGroup = 4;
constexpr int kHitGroup = 4;
#endif

// Candidates of a tile with their footprints as arrays, for testing sixteen at a time against a block.
struct Tile {
  int count, padded;
  const int32_t* ids;
  float* params;  // [count, kParams]
  float *x, *y, *a, *b, *c, *slope_x, *slope_y, *cx, *cy, *r2;
};

struct Block {
  int count;
  int32_t* candidate;  // [hits] index into the tile's candidates
  float* weight;       // [hits, 16] alpha * T
  float* alpha;        // [hits, 16] 0 where not blended
  float* before;       // [hits, 16] transmittance in front of the hit
  float* depth;        // [hits, 16] hit depth (discs)
};

PB_INLINE int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

PB_INLINE float* take(char*& scratch, int64_t floats) {
  float* out = reinterpret_cast<float*>(scratch);
  scratch += round_up(floats * 4, 64);
  return out;
}

int64_t blend_scratch(int64_t hits, int stride) {
  const int64_t padded = round_up(hits, kLanes);
  const int64_t floats = padded * (kParams + 10 + 1 + 4 * kLanes + kLanes + kLanes) + 2 * kLanes * (int64_t)stride +
                         kLanes * kLanes;
  return floats * 4 + 64 * 32;
}

PB_INLINE const float* geometry_row(const BlendArgs& a, int32_t id) {
  return a.geometry + (int64_t)id * geometry_width(a.kind);
}

Tile open_tile(const BlendArgs& a, int tile, char*& scratch) {
  const int32_t begin = a.tile_offsets[tile], end = a.tile_offsets[tile + 1];
  Tile t;
  t.count = end - begin;
  t.padded = (int)round_up(t.count, kLanes);
  t.ids = a.tile_ids + begin;
  t.params = take(scratch, (int64_t)t.padded * kParams);
  float** const arrays[] = {&t.x, &t.y, &t.a, &t.b, &t.c, &t.slope_x, &t.slope_y, &t.cx, &t.cy, &t.r2};
  for (float** array : arrays) *array = take(scratch, t.padded);
  const float x0 = (float)(tile % a.tiles_x * kTile), y0 = (float)(tile / a.tiles_x * kTile);
  for (int i = 0; i < t.count; ++i) {
    tile_parameters(a.kind, geometry_row(a, t.ids[i]), x0, y0, t.params + i * kParams);
    const Footprint& f = a.footprints[t.ids[i]];
    t.x[i] = f.x - x0;
    t.y[i] = f.y - y0;
    t.a[i] = f.a;
    t.b[i] = f.b;
    t.c[i] = f.c;
    t.slope_x[i] = -f.b / f.a;
    t.slope_y[i] = -f.b / f.c;
    t.cx[i] = f.cx - x0;
    t.cy[i] = f.cy - y0;
    t.r2[i] = f.unbounded ? 1e30f : f.r2;
  }
  for (int i = t.count; i < t.padded; ++i) {
    t.x[i] = t.y[i] = t.slope_x[i] = t.slope_y[i] = t.b[i] = t.cx[i] = t.cy[i] = 0.0f;
    t.a[i] = t.c[i] = 1e30f;
    t.x[i] = 1e6f;
    t.r2[i] = -1.0f;
  }
  return t;
}

Block open_block_buffers(const Tile& t, char*& scratch) {
  Block b;
  b.count = 0;
  b.candidate = reinterpret_cast<int32_t*>(take(scratch, t.padded));
  b.weight = take(scratch, (int64_t)t.padded * kLanes);
  b.alpha = take(scratch, (int64_t)t.padded * kLanes);
  b.before = take(scratch, (int64_t)t.padded * kLanes);
  b.depth = take(scratch, (int64_t)t.padded * kLanes);
  return b;
}

PB_INLINE void add_to(float* p, F16 v) { store(p, load(p) + v); }

PB_INLINE F16 clamp(F16 x, F16 lo, F16 hi) { return min(max(x, lo), hi); }

// Which of the sixteen candidates from i touch the pixel centres [bx, bx + 3] x [by, by + 3] (tile-local, at +1/2).
PB_INLINE uint32_t touches(const Tile& t, int i, float bx, float by) {
  const F16 x = load(t.x + i), y = load(t.y + i), a = load(t.a + i), b = load(t.b + i), c = load(t.c + i);
  const F16 lx = set1(bx) - x, hx = set1(bx + 3.0f) - x, ly = set1(by) - y, hy = set1(by + 3.0f) - y;
  const F16 zero_ = zero();
  const F16 ex = clamp(zero_, lx, hx), ey = clamp(zero_, ly, hy);
  // The minimum of the quadratic form over the rectangle lies on an edge that faces the centre (or is 0 inside).
  const F16 qy = clamp(load(t.slope_y + i) * ex, ly, hy), qx = clamp(load(t.slope_x + i) * ey, lx, hx);
  const F16 two = set1(2.0f);
  const F16 v0 = fma(a * ex, ex, fma(two * b * ex, qy, c * qy * qy));
  const F16 v1 = fma(a * qx, qx, fma(two * b * qx, ey, c * ey * ey));
  M16 m = less_equal(min(v0, v1), set1(1.0001f));
  const F16 cx = load(t.cx + i), cy = load(t.cy + i);
  const F16 dx = clamp(cx, set1(bx), set1(bx + 3.0f)) - cx, dy = clamp(cy, set1(by), set1(by + 3.0f)) - cy;
  m = m | less_equal(fma(dx, dx, dy * dy), load(t.r2 + i));
  return bits(m);
}

struct Hit {
  F16 alpha, depth;
  M16 mask;
};

struct DiscHit {
  F16 u, v, inv, rho3, rho2;
};

PB_INLINE DiscHit intersect(const float* p, F16 px, F16 py) {
  const F16 zx = fma(px, set1(p[3]), fma(py, set1(p[6]), set1(p[0])));
  const F16 zy = fma(px, set1(p[4]), fma(py, set1(p[7]), set1(p[1])));
  const F16 zz = fma(px, set1(p[5]), fma(py, set1(p[8]), set1(p[2])));
  DiscHit h;
  h.inv = reciprocal(zz);
  h.u = zx * h.inv;
  h.v = zy * h.inv;
  h.rho3 = fma(h.u, h.u, h.v * h.v);
  const F16 dx = set1(p[12]) - px, dy = set1(p[13]) - py;
  h.rho2 = set1(2.0f) * fma(dx, dx, dy * dy);
  return h;
}

template <int kind>
PB_INLINE Hit evaluate(const float* p, F16 px, F16 py, float near_plane) {
  Hit h;
  if constexpr (kind == kEllipsoid) {
    const F16 dx = set1(p[0]) - px, dy = set1(p[1]) - py;
    const F16 quad = fma(set1(p[2]) * dx, dx, set1(p[4]) * dy * dy);
    const F16 sigma = fma(set1(0.5f), quad, set1(p[3]) * dx * dy);
    h.alpha = min(set1(kAlphaMax), set1(p[5]) * exp(zero() - sigma));
    h.mask = less_equal(zero(), sigma) & less_equal(set1(kAlphaMin), h.alpha);
    h.depth = set1(p[6]);
  } else {
    const DiscHit d = intersect(p, px, py);
    const F16 rho = min(d.rho3, d.rho2);
    h.depth = fma(d.u, set1(p[9]), fma(d.v, set1(p[10]), set1(p[11])));
    h.alpha = min(set1(kAlphaMax), set1(p[14]) * exp(set1(-0.5f) * rho));
    // Comparisons are false for the NaN and infinities of a ray parallel to the disc.
    h.mask = less_equal(set1(near_plane), h.depth) & less_equal(h.depth, set1(1e10f)) &
             less_equal(set1(kAlphaMin), h.alpha);
  }
  return h;
}

// Forms the weights of one block. Returns the final transmittance; fills the block's buffers with its hits in order.
template <int kind>
PB_INLINE F16 weigh(const BlendArgs& args, const Tile& t, int block, uint32_t inside, F16 px, F16 py, Block& out) {
  const float bx = (float)(block % 4 * kBlock) + 0.5f, by = (float)(block / 4 * kBlock) + 0.5f;
  F16 transmittance = set1(1.0f);
  M16 active = mask_of(inside);
  out.count = 0;
  for (int i = 0; i < t.count && any(active); i += kLanes) {
    uint32_t near = touches(t, i, bx, by);
    while (near) {
      const int candidate = i + __builtin_ctz(near);
      near &= near - 1;
      const Hit hit = evaluate<kind>(t.params + candidate * kParams, px, py, args.near_plane);
      M16 m = hit.mask & active;
      if (!any(m)) continue;
      const F16 next = transmittance * (set1(1.0f) - hit.alpha);
      const M16 stop = m & less_equal(next, set1(kTransmittanceMin));
      active = and_not(active, stop);
      m = and_not(m, stop);
      if (!any(m)) {
        if (!any(active)) break;
        continue;
      }
      const int n = out.count++;
      out.candidate[n] = candidate;
      const F16 alpha = select(m, hit.alpha, zero());
      store(out.alpha + n * kLanes, alpha);
      store(out.before + n * kLanes, transmittance);
      store(out.weight + n * kLanes, alpha * transmittance);
      store(out.depth + n * kLanes, select(m, hit.depth, zero()));
      transmittance = select(m, next, transmittance);
    }
  }
  return transmittance;
}

// Sum of weighted depth, and the depth of the last hit in front of which T > 1/2.
PB_INLINE void depth_sums(const Block& b, F16& expected, F16& median) {
  expected = zero();
  median = zero();
  for (int n = 0; n < b.count; ++n) {
    const F16 d = load(b.depth + n * kLanes);
    expected = fma(load(b.weight + n * kLanes), d, expected);
    const M16 m = less(set1(0.5f), load(b.before + n * kLanes)) & less(zero(), load(b.alpha + n * kLanes));
    median = select(m, d, median);
  }
}

struct BlockPlace {
  int x, y;         // of its first pixel in the image
  uint32_t inside;  // pixels that lie in the image
  F16 px, py;       // tile-local pixel centres
};

PB_INLINE BlockPlace place(const BlendArgs& a, int tile, int block) {
  BlockPlace b;
  const int lx = block % 4 * kBlock, ly = block / 4 * kBlock;
  b.x = tile % a.tiles_x * kTile + lx;
  b.y = tile / a.tiles_x * kTile + ly;
  b.inside = 0;
  float xs[kLanes], ys[kLanes];
  for (int p = 0; p < kLanes; ++p) {
    xs[p] = (float)(lx + p % kBlock) + 0.5f;
    ys[p] = (float)(ly + p / kBlock) + 0.5f;
    if (b.x + p % kBlock < a.width && b.y + p / kBlock < a.height) b.inside |= 1u << p;
  }
  b.px = load(xs);
  b.py = load(ys);
  return b;
}

PB_INLINE int64_t pixel(const BlendArgs& a, const BlockPlace& b, int p) {
  return (int64_t)(b.y + p / kBlock) * a.width + b.x + p % kBlock;
}

PB_INLINE void scatter(const BlendArgs& a, const BlockPlace& b, F16 value, float* map) {
  float v[kLanes];
  store(v, value);
  for (int p = 0; p < kLanes; ++p)
    if (b.inside >> p & 1) map[pixel(a, b, p)] = v[p];
}

PB_INLINE F16 gather(const BlendArgs& a, const BlockPlace& b, const float* map) {
  float v[kLanes];
  for (int p = 0; p < kLanes; ++p) v[p] = b.inside >> p & 1 ? map[pixel(a, b, p)] : 0.0f;
  return load(v);
}

template <int kind>
PB_INLINE void forward_tile(const BlendArgs& a, const BlendOut& out, int tile, char* scratch) {
  const Tile t = open_tile(a, tile, scratch);
  Block b = open_block_buffers(t, scratch);
  float sums[kLanes * kLanes];
  for (int block = 0; block < 16; ++block) {
    const BlockPlace at = place(a, tile, block);
    if (!at.inside) continue;
    const F16 transmittance = weigh<kind>(a, t, block, at.inside, at.px, at.py, b);
    scatter(a, at, set1(1.0f) - transmittance, out.alpha);
    F16 expected, median;
    depth_sums(b, expected, median);
    scatter(a, at, expected, out.depth);
    scatter(a, at, median, out.median);
    for (int c = 0; c < a.channels; c += kLanes) {
      for (int p0 = 0; p0 < kLanes; p0 += kPixelGroup) {
        F16 acc[kPixelGroup];
#pragma GCC unroll 16
        for (int p = 0; p < kPixelGroup; ++p) acc[p] = zero();
        for (int n = 0; n < b.count; ++n) {
          const F16 f = load(a.features + (int64_t)t.ids[b.candidate[n]] * a.stride + c);
          const float* w = b.weight + n * kLanes + p0;
#pragma GCC unroll 16
          for (int p = 0; p < kPixelGroup; ++p) acc[p] = fma(set1(w[p]), f, acc[p]);
        }
#pragma GCC unroll 16
        for (int p = 0; p < kPixelGroup; ++p) store(sums + (p0 + p) * kLanes, acc[p]);
      }
      const int width = a.channels - c < kLanes ? a.channels - c : kLanes;
      for (int p = 0; p < kLanes; ++p) {
        if (!(at.inside >> p & 1)) continue;
        float* row = out.image + pixel(a, at, p) * a.channels + c;
        if (width == kLanes) {
          store(row, load(sums + p * kLanes));
        } else {
          for (int k = 0; k < width; ++k) row[k] = sums[p * kLanes + k];
        }
      }
    }
  }
}

template <int kind>
PB_INLINE void backward_tile(const BlendArgs& a, const BlendGradIn& in, const BlendGradOut& out, int tile,
                             char* scratch) {
  const Tile t = open_tile(a, tile, scratch);
  if (!t.count) return;
  Block b = open_block_buffers(t, scratch);
  float* moments = take(scratch, (int64_t)t.padded * kLanes);  // [count, 16] sums over the tile's pixels
  float* signal = take(scratch, (int64_t)t.padded * kLanes);   // [hits, 16] s = sum of f * dL/dout
  float* pixel_grad = take(scratch, (int64_t)kLanes * a.stride);
  float* channel_grad = take(scratch, (int64_t)kLanes * a.stride);
  std::memset(moments, 0, (int64_t)t.count * kLanes * 4);
  for (int block = 0; block < 16; ++block) {
    const BlockPlace at = place(a, tile, block);
    if (!at.inside) continue;
    const F16 transmittance = weigh<kind>(a, t, block, at.inside, at.px, at.py, b);
    if (!b.count) continue;
    for (int p = 0; p < kLanes; ++p) {
      float* row = pixel_grad + p * a.stride;
      if (at.inside >> p & 1) {
        std::memcpy(row, in.image + pixel(a, at, p) * a.channels, (size_t)a.channels * 4);
        for (int c = a.channels; c < a.stride; ++c) row[c] = 0.0f;
      } else {
        std::memset(row, 0, (size_t)a.stride * 4);
      }
    }
    // dF = W dOut
    for (int c = 0; c < a.channels; c += kLanes) {
      for (int p0 = 0; p0 < kLanes; p0 += kPixelGroup) {
        F16 g[kPixelGroup];
#pragma GCC unroll 16
        for (int p = 0; p < kPixelGroup; ++p) g[p] = load(pixel_grad + (p0 + p) * a.stride + c);
        for (int n = 0; n < b.count; ++n) {
          float* row = out.features + (int64_t)out.local[t.ids[b.candidate[n]]] * a.stride + c;
          const float* w = b.weight + n * kLanes + p0;
          F16 part[4] = {load(row), zero(), zero(), zero()};
#pragma GCC unroll 16
          for (int p = 0; p < kPixelGroup; ++p) part[p % 4] = fma(set1(w[p]), g[p], part[p % 4]);
          store(row, (part[0] + part[1]) + (part[2] + part[3]));
        }
      }
    }
    // s = f . dOut over the attached channels, plus depth
    for (int c = 0; c < a.attached; ++c)
      for (int p = 0; p < kLanes; ++p) channel_grad[c * kLanes + p] = pixel_grad[p * a.stride + c];
    const F16 grad_depth = gather(a, at, in.depth), grad_median = gather(a, at, in.median);
    const F16 grad_alpha = gather(a, at, in.alpha);
    for (int n = 0; n < b.count; n += kHitGroup) {
      // Several hits at once: one alone is a chain of dependent additions. The last group repeats its last hit.
      const float* f[kHitGroup];
      F16 s[kHitGroup];
#pragma GCC unroll 8
      for (int k = 0; k < kHitGroup; ++k) {
        const int hit = n + k < b.count ? n + k : b.count - 1;
        f[k] = a.features + (int64_t)t.ids[b.candidate[hit]] * a.stride;
        s[k] = load(b.depth + hit * kLanes) * grad_depth;
      }
      for (int c = 0; c < a.attached; ++c) {
        const F16 g = load(channel_grad + c * kLanes);
#pragma GCC unroll 8
        for (int k = 0; k < kHitGroup; ++k) s[k] = fma(set1(f[k][c]), g, s[k]);
      }
      for (int k = 0; k < kHitGroup && n + k < b.count; ++k) store(signal + (n + k) * kLanes, s[k]);
    }
    // Back to front: g_alpha = T s + (T_final g_A - sum behind w s) / (1 - alpha).
    F16 behind = zero();
    const F16 open = transmittance * grad_alpha;
    M16 median_open = mask_of(at.inside);
    for (int n = b.count - 1; n >= 0; --n) {
      const float* p = t.params + b.candidate[n] * kParams;
      const F16 alpha = load(b.alpha + n * kLanes), before = load(b.before + n * kLanes);
      const F16 weight = load(b.weight + n * kLanes), s = load(signal + n * kLanes);
      const M16 blended = less(zero(), alpha);
      F16 grad = fma(before, s, (open - behind) * reciprocal(set1(1.0f) - alpha));
      behind = fma(weight, s, behind);
      grad = select(blended & less(alpha, set1(kAlphaMax)), grad, zero());
      const M16 is_median = blended & less(set1(0.5f), before) & median_open;
      median_open = and_not(median_open, is_median);
      const F16 grad_hit = fma(weight, grad_depth, select(is_median, grad_median, zero()));
      float* m = moments + b.candidate[n] * kLanes;
      if constexpr (kind == kEllipsoid) {
        const F16 gs = zero() - alpha * grad;
        const F16 dx = set1(p[0]) - at.px, dy = set1(p[1]) - at.py;
        const F16 gx = gs * dx, gy = gs * dy;
        const F16 z = zero();
        const F16 terms[kLanes] = {gs, gx, gy, gx * dx, gx * dy, gy * dy, grad_hit, z, z, z, z, z, z, z, z, z};
        add_to(m, sums(terms));
      } else {
        const DiscHit d = intersect(p, at.px, at.py);
        const F16 g_rho = set1(-0.5f) * alpha * grad;
        const M16 flat = less_equal(d.rho2, d.rho3);  // the low-pass branch wins
        const F16 g3 = select(flat, zero(), g_rho);
        const F16 g2 = select(flat, set1(4.0f) * g_rho, zero());
        F16 gu = fma(set1(2.0f) * d.u, g3, grad_hit * set1(p[9]));
        F16 gv = fma(set1(2.0f) * d.v, g3, grad_hit * set1(p[10]));
        const F16 u = select(blended, d.u, zero()), v = select(blended, d.v, zero());
        const F16 inv = select(blended, d.inv, zero());
        gu = select(blended, gu, zero());
        gv = select(blended, gv, zero());
        const F16 zx = gu * inv, zy = gv * inv, zz = zero() - fma(zx, u, zy * v);
        const F16 terms[kLanes] = {zx,
                                   zy,
                                   zz,
                                   zx * at.px,
                                   zy * at.px,
                                   zz * at.px,
                                   zx * at.py,
                                   zy * at.py,
                                   zz * at.py,
                                   grad_hit * u,
                                   grad_hit * v,
                                   grad_hit,
                                   g2 * (set1(p[12]) - at.px),
                                   g2 * (set1(p[13]) - at.py),
                                   alpha * grad * set1(1.0f / p[14]),
                                   zero()};
        add_to(m, sums(terms));
      }
    }
  }
  const float x0 = (float)(tile % a.tiles_x * kTile), y0 = (float)(tile / a.tiles_x * kTile);
  for (int i = 0; i < t.count; ++i) {
    float gradient[kDiscGeometry];
    geometry_gradient(kind, geometry_row(a, t.ids[i]), x0, y0, moments + i * kLanes, gradient);
    float* row = out.geometry + (int64_t)out.local[t.ids[i]] * kLanes;
    for (int k = 0; k < geometry_width(kind); ++k) row[k] += gradient[k];
  }
}

void blend_forward(const BlendArgs& a, const BlendOut& out, int tile, char* scratch) {
  if (a.kind == kEllipsoid) {
    forward_tile<kEllipsoid>(a, out, tile, scratch);
  } else {
    forward_tile<kDisc>(a, out, tile, scratch);
  }
}

void blend_backward(const BlendArgs& a, const BlendGradIn& in, const BlendGradOut& out, int tile, char* scratch) {
  if (a.kind == kEllipsoid) {
    backward_tile<kEllipsoid>(a, in, out, tile, scratch);
  } else {
    backward_tile<kDisc>(a, in, out, tile, scratch);
  }
}

// log(1 + t) for t in [0, 1], by the series of 2 atanh(t / (2 + t)).
PB_INLINE F16 log1p_unit(F16 t) {
  const F16 z = t / (set1(2.0f) + t), z2 = z * z;
  F16 p = set1(2.0f / 13.0f);
  p = fma(p, z2, set1(2.0f / 11.0f));
  p = fma(p, z2, set1(2.0f / 9.0f));
  p = fma(p, z2, set1(2.0f / 7.0f));
  p = fma(p, z2, set1(2.0f / 5.0f));
  p = fma(p, z2, set1(2.0f / 3.0f));
  p = fma(p, z2, set1(2.0f));
  return p * z;
}

struct Similarity {
  F16 dot, y0, y1, y2, mahalanobis, dx, dy, dz;
};

PB_INLINE Similarity compare(const AttendArgs& a, int64_t row, int q) {
  Similarity s;
  s.dot = zero();
  const float* f = a.features + row * a.dim;
  for (int k = 0; k < a.dim; ++k) s.dot = fma(set1(f[k]), load(a.query_features + (int64_t)k * a.query_stride + q), s.dot);
  const float* x = a.means + row * 3;
  const int n = a.query_stride;
  s.dx = set1(x[0]) - load(a.query_means + q);
  s.dy = set1(x[1]) - load(a.query_means + n + q);
  s.dz = set1(x[2]) - load(a.query_means + 2 * n + q);
  const float* r = a.query_roots + q;
  s.y0 = fma(load(r), s.dx, fma(load(r + n), s.dy, load(r + 2 * n) * s.dz));
  s.y1 = fma(load(r + 3 * n), s.dx, fma(load(r + 4 * n), s.dy, load(r + 5 * n) * s.dz));
  s.y2 = fma(load(r + 6 * n), s.dx, fma(load(r + 7 * n), s.dy, load(r + 8 * n) * s.dz));
  s.mahalanobis = fma(s.y0, s.y0, fma(s.y1, s.y1, s.y2 * s.y2));
  return s;
}

void attend_forward(const AttendArgs& a, float* out, int64_t begin, int64_t end) {
  float tail[kLanes];
  for (int64_t row = begin; row < end; ++row) {
    for (int q = 0; q < a.queries; q += kLanes) {
      const Similarity s = compare(a, row, q);
      F16 value;
      if (a.logarithm) {
        const F16 magnitude = max(s.dot, zero() - s.dot);
        value = min(s.dot, zero()) - log1p_unit(exp(zero() - magnitude)) - set1(0.5f) * s.mahalanobis;
      } else {
        value = exp(set1(-0.5f) * s.mahalanobis) / (set1(1.0f) + exp(zero() - s.dot));
      }
      float* to = out + row * a.queries + q;
      if (a.queries - q >= kLanes) {
        store(to, value);
      } else {
        store(tail, value);
        for (int k = 0; k < a.queries - q; ++k) to[k] = tail[k];
      }
    }
  }
}

void attend_backward(const AttendArgs& a, const float* grad_attention, float* grad_features, float* grad_means,
                     float* grad_query_rows, float* grad_query_means, float* grad_query_roots, int64_t begin,
                     int64_t end) {
  const int n = a.query_stride;
  float tail[kLanes];
  for (int64_t row = begin; row < end; ++row) {
    const float* f = a.features + row * a.dim;
    float* gf = grad_features + row * a.dim;
    for (int k = 0; k < a.dim; ++k) gf[k] = 0.0f;
    float g_dots[kLanes];
    F16 gx = zero(), gy = zero(), gz = zero();
    for (int q = 0; q < a.queries; q += kLanes) {
      const float* from = grad_attention + row * a.queries + q;
      F16 g;
      if (a.queries - q >= kLanes) {
        g = load(from);
      } else {
        for (int k = 0; k < kLanes; ++k) tail[k] = k < a.queries - q ? from[k] : 0.0f;
        g = load(tail);
      }
      const Similarity s = compare(a, row, q);
      const F16 sigmoid = set1(1.0f) / (set1(1.0f) + exp(zero() - s.dot));
      if (!a.logarithm) g = g * sigmoid * exp(set1(-0.5f) * s.mahalanobis);
      const F16 g_dot = g * (set1(1.0f) - sigmoid);
      store(g_dots, g_dot);
      const int lanes = a.queries - q < kLanes ? a.queries - q : kLanes;
      for (int lane = 0; lane < lanes; ++lane) {
        const float scale = g_dots[lane];
        const float* query = a.query_rows + (int64_t)(q + lane) * a.dim_stride;
        float* grad_query = grad_query_rows + (int64_t)(q + lane) * a.dim_stride;
        for (int k = 0; k < a.dim; ++k) {
          gf[k] += scale * query[k];
          grad_query[k] += scale * f[k];
        }
      }
      // d(mahalanobis)/dy = 2 y, and A or log A carries -1/2 of it.
      const F16 g0 = zero() - g * s.y0, g1 = zero() - g * s.y1, g2 = zero() - g * s.y2;
      const float* r = a.query_roots + q;
      const F16 hx = fma(load(r), g0, fma(load(r + 3 * n), g1, load(r + 6 * n) * g2));
      const F16 hy = fma(load(r + n), g0, fma(load(r + 4 * n), g1, load(r + 7 * n) * g2));
      const F16 hz = fma(load(r + 2 * n), g0, fma(load(r + 5 * n), g1, load(r + 8 * n) * g2));
      gx = gx + hx;
      gy = gy + hy;
      gz = gz + hz;
      add_to(grad_query_means + q, zero() - hx);
      add_to(grad_query_means + n + q, zero() - hy);
      add_to(grad_query_means + 2 * n + q, zero() - hz);
      float* gr = grad_query_roots + q;
      const F16 ys[3] = {g0, g1, g2}, ds[3] = {s.dx, s.dy, s.dz};
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) add_to(gr + (3 * i + j) * n, ys[i] * ds[j]);
    }
    grad_means[row * 3] = sum(gx);
    grad_means[row * 3 + 1] = sum(gy);
    grad_means[row * 3 + 2] = sum(gz);
  }
}

void convolve(const float* in, float* out, int64_t count, const float* taps, int radius, int64_t step) {
  // in has radius * step readable values on both sides; the window is symmetric.
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    F16 s = set1(taps[radius]) * load(in + i);
    for (int k = 1; k <= radius; ++k)
      s = fma(set1(taps[radius + k]), load(in + i - k * step) + load(in + i + k * step), s);
    store(out + i, s);
  }
  for (; i < count; ++i) {
    float s = taps[radius] * in[i];
    for (int k = 1; k <= radius; ++k) s += taps[radius + k] * (in[i - k * step] + in[i + k * step]);
    out[i] = s;
  }
}

}  // namespace

extern "C" const KernelTable PB_TABLE = {PB_NAME,        blend_scratch,   blend_forward, blend_backward,
                                         attend_forward, attend_backward, convolve};

}  // namespace panbench
