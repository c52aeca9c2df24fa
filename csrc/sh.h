// Real spherical harmonics to degree 3 with the signs of the public 3DGS implementations.
#pragma once
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

}  // namespace panbench
