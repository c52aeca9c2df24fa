"""Mask losses: the reference against loops and closed forms, and the C++ back end against the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from panbench.ops import mask_losses
from panbench.ops.backend import load_cpu

EPSILON = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """Arguments of the operator: ``classes`` class channels, then as many query channels as there are."""

    channels: Tensor
    semantic: Tensor
    pair: Tensor
    columns: Tensor
    weight: Tensor

    def losses(self, channels: Tensor, backend: str) -> Tensor:
        return mask_losses(
            channels, self.semantic, self.pair, self.columns, self.weight.to(channels.dtype), epsilon=EPSILON,
            backend=backend,
        )  # fmt: skip  # pyright: ignore[reportArgumentType]


def random_case(
    height: int = 23, width: int = 31, classes: int = 5, queries: int = 9, pairs: int = 4, labelled: float = 0.8,
    seed: int = 0,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    channels = torch.cat(
        [
            torch.randn(height, width, classes, generator=g).softmax(-1),
            torch.randn(height, width, queries, generator=g).softmax(-1) if queries else torch.zeros(height, width, 0),
        ],
        dim=-1,
    )
    semantic = torch.randint(1, classes + 1, (height, width), generator=g)
    semantic[torch.rand(height, width, generator=g) > labelled] = 0
    pair = torch.randint(-1, pairs, (height, width), generator=g) if pairs else torch.full((height, width), -1)
    columns = classes + torch.randperm(queries, generator=g)[:pairs]
    return Case(channels, semantic, pair, columns, torch.rand(height, width, generator=g))


def saturated_case() -> Case:
    """Channels that are exactly 0 and 1, as the blend of opaque, decided Gaussians gives."""
    case = random_case(seed=5)
    return Case((case.channels > 0.2).float(), case.semantic, case.pair, case.columns, case.weight)


CASES = {
    "random": random_case(),
    "many pairs": random_case(queries=40, pairs=40, seed=1),
    "no pair": random_case(pairs=0, seed=2),
    "no query": random_case(queries=0, pairs=0, seed=2),
    "no labelled pixel": random_case(labelled=-1.0, seed=3),
    "all labelled": random_case(labelled=2.0, seed=3),
    "one pixel": random_case(1, 1, labelled=2.0, seed=4),
    "one column": random_case(7, 1, seed=4),
    "saturated": saturated_case(),
}


def loops(case: Case) -> list[float]:
    """The three terms by loops over pixels, straight from the definition."""
    entropy = weight = 0.0
    count = len(case.columns)
    overlap, predicted, true, cross = [0.0] * count, [0.0] * count, [0.0] * count, 0.0
    labelled = 0
    for y in range(case.semantic.shape[0]):
        for x in range(case.semantic.shape[1]):
            label = int(case.semantic[y, x])
            if label == 0:
                continue
            labelled += 1
            row = case.channels[y, x].double().tolist()
            entropy -= float(case.weight[y, x]) * math.log(row[label - 1] + EPSILON)
            weight += float(case.weight[y, x])
            for k, column in enumerate(case.columns.tolist()):
                inside = int(case.pair[y, x]) == k
                value = min(max(row[column], EPSILON), 1 - EPSILON)
                overlap[k] += row[column] * inside
                predicted[k] += row[column]
                true[k] += inside
                cross -= math.log(value) if inside else math.log1p(-value)
    dice = [1 - (2 * o + 1) / (p + t + 1) for o, p, t in zip(overlap, predicted, true, strict=True)]
    return [
        entropy / weight if weight else 0.0,
        sum(dice) / count if count and labelled else 0.0,
        cross / (labelled * count) if count and labelled else 0.0,
    ]


@pytest.mark.parametrize("name", CASES)
def test_reference_is_the_definition(name: str) -> None:
    case = CASES[name]
    got = case.losses(case.channels.double(), "reference")
    torch.testing.assert_close(got, torch.tensor(loops(case), dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_cpu_agrees_with_the_reference_in_values_and_gradients(name: str) -> None:
    case = CASES[name]
    upstream = torch.tensor([1.0, 0.7, -1.3])
    exact = case.channels.double().requires_grad_()
    expected = case.losses(exact, "reference")
    expected.backward(upstream.double())
    channels = case.channels.clone().requires_grad_()
    got = case.losses(channels, "cpu")
    got.backward(upstream)
    assert exact.grad is not None
    assert channels.grad is not None
    # The logarithm of float32's 1 − (1 − ε) is off by up to 6e-8 / ε.
    tolerance = 1e-4 if name == "saturated" else 2e-6
    torch.testing.assert_close(got, expected.float(), rtol=tolerance, atol=2e-6)
    torch.testing.assert_close(channels.grad, exact.grad.float(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["random", "no pair"])
def test_reference_gradient_is_that_of_finite_differences(name: str) -> None:
    case = random_case(4, 3, 3, 4, 3 if name == "random" else 0, seed=6)
    channels = case.channels.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: case.losses(c, "reference"), channels, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_pixels_by_hand(backend: str) -> None:
    # Two classes, one query. Pixel 0: class 1 with probability ¼, inside the mask, query ½. Pixel 1: class 2 with 1,
    # outside, query ¼.
    case = Case(
        torch.tensor([[[0.25, 0.75, 0.5], [0.0, 1.0, 0.25]]]),
        torch.tensor([[1, 2]]),
        torch.tensor([[0, -1]]),
        torch.tensor([2]),
        torch.tensor([[3.0, 1.0]]),
    )
    entropy = -(3 * math.log(0.25 + EPSILON) + math.log(1 + EPSILON)) / 4
    dice = 1 - (2 * 0.5 + 1) / (0.75 + 1 + 1)
    cross = -(math.log(0.5) + math.log(0.75)) / 2
    torch.testing.assert_close(case.losses(case.channels, backend), torch.tensor([entropy, dice, cross]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_perfect_prediction_costs_next_to_nothing(backend: str) -> None:
    semantic = torch.tensor([[1, 2, 2, 0]])
    pair = torch.tensor([[-1, 0, 1, -1]])
    channels = torch.zeros(1, 4, 4)
    channels[0, 0, 0] = channels[0, 1, 1] = channels[0, 2, 1] = 1
    channels[0, 1, 2] = channels[0, 2, 3] = 1
    case = Case(channels, semantic, pair, torch.tensor([2, 3]), torch.ones(1, 4))
    assert case.losses(channels, backend).abs().max() < 2e-4


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_unlabelled_pixels_have_no_say(backend: str) -> None:
    case = random_case()
    other = case.channels.clone()
    other[case.semantic == 0] = 0.5
    assert torch.equal(case.losses(case.channels, backend), case.losses(other, backend))
    channels = case.channels.clone().requires_grad_()
    case.losses(channels, backend).sum().backward()
    assert channels.grad is not None
    assert not channels.grad[case.semantic == 0].any()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_numbering_of_pairs_does_not_matter(backend: str) -> None:
    case = random_case(pairs=5)
    order = torch.tensor([3, 0, 4, 2, 1])
    renumber = torch.cat([order.argsort(), torch.tensor([-1])])
    permuted = Case(case.channels, case.semantic, renumber[case.pair], case.columns[order], case.weight)
    torch.testing.assert_close(
        permuted.losses(case.channels, backend), case.losses(case.channels, backend), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_weights_of_zero_leave_no_cross_entropy(backend: str) -> None:
    case = random_case()
    silent = Case(case.channels, case.semantic, case.pair, case.columns, torch.zeros_like(case.weight))
    channels = case.channels.clone().requires_grad_()
    losses = silent.losses(channels, backend)
    losses[0].backward()
    assert losses[0] == 0
    assert channels.grad is not None
    assert not channels.grad.any()


@pytest.mark.parametrize("view", ["slice of channels", "slice of rows", "transposed", "one column of a slice"])
def test_views_of_wider_images_give_the_same_as_copies(view: str) -> None:
    case = random_case()
    height, width, count = case.channels.shape
    if view == "slice of channels":
        base = torch.rand(height, width, count + 6)
        base[..., 6:] = case.channels
        strided = base[..., 6:]
    elif view == "slice of rows":
        base = torch.rand(height, width + 3, count)
        base[:, 3:] = case.channels
        strided = base[:, 3:]
    elif view == "transposed":
        base = case.channels.permute(2, 0, 1).contiguous()
        strided = base.permute(1, 2, 0)
    else:
        case = CASES["one column"]
        base = torch.rand(*case.channels.shape[:2], case.channels.shape[2] + 2)
        base[..., 2:] = case.channels
        strided = base[..., 2:]
    assert torch.equal(strided, case.channels)
    expected = case.channels.clone().requires_grad_()
    got = strided.detach().as_strided(strided.shape, strided.stride(), strided.storage_offset()).requires_grad_()
    assert got.stride() == strided.stride()
    case.losses(expected, "cpu").sum().backward()
    losses = case.losses(got, "cpu")
    losses.sum().backward()
    assert torch.equal(losses, case.losses(case.channels, "cpu"))
    assert got.grad is not None
    assert expected.grad is not None
    assert torch.equal(got.grad, expected.grad)


@pytest.mark.usefixtures("_threads_restored")
def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    case = random_case(60, 80, seed=7)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        channels = case.channels.clone().requires_grad_()
        losses = case.losses(channels, "cpu")
        losses.sum().backward()
        assert channels.grad is not None
        results.append((losses.detach(), channels.grad))
    for losses, grad in results[1:]:
        assert torch.equal(losses, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_a_pair_that_shares_a_class_channel_adds_up() -> None:
    case = random_case()
    shared = Case(case.channels, case.semantic, case.pair, torch.tensor([0, 2, 6, 7]), case.weight)
    exact = case.channels.double().requires_grad_()
    shared.losses(exact, "reference").sum().backward()
    channels = case.channels.clone().requires_grad_()
    shared.losses(channels, "cpu").sum().backward()
    assert exact.grad is not None
    assert channels.grad is not None
    torch.testing.assert_close(channels.grad, exact.grad.float(), rtol=2e-5, atol=1e-7)


def test_a_class_or_pair_without_a_channel_is_refused() -> None:
    case = random_case()
    wrong = [
        Case(case.channels, case.semantic + 50, case.pair, case.columns, case.weight),
        Case(case.channels, case.semantic, case.pair + 50, case.columns, case.weight),
        Case(case.channels, case.semantic, case.pair, case.columns + 50, case.weight),
        Case(case.channels, case.semantic[:-1], case.pair, case.columns, case.weight),
        Case(case.channels.double(), case.semantic, case.pair, case.columns, case.weight),
    ]
    for bad in wrong:
        with pytest.raises(RuntimeError, match="panbench"):
            bad.losses(bad.channels, "cpu")


def test_operators_are_registered_as_torch_wants() -> None:
    case = random_case(6, 5)
    arguments = (case.semantic, case.pair, case.columns, case.weight, EPSILON)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # The check of traced gradients adds up all outputs; with sums of no gradient among them it works all the same.
    torch.library.opcheck(
        torch.ops.panbench.mask_losses.default,
        (case.channels.clone().requires_grad_(), *arguments),
        test_utils=[*checks, "test_aot_dispatch_dynamic"],
    )
    sums = torch.ops.panbench.mask_losses(case.channels, *arguments)[1]
    torch.library.opcheck(
        torch.ops.panbench.mask_losses_backward.default,
        (case.channels, *arguments, sums, torch.ones(3)),
        test_utils=[*checks, "test_aot_dispatch_dynamic"],
    )
