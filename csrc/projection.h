// One Gaussian onto one pinhole image, forward and backward: ellipsoids by the affine approximation of EWA splatting,
// discs as the 3x3 map from their plane to the image (2DGS). Shared by the CPU and CUDA back ends.
#pragma once
#include <cmath>
#include <cstdint>

#include "hd.h"

namespace panbench {

template <class R>
struct ViewOf {
  Mat3Of<R> rotation;  // world to camera
  Vec3Of<R> translation;
  R fx, fy, cx, cy;
  R width, height;
  R near_plane;
  R low_pass;  // added to both diagonal entries of the 2D covariance of ellipsoids, px^2
};
using View = ViewOf<float>;

// One Gaussian's parameters, or one for each lane.
template <class R>
struct GaussianOf {
  Vec3Of<R> mean;
  R w, x, y, z;         // quaternion
  Vec3Of<R> log_scale;  // of discs only the first two
  R logit;
};
template <class R>
using GaussianGradients = GaussianOf<R>;

// Rotation matrix of the unit quaternion (w, x, y, z).
template <class R>
PB_HD Mat3Of<R> rotation_of(R w, R x, R y, R z) {
  return {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
          {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
          {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
}

// Gradient of the quaternion from the gradient g of its rotation matrix, through the normalisation q / |q|.
template <class R>
PB_HD void rotation_backward(const GaussianOf<R>& in, const Mat3Of<R>& g, GaussianGradients<R>& out) {
  const R inv = 1 / root(in.w * in.w + in.x * in.x + in.y * in.y + in.z * in.z);
  const R w = in.w * inv, x = in.x * inv, y = in.y * inv, z = in.z * inv;
  const R gw = 2 * (x * (g.r2.y - g.r1.z) + y * (g.r0.z - g.r2.x) + z * (g.r1.x - g.r0.y));
  const R gx = 2 * (-2 * x * (g.r1.y + g.r2.z) + y * (g.r0.y + g.r1.x) + z * (g.r0.z + g.r2.x) + w * (g.r2.y - g.r1.z));
  const R gy = 2 * (x * (g.r0.y + g.r1.x) - 2 * y * (g.r0.x + g.r2.z) + z * (g.r1.z + g.r2.y) + w * (g.r0.z - g.r2.x));
  const R gz = 2 * (x * (g.r0.z + g.r2.x) + y * (g.r1.z + g.r2.y) - 2 * z * (g.r0.x + g.r1.y) + w * (g.r1.x - g.r0.y));
  const R along = w * gw + x * gx + y * gy + z * gz;
  out.w = (gw - w * along) * inv;
  out.x = (gx - x * along) * inv;
  out.y = (gy - y * along) * inv;
  out.z = (gz - z * along) * inv;
}

// What every primitive needs first. Returns whether the Gaussian can be seen and has finite parameters; where it is not,
// what follows from it is without meaning.
template <class R>
struct CommonOf {
  Vec3Of<R> camera_point;
  Mat3Of<R> rotation;
  R opacity;
  R cut2;  // squared Mahalanobis distance beyond which alpha < 1/255
};

template <class R>
PB_HD auto common_forward(const GaussianOf<R>& in, const ViewOf<R>& view, CommonOf<R>& out) {
  out.camera_point = view.rotation * in.mean + view.translation;
  const Vec3Of<R> t = out.camera_point;
  out.opacity = 1 / (1 + exponential(-in.logit));
  out.cut2 = 2 * logarithm(255 * out.opacity);
  const R norm2 = in.w * in.w + in.x * in.x + in.y * in.y + in.z * in.z;
  const R inv = 1 / root(norm2);
  out.rotation = rotation_of<R>(in.w * inv, in.x * inv, in.y * inv, in.z * inv);
  return (t.z > view.near_plane) & (t.z < 1e10f) & (magnitude(t.x) < 1e10f) & (magnitude(t.y) < 1e10f) &
         (magnitude(in.logit) < 1e30f) & (out.opacity >= kAlphaMin) & (norm2 > 0) & (norm2 < 1e30f);
}

// Unit normal in camera axes, turned towards the camera, from one in the axes of the world, with the sign used.
template <class R>
PB_HD Vec3Of<R> facing(Vec3Of<R> axis, const CommonOf<R>& common, const ViewOf<R>& view, R& sign) {
  const Vec3Of<R> normal = view.rotation * axis;
  sign = select(dot(normal, common.camera_point) > 0, R{} - 1, R{} + 1);
  return sign * normal;
}

// Of three columns the one along the shortest axis.
template <class R>
PB_HD Vec3Of<R> shortest_axis(const Mat3Of<R>& rotation, Vec3Of<R> log_scale) {
  const auto second = log_scale.y < log_scale.x;
  const auto third = log_scale.z < smaller(log_scale.x, log_scale.y);
  return select(third, rotation.column(2), select(second, rotation.column(1), rotation.column(0)));
}

// ---------------------------------------------------------------------------------------------------- ellipsoids

template <class R>
struct EllipsoidState {
  CommonOf<R> common;
  Vec3Of<R> scale;
  R u, v;            // unclamped normalised image coordinates
  R uc, vc;          // clamped ones, used in the Jacobian only
  Vec3Of<R> a0, a1;  // rows of A = J R_view
  Vec3Of<R> p0, p1;  // rows of A R_q
  Vec3Of<R> b0, b1;  // rows of B = A R_q diag(s); covariance = B B^T + low_pass
  R conic_a, conic_b, conic_c;
};

// geometry [7]. Returns whether it is visible; where it is not, what is written is without meaning.
template <class R>
PB_HD auto ellipsoid_state(const GaussianOf<R>& in, const ViewOf<R>& view, EllipsoidState<R>& s, R* geometry) {
  const auto exists = common_forward(in, view, s.common);
  const Vec3Of<R> t = s.common.camera_point;
  s.scale = {exponential(in.log_scale.x), exponential(in.log_scale.y), exponential(in.log_scale.z)};
  const R inv_z = 1 / t.z;
  s.u = t.x * inv_z;
  s.v = t.y * inv_z;
  const R margin_x = 0.15f * view.width / view.fx, margin_y = 0.15f * view.height / view.fy;
  s.uc = smaller(larger(s.u, -(view.cx / view.fx + margin_x)), (view.width - view.cx) / view.fx + margin_x);
  s.vc = smaller(larger(s.v, -(view.cy / view.fy + margin_y)), (view.height - view.cy) / view.fy + margin_y);
  const Mat3Of<R>& r = view.rotation;
  s.a0 = inv_z * (view.fx * (r.r0 - s.uc * r.r2));
  s.a1 = inv_z * (view.fy * (r.r1 - s.vc * r.r2));
  s.p0 = transposed_times(s.common.rotation, s.a0);
  s.p1 = transposed_times(s.common.rotation, s.a1);
  s.b0 = times(s.p0, s.scale);
  s.b1 = times(s.p1, s.scale);
  const R xx = dot(s.b0, s.b0) + view.low_pass, yy = dot(s.b1, s.b1) + view.low_pass, xy = dot(s.b0, s.b1);
  // det(B B^T + low_pass I) by Lagrange's identity: no difference of large numbers, so needles keep their digits.
  const Vec3Of<R> area = cross(s.b0, s.b1);
  const R det = dot(area, area) + view.low_pass * (xx + yy - view.low_pass);
  const R mean_x = view.fx * s.u + view.cx, mean_y = view.fy * s.v + view.cy;
  const R half_x = root(s.common.cut2 * xx), half_y = root(s.common.cut2 * yy);
  const R inv_det = 1 / det;
  s.conic_a = yy * inv_det;
  s.conic_b = -xy * inv_det;
  s.conic_c = xx * inv_det;
  geometry[0] = mean_x;
  geometry[1] = mean_y;
  geometry[2] = s.conic_a;
  geometry[3] = s.conic_b;
  geometry[4] = s.conic_c;
  geometry[5] = s.common.opacity;
  geometry[6] = t.z;
  return exists & (magnitude(in.log_scale.x) < 1e30f) & (magnitude(in.log_scale.y) < 1e30f) &
         (magnitude(in.log_scale.z) < 1e30f) & (det > 0) & (det < 1e30f) & (mean_x + half_x > 0) &
         (mean_x - half_x < view.width) & (mean_y + half_y > 0) & (mean_y - half_y < view.height);
}

// Gradients of a visible ellipsoid from those of its geometry g [7] and its normal.
template <class R>
PB_HD GaussianGradients<R> ellipsoid_backward(const GaussianOf<R>& in, const ViewOf<R>& view, const R* g,
                                              Vec3Of<R> grad_normal) {
  EllipsoidState<R> s;
  R geometry[kEllipsoidGeometry];
  ellipsoid_state(in, view, s, geometry);
  const Vec3Of<R> t = s.common.camera_point;
  const R a = s.conic_a, b = s.conic_b, c = s.conic_c;
  // G_B = -2 Q G_Q (Q B), with G_Q = [g_a, g_b/2; g_b/2, g_c] and Q B = adj(C) B / det written without differences of
  // large numbers.
  const Vec3Of<R> area = cross(s.b0, s.b1);
  const R inv_det = 1 / (dot(area, area) + view.low_pass * (dot(s.b0, s.b0) + dot(s.b1, s.b1) + view.low_pass));
  const Vec3Of<R> y0 = inv_det * (cross(s.b1, area) + view.low_pass * s.b0);
  const Vec3Of<R> y1 = inv_det * (cross(area, s.b0) + view.low_pass * s.b1);
  const R qa = -2 * g[2], qb = -g[3], qc = -2 * g[4];
  const Vec3Of<R> w0 = qa * y0 + qb * y1, w1 = qb * y0 + qc * y1;
  const Vec3Of<R> gb0 = a * w0 + b * w1, gb1 = b * w0 + c * w1;
  // B = A M, M = R_q diag(s).
  const Vec3Of<R> mb0 = times(gb0, s.scale), mb1 = times(gb1, s.scale);
  const Vec3Of<R> ga0 = s.common.rotation * mb0, ga1 = s.common.rotation * mb1;
  Mat3Of<R> gr = {s.a0.x * mb0 + s.a1.x * mb1, s.a0.y * mb0 + s.a1.y * mb1, s.a0.z * mb0 + s.a1.z * mb1};
  GaussianGradients<R> out;
  out.log_scale = times(s.scale, times(gb0, s.p0) + times(gb1, s.p1));
  R sign;
  facing(shortest_axis(s.common.rotation, in.log_scale), s.common, view, sign);
  const Vec3Of<R> gn = sign * transposed_times(view.rotation, grad_normal);
  const auto second = in.log_scale.y < in.log_scale.x;
  const auto third = in.log_scale.z < smaller(in.log_scale.x, in.log_scale.y);
  const Vec3Of<R> none = {R{}, R{}, R{}};
  const Vec3Of<R> g2 = select(third, gn, none), other = gn - g2, g1 = select(second, other, none), g0 = other - g1;
  gr.r0 = gr.r0 + Vec3Of<R>{g0.x, g1.x, g2.x};
  gr.r1 = gr.r1 + Vec3Of<R>{g0.y, g1.y, g2.y};
  gr.r2 = gr.r2 + Vec3Of<R>{g0.z, g1.z, g2.z};
  rotation_backward(in, gr, out);
  // A = J R_view: rows of J are (fx/z) (1, 0, -uc) and (fy/z) (0, 1, -vc).
  const Vec3Of<R> j0 = view.rotation * ga0, j1 = view.rotation * ga1;
  const R inv_z = 1 / t.z, inv_z2 = inv_z * inv_z;
  const R one = R{} + 1, in_x = select((s.u <= s.uc) & (s.u >= s.uc), one, R{});
  const R in_y = select((s.v <= s.vc) & (s.v >= s.vc), one, R{});
  Vec3Of<R> gt;
  gt.x = view.fx * inv_z * g[0] - in_x * view.fx * inv_z2 * j0.z;
  gt.y = view.fy * inv_z * g[1] - in_y * view.fy * inv_z2 * j1.z;
  gt.z = g[6] - (view.fx * s.u * g[0] + view.fy * s.v * g[1]) * inv_z - (view.fx * j0.x + view.fy * j1.y) * inv_z2 +
         view.fx * inv_z2 * j0.z * (s.uc + in_x * s.u) + view.fy * inv_z2 * j1.z * (s.vc + in_y * s.v);
  out.mean = transposed_times(view.rotation, gt);
  out.logit = g[5] * s.common.opacity * (1 - s.common.opacity);
  return out;
}

// --------------------------------------------------------------------------------------------------------- discs

// Screen ellipse of the disc cut at squared radius cut2: centre and covariance-like matrix with
// {p : (p - c)^T S^-1 (p - c) <= 1}. False, and nothing of meaning, if the cut disc reaches the camera plane. (px, py):
// the projected centre, (M_u, M_v)_z / M_w_z; relative to it no large numbers cancel.
template <class R>
PB_HD auto disc_ellipse(Vec3Of<R> mu, Vec3Of<R> mv, Vec3Of<R> mw, R cut2, R& cx, R& cy, R& xx, R& xy, R& yy) {
  const R inv_z = 1 / mw.z, px = mu.z * inv_z, py = mv.z * inv_z;
  const R ux = mu.x - px * mw.x, uy = mu.y - px * mw.y, vx = mv.x - py * mw.x, vy = mv.y - py * mw.y;
  const R d = cut2 * (mw.x * mw.x + mw.y * mw.y) - mw.z * mw.z;
  const R f = cut2 / d;
  const R x = f * (ux * mw.x + uy * mw.y), y = f * (vx * mw.x + vy * mw.y);
  cx = px + x;
  cy = py + y;
  xx = x * x - f * (ux * ux + uy * uy);
  yy = y * y - f * (vx * vx + vy * vy);
  xy = x * y - f * (ux * vx + uy * vy);
  return d < 0;
}

template <class R>
struct DiscState {
  CommonOf<R> common;
  R s0, s1;
  Vec3Of<R> axis0, axis1;  // camera axes
  Vec3Of<R> mu, mv, mw;
  R cx, cy;
  decltype(R{} < R{}) in_front;  // the 3-sigma disc lies in front of the camera
};

// geometry [13]. Returns whether it is visible; where it is not, what is written is without meaning.
template <class R>
PB_HD auto disc_state(const GaussianOf<R>& in, const ViewOf<R>& view, DiscState<R>& s, R* geometry) {
  const auto exists = common_forward(in, view, s.common);
  const Vec3Of<R> t = s.common.camera_point;
  s.s0 = exponential(in.log_scale.x);
  s.s1 = exponential(in.log_scale.y);
  s.axis0 = view.rotation * s.common.rotation.column(0);
  s.axis1 = view.rotation * s.common.rotation.column(1);
  const Vec3Of<R> h0 = {s.s0 * s.axis0.x, s.s1 * s.axis1.x, t.x};
  const Vec3Of<R> h1 = {s.s0 * s.axis0.y, s.s1 * s.axis1.y, t.y};
  s.mw = {s.s0 * s.axis0.z, s.s1 * s.axis1.z, t.z};
  s.mu = view.fx * h0 + view.cx * s.mw;
  s.mv = view.fy * h1 + view.cy * s.mw;
  R xx, xy, yy, bx, by;
  s.in_front = disc_ellipse<R>(s.mu, s.mv, s.mw, R{} + kDiscCut * kDiscCut, s.cx, s.cy, xx, xy, yy);
  s.cx = select(s.in_front, s.cx, s.mu.z / s.mw.z);
  s.cy = select(s.in_front, s.cy, s.mv.z / s.mw.z);
  const auto bounded = disc_ellipse<R>(s.mu, s.mv, s.mw, s.common.cut2, bx, by, xx, xy, yy);
  const R r = kLowPass * root(s.common.cut2), half_x = root(larger(xx, R{})), half_y = root(larger(yy, R{}));
  const auto hits = (larger(bx + half_x, s.cx + r) > 0) & (smaller(bx - half_x, s.cx - r) < view.width) &
                    (larger(by + half_y, s.cy + r) > 0) & (smaller(by - half_y, s.cy - r) < view.height);
  geometry[0] = s.mu.x, geometry[1] = s.mu.y, geometry[2] = s.mu.z;
  geometry[3] = s.mv.x, geometry[4] = s.mv.y, geometry[5] = s.mv.z;
  geometry[6] = s.mw.x, geometry[7] = s.mw.y, geometry[8] = s.mw.z;
  geometry[9] = s.cx;
  geometry[10] = s.cy;
  geometry[11] = s.common.opacity;
  geometry[12] = t.z;
  return and_not(exists & (magnitude(in.log_scale.x) < 1e30f) & (magnitude(in.log_scale.y) < 1e30f) & (s.s0 < 1e10f) &
                     (s.s1 < 1e10f),
                 and_not(bounded, hits));
}

// Gradients of a visible disc from those of its geometry g [13] and its normal.
template <class R>
PB_HD GaussianGradients<R> disc_backward(const GaussianOf<R>& in, const ViewOf<R>& view, const R* g,
                                         Vec3Of<R> grad_normal) {
  DiscState<R> s;
  R geometry[kDiscGeometry];
  disc_state(in, view, s, geometry);
  Vec3Of<R> gu = {g[0], g[1], g[2]}, gv = {g[3], g[4], g[5]}, gw = {g[6], g[7], g[8]};
  // The screen centre is that of the ellipse of the 3-sigma disc, and the projected centre where that has none.
  const R gcx = g[9], gcy = g[10], k2 = R{} + kDiscCut * kDiscCut, inv = 1 / s.mw.z;
  const R d = k2 * (s.mw.x * s.mw.x + s.mw.y * s.mw.y) - s.mw.z * s.mw.z;
  const Vec3Of<R> none = {R{}, R{}, R{}};
  const Vec3Of<R> f = select(s.in_front, Vec3Of<R>{k2 / d, k2 / d, -1 / d}, none), fw = times(f, s.mw);
  const Vec3Of<R> mix = gcx * s.mu + gcy * s.mv;
  const R pull = gcx * s.cx + gcy * s.cy;
  const R behind = select(s.in_front, R{}, inv);  // factor where the second case holds
  gu = gu + gcx * fw;
  gv = gv + gcy * fw;
  gw = gw + times(f, mix) - (2 * pull) * fw;
  gu.z = gu.z + gcx * behind;
  gv.z = gv.z + gcy * behind;
  gw.z = gw.z - pull * behind;
  // M_u = fx H_0 + cx H_2, M_v = fy H_1 + cy H_2, M_w = H_2; columns of H are s_0 R r_0, s_1 R r_1, t.
  const Vec3Of<R> h0 = view.fx * gu, h1 = view.fy * gv, h2 = view.cx * gu + view.cy * gv + gw;
  const Vec3Of<R> col0 = {h0.x, h1.x, h2.x}, col1 = {h0.y, h1.y, h2.y}, col2 = {h0.z, h1.z, h2.z + g[12]};
  GaussianGradients<R> out;
  out.mean = transposed_times(view.rotation, col2);
  out.log_scale = {s.s0 * dot(col0, s.axis0), s.s1 * dot(col1, s.axis1), R{}};
  const Vec3Of<R> g0 = s.s0 * transposed_times(view.rotation, col0), g1 = s.s1 * transposed_times(view.rotation, col1);
  R sign;
  facing(s.common.rotation.column(2), s.common, view, sign);
  const Vec3Of<R> g2 = sign * transposed_times(view.rotation, grad_normal);
  rotation_backward(in, Mat3Of<R>{{g0.x, g1.x, g2.x}, {g0.y, g1.y, g2.y}, {g0.z, g1.z, g2.z}}, out);
  out.logit = g[11] * s.common.opacity * (1 - s.common.opacity);
  return out;
}

}  // namespace panbench
