// Losses of splatted label channels against the masks of a frame, in one pass over the pixels.
#include <cmath>
#include <cstring>

#include "pipeline.h"

namespace panbench {
namespace {

constexpr int64_t kPieces = 32;  // fixed, so that sums do not depend on the number of threads
constexpr int kProduct = 32;     // factors of at least 1e-4 whose product fits a double

// Sum of logarithms by multiplying first: one logarithm for many factors.
struct LogSum {
  double product = 1.0, total = 0.0;
  int count = 0;
  void add(float x) {
    product *= x;
    if (++count == kProduct) flush();
  }
  void flush() {
    total += std::log(product);
    product = 1.0;
    count = 0;
  }
};

}  // namespace

void mask_losses(const MaskLossArgs& a, double* losses, double* sums) {
  const int64_t k_count = a.pairs, width = 3 * k_count;
  std::vector<double> parts(kPieces * (width + 3), 0.0);
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    double* mine = parts.data() + piece * (width + 3);
    double* overlap = mine;               // sum of I Y
    double* predicted = mine + k_count;   // sum of I
    double* size = mine + 2 * k_count;    // sum of Y
    LogSum cross;
    double weighted = 0.0, weight = 0.0;
    for (int64_t p = a.pixels * piece / kPieces; p < a.pixels * (piece + 1) / kPieces; ++p) {
      const int64_t y = a.semantic[p];
      if (y < 1) continue;
      const float* row = a.channels + p * a.stride;
      weighted -= a.weight[p] * std::log(row[y - 1] + a.epsilon);
      weight += a.weight[p];
      const int64_t pair = a.pair[p];
      for (int64_t k = 0; k < k_count; ++k) {
        const float i = row[a.columns[k]];
        const float clamped = std::min(std::max(i, a.epsilon), 1.0f - a.epsilon);
        predicted[k] += i;
        if (k == pair) {
          overlap[k] += i;
          size[k] += 1;
          cross.add(clamped);
        } else {
          cross.add(1.0f - clamped);
        }
      }
    }
    cross.flush();
    mine[width] = weighted;
    mine[width + 1] = weight;
    mine[width + 2] = cross.total;
  }
  double tail[3] = {0, 0, 0};
  double labelled = 0;
  std::fill(sums, sums + width + 2, 0.0);
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    const double* mine = parts.data() + piece * (width + 3);
    for (int64_t i = 0; i < width; ++i) sums[i] += mine[i];
    for (int i = 0; i < 3; ++i) tail[i] += mine[width + i];
  }
  for (int64_t p = 0; p < a.pixels; ++p) labelled += a.semantic[p] > 0;
  sums[width] = tail[1];
  sums[width + 1] = labelled;
  losses[0] = tail[1] > 0 ? tail[0] / tail[1] : 0.0;
  losses[1] = 0.0;
  for (int64_t k = 0; k < k_count; ++k)
    losses[1] += (1.0 - (2 * sums[k] + 1) / (sums[k_count + k] + sums[2 * k_count + k] + 1)) / k_count;
  losses[2] = k_count && labelled > 0 ? -tail[2] / (labelled * k_count) : 0.0;
}

void mask_losses_backward(const MaskLossArgs& a, const double* sums, const double* upstream, float* grad) {
  const int64_t k_count = a.pairs, width = 3 * k_count;
  const float entropy = sums[width] > 0 ? (float)(upstream[0] / sums[width]) : 0.0f;
  const float cross = k_count && sums[width + 1] > 0 ? (float)(upstream[2] / (sums[width + 1] * k_count)) : 0.0f;
  std::vector<float> inside(k_count), outside(k_count);  // d dice / d I where Y = 1 and where Y = 0
  for (int64_t k = 0; k < k_count; ++k) {
    const double total = sums[k_count + k] + sums[2 * k_count + k] + 1, share = (2 * sums[k] + 1) / (total * total);
    outside[k] = (float)(upstream[1] / k_count * share);
    inside[k] = (float)(upstream[1] / k_count * (share - 2 / total));
  }
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < a.pixels; ++p) {
    float* g = grad + p * a.channel_count;
    std::memset(g, 0, a.channel_count * sizeof(float));
    const int64_t y = a.semantic[p];
    if (y < 1) continue;
    const float* row = a.channels + p * a.stride;
    g[y - 1] = -entropy * a.weight[p] / (row[y - 1] + a.epsilon);
    const int64_t pair = a.pair[p];
    for (int64_t k = 0; k < k_count; ++k) {
      const float i = row[a.columns[k]];
      const bool open = i > a.epsilon && i < 1.0f - a.epsilon;
      const float log_slope = !open ? 0.0f : k == pair ? -1.0f / i : 1.0f / (1.0f - i);
      g[a.columns[k]] += (k == pair ? inside[k] : outside[k]) + cross * log_slope;
    }
  }
}

}  // namespace panbench
