// Fragments of the tensor cores: wmma of CUDA, or the emulator's. PB_TENSOR_CORES is 0 where the device being compiled
// for cannot multiply in TF32; kernels of that name then multiply in float32.
#pragma once
#include "device.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define PB_TENSOR_CORES 0
#else
#define PB_TENSOR_CORES 1
#ifdef PB_EMULATE
#include "../emulator/emu_matrix.h"
namespace panbench {
namespace wmma = emu::wmma;
}
#else
#include <mma.h>
namespace panbench {
namespace wmma = nvcuda::wmma;
}
#endif
#endif
