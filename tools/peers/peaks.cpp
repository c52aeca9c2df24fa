// What this machine can do at most: fused multiply-adds from registers, and bytes to and from memory.
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <memory>

namespace {

constexpr int kChains = 12;  // independent chains: enough to hide the latency of an FMA in every pipe

typedef float Wide __attribute__((vector_size(64)));
typedef float Narrow __attribute__((vector_size(32)));

template <typename Vector>
float burn(int64_t rounds) {
  Vector chain[kChains], factor, term;
  for (size_t i = 0; i < sizeof(Vector) / 4; ++i) factor[i] = 0.999f, term[i] = 0.001f * (float)i;
  for (Vector& c : chain) c = term;
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) chain[k] = chain[k] * factor + term;
  }
  float sum = 0.0f;
  for (const Vector& c : chain) sum += c[0];
  return sum;
}

volatile float sink;

template <typename Vector>
double fma_rate(int threads, double seconds) {
  int64_t rounds = 0;
  const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : rounds)
  {
    while (omp_get_wtime() - start < seconds) {
      sink = burn<Vector>(20000);
      rounds += 20000;
    }
  }
  return 2.0 * (sizeof(Vector) / 4) * kChains * (double)rounds / (omp_get_wtime() - start);
}

}  // namespace

extern "C" {

// FLOP/s with registers of 64 or 32 bytes.
double peak_fma(int bytes, int threads, double seconds) {
  return bytes == 64 ? fma_rate<Wide>(threads, seconds) : fma_rate<Narrow>(threads, seconds);
}

// Bytes read and written per second by copying between arrays that no cache holds.
double peak_copy(int threads, double seconds) {
  constexpr int64_t kBytes = int64_t(128) << 20;
  static const std::unique_ptr<char[]> from(new char[kBytes]()), to(new char[kBytes]());
  int64_t copied = 0;
  const double start = omp_get_wtime();
  do {
#pragma omp parallel num_threads(threads)
    {
      const int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
      const int64_t begin = kBytes * i / n, end = kBytes * (i + 1) / n;
      std::memcpy(to.get() + begin, from.get() + begin, end - begin);
    }
    copied += kBytes;
  } while (omp_get_wtime() - start < seconds);
  return 2.0 * (double)copied / (omp_get_wtime() - start);
}

}
