// A rasterizer of the form that CPU implementations commonly have: no tiles, one Gaussian after another over the pixels
// of its bounding box, a list of hits per pixel for the way back, a running sum of channels behind each hit.
//
// Compiled in two forms. The common one is serial, and a box is a square of three deviations of the longer axis, as in
// 3DGS. With -fopenmp it is as strong as this form gets: threads own bands of image rows, gradients are gathered per
// thread and added up, and a box is the smallest outside of which alpha < 1/255.
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace {

#ifdef _OPENMP
constexpr int kBand = 16;  // rows of the image that a thread takes at a time
int threads() { return omp_get_max_threads(); }
int thread() { return omp_get_thread_num(); }
#else
constexpr int kBand = 1 << 24;  // the whole image
int threads() { return 1; }
int thread() { return 0; }
#endif
constexpr float kAlphaMax = 0.99f, kAlphaMin = 1.0f / 255.0f, kTransmittanceMin = 1e-4f;
constexpr int kScreen = 6;  // x, y, conic a, b, c, opacity

struct Camera {
  float rotation[3][3], translation[3];
  float fx, fy, cx, cy, near_plane, low_pass;
  int width, height;
};

struct Input {
  int64_t count;
  const float *means, *quats, *log_scales, *logits;
  const float* features;  // [N, C]
  int channels;
};

struct Splat {
  int64_t id;
  float depth, x, y, a, b, c, opacity;
  int x0, x1, y0, y1;
};

struct State {
  Input input;
  Camera camera;
  std::vector<Splat> splats;           // front to back
  std::vector<std::vector<int>> hits;  // of each pixel, front to back
  std::vector<float> transmittance;    // behind the last hit
};

// What the way from parameters to screen passes through.
struct Shape {
  float point[3];      // camera axes
  float norm, q[4];    // of the quaternion, and the unit quaternion
  float r[3][3];       // its rotation
  float scale[3];
  float sigma[3][3];   // covariance in the world
  float uc, vc;        // clamped x / z, y / z
  bool free_x, free_y; // not clamped
  float j[2][3], t[2][3];  // Jacobian, and Jacobian times view rotation
  float xx, xy, yy;    // screen covariance
};

Shape shape_of(const Input& in, const Camera& cam, int64_t i) {
  Shape s;
  for (int k = 0; k < 3; ++k) {
    s.point[k] = cam.translation[k];
    for (int l = 0; l < 3; ++l) s.point[k] += cam.rotation[k][l] * in.means[3 * i + l];
    s.scale[k] = std::exp(in.log_scales[3 * i + k]);
  }
  const float* raw = in.quats + 4 * i;
  s.norm = std::sqrt(raw[0] * raw[0] + raw[1] * raw[1] + raw[2] * raw[2] + raw[3] * raw[3]);
  for (int k = 0; k < 4; ++k) s.q[k] = raw[k] / s.norm;
  const float w = s.q[0], x = s.q[1], y = s.q[2], z = s.q[3];
  const float r[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                         {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                         {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
  std::memcpy(s.r, r, sizeof r);
  for (int k = 0; k < 3; ++k)
    for (int l = 0; l < 3; ++l) {
      s.sigma[k][l] = 0.0f;
      for (int m = 0; m < 3; ++m) s.sigma[k][l] += r[k][m] * r[l][m] * s.scale[m] * s.scale[m];
    }
  const float inv = 1.0f / s.point[2], u = s.point[0] * inv, v = s.point[1] * inv;
  const float margin_x = 0.15f * (float)cam.width / cam.fx, margin_y = 0.15f * (float)cam.height / cam.fy;
  s.uc = std::clamp(u, -cam.cx / cam.fx - margin_x, ((float)cam.width - cam.cx) / cam.fx + margin_x);
  s.vc = std::clamp(v, -cam.cy / cam.fy - margin_y, ((float)cam.height - cam.cy) / cam.fy + margin_y);
  s.free_x = s.uc == u;
  s.free_y = s.vc == v;
  const float j[2][3] = {{cam.fx * inv, 0.0f, -cam.fx * s.uc * inv}, {0.0f, cam.fy * inv, -cam.fy * s.vc * inv}};
  std::memcpy(s.j, j, sizeof j);
  for (int a = 0; a < 2; ++a)
    for (int l = 0; l < 3; ++l) {
      s.t[a][l] = 0.0f;
      for (int k = 0; k < 3; ++k) s.t[a][l] += j[a][k] * cam.rotation[k][l];
    }
  float cov[2][2];
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 2; ++b) {
      cov[a][b] = 0.0f;
      for (int k = 0; k < 3; ++k)
        for (int l = 0; l < 3; ++l) cov[a][b] += s.t[a][k] * s.sigma[k][l] * s.t[b][l];
    }
  s.xx = cov[0][0] + cam.low_pass;
  s.xy = cov[0][1];
  s.yy = cov[1][1] + cam.low_pass;
  return s;
}

// Half the sides of a Gaussian's box, pixels.
void box_of(const Shape& s, float opacity, float half[2]) {
#ifdef _OPENMP
  const float cut2 = 2.0f * std::log(255.0f * opacity);
  half[0] = std::sqrt(cut2 * s.xx);
  half[1] = std::sqrt(cut2 * s.yy);
#else
  (void)opacity;
  const float middle = 0.5f * (s.xx + s.yy), apart = 0.5f * (s.xx - s.yy);
  half[0] = half[1] = std::ceil(3.0f * std::sqrt(middle + std::sqrt(apart * apart + s.xy * s.xy)));
#endif
}

// The splat of a Gaussian with its box; false if no pixel can see it.
bool splat_of(const Input& in, const Camera& cam, int64_t i, Splat& out) {
  const float opacity = 1.0f / (1.0f + std::exp(-in.logits[i]));
  if (opacity < kAlphaMin) return false;
  float z = cam.translation[2];
  for (int l = 0; l < 3; ++l) z += cam.rotation[2][l] * in.means[3 * i + l];
  if (!(z > cam.near_plane)) return false;
  const Shape s = shape_of(in, cam, i);
  const float det = s.xx * s.yy - s.xy * s.xy;
  if (!(det > 0.0f)) return false;
  const float x = cam.fx * s.point[0] / z + cam.cx, y = cam.fy * s.point[1] / z + cam.cy;
  float half[2];
  box_of(s, opacity, half);
  const float half_x = half[0], half_y = half[1];
  if (!(x + half_x > 0 && x - half_x < (float)cam.width && y + half_y > 0 && y - half_y < (float)cam.height))
    return false;
  out = {i, z, x, y, s.yy / det, -s.xy / det, s.xx / det, opacity, 0, 0, 0, 0};
  out.x0 = std::max(0, (int)std::floor(x - half_x));
  out.x1 = std::min(cam.width - 1, (int)std::ceil(x + half_x));
  out.y0 = std::max(0, (int)std::floor(y - half_y));
  out.y1 = std::min(cam.height - 1, (int)std::ceil(y + half_y));
  return true;
}

float exponent(const Splat& s, float dx, float dy) {
  return 0.5f * (s.a * dx * dx + s.c * dy * dy) + s.b * dx * dy;
}

void blend_band(State& st, int band, float* image) {
  const int channels = st.input.channels, width = st.camera.width;
  const int top = band * kBand, bottom = std::min(top + kBand, st.camera.height) - 1;
  std::vector<char> closed((size_t)std::max(bottom - top + 1, 0) * width, 0);
  for (int k = 0; k < (int)st.splats.size(); ++k) {
    const Splat& s = st.splats[k];
    const float* f = st.input.features + s.id * channels;
    for (int y = std::max(top, s.y0); y <= std::min(bottom, s.y1); ++y) {
      for (int x = s.x0; x <= s.x1; ++x) {
        const int64_t p = (int64_t)y * width + x;
        if (closed[p - (int64_t)top * width]) continue;
        const float sigma = exponent(s, s.x - ((float)x + 0.5f), s.y - ((float)y + 0.5f));
        if (sigma < 0.0f) continue;
        const float alpha = std::min(kAlphaMax, s.opacity * std::exp(-sigma));
        if (alpha < kAlphaMin) continue;
        const float next = st.transmittance[p] * (1.0f - alpha);
        if (next <= kTransmittanceMin) {
          closed[p - (int64_t)top * width] = 1;
          continue;
        }
        const float weight = alpha * st.transmittance[p];
        float* out = image + p * channels;
        for (int c = 0; c < channels; ++c) out[c] += weight * f[c];
        st.hits[p].push_back(k);
        st.transmittance[p] = next;
      }
    }
  }
}

// Adds the gradients of one pixel: screen [M, 6] and features [M, C].
void unblend_pixel(const State& st, int64_t p, const float* g, float* behind, float* screen, float* features) {
  const int channels = st.input.channels;
  const float px = (float)(p % st.camera.width) + 0.5f, py = (float)(p / st.camera.width) + 0.5f;
  float t = st.transmittance[p];
  std::fill(behind, behind + channels, 0.0f);
  for (auto k = st.hits[p].rbegin(); k != st.hits[p].rend(); ++k) {
    const Splat& s = st.splats[*k];
    const float* f = st.input.features + s.id * channels;
    const float dx = s.x - px, dy = s.y - py, gauss = std::exp(-exponent(s, dx, dy));
    const float alpha = std::min(kAlphaMax, s.opacity * gauss), rest = 1.0f / (1.0f - alpha);
    t *= rest;
    const float weight = alpha * t;
    float* gf = features + (int64_t)*k * channels;
    float g_alpha = 0.0f;
    for (int c = 0; c < channels; ++c) {
      gf[c] += weight * g[c];
      g_alpha += (f[c] * t - behind[c] * rest) * g[c];
      behind[c] += weight * f[c];
    }
    if (alpha >= kAlphaMax) continue;
    const float g_sigma = -alpha * g_alpha;
    float* gs = screen + (int64_t)*k * kScreen;
    gs[0] += g_sigma * (s.a * dx + s.b * dy);
    gs[1] += g_sigma * (s.b * dx + s.c * dy);
    gs[2] += g_sigma * 0.5f * dx * dx;
    gs[3] += g_sigma * dx * dy;
    gs[4] += g_sigma * 0.5f * dy * dy;
    gs[5] += g_alpha * gauss;
  }
}

struct GeometryGrad {
  float *means, *quats, *log_scales, *logits;
};

void unproject(const State& st, const Splat& splat, const float* g, const GeometryGrad& out) {
  const Camera& cam = st.camera;
  const int64_t i = splat.id;
  const Shape s = shape_of(st.input, cam, i);
  // Conic Q = C^-1: dC = -Q G Q.
  const float q[2][2] = {{splat.a, splat.b}, {splat.b, splat.c}}, gq[2][2] = {{g[2], g[3] / 2}, {g[3] / 2, g[4]}};
  float gc[2][2] = {};
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 2; ++b)
      for (int k = 0; k < 2; ++k)
        for (int l = 0; l < 2; ++l) gc[a][b] -= q[a][k] * gq[k][l] * q[l][b];
  // C = T Sigma T^T.
  float g_sigma[3][3] = {}, gt[2][3] = {};
  for (int k = 0; k < 3; ++k)
    for (int l = 0; l < 3; ++l)
      for (int a = 0; a < 2; ++a)
        for (int b = 0; b < 2; ++b) {
          g_sigma[k][l] += s.t[a][k] * gc[a][b] * s.t[b][l];
          gt[a][k] += 2 * gc[a][b] * s.t[b][l] * s.sigma[l][k];
        }
  // Sigma = M M^T, M = R diag(s).
  float gr[3][3];
  for (int m = 0; m < 3; ++m) {
    float g_scale = 0.0f;
    for (int k = 0; k < 3; ++k) {
      float gm = 0.0f;
      for (int l = 0; l < 3; ++l) gm += 2 * g_sigma[k][l] * s.r[l][m] * s.scale[m];
      gr[k][m] = gm * s.scale[m];
      g_scale += gm * s.r[k][m];
    }
    out.log_scales[3 * i + m] = g_scale * s.scale[m];
  }
  const float w = s.q[0], x = s.q[1], y = s.q[2], z = s.q[3];
  const float gn[4] = {
      2 * (x * (gr[2][1] - gr[1][2]) + y * (gr[0][2] - gr[2][0]) + z * (gr[1][0] - gr[0][1])),
      2 * (y * (gr[0][1] + gr[1][0]) + z * (gr[0][2] + gr[2][0]) + w * (gr[2][1] - gr[1][2])) -
          4 * x * (gr[1][1] + gr[2][2]),
      2 * (x * (gr[0][1] + gr[1][0]) + z * (gr[1][2] + gr[2][1]) + w * (gr[0][2] - gr[2][0])) -
          4 * y * (gr[0][0] + gr[2][2]),
      2 * (x * (gr[0][2] + gr[2][0]) + y * (gr[1][2] + gr[2][1]) + w * (gr[1][0] - gr[0][1])) -
          4 * z * (gr[0][0] + gr[1][1])};
  const float along = w * gn[0] + x * gn[1] + y * gn[2] + z * gn[3];
  for (int k = 0; k < 4; ++k) out.quats[4 * i + k] = (gn[k] - s.q[k] * along) / s.norm;
  // T = J W; J depends on the point.
  float gj[2][3] = {};
  for (int a = 0; a < 2; ++a)
    for (int k = 0; k < 3; ++k)
      for (int l = 0; l < 3; ++l) gj[a][k] += gt[a][l] * cam.rotation[k][l];
  const float inv = 1.0f / s.point[2], inv2 = inv * inv;
  float gp[3];
  gp[0] = g[0] * cam.fx * inv - (s.free_x ? gj[0][2] * cam.fx * inv2 : 0.0f);
  gp[1] = g[1] * cam.fy * inv - (s.free_y ? gj[1][2] * cam.fy * inv2 : 0.0f);
  gp[2] = -(g[0] * cam.fx * s.point[0] + g[1] * cam.fy * s.point[1]) * inv2 -
          (gj[0][0] * cam.fx + gj[1][1] * cam.fy) * inv2 +
          gj[0][2] * cam.fx * s.uc * inv2 * (s.free_x ? 2.0f : 1.0f) +
          gj[1][2] * cam.fy * s.vc * inv2 * (s.free_y ? 2.0f : 1.0f);
  for (int l = 0; l < 3; ++l) {
    out.means[3 * i + l] = 0.0f;
    for (int k = 0; k < 3; ++k) out.means[3 * i + l] += gp[k] * cam.rotation[k][l];
  }
  out.logits[i] = g[5] * splat.opacity * (1.0f - splat.opacity);
}

}  // namespace

extern "C" {

void* plain_open() { return new State; }

void plain_close(void* state) { delete static_cast<State*>(state); }

// pose: world-to-camera [4, 4]; lens: fx, fy, cx, cy, near, low pass. Writes image [H, W, C]; returns the number of
// (pixel, Gaussian) pairs that were blended. The arrays must live until plain_backward.
int64_t plain_forward(void* state, int64_t count, const float* means, const float* quats, const float* log_scales,
                      const float* logits, const float* features, int channels, const float* pose, const float* lens,
                      int width, int height, float* image) {
  State& st = *static_cast<State*>(state);
  st.input = {count, means, quats, log_scales, logits, features, channels};
  Camera& cam = st.camera;
  cam = {{}, {}, lens[0], lens[1], lens[2], lens[3], lens[4], lens[5], width, height};
  for (int k = 0; k < 3; ++k) {
    std::copy(pose + 4 * k, pose + 4 * k + 3, cam.rotation[k]);
    cam.translation[k] = pose[4 * k + 3];
  }
  std::vector<Splat> all(count);
  std::vector<char> seen(count);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; ++i) seen[i] = splat_of(st.input, cam, i, all[i]);
  st.splats.clear();
  for (int64_t i = 0; i < count; ++i)
    if (seen[i]) st.splats.push_back(all[i]);
  std::stable_sort(st.splats.begin(), st.splats.end(), [](const Splat& a, const Splat& b) { return a.depth < b.depth; });
  const int64_t pixels = (int64_t)width * height;
  st.hits.resize(pixels);
  for (auto& list : st.hits) list.clear();
  st.transmittance.assign(pixels, 1.0f);
  std::memset(image, 0, pixels * channels * sizeof(float));
#pragma omp parallel for schedule(dynamic)
  for (int band = 0; band < (height + kBand - 1) / kBand; ++band) blend_band(st, band, image);
  int64_t hits = 0;
  for (const auto& list : st.hits) hits += (int64_t)list.size();
  return hits;
}

// Pairs of a Gaussian and a block of 4 x 4 pixels of the last view in which it was blended in some pixel.
int64_t plain_blocks(const void* state) {
  const State& st = *static_cast<const State*>(state);
  int64_t pairs = 0;
  std::vector<int> seen;
  for (int y0 = 0; y0 < st.camera.height; y0 += 4)
    for (int x0 = 0; x0 < st.camera.width; x0 += 4) {
      seen.clear();
      for (int y = y0; y < std::min(y0 + 4, st.camera.height); ++y)
        for (int x = x0; x < std::min(x0 + 4, st.camera.width); ++x) {
          const std::vector<int>& hits = st.hits[(int64_t)y * st.camera.width + x];
          seen.insert(seen.end(), hits.begin(), hits.end());
        }
      std::sort(seen.begin(), seen.end());
      pairs += std::unique(seen.begin(), seen.end()) - seen.begin();
    }
  return pairs;
}

int64_t plain_visible(const void* state) { return (int64_t)static_cast<const State*>(state)->splats.size(); }

// Gradients of the last view: [N, .] of the geometry, and [M, C] of the features of the visible ones, whose ids it gives.
void plain_backward(void* state, const float* grad_image, float* grad_means, float* grad_quats, float* grad_log_scales,
                    float* grad_logits, int64_t* ids, float* grad_features) {
  State& st = *static_cast<State*>(state);
  const int64_t visible = (int64_t)st.splats.size(), pixels = (int64_t)st.hits.size(), count = st.input.count;
  const int channels = st.input.channels;
  std::memset(grad_means, 0, count * 3 * sizeof(float));
  std::memset(grad_quats, 0, count * 4 * sizeof(float));
  std::memset(grad_log_scales, 0, count * 3 * sizeof(float));
  std::memset(grad_logits, 0, count * sizeof(float));
  std::vector<std::vector<float>> screens(threads()), features(threads());
#pragma omp parallel
  {
    std::vector<float>& screen = screens[thread()];
    std::vector<float>& feature = features[thread()];
    screen.assign(visible * kScreen, 0.0f);
    feature.assign(visible * channels, 0.0f);
    std::vector<float> behind(channels);
#pragma omp for schedule(dynamic, 64)
    for (int64_t p = 0; p < pixels; ++p)
      unblend_pixel(st, p, grad_image + p * channels, behind.data(), screen.data(), feature.data());
    const GeometryGrad out{grad_means, grad_quats, grad_log_scales, grad_logits};
#pragma omp for schedule(static)
    for (int64_t m = 0; m < visible; ++m) {
      float g[kScreen] = {};
      for (const auto& part : screens)
        for (int k = 0; k < kScreen && !part.empty(); ++k) g[k] += part[m * kScreen + k];
      float* gf = grad_features + m * channels;
      std::fill(gf, gf + channels, 0.0f);
      for (const auto& part : features)
        for (int c = 0; c < channels && !part.empty(); ++c) gf[c] += part[m * channels + c];
      ids[m] = st.splats[m].id;
      unproject(st, st.splats[m], g, out);
    }
  }
}

}
