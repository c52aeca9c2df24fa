// Arguments of the CPU kernels that are compiled once per instruction set, and the table that dispatches to them.
#pragma once
#include <cstdint>

#include "../footprint.h"

namespace panbench {

struct BlendArgs {
  int kind, width, height, tiles_x, tiles_y;
  int channels;         // C
  int stride;           // floats in a row of feature gradients: C rounded up to 16
  int attached;         // the first `attached` channels send gradient into geometry
  float near_plane;
  const float* geometry;          // [M, G]
  const Footprint* footprints;    // [M]
  const float* features;          // [M, C]
  const int32_t* tile_offsets;    // [T + 1]
  const int32_t* tile_ids;        // [K]
};

struct BlendOut {
  float* image;   // [H, W, C]
  float* alpha;   // [H, W]
  float* depth;   // [H, W]
  float* median;  // [H, W]
};

struct BlendGradIn {
  const float* image;   // [H, W, C]
  const float* alpha;   // [H, W]
  const float* depth;   // [H, W]
  const float* median;  // [H, W]
};

// Gradients that one group of tiles writes, a row for each Gaussian that its pixels meet.
struct GradRows {
  int32_t* local;   // [M] row of a Gaussian, -1 if it has none yet
  int32_t* ids;     // [rows] Gaussian of a row
  float* features;  // [rows, stride]
  float* geometry;  // [rows, 16]
  int count;        // rows in use; the arrays have room for every candidate of the next tile
};

// One of a Gaussian's rows.
struct GradSource {
  const float* features;
  const float* geometry;
};

struct AttendArgs {
  int64_t rows;
  int dim, queries, query_stride;  // query_stride: queries rounded up to 16
  int dim_stride;                  // dim rounded up to 16
  const float* features;           // [M, D]
  const float* means;              // [M, 3]
  const float* query_features;     // [D, query_stride], transposed
  const float* query_rows;         // [Q, dim_stride], the same row by row
  const float* query_means;        // [3, query_stride], transposed
  const float* query_roots;        // [9, query_stride]: L with Sigma^-1 = L^T L, row-major entries
  bool logarithm;                  // give log A instead of A
  bool shares;                     // of that, the softmax over queries of `temperature` times it
  bool has_rest;                   // that softmax has one more entry, whose logit is `rest`
  float temperature, rest;
};

struct KernelTable {
  const char* name;
  // Bytes of scratch that blend needs for a tile with `hits` candidates.
  int64_t (*blend_scratch)(int64_t hits, int stride);
  void (*blend_forward)(const BlendArgs&, const BlendOut&, int tile, char* scratch);
  void (*blend_backward)(const BlendArgs&, const BlendGradIn&, GradRows&, int tile, char* scratch);
  // Writes the sums of `count` rows: features [channels], geometry [width].
  void (*sum_rows)(const GradSource* from, int64_t count, int channels, float* features, int width, float* geometry);
  // attention [rows, queries]
  void (*attend_forward)(const AttendArgs&, float* attention, int64_t begin, int64_t end);
  // Writes rows begin..end of the feature and mean gradients; adds to the gradients of query_rows, query_means and
  // query_roots, laid out like these. `shares` is what attend_forward gave, where it gives shares.
  void (*attend_backward)(const AttendArgs&, const float* shares, const float* grad_attention, float* grad_features, float* grad_means,
                          float* grad_query_rows, float* grad_query_means, float* grad_query_roots, int64_t begin,
                          int64_t end);
  // out[i] = sum over k in [-radius, radius] of taps[k + radius] * in[i + k * step], i < count; `in` is padded.
  void (*convolve)(const float* in, float* out, int64_t count, const float* taps, int radius, int64_t step);
};

extern "C" {
extern const KernelTable panbench_kernels_portable;
#if defined(__x86_64__)
extern const KernelTable panbench_kernels_v3;
extern const KernelTable panbench_kernels_v4;
#endif
}

// The best table for this processor, or the best one up to $PANBENCH_ISA (v4, v3, portable): for tests and measurements.
const KernelTable& kernels();

}  // namespace panbench
