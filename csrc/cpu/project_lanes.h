// Projection of sixteen Gaussians at once. Included by kernels.cpp, once per instruction set.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace panbench {
namespace {

constexpr float kReach = 3.34f;  // standard deviations beyond which alpha is below 1/255 for any opacity

PB_INLINE Vec3Of<F16> spread(Vec3 v) { return {set1(v.x), set1(v.y), set1(v.z)}; }

PB_INLINE ViewOf<F16> spread(const View& v) {
  const Mat3& r = v.rotation;
  return {{spread(r.r0), spread(r.r1), spread(r.r2)}, spread(v.translation), set1(v.fx),         set1(v.fy),
          set1(v.cx),                                 set1(v.cy),            set1(v.width),      set1(v.height),
          set1(v.near_plane),                         set1(v.low_pass)};
}

// Columns of sixteen rows of an array that starts at `rows`.
PB_INLINE Vec3Of<F16> gather3(const float* rows, const int32_t* index, int stride) {
  return {gather(rows, index, stride), gather(rows + 1, index, stride), gather(rows + 2, index, stride)};
}

// The Gaussians first + index[0..15].
PB_INLINE GaussianOf<F16> gather_gaussians(const Gaussians& g, int64_t first, const int32_t* index) {
  const float *quats = g.quats + 4 * first, *scales = g.log_scales + g.scale_dim * first;
  return {gather3(g.means + 3 * first, index, 3),
          gather(quats, index, 4),
          gather(quats + 1, index, 4),
          gather(quats + 2, index, 4),
          gather(quats + 3, index, 4),
          {gather(scales, index, g.scale_dim), gather(scales + 1, index, g.scale_dim),
           g.scale_dim > 2 ? gather(scales + 2, index, g.scale_dim) : zero()},
          gather(g.logits + first, index, 1)};
}

// Which certainly cannot be seen, at a fraction of the cost of projecting them. Never true for one that can.
template <int kind>
PB_INLINE M16 aside(Vec3Of<F16> mean, F16 log_scale, const ViewOf<F16>& view) {
  const Vec3Of<F16> t = view.rotation * mean + view.translation;
  const F16 inverse = 1 / t.z, u = t.x * inverse, v = t.y * inverse;
  const F16 x = view.fx * u + view.cx, y = view.fy * v + view.cy;
  const F16 radius = (1.01f * kReach) * exp(log_scale);
  F16 half_x, half_y;
  M16 bounded = less(zero(), zero());
  if constexpr (kind == kEllipsoid) {
    // Rows of J R have lengths f / z (1 + u^2)^1/2 with u clamped: at most these.
    const F16 scale = radius * inverse, a = view.fx * scale, b = view.fy * scale;
    const F16 filter = (1.01f * kReach * 1.01f * kReach) * view.low_pass;
    half_x = root(a * a * (1 + u * u) + filter);
    half_y = root(b * b * (1 + v * v) + filter);
    bounded = view.near_plane < t.z;
  } else {
    // A sphere at depth z > r reaches no farther than r / (z - r) (1 + |u|) f from the projection of its centre. Three
    // pixels are more than the reach of the low-pass filter.
    const F16 share = radius / (t.z - radius);
    half_x = 3 + view.fx * share * (1 + magnitude(u));
    half_y = 3 + view.fy * share * (1 + magnitude(v));
    bounded = 1.01f * radius < t.z;
  }
  const M16 outside = (x + half_x < zero()) | (x - half_x > view.width) | (y + half_y < zero()) | (y - half_y > view.height);
  return (t.z <= view.near_plane) | (bounded & outside);
}

constexpr int32_t kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Projects the Gaussians begin..end - 1, at most kProjected of them. Writes ids, geometry and facing normals of the
// visible ones; returns how many they are.
template <int kind>
PB_INLINE int64_t project_piece(const Gaussians& g, const View& camera, int64_t begin, int64_t end, const VisibleOut& out) {
  constexpr int kWidth = kind == kDisc ? kDiscGeometry : kEllipsoidGeometry;
  const ViewOf<F16> view = spread(camera);
  int32_t near[kProjected + 16], index[16];
  int found = 0;
  const int count = (int)(end - begin);
  for (int i = 0; i < count; i += 16) {
    for (int k = 0; k < 16; ++k) index[k] = i + k < count ? i + k : count - 1;
    const float* scales = g.log_scales + begin * g.scale_dim;
    F16 scale = max(gather(scales, index, g.scale_dim), gather(scales + 1, index, g.scale_dim));
    if (kind == kEllipsoid) scale = max(scale, gather(scales + 2, index, g.scale_dim));
    const M16 gone = aside<kind>(gather3(g.means + 3 * begin, index, 3), scale, view);
    const uint32_t there = count - i >= 16 ? 0xffff : (1u << (count - i)) - 1;
    found += append_lanes(~bits(gone) & there, i, near + found);
  }
  int64_t m = 0;
  for (int i = 0; i < found; i += 16) {
    for (int k = 0; k < 16; ++k) index[k] = near[i + k < found ? i + k : found - 1];
    const GaussianOf<F16> in = gather_gaussians(g, begin, index);
    F16 v[16], sign;
    M16 visible;
    if constexpr (kind == kEllipsoid) {
      EllipsoidState<F16> s;
      visible = ellipsoid_state(in, view, s, v);
      const Vec3Of<F16> normal = facing(shortest_axis(s.common.rotation, in.log_scale), s.common, view, sign);
      v[7] = normal.x, v[8] = normal.y, v[9] = normal.z;
      for (int k = 10; k < 16; ++k) v[k] = zero();
    } else {
      DiscState<F16> s;
      visible = disc_state(in, view, s, v);
      const Vec3Of<F16> normal = facing(s.common.rotation.column(2), s.common, view, sign);
      v[13] = normal.x, v[14] = normal.y, v[15] = normal.z;
    }
    transpose(v);
    const uint32_t there = found - i >= 16 ? 0xffff : (1u << (found - i)) - 1;
    for (uint32_t left = bits(visible) & there; left; left &= left - 1, ++m) {
      const int lane = __builtin_ctz(left);
      float row[16];
      store(row, v[lane]);
      std::memcpy(out.geometry + m * kWidth, row, kWidth * sizeof(float));
      std::memcpy(out.normals + m * 3, row + kWidth, 3 * sizeof(float));
      out.ids[m] = begin + index[lane];
    }
  }
  return m;
}

// Gradients of the visible rows first..last - 1, whose ids lie in begin..begin + kProjected - 1.
template <int kind>
PB_INLINE void project_backward_piece(const Gaussians& g, const View& camera, int64_t begin, const int64_t* ids,
                                      int64_t first, int64_t last, const float* grad_geometry, const float* grad_normals,
                                      const GaussianArrays& out) {
  constexpr int kWidth = kind == kDisc ? kDiscGeometry : kEllipsoidGeometry;
  const ViewOf<F16> view = spread(camera);
  for (int64_t m = first; m < last; m += 16) {
    const int live = last - m < 16 ? (int)(last - m) : 16;
    int32_t index[16], row[16];
    for (int k = 0; k < 16; ++k) {
      row[k] = k < live ? k : live - 1;
      index[k] = (int32_t)(ids[m + row[k]] - begin);
    }
    F16 geometry[kWidth];
    for (int k = 0; k < kWidth; ++k) geometry[k] = gather(grad_geometry + m * kWidth + k, row, kWidth);
    const Vec3Of<F16> normal = gather3(grad_normals + 3 * m, row, 3);
    const GaussianOf<F16> in = gather_gaussians(g, begin, index);
    GaussianGradients<F16> grad;
    if constexpr (kind == kEllipsoid) {
      grad = ellipsoid_backward(in, view, geometry, normal);
    } else {
      grad = disc_backward(in, view, geometry, normal);
    }
    F16 v[16] = {grad.mean.x,      grad.mean.y,      grad.mean.z,      grad.w, grad.x, grad.y, grad.z, grad.log_scale.x,
                 grad.log_scale.y, grad.log_scale.z, grad.logit,       zero(), zero(), zero(), zero(), zero()};
    transpose(v);
    for (int k = 0; k < live; ++k) {
      float values[16];
      store(values, v[k]);
      const int64_t i = begin + index[k];
      std::memcpy(out.means + 3 * i, values, 3 * sizeof(float));
      std::memcpy(out.quats + 4 * i, values + 3, 4 * sizeof(float));
      std::memcpy(out.log_scales + g.scale_dim * i, values + 7, g.scale_dim * sizeof(float));
      out.logits[i] = values[10];
    }
  }
}

int64_t project(const Gaussians& g, const View& view, int kind, int64_t begin, int64_t end, const VisibleOut& out) {
  return kind == kEllipsoid ? project_piece<kEllipsoid>(g, view, begin, end, out)
                            : project_piece<kDisc>(g, view, begin, end, out);
}

void project_backward(const Gaussians& g, const View& view, int kind, int64_t begin, const int64_t* ids, int64_t first,
                      int64_t last, const float* grad_geometry, const float* grad_normals, const GaussianArrays& out) {
  const auto piece = kind == kEllipsoid ? project_backward_piece<kEllipsoid> : project_backward_piece<kDisc>;
  piece(g, view, begin, ids, first, last, grad_geometry, grad_normals, out);
}

}  // namespace
}  // namespace panbench
