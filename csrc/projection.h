// One Gaussian onto one pinhole image, forward and backward: ellipsoids by the affine approximation of EWA splatting,
// discs as the 3x3 map from their plane to the image (2DGS). Shared by the CPU and CUDA back ends.
#pragma once
#include <cmath>

#include "hd.h"

namespace panbench {

struct View {
  Mat3 rotation;  // world to camera
  Vec3 translation;
  float fx, fy, cx, cy;
  float width, height;
  float near_plane;
  float low_pass;  // added to both diagonal entries of the 2D covariance of ellipsoids, px^2
};

PB_HD float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Columns of the rotation matrix of the unit quaternion (w, x, y, z).
PB_HD Mat3 rotation_of(float w, float x, float y, float z) {
  return {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
          {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
          {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
}

// Gradient of the quaternion from the gradient g of its rotation matrix, through the normalisation q / |q|.
PB_HD void rotation_backward(const float* quat, const Mat3& g, float* grad_quat) {
  const float norm2 = quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3];
  const float inv = 1.0f / sqrtf(norm2);
  const float w = quat[0] * inv, x = quat[1] * inv, y = quat[2] * inv, z = quat[3] * inv;
  const float gw = 2 * (x * (g.r2.y - g.r1.z) + y * (g.r0.z - g.r2.x) + z * (g.r1.x - g.r0.y));
  const float gx = 2 * (-2 * x * (g.r1.y + g.r2.z) + y * (g.r0.y + g.r1.x) + z * (g.r0.z + g.r2.x) +
                        w * (g.r2.y - g.r1.z));
  const float gy = 2 * (x * (g.r0.y + g.r1.x) - 2 * y * (g.r0.x + g.r2.z) + z * (g.r1.z + g.r2.y) +
                        w * (g.r0.z - g.r2.x));
  const float gz = 2 * (x * (g.r0.z + g.r2.x) + y * (g.r1.z + g.r2.y) - 2 * z * (g.r0.x + g.r1.y) +
                        w * (g.r1.x - g.r0.y));
  const float along = w * gw + x * gx + y * gy + z * gz;
  grad_quat[0] = (gw - w * along) * inv;
  grad_quat[1] = (gx - x * along) * inv;
  grad_quat[2] = (gy - y * along) * inv;
  grad_quat[3] = (gz - z * along) * inv;
}

// What every primitive needs first. Returns false if the Gaussian cannot be seen or a parameter is not finite.
struct Common {
  Vec3 camera_point;
  Mat3 rotation;
  float opacity;
  float cut2;  // squared Mahalanobis distance beyond which alpha < 1/255
};

PB_HD bool common_forward(const float* mean, const float* quat, float logit, const View& view, Common& out) {
  out.camera_point = view.rotation * load3(mean) + view.translation;
  const Vec3 t = out.camera_point;
  if (!(t.z > view.near_plane && t.z < 1e10f) || !(fabsf(t.x) < 1e10f) || !(fabsf(t.y) < 1e10f)) return false;
  if (!std::isfinite(logit)) return false;
  out.opacity = sigmoid(logit);
  if (!(out.opacity >= kAlphaMin)) return false;
  const float norm2 = quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3];
  if (!(norm2 > 0.0f && norm2 < 1e30f)) return false;
  const float inv = 1.0f / sqrtf(norm2);
  out.rotation = rotation_of(quat[0] * inv, quat[1] * inv, quat[2] * inv, quat[3] * inv);
  out.cut2 = 2.0f * logf(255.0f * out.opacity);
  return true;
}

// Unit normal in camera axes, turned towards the camera: column `axis` of the rotation, with the sign used.
PB_HD Vec3 facing_normal(const Common& common, const View& view, int axis, float& sign) {
  const Vec3 normal = view.rotation * common.rotation.column(axis);
  sign = dot(normal, common.camera_point) > 0.0f ? -1.0f : 1.0f;
  return sign * normal;
}

PB_HD int shortest_axis(const float* log_scale) {
  int axis = 0;
  if (log_scale[1] < log_scale[axis]) axis = 1;
  if (log_scale[2] < log_scale[axis]) axis = 2;
  return axis;
}

// ---------------------------------------------------------------------------------------------------- ellipsoids

struct EllipsoidState {
  Common common;
  Vec3 scale;
  float u, v;                    // unclamped normalised image coordinates
  float uc, vc;                  // clamped ones, used in the Jacobian only
  Vec3 a0, a1;                   // rows of A = J R_view
  Vec3 b0, b1;                   // rows of B = A R_q diag(s); covariance = B B^T + low_pass
  float conic_a, conic_b, conic_c;
};

PB_HD bool ellipsoid_state(const float* mean, const float* quat, const float* log_scale, float logit, const View& view,
                           EllipsoidState& s, float* geometry) {
  if (!common_forward(mean, quat, logit, view, s.common)) return false;
  const Vec3 t = s.common.camera_point;
  if (!(std::isfinite(log_scale[0]) && std::isfinite(log_scale[1]) && std::isfinite(log_scale[2]))) return false;
  s.scale = {expf(log_scale[0]), expf(log_scale[1]), expf(log_scale[2])};
  const float inv_z = 1.0f / t.z;
  s.u = t.x * inv_z;
  s.v = t.y * inv_z;
  const float margin_x = 0.15f * view.width / view.fx, margin_y = 0.15f * view.height / view.fy;
  s.uc = fminf(fmaxf(s.u, -(view.cx / view.fx + margin_x)), (view.width - view.cx) / view.fx + margin_x);
  s.vc = fminf(fmaxf(s.v, -(view.cy / view.fy + margin_y)), (view.height - view.cy) / view.fy + margin_y);
  const Mat3& r = view.rotation;
  s.a0 = inv_z * (view.fx * (r.r0 - s.uc * r.r2));
  s.a1 = inv_z * (view.fy * (r.r1 - s.vc * r.r2));
  const Vec3 p0 = transposed_times(s.common.rotation, s.a0), p1 = transposed_times(s.common.rotation, s.a1);
  s.b0 = {p0.x * s.scale.x, p0.y * s.scale.y, p0.z * s.scale.z};
  s.b1 = {p1.x * s.scale.x, p1.y * s.scale.y, p1.z * s.scale.z};
  const float xx = dot(s.b0, s.b0) + view.low_pass, yy = dot(s.b1, s.b1) + view.low_pass, xy = dot(s.b0, s.b1);
  // det(B B^T + low_pass I) by Lagrange's identity: no difference of large numbers, so needles keep their digits.
  const Vec3 area = cross(s.b0, s.b1);
  const float det = dot(area, area) + view.low_pass * (xx + yy - view.low_pass);
  if (!(det > 0.0f && det < 1e30f)) return false;
  const float mean_x = view.fx * s.u + view.cx, mean_y = view.fy * s.v + view.cy;
  const float half_x = sqrtf(s.common.cut2 * xx), half_y = sqrtf(s.common.cut2 * yy);
  if (!(mean_x + half_x > 0.0f && mean_x - half_x < view.width && mean_y + half_y > 0.0f &&
        mean_y - half_y < view.height))
    return false;
  const float inv_det = 1.0f / det;
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
  return true;
}

// Gradients of one visible ellipsoid, written (not added) to grad_*.
PB_HD void ellipsoid_backward(const float* mean, const float* quat, const float* log_scale, float logit,
                              const View& view, const float* g, Vec3 grad_normal, float* grad_mean, float* grad_quat,
                              float* grad_log_scale, float* grad_logit) {
  EllipsoidState s;
  float geometry[kEllipsoidGeometry];
  if (!ellipsoid_state(mean, quat, log_scale, logit, view, s, geometry)) return;
  const Vec3 t = s.common.camera_point;
  const float a = s.conic_a, b = s.conic_b, c = s.conic_c;
  // G_B = -2 Q G_Q (Q B), with G_Q = [g_a, g_b/2; g_b/2, g_c] and Q B = adj(C) B / det written without differences of
  // large numbers.
  const Vec3 area = cross(s.b0, s.b1);
  const float inv_det = 1.0f / (dot(area, area) + view.low_pass * (dot(s.b0, s.b0) + dot(s.b1, s.b1) + view.low_pass));
  const Vec3 y0 = inv_det * (cross(s.b1, area) + view.low_pass * s.b0);
  const Vec3 y1 = inv_det * (cross(area, s.b0) + view.low_pass * s.b1);
  const float qa = -2 * g[2], qb = -g[3], qc = -2 * g[4];
  const Vec3 w0 = qa * y0 + qb * y1, w1 = qb * y0 + qc * y1;
  const Vec3 gb0 = a * w0 + b * w1, gb1 = b * w0 + c * w1;
  // B = A M, M = R_q diag(s).
  const Vec3 mb0 = {gb0.x * s.scale.x, gb0.y * s.scale.y, gb0.z * s.scale.z};
  const Vec3 mb1 = {gb1.x * s.scale.x, gb1.y * s.scale.y, gb1.z * s.scale.z};
  const Vec3 ga0 = s.common.rotation * mb0, ga1 = s.common.rotation * mb1;
  Mat3 gr = {s.a0.x * mb0 + s.a1.x * mb1, s.a0.y * mb0 + s.a1.y * mb1, s.a0.z * mb0 + s.a1.z * mb1};
  const Vec3 p0 = transposed_times(s.common.rotation, s.a0), p1 = transposed_times(s.common.rotation, s.a1);
  grad_log_scale[0] = s.scale.x * (gb0.x * p0.x + gb1.x * p1.x);
  grad_log_scale[1] = s.scale.y * (gb0.y * p0.y + gb1.y * p1.y);
  grad_log_scale[2] = s.scale.z * (gb0.z * p0.z + gb1.z * p1.z);
  float sign;
  const int axis = shortest_axis(log_scale);
  facing_normal(s.common, view, axis, sign);
  const Vec3 gn = sign * transposed_times(view.rotation, grad_normal);
  (axis == 0 ? gr.r0.x : axis == 1 ? gr.r0.y : gr.r0.z) += gn.x;
  (axis == 0 ? gr.r1.x : axis == 1 ? gr.r1.y : gr.r1.z) += gn.y;
  (axis == 0 ? gr.r2.x : axis == 1 ? gr.r2.y : gr.r2.z) += gn.z;
  rotation_backward(quat, gr, grad_quat);
  // A = J R_view: rows of J are (fx/z) (1, 0, -uc) and (fy/z) (0, 1, -vc).
  const Vec3 j0 = view.rotation * ga0, j1 = view.rotation * ga1;
  const float inv_z = 1.0f / t.z, inv_z2 = inv_z * inv_z;
  const float in_x = s.u == s.uc ? 1.0f : 0.0f, in_y = s.v == s.vc ? 1.0f : 0.0f;
  Vec3 gt;
  gt.x = view.fx * inv_z * g[0] - in_x * view.fx * inv_z2 * j0.z;
  gt.y = view.fy * inv_z * g[1] - in_y * view.fy * inv_z2 * j1.z;
  gt.z = -(view.fx * s.u * g[0] + view.fy * s.v * g[1]) * inv_z + g[6] - (view.fx * j0.x + view.fy * j1.y) * inv_z2 +
         view.fx * inv_z2 * j0.z * (s.uc + in_x * s.u) + view.fy * inv_z2 * j1.z * (s.vc + in_y * s.v);
  store3(grad_mean, transposed_times(view.rotation, gt));
  *grad_logit = g[5] * s.common.opacity * (1.0f - s.common.opacity);
}

// --------------------------------------------------------------------------------------------------------- discs

// Screen ellipse of the disc cut at squared radius cut2: centre and covariance-like matrix with
// {p : (p - c)^T S^-1 (p - c) <= 1}. False if the cut disc reaches the camera plane.
PB_HD bool disc_ellipse(Vec3 mu, Vec3 mv, Vec3 mw, float cut2, float& cx, float& cy, float& xx, float& xy, float& yy) {
  const double d = (double)cut2 * ((double)mw.x * mw.x + (double)mw.y * mw.y) - (double)mw.z * mw.z;
  if (!(d < 0.0)) return false;
  const double f0 = cut2 / d, f1 = f0, f2 = -1.0 / d;
  const double x = f0 * mu.x * mw.x + f1 * mu.y * mw.y + f2 * mu.z * mw.z;
  const double y = f0 * mv.x * mw.x + f1 * mv.y * mw.y + f2 * mv.z * mw.z;
  cx = (float)x;
  cy = (float)y;
  xx = (float)(x * x - (f0 * mu.x * mu.x + f1 * mu.y * mu.y + f2 * mu.z * mu.z));
  yy = (float)(y * y - (f0 * mv.x * mv.x + f1 * mv.y * mv.y + f2 * mv.z * mv.z));
  xy = (float)(x * y - (f0 * mu.x * mv.x + f1 * mu.y * mv.y + f2 * mu.z * mv.z));
  return true;
}

struct DiscState {
  Common common;
  float s0, s1;
  Vec3 axis0, axis1;  // camera axes
  Vec3 mu, mv, mw;
  float cx, cy;
  bool in_front;  // the 3-sigma disc lies in front of the camera
};

PB_HD bool disc_state(const float* mean, const float* quat, const float* log_scale, float logit, const View& view,
                      DiscState& s, float* geometry) {
  if (!common_forward(mean, quat, logit, view, s.common)) return false;
  const Vec3 t = s.common.camera_point;
  if (!(std::isfinite(log_scale[0]) && std::isfinite(log_scale[1]))) return false;
  s.s0 = expf(log_scale[0]);
  s.s1 = expf(log_scale[1]);
  if (!(s.s0 < 1e10f && s.s1 < 1e10f)) return false;
  s.axis0 = view.rotation * s.common.rotation.column(0);
  s.axis1 = view.rotation * s.common.rotation.column(1);
  const Vec3 h0 = {s.s0 * s.axis0.x, s.s1 * s.axis1.x, t.x};
  const Vec3 h1 = {s.s0 * s.axis0.y, s.s1 * s.axis1.y, t.y};
  s.mw = {s.s0 * s.axis0.z, s.s1 * s.axis1.z, t.z};
  s.mu = view.fx * h0 + view.cx * s.mw;
  s.mv = view.fy * h1 + view.cy * s.mw;
  float xx, xy, yy;
  s.in_front = disc_ellipse(s.mu, s.mv, s.mw, kDiscCut * kDiscCut, s.cx, s.cy, xx, xy, yy);
  if (!s.in_front) {
    s.cx = s.mu.z / s.mw.z;
    s.cy = s.mv.z / s.mw.z;
  }
  float bx, by;
  if (disc_ellipse(s.mu, s.mv, s.mw, s.common.cut2, bx, by, xx, xy, yy)) {
    const float r = kLowPass * sqrtf(s.common.cut2);
    const float half_x = sqrtf(fmaxf(xx, 0.0f)), half_y = sqrtf(fmaxf(yy, 0.0f));
    const float x0 = fminf(bx - half_x, s.cx - r), x1 = fmaxf(bx + half_x, s.cx + r);
    const float y0 = fminf(by - half_y, s.cy - r), y1 = fmaxf(by + half_y, s.cy + r);
    if (!(x1 > 0.0f && x0 < view.width && y1 > 0.0f && y0 < view.height)) return false;
  }
  store3(geometry, s.mu);
  store3(geometry + 3, s.mv);
  store3(geometry + 6, s.mw);
  geometry[9] = s.cx;
  geometry[10] = s.cy;
  geometry[11] = s.common.opacity;
  geometry[12] = t.z;
  return true;
}

PB_HD void disc_backward(const float* mean, const float* quat, const float* log_scale, float logit, const View& view,
                         const float* g, Vec3 grad_normal, float* grad_mean, float* grad_quat, float* grad_log_scale,
                         float* grad_logit) {
  DiscState s;
  float geometry[kDiscGeometry];
  if (!disc_state(mean, quat, log_scale, logit, view, s, geometry)) return;
  Vec3 gu = load3(g), gv = load3(g + 3), gw = load3(g + 6);
  const float gcx = g[9], gcy = g[10];
  if (s.in_front) {
    const float k2 = kDiscCut * kDiscCut;
    const double d = (double)k2 * ((double)s.mw.x * s.mw.x + (double)s.mw.y * s.mw.y) - (double)s.mw.z * s.mw.z;
    const Vec3 f = {(float)(k2 / d), (float)(k2 / d), (float)(-1.0 / d)};
    const Vec3 fw = {f.x * s.mw.x, f.y * s.mw.y, f.z * s.mw.z};
    const float pull = 2.0f * (gcx * s.cx + gcy * s.cy);
    gu = gu + gcx * fw;
    gv = gv + gcy * fw;
    const Vec3 mix = gcx * s.mu + gcy * s.mv;
    gw = gw + Vec3{f.x * mix.x, f.y * mix.y, f.z * mix.z} - pull * fw;
  } else {
    const float inv = 1.0f / s.mw.z;
    gu.z += gcx * inv;
    gv.z += gcy * inv;
    gw.z -= (gcx * s.cx + gcy * s.cy) * inv;
  }
  // M_u = fx H_0 + cx H_2, M_v = fy H_1 + cy H_2, M_w = H_2; columns of H are s_0 R r_0, s_1 R r_1, t.
  const Vec3 h0 = view.fx * gu, h1 = view.fy * gv, h2 = view.cx * gu + view.cy * gv + gw;
  const Vec3 col0 = {h0.x, h1.x, h2.x}, col1 = {h0.y, h1.y, h2.y}, col2 = {h0.z, h1.z, h2.z + g[12]};
  store3(grad_mean, transposed_times(view.rotation, col2));
  grad_log_scale[0] = s.s0 * dot(col0, s.axis0);
  grad_log_scale[1] = s.s1 * dot(col1, s.axis1);
  const Vec3 g0 = s.s0 * transposed_times(view.rotation, col0), g1 = s.s1 * transposed_times(view.rotation, col1);
  float sign;
  facing_normal(s.common, view, 2, sign);
  const Vec3 g2 = sign * transposed_times(view.rotation, grad_normal);
  const Mat3 gr = {{g0.x, g1.x, g2.x}, {g0.y, g1.y, g2.y}, {g0.z, g1.z, g2.z}};
  rotation_backward(quat, gr, grad_quat);
  *grad_logit = g[11] * s.common.opacity * (1.0f - s.common.opacity);
}

}  // namespace panbench
