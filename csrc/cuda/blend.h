// What the forward and backward blending kernels share: a block of 256 threads works on one tile, a thread on one pixel
// when weights are formed, and on a rectangle of outputs when they are multiplied.
#pragma once
#include "../splat.h"
#include "matrix.h"

namespace panbench {

constexpr int kTilePixels = kTile * kTile;
// Floats between the rows of two hits: 16 more than the pixels, so that two rows lie in different banks.
constexpr int kPixelRow = kTilePixels + 16;
constexpr int kSmallChannels = 8;  // up to so many channels a thread sums alone

struct BlendInput {
  const float* geometry;        // [M, G]
  const float* features;        // [M, C]
  const int32_t* tile_offsets;  // [T + 1]
  const int32_t* tile_ids;      // [K]
  int width, height, tiles_x, channels;
  float near_plane;
};

inline BlendInput blend_input(const float* geometry, const float* features, const int32_t* tile_offsets,
                              const int32_t* tile_ids, int width, int height, int channels, float near_plane) {
  return {geometry, features, tile_offsets, tile_ids, width, height, (width + kTile - 1) / kTile, channels, near_plane};
}

inline unsigned tile_count(const BlendInput& in) {
  return (unsigned)(in.tiles_x * ((in.height + kTile - 1) / kTile));
}

// The pixel of a thread.
struct TilePixel {
  float x, y;     // centre, tile-local
  float x0, y0;   // the tile's corner
  int64_t index;  // in the image
  bool inside;

  __device__ TilePixel(const BlendInput& in, int tile, int thread) {
    const int lx = thread % kTile, ly = thread / kTile;
    const int left = tile % in.tiles_x * kTile, top = tile / in.tiles_x * kTile;
    x = (float)lx + 0.5f;
    y = (float)ly + 0.5f;
    x0 = (float)left;
    y0 = (float)top;
    inside = left + lx < in.width && top + ly < in.height;
    index = (int64_t)(top + ly) * in.width + left + lx;
  }
};

template <int kind>
__device__ const float* geometry_row(const BlendInput& in, int32_t id) {
  return in.geometry + (int64_t)id * (kind == kDisc ? kDiscGeometry : kEllipsoidGeometry);
}

// Parameters [count, kParams] of the candidates first.. of a tile into shared memory.
template <int kind>
__device__ void load_parameters(const BlendInput& in, int first, int count, const TilePixel& pixel, float* params) {
  const int hit = (int)threadIdx.x;
  if (hit < count)
    tile_parameters(kind, geometry_row<kind>(in, in.tile_ids[first + hit]), pixel.x0, pixel.y0, params + hit * kParams);
}

}  // namespace panbench
