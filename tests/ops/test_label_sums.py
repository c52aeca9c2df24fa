"""Sums over labelled pixels: the reference against loops, the C++ back end against the reference, and in the blend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from views import KINDS, NEAR, assert_close, doubles, random_case, random_like, singles

from panbench import ops
from panbench.ops import Bins, Blended, Kind, LabelSums, LabelTargets, label_sums
from panbench.ops.backend import Backend, load_cpu

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
class Labels:
    """A label image and what it is compared with."""

    channels: Tensor
    targets: LabelTargets

    def sums(self, channels: Tensor, backend: Backend) -> LabelSums:
        return label_sums(channels, cast(self.targets, channels.dtype), backend=backend)


def cast(targets: LabelTargets, dtype: torch.dtype) -> LabelTargets:
    return targets._replace(weight=targets.weight.to(dtype))


def random_targets(
    height: int, width: int, classes: int, first_query: int, masks: int, labelled: float, seed: int, logits: bool
) -> LabelTargets:
    g = torch.Generator().manual_seed(seed)
    semantic = torch.randint(1, classes + 1, (height, width), generator=g) if classes else torch.ones(height, width)
    semantic[torch.rand(height, width, generator=g) > labelled] = 0
    # Masks are patches, as those of frames are, with some noise.
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = (y // 9 * 3 + x // 7) % (masks + 1) - 1
    noise = torch.randint(-1, masks, (height, width), generator=g) if masks else torch.full((height, width), -1)
    mask = torch.where(torch.rand(height, width, generator=g) < 0.1, noise, mask)
    weight = torch.rand(height, width, generator=g)
    return LabelTargets(semantic.int(), mask.int(), weight, masks, classes, first_query, logits, EPSILON)


def random_labels(
    height: int = 23, width: int = 31, classes: int = 5, queries: int = 9, masks: int = 4, labelled: float = 0.8,
    seed: int = 0, logits: bool = False, gap: int = 0,
) -> Labels:  # fmt: skip
    """``gap`` channels between classes and queries belong to neither."""
    g = torch.Generator().manual_seed(100 + seed)
    semantic = 3 * torch.randn(height, width, classes, generator=g)
    instance = 3 * torch.randn(height, width, queries, generator=g)
    channels = torch.cat(
        [
            semantic if logits else semantic.softmax(-1),
            torch.rand(height, width, gap, generator=g),
            instance.softmax(-1),
        ],
        dim=-1,
    )
    first = classes + gap
    return Labels(channels, random_targets(height, width, classes, first, masks, labelled, seed, logits))


def saturated_labels() -> Labels:
    """Channels that are exactly 0 and 1, as the blend of opaque, decided Gaussians gives."""
    labels = random_labels(seed=5)
    return replace(labels, channels=(labels.channels > 0.4).float())


CASES = {
    "random": random_labels(),
    "more queries than a register holds": random_labels(queries=63, masks=40, seed=1),
    "sixteen queries": random_labels(queries=16, seed=1),
    "logits": random_labels(logits=True, seed=1),
    "many logits": random_labels(logits=True, classes=37, queries=20, seed=1),
    "no mask": random_labels(masks=0, seed=2),
    "no query": random_labels(queries=0, seed=2),
    "no class": random_labels(classes=0, seed=2),
    "features before queries": random_labels(classes=0, gap=7, seed=2),
    "no labelled pixel": random_labels(labelled=-1.0, seed=3),
    "all labelled": random_labels(labelled=2.0, seed=3),
    "one pixel": random_labels(1, 1, labelled=2.0, seed=4),
    "one column": random_labels(7, 1, seed=4),
    "saturated": saturated_labels(),
}


def loops(labels: Labels) -> list[Tensor]:
    """Entropy, presence and overlap by loops over pixels, straight from the definition."""
    t = labels.targets
    queries = labels.channels.shape[-1] - t.first_query
    entropy = 0.0
    presence = torch.zeros(2, queries, dtype=torch.float64)
    overlap = torch.zeros(2, t.masks, queries, dtype=torch.float64)
    for y in range(t.semantic.shape[0]):
        for x in range(t.semantic.shape[1]):
            label, mask = int(t.semantic[y, x]), int(t.mask[y, x])
            if label == 0:
                continue
            row = labels.channels[y, x].double().tolist()
            if t.classes:
                share = row[label - 1] + EPSILON
                if t.logits:
                    share = math.exp(row[label - 1]) / sum(math.exp(v) for v in row[: t.classes])
                entropy -= float(t.weight[y, x]) * math.log(share)
            for q, value in enumerate(row[t.first_query :]):
                clamped = min(max(value, EPSILON), 1 - EPSILON)
                presence[0, q] += value
                presence[1, q] -= math.log1p(-clamped)
                if mask >= 0:
                    overlap[0, mask, q] += value
                    overlap[1, mask, q] += math.log1p(-clamped) - math.log(clamped)
    return [torch.tensor(entropy, dtype=torch.float64), presence, overlap]


def upstream_of(sums: LabelSums) -> list[Tensor]:
    return [random_like(s, seed) for seed, s in enumerate(sums)]


def reference_gradients(sums: LabelSums, inputs: list[Tensor], upstream: list[Tensor]) -> tuple[Tensor, ...]:
    """Through those sums that depend on anything."""
    total = torch.stack([(s * u.double()).sum() for s, u in zip(sums, upstream, strict=True)]).sum()
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def assert_sums_agree(found: LabelSums, expected: LabelSums | list[Tensor], pixels: int) -> None:
    for name, mine, theirs in zip(LabelSums._fields, found, expected, strict=True):
        assert mine.dtype == torch.float32
        # The logarithm of float32's 1 − I is off by up to 6e-8 / (1 − I).
        torch.testing.assert_close(
            mine.double(), theirs.detach(), rtol=3e-6, atol=1e-5 + 2e-7 * pixels, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", CASES)
def test_reference_is_the_definition(name: str) -> None:
    labels = CASES[name]
    for found, expected in zip(labels.sums(labels.channels.double(), "reference"), loops(labels), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ["v4", "v3", "portable"])
@pytest.mark.parametrize("name", CASES)
def test_cpu_agrees_with_the_reference_in_values_and_gradients(
    name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANBENCH_ISA", isa)
    labels = CASES[name]
    (exact,), (single,) = doubles([labels.channels]), singles([labels.channels])
    expected, found = labels.sums(exact, "reference"), labels.sums(single, "cpu")
    # Saturated channels all have the same error.
    tolerance = 1e-5 if name == "saturated" else 0.0
    if tolerance:
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=5e-4, atol=1e-3)
    else:
        assert_sums_agree(found, expected, single[..., 0].numel())
    upstream = upstream_of(found)
    (mine,) = torch.autograd.grad(list(found), single, upstream)
    (theirs,) = reference_gradients(expected, [exact], upstream)
    # One that lies on a clamp: no gradient here, one in the reference.
    open_ = (exact - EPSILON).abs().minimum((exact - 1 + EPSILON).abs()) > 1e-7
    assert_close((mine * open_).flatten(), (theirs * open_).flatten(), 2e-5, "gradient")


@pytest.mark.parametrize("name", ["random", "logits", "no mask"])
def test_reference_gradient_is_that_of_finite_differences(name: str) -> None:
    labels = random_labels(4, 3, 3, 4, 0 if name == "no mask" else 3, seed=6, logits=name == "logits")
    channels = labels.channels.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: tuple(labels.sums(c, "reference")), channels, eps=1e-7, atol=1e-5)


def test_gradient_is_that_of_finite_differences() -> None:
    """Of the C++ operator itself: central differences of a float32 function, along random directions."""
    labels = random_labels(9, 8, 4, 20, 3, seed=7)
    channels = labels.channels.clamp(0.05, 0.95).requires_grad_()
    upstream = upstream_of(labels.sums(channels, "cpu"))

    def total(at: Tensor) -> float:
        return sum(float((s.double() * u).sum()) for s, u in zip(labels.sums(at, "cpu"), upstream, strict=True))

    (grad,) = torch.autograd.grad(list(labels.sums(channels, "cpu")), channels, upstream)
    for seed in range(3):
        direction = random_like(grad, 10 + seed).sign()
        with torch.no_grad():
            slope = (total(channels + 1e-3 * direction) - total(channels - 1e-3 * direction)) / 2e-3
        assert slope == pytest.approx(float((grad * direction).sum()), rel=2e-3)


@pytest.mark.parametrize("isa", ["v4", "v3", "portable"])
def test_logarithms_are_those_of_float32(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel, whose queries are everything between the clamps."""
    monkeypatch.setenv("PANBENCH_ISA", isa)
    inside = torch.cat([torch.logspace(-4, 0, 3001), 1 - torch.logspace(-4, 0, 3001)]).clamp(1.1e-4, 1 - 1.1e-4)
    one = torch.ones(1, 1, dtype=torch.int32)
    targets = LabelTargets(one, 0 * one, torch.ones(1, 1), 1, 0, 0, epsilon=EPSILON)
    _, presence, overlap = label_sums(inside[None, None], targets, backend="cpu")
    outside = -(1 - inside).double().log()  # of the difference as float32 has it
    torch.testing.assert_close(presence[1].double(), outside, rtol=3e-7, atol=0)
    torch.testing.assert_close(overlap[1, 0].double(), -outside - inside.double().log(), rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_pixels_by_hand(backend: Backend) -> None:
    # Two classes, one query. Pixel 0: class 1 with probability ¼, inside the mask, query ½. Pixel 1: class 2 with 1,
    # outside, query ¼.
    channels = torch.tensor([[[0.25, 0.75, 0.5], [0.0, 1.0, 0.25]]])
    semantic, mask = torch.tensor([[1, 2]], dtype=torch.int32), torch.tensor([[0, -1]], dtype=torch.int32)
    targets = LabelTargets(semantic, mask, torch.tensor([[3.0, 1.0]]), 1, 2, 2)
    entropy, presence, overlap = label_sums(channels, targets, backend=backend)
    assert entropy.item() == pytest.approx(-(3 * math.log(0.25 + EPSILON) + math.log(1 + EPSILON)), rel=1e-6)
    expected = torch.tensor([0.75, -math.log(0.5) - math.log(0.75)])
    torch.testing.assert_close(presence[:, 0], expected)
    torch.testing.assert_close(overlap[:, 0, 0], torch.tensor([0.5, 0.0]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_unlabelled_pixels_have_no_say(backend: Backend) -> None:
    labels = random_labels()
    unlabelled = labels.targets.semantic == 0
    other = labels.channels.clone()
    other[unlabelled] = 0.5
    for mine, theirs in zip(labels.sums(labels.channels, backend), labels.sums(other, backend), strict=True):
        assert torch.equal(mine, theirs)
    channels = labels.channels.clone().requires_grad_()
    sums = labels.sums(channels, backend)
    (grad,) = torch.autograd.grad(list(sums), channels, upstream_of(sums))
    assert not grad[unlabelled].any()
    assert grad[~unlabelled].any()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_weights_of_zero_leave_no_cross_entropy(backend: Backend) -> None:
    labels = random_labels()
    silent = replace(labels, targets=labels.targets._replace(weight=torch.zeros_like(labels.targets.weight)))
    channels = labels.channels.clone().requires_grad_()
    entropy = silent.sums(channels, backend).entropy
    (grad,) = torch.autograd.grad(entropy, channels)
    assert entropy == 0
    assert not grad.any()


def test_views_of_other_layouts_give_the_same_as_copies() -> None:
    labels = random_labels()
    expected = labels.sums(labels.channels, "cpu")
    turned = labels.channels.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    sliced = torch.cat([torch.rand(23, 31, 6), labels.channels], dim=-1)[..., 6:]
    for view in (turned, sliced):
        assert not view.is_contiguous()
        for mine, theirs in zip(labels.sums(view, "cpu"), expected, strict=True):
            assert torch.equal(mine, theirs)


def test_a_large_epsilon_and_a_small_one_are_kept_to() -> None:
    """The product of several shares, of which one logarithm is taken, must not leave float32."""
    for epsilon in (1e-6, 1e-2, 0.3):
        labels = saturated_labels()
        labels = replace(labels, targets=labels.targets._replace(epsilon=epsilon))
        expected = labels.sums(labels.channels.double(), "reference")
        found = labels.sums(labels.channels, "cpu")
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-2 if epsilon < 1e-5 else 1e-4, atol=1e-2)


@pytest.mark.usefixtures("_threads_restored")
def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    labels = random_labels(60, 80, queries=30, masks=9, seed=7)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        channels = labels.channels.clone().requires_grad_()
        sums = labels.sums(channels, "cpu")
        results.append([*sums, *torch.autograd.grad(list(sums), channels, upstream_of(sums))])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantic": torch.full((23, 31), 6, dtype=torch.int32)}, "a class has no channel"),
        ({"mask": torch.full((23, 31), 4, dtype=torch.int32)}, "a mask's number is too large"),
        ({"weight": torch.ones(23, 30)}, r"maps must be \[H, W\]"),
        ({"classes": 6}, "class channels come before queries"),
        ({"first_query": 15}, "class channels come before queries"),
        ({"epsilon": 0.0}, "epsilon must be in"),
    ],
)
def test_targets_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    labels = random_labels()
    with pytest.raises(RuntimeError, match=message):
        label_sums(labels.channels, labels.targets._replace(**changes), backend="cpu")  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------------ in the blend


@dataclass(frozen=True)
class Shown:
    """Geometry, features and labels of a view, and targets for them."""

    kind: Kind
    width: int
    height: int
    geometry: Tensor
    features: Tensor
    labels: Tensor
    bins: Bins
    targets: LabelTargets

    def blend(self, inputs: list[Tensor], backend: Backend, detached: bool, targets: LabelTargets | None) -> Blended:
        geometry, features, labels = inputs
        return ops.blend(
            geometry,
            features,
            self.bins,
            self.width,
            self.height,
            kind=self.kind,
            near=NEAR,
            labels=labels,
            detached=detached,
            targets=None if targets is None else cast(targets, geometry.dtype),
            backend=backend,
        )


def shown(
    kind: Kind, channels: int = 6, classes: int = 5, queries: int = 37, masks: int = 4, labelled: float = 0.8,
    logits: bool = False, size: tuple[int, int] = (45, 33), gap: int = 0,
) -> Shown:  # fmt: skip
    width, height = size
    case = random_case(200, width, height, seed=16, size=-2.5)
    # The reference's, the same for every instruction set: which pixels a Gaussian just reaches must not depend on it.
    geometry = ops.project(*case.parameters, case.camera, kind=kind, near=NEAR, backend="reference").geometry.float()
    g = torch.Generator().manual_seed(22)
    semantic = 2 * torch.randn(len(geometry), classes, generator=g)
    labels = torch.cat(
        [
            semantic if logits else semantic.softmax(-1),
            torch.rand(len(geometry), gap, generator=g),
            (2 * torch.randn(len(geometry), queries, generator=g)).softmax(-1),
        ],
        dim=-1,
    )
    targets = random_targets(height, width, classes, classes + gap, masks, labelled, 23, logits)
    bins = ops.bin(geometry, width, height, kind=kind, backend="cpu")
    return Shown(kind, width, height, geometry, torch.rand(len(geometry), channels, generator=g), labels, bins, targets)


VIEWS = {
    "as in training": {},
    "whole tiles": {"size": (48, 32)},
    "less than a block": {"size": (3, 2)},
    "one pixel beyond a tile": {"size": (17, 33)},
    "as many channels as a register": {"channels": 3, "classes": 4, "queries": 9},
    "no features": {"channels": 0},
    "features in several registers": {"channels": 33},
    "no mask": {"masks": 0},
    "many masks": {"masks": 60},
    "no query": {"queries": 0},
    "no class": {"classes": 0},
    "features before queries": {"classes": 0, "gap": 16},
    "logits": {"logits": True},
    "nothing labelled": {"labelled": -1.0},
}


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VIEWS)
def test_blended_sums_agree_with_the_reference(name: str, kind: Kind, detached: bool) -> None:
    """Values, and gradients through the sums alone."""
    view = shown(kind, **VIEWS[name])
    inputs = [view.geometry, view.features, view.labels]
    exact, single = doubles(inputs), singles(inputs)
    expected = view.blend(exact, "reference", detached, view.targets)
    found = view.blend(single, "cpu", detached, view.targets)
    assert expected.sums is not None
    assert found.sums is not None
    assert_sums_agree(found.sums, expected.sums, view.width * view.height)
    upstream = upstream_of(found.sums)
    mine = torch.autograd.grad(list(found.sums), single, upstream)
    theirs = reference_gradients(expected.sums, exact, upstream)
    assert_close(mine[0], theirs[0], 2e-4, "gradient of geometry", dim=0)
    assert not mine[1].any()
    assert_close(mine[2], theirs[2], 2e-5, "gradient of labels")
    assert mine[0].any() == (not detached and name != "nothing labelled")


@pytest.mark.parametrize("isa", ["v4", "v3", "portable"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_sums_and_images_add_up(kind: Kind, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANBENCH_ISA", isa)
    view = shown(kind)
    inputs = [view.geometry, view.features, view.labels]
    exact, single = doubles(inputs), singles(inputs)
    expected = view.blend(exact, "reference", False, view.targets)
    found = view.blend(single, "cpu", False, view.targets)
    assert expected.sums is not None
    assert found.sums is not None
    outputs = [*found[:5], *found.sums]
    upstream = [random_like(t, seed) for seed, t in enumerate(outputs)]
    mine = torch.autograd.grad(outputs, single, upstream)
    theirs = torch.autograd.grad([*expected[:5], *expected.sums], exact, [u.double() for u in upstream])
    assert_close(mine[0], theirs[0], 2e-4, "gradient of geometry", dim=0)
    assert_close(mine[1], theirs[1], 2e-5, "gradient of features")
    assert_close(mine[2], theirs[2], 2e-5, "gradient of labels")


@pytest.mark.parametrize("kind", KINDS)
def test_blended_sums_are_those_of_the_label_image(kind: Kind) -> None:
    view = shown(kind)
    inputs = [view.geometry, view.features, view.labels]
    blended = view.blend(inputs, "cpu", False, view.targets)
    assert blended.sums is not None
    apart = label_sums(blended.labels, view.targets, backend="cpu")
    for mine, theirs in zip(blended.sums, apart, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=1e-5)
    without = view.blend(inputs, "cpu", False, None)
    assert without.sums is None
    for mine, theirs in zip(blended[:5], without[:5], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_a_blend_do_not_depend_on_the_number_of_threads(kind: Kind) -> None:
    view = shown(kind, size=(150, 110))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        single = singles([view.geometry, view.features, view.labels])
        out = view.blend(single, "cpu", False, view.targets)
        assert out.sums is not None
        outputs = [out.image, out.labels, *out.sums]
        upstream = [random_like(t, seed) for seed, t in enumerate(outputs)]
        results.append([*outputs, *torch.autograd.grad(outputs, single, upstream)])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)


def test_a_blend_without_any_channel_is_refused() -> None:
    view = shown("disc")
    with pytest.raises(RuntimeError, match="there must be a channel"):
        view.blend([view.geometry, view.features[:, :0], view.labels[:, :0]], "cpu", False, None)
