// Projection and spherical harmonics: a thread per Gaussian.
#include "../projection.h"
#include "../sh.h"
#include "api.h"
#include "device.h"
#include "sort.h"

namespace panbench {
namespace {

constexpr int kThreads = 128;

struct Gaussians {
  const float* means;
  const float* quats;
  const float* log_scales;
  const float* logits;
  int scale_dim;
};

// The camera with its pose still on the device.
struct CameraArgs {
  const float* pose;
  View view;

  __device__ View load() const {
    View out = view;
    out.rotation = {load3(pose), load3(pose + 4), load3(pose + 8)};
    out.translation = {pose[3], pose[7], pose[11]};
    return out;
  }
};

CameraArgs camera_args(const float* pose, float fx, float fy, float cx, float cy, int width, int height,
                       float near_plane, float low_pass) {
  View view{};
  view.fx = fx, view.fy = fy, view.cx = cx, view.cy = cy;
  view.width = (float)width, view.height = (float)height;
  view.near_plane = near_plane;
  view.low_pass = low_pass;
  return {pose, view};
}

__device__ int64_t thread_number() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ GaussianOf<float> load_gaussian(const Gaussians& g, int64_t i) {
  const float *quat = g.quats + 4 * i, *scale = g.log_scales + i * g.scale_dim;
  const Vec3 scales = {scale[0], scale[1], g.scale_dim > 2 ? scale[2] : 0.0f};
  return {load3(g.means + 3 * i), quat[0], quat[1], quat[2], quat[3], scales, g.logits[i]};
}

template <int kind>
__device__ bool project_one(const Gaussians& g, int64_t i, const View& view, float* geometry, Vec3& normal) {
  const GaussianOf<float> in = load_gaussian(g, i);
  float sign;
  if constexpr (kind == kEllipsoid) {
    EllipsoidState<float> s;
    const bool visible = ellipsoid_state(in, view, s, geometry);
    normal = facing(shortest_axis(s.common.rotation, in.log_scale), s.common, view, sign);
    return visible;
  } else {
    DiscState<float> s;
    const bool visible = disc_state(in, view, s, geometry);
    normal = facing(s.common.rotation.column(2), s.common, view, sign);
    return visible;
  }
}

template <int kind>
__global__ void __launch_bounds__(kThreads) mark_visible(Gaussians g, int64_t count, CameraArgs camera, int32_t* seen) {
  const int64_t i = thread_number();
  if (i >= count) return;
  float geometry[kDiscGeometry];
  Vec3 normal;
  seen[i] = project_one<kind>(g, i, camera.load(), geometry, normal) ? 1 : 0;
}

// The test is not made again: compiled a second time it might come out otherwise.
template <int kind>
__global__ void __launch_bounds__(kThreads) write_visible(Gaussians g, int64_t count, CameraArgs camera,
                                                          const int32_t* seen, int64_t* ids, float* geometry,
                                                          float* normals) {
  const int64_t i = thread_number();
  if (i >= count) return;
  const int64_t row = (i > 0 ? seen[i - 1] : 0);
  if (seen[i] == row) return;
  constexpr int kWidth = kind == kDisc ? kDiscGeometry : kEllipsoidGeometry;
  float values[kDiscGeometry] = {};
  Vec3 normal = {0, 0, 0};
  project_one<kind>(g, i, camera.load(), values, normal);
  ids[row] = i;
  for (int k = 0; k < kWidth; ++k) geometry[row * kWidth + k] = values[k];
  store3(normals + 3 * row, normal);
}

template <int kind>
__global__ void __launch_bounds__(kThreads) project_backward(Gaussians g, int64_t visible, CameraArgs camera,
                                                             const int64_t* ids, const float* grad_geometry,
                                                             const float* grad_normals, float* grad_means,
                                                             float* grad_quats, float* grad_log_scales,
                                                             float* grad_logits) {
  const int64_t m = thread_number();
  if (m >= visible) return;
  const int64_t i = ids[m];
  const View view = camera.load();
  const Vec3 grad_normal = load3(grad_normals + 3 * m);
  GaussianGradients<float> grad;
  if constexpr (kind == kEllipsoid) {
    grad = ellipsoid_backward(load_gaussian(g, i), view, grad_geometry + m * kEllipsoidGeometry, grad_normal);
  } else {
    grad = disc_backward(load_gaussian(g, i), view, grad_geometry + m * kDiscGeometry, grad_normal);
  }
  store3(grad_means + 3 * i, grad.mean);
  float *quat = grad_quats + 4 * i, *scale = grad_log_scales + i * g.scale_dim;
  quat[0] = grad.w, quat[1] = grad.x, quat[2] = grad.y, quat[3] = grad.z;
  scale[0] = grad.log_scale.x, scale[1] = grad.log_scale.y;
  if (g.scale_dim > 2) scale[2] = grad.log_scale.z;
  grad_logits[i] = grad.logit;
}

struct Harmonics {
  const int64_t* ids;
  const float* dc;
  const float* rest;
  const float* means;
  const float* camera;
  int degree, rest_count;
};

__global__ void __launch_bounds__(kThreads) harmonics_forward(Harmonics h, int64_t visible, float* colors) {
  const int64_t m = thread_number();
  if (m >= visible) return;
  const int64_t i = h.ids[m];
  store3(colors + 3 * m,
         sh_color(h.degree, h.dc + 3 * i, h.rest + 3 * h.rest_count * i, h.means + 3 * i, load3(h.camera)));
}

__global__ void __launch_bounds__(kThreads) harmonics_backward(Harmonics h, int64_t visible, const float* grad_colors,
                                                               float* grad_dc, float* grad_rest, float* grad_means) {
  const int64_t m = thread_number();
  if (m >= visible) return;
  const int64_t i = h.ids[m], r = 3 * h.rest_count * i;
  sh_color_backward(h.degree, h.dc + 3 * i, h.rest + r, h.means + 3 * i, load3(h.camera), load3(grad_colors + 3 * m),
                    grad_dc + 3 * i, grad_rest + r, grad_means + 3 * i);
}

}  // namespace

extern "C" {

int pb_cuda_project_count(const float* means, const float* quats, const float* log_scales, const float* logits,
                          int64_t count, int scale_dim, const float* pose, float fx, float fy, float cx, float cy,
                          int width, int height, int kind, float near_plane, float low_pass, int32_t* seen,
                          void* scratch, int64_t scratch_bytes, void* stream) {
  const CameraArgs camera = camera_args(pose, fx, fy, cx, cy, width, height, near_plane, low_pass);
  const auto kernel = kind == kEllipsoid ? mark_visible<kEllipsoid> : mark_visible<kDisc>;
  const int error = launch(kernel, blocks_for(count, kThreads), kThreads, 0, stream,
                           Gaussians{means, quats, log_scales, logits, scale_dim}, count, camera, seen);
  return error ? error : running_sum(scratch, scratch_bytes, seen, seen, count, stream);
}

int pb_cuda_project_fill(const float* means, const float* quats, const float* log_scales, const float* logits,
                         int64_t count, int scale_dim, const float* pose, float fx, float fy, float cx, float cy,
                         int width, int height, int kind, float near_plane, float low_pass, const int32_t* seen,
                         int64_t* ids, float* geometry, float* normals, void* stream) {
  const CameraArgs camera = camera_args(pose, fx, fy, cx, cy, width, height, near_plane, low_pass);
  const auto kernel = kind == kEllipsoid ? write_visible<kEllipsoid> : write_visible<kDisc>;
  return launch(kernel, blocks_for(count, kThreads), kThreads, 0, stream,
                Gaussians{means, quats, log_scales, logits, scale_dim}, count, camera, seen, ids, geometry, normals);
}

int pb_cuda_project_backward(const float* means, const float* quats, const float* log_scales, const float* logits,
                             int64_t visible, int scale_dim, const float* pose, float fx, float fy, float cx, float cy,
                             int width, int height, int kind, float near_plane, float low_pass, const int64_t* ids,
                             const float* grad_geometry, const float* grad_normals, float* grad_means,
                             float* grad_quats, float* grad_log_scales, float* grad_logits, void* stream) {
  const CameraArgs camera = camera_args(pose, fx, fy, cx, cy, width, height, near_plane, low_pass);
  const auto kernel = kind == kEllipsoid ? project_backward<kEllipsoid> : project_backward<kDisc>;
  return launch(kernel, blocks_for(visible, kThreads), kThreads, 0, stream,
                Gaussians{means, quats, log_scales, logits, scale_dim}, visible, camera, ids, grad_geometry,
                grad_normals, grad_means, grad_quats, grad_log_scales, grad_logits);
}

int pb_cuda_spherical_harmonics(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                                const float* rest, const float* means, const float* camera, float* colors,
                                void* stream) {
  return launch(harmonics_forward, blocks_for(visible, kThreads), kThreads, 0, stream,
                Harmonics{ids, dc, rest, means, camera, degree, rest_count}, visible, colors);
}

int pb_cuda_spherical_harmonics_backward(int64_t visible, const int64_t* ids, int degree, int rest_count,
                                         const float* dc, const float* rest, const float* means, const float* camera,
                                         const float* grad_colors, float* grad_dc, float* grad_rest, float* grad_means,
                                         void* stream) {
  return launch(harmonics_backward, blocks_for(visible, kThreads), kThreads, 0, stream,
                Harmonics{ids, dc, rest, means, camera, degree, rest_count}, visible, grad_colors, grad_dc, grad_rest,
                grad_means);
}

}  // extern "C"

}  // namespace panbench
