// The sums over labelled pixels from which label losses follow, a few pixels at a time, and their gradients. Included
// by kernels.cpp, where the blend adds a block's pixels while they are in the cache.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace panbench {
namespace {

constexpr int kPixels = 16;  // that are added together

// The labelled ones among a few pixels.
struct LabelPixels {
  int count = 0;
  const float* row[kPixels];  // [L] label channels
  int32_t semantic[kPixels], mask[kPixels];
  float weight[kPixels];
};

PB_INLINE void take_pixel(const LabelTargets& l, const float* image, int64_t pixel, LabelPixels& to) {
  if (l.semantic[pixel] < 1) return;
  const int n = to.count++;
  to.row[n] = image + pixel * l.channels;
  to.semantic[n] = l.semantic[pixel];
  to.mask[n] = l.mask[pixel];
  to.weight[n] = l.weight[pixel];
}

PB_INLINE F16 lowest_beyond(F16 v, int live) { return live >= 16 ? v : select(mask_of((1u << live) - 1), v, set1(-1e30f)); }

// Largest of the class logits of a pixel, and the sum of e^(logit - largest).
PB_INLINE void softmax_terms(const LabelTargets& l, const float* row, float* largest, float* total) {
  F16 top = set1(-1e30f);
  for (int c = 0; c < l.classes; c += 16)
    top = max(top, lowest_beyond(load_up_to(row + c, l.classes - c), l.classes - c));
  float lanes[16];
  store(lanes, top);
  *largest = lanes[0];
  for (const float v : lanes) *largest = v > *largest ? v : *largest;
  F16 sum_ = zero();
  for (int c = 0; c < l.classes; c += 16) {
    const F16 v = lowest_beyond(load_up_to(row + c, l.classes - c), l.classes - c);
    sum_ = sum_ + select(less(v, set1(-1e29f)), zero(), exp(v - set1(*largest)));
  }
  *total = sum(sum_);
}

PB_INLINE double entropy_of(const LabelTargets& l, const LabelPixels& pixels) {
  // One logarithm for all: -log of `of`, plus `rest`.
  float of[kPixels], rest[kPixels] = {};
  for (int p = 0; p < kPixels; ++p) of[p] = 1.0f;
  for (int p = 0; p < pixels.count; ++p) {
    const float value = pixels.row[p][pixels.semantic[p] - 1];
    if (l.logits) {
      float largest, total;
      softmax_terms(l, pixels.row[p], &largest, &total);
      of[p] = 1.0f / total;
      rest[p] = largest - value;
    } else {
      of[p] = value + l.epsilon;
    }
  }
  store(of, load(rest) - log(load(of)));
  double entropy = 0.0;
  for (int p = 0; p < pixels.count; ++p) entropy += (double)pixels.weight[p] * of[p];
  return entropy;
}

PB_INLINE void add_at(float* p, F16 v) { store(p, load(p) + v); }

// Adds the queries of pixels of one mask (overlap null: of none).
PB_INLINE void add_members(const LabelTargets& l, const float* const* rows, int count, float* presence, float* overlap) {
  const F16 one = set1(1.0f), low = set1(l.epsilon), high = set1(1.0f - l.epsilon);
  for (int q = 0; q < l.queries; q += 16) {
    const int live = l.queries - q;
    F16 inside = zero(), information = zero(), difference = zero();
    for (int i = 0; i < count; i += l.factors) {
      // One logarithm for several pixels.
      const int end = count - i < l.factors ? count : i + l.factors;
      F16 in = one, out = one;
      for (int p = i; p < end; ++p) {
        const F16 v = load_up_to(rows[p] + q, live), clamped = min(max(v, low), high);
        inside = inside + v;
        in = in * clamped;
        out = out * (one - clamped);
      }
      const F16 outside = log(out);
      information = information - outside;
      if (overlap) difference = difference + (outside - log(in));
    }
    add_at(presence + q, inside);
    add_at(presence + l.padded + q, information);
    if (!overlap) continue;
    add_at(overlap + q, inside);
    add_at(overlap + l.padded + q, difference);
  }
}

PB_INLINE void add_queries(const LabelTargets& l, const LabelPixels& pixels, LabelSums& to) {
  for (uint32_t left = (1u << pixels.count) - 1; left;) {
    const int32_t mask = pixels.mask[__builtin_ctz(left)];
    const float* members[kPixels];
    int count = 0;
    for (uint32_t m = left; m; m &= m - 1) {
      const int p = __builtin_ctz(m);
      if (pixels.mask[p] != mask) continue;
      members[count++] = pixels.row[p] + l.first_query;
      left &= ~(1u << p);
    }
    float* overlap = nullptr;
    for (int k = 0; k < to.count; ++k)
      if (to.masks[k] == mask) overlap = to.overlap + (int64_t)k * 2 * l.padded;
    add_members(l, members, count, to.presence, overlap);
  }
}

PB_INLINE void add_pixels(const LabelTargets& l, const LabelPixels& pixels, LabelSums& to) {
  if (!pixels.count) return;
  if (l.classes) to.entropy += entropy_of(l, pixels);
  if (l.queries) add_queries(l, pixels, to);
}

PB_INLINE void add_class_gradient(const LabelTargets& l, float scale, int32_t semantic, const float* row, float* grad) {
  if (!l.logits) {
    grad[semantic - 1] -= scale / (row[semantic - 1] + l.epsilon);
    return;
  }
  float largest, total;
  softmax_terms(l, row, &largest, &total);
  const F16 share = set1(scale / total);
  for (int c = 0; c < l.classes; c += 16) {
    const int live = l.classes - c;
    const F16 e = exp(load_up_to(row + c, live) - set1(largest));
    store_up_to(grad + c, fma(share, e, load_up_to(grad + c, live)), live);
  }
  grad[semantic - 1] -= scale;
}

// Adds the gradient of the sums in the label channels [L] of one pixel.
PB_INLINE void add_gradient(const LabelTargets& l, const LabelGradIn& in, int64_t pixel, const float* row, float* grad) {
  const int32_t semantic = l.semantic[pixel];
  if (semantic < 1) return;
  if (l.classes && in.entropy != 0.0f) add_class_gradient(l, in.entropy * l.weight[pixel], semantic, row, grad);
  const F16 one = set1(1.0f), low = set1(l.epsilon), high = set1(1.0f - l.epsilon);
  const float* table = in.tables + (int64_t)(l.mask[pixel] + 1) * 3 * l.padded;
  for (int q = 0; q < l.queries; q += 16) {
    const int live = l.queries - q;
    float* to = grad + l.first_query + q;
    const F16 v = load_up_to(row + l.first_query + q, live), clamped = min(max(v, low), high), rest = one - clamped;
    const F16 slope = (load(table + l.padded + q) * clamped - load(table + 2 * l.padded + q) * rest) *
                      reciprocal(clamped * rest);
    const M16 closed = less_equal(v, low) | less_equal(high, v);
    store_up_to(to, load_up_to(to, live) + load(table + q) + select(closed, zero(), slope), live);
  }
}

}  // namespace
}  // namespace panbench
