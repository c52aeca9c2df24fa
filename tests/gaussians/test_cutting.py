"""Volumetric cutting on planes of surfels, where what is occupied is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians import cutting
from panbench.gaussians.cutting import occupancy
from panbench.gaussians.rotation import quats_with_normal

EDGE = 0.05


def plane(height: float, opacity: float = 0.9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Surfels every 4 cm on the square [0, 1]² at a height, facing up."""
    steps = torch.arange(0.0, 1.0, 0.04)
    x, y = torch.meshgrid(steps, steps, indexing="ij")
    means = torch.stack([x, y, torch.full_like(x, height)], -1).reshape(-1, 3)
    quats = quats_with_normal(torch.tensor([0.0, 0.0, 1.0]).expand_as(means))
    return means, quats, torch.full((len(means), 2), math.log(0.03)), torch.full((len(means),), opacity)


def joined(*parts: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.cat(fields) for fields in zip(*parts, strict=True)]


def test_points_between_two_surfaces_are_cut_and_those_on_them_are_kept() -> None:
    grid = occupancy(*joined(plane(0.0), plane(0.61)), edge=EDGE)
    inner = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    for height, kept in ((0.0, True), (0.61, True), (0.3, False), (0.12, False), (5.0, False)):
        points = torch.cat([inner, torch.full((500, 1), height)], 1)
        assert bool(grid.occupied(points).all()) is kept
        assert bool(grid.occupied(points).any()) is kept


def test_transparent_surfels_hold_no_surface() -> None:
    grid = occupancy(*plane(0.0, opacity=0.02), edge=EDGE)
    assert not grid.occupied(torch.tensor([[0.5, 0.5, 0.0]])).any()


def test_the_density_is_the_sum_over_surfels_of_their_largest_sample_in_a_cell() -> None:
    # By a loop over every surfel and cell, on surfels of any pose.
    generator = torch.Generator().manual_seed(1)
    means = torch.rand(6, 3, generator=generator, dtype=torch.float64) * 0.4
    quats = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    scales = torch.rand(6, 2, generator=generator, dtype=torch.float64) * 0.08 + 0.02
    opacity = torch.rand(6, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    grid = occupancy(means, quats, scales.log(), opacity, edge=EDGE)
    expected = torch.zeros_like(grid.density)
    for mean, quat, (s, t), o in zip(means, quats, scales, opacity, strict=True):
        w, x, y, z = quat / quat.norm()
        first = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
        second = torch.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)])
        best: dict[tuple[int, ...], float] = {}
        for i in range(-40, 41):
            for j in range(-40, 41):
                a, b = i * EDGE / 2, j * EDGE / 2
                alpha = float(o * torch.exp(-0.5 * ((a / s) ** 2 + (b / t) ** 2)))
                if alpha < 1 / 255:
                    continue
                cell = ((mean + a * first + b * second - grid.origin) / EDGE).floor().long().tolist()
                if all(0 <= c < n for c, n in zip(cell, grid.density.shape, strict=True)):
                    best[tuple(cell)] = max(best.get(tuple(cell), 0.0), alpha)
        for cell, alpha in best.items():
            expected[cell] += alpha
    torch.testing.assert_close(grid.density, expected, rtol=1e-5, atol=1e-6)


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = occupancy(*plane(0.0), edge=EDGE)
    monkeypatch.setattr(cutting, "_BATCH", 50)
    torch.testing.assert_close(occupancy(*plane(0.0), edge=EDGE).density, whole.density)


def test_no_surfel_and_cells_that_are_too_small_are_refused() -> None:
    nothing = [field[:0] for field in plane(0.0)]
    with pytest.raises(UserError, match="no surfel"):
        occupancy(*nothing, edge=EDGE)
    with pytest.raises(UserError, match="512 at most; take"):
        occupancy(*plane(0.0), edge=0.001)
