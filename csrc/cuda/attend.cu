// Attention between Gaussians and queries: 64 rows x 32 queries to a block at a time, the dot products as a product of
// matrices. Of the rows passed in only: nothing of the size of all Gaussians times all queries is made.
#include <cfloat>

#include "api.h"
#include "device.h"

namespace panbench {
namespace {

constexpr int kRows = 64, kQueries = 32, kThreads = 256;
constexpr int kRowsEach = 8;         // pairs of a thread: rows r, r + 8, ... of one query
constexpr int kDepth = 32;           // dimensions multiplied at a time
constexpr int kStride = kDepth + 1;  // floats between rows: every lane in another bank
constexpr int kSpatial = 12;         // mean (3) and root (9) of a query

struct AttendInput {
  const float* features;      // [M, D]
  const float* means;         // [M, 3]
  const float* queries;       // [Q, D]
  const float* query_means;   // [Q, 3]
  const float* query_roots;   // [Q, 9]: L with Sigma^-1 = L^T L
  int64_t rows;
  int dim, query_count, logarithm;
};

// Rows of a matrix [count, dim], from `first` on, columns c.. of it, into [n, kStride]; 0 beyond the ends.
__device__ void load_columns(const float* from, int64_t first, int64_t count, int dim, int c, int n, float* to) {
  for (int i = (int)threadIdx.x; i < n * kDepth; i += kThreads) {
    const int64_t row = first + i / kDepth;
    const int column = c + i % kDepth;
    to[i / kDepth * kStride + i % kDepth] = row < count && column < dim ? from[row * dim + column] : 0.0f;
  }
}

__device__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// What a block has of its queries and rows in shared memory.
struct AttendTile {
  float* features;  // [64, kStride]
  float* queries;   // [32, kStride]
  float* means;     // [64, 3]
  float* spatial;   // [32, 12]

  __device__ explicit AttendTile(Shared& shared)
      : features(shared.take<float>(kRows * kStride)),
        queries(shared.take<float>(kQueries * kStride)),
        means(shared.take<float>(kRows * 3)),
        spatial(shared.take<float>(kQueries * kSpatial)) {}

  static constexpr std::size_t bytes() {
    return shared_bytes(kRows * kStride * sizeof(float), kQueries * kStride * sizeof(float), kRows * 3 * sizeof(float),
                        kQueries * kSpatial * sizeof(float));
  }

  __device__ void load_means(const AttendInput& in, int64_t first_row) const {
    for (int i = (int)threadIdx.x; i < kRows * 3; i += kThreads)
      means[i] = first_row + i / 3 < in.rows ? in.means[first_row * 3 + i] : 0.0f;
  }

  __device__ void load_spatial(const AttendInput& in, int first_query) const {
    for (int i = (int)threadIdx.x; i < kQueries * kSpatial; i += kThreads) {
      const int q = first_query + i / kSpatial, k = i % kSpatial;
      spatial[i] = q >= in.query_count ? 0.0f : k < 3 ? in.query_means[q * 3 + k] : in.query_roots[q * 9 + k - 3];
    }
  }

  // Dot products of the thread's pairs.
  __device__ void multiply(const AttendInput& in, int64_t first_row, int first_query, float (&dots)[kRowsEach]) const {
    const int query = (int)threadIdx.x % kQueries, row = (int)threadIdx.x / kQueries;
    for (int i = 0; i < kRowsEach; ++i) dots[i] = 0.0f;
    for (int c = 0; c < in.dim; c += kDepth) {
      PB_BARRIER(attend_columns_free);
      load_columns(in.features, first_row, in.rows, in.dim, c, kRows, features);
      load_columns(in.queries, first_query, in.query_count, in.dim, c, kQueries, queries);
      PB_BARRIER(attend_columns_loaded);
      for (int k = 0; k < kDepth; ++k) {
        const float b = queries[query * kStride + k];
#pragma unroll
        for (int i = 0; i < kRowsEach; ++i) dots[i] += features[(row + i * kRowsEach) * kStride + k] * b;
      }
    }
  }

  __device__ Vec3 offset(int row, int query) const {
    return load3(means + 3 * row) - load3(spatial + query * kSpatial);
  }

  // L d.
  __device__ Vec3 whitened(int query, Vec3 d) const {
    const float* const root = spatial + query * kSpatial + 3;
    return {dot(load3(root), d), dot(load3(root + 3), d), dot(load3(root + 6), d)};
  }

  // A or log A of a pair with this dot product.
  __device__ float attention(const AttendInput& in, int row, int query, float similarity) const {
    const Vec3 y = whitened(query, offset(row, query));
    const float exponent = -0.5f * dot(y, y);
    return in.logarithm ? fminf(similarity, 0.0f) - log1pf(expf(-fabsf(similarity))) + exponent
                        : logistic(similarity) * expf(exponent);
  }

  // L^T v.
  __device__ Vec3 unwhitened(int query, Vec3 v) const {
    const float* const root = spatial + query * kSpatial + 3;
    return v.x * load3(root) + v.y * load3(root + 3) + v.z * load3(root + 6);
  }
};

__global__ void __launch_bounds__(kThreads) attend_forward(AttendInput in, float* attention) {
  Shared shared;
  const AttendTile tile(shared);
  const int64_t first_row = (int64_t)blockIdx.x * kRows;
  const int first_query = (int)blockIdx.y * kQueries;
  tile.load_means(in, first_row);
  tile.load_spatial(in, first_query);
  float dots[kRowsEach];
  tile.multiply(in, first_row, first_query, dots);
  const int query = (int)threadIdx.x % kQueries;
  if (first_query + query >= in.query_count) return;
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    const int row = (int)threadIdx.x / kQueries + i * kRowsEach;
    if (first_row + row < in.rows)
      attention[(first_row + row) * in.query_count + first_query + query] = tile.attention(in, row, query, dots[i]);
  }
}

struct Softmax {
  float temperature;
  int has_rest;
  float rest;
};

// The softmax over queries of a block's rows: a warp has eight whole rows, a lane every 32nd query. A lane keeps the
// largest of its logits and the sum of exponentials relative to that; those of the lanes meet once, at the end.
__global__ void __launch_bounds__(kThreads) attend_shares(AttendInput in, Softmax softmax, float* shares) {
  Shared shared;
  const AttendTile tile(shared);
  const int64_t first_row = (int64_t)blockIdx.x * kRows;
  const int lane = (int)threadIdx.x % kQueries, row = (int)threadIdx.x / kQueries;
  tile.load_means(in, first_row);
  float top[kRowsEach], sum[kRowsEach];
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) top[i] = -FLT_MAX, sum[i] = 0.0f;
  for (int first_query = 0; first_query < in.query_count; first_query += kQueries) {
    PB_BARRIER(shares_spatial_free);
    tile.load_spatial(in, first_query);
    float dots[kRowsEach];
    tile.multiply(in, first_row, first_query, dots);
    if (first_query + lane >= in.query_count) continue;
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      if (first_row + row + i * kRowsEach >= in.rows) continue;
      // Finite, so that differences are.
      const float logit =
          fmaxf(softmax.temperature * tile.attention(in, row + i * kRowsEach, lane, dots[i]), -FLT_MAX);
      const float larger = fmaxf(top[i], logit);
      sum[i] = sum[i] * expf(top[i] - larger) + expf(logit - larger);
      top[i] = larger;
      shares[(first_row + row + i * kRowsEach) * in.query_count + first_query + lane] = logit;
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    const float rest = softmax.has_rest ? softmax.temperature * softmax.rest : -FLT_MAX;
    const float largest = fmaxf(max_lanes<kQueries>(top[i]), rest);
    const float total =
        sum_lanes<kQueries>(sum[i] * expf(top[i] - largest)) + (softmax.has_rest ? expf(rest - largest) : 0.0f);
    if (first_row + row + i * kRowsEach >= in.rows) continue;
    // A thread reads what it wrote itself.
    float* const out = shares + (first_row + row + i * kRowsEach) * in.query_count;
    for (int q = lane; q < in.query_count; q += kQueries) out[q] = expf(out[q] - largest) / total;
  }
}

struct AttendGradient {
  float* features;
  float* means;
  float* queries;
  float* query_means;
  float* query_roots;
};

// A block goes through all queries for its rows: the gradients of the rows are written once, those of the queries are
// added up over the blocks. With `shares`, of a softmax of this temperature, grad is that of the shares.
template <bool softmax>
__global__ void __launch_bounds__(kThreads) attend_backward(AttendInput in, float temperature, const float* shares,
                                                            const float* grad, AttendGradient out) {
  Shared shared;
  const AttendTile tile(shared);
  float* const similarity = shared.take<float>(kRows * kStride);  // [64 rows, 32 queries]: dL/d(f_q . f)
  float* const distance = shared.take<float>(kRows * kStride);    // the same: -2 dL/d(Mahalanobis^2)
  const int64_t first_row = (int64_t)blockIdx.x * kRows;
  const int thread = (int)threadIdx.x;
  tile.load_means(in, first_row);
  constexpr int kRowParts = kThreads / kRows, kQueryParts = kThreads / kQueries;
  [[maybe_unused]] float mean_grad[kRowsEach];  // of the thread's rows, weighted by the shares
  if constexpr (softmax) {
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      const int64_t row = first_row + thread / kQueries + i * kRowsEach;
      float sum = 0.0f;
      for (int q = thread % kQueries; row < in.rows && q < in.query_count; q += kQueries)
        sum += shares[row * in.query_count + q] * grad[row * in.query_count + q];
      mean_grad[i] = sum_lanes<kQueries>(sum);
    }
  }
  Vec3 grad_mean = {0, 0, 0};  // of row thread / 4, the queries that are thread modulo 4
  for (int first_query = 0; first_query < in.query_count; first_query += kQueries) {
    PB_BARRIER(attend_spatial_free);
    tile.load_spatial(in, first_query);
    float dots[kRowsEach];
    tile.multiply(in, first_row, first_query, dots);
    {
      const int query = thread % kQueries;
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) {
        const int row = thread / kQueries + i * kRowsEach;
        const bool present = first_row + row < in.rows && first_query + query < in.query_count;
        const int64_t at = (first_row + row) * in.query_count + first_query + query;
        float g = present ? grad[at] : 0.0f;
        if constexpr (softmax) g = present ? temperature * shares[at] * (g - mean_grad[i]) : 0.0f;
        const float s = logistic(dots[i]);
        if (!in.logarithm) {
          const Vec3 y = tile.whitened(query, tile.offset(row, query));
          g *= s * expf(-0.5f * dot(y, y));
        }
        similarity[row * kStride + query] = g * (1.0f - s);
        distance[row * kStride + query] = g;
      }
    }
    PB_BARRIER(attend_pairs_written);
    {
      const int row = thread / kRowParts;
      for (int query = thread % kRowParts; query < kQueries; query += kRowParts) {
        const float g = distance[row * kStride + query];
        if (g != 0.0f)
          grad_mean = grad_mean - g * tile.unwhitened(query, tile.whitened(query, tile.offset(row, query)));
      }
    }
    {
      // With S = sum over rows of g d d^T and v = that of g d: dL/dL = -L S, dL/d(mean) = L^T L v.
      const int query = thread / kQueryParts;
      Vec3 v = {0, 0, 0}, sx = v, sy = v, sz = v;
      for (int row = thread % kQueryParts; row < kRows; row += kQueryParts) {
        const Vec3 d = tile.offset(row, query), gd = distance[row * kStride + query] * d;
        v = v + gd;
        sx = sx + gd.x * d;
        sy = sy + gd.y * d;
        sz = sz + gd.z * d;
      }
      const float sums[9] = {v.x, v.y, v.z, sx.x, sx.y, sx.z, sy.y, sy.z, sz.z};
      float total[9];
#pragma unroll
      for (int k = 0; k < 9; ++k) total[k] = sum_lanes<kQueryParts>(sums[k]);
      if (thread % kQueryParts == 0 && first_query + query < in.query_count) {
        const Vec3 mean = tile.unwhitened(query, tile.whitened(query, {total[0], total[1], total[2]}));
        const Vec3 columns[3] = {tile.whitened(query, {total[3], total[4], total[5]}),
                                 tile.whitened(query, {total[4], total[6], total[7]}),
                                 tile.whitened(query, {total[5], total[7], total[8]})};
        float* const to_mean = out.query_means + (int64_t)(first_query + query) * 3;
        float* const to_root = out.query_roots + (int64_t)(first_query + query) * 9;
        atomicAdd(to_mean, mean.x);
        atomicAdd(to_mean + 1, mean.y);
        atomicAdd(to_mean + 2, mean.z);
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          atomicAdd(to_root + j, -columns[j].x);
          atomicAdd(to_root + 3 + j, -columns[j].y);
          atomicAdd(to_root + 6 + j, -columns[j].z);
        }
      }
    }
    for (int c = 0; c < in.dim; c += kDepth) {
      // Where there is more than one chunk, the last dot products left another one behind.
      if (in.dim > kDepth) {
        PB_BARRIER(attend_chunk_free);
        load_columns(in.features, first_row, in.rows, in.dim, c, kRows, tile.features);
        load_columns(in.queries, first_query, in.query_count, in.dim, c, kQueries, tile.queries);
        PB_BARRIER(attend_chunk_loaded);
      }
      const int column = thread % kDepth;
      if (c + column >= in.dim) continue;
      for (int row = thread / kDepth; row < kRows && first_row + row < in.rows; row += kThreads / kDepth) {
        float sum = 0.0f;
        for (int query = 0; query < kQueries; ++query)
          sum += similarity[row * kStride + query] * tile.queries[query * kStride + column];
        // This thread alone writes this entry, once for every group of queries.
        float* const to = out.features + (first_row + row) * in.dim + c + column;
        *to = first_query > 0 ? *to + sum : sum;
      }
      for (int query = thread / kDepth; query < kQueries && first_query + query < in.query_count;
           query += kThreads / kDepth) {
        float sum = 0.0f;
        for (int row = 0; row < kRows; ++row)
          sum += similarity[row * kStride + query] * tile.features[row * kStride + column];
        atomicAdd(out.queries + (int64_t)(first_query + query) * in.dim + c + column, sum);
      }
    }
  }
  grad_mean = {sum_lanes<kRowParts>(grad_mean.x), sum_lanes<kRowParts>(grad_mean.y),
               sum_lanes<kRowParts>(grad_mean.z)};
  const int row = thread / kRowParts;
  if (thread % kRowParts == 0 && first_row + row < in.rows) store3(out.means + (first_row + row) * 3, grad_mean);
}

constexpr std::size_t kBackwardShared =
    AttendTile::bytes() + shared_bytes(kRows * kStride * sizeof(float), kRows * kStride * sizeof(float));

}  // namespace

extern "C" {

int pb_cuda_attend(const float* features, const float* means, const float* queries, const float* query_means,
                   const float* query_roots, int64_t rows, int dim, int query_count, int logarithm, float* attention,
                   void* stream) {
  const AttendInput in{features, means, queries, query_means, query_roots, rows, dim, query_count, logarithm};
  const dim3 grid(blocks_for(rows, kRows), blocks_for(query_count, kQueries));
  return launch(attend_forward, grid, kThreads, AttendTile::bytes(), stream, in, attention);
}

int pb_cuda_attend_shares(const float* features, const float* means, const float* queries, const float* query_means,
                          const float* query_roots, int64_t rows, int dim, int query_count, int logarithm,
                          float temperature, int has_rest, float rest, float* shares, void* stream) {
  const AttendInput in{features, means, queries, query_means, query_roots, rows, dim, query_count, logarithm};
  return launch(attend_shares, blocks_for(rows, kRows), kThreads, AttendTile::bytes(), stream, in,
                Softmax{temperature, has_rest, rest}, shares);
}

int pb_cuda_attend_backward(const float* features, const float* means, const float* queries, const float* query_means,
                            const float* query_roots, int64_t rows, int dim, int query_count, int logarithm,
                            const float* grad, float* grad_features, float* grad_means, float* grad_queries,
                            float* grad_query_means, float* grad_query_roots, void* stream) {
  const AttendInput in{features, means, queries, query_means, query_roots, rows, dim, query_count, logarithm};
  const AttendGradient out{grad_features, grad_means, grad_queries, grad_query_means, grad_query_roots};
  return launch(attend_backward<false>, blocks_for(rows, kRows), kThreads, kBackwardShared, stream, in, 1.0f, nullptr,
                grad, out);
}

int pb_cuda_attend_shares_backward(const float* features, const float* means, const float* queries,
                                   const float* query_means, const float* query_roots, int64_t rows, int dim,
                                   int query_count, int logarithm, float temperature, const float* shares,
                                   const float* grad, float* grad_features, float* grad_means, float* grad_queries,
                                   float* grad_query_means, float* grad_query_roots, void* stream) {
  const AttendInput in{features, means, queries, query_means, query_roots, rows, dim, query_count, logarithm};
  const AttendGradient out{grad_features, grad_means, grad_queries, grad_query_means, grad_query_roots};
  return launch(attend_backward<true>, blocks_for(rows, kRows), kThreads, kBackwardShared, stream, in, temperature,
                shares, grad, out);
}

}  // extern "C"

}  // namespace panbench
