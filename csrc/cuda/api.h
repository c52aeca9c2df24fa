// Entry points of the CUDA back end. All pointers but `stream` are device memory, dense and row-major; the caller
// allocates everything. A call puts work on the stream and returns 0, or an error code for pb_cuda_error. Where the
// size of an output depends on data there are two calls: the first leaves the count on the device, the second fills.
// The Python side reads this file: one declaration a function, plain C types only.
#pragma once
#include <cstdint>

extern "C" {

const char* pb_cuda_error(int code);

// Camera of the calls below: pose [16] is world_to_camera, row-major.

// seen [N]: number of visible Gaussians up to and including each. scratch: pb_cuda_scan_bytes(count) bytes.
int pb_cuda_project_count(const float* means, const float* quats, const float* log_scales, const float* logits,
                          int64_t count, int scale_dim, const float* pose, float fx, float fy, float cx, float cy,
                          int width, int height, int kind, float near_plane, float low_pass, int32_t* seen,
                          void* scratch, int64_t scratch_bytes, void* stream);
// ids [M], geometry [M, G], normals [M, 3], M = seen[N - 1].
int pb_cuda_project_fill(const float* means, const float* quats, const float* log_scales, const float* logits,
                         int64_t count, int scale_dim, const float* pose, float fx, float fy, float cx, float cy,
                         int width, int height, int kind, float near_plane, float low_pass, const int32_t* seen,
                         int64_t* ids, float* geometry, float* normals, void* stream);
// Writes the gradients of the visible rows into arrays [N, .] of zeros.
int pb_cuda_project_backward(const float* means, const float* quats, const float* log_scales, const float* logits,
                             int64_t visible, int scale_dim, const float* pose, float fx, float fy, float cx, float cy,
                             int width, int height, int kind, float near_plane, float low_pass, const int64_t* ids,
                             const float* grad_geometry, const float* grad_normals, float* grad_means,
                             float* grad_quats, float* grad_log_scales, float* grad_logits, void* stream);

// Scratch of a running sum over `count` values, and of a sort of `count` pairs.
int64_t pb_cuda_scan_bytes(int64_t count);
int64_t pb_cuda_sort_bytes(int64_t count);

// order [M]: rows by depth, ties by row. ends [M]: number of (Gaussian, tile) pairs up to and including each of them.
// keys [3 M]: working space. scratch: the larger of the scan's and the sort's.
int pb_cuda_bin_count(const float* geometry, int64_t visible, int kind, int width, int height, int32_t* order,
                      int32_t* ends, int32_t* keys, void* scratch, int64_t scratch_bytes, void* stream);
// tile_offsets [T + 1], tile_ids [K], K = ends[M - 1]. keys [3 K]: working space. scratch: the sort's.
int pb_cuda_bin_fill(const float* geometry, int64_t visible, int kind, int width, int height, const int32_t* order,
                     const int32_t* ends, int64_t pairs, int32_t* tile_offsets, int32_t* tile_ids, int32_t* keys,
                     void* scratch, int64_t scratch_bytes, void* stream);

// image [H, W, C], label_image [H, W, L], alpha, depth and median [H, W]. tf32: multiply on tensor cores where the
// device can and C + L > 8. bounds [M, 12]: working space. What labels are compared with is semantic, mask and weight
// [H, W], or all three are null: sums [1 + 2 Q + 2 K Q], zero before, get entropy, presence and overlap, Q = L -
// first_query. distortion [H, W], or null: not wanted.
int pb_cuda_blend(const float* geometry, const float* features, const float* labels, const int32_t* tile_offsets,
                  const int32_t* tile_ids, int64_t visible, int width, int height, int feature_count, int label_count,
                  int kind, float near_plane, int tf32, const int32_t* semantic, const int32_t* mask,
                  const float* weight, int masks, int classes, int first_query, int logits, float epsilon,
                  float* bounds, float* image, float* label_image, float* alpha, float* depth, float* median,
                  double* sums, float* distortion, void* stream);
// Adds to grad_geometry [M, G], grad_features [M, C] and grad_labels [M, L]. Each of the upstream gradients, grad_image
// to grad_distortion, may be null: nothing depends on it. detached: the last so many labels send no gradient into
// geometry. grad_absolute [M, 2]: gets the sums over pixels of the absolute gradients of ellipsoids' means, or is null.
int pb_cuda_blend_backward(const float* geometry, const float* features, const float* labels,
                           const int32_t* tile_offsets, const int32_t* tile_ids, int64_t visible, int width, int height,
                           int feature_count, int label_count, int kind, int detached, float near_plane, int tf32,
                           const int32_t* semantic, const int32_t* mask, const float* weight, int masks, int classes,
                           int first_query, int logits, float epsilon, const float* label_image,
                           const float* grad_image, const float* grad_label_image, const float* grad_alpha,
                           const float* grad_depth, const float* grad_median, const float* grad_entropy,
                           const float* grad_presence, const float* grad_overlap, const float* grad_distortion,
                           float* bounds, float* grad_geometry, float* grad_features, float* grad_labels,
                           float* grad_absolute, void* stream);

// The sums of a label image [H, W, L] by itself, as in pb_cuda_blend.
int pb_cuda_label_sums(const float* labels, int width, int height, int label_count, const int32_t* semantic,
                       const int32_t* mask, const float* weight, int masks, int classes, int first_query, int logits,
                       float epsilon, double* sums, void* stream);
// grad_labels [H, W, L].
int pb_cuda_label_sums_backward(const float* labels, int width, int height, int label_count, const int32_t* semantic,
                                const int32_t* mask, const float* weight, int masks, int classes, int first_query,
                                int logits, float epsilon, const float* grad_entropy, const float* grad_presence,
                                const float* grad_overlap, float* grad_labels, void* stream);

// attention [M, Q].
int pb_cuda_attend(const float* features, const float* means, const float* queries, const float* query_means,
                   const float* query_roots, int64_t rows, int dim, int query_count, int logarithm, float* attention,
                   void* stream);
// Writes grad_features [M, D] and grad_means [M, 3]; adds to grad_queries [Q, D], grad_query_means [Q, 3] and
// grad_query_roots [Q, 9].
int pb_cuda_attend_backward(const float* features, const float* means, const float* queries, const float* query_means,
                            const float* query_roots, int64_t rows, int dim, int query_count, int logarithm,
                            const float* grad, float* grad_features, float* grad_means, float* grad_queries,
                            float* grad_query_means, float* grad_query_roots, void* stream);
// shares [M, Q]: softmax over queries of `temperature` times what pb_cuda_attend gives; with has_rest there is one more
// entry, temperature times `rest`, whose share is left out.
int pb_cuda_attend_shares(const float* features, const float* means, const float* queries, const float* query_means,
                          const float* query_roots, int64_t rows, int dim, int query_count, int logarithm,
                          float temperature, int has_rest, float rest, float* shares, void* stream);
// As pb_cuda_attend_backward, with the gradient of the shares.
int pb_cuda_attend_shares_backward(const float* features, const float* means, const float* queries,
                                   const float* query_means, const float* query_roots, int64_t rows, int dim,
                                   int query_count, int logarithm, float temperature, const float* shares,
                                   const float* grad, float* grad_features, float* grad_means, float* grad_queries,
                                   float* grad_query_means, float* grad_query_roots, void* stream);

// camera [3]; rest [N, rest_count, 3]; colors [M, 3].
int pb_cuda_spherical_harmonics(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                                const float* rest, const float* means, const float* camera, float* colors,
                                void* stream);
// Writes the gradients of the visible rows into arrays of zeros.
int pb_cuda_spherical_harmonics_backward(int64_t visible, const int64_t* ids, int degree, int rest_count,
                                         const float* dc, const float* rest, const float* means, const float* camera,
                                         const float* grad_colors, float* grad_dc, float* grad_rest, float* grad_means,
                                         void* stream);

// Number of partial sums that pb_cuda_ssim needs.
int64_t pb_cuda_ssim_blocks(int height, int width, int channels);
// value []: mean SSIM; grad_x [H, W, C]. partial [3, H, W, C] and sums [pb_cuda_ssim_blocks]: working space.
int pb_cuda_ssim(const float* x, const float* y, int height, int width, int channels, float* value, float* grad_x,
                 float* partial, double* sums, void* stream);

}  // extern "C"
