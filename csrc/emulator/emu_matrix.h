// Matrix fragments of the emulator.
#pragma once
#include "emu.h"

// Stand-ins for the matrix fragments of nvcuda::wmma, 16 x 16 x 8 in TF32. A lane keeps whole factors, and of a sum
// the half row that it owns. Loads and stores wait for nobody: kernels must see to that.
namespace panbench::emu::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
}
enum layout_t { mem_row_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment;

template <typename Use, typename Layout>
struct Factor {
  static constexpr int num_elements = 128;
  float x[num_elements];  // [16 rows or columns, 8]
};
template <typename Layout>
struct fragment<matrix_a, 16, 16, 8, precision::tf32, Layout> : Factor<matrix_a, Layout> {};
template <typename Layout>
struct fragment<matrix_b, 16, 16, 8, precision::tf32, Layout> : Factor<matrix_b, Layout> {};
template <>
struct fragment<accumulator, 16, 16, 8, float, void> {
  static constexpr int num_elements = 8;
  float x[num_elements];
};

inline void load_matrix_sync(fragment<matrix_a, 16, 16, 8, precision::tf32, row_major>& a, const float* p, int ld) {
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 8; ++k) a.x[i * 8 + k] = p[i * ld + k];
}
inline void load_matrix_sync(fragment<matrix_a, 16, 16, 8, precision::tf32, col_major>& a, const float* p, int ld) {
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 8; ++k) a.x[i * 8 + k] = p[k * ld + i];
}
inline void load_matrix_sync(fragment<matrix_b, 16, 16, 8, precision::tf32, row_major>& b, const float* p, int ld) {
  for (int j = 0; j < 16; ++j)
    for (int k = 0; k < 8; ++k) b.x[j * 8 + k] = p[k * ld + j];
}
inline void load_matrix_sync(fragment<matrix_b, 16, 16, 8, precision::tf32, col_major>& b, const float* p, int ld) {
  for (int j = 0; j < 16; ++j)
    for (int k = 0; k < 8; ++k) b.x[j * 8 + k] = p[j * ld + k];
}

using Sum = fragment<accumulator, 16, 16, 8, float, void>;

inline void fill_fragment(Sum& sum, float value) {
  for (float& x : sum.x) x = value;
}

template <typename A, typename B>
void mma_sync(Sum& d, const A& a, const B& b, const Sum& c) {
  const int row = lane() / 2, column = lane() % 2 * 8;
  for (int j = 0; j < 8; ++j) {
    float s = c.x[j];
    for (int k = 0; k < 8; ++k) s += a.x[row * 8 + k] * b.x[(column + j) * 8 + k];
    d.x[j] = s;
  }
}

inline void store_matrix_sync(float* p, const Sum& sum, int ld, layout_t) {
  for (int j = 0; j < 8; ++j) p[lane() / 2 * ld + lane() % 2 * 8 + j] = sum.x[j];
}

// Round to nearest, ties away from zero: ten bits of mantissa stay.
inline float __float_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isfinite(value)) bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace panbench::emu::wmma
