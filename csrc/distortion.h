// How far a pixel's hits lie apart: the sum over pairs j < i of w_i w_j (1/d_i - 1/d_j)^2, and its gradient. R is float, or
// sixteen of them. Shared by the CPU and CUDA back ends.
#pragma once
#include "hd.h"

namespace panbench {

// 1/depth - 1/first, with the digits that the difference of the inverses would lose.
template <class R>
PB_HD R inverse_offset(R first, R depth) {
  return (first - depth) / (first * depth);
}

// Sums over a pixel's hits of w q and w q^2, q = 1/d - 1/(depth of the first hit). The shift changes neither the value nor
// its gradient, and spares float32 the difference of large sums.
template <class R>
struct Distortion {
  R first;  // depth of the first hit; 1 as long as there is none
  R q1, q2;

  PB_HD R offset(R depth) const { return inverse_offset(first, depth); }
  PB_HD void add(R weight, R q) {
    const R part = weight * q;
    q1 = q1 + part;
    q2 = q2 + part * q;
  }
  // total: of the weights
  PB_HD R value(R total) const { return total * q2 - q1 * q1; }
};

// What the gradient of a pixel's distortion sends to its hits.
template <class R>
struct DistortionGradient {
  R first, g0, g1, g2;

  PB_HD DistortionGradient(const Distortion<R>& d, R total, R upstream)
      : first(d.first), g0(upstream * d.q2), g1(-2.0f * (upstream * d.q1)), g2(upstream * total) {}
  PB_HD R offset(R depth) const { return inverse_offset(first, depth); }
  // dL/dw: the sum over all hits of w_j (q - q_j)^2.
  PB_HD R of_weight(R q) const { return g0 + q * (g1 + q * g2); }
  // dL/d(depth of the hit); inverse: 1/depth.
  PB_HD R of_depth(R weight, R q, R inverse) const {
    return -(weight * (g1 + 2.0f * (q * g2)) * (inverse * inverse));
  }
};

}  // namespace panbench
