// Sixteen floats as one value, in the instruction set that this file's includer is compiled for. Everything is static
// and inlined, so that objects compiled for different instruction sets share no symbol.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define PB_INLINE static inline __attribute__((always_inline))

namespace panbench {
namespace {

#if defined(__AVX512F__) && defined(__AVX512DQ__)

struct F16 {
  __m512 v;
};
struct M16 {
  __mmask16 v;
};
PB_INLINE F16 set1(float x) { return {_mm512_set1_ps(x)}; }
PB_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
PB_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
PB_INLINE F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
PB_INLINE F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
PB_INLINE F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
PB_INLINE F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
PB_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
PB_INLINE F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
PB_INLINE F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
PB_INLINE M16 less_equal(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
PB_INLINE M16 less(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
PB_INLINE M16 equal(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
PB_INLINE M16 operator&(M16 a, M16 b) { return {(__mmask16)(a.v & b.v)}; }
PB_INLINE M16 operator|(M16 a, M16 b) { return {(__mmask16)(a.v | b.v)}; }
PB_INLINE M16 and_not(M16 a, M16 b) { return {(__mmask16)(a.v & ~b.v)}; }
PB_INLINE bool any(M16 a) { return a.v != 0; }
PB_INLINE uint32_t bits(M16 a) { return a.v; }
PB_INLINE M16 mask_of(uint32_t b) { return {(__mmask16)b}; }
PB_INLINE F16 select(M16 m, F16 a, F16 b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
PB_INLINE F16 root(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
// Lane i is p[index[i] * stride].
PB_INLINE F16 gather(const float* p, const int32_t* index, int stride) {
  const __m512i at = _mm512_mullo_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(stride));
  return {_mm512_i32gather_ps(at, p, 4)};
}
PB_INLINE float sum(F16 a) { return _mm512_reduce_add_ps(a.v); }
PB_INLINE F16 round_even(F16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
// 1 / a by one Newton step: 2e-8 relative; NaN for 0 and infinities.
PB_INLINE F16 reciprocal(F16 a) {
  const __m512 r = _mm512_rcp14_ps(a.v);
  return {_mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.0f)))};
}
// Lane i of the result is the sum over the lanes of v[i]: a transposing tree, 45 instructions instead of sixteen sums.
PB_INLINE F16 sums(const F16 v[16]) {
  __m512 t[8], u[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i].v, v[2 * i + 1].v), _mm512_unpackhi_ps(v[2 * i].v, v[2 * i + 1].v));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[2 * i]), b = _mm512_castps_pd(t[2 * i + 1]);
    u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 w0 = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
  const __m512 w1 = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(w0, w1, 0x88), _mm512_shuffle_f32x4(w0, w1, 0xdd))};
}
PB_INLINE F16 scale_by_power(F16 a, F16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// Writes first + i for every set bit i, ascending, and then anything up to the sixteenth place; returns their number.
PB_INLINE int append_lanes(uint32_t bits, int32_t first, int32_t* to) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)bits, _mm512_add_epi32(lane, _mm512_set1_epi32(first))));
  return __builtin_popcount(bits);
}
// n with 2^n <= a < 2^(n + 1), for normal a > 0.
PB_INLINE F16 exponent(F16 a) { return {_mm512_getexp_ps(a.v)}; }
// The first n < 16 lanes; zero in the others.
PB_INLINE F16 load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)}; }
PB_INLINE void store_part(float* p, F16 a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a.v); }
// Lane i of v[k] becomes lane k of v[i].
PB_INLINE void transpose(F16 v[16]) {
  __m512 t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const __m512d a = _mm512_castps_pd(t[i + k]), b = _mm512_castps_pd(t[i + k + 2]);
      u[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      u[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512 even = _mm512_shuffle_f32x4(u[k], u[4 + k], 0x88), odd = _mm512_shuffle_f32x4(u[k], u[4 + k], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0xdd);
    v[k].v = _mm512_shuffle_f32x4(even, even2, 0x88);
    v[4 + k].v = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    v[8 + k].v = _mm512_shuffle_f32x4(even, even2, 0xdd);
    v[12 + k].v = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}

#elif defined(__AVX2__) && defined(__FMA__)

struct F16 {
  __m256 a, b;
};
struct M16 {
  __m256 a, b;
};
PB_INLINE F16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PB_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
PB_INLINE void store(float* p, F16 x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
PB_INLINE F16 operator+(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
PB_INLINE F16 operator-(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
PB_INLINE F16 operator*(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
PB_INLINE F16 operator/(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
PB_INLINE F16 fma(F16 x, F16 y, F16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
PB_INLINE F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
PB_INLINE F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
PB_INLINE M16 less_equal(F16 x, F16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ)};
}
PB_INLINE M16 less(F16 x, F16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
PB_INLINE M16 equal(F16 x, F16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
}
PB_INLINE M16 operator&(M16 x, M16 y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
PB_INLINE M16 operator|(M16 x, M16 y) { return {_mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)}; }
PB_INLINE M16 and_not(M16 x, M16 y) { return {_mm256_andnot_ps(y.a, x.a), _mm256_andnot_ps(y.b, x.b)}; }
PB_INLINE uint32_t bits(M16 x) { return _mm256_movemask_ps(x.a) | (_mm256_movemask_ps(x.b) << 8); }
PB_INLINE bool any(M16 x) { return bits(x) != 0; }
PB_INLINE M16 mask_of(uint32_t m) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lo = _mm256_and_si256(_mm256_set1_epi32(m & 255), lane);
  const __m256i hi = _mm256_and_si256(_mm256_set1_epi32(m >> 8), lane);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(lo, lane)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(hi, lane))};
}
PB_INLINE F16 select(M16 m, F16 x, F16 y) {
  return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}
PB_INLINE F16 root(F16 x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
PB_INLINE float sum(F16 x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
PB_INLINE F16 round_even(F16 x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
PB_INLINE void transpose8(__m256 v[8]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      u[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
      u[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    v[k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x20);
    v[4 + k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x31);
  }
}
PB_INLINE void transpose(F16 v[16]) {
  __m256 q[4][8];  // upper left, lower left, upper right, lower right
  for (int i = 0; i < 8; ++i) q[0][i] = v[i].a, q[1][i] = v[8 + i].a, q[2][i] = v[i].b, q[3][i] = v[8 + i].b;
  for (int k = 0; k < 4; ++k) transpose8(q[k]);
  for (int i = 0; i < 8; ++i) v[i] = {q[0][i], q[1][i]}, v[8 + i] = {q[2][i], q[3][i]};
}
// 1 / a by one Newton step: 2e-7 relative; NaN for 0 and infinities.
PB_INLINE __m256 reciprocal8(__m256 x) {
  const __m256 r = _mm256_rcp_ps(x);
  return _mm256_mul_ps(r, _mm256_fnmadd_ps(x, r, _mm256_set1_ps(2.0f)));
}
PB_INLINE F16 reciprocal(F16 x) { return {reciprocal8(x.a), reciprocal8(x.b)}; }
// Lane i is the sum of v[i]'s lanes.
PB_INLINE __m256 sums8(const F16 v[8]) {
  __m256 t[4], u[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256 a = _mm256_add_ps(v[2 * i].a, v[2 * i].b), b = _mm256_add_ps(v[2 * i + 1].a, v[2 * i + 1].b);
    t[i] = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256d a = _mm256_castps_pd(t[2 * i]), b = _mm256_castps_pd(t[2 * i + 1]);
    u[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return _mm256_add_ps(_mm256_permute2f128_ps(u[0], u[1], 0x20), _mm256_permute2f128_ps(u[0], u[1], 0x31));
}
// Lane i of the result is the sum over the lanes of v[i]: a transposing tree, as with wider registers.
PB_INLINE F16 sums(const F16 v[16]) { return {sums8(v), sums8(v + 8)}; }
PB_INLINE __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
PB_INLINE F16 scale_by_power(F16 x, F16 n) {
  return {_mm256_mul_ps(x.a, power_of_two(n.a)), _mm256_mul_ps(x.b, power_of_two(n.b))};
}
PB_INLINE __m256 exponent8(__m256 x) {
  const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(x), 23);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)));
}
PB_INLINE F16 exponent(F16 x) { return {exponent8(x.a), exponent8(x.b)}; }
// -1 in the first n - first lanes, 0 in the others.
PB_INLINE __m256i lanes_below(int n, int first) {
  const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
PB_INLINE F16 load_part(const float* p, int n) {
  return {_mm256_maskload_ps(p, lanes_below(n, 0)), _mm256_maskload_ps(p + 8, lanes_below(n, 8))};
}
// Piece by piece: a store under a mask takes some processors twenty times as long.
PB_INLINE void store_part(float* p, F16 x, int n) {
  __m256 eight = x.a;
  if (n & 8) {
    _mm256_storeu_ps(p, eight);
    eight = x.b, p += 8;
  }
  __m128 four = _mm256_castps256_ps128(eight);
  if (n & 4) {
    _mm_storeu_ps(p, four);
    four = _mm256_extractf128_ps(eight, 1), p += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64*)p, four);
    four = _mm_movehl_ps(four, four), p += 2;
  }
  if (n & 1) _mm_store_ss(p, four);
}

#else  // portable: the compiler's generic vectors, as wide as the registers that every processor has

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
struct F16 {
  F4 a, b, c, d;
};
struct M16 {
  I4 a, b, c, d;  // -1 where true
};
PB_INLINE F4 bits_as_floats(I4 x) {
  F4 r;
  std::memcpy(&r, &x, 16);
  return r;
}
PB_INLINE I4 floats_as_bits(F4 x) {
  I4 r;
  std::memcpy(&r, &x, 16);
  return r;
}
PB_INLINE F16 set1(float x) {
  const F4 v = {x, x, x, x};
  return {v, v, v, v};
}
PB_INLINE F16 load(const float* p) {
  F16 r;
  std::memcpy(&r, p, 64);
  return r;
}
PB_INLINE void store(float* p, F16 x) { std::memcpy(p, &x, 64); }
PB_INLINE F16 operator+(F16 x, F16 y) { return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
PB_INLINE F16 operator-(F16 x, F16 y) { return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }
PB_INLINE F16 operator*(F16 x, F16 y) { return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }
PB_INLINE F16 operator/(F16 x, F16 y) { return {x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d}; }
PB_INLINE F16 fma(F16 x, F16 y, F16 z) {
  return {x.a * y.a + z.a, x.b * y.b + z.b, x.c * y.c + z.c, x.d * y.d + z.d};
}
PB_INLINE M16 less_equal(F16 x, F16 y) { return {x.a <= y.a, x.b <= y.b, x.c <= y.c, x.d <= y.d}; }
PB_INLINE M16 less(F16 x, F16 y) { return {x.a < y.a, x.b < y.b, x.c < y.c, x.d < y.d}; }
PB_INLINE M16 equal(F16 x, F16 y) { return {x.a == y.a, x.b == y.b, x.c == y.c, x.d == y.d}; }
PB_INLINE M16 operator&(M16 x, M16 y) { return {x.a & y.a, x.b & y.b, x.c & y.c, x.d & y.d}; }
PB_INLINE M16 operator|(M16 x, M16 y) { return {x.a | y.a, x.b | y.b, x.c | y.c, x.d | y.d}; }
PB_INLINE M16 and_not(M16 x, M16 y) { return {x.a & ~y.a, x.b & ~y.b, x.c & ~y.c, x.d & ~y.d}; }
PB_INLINE F16 select(M16 m, F16 x, F16 y) {
  return {m.a ? x.a : y.a, m.b ? x.b : y.b, m.c ? x.c : y.c, m.d ? x.d : y.d};
}
PB_INLINE F16 min(F16 x, F16 y) { return select(less(x, y), x, y); }
PB_INLINE F16 max(F16 x, F16 y) { return select(less(y, x), x, y); }
PB_INLINE uint32_t bits(M16 x) {
  const I4 bit = {1, 2, 4, 8};
  const I4 r = (x.a & bit) | (x.b & bit << 4) | (x.c & bit << 8) | (x.d & bit << 12);
  return (uint32_t)(r[0] | r[1] | r[2] | r[3]);
}
PB_INLINE bool any(M16 x) {
  const I4 r = x.a | x.b | x.c | x.d;
  return (r[0] | r[1] | r[2] | r[3]) != 0;
}
PB_INLINE M16 mask_of(uint32_t m) {
  const I4 all = {(int32_t)m, (int32_t)m, (int32_t)m, (int32_t)m}, bit = {1, 2, 4, 8};
  return {(all & bit) != 0, (all & bit << 4) != 0, (all & bit << 8) != 0, (all & bit << 12) != 0};
}
PB_INLINE F4 root4(F4 x) {
  return F4{__builtin_sqrtf(x[0]), __builtin_sqrtf(x[1]), __builtin_sqrtf(x[2]), __builtin_sqrtf(x[3])};
}
PB_INLINE F16 root(F16 x) { return {root4(x.a), root4(x.b), root4(x.c), root4(x.d)}; }
PB_INLINE float sum(F16 x) {
  const F4 s = (x.a + x.b) + (x.c + x.d);
  return (s[0] + s[1]) + (s[2] + s[3]);
}
PB_INLINE F16 round_even(F16 x) { return (x + set1(12582912.0f)) - set1(12582912.0f); }
PB_INLINE F4 power_of_two(F4 n) { return bits_as_floats((__builtin_convertvector(n, I4) + 127) << 23); }
PB_INLINE F16 scale_by_power(F16 x, F16 n) {
  return x * F16{power_of_two(n.a), power_of_two(n.b), power_of_two(n.c), power_of_two(n.d)};
}
PB_INLINE F4 exponent4(F4 x) { return __builtin_convertvector((floats_as_bits(x) >> 23) - 127, F4); }
PB_INLINE F16 exponent(F16 x) { return {exponent4(x.a), exponent4(x.b), exponent4(x.c), exponent4(x.d)}; }
// Not inlined: the compiler takes it apart float by float, which takes it long.
static __attribute__((noinline)) void transpose(F16 v[16]) {
  float from[16 * 16], to[16 * 16];
  for (int i = 0; i < 16; ++i) store(from + 16 * i, v[i]);
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k) to[16 * i + k] = from[16 * k + i];
  for (int i = 0; i < 16; ++i) v[i] = load(to + 16 * i);
}
PB_INLINE F16 reciprocal(F16 x) { return set1(1.0f) / x; }
static __attribute__((noinline)) F16 sums(const F16 v[16]) {
  float out[16];
  for (int i = 0; i < 16; ++i) out[i] = sum(v[i]);
  return load(out);
}
PB_INLINE F16 load_part(const float* p, int n) {
  float v[16] = {};
  std::memcpy(v, p, (size_t)n * sizeof(float));
  return load(v);
}
PB_INLINE void store_part(float* p, F16 x, int n) {
  float v[16];
  store(v, x);
  std::memcpy(p, v, (size_t)n * sizeof(float));
}

#endif

PB_INLINE F16 zero() { return set1(0.0f); }
#if !(defined(__AVX512F__) && defined(__AVX512DQ__))
PB_INLINE F16 gather(const float* p, const int32_t* index, int stride) {
  float v[16];
  for (int i = 0; i < 16; ++i) v[i] = p[(int64_t)index[i] * stride];
  return load(v);
}
PB_INLINE int append_lanes(uint32_t bits, int32_t first, int32_t* to) {
  int count = 0;
  for (; bits; bits &= bits - 1) to[count++] = first + __builtin_ctz(bits);
  return count;
}
#endif

PB_INLINE F16 load_up_to(const float* p, int n) { return n >= 16 ? load(p) : load_part(p, n); }
PB_INLINE void store_up_to(float* p, F16 v, int n) {
  if (n >= 16) {
    store(p, v);
  } else {
    store_part(p, v, n);
  }
}

// 2^t to about 1e-7 relative for t <= 127, and for t < -126 no more than 2^-126.
PB_INLINE F16 exp2(F16 t) {
  t = max(t, set1(-126.0f));
  const F16 n = round_even(t);
  const F16 f = t - n;
  F16 p = set1(1.535336188319500e-4f);
  p = fma(p, f, set1(1.339887440266574e-3f));
  p = fma(p, f, set1(9.618437357674640e-3f));
  p = fma(p, f, set1(5.550332471162809e-2f));
  p = fma(p, f, set1(2.402264791363012e-1f));
  p = fma(p, f, set1(6.931472028550421e-1f));
  p = fma(p, f, set1(1.0f));
  return scale_by_power(p, n);
}

// e^x to about 1e-7 relative, for x in [-87, 87] (clamped).
PB_INLINE F16 exp(F16 x) { return exp2(min(max(x, set1(-87.0f)), set1(87.0f)) * set1(1.44269504088896341f)); }

// Natural logarithm to about 1e-7 relative, for x in [1e-37, 1e37]: that of m in [0.7, 1.42], x = m 2^n, by the series
// of 2 atanh((m - 1) / (m + 1)).
PB_INLINE F16 log(F16 x) {
  const F16 n = exponent(x * set1(1.41421356237309505f));
  const F16 m = scale_by_power(x, zero() - n);
  const F16 z = (m - set1(1.0f)) * reciprocal(m + set1(1.0f)), z2 = z * z;
  F16 p = set1(2.0f / 9.0f);
  p = fma(p, z2, set1(2.0f / 7.0f));
  p = fma(p, z2, set1(2.0f / 5.0f));
  p = fma(p, z2, set1(2.0f / 3.0f));
  p = fma(p, z2, set1(2.0f));
  return fma(n, set1(0.693147180559945309f), p * z);
}

// What the templates of projection.h need of a number.
PB_INLINE F16 operator-(F16 a) { return zero() - a; }
PB_INLINE F16 operator+(F16 a, float b) { return a + set1(b); }
PB_INLINE F16 operator-(F16 a, float b) { return a - set1(b); }
PB_INLINE F16 operator*(F16 a, float b) { return a * set1(b); }
PB_INLINE F16 operator+(float a, F16 b) { return set1(a) + b; }
PB_INLINE F16 operator-(float a, F16 b) { return set1(a) - b; }
PB_INLINE F16 operator*(float a, F16 b) { return set1(a) * b; }
PB_INLINE F16 operator/(float a, F16 b) { return set1(a) / b; }
PB_INLINE M16 operator<(F16 a, F16 b) { return less(a, b); }
PB_INLINE M16 operator>(F16 a, F16 b) { return less(b, a); }
PB_INLINE M16 operator<=(F16 a, F16 b) { return less_equal(a, b); }
PB_INLINE M16 operator>=(F16 a, F16 b) { return less_equal(b, a); }
PB_INLINE M16 operator<(F16 a, float b) { return a < set1(b); }
PB_INLINE M16 operator>(F16 a, float b) { return a > set1(b); }
PB_INLINE M16 operator>=(F16 a, float b) { return a >= set1(b); }
PB_INLINE F16 smaller(F16 a, F16 b) { return min(a, b); }
PB_INLINE F16 larger(F16 a, F16 b) { return max(a, b); }
PB_INLINE F16 magnitude(F16 a) { return max(a, -a); }
// 0 where the inverse of an extent, and what a gradient multiplies it by, would overflow.
PB_INLINE F16 exponential(F16 a) { return select(a < -80.0f, zero(), exp(a)); }
PB_INLINE F16 logarithm(F16 a) { return log(a); }

}  // namespace
}  // namespace panbench
