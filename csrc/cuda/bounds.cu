// Bounds of Gaussians, once for all tiles: they take float64.
#include "../footprint.h"
#include "blend.h"

namespace panbench {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) gaussian_bounds(const float* geometry, int64_t visible, int kind,
                                                            int tiles_x, int tiles_y, float* bounds) {
  const int64_t m = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (m >= visible) return;
  const Footprint f = footprint(geometry + m * geometry_width(kind), kind, tiles_x, tiles_y);
  // A conic that rounding has spoilt has no ellipse: every pixel has to look.
  const float r2 = f.a > 0.0f && f.c > 0.0f ? f.r2 : 1e30f;
  const float row[kBounds] = {f.x, f.y, f.slope_x, f.slope_y, f.a, f.b, f.c, r2, f.cx, f.cy, 0.0f, 0.0f};
  for (int k = 0; k < kBounds; ++k) bounds[m * kBounds + k] = row[k];
}

}  // namespace

int write_bounds(const float* geometry, int64_t visible, int kind, const Frame& frame, float* bounds, void* stream) {
  return launch(gaussian_bounds, blocks_for(visible, kThreads), kThreads, 0, stream, geometry, visible, kind,
                frame.tiles_x, (frame.height + kTile - 1) / kTile, bounds);
}

}  // namespace panbench
