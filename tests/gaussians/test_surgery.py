"""Surgery: whatever is done to the rows, fields, Adam's moments and statistics stay those of the same Gaussian."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panbench.gaussians import surgery
from panbench.gaussians.fields import FieldSpec, zeros
from panbench.gaussians.gaussian_set import GaussianSet, rows_of
from panbench.gaussians.optim import build_optimizer

COUNT = 6


def trained(fused: bool = True) -> tuple[GaussianSet, torch.optim.Adam]:
    """A set after two steps; row i of every field, gradient and so of every moment is a function of i alone."""
    gaussians = GaussianSet()
    gaussians.add(
        {
            "means": FieldSpec((3,), torch.arange(COUNT)[:, None].float().expand(-1, 3), lr=0.1),
            "opacities": FieldSpec((), torch.arange(COUNT).float(), lr=0.05),
            "sem": FieldSpec((2, 4), torch.arange(COUNT)[:, None, None].float().expand(-1, 2, 4), lr=0.01),
            "seen": zeros(),
        }
    )
    query = torch.nn.Parameter(torch.ones(2, 3))
    optimizer, _ = build_optimizer(gaussians, [{"name": "queries", "params": [query], "lr": 0.1}], 10)
    for group in optimizer.param_groups:
        group["fused"] = fused
    step(gaussians, optimizer, query)
    step(gaussians, optimizer, query)
    gaussians["seen"].copy_(torch.arange(COUNT).float() * 7)
    return gaussians, optimizer


def step(gaussians: GaussianSet, optimizer: torch.optim.Adam, query: Tensor) -> None:
    optimizer.zero_grad()
    ids = torch.arange(1, len(gaussians) + 1).float()
    loss = sum(
        (gaussians[n] * ids.view(-1, *[1] * (gaussians[n].ndim - 1))).sum() for n in ("means", "opacities", "sem")
    )
    (loss + query.sum()).backward()
    optimizer.step()


def snapshot(gaussians: GaussianSet, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Everything that has a row per Gaussian, by name."""
    out = {name: gaussians[name].detach().clone() for name in gaussians}
    for name in ("means", "opacities", "sem"):
        state = optimizer.state[gaussians[name]]
        out |= {f"{name}.{k}": state[k].clone() for k in ("exp_avg", "exp_avg_sq")}
    return out


def check_wiring(gaussians: GaussianSet, optimizer: torch.optim.Adam) -> None:
    """The optimiser holds exactly the set's parameters, and no state of tensors that are gone."""
    for group in optimizer.param_groups[:3]:
        assert group["params"] == [gaussians[group["name"]]] or group["params"][0] is gaussians[group["name"]]
        assert group["params"][0] is gaussians[group["name"]]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in optimizer.state} == held
    for name in ("means", "opacities", "sem"):
        state = optimizer.state[gaussians[name]]
        assert state["exp_avg"].shape == gaussians[name].shape
        assert state["step"].item() == 2
    assert {gaussians[name].shape[0] for name in gaussians} == {len(gaussians)}


@pytest.mark.parametrize("index", [torch.tensor([5, 0, 3]), torch.tensor([True, False, True, True, False, False])])
def test_taking_rows_takes_the_same_rows_of_everything(index: Tensor) -> None:
    gaussians, optimizer = trained()
    before = snapshot(gaussians, optimizer)
    surgery.take(gaussians, index, optimizer)
    after = snapshot(gaussians, optimizer)
    for name, values in before.items():
        assert torch.equal(after[name], values[index]), name
    check_wiring(gaussians, optimizer)


def test_appended_rows_have_zero_moments_and_leave_the_old_ones_alone() -> None:
    gaussians, optimizer = trained()
    before = snapshot(gaussians, optimizer)
    surgery.append(gaussians, rows_of(gaussians, torch.tensor([2, 5])), optimizer)
    after = snapshot(gaussians, optimizer)
    assert len(gaussians) == COUNT + 2
    for name, values in before.items():
        assert torch.equal(after[name][:COUNT], values), name
        zero = "." in name or name == "seen"
        assert torch.equal(after[name][COUNT:], torch.zeros_like(values[[2, 5]]) if zero else values[[2, 5]]), name
    check_wiring(gaussians, optimizer)


def test_a_reset_overwrites_one_field_and_zeroes_its_moments_only() -> None:
    gaussians, optimizer = trained()
    before = snapshot(gaussians, optimizer)
    parameter = gaussians["opacities"]
    surgery.reset(gaussians, "opacities", torch.full((COUNT,), -4.0), optimizer)
    after = snapshot(gaussians, optimizer)
    assert gaussians["opacities"] is parameter
    assert (after["opacities"] == -4).all()
    assert (after["opacities.exp_avg"] == 0).all()
    assert (after["opacities.exp_avg_sq"] == 0).all()
    for name in before:
        if not name.startswith("opacities"):
            assert torch.equal(after[name], before[name]), name
    check_wiring(gaussians, optimizer)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 99), max_size=8)), max_size=5))
def test_any_sequence_of_cuts_and_growth_keeps_all_rows_aligned(operations: list[tuple[bool, list[int]]]) -> None:
    gaussians, optimizer = trained()
    whole = snapshot(gaussians, optimizer)
    origin = torch.arange(COUNT)
    fresh = torch.zeros(COUNT, dtype=torch.bool)
    for grows, picks in operations:
        if len(gaussians) == 0:
            break
        index = torch.tensor(picks, dtype=torch.long) % len(gaussians)
        if grows:
            surgery.append(gaussians, rows_of(gaussians, index), optimizer)
            origin, fresh = torch.cat([origin, origin[index]]), torch.cat([fresh, torch.ones(len(index)).bool()])
        else:
            surgery.take(gaussians, index, optimizer)
            origin, fresh = origin[index], fresh[index]
    for name, values in snapshot(gaussians, optimizer).items():
        expected = whole[name][origin].clone()
        if "." in name or name == "seen":
            expected[fresh] = 0
        assert torch.equal(values, expected), name
    check_wiring(gaussians, optimizer)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_after_surgery_moves_each_old_row_as_it_would_have_without(fused: bool) -> None:
    query = torch.ones(2, 3, requires_grad=True)
    plain, plain_optimizer = trained(fused)
    step(plain, plain_optimizer, query)
    cut, cut_optimizer = trained(fused)
    surgery.append(cut, rows_of(cut, torch.tensor([0])), cut_optimizer)
    surgery.take(cut, torch.arange(COUNT), cut_optimizer)
    step(cut, cut_optimizer, query)
    for name in plain:
        assert torch.equal(plain[name], cut[name]), name


def test_surgery_works_before_there_is_an_optimiser_or_a_step() -> None:
    gaussians, _ = trained()
    surgery.take(gaussians, torch.tensor([1]), None)
    assert len(gaussians) == 1
    optimizer, _ = build_optimizer(gaussians, [], 10)
    surgery.append(gaussians, rows_of(gaussians, torch.tensor([0, 0])), optimizer)
    assert len(gaussians) == 3
    assert optimizer.param_groups[0]["params"][0] is gaussians["means"]


def test_bad_rows_and_indices_are_refused_and_change_nothing() -> None:
    gaussians, optimizer = trained()
    rows = rows_of(gaussians, torch.tensor([0]))
    for bad in ({k: v for k, v in rows.items() if k != "sem"}, rows | {"other": torch.zeros(1)}):
        with pytest.raises(ValueError, match="the fields are"):
            surgery.append(gaussians, bad, optimizer)
    for bad in (rows | {"sem": torch.zeros(1, 2, 5)}, rows | {"seen": torch.zeros(2)}):
        with pytest.raises(ValueError, match="have shape"):
            surgery.append(gaussians, bad, optimizer)
    with pytest.raises(ValueError, match="mask has shape"):
        surgery.take(gaussians, torch.ones(COUNT + 1, dtype=torch.bool), optimizer)
    for row in (-1, COUNT):
        with pytest.raises(ValueError, match="outside 0"):
            surgery.take(gaussians, torch.tensor([row]), optimizer)
    with pytest.raises(ValueError, match="the new values"):
        surgery.reset(gaussians, "sem", torch.zeros(COUNT), optimizer)
    assert len(gaussians) == COUNT
    check_wiring(gaussians, optimizer)


def test_overwritten_rows_have_the_new_values_and_zero_moments_and_the_others_nothing_new() -> None:
    gaussians, optimizer = trained()
    before = snapshot(gaussians, optimizer)
    index = torch.tensor([4, 1])
    rows = {"means": torch.full((2, 3), 9.0), "seen": torch.tensor([5.0, 6.0])}
    surgery.overwrite(gaussians, index, rows, optimizer)
    after = snapshot(gaussians, optimizer)
    for name, values in before.items():
        field = name.partition(".")[0]
        expected = values.clone()
        if field in rows:
            expected[index] = 0 if "." in name else rows[field]
        assert torch.equal(after[name], expected), name
    check_wiring(gaussians, optimizer)


def test_bad_rows_to_overwrite_are_refused_and_change_nothing() -> None:
    gaussians, optimizer = trained()
    before = snapshot(gaussians, optimizer)
    with pytest.raises(ValueError, match="given twice"):
        surgery.overwrite(gaussians, torch.tensor([1, 1]), {"seen": torch.zeros(2)}, optimizer)
    with pytest.raises(ValueError, match="outside 0"):
        surgery.overwrite(gaussians, torch.tensor([COUNT]), {"seen": torch.zeros(1)}, optimizer)
    with pytest.raises(ValueError, match="means has 1 rows"):
        surgery.overwrite(gaussians, torch.tensor([1]), {"seen": torch.zeros(1), "means": torch.zeros(1)}, optimizer)
    for name, values in snapshot(gaussians, optimizer).items():
        assert torch.equal(values, before[name]), name
