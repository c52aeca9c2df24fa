// Python's way to the CPU rasterizer of an OpenSplat checkout: projection, which torch differentiates, and rasterization
// with its own way back. Includes and links that checkout's sources, of which nothing is kept here.
#include <torch/extension.h>

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"

namespace {

using torch::Tensor;

// The hit lists of a rendered view, which the rasterizer hands over as a bare array.
struct Hits {
  std::unique_ptr<std::vector<int32_t>[]> lists;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> project(Tensor means, Tensor scales, Tensor quats, Tensor view, Tensor clip,
                                                   double fx, double fy, double cx, double cy, int width, int height,
                                                   double near_plane) {
  auto [centers, radii, conics, covariances, depths] = project_gaussians_forward_tensor_cpu(
      (int)means.size(0), means, scales, 1.0f, quats, view, clip, (float)fx, (float)fy, (float)cx, (float)cy,
      (unsigned)height, (unsigned)width, (float)near_plane);
  return {centers, conics, covariances, depths};
}

std::tuple<Tensor, Tensor, std::shared_ptr<Hits>> rasterize(int width, int height, Tensor centers, Tensor conics,
                                                            Tensor colors, Tensor opacities, Tensor background,
                                                            Tensor covariances, Tensor depths) {
  auto [image, left, lists] = rasterize_forward_tensor_cpu(width, height, centers, conics, colors, opacities,
                                                           background, covariances, depths);
  auto hits = std::make_shared<Hits>();
  hits->lists.reset(lists);
  return {image, left, hits};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rasterize_backward(int width, int height, Tensor centers, Tensor conics,
                                                              Tensor colors, Tensor opacities, Tensor background,
                                                              Tensor covariances, Tensor depths, Tensor left,
                                                              const Hits& hits, Tensor grad_image) {
  Tensor grad_left = torch::zeros_like(left);
  return rasterize_backward_tensor_cpu(height, width, centers, conics, colors, opacities, background, covariances,
                                       depths, left, hits.lists.get(), grad_image, grad_left);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  pybind11::class_<Hits, std::shared_ptr<Hits>>(module, "Hits");
  module.def("project", &project);
  module.def("rasterize", &rasterize);
  module.def("rasterize_backward", &rasterize_backward);
}
