"""The emulator itself: what would hang or misbehave on a GPU is an error, and is not passed over."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from panbench.ops.build import compiler
from panbench.resources import asset

KERNELS = """
#include "cuda/device.h"
using namespace panbench;

// Half of the warp waits for the warp, the other half for the block.
__global__ void divide(int*) {
  if (threadIdx.x < 16) PB_WARP_BARRIER(half); else PB_BARRIER(other_half);
}
__global__ void take_too_much(int* out) {
  Shared shared;
  shared.take<int>(8);
  shared.take<int>(40);
  *out = 1;
}
__global__ void read_unwritten(float* out) {
  Shared shared;
  out[threadIdx.x] = shared.take<float>(32)[threadIdx.x];
}
__global__ void swap_and_count(int* out) {
  const int partner = __shfl_xor_sync(kWholeWarp, (int)threadIdx.x, 5);
  out[threadIdx.x] = 1000 * __syncthreads_count(threadIdx.x % 3 == 0) + partner;
}
__global__ void vote(int* out) {
  const unsigned bits = __ballot_sync(kWholeWarp, threadIdx.x % 32 % 3 == 0);
  const int partner = __shfl_sync(kWholeWarp, (int)threadIdx.x, 7);
  out[threadIdx.x] = 1000 * partner + 100 * __ffs((int)bits >> 1) + __clz((int)bits << 1);
}
extern "C" int run_vote(int* out) { return launch(vote, 1, 64, 0, nullptr, out); }
extern "C" int run_greedy(int* out) { return launch(vote, 1, 32, 228 * 1024, nullptr, out); }
extern "C" int run_divide() { return launch(divide, 1, 32, 0, nullptr, (int*)nullptr); }
extern "C" int run_take_too_much(int* out) { return launch(take_too_much, 1, 1, 256, nullptr, out); }
extern "C" int run_read_unwritten(float* out) { return launch(read_unwritten, 1, 32, 128, nullptr, out); }
extern "C" int run_swap_and_count(int* out) { return launch(swap_and_count, 1, 64, 0, nullptr, out); }
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "kernels.cpp").write_text(KERNELS)
    sources = [str(folder / "kernels.cpp"), str(asset("csrc") / "emulator" / "emu.cpp")]
    flags = ["-std=c++17", "-shared", "-fPIC", "-DPB_EMULATE", f"-I{asset('csrc')}"]
    library: Path = folder / "kernels.so"
    subprocess.run([compiler()[0], *flags, *sources, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.pb_cuda_error.restype = ctypes.c_char_p
    return loaded


def test_threads_that_wait_at_different_places_are_an_error(emulated: ctypes.CDLL) -> None:
    assert emulated.run_divide() != 0
    assert emulated.pb_cuda_error(1) == b"threads of a block wait for each other at different places"


def test_more_shared_memory_than_the_launch_asked_for_is_an_error(emulated: ctypes.CDLL) -> None:
    assert emulated.run_take_too_much(ctypes.byref(ctypes.c_int())) != 0
    assert emulated.pb_cuda_error(1) == b"a kernel uses more shared memory than its launch asked for"


def test_shared_memory_starts_as_nan(emulated: ctypes.CDLL) -> None:
    out = (ctypes.c_float * 32)()
    assert emulated.run_read_unwritten(out) == 0
    assert all(x != x for x in out)


def test_lanes_exchange_and_blocks_count(emulated: ctypes.CDLL) -> None:
    out = (ctypes.c_int * 64)()
    assert emulated.run_swap_and_count(out) == 0
    assert list(out) == [22000 + (t % 32 ^ 5) + t // 32 * 32 for t in range(64)]


def test_lanes_vote(emulated: ctypes.CDLL) -> None:
    """Bits 0, 3, ... 30 are set, seen from the second and up to the last but one."""
    out = (ctypes.c_int * 64)()
    assert emulated.run_vote(out) == 0
    assert list(out) == [1000 * (7 + t // 32 * 32) + 100 * 3 for t in range(64)]


def test_more_shared_memory_than_a_block_may_have_is_an_error(emulated: ctypes.CDLL) -> None:
    assert emulated.run_greedy((ctypes.c_int * 64)()) != 0
    assert emulated.pb_cuda_error(1) == b"a launch asks for more shared memory than a block may have"
