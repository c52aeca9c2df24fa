"""Assignment of masks to queries: costs against loops, pairs against all permutations."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from panbench.heads.matching import Masks, assign, matching_cost, number_masks, pair_losses
from panbench.ops import LabelSums, LabelTargets, reference
from panbench.scene import PanopticMap

EPSILON = 1e-4


def summed(predicted: Tensor, masks: Tensor) -> tuple[LabelSums, Masks]:
    """Sums and masks of predictions [P, Q] and masks [P, A], as of an image of one row."""
    number = torch.where(masks.any(1), masks.double().argmax(1) if masks.shape[1] else 0, -1).int()[None]
    ones = torch.ones_like(number)
    targets = LabelTargets(ones, number, ones.to(predicted.dtype), masks.shape[1], 0, 0, epsilon=EPSILON)
    votes = masks.sum(0).long()[:, None]
    labelled = torch.tensor(max(len(masks), 1))
    return reference.label_sums(predicted[None], targets), Masks(number, votes, labelled)


def cost_of(predicted: Tensor, masks: Tensor) -> Tensor:
    return matching_cost(*summed(predicted, masks))


def loops(predicted: Tensor, masks: Tensor) -> Tensor:
    """Dice + binary cross-entropy of each pair, pixel by pixel."""
    out = torch.zeros(masks.shape[1], predicted.shape[1], dtype=torch.float64)
    for a in range(masks.shape[1]):
        for q in range(predicted.shape[1]):
            both = cross = 0.0
            for p in range(len(masks)):
                i, y = float(predicted[p, q]), float(masks[p, a])
                both += i * y
                i = min(max(i, EPSILON), 1 - EPSILON)
                cross -= y * math.log(i) + (1 - y) * math.log(1 - i)
            total = float(predicted[:, q].sum() + masks[:, a].sum())
            out[a, q] = 1 - 2 * both / max(total, 1e-6) + cross / len(masks)
    return out


def random_masks(pixels: int, masks: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    predicted = torch.rand(pixels, queries, generator=g, dtype=torch.float64)
    label = torch.randint(0, masks + 1, (pixels,), generator=g)
    return predicted, (label[:, None] == torch.arange(1, masks + 1)).double()


@pytest.mark.parametrize(("pixels", "masks", "queries"), [(40, 3, 5), (1, 1, 1), (25, 4, 2)])
def test_costs_are_those_of_loops(pixels: int, masks: int, queries: int) -> None:
    predicted, planes = random_masks(pixels, masks, queries)
    torch.testing.assert_close(cost_of(predicted, planes), loops(predicted, planes), rtol=1e-9, atol=1e-9)


def test_costs_of_saturated_predictions_are_finite() -> None:
    predicted, planes = random_masks(30, 3, 4)
    predicted = (predicted > 0.5).double()
    torch.testing.assert_close(cost_of(predicted, planes), loops(predicted, planes), rtol=1e-9, atol=1e-9)
    single = cost_of(predicted.float(), planes.float())
    torch.testing.assert_close(single.double(), loops(predicted, planes), rtol=1e-3, atol=1e-3)


def test_costs_without_pixels_are_finite() -> None:
    assert cost_of(torch.zeros(0, 3), torch.zeros(0, 2)).isfinite().all()


def test_a_mask_costs_least_with_its_own_prediction() -> None:
    _, planes = random_masks(60, 4, 1)
    predicted = planes[:, [2, 0, 3, 1]] * 0.9 + 0.02
    rows, columns = assign(cost_of(predicted, planes))
    assert rows.tolist() == [0, 1, 2, 3]
    assert columns.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (4, 2), (1, 4), (5, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_the_pairs_have_the_least_total_of_all(shape: tuple[int, int], seed: int) -> None:
    cost = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, columns = assign(cost)
    a, q = shape
    if a <= q:
        best = min(sum(cost[i, p[i]].item() for i in range(a)) for p in permutations(range(q), a))
    else:
        best = min(sum(cost[p[j], j].item() for j in range(q)) for p in permutations(range(a), q))
    assert len(rows) == len(columns) == min(shape)
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == min(shape)
    assert rows.tolist() == sorted(rows.tolist())
    assert sum(cost[r, c].item() for r, c in zip(rows, columns, strict=True)) == pytest.approx(best)


def test_losses_of_pairs_are_those_of_loops() -> None:
    predicted, planes = random_masks(60, 4, 6, seed=2)
    rows, columns = torch.tensor([0, 1, 3]), torch.tensor([5, 0, 2])
    dice = cross = 0.0
    for a, q in zip(rows.tolist(), columns.tolist(), strict=True):
        i, y = predicted[:, q], planes[:, a]
        dice += float(1 - (2 * (i * y).sum() + 1) / (i.sum() + y.sum() + 1)) / 3
        i = i.clamp(EPSILON, 1 - EPSILON)
        cross -= float((y * i.log() + (1 - y) * (1 - i).log()).mean()) / 3
    found = pair_losses(*summed(predicted, planes), rows, columns)
    assert [float(term) for term in found] == pytest.approx([dice, cross], rel=1e-9)


def test_masks_are_numbered_in_the_order_of_their_ids() -> None:
    instance = torch.tensor([[7, 7, 0, 900], [3, 0, 900, 900], [5, 5, 0, 0]], dtype=torch.int32)
    semantic = torch.tensor([[2, 2, 1, 3], [2, 1, 1, 3], [0, 0, 0, 1]], dtype=torch.int32)
    masks = number_masks(PanopticMap(semantic, instance), 4)
    # The mask 5 has no class anywhere, and mask 7 comes after 3.
    assert masks.number.dtype == torch.int32
    assert masks.number.tolist() == [[1, 1, -1, 2], [0, -1, 2, 2], [-1, -1, -1, -1]]
    assert masks.votes.tolist() == [[0, 1, 0, 0], [0, 2, 0, 0], [1, 0, 2, 0]]
    assert masks.areas.tolist() == [1, 2, 3]
    assert masks.labelled == 9


@pytest.mark.parametrize("what", ["nothing labelled", "no mask"])
def test_a_frame_without_masks_has_none(what: str) -> None:
    semantic = torch.zeros(3, 4).int() if what == "nothing labelled" else torch.ones(3, 4).int()
    instance = torch.ones(3, 4).int() if what == "nothing labelled" else torch.zeros(3, 4).int()
    masks = number_masks(PanopticMap(semantic, instance), 2)
    assert (masks.number == -1).all()
    assert masks.votes.shape == (0, 2)
    assert masks.labelled == (1 if what == "nothing labelled" else 12)


def test_permuting_the_masks_permutes_the_pairs() -> None:
    predicted, planes = random_masks(80, 5, 7, seed=3)
    rows, columns = assign(cost_of(predicted, planes))
    query_of = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    order = [4, 2, 0, 1, 3]
    rows, columns = assign(cost_of(predicted, planes[:, order]))
    assert {order[r]: c for r, c in zip(rows.tolist(), columns.tolist(), strict=True)} == query_of


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_pair_gives_no_pairs(shape: tuple[int, int]) -> None:
    rows, columns = assign(torch.zeros(shape))
    assert len(rows) == len(columns) == 0
