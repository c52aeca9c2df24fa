"""Gaussians that a warp leaves out touch none of its pixels, and few others are looked at."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from views import KINDS, NEAR, Case, edge_on, huge, points, random_case

from panbench import ops
from panbench.ops.build import compiler
from panbench.ops.project import KIND_CODE, Kind
from panbench.resources import asset

KERNELS = """
#include "cuda/blend.h"
using namespace panbench;

// Which of the first candidates of each tile a warp looks at, and which of them some pixel of it blends.
template <int kind>
__global__ void look(BlendInput in, int count, unsigned* near, unsigned* blended) {
  Shared shared;
  float* const params = shared.take<float>(32 * kParams);
  float* const bounds = shared.take<float>(32 * kBounds);
  const TilePixel pixel(in.frame, (int)blockIdx.x, (int)threadIdx.x);
  load_candidates<kind>(in, 0, count, pixel, params, bounds);
  PB_BARRIER(loaded);
  const unsigned looked_at = near_warp(bounds, count, true);
  unsigned hits = 0;
  for (int n = 0; n < count; ++n) {
    const bool hit = splat_hit<kind>(params + n * kParams, pixel.x, pixel.y, in.near_plane).blended;
    if (__ballot_sync(kWholeWarp, hit) != 0) hits |= 1u << n;
  }
  if (threadIdx.x % 32 != 0) return;
  const int warp = (int)blockIdx.x * kWarps + (int)threadIdx.x / 32;
  near[warp] = looked_at;
  blended[warp] = hits;
}

extern "C" int run_look(const float* geometry, int count, int kind, int width, int height, float near_plane,
                        const int32_t* ids, float* bounds, unsigned* near, unsigned* blended) {
  const Frame frame = frame_of(width, height);
  const BlendInput in{frame, geometry, bounds, nullptr, nullptr, nullptr, ids, 0, 0, near_plane};
  const std::size_t shared = shared_bytes(32 * kParams * 4, 32 * kBounds * 4);
  if (write_bounds(geometry, count, kind, frame, bounds, nullptr)) return 1;
  const auto kernel = kind == kDisc ? look<kDisc> : look<kEllipsoid>;
  return launch(kernel, tile_count(frame), kTilePixels, shared, nullptr, in, count, near, blended);
}
"""
WIDTH, HEIGHT = 80, 64
WARPS = WIDTH // 16 * (HEIGHT // 16) * 8


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("culling")
    (folder / "kernels.cpp").write_text(KERNELS)
    csrc = asset("csrc")
    sources = [str(folder / "kernels.cpp"), str(csrc / "cuda" / "bounds.cu"), str(csrc / "emulator" / "emu.cpp")]
    flags = ["-x", "c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-DPB_EMULATE", f"-I{csrc}"]
    library: Path = folder / "kernels.so"
    subprocess.run([compiler()[0], *flags, *sources, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def look(library: ctypes.CDLL, case: Case, kind: Kind) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whether each warp looks at each of the first Gaussians and whether it blends them; which of these have bounds."""
    geometry = ops.project(*case.parameters, case.camera, kind=kind, near=NEAR, backend="cpu").geometry[:32]
    count = len(geometry)
    ids, bounds = torch.arange(count, dtype=torch.int32), torch.empty(count, 12)
    found = torch.zeros(2, WARPS, dtype=torch.int32)
    arrays = [ctypes.c_void_p(t.data_ptr()) for t in (geometry, ids, bounds, found[0], found[1])]
    numbers = (count, KIND_CODE[kind], WIDTH, HEIGHT, ctypes.c_float(NEAR))
    assert library.run_look(arrays[0], *numbers, *arrays[1:]) == 0
    near, blended = (found[..., None] >> torch.arange(count) & 1).bool()
    return near, blended, bounds[:, 7] < 1e29


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [-4.5, -3.0, -1.5])
def test_a_warp_looks_at_what_touches_its_pixels(looking: ctypes.CDLL, kind: Kind, size: float) -> None:
    seen = [look(looking, random_case(32, WIDTH, HEIGHT, seed, size), kind) for seed in range(8)]
    near, blended, bounded = (torch.cat([part[k] for part in seen], dim=-1) for k in range(3))
    assert not (blended & ~near).any()
    assert blended.any()
    # An ellipse may pass between the centres of pixels. Discs across the camera plane are looked at by all.
    assert (near & ~blended)[:, bounded].sum() < 0.5 * blended.sum()
    assert near[:, bounded].float().mean() < 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [huge, points, edge_on])
def test_no_awkward_gaussian_is_lost(looking: ctypes.CDLL, kind: Kind, make: type[Case]) -> None:
    near, blended, _ = look(looking, make(), kind)
    assert not (blended & ~near).any()
