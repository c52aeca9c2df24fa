// Sums over the labelled pixels of an image: the parts that threads form, and what they add up to.
#include <cstring>

#include "pipeline.h"

namespace panbench {
namespace {

constexpr int64_t kPart = 256;  // pixels; fixed, so that sums do not depend on the number of threads

}  // namespace

LabelParts::LabelParts(const LabelTargets& targets, int64_t parts)
    : sums(targets.semantic ? parts : 0), targets_(targets), rows_(sums.size()), masks_(sums.size()) {}

void LabelParts::open(int64_t part, int64_t first, int64_t down, int64_t across, int64_t stride) {
  if (!targets_.semantic) return;
  std::vector<int32_t>& masks = masks_[part];
  int32_t last = -1;
  for (int64_t y = 0; y < down; ++y)
    for (int64_t p = first + y * stride; p < first + y * stride + across; ++p) {
      const int32_t mask = targets_.mask[p];
      if (mask == last || mask < 0 || targets_.semantic[p] < 1) continue;
      last = mask;
      if (std::find(masks.begin(), masks.end(), mask) == masks.end()) masks.push_back(mask);
    }
  rows_[part].assign((1 + masks.size()) * 2 * targets_.padded, 0.0f);
  sums[part] = {0.0, (int)masks.size(), masks.data(), rows_[part].data(), rows_[part].data() + 2 * targets_.padded};
}

void LabelParts::total(const LabelTotals& to) const {
  if (!targets_.semantic) return;
  const int64_t queries = targets_.queries, masks = targets_.masks, padded = targets_.padded;
  std::vector<double> presence(2 * queries, 0.0), overlap(2 * masks * queries, 0.0);
  double entropy = 0.0;
  const auto add = [queries](const float* from, double* sum) {
    for (int64_t q = 0; q < queries; ++q) sum[q] += from[q];
  };
  for (const LabelSums& part : sums) {
    entropy += part.entropy;
    for (int64_t i = 0; i < 2; ++i) {
      add(part.presence + i * padded, presence.data() + i * queries);
      for (int64_t k = 0; k < part.count; ++k)
        add(part.overlap + (2 * k + i) * padded, overlap.data() + (i * masks + part.masks[k]) * queries);
    }
  }
  *to.entropy = (float)entropy;
  std::copy(presence.begin(), presence.end(), to.presence);
  std::copy(overlap.begin(), overlap.end(), to.overlap);
}

std::vector<float> label_tables(const LabelTargets& targets, const float* grad_presence, const float* grad_overlap) {
  const int64_t queries = targets.queries, padded = targets.padded;
  std::vector<float> tables((targets.masks + 1) * 3 * padded, 0.0f);
  for (int64_t k = 0; k <= targets.masks; ++k) {
    float* const constant = tables.data() + k * 3 * padded;
    for (int64_t q = 0; q < queries; ++q) {
      const float* const inside = k && grad_overlap ? grad_overlap + (k - 1) * queries + q : nullptr;
      const float difference = inside ? inside[targets.masks * queries] : 0.0f;
      constant[q] = (grad_presence ? grad_presence[q] : 0.0f) + (inside ? *inside : 0.0f);
      constant[padded + q] = (grad_presence ? grad_presence[queries + q] : 0.0f) - difference;
      constant[2 * padded + q] = difference;
    }
  }
  return tables;
}

void label_sums(const LabelTargets& targets, const float* image, int64_t pixels, const LabelTotals& totals) {
  const KernelTable& table = kernels();
  const int64_t count = (pixels + kPart - 1) / kPart;
  LabelParts parts(targets, count);
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t part = 0; part < count; ++part) {
    const int64_t begin = part * kPart, end = std::min(pixels, begin + kPart);
    parts.open(part, begin, 1, end - begin, end - begin);
    table.label_sums(targets, image, begin, end, parts.sums[part]);
  }
  parts.total(totals);
}

void label_sums_backward(const LabelTargets& targets, const LabelGradIn& in, const float* image, int64_t pixels,
                         float* grad) {
  const KernelTable& table = kernels();
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < (pixels + kPart - 1) / kPart; ++part)
    table.label_gradients(targets, in, image, part * kPart, std::min(pixels, (part + 1) * kPart), grad);
}

}  // namespace panbench
