"""The kernels compiled for each instruction set give the same images and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panbench import ops
from panbench.ops.backend import load_cpu
from panbench.scene import Camera


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()


def _render(kind: ops.Kind) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(200, 3, generator=generator) * 2 - 1 + torch.tensor([0.0, 0.0, 2.5])
    log_scales = -2.5 + 0.5 * torch.randn(200, 3, generator=generator)
    shape = (torch.randn(200, 4, generator=generator), log_scales, torch.zeros(200))
    leaves = [t.requires_grad_() for t in (means, *shape)]
    camera = Camera(50, 40, 40.0, 40.0, 25.0, 20.0, torch.eye(4))
    projected = ops.project(*leaves, camera, kind=kind, near=0.1)
    features = torch.rand(len(projected.ids), 19, generator=generator).requires_grad_()
    bins = ops.bin(projected.geometry, 50, 40, kind=kind)
    labels = torch.rand(len(projected.ids), 21, generator=generator).requires_grad_()
    semantic, mask = (torch.randint(low, 4, (40, 50), generator=generator).int() for low in (0, -1))
    targets = ops.LabelTargets(semantic, mask, torch.rand(40, 50, generator=generator), 4, 3, 3, logits=kind == "disc")
    absolute = torch.zeros(len(projected.ids), 2, requires_grad=True) if kind == "ellipsoid" else None
    asked = {"labels": labels, "targets": targets, "detached": 5, "distort": True, "absolute": absolute}
    out = ops.blend(projected.geometry, features, bins, 50, 40, kind=kind, near=0.1, **asked)
    assert out.sums is not None
    assert out.distortion is not None
    maps = [*out[:5], out.distortion, *out.sums]
    loss = torch.stack([(m * torch.rand(m.shape, generator=generator)).sum() for m in maps]).sum()
    wanted = [*leaves, features, labels, *([] if absolute is None else [absolute])]
    return [*(t.detach() for t in maps), *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("kind", ["ellipsoid", "disc"])
@pytest.mark.parametrize("limit", ["v3", "portable"])
def test_a_lower_instruction_set_gives_the_same(limit: str, kind: ops.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    best = _render(kind)
    monkeypatch.setenv("PANBENCH_ISA", limit)
    for lower, upper in zip(_render(kind), best, strict=True):
        torch.testing.assert_close(lower, upper, rtol=1e-4, atol=1e-4 * float(upper.abs().max()))


def test_an_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANBENCH_ISA", "avx9")
    with pytest.raises(RuntimeError, match="PANBENCH_ISA must be v4, v3 or portable"):
        _render("disc")
