"""A Gaussian one of whose parameters is NaN or infinite is not visible, and neither gets nor spoils a gradient: in all
back ends, for every parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from emulated import operators
from torch import Tensor
from views import KINDS, NEAR, Case, random_case

from panbench import ops
from panbench.ops.backend import Backend, load_cpu
from panbench.ops.project import KIND_CODE, Kind

FIELDS = ("means", "quats", "log_scales", "opacity_logits")
SOURCE = 3
"""Row of the sound Gaussian that is copied and spoilt: it is seen."""
Run = Callable[[Case, Kind], tuple[Tensor, Tensor, list[Tensor]]]
"""Visible ids [M], geometry [M, G] and the gradients of all four parameters."""


def through_torch(backend: Backend) -> Run:
    def run(case: Case, kind: Kind) -> tuple[Tensor, Tensor, list[Tensor]]:
        load_cpu()
        means, quats, log_scales, logits = parameters = [p.clone().requires_grad_() for p in case.parameters]
        ids, geometry, normals = ops.project(
            means, quats, log_scales, logits, case.camera, kind=kind, near=NEAR, backend=backend
        )
        total = geometry.sin().sum() + normals.sum()
        return ids, geometry.detach(), list(torch.autograd.grad(total, parameters))

    return run


def emulated(case: Case, kind: Kind) -> tuple[Tensor, Tensor, list[Tensor]]:
    camera, cuda = case.camera, operators()
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, KIND_CODE[kind], NEAR, 0.3)
    view = (*case.parameters, camera.world_to_camera, *numbers)
    ids, geometry, normals = cuda.project(*view)
    return ids, geometry, list(cuda.project_backward(*view, ids, geometry.cos(), torch.ones_like(normals)))


RUNS: dict[str, Run] = {"reference": through_torch("reference"), "cpu": through_torch("cpu"), "cuda emulated": emulated}


def spoilt_case(kind: Kind) -> tuple[Case, int]:
    """Copies of one visible Gaussian, each with one value that is not finite; then so many sound ones."""
    sound = random_case(40, seed=51, size=-2.5, opacity=2.0)
    means, quats, log_scales, logits = sound.parameters
    rows: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
    used = {"means": 3, "quats": 4, "log_scales": 2 if kind == "disc" else 3, "opacity_logits": 1}
    for name in FIELDS:
        for column in range(used[name]):
            for value in (math.nan, math.inf, -math.inf):
                for field, values in zip(FIELDS, (means, quats, log_scales, logits), strict=True):
                    row = values[SOURCE].clone()
                    if field == name:
                        row.view(-1)[column] = value
                    rows[field].append(row)
    made = {name: torch.stack(rows[name]) for name in FIELDS}
    case = replace(sound, **{name: torch.cat([made[name], getattr(sound, name)]) for name in FIELDS})
    return case, 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RUNS)
def test_what_is_not_finite_is_invisible_and_has_no_gradient(name: str, kind: Kind) -> None:
    case, sound = spoilt_case(kind)
    bad = len(case.means) - sound
    ids, geometry, gradients = RUNS[name](case, kind)
    alone = replace(case, **{field: getattr(case, field)[bad:].contiguous() for field in FIELDS})
    expected_ids, expected_geometry, expected_gradients = RUNS[name](alone, kind)
    assert SOURCE in expected_ids.tolist()
    assert torch.equal(ids, expected_ids + bad)
    torch.testing.assert_close(geometry, expected_geometry)
    for field, mine, theirs in zip(FIELDS, gradients, expected_gradients, strict=True):
        assert (mine[:bad] == 0).all(), field
        torch.testing.assert_close(mine[bad:], theirs)
