// Tile lists, and the threads that blend tiles and gather their gradients.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string_view>

#include "pipeline.h"

namespace panbench {
namespace {

constexpr int kGroup = 2;  // tiles on a side of a group, which shares rows of gradients
constexpr int64_t kPiece = 2048;  // rows that are binned together
constexpr int64_t kAhead = 8;  // rows whose footprint is asked for early: they lie anywhere in memory
constexpr int kRow = 16;   // floats of geometry gradient in such a row

// Reused between calls: fresh pages cost more than the work that is done in them.
struct Scratch {
  std::vector<char> bytes;
  char* get(int64_t size) {
    if ((int64_t)bytes.size() < size + 64) bytes.resize(size + 64 + size / 4);
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) & ~uintptr_t(63));
  }
};

std::vector<Footprint> footprints(const float* geometry, int64_t visible, int kind, int tiles_x, int tiles_y) {
  const int width = geometry_width(kind);
  std::vector<Footprint> out(visible);
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) out[m] = footprint(geometry + m * width, kind, tiles_x, tiles_y);
  return out;
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

// The rows of every Gaussian in the order of the groups: those of Gaussian m are offsets[m] to offsets[m + 1]. Every
// thread goes through all groups for a range of Gaussians of its own, so that the order does not depend on the threads.
struct Sources {
  std::vector<int64_t> offsets, next;
  std::vector<GradSource> rows;
  Sources(const std::vector<Group>& groups, int64_t visible, int stride) : offsets(visible + 1, 0), next(visible) {
#pragma omp parallel
    {
      const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
      const int64_t first = visible * thread / threads, last = visible * (thread + 1) / threads;
      for (const Group& group : groups)
        for (int r = 0; r < group.count; ++r)
          if (group.ids[r] >= first && group.ids[r] < last) ++offsets[group.ids[r] + 1];
#pragma omp barrier
#pragma omp single
      {
        for (int64_t m = 0; m < visible; ++m) offsets[m + 1] += offsets[m];
        rows.resize(offsets.back());
      }
      std::copy(offsets.begin() + first, offsets.begin() + last, next.begin() + first);
      for (const Group& group : groups)
        for (int r = 0; r < group.count; ++r)
          if (group.ids[r] >= first && group.ids[r] < last)
            rows[next[group.ids[r]]++] = {group.features.data() + (int64_t)r * stride,
                                          group.geometry.data() + (int64_t)r * kRow};
    }
  }
};

}  // namespace

const KernelTable& kernels() {
  const char* const asked = std::getenv("PANBENCH_ISA");  // at every call: a process may compare tables
  const std::string_view limit = asked && *asked ? asked : "v4";
  if (limit != "v4" && limit != "v3" && limit != "portable")
    throw std::runtime_error("PANBENCH_ISA must be v4, v3 or portable");
#if defined(PB_HAVE_V4)
  if (limit == "v4" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return panbench_kernels_v4;
#endif
#if defined(PB_HAVE_V3)
  if (limit != "portable" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return panbench_kernels_v3;
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
    const int64_t end = std::min(visible, (piece + 1) * kPiece);
    for (int64_t i = piece * kPiece; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(&prints[order[i + kAhead]]);
      const Footprint& print = prints[order[i]];
      int ty, last_row, tx0, tx1;
      for (tile_rows(print, tiles_y, ty, last_row); ty <= last_row; ++ty) {
        if (!tile_span(print, ty, tiles_x, tx0, tx1)) continue;
        spans[piece].push_back({order[i], ty * tiles_x + tx0, ty * tiles_x + tx1});
        for (int t = tx0; t <= tx1; ++t) ++count[ty * tiles_x + t];
      }
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

void blend(BlendArgs args, int64_t visible, BlendOut out, const LabelTotals& totals) {
  const std::vector<Footprint> prints = complete(args, visible);
  const KernelTable& table = kernels();
  const int tiles = args.tiles_x * args.tiles_y;
  const int64_t bytes = table.blend_scratch(longest_list(args), args.stride, out.distortion);
  std::vector<int64_t> cost(tiles);
  for (int t = 0; t < tiles; ++t) cost[t] = list_length(args, t);
  const std::vector<int> order = costly_first(cost);
  LabelParts parts(args.targets, tiles);
  out.sums = parts.sums.data();
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    char* memory = scratch.get(bytes);
#pragma omp for schedule(dynamic)
    for (int i = 0; i < tiles; ++i) {
      const int tile = order[i], x = tile % args.tiles_x * kTile, y = tile / args.tiles_x * kTile;
      parts.open(tile, (int64_t)y * args.width + x, std::min(kTile, args.height - y), std::min(kTile, args.width - x),
                 args.width);
      table.blend_forward(args, out, tile, memory);
    }
  }
  parts.total(totals);
}

void blend_backward(BlendArgs args, int64_t visible, const BlendGradIn& in, float* grad_geometry,
                    float* grad_features, float* grad_labels, float* absolute) {
  const std::vector<Footprint> prints = complete(args, visible);
  const KernelTable& table = kernels();
  const int64_t bytes = table.blend_scratch(longest_list(args), args.stride, in.distortion);
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
  for (int64_t m = 0; m < visible; ++m) {
    const int64_t ahead = std::min(m + kAhead, visible - 1);
    for (int64_t i = sources.offsets[ahead]; i < sources.offsets[ahead + 1]; ++i) {
      __builtin_prefetch(sources.rows[i].features);
      __builtin_prefetch(sources.rows[i].geometry);
    }
    table.sum_rows(sources.rows.data() + sources.offsets[m], sources.offsets[m + 1] - sources.offsets[m], args.channels,
                   grad_features + m * args.channels, args.labels, grad_labels + m * args.labels, width,
                   grad_geometry + m * width, in.absolute ? absolute + m * 2 : nullptr);
  }
}

}  // namespace panbench
