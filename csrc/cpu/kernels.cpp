// The hot loops of the CPU back end. Compiled once per instruction set: PB_TABLE names the table this object exports.
//
// A tile is 16 x 16 pixels, worked through as sixteen blocks of 4 x 4: one SIMD register holds a value per pixel of a
// block. For a block, the blending weights W [hits, 16 pixels] are formed first; every channel of every kind is then
// Out = W^T F, the gradient of the features is dF = W dOut, and only dW = F dOut^T of the attached channels goes back
// into geometry.
#include "../distortion.h"
#include "../splat.h"
#include "kernels.h"
#include "project_lanes.h"
#include "label_sums.h"
#include "simd.h"

namespace panbench {
namespace {

constexpr int kLanes = 16;
constexpr int kTail = 4;     // channels that are blended together where fewer than sixteen are left
constexpr int kFew = 8;      // channels up to which their gradients are summed up for sixteen hits at once
constexpr int kCulled = 64;   // candidates that are tested against a block before any of them is evaluated
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
constexpr float kNowhere = 1e15f;  // footprint of what pads the candidates: no block touches it
#if defined(__AVX512F__)
constexpr int kPixelGroup = 16;  // accumulators that fit the register file
constexpr int kHitGroup = 8;
#else
constexpr int kPixelGroup = 4;
constexpr int kHitGroup = 4;
#endif

// Tile-local parameters of the candidates first to first + 15, to p [16, kParams]; those from `count` on are left
// undefined. As in splat.h, but that the conic is scaled so that log2(alpha / opacity) = a dx^2 + b dx dy + c dy^2.
void tile_parameters(const BlendArgs& a, const int32_t* ids, int first, int count, float x0, float y0, float* p) {
  const int width = geometry_width(a.kind);
  F16 v[kLanes];
  for (int k = 0; k < kLanes; ++k)
    v[k] = load_part(a.geometry + (int64_t)ids[first + k < count ? first + k : first] * width, width);
  transpose(v);
  const F16 x = set1(x0), y = set1(y0);
  if (a.kind == kEllipsoid) {
    v[0] = v[0] - x;
    v[1] = v[1] - y;
    v[2] = set1(-0.5f * kLog2E) * v[2];
    v[3] = set1(-kLog2E) * v[3];
    v[4] = set1(-0.5f * kLog2E) * v[4];
  } else {
    const F16 w[3] = {v[6], v[7], v[8]};
    F16 mu[3], mv[3];
    for (int k = 0; k < 3; ++k) {
      mu[k] = v[k] - x * w[k];
      mv[k] = v[3 + k] - y * w[k];
    }
    for (int k = 0; k < 3; ++k) {
      const int i = (k + 1) % 3, j = (k + 2) % 3;
      v[k] = mu[i] * mv[j] - mu[j] * mv[i];
      v[3 + k] = mv[i] * w[j] - mv[j] * w[i];
      v[6 + k] = w[i] * mu[j] - w[j] * mu[i];
    }
    v[12] = v[9] - x;
    v[13] = v[10] - y;
    v[14] = v[11];
    for (int k = 0; k < 3; ++k) v[9 + k] = w[k];
  }
  transpose(v);
  for (int k = 0; k < kLanes; ++k) store(p + k * kParams, v[k]);
}

PB_INLINE int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

// Hands out parts of a piece of memory, or, without memory, finds how much they take: sizes are stated in one place.
struct Arena {
  uintptr_t next;

  float* floats(int64_t count) {
    const uintptr_t at = next;
    next += (uintptr_t)round_up(count * 4, 64);
    return reinterpret_cast<float*>(at);
  }
  int32_t* integers(int64_t count) { return reinterpret_cast<int32_t*>(floats(count)); }
};

// Candidates of a tile with their footprints as arrays, for testing sixteen at a time against a block. Candidates that
// some pixel meets get a slot, in the order in which blocks meet them; only those are read and written beyond.
struct Tile {
  int count, padded;
  const int32_t* ids;
  float* params;  // [count, kParams]
  float *x, *y, *a, *b2, *c, *slope_x, *slope_y, *cx, *cy, *r2;  // b2: 2 b and a hair
  int slots;
  int32_t* slot;   // [count] of a candidate, -1 if it has none
  int32_t* owner;  // [slots] candidate of a slot
  float* rows;     // [slots, stride] features, then labels; what pads them is left undefined
};

struct Block {
  int count;
  int32_t* candidate;  // [hits] index into the tile's candidates
  int32_t* slot;       // [hits]
  float* weight;       // [hits, 16] alpha * T
  float* alpha;        // [hits, 16] 0 where not blended; this and what follows for the backward pass only
  float* depth;        // [hits, 16] hit depth of discs, 0 where not blended
  float* offset;       // [hits, 16] q of the distortion, 0 where not blended; only if its gradient is asked for
};

// What a pixel sums up beside its channels.
struct Sums {
  F16 transmittance;  // that is left behind the last hit
  F16 depth;          // of w d
  F16 median;         // depth of the last hit in front of which T > 1/2; 0 if there is none
  F16 median_hit;     // its place among the hits; -1 if there is none
  Distortion<F16> distortion;  // if it is asked for
};

// What a tile needs beside its candidates, for the backward pass only.
struct Gradients {
  float* moments;     // [slots, 16] sums over the tile's pixels
  float* signal;      // [hits, 16] of a hit's weight, then of log(alpha)
  float* hits;        // [hits, 16] of an ellipsoid's depth
  int32_t* rows;      // [slots] of the group's rows
  float* by_pixel;    // [16, stride] gradient of a block's pixels
  float* by_channel;  // [stride, 16] the same
};

void lay_out(Tile& t, int count, int stride, Arena& arena) {
  t.count = count;
  t.padded = (int)round_up(count, kLanes);
  t.params = arena.floats((int64_t)t.padded * kParams);
  float** const arrays[] = {&t.x, &t.y, &t.a, &t.b2, &t.c, &t.slope_x, &t.slope_y, &t.cx, &t.cy, &t.r2};
  for (float** array : arrays) *array = arena.floats(t.padded);
  t.slots = 0;
  t.slot = arena.integers(t.padded);
  t.owner = arena.integers(t.padded);
  t.rows = arena.floats((int64_t)t.padded * stride + kLanes);  // a row is written in sixteens
}

void lay_out(Block& b, const Tile& t, bool backward, bool distort, Arena& arena) {
  // One more than there can be hits: what turns out to be no hit is overwritten by the next one.
  const int64_t hits = t.padded + 1;
  b.count = 0;
  b.candidate = arena.integers(hits);
  b.slot = arena.integers(hits);
  b.weight = arena.floats(hits * kLanes);
  float** const arrays[] = {&b.alpha, &b.depth};
  for (float** array : arrays) *array = backward ? arena.floats(hits * kLanes) : nullptr;
  b.offset = backward && distort ? arena.floats(hits * kLanes) : nullptr;
}

void lay_out(Gradients& g, const Tile& t, int stride, Arena& arena) {
  g.moments = arena.floats((int64_t)t.padded * kLanes);
  g.signal = arena.floats((int64_t)t.padded * kLanes);
  g.hits = arena.floats((int64_t)t.padded * kLanes);
  g.rows = arena.integers(t.padded);
  g.by_pixel = arena.floats((int64_t)kLanes * stride);
  g.by_channel = arena.floats((int64_t)kLanes * stride);
}

int64_t blend_scratch(int64_t hits, int stride, bool distort) {
  Arena arena{0};
  Tile t;
  Block b;
  Gradients g;
  lay_out(t, (int)hits, stride, arena);
  lay_out(b, t, true, distort, arena);
  lay_out(g, t, stride, arena);
  return (int64_t)arena.next;
}

// Asks for a row of floats early: rows lie anywhere in memory.
PB_INLINE void prefetch(const float* row, int64_t count) {
  if (!row || !count) return;
  for (int64_t c = 0; c < count; c += kLanes) __builtin_prefetch(row + c);
  __builtin_prefetch(row + count - 1);
}

PB_INLINE const float* geometry_row(const BlendArgs& a, int32_t id) {
  return a.geometry + (int64_t)id * geometry_width(a.kind);
}

Tile open_tile(const BlendArgs& a, int tile, Arena& arena) {
  const int32_t begin = a.tile_offsets[tile];
  Tile t;
  lay_out(t, a.tile_offsets[tile + 1] - begin, a.stride, arena);
  t.ids = a.tile_ids + begin;
  const float x0 = (float)(tile % a.tiles_x * kTile), y0 = (float)(tile / a.tiles_x * kTile);
  const F16 left = set1(x0), top = set1(y0);
  for (int i = 0; i < t.padded; i += kLanes) {
    // What the next sixteen need lies anywhere in memory.
    for (int k = i + kLanes; k < i + 2 * kLanes && k < t.count; ++k) {
      __builtin_prefetch(geometry_row(a, t.ids[k]));
      __builtin_prefetch(a.footprints + t.ids[k]);
      prefetch(a.features + (int64_t)t.ids[k] * a.channels, a.channels);
      prefetch(a.label_rows + (int64_t)t.ids[k] * a.labels, a.labels);
    }
    tile_parameters(a, t.ids, i, t.count, x0, y0, t.params + i * kParams);
    F16 v[kLanes];
    for (int k = 0; k < kLanes; ++k)
      v[k] = i + k < t.count ? load(a.footprints[t.ids[i + k]].values) : set1(kNowhere);
    transpose(v);
    store(t.x + i, v[0] - left);
    store(t.y + i, v[1] - top);
    store(t.a + i, v[2]);
    store(t.b2 + i, set1(2.0f + 4e-6f) * v[3]);  // where a needle's terms cancel, rounding must not drop a hit
    store(t.c + i, v[4]);
    store(t.slope_x + i, v[5]);
    store(t.slope_y + i, v[6]);
    if (a.kind == kEllipsoid) continue;
    store(t.cx + i, v[7] - left);
    store(t.cy + i, v[8] - top);
    store(t.r2 + i, v[9]);
  }
  for (int i = 0; i < t.count; ++i) t.slot[i] = -1;
  return t;
}

// May write up to fifteen floats too many.
PB_INLINE void copy_row(const float* from, int count, float* to) {
  for (int c = 0; c < count; c += kLanes) store(to + c, load_up_to(from + c, count - c));
}

// Gives the block's hits slots; new ones get their features copied, so that the channel products read memory in order.
PB_INLINE void open_slots(const BlendArgs& a, Tile& t, Block& b) {
  for (int n = 0; n < b.count; ++n) {
    const int candidate = b.candidate[n];
    int slot = t.slot[candidate];
    if (slot < 0) {
      slot = t.slot[candidate] = t.slots++;
      t.owner[slot] = candidate;
      float* to = t.rows + (int64_t)slot * a.stride;
      copy_row(a.features + (int64_t)t.ids[candidate] * a.channels, a.channels, to);
      copy_row(a.label_rows + (int64_t)t.ids[candidate] * a.labels, a.labels, to + a.channels);
    }
    b.slot[n] = slot;
  }
}

PB_INLINE void add_to(float* p, F16 v) { store(p, load(p) + v); }

PB_INLINE F16 clamp(F16 x, F16 lo, F16 hi) { return min(max(x, lo), hi); }

// Which of the sixteen candidates from i touch the pixel centres [bx, bx + 3] x [by, by + 3] (tile-local, at +1/2).
template <int kind>
PB_INLINE uint32_t touches(const Tile& t, int i, float bx, float by) {
  const F16 x = load(t.x + i), y = load(t.y + i), b2 = load(t.b2 + i);
  const F16 lx = set1(bx) - x, hx = set1(bx + 3.0f) - x, ly = set1(by) - y, hy = set1(by + 3.0f) - y;
  const F16 ex = clamp(zero(), lx, hx), ey = clamp(zero(), ly, hy);
  // The minimum of the quadratic form over the rectangle lies on an edge that faces the centre (or is 0 inside).
  const F16 qy = clamp(load(t.slope_y + i) * ex, ly, hy), qx = clamp(load(t.slope_x + i) * ey, lx, hx);
  const F16 aex = load(t.a + i), cey = load(t.c + i);
  const F16 v0 = fma(fma(aex, ex, b2 * qy), ex, cey * qy * qy);
  const F16 v1 = fma(fma(cey, ey, b2 * qx), ey, aex * qx * qx);
  M16 m = less_equal(min(v0, v1), set1(1.0001f));
  if constexpr (kind == kDisc) {
    const F16 cx = load(t.cx + i), cy = load(t.cy + i);
    const F16 dx = clamp(cx, set1(bx), set1(bx + 3.0f)) - cx, dy = clamp(cy, set1(by), set1(by + 3.0f)) - cy;
    m = m | less_equal(fma(dx, dx, dy * dy), load(t.r2 + i));
  }
  return bits(m);
}

// alpha is 0 where the Gaussian is skipped; depth is finite.
struct Hit {
  F16 alpha, depth;
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
    const F16 power = fma(dx, fma(set1(p[2]), dx, set1(p[3]) * dy), set1(p[4]) * dy * dy);
    const F16 alpha = min(set1(kAlphaMax), set1(p[5]) * exp2(power));
    h.alpha = select(less_equal(power, zero()) & less_equal(set1(kAlphaMin), alpha), alpha, zero());
    h.depth = set1(p[6]);
  } else {
    const DiscHit d = intersect(p, px, py);
    const F16 rho = min(d.rho3, d.rho2);
    const F16 depth = fma(d.u, set1(p[9]), fma(d.v, set1(p[10]), set1(p[11])));
    const F16 alpha = min(set1(kAlphaMax), set1(p[14]) * exp2(set1(-0.5f * kLog2E) * rho));
    // Comparisons are false for the NaN and infinities of a ray parallel to the disc.
    const M16 m = less_equal(set1(near_plane), depth) & less_equal(depth, set1(1e10f)) &
                  less_equal(set1(kAlphaMin), alpha);
    h.alpha = select(m, alpha, zero());
    h.depth = select(m, depth, zero());
  }
  return h;
}

// Forms the weights of one block: fills the block's buffers with its hits in order.
template <int kind, bool backward, bool distort>
PB_INLINE Sums weigh(const BlendArgs& args, const Tile& t, int block, uint32_t inside, F16 px, F16 py, Block& out) {
  const float bx = (float)(block % 4 * kBlock) + 0.5f, by = (float)(block / 4 * kBlock) + 0.5f;
  Sums sums = {set1(1.0f), zero(), zero(), set1(-1.0f), {set1(1.0f), zero(), zero()}};
  // Transmittance where the pixel still takes light, and 0 where it has stopped or lies outside of the image: no mask
  // has to be carried from hit to hit.
  F16 open = select(mask_of(inside), set1(1.0f), zero());
  int32_t near[kCulled + kLanes];
  int count = 0;
  for (int first = 0; first < t.count && any(less(zero(), open)); first += kCulled) {
    int found = 0;
    for (int i = first; i < first + kCulled && i < t.count; i += kLanes)
      found += append_lanes(touches<kind>(t, i, bx, by), i, near + found);
    for (int k = 0; k < found; ++k) {
      const int candidate = near[k];
      const Hit hit = evaluate<kind>(t.params + candidate * kParams, px, py, args.near_plane);
      const F16 next = open * (set1(1.0f) - hit.alpha);
      const M16 goes_on = less(set1(kTransmittanceMin), next);
      const F16 weight = select(goes_on, hit.alpha * open, zero());
      const M16 blended = less(zero(), weight);
      out.candidate[count] = candidate;
      store(out.weight + count * kLanes, weight);
      if constexpr (backward) {
        store(out.alpha + count * kLanes, select(goes_on, hit.alpha, zero()));
        if constexpr (kind == kDisc) store(out.depth + count * kLanes, hit.depth);
        sums.median_hit = select(blended & less(set1(0.5f), open), set1((float)count), sums.median_hit);
      } else {
        sums.depth = fma(weight, hit.depth, sums.depth);
        sums.median = select(blended & less(set1(0.5f), open), hit.depth, sums.median);
      }
      if constexpr (distort) {
        // A pixel's first hit finds all of the light.
        Distortion<F16>& d = sums.distortion;
        d.first = select(blended & less_equal(set1(1.0f), open), hit.depth, d.first);
        const F16 offset = select(blended, d.offset(hit.depth), zero());
        d.add(weight, offset);
        if constexpr (backward) store(out.offset + count * kLanes, offset);
      }
      sums.transmittance = select(goes_on, next, sums.transmittance);
      open = select(goes_on, next, zero());
      count += any(blended);
    }
  }
  out.count = count;
  return sums;
}

struct BlockPlace {
  int x, y;         // of its first pixel in the image
  uint32_t inside;  // pixels that lie in the image
  float cx, cy;     // tile-local centre of the block
  F16 px, py;       // tile-local pixel centres
};

constexpr uint32_t kWhole = 0xffff;

PB_INLINE BlockPlace place(const BlendArgs& a, int tile, int block) {
  static const float across[kLanes] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
  static const float down[kLanes] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  BlockPlace b;
  const int lx = block % 4 * kBlock, ly = block / 4 * kBlock;
  b.x = tile % a.tiles_x * kTile + lx;
  b.y = tile / a.tiles_x * kTile + ly;
  b.inside = 0;
  for (int y = 0; y < kBlock && b.y + y < a.height; ++y)
    for (int x = 0; x < kBlock && b.x + x < a.width; ++x) b.inside |= 1u << (y * kBlock + x);
  b.cx = (float)(lx + kBlock / 2);
  b.cy = (float)(ly + kBlock / 2);
  b.px = load(across) + set1((float)lx + 0.5f);
  b.py = load(down) + set1((float)ly + 0.5f);
  return b;
}

PB_INLINE int64_t pixel(const BlendArgs& a, const BlockPlace& b, int p) {
  return (int64_t)(b.y + p / kBlock) * a.width + b.x + p % kBlock;
}

PB_INLINE void scatter(const BlendArgs& a, const BlockPlace& b, F16 value, float* map) {
  float v[kLanes];
  store(v, value);
  if (b.inside == kWhole) {
    for (int y = 0; y < kBlock; ++y) std::memcpy(map + pixel(a, b, y * kBlock), v + y * kBlock, kBlock * sizeof(float));
    return;
  }
  for (int p = 0; p < kLanes; ++p)
    if (b.inside >> p & 1) map[pixel(a, b, p)] = v[p];
}

PB_INLINE F16 gather(const BlendArgs& a, const BlockPlace& b, const float* map) {
  if (!map) return zero();
  float v[kLanes];
  if (b.inside == kWhole) {
    for (int y = 0; y < kBlock; ++y) std::memcpy(v + y * kBlock, map + pixel(a, b, y * kBlock), kBlock * sizeof(float));
  } else {
    for (int p = 0; p < kLanes; ++p) v[p] = b.inside >> p & 1 ? map[pixel(a, b, p)] : 0.0f;
  }
  return load(v);
}

// Out = W^T F of one block, for `count` channels that begin at `first` in the packed rows. Sixteen channels at a time
// with channels in the lanes; what is left over with pixels in the lanes, so that three channels do not cost as much as
// sixteen.
PB_INLINE void blend_channels(const BlendArgs& a, const Tile& t, const Block& b, const BlockPlace& at, int first,
                              int count, float* image) {
  const float* const rows = t.rows + first;
  const int whole = count / kLanes * kLanes;
  for (int c = 0; c < whole; c += kLanes) {
    for (int p0 = 0; p0 < kLanes; p0 += kPixelGroup) {
      F16 acc[kPixelGroup];
#pragma GCC unroll 16
      for (int p = 0; p < kPixelGroup; ++p) acc[p] = zero();
      for (int n = 0; n < b.count; ++n) {
        const F16 f = load(rows + (int64_t)b.slot[n] * a.stride + c);
        const float* w = b.weight + n * kLanes + p0;
#pragma GCC unroll 16
        for (int p = 0; p < kPixelGroup; ++p) acc[p] = fma(set1(w[p]), f, acc[p]);
      }
#pragma GCC unroll 16
      for (int p = 0; p < kPixelGroup; ++p)
        if (at.inside >> (p0 + p) & 1) store(image + pixel(a, at, p0 + p) * count + c, acc[p]);
    }
  }
  for (int c = whole; c < count; c += kTail) {
    F16 acc[kTail];
#pragma GCC unroll 4
    for (int k = 0; k < kTail; ++k) acc[k] = zero();
    for (int n = 0; n < b.count; ++n) {
      const float* f = rows + (int64_t)b.slot[n] * a.stride + c;
      const F16 w = load(b.weight + n * kLanes);
#pragma GCC unroll 4
      for (int k = 0; k < kTail; ++k) acc[k] = fma(set1(f[k]), w, acc[k]);
    }
    float sums[kTail * kLanes];
#pragma GCC unroll 4
    for (int k = 0; k < kTail; ++k) store(sums + k * kLanes, acc[k]);
    const int width = count - c < kTail ? count - c : kTail;
    for (int p = 0; p < kLanes; ++p) {
      if (!(at.inside >> p & 1)) continue;
      float* row = image + pixel(a, at, p) * count + c;
      for (int k = 0; k < width; ++k) row[k] = sums[k * kLanes + p];
    }
  }
}

PB_INLINE void add_block(const BlendArgs& a, const BlockPlace& at, const float* label_image, LabelSums& sums) {
  LabelPixels pixels;
  for (uint32_t left = at.inside; left; left &= left - 1)
    take_pixel(a.targets, label_image, pixel(a, at, __builtin_ctz(left)), pixels);
  add_pixels(a.targets, pixels, sums);
}

template <int kind, bool distort>
PB_INLINE void forward_tile(const BlendArgs& a, const BlendOut& out, int tile, char* scratch) {
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  Tile t = open_tile(a, tile, arena);
  Block b;
  lay_out(b, t, false, distort, arena);
  for (int block = 0; block < 16; ++block) {
    const BlockPlace at = place(a, tile, block);
    if (!at.inside) continue;
    const Sums sums = weigh<kind, false, distort>(a, t, block, at.inside, at.px, at.py, b);
    scatter(a, at, set1(1.0f) - sums.transmittance, out.alpha);
    scatter(a, at, sums.depth, out.depth);
    scatter(a, at, sums.median, out.median);
    if constexpr (distort)
      scatter(a, at, sums.distortion.value(set1(1.0f) - sums.transmittance), out.distortion);
    open_slots(a, t, b);
    blend_channels(a, t, b, at, 0, a.channels, out.image);
    blend_channels(a, t, b, at, a.channels, a.labels, out.label_image);
    if (a.targets.semantic) add_block(a, at, out.label_image, out.sums[tile]);
  }
}

PB_INLINE bool few_channels(const BlendArgs& a) { return a.channels + a.labels <= kFew; }

// The gradient of the channels [stride] of a block's pixel p: those of the images, and of the sums over the labels. Zero
// outside of the image.
PB_INLINE void load_gradient(const BlendArgs& a, const BlockPlace& at, const BlendGradIn& in, int p, float* row) {
  for (int c = 0; c < a.stride; c += kLanes) store(row + c, zero());
  if (!(at.inside >> p & 1)) return;
  const int64_t from = pixel(a, at, p);
  const auto copy = [row](const float* values, int count, int first) {
    for (int c = 0; c < count; c += kLanes) store_up_to(row + first + c, load_up_to(values + c, count - c), count - c);
  };
  if (in.image) copy(in.image + from * a.channels, a.channels, 0);
  if (in.label_gradient) copy(in.label_gradient + from * a.labels, a.labels, a.channels);
  if (in.sums.given) add_gradient(a.targets, in.sums, from, in.label_image + from * a.labels, row + a.channels);
}

// The gradient of a block's pixels, twice: channels in the lanes [16, stride], and pixels in the lanes [stride, 16]. Few
// channels are wanted by channel only.
PB_INLINE void load_gradients(const BlendArgs& a, const BlockPlace& at, const BlendGradIn& in, float* by_pixel,
                              float* by_channel) {
  if (few_channels(a)) {
    for (int p = 0; p < kLanes; ++p) {
      float row[kLanes];
      load_gradient(a, at, in, p, row);
      for (int c = 0; c < a.channels + a.labels; ++c) by_channel[c * kLanes + p] = row[c];
    }
    return;
  }
  for (int p = 0; p < kLanes; ++p) load_gradient(a, at, in, p, by_pixel + p * a.stride);
  for (int c = 0; c < a.attached; c += kLanes) {
    F16 v[kLanes];
#pragma GCC unroll 16
    for (int p = 0; p < kLanes; ++p) v[p] = load(by_pixel + p * a.stride + c);
    transpose(v);
#pragma GCC unroll 16
    for (int k = 0; k < kLanes; ++k) store(by_channel + (c + k) * kLanes, v[k]);
  }
}

// Rows of the gradients [slots] that belong to the tile's slots from `first` on; Gaussians new to the group get one.
PB_INLINE void open_gradients(const BlendArgs& a, const Tile& t, GradRows& out, int first, int32_t* rows, float* moments) {
  for (int slot = first; slot < t.slots; ++slot) {
    const int32_t id = t.ids[t.owner[slot]];
    int32_t row = out.local[id];
    if (row < 0) {
      row = out.local[id] = out.count++;
      out.ids[row] = id;
      for (int c = 0; c < a.stride; c += kLanes) store(out.features + (int64_t)row * a.stride + c, zero());
      store(out.geometry + (int64_t)row * kLanes, zero());
    }
    rows[slot] = row;
    store(moments + (int64_t)slot * kLanes, zero());
  }
}

// dF = W dOut of one block, added to the group's rows.
PB_INLINE void feature_gradients(const BlendArgs& a, const Block& b, const float* by_pixel, const int32_t* rows,
                                 float* features) {
  for (int c = 0; c < a.stride; c += kLanes) {
    for (int p0 = 0; p0 < kLanes; p0 += kPixelGroup) {
      F16 g[kPixelGroup];
#pragma GCC unroll 16
      for (int p = 0; p < kPixelGroup; ++p) g[p] = load(by_pixel + (p0 + p) * a.stride + c);
      for (int n = 0; n < b.count; ++n) {
        float* row = features + (int64_t)rows[b.slot[n]] * a.stride + c;
        const float* w = b.weight + n * kLanes + p0;
        F16 part[4] = {load(row), zero(), zero(), zero()};
#pragma GCC unroll 16
        for (int p = 0; p < kPixelGroup; ++p) part[p % 4] = fma(set1(w[p]), g[p], part[p % 4]);
        store(row, (part[0] + part[1]) + (part[2] + part[3]));
      }
    }
  }
}

// Values [hits, 16] of the sixteen hits from `first` on, with a hit in each lane: one vector for each pixel. What lies
// beyond the last hit is undefined.
PB_INLINE void turn(const float* values, int first, F16 v[kLanes]) {
#pragma GCC unroll 16
  for (int k = 0; k < kLanes; ++k) v[k] = load(values + (first + k) * kLanes);
  transpose(v);
}

// As feature_gradients, where there are few channels.
PB_INLINE void few_feature_gradients(const BlendArgs& a, const Block& b, const float* by_channel, const int32_t* rows,
                                     float* features) {
  const int channels = a.channels + a.labels;
  for (int first = 0; first < b.count; first += kLanes) {
    F16 w[kLanes], v[kLanes];
    turn(b.weight, first, w);
    for (int c = channels; c < kLanes; ++c) v[c] = zero();
    for (int c = 0; c < channels; ++c) {
      const float* g = by_channel + c * kLanes;
      F16 part[2] = {zero(), zero()};
#pragma GCC unroll 16
      for (int p = 0; p < kLanes; ++p) part[p % 2] = fma(set1(g[p]), w[p], part[p % 2]);
      v[c] = part[0] + part[1];
    }
    transpose(v);
    for (int k = 0; k < kLanes && first + k < b.count; ++k)
      add_to(features + (int64_t)rows[b.slot[first + k]] * a.stride, v[k]);
  }
}

// dW = F dOut^T over the attached channels, plus depth and distortion: signal [hits, 16].
template <int kind, bool distort>
PB_INLINE void weight_gradients(const BlendArgs& a, const Tile& t, const Block& b, const float* by_channel,
                                F16 grad_depth, const DistortionGradient<F16>& grad_distortion, float* signal) {
  for (int n = 0; n < b.count; n += kHitGroup) {
    // Several hits at once: one alone is a chain of dependent additions. The last group repeats its last hit.
    const float* f[kHitGroup];
    F16 s[kHitGroup];
#pragma GCC unroll 8
    for (int k = 0; k < kHitGroup; ++k) {
      const int hit = n + k < b.count ? n + k : b.count - 1;
      f[k] = t.rows + (int64_t)b.slot[hit] * a.stride;
      const F16 depth = kind == kDisc ? load(b.depth + hit * kLanes) : set1(t.params[b.candidate[hit] * kParams + 6]);
      s[k] = depth * grad_depth;
      if constexpr (distort) s[k] = s[k] + grad_distortion.of_weight(load(b.offset + hit * kLanes));
    }
    for (int c = 0; c < a.attached; ++c) {
      const F16 g = load(by_channel + c * kLanes);
#pragma GCC unroll 8
      for (int k = 0; k < kHitGroup; ++k) s[k] = fma(set1(f[k][c]), g, s[k]);
    }
    for (int k = 0; k < kHitGroup && n + k < b.count; ++k) store(signal + (n + k) * kLanes, s[k]);
  }
}

// Adds a block's sums over pixels to the moments of its ellipsoids: of g, g dx, g dy, g dx^2, g dx dy and g dy^2, where g
// is the gradient of log(alpha) and (dx, dy) leads from the pixel to the mean; then of the gradient of the depth, if it
// has any, and of |g d log(alpha) / d mean|, if that is asked for.
PB_INLINE void add_moments(const Tile& t, Block& b, const BlockPlace& at, const float* log_gradients, const float* hits,
                           bool moves_hits, bool absolute, float* moments) {
  for (int n = b.count; n % kLanes; ++n) b.candidate[n] = b.candidate[0];  // some candidate, to be gathered
  for (int first = 0; first < b.count; first += kLanes) {
    const auto parameter = [&](int k) __attribute__((always_inline)) {
      return gather(t.params + k, b.candidate + first, kParams);
    };
    F16 g[kLanes], v[kLanes];
    turn(log_gradients, first, g);
    const F16 dx = parameter(0) - set1(at.cx), dy = parameter(1) - set1(at.cy);
    for (int k = 6; k < kLanes; ++k) v[k] = zero();
    if (absolute) {
      const F16 slope_xx = set1(2.0f) * parameter(2), slope_xy = parameter(3), slope_yy = set1(2.0f) * parameter(4);
      for (int p = 0; p < kLanes; ++p) {
        const F16 x = dx - set1((float)(p % kBlock) - 1.5f), y = dy - set1((float)(p / kBlock) - 1.5f);
        v[7] = v[7] + magnitude(g[p] * fma(slope_xx, x, slope_xy * y));
        v[8] = v[8] + magnitude(g[p] * fma(slope_yy, y, slope_xy * x));
      }
    }
    // Moments about the block's centre, of pixels at -1.5, -0.5, 0.5 and 1.5.
    F16 s = zero(), sx = zero(), sy = zero(), sxx = zero(), sxy = zero(), syy = zero();
#pragma GCC unroll 4
    for (int row = 0; row < kBlock; ++row) {
      const F16* r = g + row * kBlock;
      const F16 outer = r[0] + r[3], inner = r[1] + r[2], level = outer + inner;
      const F16 slope = fma(set1(1.5f), r[3] - r[0], set1(0.5f) * (r[2] - r[1]));
      const float y = (float)row - 1.5f;
      s = s + level;
      sx = sx + slope;
      sy = fma(set1(y), level, sy);
      sxx = fma(set1(2.25f), outer, fma(set1(0.25f), inner, sxx));
      sxy = fma(set1(y), slope, sxy);
      syy = fma(set1(y * y), level, syy);
    }
    v[0] = s;
    v[1] = dx * s - sx;
    v[2] = dy * s - sy;
    v[3] = fma(dx, v[1] - sx, sxx);
    v[4] = fma(dx, v[2], sxy - dy * sx);
    v[5] = fma(dy, v[2] - sy, syy);
    if (moves_hits) {
      turn(hits, first, g);
      for (int p = 0; p < kLanes; ++p) v[6] = v[6] + g[p];
    }
    transpose(v);
    for (int k = 0; k < kLanes && first + k < b.count; ++k) add_to(moments + b.slot[first + k] * kLanes, v[k]);
  }
}

template <int kind, bool distort>
PB_INLINE void backward_tile(const BlendArgs& a, const BlendGradIn& in, GradRows& out, int tile, char* scratch) {
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  Tile t = open_tile(a, tile, arena);
  if (!t.count) return;
  Block b;
  lay_out(b, t, true, distort, arena);
  Gradients g;
  lay_out(g, t, a.stride, arena);
  const auto [moments, signal, hits, rows, by_pixel, by_channel] = g;
  for (int block = 0; block < 16; ++block) {
    const BlockPlace at = place(a, tile, block);
    if (!at.inside) continue;
    const int64_t across = a.width - at.x < kBlock ? a.width - at.x : kBlock;
    for (int y = 0; y < kBlock && at.y + y < a.height; ++y) {
      const int64_t first = pixel(a, at, y * kBlock);
      prefetch(in.image ? in.image + first * a.channels : nullptr, across * a.channels);
      prefetch(in.label_gradient ? in.label_gradient + first * a.labels : nullptr, across * a.labels);
      prefetch(in.sums.given ? in.label_image + first * a.labels : nullptr, across * a.labels);
    }
    const Sums found = weigh<kind, true, distort>(a, t, block, at.inside, at.px, at.py, b);
    const F16 transmittance = found.transmittance;
    if (!b.count) continue;
    const int known = t.slots;
    open_slots(a, t, b);
    open_gradients(a, t, out, known, rows, moments);
    load_gradients(a, at, in, by_pixel, by_channel);
    if (few_channels(a)) {
      few_feature_gradients(a, b, by_channel, rows, out.features);
    } else {
      feature_gradients(a, b, by_pixel, rows, out.features);
    }
    const F16 grad_depth = gather(a, at, in.depth), grad_median = gather(a, at, in.median);
    const DistortionGradient<F16> grad_distortion(found.distortion, set1(1.0f) - transmittance,
                                                  gather(a, at, in.distortion));
    const F16 inverse_first = set1(1.0f) / grad_distortion.first;
    weight_gradients<kind, distort>(a, t, b, by_channel, grad_depth, grad_distortion, signal);
    // Back to front: alpha g_alpha = w s - alpha / (1 - alpha) (sum behind of w s - T_final g_A).
    F16 behind = zero() - transmittance * gather(a, at, in.alpha);
    const bool moves_hits = in.depth || in.median || distort;
    const auto log_gradient = [&](int n) __attribute__((always_inline)) {
      const F16 alpha = load(b.alpha + n * kLanes), pull = load(b.weight + n * kLanes) * load(signal + n * kLanes);
      const F16 grad = pull - alpha * reciprocal(set1(1.0f) - alpha) * behind;
      behind = behind + pull;
      return select(less(alpha, set1(kAlphaMax)), grad, zero());
    };
    const auto hit_gradient = [&](int n) __attribute__((always_inline)) {
      if (!moves_hits) return zero();
      const F16 weight = load(b.weight + n * kLanes);
      F16 grad = select(equal(found.median_hit, set1((float)n)), grad_median, zero());
      if constexpr (distort) {
        const F16 offset = load(b.offset + n * kLanes);
        grad = grad + grad_distortion.of_depth(weight, offset, offset + inverse_first);
      }
      return fma(weight, grad_depth, grad);
    };
    if constexpr (kind == kEllipsoid) {
      for (int n = b.count - 1; n >= 0; --n) {
        store(signal + n * kLanes, log_gradient(n));
        if (moves_hits) store(hits + n * kLanes, hit_gradient(n));
      }
      add_moments(t, b, at, signal, hits, moves_hits, in.absolute, moments);
    } else {
      for (int n = b.count - 1; n >= 0; --n) {
        const float* p = t.params + b.candidate[n] * kParams;
        const M16 blended = less(zero(), load(b.weight + n * kLanes));
        const F16 grad_log = log_gradient(n), grad_hit = hit_gradient(n);
        const DiscHit d = intersect(p, at.px, at.py);
        const F16 g_rho = set1(-0.5f) * grad_log;
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
                                   grad_log * set1(1.0f / p[14]),
                                   zero()};
        add_to(moments + b.slot[n] * kLanes, sums(terms));
      }
    }
  }
  const float x0 = (float)(tile % a.tiles_x * kTile), y0 = (float)(tile / a.tiles_x * kTile);
  for (int slot = 0; slot < t.slots; ++slot) {
    float gradient[kDiscGeometry], *m = moments + (int64_t)slot * kLanes;
    if (kind == kEllipsoid)  // sums of the gradient of log(alpha) = -sigma + ..., where geometry_gradient wants sigma's
      for (int k = 0; k < 6; ++k) m[k] = -m[k];
    geometry_gradient(kind, geometry_row(a, t.ids[t.owner[slot]]), x0, y0, m, gradient);
    float* row = out.geometry + (int64_t)rows[slot] * kLanes;
    for (int k = 0; k < geometry_width(kind); ++k) row[k] += gradient[k];
    // The parameters' conic has a factor of log2(e) too much.
    for (int k = kEllipsoidGeometry; in.absolute && k < kEllipsoidGeometry + 2; ++k) row[k] += kLn2 * m[k];
  }
}

template <int kind>
void forward_kind(const BlendArgs& a, const BlendOut& out, int tile, char* scratch) {
  if (out.distortion) {
    forward_tile<kind, true>(a, out, tile, scratch);
  } else {
    forward_tile<kind, false>(a, out, tile, scratch);
  }
}

template <int kind>
void backward_kind(const BlendArgs& a, const BlendGradIn& in, GradRows& out, int tile, char* scratch) {
  if (in.distortion) {
    backward_tile<kind, true>(a, in, out, tile, scratch);
  } else {
    backward_tile<kind, false>(a, in, out, tile, scratch);
  }
}

void blend_forward(const BlendArgs& a, const BlendOut& out, int tile, char* scratch) {
  a.kind == kEllipsoid ? forward_kind<kEllipsoid>(a, out, tile, scratch) : forward_kind<kDisc>(a, out, tile, scratch);
}

void blend_backward(const BlendArgs& a, const BlendGradIn& in, GradRows& out, int tile, char* scratch) {
  a.kind == kEllipsoid ? backward_kind<kEllipsoid>(a, in, out, tile, scratch)
                       : backward_kind<kDisc>(a, in, out, tile, scratch);
}

PB_INLINE void sum_channels(const GradSource* from, int64_t count, int first, int channels, float* to) {
  for (int c = 0; c < channels; c += kLanes) {
    F16 s = zero();
    for (int64_t i = 0; i < count; ++i) s = s + load_up_to(from[i].features + first + c, channels - c);
    store_up_to(to + c, s, channels - c);
  }
}

// The sum of a Gaussian's rows in all groups, in their order.
void sum_rows(const GradSource* from, int64_t count, int channels, float* features, int labels, float* label_rows,
              int width, float* geometry, float* absolute) {
  sum_channels(from, count, 0, channels, features);
  sum_channels(from, count, channels, labels, label_rows);
  F16 s = zero();
  for (int64_t i = 0; i < count; ++i) s = s + load(from[i].geometry);
  store_part(geometry, s, width);
  if (!absolute) return;
  float lanes[kLanes];
  store(lanes, s);
  for (int k = 0; k < 2; ++k) absolute[k] = lanes[kEllipsoidGeometry + k];
}

void label_sums(const LabelTargets& l, const float* image, int64_t begin, int64_t end, LabelSums& sums) {
  for (int64_t first = begin; first < end; first += kPixels) {
    LabelPixels pixels;
    for (int64_t p = first; p < end && p < first + kPixels; ++p) take_pixel(l, image, p, pixels);
    add_pixels(l, pixels, sums);
  }
}

void label_gradients(const LabelTargets& l, const LabelGradIn& in, const float* image, int64_t begin, int64_t end,
                     float* grad) {
  std::memset(grad + begin * l.channels, 0, (size_t)(end - begin) * l.channels * sizeof(float));
  for (int64_t p = begin; p < end; ++p) add_gradient(l, in, p, image + p * l.channels, grad + p * l.channels);
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

constexpr int kRows = 4;  // Gaussians that are compared with sixteen queries at once

// A few consecutive Gaussians; the last one is repeated where fewer are left.
struct Rows {
  int64_t first;
  int live;
  const float *f[kRows], *x[kRows];
};

PB_INLINE Rows rows_at(const AttendArgs& a, int64_t row, int64_t end) {
  Rows r;
  r.first = row;
  r.live = end - row < kRows ? (int)(end - row) : kRows;
  for (int i = 0; i < kRows; ++i) {
    const int64_t n = row + (i < r.live ? i : r.live - 1);
    r.f[i] = a.features + n * a.dim;
    r.x[i] = a.means + n * 3;
  }
  return r;
}

PB_INLINE void dots(const AttendArgs& a, const Rows& rows, int q, F16 out[kRows]) {
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) out[i] = zero();
  for (int k = 0; k < a.dim; ++k) {
    const F16 query = load(a.query_features + (int64_t)k * a.query_stride + q);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) out[i] = fma(set1(rows.f[i][k]), query, out[i]);
  }
}

struct Distance {
  F16 mahalanobis, dx, dy, dz, y0, y1, y2;
};

PB_INLINE Distance distance(const AttendArgs& a, const float* x, int q) {
  Distance d;
  const int n = a.query_stride;
  d.dx = set1(x[0]) - load(a.query_means + q);
  d.dy = set1(x[1]) - load(a.query_means + n + q);
  d.dz = set1(x[2]) - load(a.query_means + 2 * n + q);
  const float* r = a.query_roots + q;
  d.y0 = fma(load(r), d.dx, fma(load(r + n), d.dy, load(r + 2 * n) * d.dz));
  d.y1 = fma(load(r + 3 * n), d.dx, fma(load(r + 4 * n), d.dy, load(r + 5 * n) * d.dz));
  d.y2 = fma(load(r + 6 * n), d.dx, fma(load(r + 7 * n), d.dy, load(r + 8 * n) * d.dz));
  d.mahalanobis = fma(d.y0, d.y0, fma(d.y1, d.y1, d.y2 * d.y2));
  return d;
}

// Softmax of temperature * row and, if there is one, of the constant rest.
PB_INLINE void softmax(const AttendArgs& a, float* row) {
  const F16 lowest = set1(-1e30f), temperature = set1(a.temperature);
  F16 top = lowest;
  for (int q = 0; q < a.queries; q += kLanes) {
    const F16 v = temperature * load_up_to(row + q, a.queries - q);
    top = max(top, select(mask_of(a.queries - q >= kLanes ? kWhole : (1u << (a.queries - q)) - 1), v, lowest));
  }
  float lanes[kLanes], highest = a.has_rest ? a.rest : -1e30f;
  store(lanes, top);
  for (const float v : lanes) highest = v > highest ? v : highest;
  F16 total = zero();
  for (int q = 0; q < a.queries; q += kLanes) {
    const F16 x = temperature * load_up_to(row + q, a.queries - q) - set1(highest);
    // A true zero: what is below the smallest normal number slows down all that follows.
    const M16 gone = less(x, set1(-80.0f)) | mask_of(a.queries - q >= kLanes ? 0 : ~((1u << (a.queries - q)) - 1));
    const F16 e = select(gone, zero(), exp(x));
    total = total + e;
    store_up_to(row + q, e, a.queries - q);
  }
  store(lanes, exp(set1((a.has_rest ? a.rest : 0.0f) - highest)));
  const F16 scale = set1(1.0f / (sum(total) + (a.has_rest ? lanes[0] : 0.0f)));
  for (int q = 0; q < a.queries; q += kLanes)
    store_up_to(row + q, scale * load_up_to(row + q, a.queries - q), a.queries - q);
}

void attend_forward(const AttendArgs& a, float* out, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kRows) {
    const Rows rows = rows_at(a, row, end);
    for (int q = 0; q < a.queries; q += kLanes) {
      F16 dot[kRows];
      dots(a, rows, q, dot);
      for (int i = 0; i < rows.live; ++i) {
        const F16 m = distance(a, rows.x[i], q).mahalanobis;
        F16 value;
        if (a.logarithm) {
          const F16 magnitude = max(dot[i], zero() - dot[i]);
          value = min(dot[i], zero()) - log1p_unit(exp(zero() - magnitude)) - set1(0.5f) * m;
        } else {
          value = exp(set1(-0.5f) * m) / (set1(1.0f) + exp(zero() - dot[i]));
        }
        store_up_to(out + (row + i) * a.queries + q, value, a.queries - q);
      }
    }
    if (a.shares)
      for (int i = 0; i < rows.live; ++i) softmax(a, out + (row + i) * a.queries);
  }
}

// Gradients of the features of a few Gaussians and of sixteen queries, from those of their dot products.
PB_INLINE void dot_gradients(const AttendArgs& a, const Rows& rows, int q, const float g_dots[kRows][kLanes],
                             float* grad_features, float* grad_query_rows) {
  const int lanes = a.queries - q < kLanes ? a.queries - q : kLanes;
  for (int d = 0; d < a.dim; d += kLanes) {
    F16 f[kRows], g[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      f[i] = load_up_to(rows.f[i] + d, a.dim - d);
      g[i] = q && i < rows.live ? load_up_to(grad_features + (rows.first + i) * a.dim + d, a.dim - d) : zero();
    }
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t at = (int64_t)(q + lane) * a.dim_stride + d;
      const F16 query = load(a.query_rows + at);
      F16 grad_query = load(grad_query_rows + at);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const F16 scale = set1(g_dots[i][lane]);
        g[i] = fma(scale, query, g[i]);
        grad_query = fma(scale, f[i], grad_query);
      }
      store(grad_query_rows + at, grad_query);
    }
    for (int i = 0; i < rows.live; ++i)
      store_up_to(grad_features + (rows.first + i) * a.dim + d, g[i], a.dim - d);
  }
}

void attend_backward(const AttendArgs& a, const float* shares, const float* grad_attention, float* grad_features,
                     float* grad_means, float* grad_query_rows, float* grad_query_means, float* grad_query_roots,
                     int64_t begin, int64_t end) {
  const int n = a.query_stride;
  for (int64_t row = begin; row < end; row += kRows) {
    const Rows rows = rows_at(a, row, end);
    F16 inner[kRows], g_mean[kRows][3];
    for (int i = 0; i < kRows; ++i) {
      inner[i] = g_mean[i][0] = g_mean[i][1] = g_mean[i][2] = zero();
      if (!a.shares || i >= rows.live) continue;
      const int64_t at = (row + i) * a.queries;
      for (int q = 0; q < a.queries; q += kLanes)
        inner[i] = fma(load_up_to(shares + at + q, a.queries - q), load_up_to(grad_attention + at + q, a.queries - q),
                       inner[i]);
      inner[i] = set1(sum(inner[i]));
    }
    for (int q = 0; q < a.queries; q += kLanes) {
      F16 dot[kRows], g_query[3], g_root[9];
      float g_dots[kRows][kLanes];
      dots(a, rows, q, dot);
      for (int k = 0; k < 3; ++k) g_query[k] = zero();
      for (int k = 0; k < 9; ++k) g_root[k] = zero();
      for (int i = 0; i < kRows; ++i) {
        if (i >= rows.live) {
          store(g_dots[i], zero());
          continue;
        }
        const int64_t at = (row + i) * a.queries + q;
        F16 g = load_up_to(grad_attention + at, a.queries - q);
        if (a.shares) g = set1(a.temperature) * load_up_to(shares + at, a.queries - q) * (g - inner[i]);
        const Distance d = distance(a, rows.x[i], q);
        const F16 sigmoid = set1(1.0f) / (set1(1.0f) + exp(zero() - dot[i]));
        if (!a.logarithm) g = g * sigmoid * exp(set1(-0.5f) * d.mahalanobis);
        store(g_dots[i], g * (set1(1.0f) - sigmoid));
        // d(mahalanobis)/dy = 2 y, and A or log A carries -1/2 of it.
        const F16 ys[3] = {zero() - g * d.y0, zero() - g * d.y1, zero() - g * d.y2}, ds[3] = {d.dx, d.dy, d.dz};
        const float* r = a.query_roots + q;
        for (int k = 0; k < 3; ++k) {
          const F16 h = fma(load(r + k * n), ys[0], fma(load(r + (3 + k) * n), ys[1], load(r + (6 + k) * n) * ys[2]));
          g_mean[i][k] = g_mean[i][k] + h;
          g_query[k] = g_query[k] - h;
          for (int j = 0; j < 3; ++j) g_root[3 * k + j] = fma(ys[k], ds[j], g_root[3 * k + j]);
        }
      }
      for (int k = 0; k < 3; ++k) add_to(grad_query_means + k * n + q, g_query[k]);
      for (int k = 0; k < 9; ++k) add_to(grad_query_roots + k * n + q, g_root[k]);
      dot_gradients(a, rows, q, g_dots, grad_features, grad_query_rows);
    }
    for (int i = 0; i < rows.live; ++i)
      for (int k = 0; k < 3; ++k) grad_means[(row + i) * 3 + k] = sum(g_mean[i][k]);
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

extern "C" const KernelTable PB_TABLE = {
    PB_NAME,  project,    project_backward, blend_scratch,  blend_forward,   blend_backward,
    sum_rows, label_sums, label_gradients,  attend_forward, attend_backward, convolve};

}  // namespace panbench
