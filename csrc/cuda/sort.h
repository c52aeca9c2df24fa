// Sorting and running sums. CUB is behind this, in one translation unit: it takes longer to compile than all else.
#pragma once
#include <cstdint>

namespace panbench {

// Stable sort of pairs by the lowest `bits` bits of their keys.
int sort_pairs(void* scratch, int64_t scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values,
               int32_t* sorted_values, int64_t count, int bits, void* stream);

// out[i] = in[0] + ... + in[i]; out may be in.
int running_sum(void* scratch, int64_t scratch_bytes, const int32_t* in, int32_t* out, int64_t count, void* stream);

}  // namespace panbench
