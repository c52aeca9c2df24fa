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

constexpr int kBands = 16;  // fixed, so that sums are formed in the same order whatever the thread count

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

int64_t longest_list(const BlendArgs& args) {
  int32_t longest = 0;
  for (int t = 0; t < args.tiles_x * args.tiles_y; ++t)
    longest = std::max(longest, args.tile_offsets[t + 1] - args.tile_offsets[t]);
  return longest;
}

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
  TileLists lists;
  lists.offsets.assign((size_t)tiles_x * tiles_y + 1, 0);
  struct Span {
    int32_t row, first, last;
  };
  std::vector<Span> spans;
  spans.reserve(visible * 2);
  for (const int32_t row : order) {
    int ty, last_row, tx0, tx1;
    for (tile_rows(prints[row], tiles_y, ty, last_row); ty <= last_row; ++ty) {
      if (!tile_span(prints[row], ty, tiles_x, tx0, tx1)) continue;
      spans.push_back({row, ty * tiles_x + tx0, ty * tiles_x + tx1});
      for (int t = tx0; t <= tx1; ++t) ++lists.offsets[(size_t)ty * tiles_x + t + 1];
    }
  }
  for (size_t t = 1; t < lists.offsets.size(); ++t) lists.offsets[t] += lists.offsets[t - 1];
  lists.ids.resize(lists.offsets.back());
  std::vector<int32_t> next(lists.offsets.begin(), lists.offsets.end() - 1);
  for (const Span& span : spans)
    for (int32_t t = span.first; t <= span.last; ++t) lists.ids[next[t]++] = span.row;
  return lists;
}

void blend(BlendArgs args, int64_t visible, const BlendOut& out) {
  const std::vector<Footprint> prints = complete(args, visible);
  const KernelTable& table = kernels();
  const int64_t bytes = table.blend_scratch(longest_list(args), args.stride);
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    char* memory = scratch.get(bytes);
#pragma omp for schedule(dynamic)
    for (int tile = 0; tile < args.tiles_x * args.tiles_y; ++tile) table.blend_forward(args, out, tile, memory);
  }
}

void blend_backward(BlendArgs args, int64_t visible, const BlendGradIn& in, float* grad_geometry,
                    float* grad_features) {
  const std::vector<Footprint> prints = complete(args, visible);
  const KernelTable& table = kernels();
  const int64_t bytes = table.blend_scratch(longest_list(args), args.stride);
  const int width = geometry_width(args.kind);
  const int bands = std::min(kBands, args.tiles_y);
  constexpr int kRow = 16;  // floats of geometry gradient a row has in the bands
  struct Band {
    std::vector<int32_t> rows;  // Gaussians of this band, in the order in which its tiles meet them
    std::vector<float> features, geometry;
  };
  static thread_local std::vector<Band> storage;
  storage.resize(bands);
  Band* const band_data = storage.data();  // thread_local: workers must use the caller's
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    static thread_local std::vector<int32_t> local;
    char* memory = scratch.get(bytes);
    local.assign(visible, -1);
#pragma omp for schedule(dynamic)
    for (int b = 0; b < bands; ++b) {
      Band& band = band_data[b];
      band.rows.clear();
      const int first = args.tiles_y * b / bands * args.tiles_x, last = args.tiles_y * (b + 1) / bands * args.tiles_x;
      for (int32_t k = args.tile_offsets[first]; k < args.tile_offsets[last]; ++k) {
        const int32_t id = args.tile_ids[k];
        if (local[id] < 0) {
          local[id] = (int32_t)band.rows.size();
          band.rows.push_back(id);
        }
      }
      band.features.assign(band.rows.size() * args.stride, 0.0f);
      band.geometry.assign(band.rows.size() * kRow, 0.0f);
      const BlendGradOut out{local.data(), band.features.data(), band.geometry.data()};
      for (int tile = first; tile < last; ++tile) table.blend_backward(args, in, out, tile, memory);
      for (const int32_t id : band.rows) local[id] = -1;
    }
    // Each thread owns a range of Gaussians and adds the bands in their order.
    const int threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = visible * me / threads, end = visible * (me + 1) / threads;
    std::memset(grad_features + begin * args.channels, 0, (end - begin) * args.channels * sizeof(float));
    std::memset(grad_geometry + begin * width, 0, (end - begin) * width * sizeof(float));
    for (int b = 0; b < bands; ++b) {
      const Band& band = band_data[b];
      for (size_t r = 0; r < band.rows.size(); ++r) {
        const int32_t id = band.rows[r];
        if (id < begin || id >= end) continue;
        float* to = grad_features + (int64_t)id * args.channels;
        const float* from = band.features.data() + r * args.stride;
        for (int c = 0; c < args.channels; ++c) to[c] += from[c];
        for (int k = 0; k < width; ++k) grad_geometry[(int64_t)id * width + k] += band.geometry[r * kRow + k];
      }
    }
  }
}

}  // namespace panbench
