"""Density control that knows the surface, on the plane z = 0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from density_sets import apply, check_moments, height, make, observe, plane, tags
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.density import AdaptiveDensityControl, DensityChange, SurfaceDensityControl

NOW: dict[str, Any] = {"start": 0, "stop": 1000, "every": 10, "reset_every": 0}
KNOWN: dict[str, Any] = {"surface_distance": height, "surface_project": plane}


def above(heights: list[float]) -> Tensor:
    """Centres 10 m apart at these heights over the plane."""
    return torch.stack([torch.arange(len(heights)) * 10.0, torch.zeros(len(heights)), torch.tensor(heights)], -1)


def only_within(reach: float) -> dict[str, Any]:
    """A surface that is not known farther away than ``reach``."""

    def distance(points: Tensor) -> Tensor:
        return torch.where(height(points) > reach, torch.inf, height(points))

    def project(points: Tensor) -> tuple[Tensor, Tensor]:
        feet, signed = plane(points)
        far = signed.abs() > reach
        return feet.masked_fill(far[:, None], torch.nan), signed.masked_fill(far, torch.inf)

    return {"surface_distance": distance, "surface_project": project}


@pytest.mark.parametrize("known", [KNOWN, only_within(0.25)])
def test_growth_takes_more_gradient_the_farther_from_the_surface(known: dict[str, Any]) -> None:
    control = SurfaceDensityControl(**NOW)
    # 1 + (δ/0.05)² is 1, 2 and 5; at 0.3 m and beyond, or without a surface near, it stays 37.
    heights = [0.0, 0.05, -0.1, 0.3, 50.0]
    thresholds = [2e-4 * factor for factor in (1, 2, 5, 37, 37)]
    gaussians, optimizer = make(control, [0.001] * 10, axes=2, means=above([h for h in heights for _ in range(2)]))
    observe(control, gaussians, [t * share for t in thresholds for share in (0.99, 1.01)])
    assert apply(control, gaussians, optimizer, 10, **known) == DensityChange(5, 0, 0, False, 15)
    assert tags(gaussians)[10:] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("known", [KNOWN, only_within(0.28)])
def test_pruning_takes_less_transparency_the_farther_from_the_surface(known: dict[str, Any]) -> None:
    control = SurfaceDensityControl(**NOW)
    # 0.05 · min(1 + δ/0.05, 6): 0.05, 0.1, 0.25, and 0.3 from 0.25 m on.
    heights = [0.0, 0.05, -0.2, 0.25, 0.27, 50.0]
    floors = [0.05, 0.1, 0.25, 0.3, 0.3, 0.3]
    gaussians, optimizer = make(
        control,
        [0.001] * 12,
        [floor * share for floor in floors for share in (0.99, 1.01)],
        axes=2,
        means=above([h for h in heights for _ in range(2)]),
    )
    assert apply(control, gaussians, optimizer, 10, **known).pruned == 6
    assert tags(gaussians) == [1, 3, 5, 7, 9, 11]
    check_moments(gaussians, optimizer, torch.zeros(6, dtype=torch.bool), "semantic")


def test_nothing_is_pruned_for_its_distance_alone() -> None:
    control = SurfaceDensityControl(**NOW)
    gaussians, optimizer = make(control, [0.001] * 3, [0.31, 0.5, 0.99], axes=2, means=above([1e3, math.pi, -0.4]))
    assert apply(control, gaussians, optimizer, 10, **KNOWN).pruned == 0
    assert apply(control, gaussians, optimizer, 20, **only_within(0.1)).pruned == 0


@pytest.mark.parametrize("known", [KNOWN, only_within(0.1)])
def test_children_near_the_surface_go_half_way_to_it_and_others_stay(known: dict[str, Any]) -> None:
    count = 200
    # Discs that stand upright: their children spread in height.
    upright = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0]]).repeat(count, 1)

    def children(control: AdaptiveDensityControl, **known: Any) -> Tensor:
        gaussians, optimizer = make(control, torch.full((count, 2), 0.05), means=torch.zeros(count, 3), quats=upright)
        observe(control, gaussians, [1.0] * count)
        assert apply(control, gaussians, optimizer, 10, **known).split == count
        return gaussians["means"].detach()

    drawn = children(AdaptiveDensityControl(**NOW, prune_opacity=0.05))
    placed = children(SurfaceDensityControl(**NOW), **known)
    near = drawn[:, 2].abs() < 0.05
    assert 0.5 < near.float().mean() < 0.8  # one standard deviation
    assert torch.equal(placed[~near], drawn[~near])
    torch.testing.assert_close(placed[near], drawn[near] * torch.tensor([1.0, 1.0, 0.5]))


def test_clones_stay_exact_copies() -> None:
    control = SurfaceDensityControl(**NOW)
    gaussians, optimizer = make(control, [0.001], axes=2, means=above([0.04]))
    observe(control, gaussians, [1.0])
    apply(control, gaussians, optimizer, 10, **KNOWN)
    assert torch.equal(gaussians["means"][0], gaussians["means"][1])


def test_only_gaussians_in_question_are_measured() -> None:
    """The search for the nearest plane costs time, and most Gaussians are opaque and lie still."""
    control = SurfaceDensityControl(**NOW)
    gaussians, optimizer = make(control, [0.001] * 50, [0.2] * 2 + [0.5] * 48, axes=2, means=above([0.0] * 50))
    observe(control, gaussians, [1.0] * 3 + [0.0] * 47)
    asked: list[int] = []

    def distance(points: Tensor) -> Tensor:
        asked.append(len(points))
        return height(points)

    apply(control, gaussians, optimizer, 10, surface_distance=distance, surface_project=plane)
    assert asked == [3, 4]  # the candidates; then the faint ones and their clones


def test_the_bonus_of_certain_labels_is_weighed_by_distance_too() -> None:
    control = SurfaceDensityControl(**NOW, panoptic_weight=1e-4)
    gaussians, optimizer = make(control, [1e-6] * 4, axes=2, means=above([0.0, 0.0, 0.05, 0.05]))
    observe(control, gaussians, [1.05e-4, 0.95e-4, 3.05e-4, 2.95e-4])
    apply(control, gaussians, optimizer, 10, label_confidence=lambda: torch.ones(4), **KNOWN)
    assert tags(gaussians) == [0, 1, 2, 3, 0, 2]


@pytest.mark.parametrize("scale", [0.001, 0.5])
def test_a_base_without_a_surface_is_refused(scale: float) -> None:
    control = SurfaceDensityControl(**NOW)
    gaussians, optimizer = make(control, [scale], axes=2)
    observe(control, gaussians, [1.0])
    with pytest.raises(UserError, match="needs a base model that knows a surface"):
        apply(control, gaussians, optimizer, 10)


def test_defaults_are_those_of_2dgs_elsewhere() -> None:
    ours, theirs = vars(SurfaceDensityControl()), vars(AdaptiveDensityControl(prune_opacity=0.05))
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize(
    "bad",
    [{"distance_scale": 0.0}, {"max_distance": -1.0}, {"prune_factor": 0.5}, {"prune_opacity": 1.0}, {"every": 0}],
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=rf"^densify: {name} is {value}; it must be"):
        SurfaceDensityControl(**bad)
