"""A set of Gaussians: declared fields, one length, and what a checkpoint needs."""

from __future__ import annotations

import pytest
import torch

from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec, zeros
from panbench.gaussians.gaussian_set import GaussianSet, rows_of


def make(count: int = 5) -> GaussianSet:
    out = GaussianSet()
    out.add(
        {
            "means": FieldSpec((3,), torch.arange(count * 3.0).reshape(count, 3), lr=0.1, lr_final=0.001),
            "features_rest": FieldSpec((2, 3), lambda n: torch.ones(n, 2, 3), lr=0.01, on_split="zero"),
            "opacities": FieldSpec((), lambda n: torch.zeros(n), lr=0.05),
            "kind": FieldSpec((), lambda n: torch.arange(n)),
            "seen": zeros(),
        }
    )
    return out


def test_fields_are_reached_by_name_and_as_attributes() -> None:
    gaussians = make()
    assert len(gaussians) == 5
    assert gaussians["means"] is gaussians.means
    assert gaussians.features_rest.shape == (5, 2, 3)
    assert list(gaussians) == ["means", "features_rest", "opacities", "kind", "seen"]
    with pytest.raises(KeyError, match="no field 'colours'; there are means"):
        gaussians["colours"]


def test_optimised_fields_are_parameters_and_the_others_buffers() -> None:
    gaussians = make()
    assert [n for n, _ in gaussians.named_parameters()] == ["means", "features_rest", "opacities"]
    assert [n for n, _ in gaussians.named_buffers()] == ["kind", "seen"]
    assert set(gaussians.state_dict()) == set(gaussians)


def test_there_is_one_group_per_optimised_field_with_its_rate() -> None:
    groups = make().groups()
    assert [(g["name"], g["lr"], g["lr_final"]) for g in groups] == [
        ("means", 0.1, 0.001),
        ("features_rest", 0.01, None),
        ("opacities", 0.05, None),
    ]


def test_later_fields_take_the_length_of_earlier_ones() -> None:
    gaussians = make()
    gaussians.add({"instance": FieldSpec((32,), lambda n: torch.zeros(n, 32), lr=0.1)})
    assert gaussians["instance"].shape == (5, 32)


def test_first_values_do_not_share_memory_with_their_source() -> None:
    source = torch.zeros(3, 2)
    gaussians = GaussianSet()
    gaussians.add({"a": FieldSpec((2,), source, lr=0.1), "b": FieldSpec((2,), source)})
    with torch.no_grad():
        gaussians["a"].add_(1)
    assert (source == 0).all()
    assert (gaussians["b"] == 0).all()


@pytest.mark.parametrize("name", ["means", "train", "forward", "_buffers", "no name"])
def test_a_name_that_is_taken_or_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="taken or not an identifier"):
        make().add({name: zeros()})


def test_wrong_first_values_and_an_unknown_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"field 'a': initial values have shape \(4, 2\), not \(5, 2\)"):
        make().add({"a": FieldSpec((2,), torch.zeros(4, 2))})
    with pytest.raises(ValueError, match="number of Gaussians is unknown"):
        GaussianSet().add({"a": zeros()})
    with pytest.raises(ValueError, match="no schedule"):
        FieldSpec((), torch.zeros(1), lr_final=0.1)


def test_a_checkpoint_of_another_length_loads_after_a_resize() -> None:
    saved = make(9)
    state = {f"gaussians.{k}": v for k, v in saved.state_dict().items()} | {"head.queries": torch.zeros(3)}
    gaussians = make(5)
    gaussians.resize_like(state, "gaussians.")
    assert len(gaussians) == 9
    gaussians.load_state_dict(saved.state_dict())
    for name in saved:
        assert torch.equal(saved[name], gaussians[name])
        assert saved[name].dtype == gaussians[name].dtype
    assert isinstance(gaussians["means"], torch.nn.Parameter)


def test_an_empty_set_can_be_filled_from_a_checkpoint() -> None:
    gaussians = GaussianSet(count=0)
    gaussians.add({"means": FieldSpec((3,), lambda n: torch.zeros(n, 3), lr=0.1)})
    gaussians.resize_like({"means": torch.ones(4, 3)})
    assert len(gaussians) == 4


def test_a_checkpoint_with_other_fields_is_refused_in_one_line() -> None:
    state = dict(make().state_dict())
    for change, message in (
        ({"seen": None}, "has no Gaussian field seen"),
        ({"features_rest": torch.zeros(5, 4, 3)}, r"features_rest has rows of shape \(4, 3\).*asks for \(2, 3\)"),
        ({"means": torch.zeros(6, 3)}, r"different lengths \[5, 6\]"),
    ):
        bad = {k: v for k, v in (state | change).items() if v is not None}
        with pytest.raises(UserError, match=message):
            make().resize_like(bad)


def test_children_copy_or_start_at_zero_as_their_field_says() -> None:
    gaussians = make()
    rows = rows_of(gaussians, torch.tensor([4, 4, 1]))
    assert torch.equal(rows["means"], gaussians["means"].detach()[[4, 4, 1]])
    assert torch.equal(rows["kind"], torch.tensor([4, 4, 1]))
    assert (rows["features_rest"] == 0).all()
    assert not any(r.requires_grad for r in rows.values())
