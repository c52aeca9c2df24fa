// Tile lists: (Gaussian, tile) pairs in order of depth, then a stable sort by tile.
#include "../footprint.h"
#include "api.h"
#include "device.h"
#include "sort.h"

namespace panbench {
namespace {

constexpr int kThreads = 128;

struct Grid {
  int tiles_x, tiles_y;
};

Grid grid_of(int width, int height) { return {(width + kTile - 1) / kTile, (height + kTile - 1) / kTile}; }

__device__ int64_t thread_number() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ Footprint footprint_of(const float* geometry, int64_t row, int kind, Grid grid) {
  return footprint(geometry + row * geometry_width(kind), kind, grid.tiles_x, grid.tiles_y);
}

// Depths are positive: their bits sort like the numbers.
__global__ void __launch_bounds__(kThreads) depth_keys(const float* geometry, int64_t visible, int kind, uint32_t* keys,
                                                       int32_t* rows) {
  const int64_t m = thread_number();
  if (m >= visible) return;
  const int width = geometry_width(kind);
  keys[m] = reinterpret_cast<const uint32_t*>(geometry)[m * width + width - 1];
  rows[m] = (int32_t)m;
}

__global__ void __launch_bounds__(kThreads) count_tiles(const float* geometry, int64_t visible, int kind, Grid grid,
                                                        const int32_t* order, int32_t* counts) {
  const int64_t rank = thread_number();
  if (rank >= visible) return;
  const Footprint f = footprint_of(geometry, order[rank], kind, grid);
  int ty, last_row, first, last, count = 0;
  const Reach reach = reach_of(f);
  for (tile_rows(f, reach, grid.tiles_y, ty, last_row); ty <= last_row; ++ty)
    if (tile_span(f, reach, ty, grid.tiles_x, first, last)) count += last - first + 1;
  counts[rank] = count;
}

__global__ void __launch_bounds__(kThreads) write_pairs(const float* geometry, int64_t visible, int kind, Grid grid,
                                                        const int32_t* order, const int32_t* ends, uint32_t* tiles,
                                                        int32_t* rows) {
  const int64_t rank = thread_number();
  if (rank >= visible) return;
  const int32_t row = order[rank];
  int64_t at = rank > 0 ? ends[rank - 1] : 0;
  const int64_t end = ends[rank];
  if (at == end) return;
  const Footprint f = footprint_of(geometry, row, kind, grid);
  int ty, last_row, first, last;
  const Reach reach = reach_of(f);
  for (tile_rows(f, reach, grid.tiles_y, ty, last_row); ty <= last_row; ++ty) {
    if (!tile_span(f, reach, ty, grid.tiles_x, first, last)) continue;
    // Held to the count, should another compilation of the same sums round otherwise.
    for (int tx = first; tx <= last && at < end; ++tx, ++at) {
      tiles[at] = (uint32_t)(ty * grid.tiles_x + tx);
      rows[at] = row;
    }
  }
  for (; at < end; ++at) {
    tiles[at] = (uint32_t)(grid.tiles_x * grid.tiles_y - 1);
    rows[at] = row;
  }
}

// offsets[t] = number of sorted pairs whose tile lies before t.
__global__ void __launch_bounds__(kThreads) write_offsets(const uint32_t* tiles, int64_t pairs, int tile_count,
                                                          int32_t* offsets) {
  const int64_t k = thread_number();
  if (k > pairs) return;
  const int64_t from = k > 0 ? (int64_t)tiles[k - 1] + 1 : 0, to = k < pairs ? (int64_t)tiles[k] : tile_count;
  for (int64_t t = from; t <= to; ++t) offsets[t] = (int32_t)k;
}

int bits_below(int count) {
  int bits = 1;
  while (bits < 31 && count > 1 << bits) ++bits;
  return bits;
}

}  // namespace

extern "C" {

int pb_cuda_bin_count(const float* geometry, int64_t visible, int kind, int width, int height, int32_t* order,
                      int32_t* ends, int32_t* keys, void* scratch, int64_t scratch_bytes, void* stream) {
  uint32_t* const depths = reinterpret_cast<uint32_t*>(keys);
  int32_t* const rows = keys + 2 * visible;
  const unsigned blocks = blocks_for(visible, kThreads);
  int error = launch(depth_keys, blocks, kThreads, 0, stream, geometry, visible, kind, depths, rows);
  if (!error)
    error = sort_pairs(scratch, scratch_bytes, depths, depths + visible, rows, order, visible, 32, stream);
  if (!error)
    error = launch(count_tiles, blocks, kThreads, 0, stream, geometry, visible, kind, grid_of(width, height), order,
                   ends);
  return error ? error : running_sum(scratch, scratch_bytes, ends, ends, visible, stream);
}

int pb_cuda_bin_fill(const float* geometry, int64_t visible, int kind, int width, int height, const int32_t* order,
                     const int32_t* ends, int64_t pairs, int32_t* tile_offsets, int32_t* tile_ids, int32_t* keys,
                     void* scratch, int64_t scratch_bytes, void* stream) {
  const Grid grid = grid_of(width, height);
  const int tile_count = grid.tiles_x * grid.tiles_y;
  uint32_t* const tiles = reinterpret_cast<uint32_t*>(keys);
  uint32_t* const sorted = tiles + pairs;
  int32_t* const rows = keys + 2 * pairs;
  int error = launch(write_pairs, blocks_for(visible, kThreads), kThreads, 0, stream, geometry, visible, kind, grid,
                     order, ends, tiles, rows);
  if (!error && pairs > 0)
    error = sort_pairs(scratch, scratch_bytes, tiles, sorted, rows, tile_ids, pairs, bits_below(tile_count), stream);
  return error ? error
               : launch(write_offsets, blocks_for(pairs + 1, kThreads), kThreads, 0, stream, sorted, pairs, tile_count,
                        tile_offsets);
}

}  // extern "C"

}  // namespace panbench
