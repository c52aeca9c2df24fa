// Structural similarity and absolute difference with their gradient; two separable passes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "pipeline.h"

namespace panbench {
namespace {

constexpr int kRadius = 5;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

struct Window {
  float taps[2 * kRadius + 1];
  Window() {
    double sum = 0;
    double value[2 * kRadius + 1];
    for (int k = -kRadius; k <= kRadius; ++k) sum += value[k + kRadius] = std::exp(-k * k / (2 * 1.5 * 1.5));
    for (int k = 0; k <= 2 * kRadius; ++k) taps[k] = (float)(value[k] / sum);
  }
};

// One image plane set [H, W C] with zero rows above and below, so that the vertical pass needs no tests.
struct Padded {
  int64_t row;
  std::unique_ptr<float[]> data;
  Padded(int64_t rows, int64_t row) : row(row), data(new float[(rows + 2 * kRadius) * row]) {
    for (const int64_t y : {-(int64_t)kRadius, rows}) std::memset(at(y), 0, kRadius * row * sizeof(float));
  }
  float* at(int64_t y) { return data.get() + (y + kRadius) * row; }
};

// The rows first..last of the window convolution of `maps` planes produced by fill(y, map, destination row).
template <typename Fill, typename Use>
void convolve_rows(int maps, int64_t height, int64_t row, int64_t step, const Fill& fill, const Use& use) {
  static const Window window;
  const KernelTable& table = kernels();
  std::vector<Padded> across;
  for (int m = 0; m < maps; ++m) across.emplace_back(height, row);
#pragma omp parallel
  {
    std::vector<float> line(row + 2 * kRadius * step, 0.0f);
#pragma omp for schedule(static) collapse(2)
    for (int m = 0; m < maps; ++m)
      for (int64_t y = 0; y < height; ++y) {
        fill(y, m, line.data() + kRadius * step);
        table.convolve(line.data() + kRadius * step, across[m].at(y), row, window.taps, kRadius, step);
      }
    std::vector<float> out(maps * row);
#pragma omp for schedule(static)
    for (int64_t y = 0; y < height; ++y) {
      for (int m = 0; m < maps; ++m)
        table.convolve(across[m].at(y), out.data() + m * row, row, window.taps, kRadius, row);
      use(y, out.data());
    }
  }
}

}  // namespace

double similarity(const float* x, const float* y, int64_t height, int64_t width, int64_t channels, double a_ssim,
                  double b_l1, float* grad_x) {
  const int64_t row = width * channels, size = height * row;
  const std::unique_ptr<float[]> partial(new float[3 * size]);  // dS/d(mu_x), dS/d(x^2), dS/d(xy), convolved maps
  std::vector<double> row_sums(height, 0.0), row_differences(height, 0.0);
  convolve_rows(
      5, height, row, channels,
      [&](int64_t r, int m, float* to) {
        const float *a = x + r * row, *b = y + r * row;
        for (int64_t i = 0; i < row; ++i)
          to[i] = m == 0 ? a[i] : m == 1 ? b[i] : m == 2 ? a[i] * a[i] : m == 3 ? b[i] * b[i] : a[i] * b[i];
      },
      [&](int64_t r, const float* c) {
        const float *mx = c, *my = c + row, *xx = c + 2 * row, *yy = c + 3 * row, *xy = c + 4 * row;
        float *d_mu = partial.get() + r * row, *d_xx = d_mu + size, *d_xy = d_xx + size;
        double sum = 0;
        for (int64_t i = 0; i < row; ++i) {
          const float a1 = 2 * mx[i] * my[i] + kC1, a2 = 2 * (xy[i] - mx[i] * my[i]) + kC2;
          const float b1 = mx[i] * mx[i] + my[i] * my[i] + kC1;
          const float b2 = xx[i] - mx[i] * mx[i] + yy[i] - my[i] * my[i] + kC2;
          const float inv = 1.0f / (b1 * b2), s = a1 * a2 * inv;
          sum += s;
          d_mu[i] = 2 * my[i] * (a2 - a1) * inv - 2 * mx[i] * s * (1 / b1 - 1 / b2);
          d_xx[i] = -s / b2;
          d_xy[i] = 2 * a1 * inv;
        }
        row_sums[r] = sum;
      });
  const float scale = (float)(a_ssim / (double)size), slope = (float)(b_l1 / (double)size);
  convolve_rows(
      3, height, row, channels,
      [&](int64_t r, int m, float* to) { std::memcpy(to, partial.get() + m * size + r * row, row * sizeof(float)); },
      [&](int64_t r, const float* c) {
        const float *a = x + r * row, *b = y + r * row;
        float* g = grad_x + r * row;
        double sum = 0;
        for (int64_t i = 0; i < row; ++i) {
          const float difference = a[i] - b[i];
          sum += std::fabs(difference);
          const float sign = difference > 0 ? slope : difference < 0 ? -slope : 0.0f;
          g[i] = scale * (c[i] + 2 * a[i] * c[row + i] + b[i] * c[2 * row + i]) + sign;
        }
        row_differences[r] = sum;
      });
  double total = 0;
  for (int64_t r = 0; r < height; ++r) total += a_ssim * row_sums[r] + b_l1 * row_differences[r];
  return total / (double)size;
}

}  // namespace panbench
