// Projection and spherical harmonics over all Gaussians.
#include <cstring>

#include "../sh.h"
#include "pipeline.h"

namespace panbench {
namespace {

struct Visible {
  std::vector<int64_t> ids;
  std::vector<float> geometry, normals;
};

// Work is cut into fixed pieces, so that the order of the visible rows does not depend on the number of threads.
constexpr int64_t kPiece = kProjected;

// Calls clear(first, last) for the pieces of [0, count), and then visit(first, begin, end) for the visible rows
// begin..end - 1 whose ids, ascending, lie in it: what is cleared is still in the cache when it is written.
template <typename Clear, typename Visit>
void for_pieces(const int64_t* ids, int64_t visible, int64_t count, const Clear& clear, const Visit& visit) {
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t last = std::min(count, first + kPiece);
    clear(first, last);
    const int64_t* const begin = std::lower_bound(ids, ids + visible, first);
    visit(first, begin - ids, std::lower_bound(begin, ids + visible, last) - ids);
  }
}

void clear_rows(float* rows, int64_t first, int64_t last, int64_t width) {
  std::memset(rows + first * width, 0, (last - first) * width * sizeof(float));
}

}  // namespace

void project(const Gaussians& g, const View& view, int kind, const std::function<VisibleOut(int64_t)>& allocate) {
  const int width = geometry_width(kind);
  const int64_t pieces = (g.count + kPiece - 1) / kPiece;
  // Kept between calls, as fresh pages cost more than the work; one for each caller, filled by all of its threads.
  static thread_local Visible storage;
  Visible& found = storage;
  if ((int64_t)found.ids.size() < g.count) {
    found.ids.resize(g.count);
    found.geometry.resize(g.count * kDiscGeometry);
    found.normals.resize(g.count * 3);
  }
  std::vector<int64_t> offsets(pieces + 1, 0);
#pragma omp parallel for schedule(dynamic)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = piece * kPiece, end = std::min(g.count, begin + kPiece);
    const VisibleOut out = {&found.ids[begin], &found.geometry[begin * width], &found.normals[begin * 3]};
    offsets[piece + 1] = kernels().project(g, view, kind, begin, end, out);
  }
  for (int64_t piece = 0; piece < pieces; ++piece) offsets[piece + 1] += offsets[piece];
  const VisibleOut out = allocate(offsets.back());
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t from = piece * kPiece, to = offsets[piece], count = offsets[piece + 1] - to;
    std::copy_n(&found.ids[from], count, out.ids + to);
    std::copy_n(&found.geometry[from * width], count * width, out.geometry + to * width);
    std::copy_n(&found.normals[from * 3], count * 3, out.normals + to * 3);
  }
}

void project_backward(const Gaussians& g, const View& view, int kind, const int64_t* ids, int64_t visible,
                      const float* grad_geometry, const float* grad_normals, const GaussianArrays& out) {
  const auto clear = [&](int64_t first, int64_t last) {
    clear_rows(out.means, first, last, 3);
    clear_rows(out.quats, first, last, 4);
    clear_rows(out.log_scales, first, last, g.scale_dim);
    clear_rows(out.logits, first, last, 1);
  };
  for_pieces(ids, visible, g.count, clear, [&](int64_t piece, int64_t begin, int64_t end) {
    kernels().project_backward(g, view, kind, piece, ids, begin, end, grad_geometry, grad_normals, out);
  });
}

void take_rows(const float* from, const int64_t* ids, int64_t count, int64_t width, float* to) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < count; ++m) std::memcpy(to + m * width, from + ids[m] * width, width * sizeof(float));
}

void spread_rows(const float* from, const int64_t* ids, int64_t count, int64_t width, int64_t total, float* to) {
  for_pieces(
      ids, count, total, [&](int64_t first, int64_t last) { clear_rows(to, first, last, width); },
      [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m)
          std::memcpy(to + ids[m] * width, from + m * width, width * sizeof(float));
      });
}

void spherical_harmonics(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                         const float* rest, const float* means, Vec3 camera, float* colors) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < visible; ++m) {
    const int64_t i = ids[m];
    store3(colors + 3 * m, sh_color(degree, dc + 3 * i, rest + 3 * rest_count * i, means + 3 * i, camera));
  }
}

void spherical_harmonics_backward(int64_t visible, const int64_t* ids, int degree, int rest_count, const float* dc,
                                  const float* rest, const float* means, Vec3 camera, const float* grad_colors,
                                  int64_t count, float* grad_dc, float* grad_rest, float* grad_means) {
  const auto clear = [&](int64_t first, int64_t last) {
    clear_rows(grad_dc, first, last, 3);
    clear_rows(grad_rest, first, last, 3 * rest_count);
    clear_rows(grad_means, first, last, 3);
  };
  for_pieces(ids, visible, count, clear, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const int64_t i = ids[m], r = 3 * rest_count * i;
      sh_color_backward(degree, dc + 3 * i, rest + r, means + 3 * i, camera, load3(grad_colors + 3 * m), grad_dc + 3 * i,
                        grad_rest + r, grad_means + 3 * i);
    }
  });
}

}  // namespace panbench
