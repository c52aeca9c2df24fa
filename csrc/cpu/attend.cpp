// Attention between Gaussians and queries over threads.
#include <algorithm>

#include "pipeline.h"

namespace panbench {
namespace {

constexpr int64_t kPieces = 16;  // fixed, so that query gradients are summed in the same order for any thread count

}  // namespace

void attend(const AttendArgs& args, float* attention) {
  const KernelTable& table = kernels();
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < kPieces; ++p)
    table.attend_forward(args, attention, args.rows * p / kPieces, args.rows * (p + 1) / kPieces);
}

void attend_backward(const AttendArgs& args, const float* shares, const float* grad_attention, float* grad_features,
                     float* grad_means, float* grad_query_rows, float* grad_query_means, float* grad_query_roots) {
  const KernelTable& table = kernels();
  const int64_t n = args.query_stride, rows = (int64_t)args.queries * args.dim_stride, size = rows + (3 + 9) * n;
  std::vector<float> sums(size * kPieces, 0.0f);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < kPieces; ++p) {
    float* mine = sums.data() + p * size;
    table.attend_backward(args, shares, grad_attention, grad_features, grad_means, mine, mine + rows,
                          mine + rows + 3 * n, args.rows * p / kPieces, args.rows * (p + 1) / kPieces);
  }
  const auto gather = [&](float* out, int64_t offset, int64_t count) {
    std::fill(out, out + count, 0.0f);
    for (int64_t p = 0; p < kPieces; ++p)
      for (int64_t i = 0; i < count; ++i) out[i] += sums[p * size + offset + i];
  };
  gather(grad_query_rows, 0, rows);
  gather(grad_query_means, rows, 3 * n);
  gather(grad_query_roots, rows + 3 * n, 9 * n);
}

}  // namespace panbench
