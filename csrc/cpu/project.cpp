// Projection and spherical harmonics over all Gaussians.
#include <cstring>

#include "../sh.h"
#include "pipeline.h"

namespace panbench {
namespace {

constexpr float kReach = 3.34f;  // standard deviations beyond which alpha is below 1/255 for any opacity

// Half-spaces left, right, above and below the image, moved out by some pixels: n . t < -r if a sphere of radius r
// around the camera-space point t lies in one.
struct Frustum {
  Vec3 sides[4];
  Frustum(const View& v, float margin) {
    sides[0] = {v.fx, 0, v.cx + margin};
    sides[1] = {-v.fx, 0, v.width + margin - v.cx};
    sides[2] = {0, v.fy, v.cy + margin};
    sides[3] = {0, -v.fy, v.height + margin - v.cy};
    for (Vec3& n : sides) n = (1.0f / std::sqrt(dot(n, n))) * n;
  }
  bool misses(Vec3 t, float radius) const {
    for (const Vec3& n : sides)
      if (dot(n, t) < -radius) return true;
    return false;
  }
};

// Whether a disc certainly cannot be seen, at a fraction of the cost of projecting it. Never true for one that can.
bool disc_is_aside(const float* mean, const float* log_scale, const View& view, const Frustum& frustum) {
  const Vec3 t = view.rotation * load3(mean) + view.translation;
  const float radius = kReach * expf(std::max(log_scale[0], log_scale[1]));
  // A disc that reaches the camera plane has no bounded place in the image.
  return t.z <= view.near_plane || (t.z > 1.01f * radius && frustum.misses(t, 1.01f * radius));
}

// The same of an ellipsoid, from bounds of the extents that its projection compares with the image.
bool ellipsoid_is_aside(const float* mean, const float* log_scale, const View& view) {
  const Vec3 t = view.rotation * load3(mean) + view.translation;
  if (t.z <= view.near_plane) return true;
  const float inverse = 1.0f / t.z, u = t.x * inverse, v = t.y * inverse;
  const float x = view.fx * u + view.cx, y = view.fy * v + view.cy;
  if (x > 0 && x < view.width && y > 0 && y < view.height) return false;
  // Rows of J R have lengths f / z (1 + u^2)^1/2 with u clamped: at most these.
  const float scale = expf(std::max(std::max(log_scale[0], log_scale[1]), log_scale[2])) * inverse;
  const float a = view.fx * scale, b = view.fy * scale;
  const float half_x = 1.01f * kReach * std::sqrt(a * a * (1 + u * u) + view.low_pass);
  const float half_y = 1.01f * kReach * std::sqrt(b * b * (1 + v * v) + view.low_pass);
  return x + half_x < 0 || x - half_x > view.width || y + half_y < 0 || y - half_y > view.height;
}

struct Visible {
  std::vector<int64_t> ids;
  std::vector<float> geometry, normals;
};

// Work is cut into fixed pieces, so that the order of the visible rows does not depend on the number of threads.
constexpr int64_t kPiece = 4096;

// Calls visit(m) for all visible rows m, ids[m] ascending, and before that clear(first, last) for the pieces of [0, count)
// they lie in: what is cleared is still in the cache when it is written.
template <typename Clear, typename Visit>
void for_pieces(const int64_t* ids, int64_t visible, int64_t count, const Clear& clear, const Visit& visit) {
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t last = std::min(count, first + kPiece);
    clear(first, last);
    const int64_t* const end = ids + visible;
    for (const int64_t* id = std::lower_bound(ids, end, first); id != end && *id < last; ++id) visit(id - ids);
  }
}

void clear_rows(float* rows, int64_t first, int64_t last, int64_t width) {
  std::memset(rows + first * width, 0, (last - first) * width * sizeof(float));
}

}  // namespace

void project(const Gaussians& g, const View& view, int kind, const std::function<VisibleOut(int64_t)>& allocate) {
  const int width = geometry_width(kind);
  const int64_t pieces = (g.count + kPiece - 1) / kPiece;
  // Kept between calls, as fresh pages cost more than the work; one for each caller, filled by all of its threads.
  static thread_local Visible storage;
  Visible& found = storage;
  if ((int64_t)found.ids.size() < g.count) {
    found.ids.resize(g.count);
    found.geometry.resize(g.count * kDiscGeometry);
    found.normals.resize(g.count * 3);
  }
  std::vector<int64_t> offsets(pieces + 1, 0);
  const Frustum frustum(view, 3.0f);  // pixels: more than the reach of the low-pass filter
#pragma omp parallel for schedule(dynamic)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = piece * kPiece, end = std::min(g.count, begin + kPiece);
    int64_t m = begin;
    for (int64_t i = begin; i < end; ++i) {
      float* geometry = &found.geometry[m * width];
      float sign;
      Vec3 normal;
      const float* scale = g.log_scales + i * g.scale_dim;
      if (kind == kEllipsoid) {
        EllipsoidState s;
        if (ellipsoid_is_aside(g.means + 3 * i, scale, view)) continue;
        if (!ellipsoid_state(g.means + 3 * i, g.quats + 4 * i, scale, g.logits[i], view, s, geometry)) continue;
        normal = facing_normal(s.common, view, shortest_axis(scale), sign);
      } else {
        DiscState s;
        if (disc_is_aside(g.means + 3 * i, scale, view, frustum)) continue;
        if (!disc_state(g.means + 3 * i, g.quats + 4 * i, scale, g.logits[i], view, s, geometry)) continue;
        normal = facing_normal(s.common, view, 2, sign);
      }
      found.ids[m] = i;
      store3(&found.normals[m * 3], normal);
      ++m;
    }
    offsets[piece + 1] = m - begin;
  }
  for (int64_t piece = 0; piece < pieces; ++piece) offsets[piece + 1] += offsets[piece];
  const VisibleOut out = allocate(offsets.back());
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t from = piece * kPiece, to = offsets[piece], count = offsets[piece + 1] - to;
    std::copy_n(&found.ids[from], count, out.ids + to);
    std::copy_n(&found.geometry[from * width], count * width, out.geometry + to * width);
    std::copy_n(&found.normals[from * 3], count * 3, out.normals + to * 3);
  }
}

void project_backward(const Gaussians& g, const View& view, int kind, const int64_t* ids, int64_t visible,
                      const float* grad_geometry, const float* grad_normals, float* grad_means, float* grad_quats,
                      float* grad_log_scales, float* grad_logits) {
  const auto backward = kind == kEllipsoid ? ellipsoid_backward : disc_backward;
  const int width = geometry_width(kind);
  const auto clear = [&](int64_t first, int64_t last) {
    clear_rows(grad_means, first, last, 3);
    clear_rows(grad_quats, first, last, 4);
    clear_rows(grad_log_scales, first, last, g.scale_dim);
    clear_rows(grad_logits, first, last, 1);
  };
  for_pieces(ids, visible, g.count, clear, [&](int64_t m) {
    const int64_t i = ids[m];
    backward(g.means + 3 * i, g.quats + 4 * i, g.log_scales + i * g.scale_dim, g.logits[i], view,
             grad_geometry + m * width, load3(grad_normals + 3 * m), grad_means + 3 * i, grad_quats + 4 * i,
             grad_log_scales + i * g.scale_dim, grad_logits + i);
  });
}

void take_rows(const float* from, const int64_t* ids, int64_t count, int64_t width, float* to) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < count; ++m) std::memcpy(to + m * width, from + ids[m] * width, width * sizeof(float));
}

void spread_rows(const float* from, const int64_t* ids, int64_t count, int64_t width, int64_t total, float* to) {
  for_pieces(
      ids, count, total, [&](int64_t first, int64_t last) { clear_rows(to, first, last, width); },
      [&](int64_t m) { std::memcpy(to + ids[m] * width, from + m * width, width * sizeof(float)); });
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
                                  int64_t count, float* grad_dc, float* grad_rest, float* grad_means) {
  const auto clear = [&](int64_t first, int64_t last) {
    clear_rows(grad_dc, first, last, 3);
    clear_rows(grad_rest, first, last, 3 * rest_count);
    clear_rows(grad_means, first, last, 3);
  };
  for_pieces(ids, visible, count, clear, [&](int64_t m) {
    const int64_t i = ids[m];
    const int64_t r = 3 * rest_count * i;
    sh_color_backward(degree, dc + 3 * i, rest + r, means + 3 * i, camera, load3(grad_colors + 3 * m), grad_dc + 3 * i,
                      grad_rest + r, grad_means + 3 * i);
  });
}

}  // namespace panbench
