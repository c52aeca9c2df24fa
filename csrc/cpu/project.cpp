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

namespace {

struct Direction {
  Vec3 unit;
  float inverse_length;
};

inline Direction direction(const float* mean, Vec3 camera) {
  const Vec3 offset = load3(mean) - camera;
  const float inverse = 1.0f / std::sqrt(std::max(dot(offset, offset), 1e-20f));
  return {inverse * offset, inverse};
}

}  // namespace

void spherical_harmonics(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                         const float* rest, const float* means, Vec3 camera, float* colors) {
  const int used = (degree + 1) * (degree + 1);
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) {
    const int64_t i = ids[m];
    float y[16];
    sh_basis(degree, direction(means + 3 * i, camera).unit, y);
    Vec3 c = Vec3{0.5f, 0.5f, 0.5f} + y[0] * load3(dc + 3 * i);
    for (int k = 1; k < used; ++k) c = c + y[k] * load3(rest + (i * rest_count + k - 1) * 3);
    store3(colors + 3 * m, {std::max(c.x, 0.0f), std::max(c.y, 0.0f), std::max(c.z, 0.0f)});
  }
}

void spherical_harmonics_backward(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                                  const float* rest, const float* means, Vec3 camera, const float* grad_colors,
                                  float* grad_dc, float* grad_rest, float* grad_means) {
  const int used = (degree + 1) * (degree + 1);
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) {
    const int64_t i = ids[m];
    const Direction d = direction(means + 3 * i, camera);
    float y[16], h[16];
    sh_basis(degree, d.unit, y);
    Vec3 c = Vec3{0.5f, 0.5f, 0.5f} + y[0] * load3(dc + 3 * i);
    for (int k = 1; k < used; ++k) c = c + y[k] * load3(rest + (i * rest_count + k - 1) * 3);
    Vec3 g = load3(grad_colors + 3 * m);
    g = {c.x > 0 ? g.x : 0.0f, c.y > 0 ? g.y : 0.0f, c.z > 0 ? g.z : 0.0f};
    store3(grad_dc + 3 * i, y[0] * g);
    for (int k = 1; k < used; ++k) {
      h[k] = dot(load3(rest + (i * rest_count + k - 1) * 3), g);
      store3(grad_rest + (i * rest_count + k - 1) * 3, y[k] * g);
    }
    const Vec3 gd = sh_basis_gradient(degree, d.unit, h);
    store3(grad_means + 3 * i, d.inverse_length * (gd - dot(d.unit, gd) * d.unit));
  }
}

}  // namespace panbench
