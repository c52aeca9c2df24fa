// Functions marked PB_HD compile for the host and, under nvcc, for the device. PB_UNROLL unrolls a loop wholly.
#pragma once
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

struct Vec3 {
  float x, y, z;
};
PB_HD Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
PB_HD Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
PB_HD Vec3 operator*(float s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
PB_HD float dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
PB_HD Vec3 cross(Vec3 a, Vec3 b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
PB_HD Vec3 load3(const float* p) { return {p[0], p[1], p[2]}; }
PB_HD void store3(float* p, Vec3 a) { p[0] = a.x, p[1] = a.y, p[2] = a.z; }

// Row-major 3x3 matrix.
struct Mat3 {
  Vec3 r0, r1, r2;
  PB_HD Vec3 column(int k) const {
    return k == 0 ? Vec3{r0.x, r1.x, r2.x} : k == 1 ? Vec3{r0.y, r1.y, r2.y} : Vec3{r0.z, r1.z, r2.z};
  }
};
PB_HD Vec3 operator*(const Mat3& m, Vec3 v) { return {dot(m.r0, v), dot(m.r1, v), dot(m.r2, v)}; }
PB_HD Vec3 transposed_times(const Mat3& m, Vec3 v) { return v.x * m.r0 + v.y * m.r1 + v.z * m.r2; }

}  // namespace panbench
