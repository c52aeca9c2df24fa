// The pixels of a tile as the 256 threads of a block see them: a warp has 8 x 4 of them, so that it can leave out what
// touches none of these.
#pragma once
#include "device.h"

namespace panbench {

constexpr int kTilePixels = kTile * kTile;
constexpr int kWarps = kTilePixels / 32;
constexpr int kWarpWide = 8, kWarpHigh = 4;  // pixels of a warp

// An image cut into tiles.
struct Frame {
  int width, height, tiles_x;
};

inline Frame frame_of(int width, int height) { return {width, height, (width + kTile - 1) / kTile}; }

inline unsigned tile_count(const Frame& frame) {
  return (unsigned)(frame.tiles_x * ((frame.height + kTile - 1) / kTile));
}

// Tile-local column and row of the pixel of a thread.
__device__ inline int tile_column(int thread) { return thread / 32 % 2 * kWarpWide + thread % kWarpWide; }
__device__ inline int tile_row(int thread) { return thread / 64 * kWarpHigh + thread % 32 / kWarpWide; }

struct TilePixel {
  float x, y;     // centre, tile-local
  float x0, y0;   // the tile's corner
  int64_t index;  // in the image
  bool inside;

  __device__ TilePixel(const Frame& frame, int tile, int thread) {
    const int lx = tile_column(thread), ly = tile_row(thread);
    const int left = tile % frame.tiles_x * kTile, top = tile / frame.tiles_x * kTile;
    x = (float)lx + 0.5f;
    y = (float)ly + 0.5f;
    x0 = (float)left;
    y0 = (float)top;
    inside = left + lx < frame.width && top + ly < frame.height;
    index = (int64_t)(top + ly) * frame.width + left + lx;
  }
};

}  // namespace panbench
