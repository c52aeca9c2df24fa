// Tile lists, and the threads that blend tiles and gather their gradients.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pipeline.h"

namespace panbench {
namespace {

constexpr int kGroup = 2;  // tiles on a side of a group, which shares rows of gradients
constexpr int64_t kPiece = 2048;  // rows that are binned together
constexpr int kRow = 16;   // floats of geometry gradient in such a row

// Reused between calls: fresh pages cost more than the work that is done in them.
struct Scratch {
  std::vector<char> bytes;
  char* get(int64_t size) {
    if ((int64_t)bytes.size() < size + 64) bytes.resize(size + 64 + size / 4);
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) & ~uintptr_t(63));
  }
};

void footprint_from(double xx, double xy, double yy, Footprint& f) {
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
void reachable(Vec3 mp, Vec3 mw, float cut, int tiles, int& first, int& last) {
  first = tiles;
  last = -1;
  for (int t = 0; t < tiles; ++t) {
    const Vec3 lo = mp - (float)(t * kTile) * mw, hi = mp - (float)((t + 1) * kTile) * mw;
    if (lo.z + cut * std::hypot(lo.x, lo.y) < 0.0f || hi.z - cut * std::hypot(hi.x, hi.y) > 0.0f) continue;
    first = std::min(first, t);
    last = t;
  }
}

// Widens first..last by the tiles within `radius` of `center`.
void widen(float center, float radius, int tiles, int& first, int& last) {
  const float lo = std::max(center - radius, 0.0f) / kTile, hi = std::min((center + radius) / kTile, tiles - 0.5f);
  if (!(hi >= 0.0f && lo < (float)tiles)) return;
  first = std::min(first, (int)lo);
  last = std::max(last, (int)hi);
}

Footprint footprint(const float* g, int kind, int tiles_x, int tiles_y) {
  Footprint f{};
  f.r2 = -1.0f;
  if (kind == kEllipsoid) {
    const double det = (double)g[2] * g[4] - (double)g[3] * g[3];
    const double cut2 = 2.0 * std::log(255.0 * g[5]);
    f.x = f.cx = g[0];
    f.y = f.cy = g[1];
    footprint_from(cut2 * g[4] / det, -cut2 * g[3] / det, cut2 * g[2] / det, f);
    return f;
  }
  const float cut2 = 2.0f * std::log(255.0f * g[11]);
  f.cx = g[9];
  f.cy = g[10];
  f.r2 = 0.5f * cut2 * 1.0001f + 1e-4f;
  float xx, xy, yy;
  if (disc_ellipse(load3(g), load3(g + 3), load3(g + 6), std::max(cut2, 0.0f), f.x, f.y, xx, xy, yy)) {
    footprint_from(std::max(xx, 0.0f), xy, std::max(yy, 0.0f), f);
  } else {
    f.unbounded = 1;
    f.x = f.cx;
    f.y = f.cy;
    f.a = f.c = 1e-12f;
    const float cut = std::sqrt(std::max(cut2, 0.0f)), radius = std::sqrt(f.r2);
    reachable(load3(g), load3(g + 6), cut, tiles_x, f.x0, f.x1);
    reachable(load3(g + 3), load3(g + 6), cut, tiles_y, f.y0, f.y1);
    if (f.x0 > f.x1 || f.y0 > f.y1) f.x0 = tiles_x, f.x1 = -1, f.y0 = tiles_y, f.y1 = -1;
    widen(f.cx, radius, tiles_x, f.x0, f.x1);
    widen(f.cy, radius, tiles_y, f.y0, f.y1);
    f.r2 = 1e30f;
  }
  return f;
}

std::vector<Footprint> footprints(const float* geometry, int64_t visible, int kind, int tiles_x, int tiles_y) {
  const int width = geometry_width(kind);
  std::vector<Footprint> out(visible);
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) out[m] = footprint(geometry + m * width, kind, tiles_x, tiles_y);
  return out;
}

// Determinant of a footprint's ellipse, and how far it reaches along the axes.
struct Reach {
  double det, x, y;
  explicit Reach(const Footprint& f)
      : det((double)f.a * f.c - (double)f.b * f.b), x(std::sqrt(f.c / det)), y(std::sqrt(f.a / det)) {}
};

// Extent in x of the ellipse within the strip y0 <= y <= y1 (relative to its centre); false if they do not meet.
bool ellipse_span(const Footprint& f, const Reach& reach, float y0, float y1, float& lo, float& hi) {
  if (y0 > reach.y || y1 < -reach.y) return false;
  const double y_at_right = f.slope_y * reach.x;
  const double a = std::clamp((double)y0, -reach.y, reach.y), b = std::clamp((double)y1, -reach.y, reach.y);
  const auto root = [&](double y) { return std::sqrt(std::max(0.0, f.a - reach.det * y * y)) / f.a; };
  const double ma = f.slope_x * a, mb = f.slope_x * b;
  double right = std::max(ma + root(a), mb + root(b)), left = std::min(ma - root(a), mb - root(b));
  if (y_at_right >= a && y_at_right <= b) right = reach.x;
  if (-y_at_right >= a && -y_at_right <= b) left = -reach.x;
  lo = (float)left;
  hi = (float)right;
  return true;
}

// Calls visit(tile_y, first_tile_x, last_tile_x) for the tiles that a footprint may touch.
template <typename Visit>
void for_tiles(const Footprint& f, int tiles_x, int tiles_y, const Visit& visit) {
  if (f.unbounded) {
    for (int ty = f.y0; ty <= f.y1 && f.x0 <= f.x1; ++ty) visit(ty, f.x0, f.x1);
    return;
  }
  const Reach reach(f);
  float top = f.y - (float)reach.y, bottom = f.y + (float)reach.y;
  const float radius = f.r2 > 0 ? std::sqrt(f.r2) : 0.0f;
  if (radius > 0) {
    top = std::min(top, f.cy - radius);
    bottom = std::max(bottom, f.cy + radius);
  }
  const float limit = (float)(tiles_y * kTile);
  if (!(bottom > 0.0f && top < limit)) return;
  const int ty0 = std::max(0, (int)std::floor(std::max(top, 0.0f) / kTile));
  const int ty1 = std::min(tiles_y - 1, (int)std::floor(std::min(bottom, limit - 1) / kTile));
  for (int ty = ty0; ty <= ty1; ++ty) {
    const float y0 = (float)(ty * kTile), y1 = y0 + kTile;
    float lo = 1e30f, hi = -1e30f, a, b;
    if (ellipse_span(f, reach, y0 - f.y, y1 - f.y, a, b)) {
      lo = f.x + a;
      hi = f.x + b;
    }
    if (radius > 0) {
      const float dy = std::clamp(f.cy, y0, y1) - f.cy;
      if (dy * dy <= f.r2) {
        const float w = std::sqrt(f.r2 - dy * dy);
        lo = std::min(lo, f.cx - w);
        hi = std::max(hi, f.cx + w);
      }
    }
    if (!(hi > 0.0f && lo < (float)(tiles_x * kTile) && lo <= hi)) continue;
    const int tx0 = std::max(0, (int)std::floor(std::max(lo, 0.0f) / kTile));
    const int tx1 = std::min(tiles_x - 1, (int)std::floor(std::min(hi, (float)(tiles_x * kTile) - 1) / kTile));
    if (tx0 <= tx1) visit(ty, tx0, tx1);
  }
}

// Rows by ascending depth, ties by row: least-significant-digit radix sort of the positive floats' bits.
std::vector<int32_t> depth_order(const float* geometry, int64_t visible, int kind) {
  const int width = geometry_width(kind);
  struct Key {
    uint32_t depth;
    int32_t row;
  };
  std::vector<Key> keys(visible), other(visible);
  for (int64_t m = 0; m < visible; ++m) {
    std::memcpy(&keys[m].depth, geometry + m * width + width - 1, 4);
    keys[m].row = (int32_t)m;
  }
  for (int shift = 0; shift < 33; shift += 11) {
    int64_t count[2049] = {};
    for (const Key& k : keys) ++count[(k.depth >> shift & 2047) + 1];
    for (int d = 0; d < 2048; ++d) count[d + 1] += count[d];
    for (const Key& k : keys) other[count[k.depth >> shift & 2047]++] = k;
    keys.swap(other);
  }
  std::vector<int32_t> rows(visible);
  for (int64_t m = 0; m < visible; ++m) rows[m] = keys[m].row;
  return rows;
}

// Sets the tile counts and footprints of `args`; the footprints live in what is returned.
std::vector<Footprint> complete(BlendArgs& args, int64_t visible) {
  args.tiles_x = (args.width + kTile - 1) / kTile;
  args.tiles_y = (args.height + kTile - 1) / kTile;
  std::vector<Footprint> prints = footprints(args.geometry, visible, args.kind, args.tiles_x, args.tiles_y);
  args.footprints = prints.data();
  return prints;
}

int32_t list_length(const BlendArgs& args, int tile) { return args.tile_offsets[tile + 1] - args.tile_offsets[tile]; }

int64_t longest_list(const BlendArgs& args) {
  int32_t longest = 0;
  for (int t = 0; t < args.tiles_x * args.tiles_y; ++t) longest = std::max(longest, list_length(args, t));
  return longest;
}

// Indices by descending cost: threads that take the long ones first finish together.
std::vector<int> costly_first(const std::vector<int64_t>& cost) {
  std::vector<int> order(cost.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = (int)i;
  std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return cost[x] > cost[y]; });
  return order;
}

// A square of tiles that one thread works through in order. Which thread does not matter to the sums.
struct Group {
  std::vector<int> tiles;
  std::vector<int32_t> ids;
  std::vector<float> features, geometry;
  int count;
};

// Fills in the tiles of every group and returns the groups by descending number of candidates.
std::vector<int> form_groups(const BlendArgs& args, std::vector<Group>& groups) {
  const int across = (args.tiles_x + kGroup - 1) / kGroup, down = (args.tiles_y + kGroup - 1) / kGroup;
  groups.resize((size_t)across * down);
  std::vector<int64_t> cost(groups.size(), 0);
  for (Group& group : groups) group.tiles.clear();
  for (int t = 0; t < args.tiles_x * args.tiles_y; ++t) {
    const int g = t / args.tiles_x / kGroup * across + t % args.tiles_x / kGroup;
    groups[g].tiles.push_back(t);
    cost[g] += list_length(args, t);
  }
  return costly_first(cost);
}

void backward_group(const BlendArgs& args, const BlendGradIn& in, Group& group, int32_t* local, char* scratch) {
  const KernelTable& table = kernels();
  GradRows rows{local, nullptr, nullptr, nullptr, 0};
  for (const int tile : group.tiles) {
    const size_t room = (size_t)rows.count + list_length(args, tile);
    if (group.ids.size() < room) {
      group.ids.resize(room + room / 2);
      group.geometry.resize(group.ids.size() * kRow);
    }
    if (group.features.size() < room * args.stride) group.features.resize((room + room / 2) * args.stride);
    rows.ids = group.ids.data();
    rows.features = group.features.data();
    rows.geometry = group.geometry.data();
    table.blend_backward(args, in, rows, tile, scratch);
  }
  group.count = rows.count;
  for (int r = 0; r < rows.count; ++r) local[rows.ids[r]] = -1;
}

// The rows of every Gaussian in the order of the groups: those of Gaussian m are offsets[m] to offsets[m + 1].
struct Sources {
  std::vector<int64_t> offsets;
  std::vector<GradSource> rows;
  Sources(const std::vector<Group>& groups, int64_t visible, int stride) : offsets(visible + 1, 0) {
    for (const Group& group : groups)
      for (int r = 0; r < group.count; ++r) ++offsets[group.ids[r] + 1];
    for (int64_t m = 0; m < visible; ++m) offsets[m + 1] += offsets[m];
    rows.resize(offsets.back());
    std::vector<int64_t> next(offsets.begin(), offsets.end() - 1);
    for (const Group& group : groups)
      for (int r = 0; r < group.count; ++r)
        rows[next[group.ids[r]]++] = {group.features.data() + (int64_t)r * stride, group.geometry.data() + r * kRow};
  }
};

}  // namespace

const KernelTable& kernels() {
#if defined(PB_HAVE_V4)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return panbench_kernels_v4;
#endif
#if defined(PB_HAVE_V3)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return panbench_kernels_v3;
#endif
  return panbench_kernels_portable;
}

TileLists bin(const float* geometry, int64_t visible, int kind, int width, int height) {
  const int tiles_x = (width + kTile - 1) / kTile, tiles_y = (height + kTile - 1) / kTile;
  const std::vector<Footprint> prints = footprints(geometry, visible, kind, tiles_x, tiles_y);
  const std::vector<int32_t> order = depth_order(geometry, visible, kind);
  const int64_t tiles = (int64_t)tiles_x * tiles_y, pieces = (visible + kPiece - 1) / kPiece;
  struct Span {
    int32_t row, first, last;
  };
  // A counting sort, stable by pieces of the depth order: each piece counts its entries of every tile, then writes them
  // behind those of the pieces before it.
  std::vector<std::vector<Span>> spans(pieces);
  std::vector<int32_t> next(pieces * tiles, 0);
#pragma omp parallel for schedule(dynamic)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    spans[piece].reserve(2 * kPiece);
    int32_t* const count = next.data() + piece * tiles;
    for (int64_t i = piece * kPiece; i < std::min(visible, (piece + 1) * kPiece); ++i) {
      for_tiles(prints[order[i]], tiles_x, tiles_y, [&](int ty, int tx0, int tx1) {
        spans[piece].push_back({order[i], ty * tiles_x + tx0, ty * tiles_x + tx1});
        for (int t = tx0; t <= tx1; ++t) ++count[ty * tiles_x + t];
      });
    }
  }
  TileLists lists;
  lists.offsets.assign(tiles + 1, 0);
  for (int64_t t = 0; t < tiles; ++t) {
    int32_t at = lists.offsets[t];
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int32_t count = next[piece * tiles + t];
      next[piece * tiles + t] = at;
      at += count;
    }
    lists.offsets[t + 1] = at;
  }
  lists.ids.resize(lists.offsets.back());
#pragma omp parallel for schedule(dynamic)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    int32_t* const place = next.data() + piece * tiles;
    for (const Span& span : spans[piece])
      for (int32_t t = span.first; t <= span.last; ++t) lists.ids[place[t]++] = span.row;
  }
  return lists;
}

void blend(BlendArgs args, int64_t visible, const BlendOut& out) {
  const std::vector<Footprint> prints = complete(args, visible);
  const KernelTable& table = kernels();
  const int tiles = args.tiles_x * args.tiles_y;
  const int64_t bytes = table.blend_scratch(longest_list(args), args.stride);
  std::vector<int64_t> cost(tiles);
  for (int t = 0; t < tiles; ++t) cost[t] = list_length(args, t);
  const std::vector<int> order = costly_first(cost);
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    char* memory = scratch.get(bytes);
#pragma omp for schedule(dynamic)
    for (int i = 0; i < tiles; ++i) table.blend_forward(args, out, order[i], memory);
  }
}

void blend_backward(BlendArgs args, int64_t visible, const BlendGradIn& in, float* grad_geometry,
                    float* grad_features) {
  const std::vector<Footprint> prints = complete(args, visible);
  const KernelTable& table = kernels();
  const int64_t bytes = table.blend_scratch(longest_list(args), args.stride);
  const int width = geometry_width(args.kind);
  static thread_local std::vector<Group> storage;
  std::vector<Group>& groups = storage;  // thread_local: workers must use the caller's
  const std::vector<int> order = form_groups(args, groups);
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    static thread_local std::vector<int32_t> local;  // all -1 between groups
    char* memory = scratch.get(bytes);
    if ((int64_t)local.size() < visible) local.resize(visible, -1);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < order.size(); ++i) backward_group(args, in, groups[order[i]], local.data(), memory);
  }
  const Sources sources(groups, visible, args.stride);
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m)
    table.sum_rows(sources.rows.data() + sources.offsets[m], sources.offsets[m + 1] - sources.offsets[m], args.channels,
                   grad_features + m * args.channels, width, grad_geometry + m * width);
}

}  // namespace panbench
