// Projection and spherical harmonics over all Gaussians.
#include "../sh.h"
#include "pipeline.h"

namespace panbench {
namespace {

// Work is cut into fixed pieces, so that the order of the visible rows does not depend on the number of threads.
constexpr int64_t kPiece = 4096;

}  // namespace

Visible project(const Gaussians& g, const View& view, int kind) {
  const int width = geometry_width(kind);
  const int64_t pieces = (g.count + kPiece - 1) / kPiece;
  std::vector<Visible> parts(pieces);
#pragma omp parallel for schedule(dynamic)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    Visible& part = parts[piece];
    const int64_t end = std::min(g.count, (piece + 1) * kPiece);
    for (int64_t i = piece * kPiece; i < end; ++i) {
      float geometry[kDiscGeometry];
      float sign;
      Vec3 normal;
      const float* scale = g.log_scales + i * g.scale_dim;
      if (kind == kEllipsoid) {
        EllipsoidState s;
        if (!ellipsoid_state(g.means + 3 * i, g.quats + 4 * i, scale, g.logits[i], view, s, geometry)) continue;
        normal = facing_normal(s.common, view, shortest_axis(scale), sign);
      } else {
        DiscState s;
        if (!disc_state(g.means + 3 * i, g.quats + 4 * i, scale, g.logits[i], view, s, geometry)) continue;
        normal = facing_normal(s.common, view, 2, sign);
      }
      part.ids.push_back(i);
      part.geometry.insert(part.geometry.end(), geometry, geometry + width);
      part.normals.insert(part.normals.end(), {normal.x, normal.y, normal.z});
    }
  }
  Visible all;
  for (const Visible& part : parts) {
    all.ids.insert(all.ids.end(), part.ids.begin(), part.ids.end());
    all.geometry.insert(all.geometry.end(), part.geometry.begin(), part.geometry.end());
    all.normals.insert(all.normals.end(), part.normals.begin(), part.normals.end());
  }
  return all;
}

void project_backward(const Gaussians& g, const View& view, int kind, const int64_t* ids, int64_t visible,
                      const float* grad_geometry, const float* grad_normals, float* grad_means, float* grad_quats,
                      float* grad_log_scales, float* grad_logits) {
  const auto backward = kind == kEllipsoid ? ellipsoid_backward : disc_backward;
  const int width = geometry_width(kind);
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) {
    const int64_t i = ids[m];
    backward(g.means + 3 * i, g.quats + 4 * i, g.log_scales + i * g.scale_dim, g.logits[i], view,
             grad_geometry + m * width, load3(grad_normals + 3 * m), grad_means + 3 * i, grad_quats + 4 * i,
             grad_log_scales + i * g.scale_dim, grad_logits + i);
  }
}

void spherical_harmonics(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                         const float* rest, const float* means, Vec3 camera, float* colors) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) {
    const int64_t i = ids[m];
    store3(colors + 3 * m, sh_color(degree, dc + 3 * i, rest + 3 * rest_count * i, means + 3 * i, camera));
  }
}

void spherical_harmonics_backward(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                                  const float* rest, const float* means, Vec3 camera, const float* grad_colors,
                                  float* grad_dc, float* grad_rest, float* grad_means) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) {
    const int64_t i = ids[m], r = 3 * rest_count * i;
    sh_color_backward(degree, dc + 3 * i, rest + r, means + 3 * i, camera, load3(grad_colors + 3 * m), grad_dc + 3 * i,
                      grad_rest + r, grad_means + 3 * i);
  }
}

}  // namespace panbench
