// Fragments of the tensor cores: wmma of CUDA, or the emulator's.
#pragma once
#include "device.h"

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
