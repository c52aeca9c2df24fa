// Real spherical harmonics to degree 3 with the signs of the public 3DGS implementations.
#pragma once
#include <cmath>

#include "hd.h"

namespace panbench {

// Basis values y[0..15] at the unit direction d.
PB_HD void sh_basis(int degree, Vec3 d, float* y) {
  y[0] = 0.28209479177387814f;
  if (degree < 1) return;
  y[1] = -0.4886025119029199f * d.y;
  y[2] = 0.4886025119029199f * d.z;
  y[3] = -0.4886025119029199f * d.x;
  if (degree < 2) return;
  const float xx = d.x * d.x, yy = d.y * d.y, zz = d.z * d.z;
  y[4] = 1.0925484305920792f * d.x * d.y;
  y[5] = -1.0925484305920792f * d.y * d.z;
  y[6] = 0.31539156525252005f * (2 * zz - xx - yy);
  y[7] = -1.0925484305920792f * d.x * d.z;
  y[8] = 0.5462742152960396f * (xx - yy);
  if (degree < 3) return;
  y[9] = -0.5900435899266435f * d.y * (3 * xx - yy);
  y[10] = 2.890611442640554f * d.x * d.y * d.z;
  y[11] = -0.4570457994644658f * d.y * (4 * zz - xx - yy);
  y[12] = 0.3731763325901154f * d.z * (2 * zz - 3 * xx - 3 * yy);
  y[13] = -0.4570457994644658f * d.x * (4 * zz - xx - yy);
  y[14] = 1.445305721320277f * d.z * (xx - yy);
  y[15] = -0.5900435899266435f * d.x * (xx - 3 * yy);
}

// Sum over k of h[k] * gradient of y[k] with respect to d (as free coordinates).
PB_HD Vec3 sh_basis_gradient(int degree, Vec3 d, const float* h) {
  Vec3 g = {0, 0, 0};
  if (degree < 1) return g;
  const float c1 = 0.4886025119029199f;
  g.y -= c1 * h[1];
  g.z += c1 * h[2];
  g.x -= c1 * h[3];
  if (degree < 2) return g;
  const float x = d.x, y = d.y, z = d.z;
  const float c2 = 1.0925484305920792f, c3 = 0.31539156525252005f, c4 = 0.5462742152960396f;
  g.x += c2 * (y * h[4] - z * h[7]) - 2 * c3 * x * h[6] + 2 * c4 * x * h[8];
  g.y += c2 * (x * h[4] - z * h[5]) - 2 * c3 * y * h[6] - 2 * c4 * y * h[8];
  g.z += c2 * (-y * h[5] - x * h[7]) + 4 * c3 * z * h[6];
  if (degree < 3) return g;
  const float xx = x * x, yy = y * y, zz = z * z;
  const float k0 = 0.5900435899266435f, k1 = 2.890611442640554f, k2 = 0.4570457994644658f, k3 = 0.3731763325901154f,
              k4 = 1.445305721320277f;
  g.x += -k0 * 6 * x * y * h[9] + k1 * y * z * h[10] + k2 * 2 * x * y * h[11] - k3 * 6 * x * z * h[12] -
         k2 * (4 * zz - 3 * xx - yy) * h[13] + k4 * 2 * x * z * h[14] - k0 * 3 * (xx - yy) * h[15];
  g.y += -k0 * 3 * (xx - yy) * h[9] + k1 * x * z * h[10] - k2 * (4 * zz - xx - 3 * yy) * h[11] -
         k3 * 6 * y * z * h[12] + k2 * 2 * x * y * h[13] - k4 * 2 * y * z * h[14] + k0 * 6 * x * y * h[15];
  g.z += k1 * x * y * h[10] - k2 * 8 * y * z * h[11] + k3 * (6 * zz - 3 * xx - 3 * yy) * h[12] -
         k2 * 8 * x * z * h[13] + k4 * (xx - yy) * h[14];
  return g;
}

// Direction from the camera to a Gaussian.
struct Direction {
  Vec3 unit;
  float inverse_length;
};

PB_HD Direction direction(const float* mean, Vec3 camera) {
  const Vec3 offset = load3(mean) - camera;
  const float inverse = 1.0f / sqrtf(fmaxf(dot(offset, offset), 1e-20f));
  return {inverse * offset, inverse};
}

// 1/2 + sum over k of y[k] h_k, before negative values are cut off.
PB_HD Vec3 sh_sum(int degree, const float* dc, const float* rest, const float* y) {
  Vec3 c = Vec3{0.5f, 0.5f, 0.5f} + y[0] * load3(dc);
  // The fixed bound lets the device keep y in registers.
PB_UNROLL
  for (int k = 1; k < 16; ++k)
    if (k < (degree + 1) * (degree + 1)) c = c + y[k] * load3(rest + 3 * (k - 1));
  return c;
}

PB_HD Vec3 sh_color(int degree, const float* dc, const float* rest, const float* mean, Vec3 camera) {
  float y[16];
  sh_basis(degree, direction(mean, camera).unit, y);
  const Vec3 c = sh_sum(degree, dc, rest, y);
  return {fmaxf(c.x, 0.0f), fmaxf(c.y, 0.0f), fmaxf(c.z, 0.0f)};
}

// Gradients of one Gaussian, written (not added); those of coefficients above the degree are left alone.
PB_HD void sh_color_backward(int degree, const float* dc, const float* rest, const float* mean, Vec3 camera, Vec3 g,
                             float* grad_dc, float* grad_rest, float* grad_mean) {
  const Direction d = direction(mean, camera);
  float y[16], h[16];
  sh_basis(degree, d.unit, y);
  const Vec3 c = sh_sum(degree, dc, rest, y);
  g = {c.x > 0 ? g.x : 0.0f, c.y > 0 ? g.y : 0.0f, c.z > 0 ? g.z : 0.0f};
  store3(grad_dc, y[0] * g);
PB_UNROLL
  for (int k = 1; k < 16; ++k) {
    if (k >= (degree + 1) * (degree + 1)) continue;
    h[k] = dot(load3(rest + 3 * (k - 1)), g);
    store3(grad_rest + 3 * (k - 1), y[k] * g);
  }
  const Vec3 gd = sh_basis_gradient(degree, d.unit, h);
  store3(grad_mean, d.inverse_length * (gd - dot(d.unit, gd) * d.unit));
}

}  // namespace panbench
