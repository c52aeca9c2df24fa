"""The gsplat back end on the package itself, against the reference in float64 on the CPU.

Needs a GPU, gsplat 1.5 and nvcc; docs/gpu.md says what has been run.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from views import KINDS, NEAR, doubles, random_case, random_like

from panbench import ops
from panbench.ops.backend import Backend
from panbench.ops.project import Kind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.skipif(importlib.util.find_spec("gsplat") is None, reason="gsplat is not installed"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [3, 70])
def test_a_view_agrees(kind: Kind, channels: int) -> None:
    case = random_case(400, 61, 45, seed=71, size=-2.5)
    # gsplat limits alpha at another value, and draws discs in front of the near plane too.
    scales = case.log_scales.clamp(max=-2.6)
    case = replace(case, opacity_logits=case.opacity_logits.clamp(max=4.0), log_scales=scales)
    size = (case.width, case.height)
    table = torch.rand(400, channels, generator=torch.Generator().manual_seed(72))
    results: dict[str, list[torch.Tensor]] = {}
    sides: dict[Backend, tuple[str, torch.dtype]] = {
        "reference": ("cpu", torch.float64),
        "gsplat": ("cuda", torch.float32),
    }
    for name, (device, dtype) in sides.items():
        parameters = [p.detach().to(device, dtype).requires_grad_() for p in doubles(case.parameters)]
        means, quats, log_scales, logits = parameters
        seen = ops.project(
            *(means, quats, log_scales, logits, case.camera.to(device)), kind=kind, near=NEAR, backend=name
        )
        bins = ops.bin(seen.geometry, *size, kind=kind, backend=name)
        features = table.to(device, dtype)[seen.ids].requires_grad_()
        out = ops.blend(seen.geometry, features, bins, *size, kind=kind, near=NEAR, distort=True, backend=name)
        assert out.distortion is not None
        maps = [out.image, out.alpha, out.depth, out.distortion]
        grads = torch.autograd.grad(maps, parameters, [random_like(m, i).to(m) for i, m in enumerate(maps)])
        results[name] = [m.detach().cpu().double() for m in (*maps, out.median, *grads)]
    names = ("image", "alpha", "depth", "distortion", "median", "means", "quats", "log_scales", "opacity_logits")
    for what, found, expected in zip(names, results["gsplat"], results["reference"], strict=True):
        off = (found - expected).abs() > 2e-3 * expected.abs().max()
        assert off.double().mean() <= 0.01, f"{what}: {off.sum()} of {off.numel()} entries differ"


@pytest.mark.parametrize("channels", [3, 70])
def test_absolute_gradients_agree(channels: int) -> None:
    case = random_case(400, 61, 45, seed=73, size=-2.5)
    parameters = [p.double() for p in replace(case, opacity_logits=case.opacity_logits.clamp(max=4.0)).parameters]
    means, quats, log_scales, logits = parameters
    geometry = ops.project(
        means, quats, log_scales, logits, case.camera, kind="ellipsoid", near=NEAR, backend="reference"
    ).geometry
    size = (case.width, case.height)
    table = torch.rand(len(geometry), channels, generator=torch.Generator().manual_seed(74))
    results: list[torch.Tensor] = []
    sides: dict[Backend, tuple[str, torch.dtype]] = {
        "reference": ("cpu", torch.float64),
        "gsplat": ("cuda", torch.float32),
    }
    for name, (device, dtype) in sides.items():
        leaf = geometry.detach().to(device, dtype).requires_grad_()
        absolute = torch.zeros(len(leaf), 2).to(leaf).requires_grad_()
        bins = ops.bin(leaf, *size, kind="ellipsoid", backend=name)
        asked = {"absolute": absolute, "backend": name}
        out = ops.blend(leaf, table.to(leaf), bins, *size, kind="ellipsoid", near=NEAR, **asked)
        torch.autograd.backward(out.image, random_like(out.image, 1).to(out.image))
        assert absolute.grad is not None
        results.append(absolute.grad.cpu().double())
    off = (results[1] - results[0]).abs() > 2e-3 * results[0].abs().max()
    assert off.double().mean() <= 0.01
