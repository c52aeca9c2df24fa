// The stages of the CPU back end, free of torch. Arrays are dense, row-major float32 unless said otherwise.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../projection.h"
#include "kernels.h"

namespace panbench {

// Asks for room once M is known.
void project(const Gaussians& gaussians, const View& view, int kind,
             const std::function<VisibleOut(int64_t)>& allocate);

// Gradients [N, .], zero in rows that are not visible.
void project_backward(const Gaussians& gaussians, const View& view, int kind, const int64_t* ids, int64_t visible,
                      const float* grad_geometry, const float* grad_normals, const GaussianArrays& out);

// Tile lists: rows of `geometry` that may touch a tile, front to back (by depth, ties by row).
struct TileLists {
  std::vector<int32_t> offsets;  // [T + 1]
  std::vector<int32_t> ids;      // [K]
};
TileLists bin(const float* geometry, int64_t visible, int kind, int width, int height);

// Sums over the labelled pixels of an image; docs at ops.label_sums.
struct LabelTotals {
  float* entropy;   // []
  float* presence;  // [2, Q]
  float* overlap;   // [2, K, Q]
};

// Sums over the parts of an image, which threads form one by one; added up in the order of the parts, in double.
class LabelParts {
 public:
  LabelParts(const LabelTargets& targets, int64_t parts);
  // Makes room for the sums of a part: `across` pixels from `first`, and so on in `down` rows `stride` pixels apart.
  // Nothing where there are no targets.
  void open(int64_t part, int64_t first, int64_t down, int64_t across, int64_t stride);
  void total(const LabelTotals& to) const;
  std::vector<LabelSums> sums;  // [parts]

 private:
  LabelTargets targets_;
  std::vector<std::vector<float>> rows_;     // of each part, presence and then overlap
  std::vector<std::vector<int32_t>> masks_;  // that occur in each part
};

// The tables [K + 1, 3, padded] of LabelGradIn, from the gradients of presence and overlap (null: none).
std::vector<float> label_tables(const LabelTargets& targets, const float* grad_presence, const float* grad_overlap);

void label_sums(const LabelTargets& targets, const float* image, int64_t pixels, const LabelTotals& totals);
void label_sums_backward(const LabelTargets& targets, const LabelGradIn& in, const float* image, int64_t pixels,
                         float* grad);

// Image, label image, alpha, sum of weighted depth, median depth and, where they are wanted, distortion and sums.
void blend(BlendArgs args, int64_t visible, BlendOut out, const LabelTotals& totals);

// Gradients of geometry [M, G], features [M, C] and labels [M, L], and, if in.absolute, the sums over pixels [M, 2] of the
// absolute gradients of ellipsoids' means. Same bits for any number of threads.
void blend_backward(BlendArgs args, int64_t visible, const BlendGradIn& in, float* grad_geometry, float* grad_features,
                    float* grad_labels, float* absolute);

void attend(const AttendArgs& args, float* attention);
void attend_backward(const AttendArgs& args, const float* shares, const float* grad_attention, float* grad_features,
                     float* grad_means, float* grad_query_rows, float* grad_query_means, float* grad_query_roots);

// Rows `ids` (ascending, distinct) of an array [N, width]; and the array [N, width] that is zero but for these rows.
void take_rows(const float* from, const int64_t* ids, int64_t count, int64_t width, float* to);
void spread_rows(const float* from, const int64_t* ids, int64_t count, int64_t width, int64_t total, float* to);

// a SSIM + b L1 of two images [H, W, C], with its gradient in x: mean structural similarity (11 x 11 Gaussian window of
// sigma 1.5, zero padding) and mean absolute difference.
double similarity(const float* x, const float* y, int64_t height, int64_t width, int64_t channels, double a, double b,
                  float* grad_x);

// Depth [H, W] of a pinhole camera, 0 where unknown. Normals [H, W, 3] come from central differences over `step` pixels
// and face the camera; they are zero near the border and where a depth that they need is unknown.
struct DepthMap {
  const float* depth;
  int64_t height, width, step;
  float fx, fy, cx, cy;
};
void depth_normals(const DepthMap& map, float* normals);
void depth_normals_backward(const DepthMap& map, const float* grad_normals, float* grad_depth);

// Mean of 1 - n . r over pixels whose reference normal is known (not zero), and how many those are.
struct NormalMaps {
  int64_t height, width, stride;
  const float* normals;    // [H W, stride >= 3]
  const float* reference;  // [H W, 3]
};
double normal_loss(const NormalMaps& maps, int64_t* known);
void normal_loss_backward(const NormalMaps& maps, int64_t known, float upstream, float* grad_normals,
                          float* grad_reference);

// Discs `ids` [discs], ascending and distinct, of all, and the planes that each is held to; docs at ops.mixture_loss.
struct MixtureTerm {
  const float *means, *quats, *log_scales;  // [N, 3], [N, 4], [N, scale_dim]
  int64_t scale_dim;
  const int64_t* ids;
  int64_t discs;
  const int64_t* components;  // [N, neighbors] rows of the planes; below 0: none
  const float* weights;       // [N, neighbors]
  int64_t neighbors;
  const float *centers, *normals;  // [planes, 3]
  int64_t planes;
  float corner, normal_share;
};
constexpr int64_t kMixtureGradient = 9;  // of a disc's mean, quaternion and first two log-scales
// Mean over discs, with the gradient [discs, 9] of each disc's own value. Sets `unknown` if a component is no plane.
double mixture_loss(const MixtureTerm& term, float* gradients, bool& unknown);
// Gradients of all N = `count` Gaussians: `scale` times those of the discs, and zero.
void mixture_loss_backward(const int64_t* ids, int64_t discs, int64_t count, int64_t scale_dim, const float* gradients,
                           float scale, float* grad_means, float* grad_quats, float* grad_scales);

// The labels of a view and another view of the same surfaces; rotation and translation lead from its camera into the
// other one.
struct Warping {
  int64_t width, height, other_width, other_height;
  int64_t channels, stride;  // that are compared, and that a pixel of `labels` has
  const float* labels;       // [H, W, stride]
  const float* depth;        // [H, W], 0 where unknown
  const float* other;        // [H', W', channels]
  const float* other_depth;  // [H', W']
  Mat3 rotation;
  Vec3 translation;
  float fx, fy, cx, cy, other_fx, other_fy, other_cx, other_cy;
  float tolerance;
};
// Mean distance over the pixels that both views see, and how many these are. directions [H, W, channels]: the gradient
// of each pixel's distance, zero where it does not count.
double warping_loss(const Warping& warping, float* directions, int64_t* valid);
// Gradient [pixels, stride] of the labels: `scale` times the directions, zero in the other channels.
void warping_loss_backward(const float* directions, int64_t pixels, int64_t channels, int64_t stride, float scale,
                           float* grad);

void spherical_harmonics(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                         const float* rest, const float* means, Vec3 camera, float* colors);
void spherical_harmonics_backward(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                                  const float* rest, const float* means, Vec3 camera, const float* grad_colors,
                                  int64_t count, float* grad_dc, float* grad_rest, float* grad_means);

}  // namespace panbench
