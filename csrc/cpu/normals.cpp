// Normals of depth maps, and how far normals differ.
#include <cmath>
#include <cstring>

#include "pipeline.h"

namespace panbench {
namespace {

// The two chords whose cross product is the normal of the pixel (x, y).
struct Chords {
  bool known;  // all four depths are
  Vec3 across, down, normal;
  float length;
};

struct Rays {
  const DepthMap& d;
  Vec3 at(int64_t x, int64_t y) const { return {((float)x + 0.5f - d.cx) / d.fx, ((float)y + 0.5f - d.cy) / d.fy, 1}; }
  Vec3 point(int64_t x, int64_t y) const { return d.depth[y * d.width + x] * at(x, y); }
  bool inside(int64_t x, int64_t y) const {
    return x >= d.step && x < d.width - d.step && y >= d.step && y < d.height - d.step;
  }
  Chords chords(int64_t x, int64_t y) const {
    const int64_t k = d.step;
    const float* here = d.depth + y * d.width + x;
    Chords c;
    c.known = here[-k] > 0 && here[k] > 0 && here[-k * d.width] > 0 && here[k * d.width] > 0;
    if (!c.known) return c;
    c.across = point(x + k, y) - point(x - k, y);
    c.down = point(x, y + k) - point(x, y - k);
    c.normal = cross(c.down, c.across);
    c.length = std::sqrt(dot(c.normal, c.normal) + 1e-20f);
    c.normal = (1.0f / c.length) * c.normal;
    return c;
  }
};

}  // namespace

void depth_normals(const DepthMap& map, float* normals) {
  const Rays rays{map};
#pragma omp parallel for schedule(static)
  for (int64_t y = 0; y < map.height; ++y) {
    float* row = normals + y * map.width * 3;
    std::memset(row, 0, map.width * 3 * sizeof(float));
    for (int64_t x = map.step; x < map.width - map.step && rays.inside(x, y); ++x) {
      const Chords c = rays.chords(x, y);
      if (c.known) store3(row + 3 * x, c.normal);
    }
  }
}

void depth_normals_backward(const DepthMap& map, const float* grad_normals, float* grad_depth) {
  const Rays rays{map};
  const int64_t k = map.step;
  // Of every normal, the gradients of its four depths; each depth then gathers its own.
  std::vector<float> parts(map.height * map.width * 4, 0.0f);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t y = k; y < map.height - k; ++y)
      for (int64_t x = k; x < map.width - k; ++x) {
        const Chords c = rays.chords(x, y);
        if (!c.known) continue;
        const Vec3 g = load3(grad_normals + (y * map.width + x) * 3);
        const Vec3 raw = (1.0f / c.length) * (g - dot(c.normal, g) * c.normal);
        const Vec3 g_down = cross(c.across, raw), g_across = cross(raw, c.down);
        float* part = &parts[(y * map.width + x) * 4];
        part[0] = dot(rays.at(x + k, y), g_across);
        part[1] = -dot(rays.at(x - k, y), g_across);
        part[2] = dot(rays.at(x, y + k), g_down);
        part[3] = -dot(rays.at(x, y - k), g_down);
      }
#pragma omp for schedule(static)
    for (int64_t y = 0; y < map.height; ++y)
      for (int64_t x = 0; x < map.width; ++x) {
        const int64_t at = (y * map.width + x) * 4;
        float sum = 0;
        if (rays.inside(x - k, y)) sum += parts[at - 4 * k];
        if (rays.inside(x + k, y)) sum += parts[at + 4 * k + 1];
        if (rays.inside(x, y - k)) sum += parts[at - 4 * k * map.width + 2];
        if (rays.inside(x, y + k)) sum += parts[at + 4 * k * map.width + 3];
        grad_depth[y * map.width + x] = sum;
      }
  }
}

double normal_loss(const NormalMaps& maps, int64_t* known) {
  std::vector<double> sums(maps.height, 0.0);  // by rows, so that they do not depend on the number of threads
  std::vector<int64_t> counts(maps.height, 0);
#pragma omp parallel for schedule(static)
  for (int64_t y = 0; y < maps.height; ++y)
    for (int64_t p = y * maps.width; p < (y + 1) * maps.width; ++p) {
      const Vec3 r = load3(maps.reference + 3 * p);
      if (!(dot(r, r) > 0.5f)) continue;
      sums[y] += 1.0f - dot(load3(maps.normals + maps.stride * p), r);
      ++counts[y];
    }
  double sum = 0;
  *known = 0;
  for (int64_t y = 0; y < maps.height; ++y) {
    sum += sums[y];
    *known += counts[y];
  }
  return sum / std::max<int64_t>(*known, 1);
}

void normal_loss_backward(const NormalMaps& maps, int64_t known, float upstream, float* grad_normals,
                          float* grad_reference) {
  const float scale = -upstream / std::max<int64_t>(known, 1);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < maps.height * maps.width; ++p) {
    const Vec3 r = load3(maps.reference + 3 * p);
    const float s = dot(r, r) > 0.5f ? scale : 0.0f;
    store3(grad_normals + 3 * p, s * r);
    store3(grad_reference + 3 * p, s * load3(maps.normals + maps.stride * p));
  }
}

}  // namespace panbench
