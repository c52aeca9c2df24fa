// Sums of a label image that was not blended with its targets, and their gradient.
#include "label_sums.h"

#include "api.h"

namespace panbench {
namespace {

// Without a number of blocks the compiler spills a register for the sake of a sixth.
__global__ void __launch_bounds__(kTilePixels, 4) sum_labels(Frame frame, const float* labels, int label_count,
                                                          LabelTargets targets, LabelTotals totals) {
  add_tile_sums(frame, (int)blockIdx.x, labels, label_count, targets, totals);
}

// A warp to a pixel, a lane to every 32nd channel.
__global__ void __launch_bounds__(kTilePixels) label_gradients(int64_t pixels, const float* labels, int label_count,
                                                               LabelTargets targets, LabelUpstream upstream,
                                                               float* gradients) {
  const int64_t pixel = (int64_t)blockIdx.x * kWarps + threadIdx.x / 32;
  if (pixel >= pixels) return;
  const float* const values = labels + pixel * label_count;
  const bool labelled = targets.semantic[pixel] > 0;
  // Every lane goes through the classes: they are few, and read from one line of the cache.
  const float total =
      labelled && targets.logits && targets.classes > 0 ? log_total(values, targets.classes) : 0.0f;
  for (int c = (int)threadIdx.x % 32; c < label_count; c += 32)
    gradients[pixel * label_count + c] =
        labelled ? label_gradient(targets, upstream, label_count, pixel, c, values[c], total) : 0.0f;
}

}  // namespace

extern "C" {

int pb_cuda_label_sums(const float* labels, int width, int height, int label_count, const int32_t* semantic,
                       const int32_t* mask, const float* weight, int masks, int classes, int first_query, int logits,
                       float epsilon, double* sums, void* stream) {
  const LabelTargets targets{semantic, mask, weight, masks, classes, first_query, logits, epsilon};
  const Frame frame = frame_of(width, height);
  return launch(sum_labels, tile_count(frame), kTilePixels, 0, stream, frame, labels, label_count, targets,
                label_totals(sums, label_count - first_query));
}

int pb_cuda_label_sums_backward(const float* labels, int width, int height, int label_count, const int32_t* semantic,
                                const int32_t* mask, const float* weight, int masks, int classes, int first_query,
                                int logits, float epsilon, const float* grad_entropy, const float* grad_presence,
                                const float* grad_overlap, float* grad_labels, void* stream) {
  const LabelTargets targets{semantic, mask, weight, masks, classes, first_query, logits, epsilon};
  const int64_t pixels = (int64_t)width * height;
  return launch(label_gradients, blocks_for(pixels, kWarps), kTilePixels, 0, stream, pixels, labels, label_count,
                targets, LabelUpstream{grad_entropy, grad_presence, grad_overlap}, grad_labels);
}

}  // extern "C"

}  // namespace panbench
