// Label warping: how far the labels of a view are from those of another one at the same surface points.
#include <cmath>
#include <cstring>

#include "pipeline.h"

namespace panbench {
namespace {

// The four pixels around a place in the other view, and their shares.
struct Taps {
  int64_t pixel[4];
  float share[4];
};

// Where the surface at pixel (x, y) lies in the other view; false where that view does not see it.
bool seen(const Warping& w, int64_t x, int64_t y, Taps& taps) {
  const float z = w.depth[y * w.width + x];
  if (!(z > 0)) return false;
  const Vec3 ray = {((float)x + 0.5f - w.cx) / w.fx, ((float)y + 0.5f - w.cy) / w.fy, 1};
  const Vec3 point = z * (w.rotation * ray) + w.translation;
  if (!(point.z > 0)) return false;
  // In units of pixels between pixel centres.
  const float px = w.other_fx * point.x / point.z + w.other_cx - 0.5f, right = (float)(w.other_width - 1);
  const float py = w.other_fy * point.y / point.z + w.other_cy - 0.5f, bottom = (float)(w.other_height - 1);
  if (!(px >= 0 && py >= 0 && px <= right && py <= bottom)) return false;
  const int64_t x0 = (int64_t)px, y0 = (int64_t)py;
  const int64_t x1 = std::min(x0 + 1, w.other_width - 1), y1 = std::min(y0 + 1, w.other_height - 1);
  const float ax = px - (float)x0, ay = py - (float)y0;
  taps = {{y0 * w.other_width + x0, y0 * w.other_width + x1, y1 * w.other_width + x0, y1 * w.other_width + x1},
          {(1 - ax) * (1 - ay), ax * (1 - ay), (1 - ax) * ay, ax * ay}};
  float surface = 0;
  for (int i = 0; i < 4; ++i) surface += taps.share[i] * w.other_depth[taps.pixel[i]];
  return surface > 0 && std::fabs(point.z - surface) <= w.tolerance * point.z;
}

}  // namespace

double warping_loss(const Warping& w, float* directions, int64_t* valid) {
  std::vector<double> sums(w.height, 0.0);
  std::vector<int64_t> counts(w.height, 0);
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t y = 0; y < w.height; ++y)
    for (int64_t x = 0; x < w.width; ++x) {
      const int64_t p = y * w.width + x;
      float* direction = directions + p * w.channels;
      Taps taps;
      if (!seen(w, x, y, taps)) {
        std::memset(direction, 0, w.channels * sizeof(float));
        continue;
      }
      const float* const mine = w.labels + p * w.stride;
      const float* other[4];
      for (int i = 0; i < 4; ++i) other[i] = w.other + taps.pixel[i] * w.channels;
      float square = 1e-8f;  // the root of zero has no gradient
      for (int64_t c = 0; c < w.channels; ++c) {
        const float upper = taps.share[0] * other[0][c] + taps.share[1] * other[1][c];
        const float lower = taps.share[2] * other[2][c] + taps.share[3] * other[3][c];
        direction[c] = mine[c] - upper - lower;
      }
#pragma omp simd reduction(+ : square)
      for (int64_t c = 0; c < w.channels; ++c) square += direction[c] * direction[c];
      const float norm = std::sqrt(square);
      for (int64_t c = 0; c < w.channels; ++c) direction[c] /= norm;
      sums[y] += norm;
      ++counts[y];
    }
  double sum = 0.0;
  *valid = 0;
  for (int64_t y = 0; y < w.height; ++y) {
    sum += sums[y];
    *valid += counts[y];
  }
  return *valid ? sum / (double)*valid : 0.0;
}

void warping_loss_backward(const float* directions, int64_t pixels, int64_t channels, int64_t stride, float scale,
                           float* grad) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) grad[p * stride + c] = scale * directions[p * channels + c];
    std::memset(grad + p * stride + channels, 0, (stride - channels) * sizeof(float));
  }
}

}  // namespace panbench
