// Entry points of the CUDA back end. All pointers but `stream` are device memory, dense and row-major; the caller
// allocates everything. A call puts work on the stream and returns 0, or an error code for pb_cuda_error. Where the size
// of an output depends on data there are two calls: the first leaves the count on the device, the second fills.
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

// image [H, W, C], alpha, depth and median [H, W]. tf32: multiply on tensor cores where C > 8.
int pb_cuda_blend(const float* geometry, const float* features, const int32_t* tile_offsets, const int32_t* tile_ids,
                  int width, int height, int channels, int kind, float near_plane, int tf32, float* image, float* alpha,
                  float* depth, float* median, void* stream);
// Adds to grad_geometry [M, G] and grad_features [M, C]. The first `attached` channels send gradient into geometry.
int pb_cuda_blend_backward(const float* geometry, const float* features, const int32_t* tile_offsets,
                           const int32_t* tile_ids, int width, int height, int channels, int attached, int kind,
                           float near_plane, int tf32, const float* grad_image, const float* grad_alpha,
                           const float* grad_depth, const float* grad_median, float* grad_geometry,
                           float* grad_features, void* stream);

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

// losses [3]. sums [3 K + 2] as the CPU back end has them, and tail [2] of working space; both zero. A class or a pair
// that has no channel makes the losses NaN.
int pb_cuda_mask_losses(const float* channels, int64_t pixels, int channel_count, int64_t stride,
                        const int64_t* semantic, const int64_t* pair, const int64_t* columns, int pairs,
                        const float* weight, float epsilon, double* sums, double* tail, float* losses, void* stream);
// grad [P, C]. factors [2 K + 2]: working space.
int pb_cuda_mask_losses_backward(const float* channels, int64_t pixels, int channel_count, int64_t stride,
                                 const int64_t* semantic, const int64_t* pair, const int64_t* columns, int pairs,
                                 const float* weight, float epsilon, const double* sums, const float* upstream,
                                 float* factors, float* grad, void* stream);

}  // extern "C"
