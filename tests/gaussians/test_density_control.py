"""What holds for every density control: rows stay aligned, moments follow, runs resume bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from density_sets import TRAINED, apply, height, make, plane, tags, train

from panbench.gaussians.density import (
    MCMC,
    AdaptiveDensityControl,
    DensityChange,
    DensityContext,
    DensityControl,
    SurfaceDensityControl,
    SurfelDensityControl,
)
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.gaussians.optim import build_optimizer

SCHEDULE: dict[str, Any] = {"start": 0, "stop": 100, "every": 5, "max_gaussians": 160}
OFTEN: dict[str, Any] = {**SCHEDULE, "reset_every": 15}
CONTROLS: dict[str, Callable[[], DensityControl]] = {
    "adaptive": lambda: AdaptiveDensityControl(**OFTEN, grad_threshold=0.7, prune_opacity=0.2, split_scale=0.05),
    "adaptive, later variants": lambda: AdaptiveDensityControl(
        **SCHEDULE, reset_every=20, grad_threshold=0.7, prune_opacity=0.2, split_scale=0.05, revised_opacity=True,
        pause_after_reset=7, opacity_decay=0.9, decay_every=2, panoptic_weight=0.3, panoptic_scale=0.05,
    ),
    "mcmc": lambda: MCMC(**SCHEDULE, min_opacity=0.3),
    "surfel": lambda: SurfelDensityControl(**OFTEN, grad_threshold=0.7, prune_opacity=0.2, clone_scale_grad=1e3),
    "surface": lambda: SurfaceDensityControl(
        **OFTEN, grad_threshold=0.4, prune_opacity=0.05, reset_opacity=0.5, split_scale=0.05, distance_scale=0.1
    ),
}  # fmt: skip


def random_set(control: DensityControl, seed: int) -> tuple[GaussianSet, torch.optim.Adam]:
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(30, 90, (), generator=generator))
    axes = 2 if seed % 2 else 3
    return make(
        control,
        torch.rand(count, axes, generator=generator) * 0.1 + 1e-3,
        (torch.rand(count, generator=generator) * 0.9 + 0.05).tolist(),
        means=torch.randn(count, 3, generator=generator) * 0.1,
        quats=torch.randn(count, 4, generator=generator),
    )


def known(gaussians: GaussianSet) -> dict[str, Callable[..., Any]]:
    def confidence() -> torch.Tensor:
        return (gaussians["semantic"].detach()[:, 0] * 0.1).sin().abs()

    return {"surface_distance": height, "surface_project": plane, "label_confidence": confidence}


def watch(control: DensityControl, gaussians: GaussianSet, generator: torch.Generator) -> None:
    """One view of about four fifths of the set."""
    (ids,) = (torch.rand(len(gaussians), generator=generator) < 0.8).nonzero(as_tuple=True)
    control.observe(gaussians, ids, torch.rand(len(ids), generator=generator), torch.ones(len(ids)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", CONTROLS)
def test_every_field_and_moment_stays_with_its_gaussian(name: str, seed: int) -> None:
    control = CONTROLS[name]()
    gaussians, optimizer = random_set(control, seed)
    generator = torch.Generator().manual_seed(100 + seed)
    watch(control, gaussians, generator)
    watch(control, gaussians, generator)
    before = len(gaussians)
    change = apply(control, gaussians, optimizer, 5, **known(gaussians))
    assert change.count == len(gaussians) == before + change.cloned + change.split - change.pruned
    assert change.cloned + change.split + change.relocated > 0
    assert change.count <= max(before, 160)
    number = gaussians["tag"].float()
    assert torch.equal(gaussians["semantic"].detach(), number[:, None].expand(-1, 2))
    assert ((gaussians["votes"] == number) | (gaussians["votes"] == 0)).all()
    for field in gaussians:
        assert gaussians[field].shape == (len(gaussians), *gaussians.spec(field).shape), field
        assert gaussians[field].isfinite().all(), field
    for statistic in control.fields():
        assert not gaussians[statistic].any(), statistic
    # The optimiser holds the set's own tensors, and the moments of a row are those of its Gaussian or zero.
    assert [group["name"] for group in optimizer.param_groups] == list(TRAINED)
    assert {id(p) for p in optimizer.state} == {id(gaussians[field]) for field in TRAINED}
    for group in optimizer.param_groups:
        field = group["name"]
        assert len(group["params"]) == 1
        assert group["params"][0] is gaussians[field]
        moment = optimizer.state[gaussians[field]]["exp_avg"]
        expected = (0.1 * (number + 1)).view(-1, *[1] * (moment.ndim - 1)).expand_as(moment)
        assert (torch.isclose(moment, expected) | (moment == 0)).all(), field
    # Old rows that nothing happened to have their moments still.
    old = optimizer.state[gaussians["semantic"]]["exp_avg"][:, 0] != 0
    assert old.any()
    assert len(set(gaussians["tag"][old].tolist())) == int(old.sum())
    train(gaussians, optimizer, lr=0.01)


def run(
    control: DensityControl, gaussians: GaussianSet, optimizer: Any, scheduler: Any, steps: range
) -> list[DensityChange]:
    """Training with pretended gradients, the way a model does it; every chance comes from the step."""
    changes: list[DensityChange] = []
    for step in steps:
        wave = torch.sin(torch.arange(len(gaussians)) * 0.7 + step)
        terms = [(gaussians[name].flatten(1).sum(-1) if gaussians[name].ndim > 1 else gaussians[name]) * wave
                 for name in TRAINED]  # fmt: skip
        optimizer.zero_grad()
        torch.stack([*[term.sum() for term in terms], *control.regularisers(gaussians).values()]).sum().backward()
        if control.watches(step):
            watch(control, gaussians, torch.Generator().manual_seed(1000 + step))
        optimizer.step()
        scheduler.step()
        generator = torch.Generator().manual_seed(step + 1)
        if control.due(step + 1):
            context = DensityContext(**known(gaussians))
            changes.append(control.apply(gaussians, optimizer, step + 1, generator, context))
        control.after_step(gaussians, optimizer, step + 1, generator)
    return changes


@pytest.mark.parametrize("name", CONTROLS)
def test_a_run_that_is_stopped_and_resumed_equals_the_uninterrupted_one_bit_for_bit(name: str) -> None:
    control = CONTROLS[name]()
    whole, _ = random_set(control, 0)
    optimizer, scheduler = build_optimizer(whole, [], 100)
    changes = run(control, whole, optimizer, scheduler, range(40))

    first, _ = random_set(control, 0)
    first_optimizer, first_scheduler = build_optimizer(first, [], 100)
    # Stopped between two densifications: the statistics of steps 20 to 22 are under way.
    early = run(CONTROLS[name](), first, first_optimizer, first_scheduler, range(23))
    saved = first.state_dict(), first_optimizer.state_dict(), first_scheduler.state_dict()

    second, _ = random_set(control, 0)
    second.resize_like(saved[0])
    second_optimizer, second_scheduler = build_optimizer(second, [], 100)
    second.load_state_dict(saved[0])
    second_optimizer.load_state_dict(saved[1])
    second_scheduler.load_state_dict(saved[2])
    late = run(CONTROLS[name](), second, second_optimizer, second_scheduler, range(23, 40))

    assert early + late == changes
    assert sum(change.cloned + change.split + change.relocated for change in late) > 0
    for field in whole:
        assert torch.equal(whole[field], second[field]), field
    for field in TRAINED:
        for key, value in optimizer.state[whole[field]].items():
            assert torch.equal(value, second_optimizer.state[second[field]][key]), (field, key)


@pytest.mark.parametrize("name", CONTROLS)
def test_nothing_happens_in_a_step_that_is_not_due(name: str) -> None:
    control = CONTROLS[name]()
    gaussians, optimizer = random_set(control, 1)
    before = {field: gaussians[field].detach().clone() for field in gaussians}
    assert not control.due(7)
    assert apply(control, gaussians, optimizer, 7) == DensityChange(0, 0, 0, False, len(before["tag"]))
    for field, values in before.items():
        assert torch.equal(gaussians[field], values), field


@pytest.mark.parametrize("name", CONTROLS)
def test_a_set_without_an_optimiser_is_changed_all_the_same(name: str) -> None:
    control = CONTROLS[name]()
    gaussians, _ = random_set(control, 2)
    watch(control, gaussians, torch.Generator().manual_seed(0))
    change = apply(control, gaussians, None, 5, **known(gaussians))
    assert change.cloned + change.split + change.relocated > 0
    assert len(tags(gaussians)) == change.count
