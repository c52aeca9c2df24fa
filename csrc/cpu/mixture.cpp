// LI-GS's local term: how far discs are from the planes of a mixture.
#include <atomic>
#include <cmath>
#include <cstring>

#include "pipeline.h"

namespace panbench {
namespace {

constexpr int64_t kPiece = 512;  // discs that are summed up together

// Huber's function of e, with its slope.
struct Huber {
  float value, slope;
  Huber(float e, float corner) {
    slope = e / corner;
    slope = slope > 1 ? 1 : slope < -1 ? -1 : slope;
    value = slope * (e - 0.5f * corner * slope);
  }
};

// Value of one disc; adds its gradient in the entries of `grad` that are used.
float disc_loss(const MixtureTerm& term, int64_t row, GaussianOf<float>& grad, std::atomic<bool>& unknown) {
  GaussianOf<float> disc{};
  disc.mean = load3(term.means + 3 * row);
  const float* const q = term.quats + 4 * row;
  disc.w = q[0], disc.x = q[1], disc.y = q[2], disc.z = q[3];
  const float* const s = term.log_scales + term.scale_dim * row;
  const float inv = 1 / std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
  const Mat3 rotation = rotation_of<float>(q[0] * inv, q[1] * inv, q[2] * inv, q[3] * inv);
  const float radius_u = std::exp(s[0]), radius_v = std::exp(s[1]);
  const Vec3 u = radius_u * rotation.column(0), v = radius_v * rotation.column(1), axis = rotation.column(2);
  Vec3 g_mean{}, g_u{}, g_v{}, g_axis{};
  float sum = 0;
  for (int64_t k = 0; k < term.neighbors; ++k) {
    const int64_t plane = term.components[term.neighbors * row + k];
    const float weight = term.weights[term.neighbors * row + k];
    if (plane < 0 || weight == 0) continue;
    if (plane >= term.planes) {
      unknown = true;
      continue;
    }
    const Vec3 normal = load3(term.normals + 3 * plane);
    const float off = dot(normal, disc.mean - load3(term.centers + 3 * plane));
    const float rise_u = dot(normal, u), rise_v = dot(normal, v), cosine = dot(normal, axis);
    const Huber center(off, term.corner), u0(off + rise_u, term.corner), u1(off - rise_u, term.corner),
        v0(off + rise_v, term.corner), v1(off - rise_v, term.corner);
    sum += weight * (center.value + 0.25f * (u0.value + u1.value + v0.value + v1.value) +
                     term.normal_share * (1 - std::fabs(cosine)));
    const float quarter = 0.25f * weight;
    const float turned = cosine == 0 ? 0.0f : std::copysign(term.normal_share * weight, cosine);
    g_mean = g_mean + (weight * center.slope + quarter * (u0.slope + u1.slope + v0.slope + v1.slope)) * normal;
    g_u = g_u + quarter * (u0.slope - u1.slope) * normal;
    g_v = g_v + quarter * (v0.slope - v1.slope) * normal;
    g_axis = g_axis - turned * normal;
  }
  grad.mean = g_mean;
  grad.log_scale = {dot(g_u, u), dot(g_v, v), 0};
  g_u = radius_u * g_u;
  g_v = radius_v * g_v;
  rotation_backward(disc, Mat3{{g_u.x, g_v.x, g_axis.x}, {g_u.y, g_v.y, g_axis.y}, {g_u.z, g_v.z, g_axis.z}}, grad);
  return sum;
}

}  // namespace

double mixture_loss(const MixtureTerm& term, float* gradients, bool& unknown) {
  const int64_t pieces = (term.discs + kPiece - 1) / kPiece;
  std::vector<double> sums(pieces, 0.0);  // by pieces, so that they do not depend on the number of threads
  std::atomic<bool> found{false};
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t m = piece * kPiece; m < std::min(term.discs, (piece + 1) * kPiece); ++m) {
      GaussianOf<float> grad{};
      sums[piece] += disc_loss(term, term.ids[m], grad, found);
      const float row[kMixtureGradient] = {grad.mean.x,       grad.mean.y,      grad.mean.z, grad.w, grad.x, grad.y, grad.z,
                                           grad.log_scale.x, grad.log_scale.y};
      std::memcpy(gradients + kMixtureGradient * m, row, sizeof row);
    }
  unknown = found;
  double sum = 0;
  for (const double part : sums) sum += part;
  return term.discs ? sum / (double)term.discs : 0.0;
}

void mixture_loss_backward(const int64_t* ids, int64_t discs, int64_t count, int64_t scale_dim, const float* gradients,
                           float scale, float* grad_means, float* grad_quats, float* grad_scales) {
  std::vector<float> means(3 * discs), quats(4 * discs), scales(scale_dim * discs, 0.0f);
  for (int64_t m = 0; m < discs; ++m) {
    const float* const row = gradients + kMixtureGradient * m;
    for (int k = 0; k < 3; ++k) means[3 * m + k] = scale * row[k];
    for (int k = 0; k < 4; ++k) quats[4 * m + k] = scale * row[3 + k];
    for (int k = 0; k < 2; ++k) scales[scale_dim * m + k] = scale * row[7 + k];
  }
  spread_rows(means.data(), ids, discs, 3, count, grad_means);
  spread_rows(quats.data(), ids, discs, 4, count, grad_quats);
  spread_rows(scales.data(), ids, discs, scale_dim, count, grad_scales);
}

}  // namespace panbench
