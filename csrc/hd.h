// Functions marked PB_HD compile for the host and, under nvcc, for the device. PB_UNROLL unrolls a loop wholly.
#pragma once
#include <cmath>

#ifdef __CUDACC__
#define PB_HD __host__ __device__ __forceinline__
#else
#define PB_HD inline __attribute__((always_inline))
#endif
#if defined(__CUDA_ARCH__)
#define PB_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)  // host code under nvcc knows neither pragma
#define PB_UNROLL
#else
#define PB_UNROLL _Pragma("GCC unroll 16")
#endif

namespace panbench {

// Primitive of a base model. Values are part of the operators' schema.
enum Kind : int { kEllipsoid = 0, kDisc = 1 };

constexpr int kEllipsoidGeometry = 7;  // mean_x, mean_y, conic a, b, c, opacity, z
constexpr int kDiscGeometry = 13;      // M_u, M_v, M_w (3 each), c_x, c_y, opacity, z
constexpr int kTile = 16;              // pixels on a side of a tile
constexpr int kBlock = 4;              // pixels on a side of a block: 16 pixels, one SIMD register

constexpr float kAlphaMax = 0.99f;
constexpr float kAlphaMin = 1.0f / 255.0f;
constexpr float kTransmittanceMin = 1e-4f;  // blending stops, exclusively, where T(1 - alpha) <= this
constexpr float kLowPass = 0.70710678f;     // sigma in pixels of the disc's screen-space low-pass filter
constexpr float kDiscCut = 3.0f;            // cut-off that defines a disc's screen centre (specs of 2DGS)

PB_HD int geometry_width(int kind) { return kind == kDisc ? kDiscGeometry : kEllipsoidGeometry; }

// A bool, or a mask of lanes, chooses between two values. These and the functions below are what the templates need of a
// number: float, or sixteen of them in a register (cpu/simd.h).
PB_HD float select(bool m, float a, float b) { return m ? a : b; }
PB_HD bool and_not(bool a, bool b) { return a && !b; }
PB_HD float smaller(float a, float b) { return fminf(a, b); }
PB_HD float larger(float a, float b) { return fmaxf(a, b); }
PB_HD float magnitude(float a) { return fabsf(a); }
PB_HD float root(float a) { return sqrtf(a); }
PB_HD float exponential(float a) { return expf(a); }
PB_HD float logarithm(float a) { return logf(a); }

template <class R>
struct Vec3Of {
  R x, y, z;
};
using Vec3 = Vec3Of<float>;
template <class R>
PB_HD Vec3Of<R> operator+(Vec3Of<R> a, Vec3Of<R> b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <class R>
PB_HD Vec3Of<R> operator-(Vec3Of<R> a, Vec3Of<R> b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class S, class R>
PB_HD Vec3Of<R> operator*(S s, Vec3Of<R> a) {
  return {s * a.x, s * a.y, s * a.z};
}
template <class M, class R>
PB_HD Vec3Of<R> select(M m, Vec3Of<R> a, Vec3Of<R> b) {
  return {select(m, a.x, b.x), select(m, a.y, b.y), select(m, a.z, b.z)};
}
template <class R>
PB_HD R dot(Vec3Of<R> a, Vec3Of<R> b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}
template <class R>
PB_HD Vec3Of<R> cross(Vec3Of<R> a, Vec3Of<R> b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
// Entry by entry.
template <class R>
PB_HD Vec3Of<R> times(Vec3Of<R> a, Vec3Of<R> b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z};
}
PB_HD Vec3 load3(const float* p) { return {p[0], p[1], p[2]}; }
PB_HD void store3(float* p, Vec3 a) { p[0] = a.x, p[1] = a.y, p[2] = a.z; }

// Row-major 3x3 matrix.
template <class R>
struct Mat3Of {
  Vec3Of<R> r0, r1, r2;
  PB_HD Vec3Of<R> column(int k) const {
    return k == 0 ? Vec3Of<R>{r0.x, r1.x, r2.x} : k == 1 ? Vec3Of<R>{r0.y, r1.y, r2.y} : Vec3Of<R>{r0.z, r1.z, r2.z};
  }
};
using Mat3 = Mat3Of<float>;
template <class R>
PB_HD Vec3Of<R> operator*(const Mat3Of<R>& m, Vec3Of<R> v) {
  return {dot(m.r0, v), dot(m.r1, v), dot(m.r2, v)};
}
template <class R>
PB_HD Vec3Of<R> transposed_times(const Mat3Of<R>& m, Vec3Of<R> v) {
  return v.x * m.r0 + v.y * m.r1 + v.z * m.r2;
}

}  // namespace panbench
