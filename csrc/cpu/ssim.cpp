// Structural similarity and absolute difference with their gradient; two separable passes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "pipeline.h"

namespace panbench {
namespace {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PB_CLONES __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define PB_CLONES
#endif

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

// A row of what is convolved: x, y, x^2, y^2 or x y.
PB_CLONES void products(int map, const float* a, const float* b, int64_t count, float* to) {
  const float* const left[] = {a, b, a, b, a};
  const float* const right[] = {nullptr, nullptr, a, b, b};
  const float *l = left[map], *r = right[map];
  if (!r) {
    std::memcpy(to, l, count * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = l[i] * r[i];
}

// A row of SSIM from the convolved maps [5, count], and its derivatives by mu_x, x^2 and x y.
PB_CLONES void row_of_ssim(const float* __restrict c, int64_t count, float* __restrict value, float* __restrict d_mu,
                           float* __restrict d_xx, float* __restrict d_xy) {
  const float *mx = c, *my = c + count, *xx = c + 2 * count, *yy = c + 3 * count, *xy = c + 4 * count;
  for (int64_t i = 0; i < count; ++i) {
    const float a1 = 2 * mx[i] * my[i] + kC1, a2 = 2 * (xy[i] - mx[i] * my[i]) + kC2;
    const float b1 = mx[i] * mx[i] + my[i] * my[i] + kC1;
    const float b2 = xx[i] - mx[i] * mx[i] + yy[i] - my[i] * my[i] + kC2;
    const float inv1 = 1 / b1, inv2 = 1 / b2, inv = inv1 * inv2, s = a1 * a2 * inv;
    value[i] = s;
    d_mu[i] = 2 * my[i] * (a2 - a1) * inv - 2 * mx[i] * s * (inv1 - inv2);
    d_xx[i] = -s * inv2;
    d_xy[i] = 2 * a1 * inv;
  }
}

// A row of the gradient from the convolved derivatives [3, count]; `differences` gets |x - y|.
PB_CLONES void row_of_gradient(const float* __restrict c, const float* __restrict a, const float* __restrict b,
                               int64_t count, float scale, float slope, float* __restrict differences,
                               float* __restrict g) {
  for (int64_t i = 0; i < count; ++i) {
    const float difference = a[i] - b[i];
    differences[i] = std::fabs(difference);
    const float sign = difference > 0 ? slope : difference < 0 ? -slope : 0.0f;
    g[i] = scale * (c[i] + 2 * a[i] * c[count + i] + b[i] * c[2 * count + i]) + sign;
  }
}

double sum_of(const std::vector<float>& values) {
  double sum[4] = {};  // four chains, as one addition waits for the other
  size_t i = 0;
  for (; i + 4 <= values.size(); i += 4)
    for (int k = 0; k < 4; ++k) sum[k] += values[i + k];
  for (; i < values.size(); ++i) sum[0] += values[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
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
        products(m, x + r * row, y + r * row, row, to);
      },
      [&](int64_t r, const float* c) {
        thread_local std::vector<float> value;
        value.resize(row);
        float* d_mu = partial.get() + r * row;
        row_of_ssim(c, row, value.data(), d_mu, d_mu + size, d_mu + 2 * size);
        row_sums[r] = sum_of(value);
      });
  const float scale = (float)(a_ssim / (double)size), slope = (float)(b_l1 / (double)size);
  convolve_rows(
      3, height, row, channels,
      [&](int64_t r, int m, float* to) { std::memcpy(to, partial.get() + m * size + r * row, row * sizeof(float)); },
      [&](int64_t r, const float* c) {
        thread_local std::vector<float> differences;
        differences.resize(row);
        row_of_gradient(c, x + r * row, y + r * row, row, scale, slope, differences.data(), grad_x + r * row);
        row_differences[r] = sum_of(differences);
      });
  double total = 0;
  for (int64_t r = 0; r < height; ++r) total += a_ssim * row_sums[r] + b_l1 * row_differences[r];
  return total / (double)size;
}

}  // namespace panbench
