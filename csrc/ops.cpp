// The operators `torch.ops.panbench.*` of the CPU back end: checks, allocation and nothing else. Built against torch's
// stable ABI, so that it compiles in a second and does not depend on the Python version.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/pipeline.h"

namespace {

using panbench::Vec3;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(bool ok, const char* what) { STD_TORCH_CHECK(ok, "panbench: ", what); }

const float* floats(const Tensor& t) {
  check(t.scalar_type() == ScalarType::Float, "expected a float32 tensor");
  check(t.is_contiguous() && t.is_cpu(), "expected a contiguous CPU tensor");
  return t.const_data_ptr<float>();
}

const int64_t* longs(const Tensor& t) {
  check(t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.is_cpu(), "expected contiguous int64 ids");
  return t.const_data_ptr<int64_t>();
}

const int32_t* ints(const Tensor& t) {
  check(t.scalar_type() == ScalarType::Int && t.is_contiguous() && t.is_cpu(), "expected contiguous int32 lists");
  return t.const_data_ptr<int32_t>();
}

// Label images take tens of megabytes, which are mapped anew at every call unless the process keeps freed memory: in small
// pages the first touch of each costs more than blending does.
void ask_for_large_pages(void* memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLarge = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kLarge - 1) & ~(kLarge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kLarge - 1);
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // a hint: no harm if refused
#endif
}

Tensor empty(std::vector<int64_t> shape, ScalarType type = ScalarType::Float) {
  const Tensor t = torch::stable::empty(shape, type);
  ask_for_large_pages(t.mutable_data_ptr(), (size_t)t.numel() * t.element_size());
  return t;
}

float* out(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

template <typename T>
Tensor copied(const std::vector<T>& from, std::vector<int64_t> shape, ScalarType type) {
  Tensor t = empty(shape, type);
  std::memcpy(t.mutable_data_ptr(), from.data(), from.size() * sizeof(T));
  return t;
}

panbench::View view_of(const Tensor& world_to_camera, double fx, double fy, double cx, double cy, int64_t width,
                       int64_t height, double near_plane, double low_pass) {
  check(world_to_camera.dim() == 2 && world_to_camera.size(0) == 4 && world_to_camera.size(1) == 4,
        "world_to_camera must be [4, 4]");
  const float* m = floats(world_to_camera);
  panbench::View view;
  view.rotation = {{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}};
  view.translation = {m[3], m[7], m[11]};
  view.fx = (float)fx, view.fy = (float)fy, view.cx = (float)cx, view.cy = (float)cy;
  view.width = (float)width, view.height = (float)height;
  view.near_plane = (float)near_plane;
  view.low_pass = (float)low_pass;
  return view;
}

panbench::Gaussians gaussians_of(const Tensor& means, const Tensor& quats, const Tensor& log_scales,
                                 const Tensor& logits, int64_t kind) {
  const int64_t n = means.size(0);
  check(means.dim() == 2 && means.size(1) == 3, "means must be [N, 3]");
  check(quats.dim() == 2 && quats.size(0) == n && quats.size(1) == 4, "quats must be [N, 4]");
  check(log_scales.dim() == 2 && log_scales.size(0) == n && log_scales.size(1) >= (kind == panbench::kDisc ? 2 : 3),
        "log_scales must be [N, 3] (ellipsoids) or [N, 2 or 3] (discs)");
  check(logits.dim() == 1 && logits.size(0) == n, "opacity logits must be [N]");
  return {n, floats(means), floats(quats), floats(log_scales), (int)log_scales.size(1), floats(logits)};
}

std::tuple<Tensor, Tensor, Tensor> project(const Tensor& means, const Tensor& quats, const Tensor& log_scales,
                                           const Tensor& logits, const Tensor& world_to_camera, double fx, double fy,
                                           double cx, double cy, int64_t width, int64_t height, int64_t kind,
                                           double near_plane, double low_pass) {
  Tensor ids, geometry, normals;
  panbench::project(gaussians_of(means, quats, log_scales, logits, kind),
                    view_of(world_to_camera, fx, fy, cx, cy, width, height, near_plane, low_pass), (int)kind,
                    [&](int64_t visible) {
                      ids = empty({visible}, ScalarType::Long);
                      geometry = empty({visible, panbench::geometry_width((int)kind)});
                      normals = empty({visible, 3});
                      return panbench::VisibleOut{static_cast<int64_t*>(ids.mutable_data_ptr()), out(geometry),
                                                  out(normals)};
                    });
  return {ids, geometry, normals};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> project_backward(
    const Tensor& means, const Tensor& quats, const Tensor& log_scales, const Tensor& logits,
    const Tensor& world_to_camera, double fx, double fy, double cx, double cy, int64_t width, int64_t height,
    int64_t kind, double near_plane, double low_pass, const Tensor& ids, const Tensor& grad_geometry,
    const Tensor& grad_normals) {
  const auto gaussians = gaussians_of(means, quats, log_scales, logits, kind);
  const int64_t n = gaussians.count;
  const Tensor g_means = empty({n, 3}), g_quats = empty({n, 4}), g_scales = empty({n, log_scales.size(1)}),
               g_logits = empty({n});
  panbench::project_backward(gaussians,
                             view_of(world_to_camera, fx, fy, cx, cy, width, height, near_plane, low_pass), (int)kind,
                             longs(ids), ids.size(0), floats(grad_geometry), floats(grad_normals),
                             {out(g_means), out(g_quats), out(g_scales), out(g_logits)});
  return {g_means, g_quats, g_scales, g_logits};
}

std::tuple<Tensor, Tensor> bin(const Tensor& geometry, int64_t width, int64_t height, int64_t kind) {
  check(geometry.dim() == 2 && geometry.size(1) == panbench::geometry_width((int)kind), "geometry must be [M, G]");
  const auto lists = panbench::bin(floats(geometry), geometry.size(0), (int)kind, (int)width, (int)height);
  return {copied(lists.offsets, {(int64_t)lists.offsets.size()}, ScalarType::Int),
          copied(lists.ids, {(int64_t)lists.ids.size()}, ScalarType::Int)};
}

// Rows of features padded to a multiple of sixteen floats, so that the kernels need no tail.
struct PaddedFeatures {
  std::vector<float> storage;
  const float* rows;
  int stride;
  PaddedFeatures(const Tensor& features) {
    const int64_t m = features.size(0), c = features.size(1);
    stride = (int)((c + 15) / 16 * 16);
    rows = floats(features);
    if (stride == c) return;
    storage.assign(m * stride, 0.0f);
    for (int64_t i = 0; i < m; ++i) std::memcpy(&storage[i * stride], rows + i * c, c * sizeof(float));
    rows = storage.data();
  }
};

const float* floats_or_null(const std::optional<Tensor>& t) { return t ? floats(*t) : nullptr; }

// Label channels of `pixels` pixels against what is given of their semantic, mask and weight.
panbench::LabelTargets label_targets(int64_t pixels, int64_t channels, const std::optional<Tensor>& semantic,
                                     const std::optional<Tensor>& mask, const std::optional<Tensor>& weight,
                                     int64_t masks, int64_t classes, int64_t first_query, bool logits,
                                     double epsilon) {
  panbench::LabelTargets l{};
  check(semantic.has_value() == mask.has_value() && mask.has_value() == weight.has_value(),
        "semantic, mask and weight come together");
  if (!semantic) return l;
  check(semantic->numel() == pixels && mask->numel() == pixels && weight->numel() == pixels, "maps must be [H, W]");
  check(classes >= 0 && masks >= 0 && classes <= first_query && first_query <= channels,
        "class channels come before queries, and these end with the channels");
  check(epsilon >= 1e-6 && epsilon < 0.5, "epsilon must be in [1e-6, 0.5)");
  l.semantic = ints(*semantic);
  l.mask = ints(*mask);
  l.weight = floats(*weight);
  l.channels = (int)channels;
  l.masks = (int)masks;
  l.classes = (int)classes;
  l.first_query = (int)first_query;
  l.queries = (int)(channels - first_query);
  l.padded = (l.queries + 15) / 16 * 16;
  l.factors = (int)std::min(8.0, -37.0 / std::log10(epsilon));
  l.logits = logits;
  l.epsilon = (float)epsilon;
  int32_t top_class = 0, top_mask = -1;
  for (int64_t p = 0; p < pixels; ++p) {
    top_class = std::max(top_class, l.semantic[p]);
    top_mask = std::max(top_mask, l.mask[p]);
  }
  check(!classes || top_class <= classes, "a class has no channel");
  check(top_mask < masks, "a mask's number is too large");
  return l;
}

// Room for the sums of label channels.
struct Totals {
  Tensor entropy, presence, overlap;
  Totals(const panbench::LabelTargets& l)
      : entropy(empty({})), presence(empty({2, l.queries})), overlap(empty({2, l.masks, l.queries})) {
    *out(entropy) = 0.0f;
  }
  panbench::LabelTotals room() const { return {out(entropy), out(presence), out(overlap)}; }
};

// Gradients of the sums, with their tables.
struct SumGradients {
  std::vector<float> tables;
  panbench::LabelGradIn in{};
  SumGradients(const panbench::LabelTargets& l, const std::optional<Tensor>& entropy,
               const std::optional<Tensor>& presence, const std::optional<Tensor>& overlap) {
    if (!l.semantic || !(entropy || presence || overlap)) return;
    check(!presence || presence->numel() == 2 * l.queries, "the gradient of presence must be [2, Q]");
    check(!overlap || overlap->numel() == 2 * (int64_t)l.masks * l.queries, "that of overlap must be [2, K, Q]");
    tables = panbench::label_tables(l, floats_or_null(presence), floats_or_null(overlap));
    in = {true, entropy ? *floats(*entropy) : 0.0f, tables.data()};
  }
};

// What blend and blend_backward have in common.
struct BlendInputs {
  panbench::BlendArgs args{};
  int64_t visible;
  BlendInputs(const Tensor& geometry, const Tensor& features, const Tensor& labels, const Tensor& offsets,
              const Tensor& tile_ids, const std::optional<Tensor>& semantic, const std::optional<Tensor>& mask,
              const std::optional<Tensor>& weight, int64_t width, int64_t height, int64_t kind, int64_t detached,
              double near_plane, int64_t masks, int64_t classes, int64_t first_query, bool logits, double epsilon)
      : visible(geometry.size(0)) {
    check(geometry.dim() == 2 && geometry.size(1) == panbench::geometry_width((int)kind), "geometry must be [M, G]");
    check(features.dim() == 2 && features.size(0) == visible, "features must be [M, C]");
    check(labels.dim() == 2 && labels.size(0) == visible, "labels must be [M, L]");
    check(features.size(1) + labels.size(1) > 0, "there must be a channel");
    check(offsets.size(0) == ((width + 15) / 16) * ((height + 15) / 16) + 1, "tile offsets do not fit the image");
    args.kind = (int)kind;
    args.width = (int)width;
    args.height = (int)height;
    args.channels = (int)features.size(1);
    args.labels = (int)labels.size(1);
    args.stride = (args.channels + args.labels + 15) / 16 * 16;
    check(detached >= 0 && detached <= args.labels, "no more labels can be detached than there are");
    args.attached = args.channels + args.labels - (int)detached;
    args.near_plane = (float)near_plane;
    args.geometry = floats(geometry);
    args.features = floats(features);
    args.label_rows = floats(labels);
    args.tile_offsets = ints(offsets);
    args.tile_ids = ints(tile_ids);
    args.targets = label_targets(width * height, args.labels, semantic, mask, weight, masks, classes, first_query,
                                 logits, epsilon);
  }
};

void check_absolute(bool wanted, int64_t kind) {
  check(!wanted || kind == panbench::kEllipsoid, "only ellipsoids have absolute gradients");
}

using BlendResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// `absolute` is what the autograd kernel sends a gradient to; its values are not read.
BlendResults blend(const Tensor& geometry, const Tensor& features, const Tensor& labels, const Tensor& offsets,
                   const Tensor& tile_ids, const std::optional<Tensor>& semantic, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& weight, int64_t width, int64_t height, int64_t kind, int64_t detached,
                   double near_plane, int64_t masks, int64_t classes, int64_t first_query, bool logits, double epsilon,
                   bool distort, const std::optional<Tensor>& absolute) {
  const BlendInputs inputs(geometry, features, labels, offsets, tile_ids, semantic, mask, weight, width, height, kind,
                           detached, near_plane, masks, classes, first_query, logits, epsilon);
  check_absolute(absolute.has_value(), kind);
  const Tensor image = empty({height, width, features.size(1)}), label_image = empty({height, width, labels.size(1)}),
               alpha = empty({height, width}), depth = empty({height, width}), median = empty({height, width}),
               distortion = distort ? empty({height, width}) : empty({0, 0});
  const Totals totals(inputs.args.targets);
  panbench::blend(inputs.args, inputs.visible,
                  {out(image), out(label_image), out(alpha), out(depth), out(median),
                   distort ? out(distortion) : nullptr, nullptr},
                  totals.room());
  return {image, label_image, alpha, depth, median, totals.entropy, totals.presence, totals.overlap, distortion};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> blend_backward(
    const Tensor& geometry, const Tensor& features, const Tensor& labels, const Tensor& offsets, const Tensor& tile_ids,
    const std::optional<Tensor>& semantic, const std::optional<Tensor>& mask, const std::optional<Tensor>& weight,
    int64_t width, int64_t height, int64_t kind, int64_t detached, double near_plane, int64_t masks, int64_t classes,
    int64_t first_query, bool logits, double epsilon, const Tensor& label_image,
    const std::optional<Tensor>& grad_image, const std::optional<Tensor>& grad_label_image,
    const std::optional<Tensor>& grad_alpha, const std::optional<Tensor>& grad_depth,
    const std::optional<Tensor>& grad_median, const std::optional<Tensor>& grad_entropy,
    const std::optional<Tensor>& grad_presence, const std::optional<Tensor>& grad_overlap,
    const std::optional<Tensor>& grad_distortion, bool absolute) {
  const BlendInputs inputs(geometry, features, labels, offsets, tile_ids, semantic, mask, weight, width, height, kind,
                           detached, near_plane, masks, classes, first_query, logits, epsilon);
  check_absolute(absolute, kind);
  const SumGradients sums(inputs.args.targets, grad_entropy, grad_presence, grad_overlap);
  const Tensor g_geometry = empty({geometry.size(0), geometry.size(1)}),
               g_features = empty({features.size(0), features.size(1)}),
               g_labels = empty({labels.size(0), labels.size(1)}),
               g_absolute = empty({absolute ? geometry.size(0) : 0, 2});
  panbench::blend_backward(
      inputs.args, inputs.visible,
      {floats_or_null(grad_image), floats_or_null(grad_label_image), floats_or_null(grad_alpha),
       floats_or_null(grad_depth), floats_or_null(grad_median), floats_or_null(grad_distortion), floats(label_image),
       sums.in, absolute},
      out(g_geometry), out(g_features), out(g_labels), out(g_absolute));
  return {g_geometry, g_features, g_labels, g_absolute};
}

panbench::LabelTargets image_targets(const Tensor& labels, const Tensor& semantic, const Tensor& mask,
                                     const Tensor& weight, int64_t masks, int64_t classes, int64_t first_query,
                                     bool logits, double epsilon) {
  check(labels.dim() == 3, "labels must be [H, W, L]");
  return label_targets(labels.size(0) * labels.size(1), labels.size(2), semantic, mask, weight, masks, classes,
                       first_query, logits, epsilon);
}

std::tuple<Tensor, Tensor, Tensor> label_sums(const Tensor& labels, const Tensor& semantic, const Tensor& mask,
                                              const Tensor& weight, int64_t masks, int64_t classes,
                                              int64_t first_query, bool logits, double epsilon) {
  const auto l = image_targets(labels, semantic, mask, weight, masks, classes, first_query, logits, epsilon);
  const Totals totals(l);
  panbench::label_sums(l, floats(labels), semantic.numel(), totals.room());
  return {totals.entropy, totals.presence, totals.overlap};
}

Tensor label_sums_backward(const Tensor& labels, const Tensor& semantic, const Tensor& mask, const Tensor& weight,
                           int64_t masks, int64_t classes, int64_t first_query, bool logits, double epsilon,
                           const Tensor& grad_entropy, const Tensor& grad_presence, const Tensor& grad_overlap) {
  const auto l = image_targets(labels, semantic, mask, weight, masks, classes, first_query, logits, epsilon);
  const SumGradients sums(l, grad_entropy, grad_presence, grad_overlap);
  const Tensor grad = empty({labels.size(0), labels.size(1), labels.size(2)});
  panbench::label_sums_backward(l, sums.in, floats(labels), semantic.numel(), out(grad));
  return grad;
}

// Query arrays transposed to [rows, queries rounded up to 16].
struct Transposed {
  std::vector<float> data;
  int stride;
  Transposed(const Tensor& t, int64_t rows) {
    const int64_t q = t.size(0);
    const float* from = floats(t);
    stride = (int)((q + 15) / 16 * 16);
    data.assign(rows * stride, 0.0f);
    for (int64_t i = 0; i < q; ++i)
      for (int64_t k = 0; k < rows; ++k) data[k * stride + i] = from[i * rows + k];
  }
};

Tensor transposed_back(const std::vector<float>& data, int64_t rows, int64_t q, int stride,
                       std::vector<int64_t> shape) {
  const Tensor t = empty(shape);
  float* to = out(t);
  for (int64_t i = 0; i < q; ++i)
    for (int64_t k = 0; k < rows; ++k) to[i * rows + k] = data[k * stride + i];
  return t;
}

struct Attention {
  Transposed queries, query_means, query_roots;
  PaddedFeatures query_rows;
  panbench::AttendArgs args;
  Attention(const Tensor& features, const Tensor& means, const Tensor& q, const Tensor& q_means, const Tensor& q_roots,
            bool logarithm)
      : queries(q, q.size(1)), query_means(q_means, 3), query_roots(q_roots, 9), query_rows(q) {
    check(features.dim() == 2 && means.dim() == 2 && means.size(1) == 3 && means.size(0) == features.size(0),
          "features must be [M, D] and means [M, 3]");
    check(q.dim() == 2 && q.size(1) == features.size(1), "queries must be [Q, D]");
    check(q_means.size(0) == q.size(0) && q_roots.size(0) == q.size(0), "query means and roots must have Q rows");
    args = {features.size(0),          (int)features.size(1),   (int)q.size(0),          queries.stride,
            query_rows.stride,         floats(features),        floats(means),           queries.data.data(),
            query_rows.rows,           query_means.data.data(), query_roots.data.data(), logarithm, false, false, 0.0f, 0.0f};
  }
  void take_shares(double temperature, std::optional<double> rest) {
    args.shares = true;
    args.temperature = (float)temperature;
    args.has_rest = rest.has_value();
    args.rest = (float)(temperature * rest.value_or(0.0));
  }
};

Tensor attend(const Tensor& features, const Tensor& means, const Tensor& queries, const Tensor& query_means,
              const Tensor& query_roots, bool logarithm) {
  const Attention a(features, means, queries, query_means, query_roots, logarithm);
  const Tensor attention = empty({features.size(0), queries.size(0)});
  panbench::attend(a.args, out(attention));
  return attention;
}

using AttendGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

AttendGradients gradients_of(const Attention& a, const float* shares, const Tensor& grad) {
  const int64_t rows = a.args.rows, dim = a.args.dim, q = a.args.queries;
  const int stride = a.queries.stride;
  const Tensor g_features = empty({rows, dim}), g_means = empty({rows, 3});
  std::vector<float> g_q(q * a.query_rows.stride), g_qm(3 * stride), g_qr(9 * stride);
  panbench::attend_backward(a.args, shares, floats(grad), out(g_features), out(g_means), g_q.data(), g_qm.data(),
                            g_qr.data());
  const Tensor g_queries = empty({q, dim});
  for (int64_t i = 0; i < q; ++i)
    std::memcpy(out(g_queries) + i * dim, &g_q[i * a.query_rows.stride], dim * sizeof(float));
  return {g_features, g_means, g_queries,
          transposed_back(g_qm, 3, q, stride, {q, 3}), transposed_back(g_qr, 9, q, stride, {q, 3, 3})};
}

AttendGradients attend_backward(const Tensor& features, const Tensor& means, const Tensor& queries,
                                const Tensor& query_means, const Tensor& query_roots, bool logarithm,
                                const Tensor& grad) {
  const Attention a(features, means, queries, query_means, query_roots, logarithm);
  return gradients_of(a, nullptr, grad);
}

Tensor attend_shares(const Tensor& features, const Tensor& means, const Tensor& queries, const Tensor& query_means,
                     const Tensor& query_roots, bool logarithm, double temperature, std::optional<double> rest) {
  Attention a(features, means, queries, query_means, query_roots, logarithm);
  a.take_shares(temperature, rest);
  const Tensor shares = empty({features.size(0), queries.size(0)});
  panbench::attend(a.args, out(shares));
  return shares;
}

AttendGradients attend_shares_backward(const Tensor& features, const Tensor& means, const Tensor& queries,
                                       const Tensor& query_means, const Tensor& query_roots, bool logarithm,
                                       double temperature, std::optional<double> rest, const Tensor& shares,
                                       const Tensor& grad) {
  Attention a(features, means, queries, query_means, query_roots, logarithm);
  a.take_shares(temperature, rest);
  return gradients_of(a, floats(shares), grad);
}

Tensor take_rows(const Tensor& values, const Tensor& ids) {
  check(values.dim() == 2, "values must be [N, D]");
  const Tensor rows = empty({ids.size(0), values.size(1)});
  panbench::take_rows(floats(values), longs(ids), ids.size(0), values.size(1), out(rows));
  return rows;
}

Tensor take_rows_backward(const Tensor& grad, const Tensor& ids, int64_t count) {
  check(grad.dim() == 2 && grad.size(0) == ids.size(0), "grad must have a row for each id");
  const Tensor spread = empty({count, grad.size(1)});
  panbench::spread_rows(floats(grad), longs(ids), ids.size(0), grad.size(1), count, out(spread));
  return spread;
}

std::tuple<Tensor, Tensor> similarity(const Tensor& x, const Tensor& y, double ssim_weight, double l1_weight) {
  check(x.dim() == 3 && y.dim() == 3, "images must be [H, W, C]");
  for (int k = 0; k < 3; ++k) check(x.size(k) == y.size(k), "images must have one size");
  const Tensor value = empty({}), grad = empty({x.size(0), x.size(1), x.size(2)});
  *out(value) = (float)panbench::similarity(floats(x), floats(y), x.size(0), x.size(1), x.size(2), ssim_weight,
                                            l1_weight, out(grad));
  return {value, grad};
}

std::tuple<Tensor, Tensor> ssim(const Tensor& x, const Tensor& y) { return similarity(x, y, 1.0, 0.0); }

panbench::DepthMap depth_map(const Tensor& depth, double fx, double fy, double cx, double cy, int64_t step) {
  check(depth.dim() == 2 && step > 0, "depth must be [H, W] and the step positive");
  return {floats(depth), depth.size(0), depth.size(1), step, (float)fx, (float)fy, (float)cx, (float)cy};
}

Tensor depth_normals(const Tensor& depth, double fx, double fy, double cx, double cy, int64_t step) {
  const Tensor normals = empty({depth.size(0), depth.size(1), 3});
  panbench::depth_normals(depth_map(depth, fx, fy, cx, cy, step), out(normals));
  return normals;
}

Tensor depth_normals_backward(const Tensor& depth, double fx, double fy, double cx, double cy, int64_t step,
                              const Tensor& grad) {
  const Tensor g_depth = empty({depth.size(0), depth.size(1)});
  panbench::depth_normals_backward(depth_map(depth, fx, fy, cx, cy, step), floats(grad), out(g_depth));
  return g_depth;
}

// Floats between the pixels of an image [H, W, .] that may be a slice of the channels of a larger one.
int64_t pixel_stride(const Tensor& image) {
  check(image.dim() == 3 && image.is_cpu() && image.scalar_type() == ScalarType::Float, "image must be float32 [H, W, C]");
  const int64_t stride = image.strides()[1];
  check(image.strides()[2] == 1 && image.strides()[0] == stride * image.size(1), "pixels must have one stride");
  return stride;
}

panbench::NormalMaps normal_maps(const Tensor& normals, const Tensor& reference) {
  check(normals.dim() == 3 && normals.size(2) == 3, "normals must be [H, W, 3]");
  check(reference.dim() == 3, "reference normals must be [H, W, 3]");
  for (int k = 0; k < 3; ++k) check(normals.size(k) == reference.size(k), "normals must have one size");
  return {normals.size(0), normals.size(1), pixel_stride(normals), normals.const_data_ptr<float>(), floats(reference)};
}

std::tuple<Tensor, Tensor> normal_loss(const Tensor& normals, const Tensor& reference) {
  const Tensor value = empty({}), known = empty({}, ScalarType::Long);
  *out(value) = (float)panbench::normal_loss(normal_maps(normals, reference),
                                             static_cast<int64_t*>(known.mutable_data_ptr()));
  return {value, known};
}

std::tuple<Tensor, Tensor> normal_loss_backward(const Tensor& normals, const Tensor& reference, const Tensor& known,
                                                const Tensor& upstream) {
  const Tensor g_normals = empty({normals.size(0), normals.size(1), 3}),
               g_reference = empty({normals.size(0), normals.size(1), 3});
  panbench::normal_loss_backward(normal_maps(normals, reference), *longs(known), *floats(upstream), out(g_normals),
                                 out(g_reference));
  return {g_normals, g_reference};
}

std::tuple<Tensor, Tensor, Tensor> warping_loss(const Tensor& labels, const Tensor& depth, const Tensor& other,
                                                const Tensor& other_depth, const Tensor& transform, double fx,
                                                double fy, double cx, double cy, double other_fx, double other_fy,
                                                double other_cx, double other_cy, double tolerance) {
  check(labels.dim() == 3 && other.dim() == 3 && other.size(2) <= labels.size(2), "labels must be [H, W, L]");
  check(depth.dim() == 2 && depth.size(0) == labels.size(0) && depth.size(1) == labels.size(1), "depth must be [H, W]");
  check(other_depth.dim() == 2 && other_depth.size(0) == other.size(0) && other_depth.size(1) == other.size(1),
        "the other depth must be [H', W']");
  check(transform.dim() == 2 && transform.numel() == 16, "the transform must be [4, 4]");
  const float* m = floats(transform);
  panbench::Warping w;
  w.width = labels.size(1), w.height = labels.size(0), w.other_width = other.size(1), w.other_height = other.size(0);
  w.channels = other.size(2), w.stride = labels.size(2);
  w.labels = floats(labels), w.depth = floats(depth), w.other = floats(other), w.other_depth = floats(other_depth);
  w.rotation = {{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}};
  w.translation = {m[3], m[7], m[11]};
  w.fx = (float)fx, w.fy = (float)fy, w.cx = (float)cx, w.cy = (float)cy;
  w.other_fx = (float)other_fx, w.other_fy = (float)other_fy;
  w.other_cx = (float)other_cx, w.other_cy = (float)other_cy;
  w.tolerance = (float)tolerance;
  const Tensor value = empty({}), directions = empty({w.height, w.width, w.channels}),
               valid = empty({}, ScalarType::Long);
  *out(value) =
      (float)panbench::warping_loss(w, out(directions), static_cast<int64_t*>(valid.mutable_data_ptr()));
  return {value, directions, valid};
}

Tensor warping_loss_backward(const Tensor& directions, const Tensor& valid, int64_t channels, const Tensor& upstream) {
  check(directions.dim() == 3 && directions.size(2) <= channels, "directions must be [H, W, at most L]");
  const int64_t height = directions.size(0), width = directions.size(1), known = *longs(valid);
  const Tensor grad = empty({height, width, channels});
  panbench::warping_loss_backward(floats(directions), height * width, directions.size(2), channels,
                                  known ? *floats(upstream) / (float)known : 0.0f, out(grad));
  return grad;
}

std::tuple<Tensor, Tensor> mixture_loss(const Tensor& means, const Tensor& quats, const Tensor& log_scales,
                                        const Tensor& ids, const Tensor& components, const Tensor& weights,
                                        const Tensor& centers, const Tensor& normals, double corner,
                                        double normal_share) {
  const int64_t n = means.size(0);
  check(means.dim() == 2 && means.size(1) == 3, "means must be [N, 3]");
  check(quats.dim() == 2 && quats.size(0) == n && quats.size(1) == 4, "quats must be [N, 4]");
  check(log_scales.dim() == 2 && log_scales.size(0) == n && log_scales.size(1) >= 2, "log_scales must be [N, 2 or 3]");
  check(components.dim() == 2 && components.size(0) == n, "components must be [N, K]");
  check(weights.dim() == 2 && weights.size(0) == n && weights.size(1) == components.size(1), "weights must be [N, K]");
  check(centers.dim() == 2 && centers.size(1) == 3 && normals.dim() == 2 && normals.size(1) == 3 &&
            normals.size(0) == centers.size(0),
        "centers and normals must be [P, 3]");
  check(corner > 0, "the corner must be positive");
  const Tensor value = empty({}), gradients = empty({ids.size(0), panbench::kMixtureGradient});
  bool unknown = false;
  *out(value) = (float)panbench::mixture_loss(
      {floats(means), floats(quats), floats(log_scales), log_scales.size(1), longs(ids), ids.size(0), longs(components),
       floats(weights), components.size(1), floats(centers), floats(normals), centers.size(0), (float)corner,
       (float)normal_share},
      out(gradients), unknown);
  check(!unknown, "a component is not among the planes");
  return {value, gradients};
}

std::tuple<Tensor, Tensor, Tensor> mixture_loss_backward(const Tensor& ids, const Tensor& gradients, int64_t count,
                                                         int64_t scale_dim, const Tensor& upstream) {
  const int64_t discs = ids.size(0);
  check(gradients.dim() == 2 && gradients.size(0) == discs && gradients.size(1) == panbench::kMixtureGradient,
        "gradients must be [M, 9]");
  check(scale_dim >= 2, "there must be two log-scales");
  const Tensor g_means = empty({count, 3}), g_quats = empty({count, 4}), g_scales = empty({count, scale_dim});
  panbench::mixture_loss_backward(longs(ids), discs, count, scale_dim, floats(gradients),
                                  discs ? *floats(upstream) / (float)discs : 0.0f, out(g_means), out(g_quats),
                                  out(g_scales));
  return {g_means, g_quats, g_scales};
}

Vec3 vector_of(const Tensor& t) {
  check(t.dim() == 1 && t.size(0) == 3, "camera position must be [3]");
  return panbench::load3(floats(t));
}

void check_sh(const Tensor& dc, const Tensor& rest, const Tensor& means, int64_t degree) {
  check(degree >= 0 && degree <= 3, "degree must be 0 to 3");
  check(dc.dim() == 2 && dc.size(1) == 3 && rest.dim() == 3 && rest.size(0) == dc.size(0) && rest.size(2) == 3 &&
            means.size(0) == dc.size(0),
        "dc must be [N, 3], rest [N, K, 3] and means [N, 3]");
  check(rest.size(1) >= (degree + 1) * (degree + 1) - 1, "too few coefficients for the degree");
}

Tensor spherical_harmonics(const Tensor& dc, const Tensor& rest, const Tensor& means, const Tensor& camera,
                           const Tensor& ids, int64_t degree) {
  check_sh(dc, rest, means, degree);
  const Tensor colors = empty({ids.size(0), 3});
  panbench::spherical_harmonics(ids.size(0), longs(ids), (int)degree, (int)rest.size(1), floats(dc), floats(rest),
                                floats(means), vector_of(camera), out(colors));
  return colors;
}

std::tuple<Tensor, Tensor, Tensor> spherical_harmonics_backward(const Tensor& dc, const Tensor& rest,
                                                                const Tensor& means, const Tensor& camera,
                                                                const Tensor& ids, int64_t degree,
                                                                const Tensor& grad_colors) {
  check_sh(dc, rest, means, degree);
  const int64_t n = dc.size(0);
  const Tensor g_dc = empty({n, 3}), g_rest = empty({n, rest.size(1), 3}), g_means = empty({n, 3});
  panbench::spherical_harmonics_backward(ids.size(0), longs(ids), (int)degree, (int)rest.size(1), floats(dc),
                                         floats(rest), floats(means), vector_of(camera), floats(grad_colors), n,
                                         out(g_dc), out(g_rest), out(g_means));
  return {g_dc, g_rest, g_means};
}

}  // namespace

STABLE_TORCH_LIBRARY(panbench, m) {
  m.def(
      "project(Tensor means, Tensor quats, Tensor log_scales, Tensor opacity_logits, Tensor world_to_camera, float fx, "
      "float fy, float cx, float cy, int width, int height, int kind, float near, float low_pass) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "project_backward(Tensor means, Tensor quats, Tensor log_scales, Tensor opacity_logits, Tensor world_to_camera, "
      "float fx, float fy, float cx, float cy, int width, int height, int kind, float near, float low_pass, Tensor ids, "
      "Tensor grad_geometry, Tensor grad_normals) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("bin(Tensor geometry, int width, int height, int kind) -> (Tensor, Tensor)");
  m.def(
      "blend(Tensor geometry, Tensor features, Tensor labels, Tensor tile_offsets, Tensor tile_ids, Tensor? semantic, "
      "Tensor? mask, Tensor? weight, int width, int height, int kind, int detached, float near, int masks, int "
      "classes, int first_query, bool logits, float epsilon, bool distort=False, Tensor? absolute=None) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "blend_backward(Tensor geometry, Tensor features, Tensor labels, Tensor tile_offsets, Tensor tile_ids, Tensor? "
      "semantic, Tensor? mask, Tensor? weight, int width, int height, int kind, int detached, float near, int masks, "
      "int classes, int first_query, bool logits, float epsilon, Tensor label_image, Tensor? grad_image, Tensor? "
      "grad_label_image, Tensor? grad_alpha, Tensor? grad_depth, Tensor? grad_median, Tensor? grad_entropy, Tensor? "
      "grad_presence, Tensor? grad_overlap, Tensor? grad_distortion=None, bool absolute=False) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
  m.def(
      "label_sums(Tensor labels, Tensor semantic, Tensor mask, Tensor weight, int masks, int classes, int first_query, "
      "bool logits, float epsilon) -> (Tensor, Tensor, Tensor)");
  m.def(
      "label_sums_backward(Tensor labels, Tensor semantic, Tensor mask, Tensor weight, int masks, int classes, int "
      "first_query, bool logits, float epsilon, Tensor grad_entropy, Tensor grad_presence, Tensor grad_overlap) -> "
      "Tensor");
  m.def(
      "attend(Tensor features, Tensor means, Tensor queries, Tensor query_means, Tensor query_roots, bool logarithm) -> "
      "Tensor");
  m.def(
      "attend_backward(Tensor features, Tensor means, Tensor queries, Tensor query_means, Tensor query_roots, bool "
      "logarithm, Tensor grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "attend_shares(Tensor features, Tensor means, Tensor queries, Tensor query_means, Tensor query_roots, bool "
      "logarithm, float temperature, float? rest) -> Tensor");
  m.def(
      "attend_shares_backward(Tensor features, Tensor means, Tensor queries, Tensor query_means, Tensor query_roots, "
      "bool logarithm, float temperature, float? rest, Tensor shares, Tensor grad) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def("take_rows(Tensor values, Tensor ids) -> Tensor");
  m.def("take_rows_backward(Tensor grad, Tensor ids, int count) -> Tensor");
  m.def("ssim(Tensor x, Tensor y) -> (Tensor, Tensor)");
  m.def("similarity(Tensor x, Tensor y, float ssim_weight, float l1_weight) -> (Tensor, Tensor)");
  m.def("depth_normals(Tensor depth, float fx, float fy, float cx, float cy, int step) -> Tensor");
  m.def(
      "depth_normals_backward(Tensor depth, float fx, float fy, float cx, float cy, int step, Tensor grad) -> Tensor");
  m.def("normal_loss(Tensor normals, Tensor reference) -> (Tensor, Tensor)");
  m.def(
      "normal_loss_backward(Tensor normals, Tensor reference, Tensor known, Tensor upstream) -> (Tensor, Tensor)");
  m.def(
      "warping_loss(Tensor labels, Tensor depth, Tensor other, Tensor other_depth, Tensor transform, float fx, float "
      "fy, float cx, float cy, float other_fx, float other_fy, float other_cx, float other_cy, float tolerance) -> "
      "(Tensor, Tensor, Tensor)");
  m.def("warping_loss_backward(Tensor directions, Tensor valid, int channels, Tensor upstream) -> Tensor");
  m.def(
      "mixture_loss(Tensor means, Tensor quats, Tensor log_scales, Tensor ids, Tensor components, Tensor weights, Tensor "
      "centers, Tensor normals, float corner, float normal_share) -> (Tensor, Tensor)");
  m.def(
      "mixture_loss_backward(Tensor ids, Tensor gradients, int count, int scale_dim, Tensor upstream) -> (Tensor, "
      "Tensor, Tensor)");
  m.def(
      "spherical_harmonics(Tensor dc, Tensor rest, Tensor means, Tensor camera_position, Tensor ids, int degree) -> "
      "Tensor");
  m.def(
      "spherical_harmonics_backward(Tensor dc, Tensor rest, Tensor means, Tensor camera_position, Tensor ids, int "
      "degree, Tensor grad_colors) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(panbench, CPU, m) {
  m.impl("project", TORCH_BOX(&project));
  m.impl("project_backward", TORCH_BOX(&project_backward));
  m.impl("bin", TORCH_BOX(&bin));
  m.impl("blend", TORCH_BOX(&blend));
  m.impl("blend_backward", TORCH_BOX(&blend_backward));
  m.impl("label_sums", TORCH_BOX(&label_sums));
  m.impl("label_sums_backward", TORCH_BOX(&label_sums_backward));
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
  m.impl("attend_shares", TORCH_BOX(&attend_shares));
  m.impl("attend_shares_backward", TORCH_BOX(&attend_shares_backward));
  m.impl("take_rows", TORCH_BOX(&take_rows));
  m.impl("take_rows_backward", TORCH_BOX(&take_rows_backward));
  m.impl("ssim", TORCH_BOX(&ssim));
  m.impl("similarity", TORCH_BOX(&similarity));
  m.impl("depth_normals", TORCH_BOX(&depth_normals));
  m.impl("depth_normals_backward", TORCH_BOX(&depth_normals_backward));
  m.impl("normal_loss", TORCH_BOX(&normal_loss));
  m.impl("normal_loss_backward", TORCH_BOX(&normal_loss_backward));
  m.impl("warping_loss", TORCH_BOX(&warping_loss));
  m.impl("warping_loss_backward", TORCH_BOX(&warping_loss_backward));
  m.impl("mixture_loss", TORCH_BOX(&mixture_loss));
  m.impl("mixture_loss_backward", TORCH_BOX(&mixture_loss_backward));
  m.impl("spherical_harmonics", TORCH_BOX(&spherical_harmonics));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&spherical_harmonics_backward));
}
