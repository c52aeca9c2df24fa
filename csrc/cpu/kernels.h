// Arguments of the CPU kernels that are compiled once per instruction set, and the table that dispatches to them.
#pragma once
#include <cstdint>

#include "../footprint.h"

namespace panbench {

// Parameters of all Gaussians.
struct Gaussians {
  int64_t count;
  const float* means;       // [N, 3]
  const float* quats;       // [N, 4]
  const float* log_scales;  // [N, scale_dim]
  int scale_dim;
  const float* logits;  // [N]
};

// Gradients [N, .] of all Gaussians, laid out like their parameters.
struct GaussianArrays {
  float *means, *quats, *log_scales, *logits;
};

// Room for the Gaussians that can be seen: indices [M], ascending, geometry [M, G] and facing normals [M, 3].
struct VisibleOut {
  int64_t* ids;
  float* geometry;
  float* normals;
};

constexpr int kProjected = 4096;  // Gaussians that are projected at a time

// What label channels [P, L] are compared with; docs at ops.label_sums.
struct LabelTargets {
  const int32_t* semantic;  // [P], 0 = unlabelled; null: there are no targets
  const int32_t* mask;      // [P], 0 ... K - 1, or -1
  const float* weight;      // [P]
  int channels;             // L
  int masks;                // K
  int classes, first_query;
  int queries;              // Q = L - first_query
  int padded;               // Q rounded up to 16
  int factors;              // how many factors of at least epsilon have a product that float32 can hold
  bool logits;
  float epsilon;
};

// Sums over some of the pixels; the masks that occur among these have rows.
struct LabelSums {
  double entropy;
  int count;             // masks that occur
  const int32_t* masks;  // [count]
  float* presence;       // [2, padded]
  float* overlap;        // [count, 2, padded]
};

// Gradients of the sums. A query channel I of a pixel of mask k gets A and, unless it is clamped, B / (1 - I) - C / I.
struct LabelGradIn {
  bool given;           // whether there are any
  float entropy;
  const float* tables;  // [K + 1, 3, padded]: A, B and C of mask -1, 0, ...
};

struct BlendArgs {
  int kind, width, height, tiles_x, tiles_y;
  int channels;         // C
  int labels;           // L
  int stride;           // floats in a packed row, features then labels: C + L rounded up to 16
  int attached;         // the first `attached` of them send gradient into geometry
  float near_plane;
  const float* geometry;          // [M, G]
  const Footprint* footprints;    // [M]
  const float* features;          // [M, C]
  const float* label_rows;        // [M, L]
  const int32_t* tile_offsets;    // [T + 1]
  const int32_t* tile_ids;        // [K]
  LabelTargets targets;
};

struct BlendOut {
  float* image;        // [H, W, C]
  float* label_image;  // [H, W, L]
  float* alpha;        // [H, W]
  float* depth;        // [H, W]
  float* median;       // [H, W]
  float* distortion;   // [H, W], or null: not wanted
  LabelSums* sums;     // [T], where there are targets
};

// Gradients of the outputs, null where there is none.
struct BlendGradIn {
  const float* image;           // [H, W, C]
  const float* label_gradient;  // [H, W, L]
  const float* alpha;           // [H, W]
  const float* depth;           // [H, W]
  const float* median;          // [H, W]
  const float* distortion;      // [H, W]
  const float* label_image;     // [H, W, L] as it was blended
  LabelGradIn sums;
  bool absolute;  // whether the rows get, behind the geometry of ellipsoids, the sums of |dL/d mean_x| and |dL/d mean_y|
};

// Gradients that one group of tiles writes, a row for each Gaussian that its pixels meet.
struct GradRows {
  int32_t* local;   // [M] row of a Gaussian, -1 if it has none yet
  int32_t* ids;     // [rows] Gaussian of a row
  float* features;  // [rows, stride] features, then labels
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
  // Projects the Gaussians begin..end - 1, at most kProjected of them; returns how many are visible.
  int64_t (*project)(const Gaussians&, const View&, int kind, int64_t begin, int64_t end, const VisibleOut&);
  // Writes the gradients of the visible rows first..last - 1, whose ids lie in begin..begin + kProjected - 1.
  void (*project_backward)(const Gaussians&, const View&, int kind, int64_t begin, const int64_t* ids, int64_t first,
                           int64_t last, const float* grad_geometry, const float* grad_normals, const GaussianArrays&);
  // Bytes of scratch that blend needs for a tile with `hits` candidates.
  int64_t (*blend_scratch)(int64_t hits, int stride, bool distort);
  void (*blend_forward)(const BlendArgs&, const BlendOut&, int tile, char* scratch);
  void (*blend_backward)(const BlendArgs&, const BlendGradIn&, GradRows&, int tile, char* scratch);
  // Writes the sums of `count` rows: features [channels], labels [labels], geometry [width], and absolute [2] unless null.
  void (*sum_rows)(const GradSource* from, int64_t count, int channels, float* features, int labels, float* label_rows,
                   int width, float* geometry, float* absolute);
  // Adds the pixels begin..end of an image [P, L] to the sums, sixteen at a time.
  void (*label_sums)(const LabelTargets&, const float* image, int64_t begin, int64_t end, LabelSums&);
  // Writes the gradients [P, L] of the pixels begin..end.
  void (*label_gradients)(const LabelTargets&, const LabelGradIn&, const float* image, int64_t begin, int64_t end,
                          float* grad);
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
