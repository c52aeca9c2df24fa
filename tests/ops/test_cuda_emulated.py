"""The CUDA kernels, run on the CPU by the emulator: the text that nvcc compiles, but not the machine it is for.

They are held to the C++ back end where both compute in float32, and to the reference in float64 where pixels at a
threshold must be left out (see test_backends_agree.py). Barriers are shown to be needed by leaving each one out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from emulated import ORDERS, Emulator, library, operators
from exercise import WORK, blended, crowded, label_targets
from torch import Tensor
from views import CASES, NEAR, Case, agreeing_pixels, assert_close, doubles, masked_upstream, random_case, random_like

from panbench.ops import reference
from panbench.ops.backend import load_cpu
from panbench.ops.build import compiler
from panbench.ops.cuda import Library, Operators
from panbench.ops.project import KIND_CODE, Kind
from panbench.ops.reference.label_sums import LabelTargets
from panbench.ops.reference.project import rotation_matrices

KINDS: list[Kind] = ["ellipsoid", "disc"]
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def cuda() -> Operators:
    load_cpu()
    return operators()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    emulator = Emulator()
    emulator.configure()
    yield emulator
    emulator.configure()
    emulator.limit_shared_memory(227)


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def view_arguments(case: Case, kind: Kind) -> tuple[object, ...]:
    camera = case.camera
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, KIND_CODE[kind], NEAR, 0.3)
    return (*case.parameters, camera.world_to_camera, *numbers)


# ------------------------------------------------------------------------------------------ against the C++ back end


@pytest.mark.parametrize("kind", KINDS)
def test_projection_and_tile_lists_are_those_of_the_cpu(cuda: Operators, case: Case, kind: Kind) -> None:
    check_projection(cuda, case, kind)


def check_projection(cuda: Operators, case: Case, kind: Kind) -> None:
    cpu = torch.ops.panbench
    arguments = view_arguments(case, kind)
    expected, found = cpu.project(*arguments), cuda.project(*arguments)
    assert torch.equal(found[0], expected[0])
    # Either back end rounds in its own way; discs that all but reach the camera plane show it most.
    assert_close(found[1], expected[1].double(), 5e-5, "geometry", dim=0)
    # Which way a normal at right angles to the view faces is rounding.
    turned = (found[2] * expected[2]).sum(-1) < 0
    means, pose = arguments[0], arguments[4]
    points = means[expected[0]] @ pose[:3, :3].T + pose[:3, 3]
    assert ((expected[2] * points).sum(-1).abs() < 1e-5 * points.norm(dim=-1))[turned].all()
    assert_close(found[2][~turned], expected[2][~turned].double(), 1e-5, "normals")
    upstream = [random_like(t, seed) for seed, t in enumerate(expected[1:])]
    upstream[1][turned] = 0
    for mine, theirs in zip(
        cuda.project_backward(*arguments, expected[0], *upstream),
        cpu.project_backward(*arguments, expected[0], *upstream),
        strict=True,
    ):
        assert_close(mine, theirs.double(), 5e-5, "gradient")
    size = (expected[1], case.width, case.height, KIND_CODE[kind])
    for mine, theirs in zip(cuda.bin(*size), cpu.bin(*size), strict=True):
        assert torch.equal(mine, theirs)


Gradients = set[str]
MAPS = ("image", "label_image", "alpha", "depth", "median", "entropy", "presence", "overlap", "distortion")
ALL: Gradients = set(MAPS)
PICTURES = (0, 1, 2, 3, 4, 8)  # those that are [H, W, ...]


class LabelCase(NamedTuple):
    """How many channels there are, and what is asked of labels."""

    features: int
    labels: int
    detached: bool | int = False
    classes: int = 0
    first_query: int = 0
    masks: int = 5
    logits: bool = False


def check_blending(
    cuda: Operators, case: Case, kind: Kind, asked: LabelCase, tolerance: float = 2e-5, given: Gradients = ALL
) -> None:
    """Against the reference in float64, on the CUDA tile lists: maps, sums, and the gradients of those that are given.

    Gradients of ellipsoids' means are also compared as sums of absolute values.

    The emulated kernels are compiled without fused multiply-add, so that the geometry gradients of badly conditioned
    discs lose a digit more than those of the CPU kernels do; so do, a little, the weights of discs seen from the edge.
    """
    generator = torch.Generator().manual_seed(21)
    geometry = torch.ops.panbench.project(*view_arguments(case, kind))[1]
    features, labels = (torch.rand(len(geometry), n, generator=generator) for n in (asked.features, asked.labels))
    # Some queries lie where their probabilities are clamped.
    labels[:, asked.first_query :][:, ::5] = 0.0
    size, code = (case.width, case.height), KIND_CODE[kind]
    lists = cuda.bin(geometry, *size, code)
    inputs = (geometry, features, labels)
    exact = doubles([*inputs])
    watched = torch.zeros(len(geometry), 2).double().requires_grad_() if kind == "ellipsoid" else None
    still = asked.labels if asked.detached is True else int(asked.detached)
    *maps, alpha, depth, median, distortion = reference.blend(
        exact[0],
        torch.cat(exact[1:], 1),
        *lists,
        *size,
        kind=kind,
        detached=still,
        near=NEAR,
        distort=True,
        absolute=watched,
    )
    assert distortion is not None
    expected = [*maps[0].split([asked.features, asked.labels], -1), alpha, depth, median]
    arguments = (*inputs, *lists, None, None, None, *size, code, still, NEAR, 0, 0, asked.labels, False, 1e-4)
    plain, full = cuda.blend(*arguments), cuda.blend(*arguments, True)
    assert [tuple(t.shape) for t in plain[5:]] == [(), (2, 0), (2, 0, 0), (0, 0)]
    assert all(torch.equal(a, b) for a, b in zip(full[:8], plain[:8], strict=True))
    present = [k for k in range(5) if plain[k].numel()]
    if tolerance > 1e-4:
        for k in present[:2]:
            assert_close(plain[k], expected[k].detach(), tolerance, MAPS[k])
        agree = torch.ones(case.height, case.width, dtype=torch.bool)
    else:
        agree = agreeing_pixels([*(plain[k] for k in present), full[8]], [*(expected[k] for k in present), distortion])
    semantic, mask, weight = label_targets(case.height, case.width, asked.classes, asked.masks)
    # Sums would not agree where pixels do not.
    targets = LabelTargets(
        semantic * agree, mask, weight, asked.masks, asked.classes, asked.first_query, asked.logits, 1e-2
    )
    numbers = targets[3:]
    settings = (*inputs, *lists, *targets[:3], *size, code, still, NEAR, *numbers)
    found = cuda.blend(*settings, True)
    assert all(torch.equal(found[k], full[k]) for k in PICTURES)
    expected += [*reference.label_sums(expected[1], targets._replace(weight=weight.double())), distortion]
    for k in range(5, 8):
        assert_close(found[k], expected[k].detach(), tolerance, MAPS[k])
    upstream = [random_like(t, 9) for t in found]
    for k, masked in zip(PICTURES, masked_upstream([found[k] for k in PICTURES], agree), strict=True):
        upstream[k] = masked
    chosen = [k for k in range(9) if MAPS[k] in given and expected[k].requires_grad]
    passed = [upstream[k] if k in chosen else None for k in range(9)]
    mine = cuda.blend_backward(*settings, found[1], *passed, watched is not None)
    leaves = exact if watched is None else [*exact, watched]
    theirs = torch.autograd.grad(
        [expected[k] for k in chosen], leaves, [upstream[k].double() for k in chosen], allow_unused=True
    )
    for k, (leaf, wanted) in enumerate(zip(leaves, theirs, strict=True)):
        wanted = torch.zeros_like(leaf) if wanted is None else wanted
        what = f"gradient of {('geometry', 'features', 'labels', 'means, absolute')[k]}"
        allowed = max(1e-3 if k in (0, 3) else 5e-5, tolerance)
        assert_close(mine[k], wanted, allowed, what, dim=0 if k in (0, 3) else None)
    without = cuda.blend_backward(*settings, found[1], *passed)
    assert without[3].shape == (0, 2)
    assert all(torch.equal(a, b) for a, b in zip(without[:3], mine[:3], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "asked",
    [LabelCase(5, 0), LabelCase(3, 4, True, 2, 2), LabelCase(3, 4, 2, 2, 2), LabelCase(18, 14, False, 6, 8, 3, True)],
    ids=str,
)
def test_blended_pictures_agree(cuda: Operators, case: Case, kind: Kind, asked: LabelCase) -> None:
    check_blending(cuda, case, kind, asked)


SIZES = [
    LabelCase(1, 0),
    LabelCase(0, 1),
    LabelCase(0, 1, True),
    LabelCase(3, 0),
    LabelCase(0, 8, True, 3, 3),
    LabelCase(9, 0),
    LabelCase(13, 4, False, 4, 4),
    LabelCase(0, 17, True, 17, 17, 0, True),
    LabelCase(12, 21, True, 9, 9, 7, True),
    LabelCase(0, 33, True, 0, 0, 40),
    LabelCase(44, 20, True, 12, 20),
    LabelCase(7, 128, True, 20, 20, 9),
    LabelCase(64, 1, True, 1, 1, 1),
    LabelCase(150, 0),
    LabelCase(3, 190, False, 150, 150, 3, True),
    LabelCase(130, 130, False, 20, 25, 6),
    LabelCase(0, 8, 1, 3, 3),
    LabelCase(5, 40, 21, 9, 12, 7, True),
    LabelCase(20, 60, 40, 20, 20),
    LabelCase(30, 200, 150, 20, 50),
]


@pytest.mark.parametrize("distort", [False, True], ids=["plain", "distort"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", SIZES, ids=str)
def test_any_number_of_channels_agrees(cuda: Operators, kind: Kind, asked: LabelCase, distort: bool) -> None:
    given = ALL if distort else ALL - {"distortion"}
    check_blending(cuda, random_case(150, 41, 29, seed=14), kind, asked, given=given)


@pytest.mark.parametrize(
    "given",
    [
        {"image"},
        {"label_image"},
        {"alpha", "depth"},
        {"median"},
        {"entropy"},
        {"presence"},
        {"overlap"},
        {"entropy", "presence", "overlap"},
        {"distortion"},
        {"distortion", "median", "presence"},
    ],
    ids=lambda names: "-".join(sorted(names)),
)
@pytest.mark.parametrize("asked", [LabelCase(3, 5, False, 2, 2), LabelCase(4, 30, True, 9, 10, 4, True)], ids=str)
def test_gradients_that_nothing_depends_on_are_left_out(cuda: Operators, asked: LabelCase, given: Gradients) -> None:
    check_blending(cuda, random_case(100, 33, 21, seed=15), "ellipsoid", asked, given=given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "asked",
    [
        LabelCase(9, 0),
        LabelCase(13, 4, True, 2, 2),
        LabelCase(0, 64, True, 20, 20),
        LabelCase(33, 97, True, 10, 10),
        LabelCase(100, 150, False, 20, 20, 5, True),
        LabelCase(20, 60, 40, 20, 20),
    ],
    ids=str,
)
def test_tensor_cores_agree_to_tf32(cuda: Operators, kind: Kind, asked: LabelCase) -> None:
    """Factors keep ten bits of mantissa, so products are off by up to 1e-3, and sums that cancel by more."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check_blending(cuda, random_case(150, 41, 29, seed=14), kind, asked, tolerance=5e-3)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("flat", [-20.0, -30.0, -1e10])
def test_flat_ellipsoids_agree(cuda: Operators, flat: float) -> None:
    """Surfels: without extent along their normals."""
    case = random_case(200, 61, 37, seed=35, size=-2.0)
    case = replace(case, log_scales=torch.cat([case.log_scales[:, :2], torch.full((200, 1), flat)], dim=-1))
    check_projection(cuda, case, "ellipsoid")
    check_blending(cuda, case, "ellipsoid", LabelCase(6, 0))


@pytest.mark.parametrize("kibibytes", [64, 99, 163], ids=["sm_75", "sm_120", "sm_80"])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_kernels_fit_into_the_shared_memory_of_every_device(
    cuda: Operators, emulator: Emulator, kibibytes: int, precision: str
) -> None:
    """And give the same, if they have to take the channels in windows."""
    expected = blended(cuda, crowded(), 1, 7, 130, precision)
    emulator.limit_shared_memory(kibibytes)
    for work in WORK.values():
        work(cuda)
    assert_same(blended(cuda, crowded(), 1, 7, 130, precision), expected)


@pytest.mark.parametrize(
    ("size", "asked", "labelled"),
    [
        ((23, 31), LabelCase(0, 9, False, 5, 5, 4), 0.8),
        ((23, 31), LabelCase(0, 45, False, 5, 6, 40), 0.8),
        ((23, 31), LabelCase(0, 200, False, 20, 20, 12, True), 0.8),
        ((9, 9), LabelCase(0, 7, False, 4, 4, 0), 0.8),
        ((9, 9), LabelCase(0, 4, False, 4, 4, 0, True), 0.8),
        ((1, 1), LabelCase(0, 6, False, 3, 3, 2), 2.0),
        ((8, 9), LabelCase(0, 6, False, 3, 3, 2), -1.0),
        ((17, 5), LabelCase(0, 70, False, 0, 3, 3), 0.8),
    ],
    ids=str,
)
def test_label_sums_agree(cuda: Operators, size: tuple[int, int], asked: LabelCase, labelled: float) -> None:
    labels = torch.rand(*size, asked.labels, generator=torch.Generator().manual_seed(asked.masks))
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.1] = 0.0
    maps = label_targets(*size, asked.classes, asked.masks, labelled)
    targets = LabelTargets(*maps, asked.masks, asked.classes, asked.first_query, asked.logits, 1e-2)
    [exact] = doubles([labels])
    expected = reference.label_sums(exact, targets._replace(weight=targets.weight.double()))
    found = cuda.label_sums(labels, *targets)
    for name, mine, theirs in zip(MAPS[5:8], found, expected, strict=True):
        assert_close(mine, theirs.detach(), 2e-6, name)
    upstream = [random_like(t, 3) for t in found]
    total = sum((theirs * u).sum() for theirs, u in zip(expected, upstream, strict=True))
    gradient = torch.autograd.grad(total, exact)[0]
    assert_close(cuda.label_sums_backward(labels, *targets, *upstream), gradient, 2e-6, "gradient")


def test_classes_without_a_channel_make_the_entropy_nan(cuda: Operators) -> None:
    labels = torch.rand(9, 9, 8)
    semantic, mask, weight = label_targets(9, 9, 4, 3)
    semantic[0, 0] = 5
    sums = cuda.label_sums(labels, semantic, mask, weight, 3, 4, 4, False, 1e-4)
    assert sums[0].isnan()
    assert all(t.isfinite().all() for t in sums[1:])


def test_masks_beyond_the_last_are_none(cuda: Operators) -> None:
    labels = torch.rand(9, 9, 8)
    semantic, mask, weight = label_targets(9, 9, 4, 3)
    numbers = (3, 4, 4, False, 1e-4)
    beyond, none = torch.where(mask == 2, 7, mask), torch.where(mask == 2, -1, mask)
    for a, b in zip(
        cuda.label_sums(labels, semantic, beyond, weight, *numbers),
        cuda.label_sums(labels, semantic, none, weight, *numbers),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(
    ("rows", "queries", "dim"),
    [(300, 5, 3), (1, 1, 1), (0, 4, 8), (50, 16, 32), (65, 33, 33), (130, 120, 32), (20, 7, 70)],
)
def test_attention_agrees(cuda: Operators, rows: int, queries: int, dim: int, logarithm: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, dim), (rows, 3), (queries, dim), (queries, 3), (queries, 3, 3))
    inputs = [torch.randn(size, generator=generator) for size in sizes]
    cpu = torch.ops.panbench
    expected = cpu.attend(*inputs, logarithm)
    assert_close(cuda.attend(*inputs, logarithm), expected.double(), 3e-6, "attention")
    grad = random_like(expected, 1)
    for mine, theirs in zip(
        cuda.attend_backward(*inputs, logarithm, grad), cpu.attend_backward(*inputs, logarithm, grad), strict=True
    ):
        assert_close(mine, theirs.double(), 2e-5, "gradient")


def test_attention_of_saturated_and_distant_pairs_is_finite(cuda: Operators) -> None:
    inputs = [
        torch.tensor([[90.0], [-90.0], [0.0], [30.0]]),
        torch.tensor([[0.0, 0, 0], [0, 0, 0], [60.0, 0, 0], [0, 3.0, 0]]),
        torch.tensor([[1.0], [-1.0]]),
        torch.zeros(2, 3),
        torch.eye(3).repeat(2, 1, 1),
    ]
    cpu = torch.ops.panbench
    for logarithm in (False, True):
        expected = cpu.attend(*inputs, logarithm)
        assert_close(cuda.attend(*inputs, logarithm), expected.double(), 1e-6, "attention")
        grad = torch.ones(4, 2)
        for mine, theirs in zip(
            cuda.attend_backward(*inputs, logarithm, grad), cpu.attend_backward(*inputs, logarithm, grad), strict=True
        ):
            assert_close(mine, theirs.double(), 1e-5, "gradient")


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 40, 3), (40, 1, 3), (7, 5, 1), (33, 47, 2), (32, 16, 3)])
def test_ssim_agrees(cuda: Operators, size: tuple[int, int, int]) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(1))
    y = (x + 0.1 * random_like(x, 2)).clamp(0, 1)
    (value, grad), (expected, expected_grad) = cuda.ssim(x, y), torch.ops.panbench.ssim(x, y)
    assert value.item() == pytest.approx(expected.item(), abs=2e-6)
    assert_close(grad, expected_grad.double(), 1e-4, "gradient")


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("count", [0, 1, 60])
def test_spherical_harmonics_agree(cuda: Operators, degree: int, count: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    inputs = [torch.randn(80, *shape, generator=generator) for shape in [(3,), (15, 3), (3,)]]
    ids = torch.randperm(80, generator=generator)[:count].sort().values
    arguments = (*inputs, torch.tensor([3.0, -2.0, 4.0]), ids, degree)
    cpu = torch.ops.panbench
    expected = cpu.spherical_harmonics(*arguments)
    assert_close(cuda.spherical_harmonics(*arguments), expected.double(), 1e-6, "colours")
    grad = random_like(expected, 1)
    for mine, theirs in zip(
        cuda.spherical_harmonics_backward(*arguments, grad),
        cpu.spherical_harmonics_backward(*arguments, grad),
        strict=True,
    ):
        assert_close(mine, theirs.double(), 1e-5, "gradient")


@pytest.mark.parametrize("rest", [None, -0.7])
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(
    ("rows", "queries", "dim"), [(300, 5, 3), (1, 1, 1), (0, 4, 8), (65, 33, 33), (130, 120, 32), (20, 7, 70)]
)
def test_shares_agree(cuda: Operators, rows: int, queries: int, dim: int, logarithm: bool, rest: float | None) -> None:
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, dim), (rows, 3), (queries, dim), (queries, 3), (queries, 3), (queries, 4))
    *fields, scales, quats = (torch.randn(size, generator=generator) for size in sizes)
    roots = (rotation_matrices(quats).mT * (-scales).exp()[..., None]).contiguous()
    temperature = 1.7
    exact = doubles([*fields, scales, quats])
    logits = temperature * reference.attend(*exact, logarithm=logarithm)
    if rest is not None:
        logits = torch.cat([logits, logits.new_full((rows, 1), temperature * rest)], dim=1)
    expected = logits.softmax(-1)[:, :queries]
    inputs = [*fields, roots]
    shares = cuda.attend_shares(*inputs, logarithm, temperature, rest)
    assert_close(shares, expected.detach(), 2e-5, "shares")
    grad = random_like(shares, 1)
    mine = cuda.attend_shares_backward(*inputs, logarithm, temperature, rest, shares, grad)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    # The roots' gradient goes on to scales and rotations.
    leaves = doubles([scales, quats])
    exact_roots = rotation_matrices(leaves[1]).mT * (-leaves[0]).exp()[..., None]
    found = [*mine[:4], *torch.autograd.grad(exact_roots, leaves, mine[4].double())]
    for gradient, theirs in zip(found, wanted, strict=True):
        assert_close(gradient, theirs, 2e-4, "gradient")


def test_shares_of_saturated_and_distant_pairs_are_finite(cuda: Operators) -> None:
    features = torch.tensor([[90.0], [-90.0], [0.0], [30.0]])
    # The square of the third one's distance is not finite.
    means = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1e20, 0, 0], [0, 3.0, 0]])
    queries, centers = torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 3)
    exact = doubles([features, means, queries, centers])
    unit = torch.tensor([[1.0, 0, 0, 0]]).double().repeat(2, 1)
    logits = reference.attend(*exact, torch.zeros(2, 3).double(), unit, logarithm=True)
    for rest in (None, -5.0):
        shares = cuda.attend_shares(features, means, queries, centers, torch.eye(3).repeat(2, 1, 1), True, 1.0, rest)
        known = logits if rest is None else torch.cat([logits, logits.new_full((4, 1), rest)], dim=1)
        expected = known.softmax(-1)[:, :2].detach()
        assert_close(shares[[0, 1, 3]], expected[[0, 1, 3]], 1e-6, "shares")
        assert shares[2].tolist() == ([0.5, 0.5] if rest is None else [0.0, 0.0])


def test_rows_are_taken_and_put_back(cuda: Operators) -> None:
    values, ids = torch.rand(9, 4), torch.tensor([1, 2, 5, 8])
    assert torch.equal(cuda.take_rows(values, ids), values[ids])
    expected = torch.zeros(9, 4)
    expected[ids] = values[:4]
    assert torch.equal(cuda.take_rows_backward(values[:4], ids, 9), expected)


# ------------------------------------------------------------------------------------------------ fibers and barriers


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs.double(), 1e-5, "output")


@pytest.mark.parametrize("name", WORK)
def test_the_order_of_threads_does_not_matter(cuda: Operators, emulator: Emulator, name: str) -> None:
    expected = WORK[name](cuda)
    for order in ORDERS.values():
        emulator.configure(order)
        assert_same(WORK[name](cuda), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_the_same_to_the_bit_in_any_order_of_threads(
    cuda: Operators, emulator: Emulator, kind: Kind
) -> None:
    pictures = []
    for order in ORDERS.values():
        emulator.configure(order)
        pictures.append(blended(cuda, crowded(), KIND_CODE[kind], 7, 13)[:5])
    for other in pictures[1:]:
        assert all(torch.equal(a, b) for a, b in zip(pictures[0], other, strict=True))


def harm(cuda: Operators, emulator: Emulator, name: str, barrier: str, expected: tuple[Tensor, ...]) -> bool:
    """Whether some order of the threads gives another result, or hangs them, without this barrier."""
    for order in ORDERS.values():
        emulator.configure(order, removed=barrier)
        try:
            assert_same(WORK[name](cuda), expected)
        except (AssertionError, RuntimeError):
            return True
    return False


def test_every_barrier_is_needed(cuda: Operators, emulator: Emulator) -> None:
    """Each one for at least one kind of work."""
    needed: dict[str, bool] = {}
    for name, work in WORK.items():
        emulator.configure()
        expected = work(cuda)
        for barrier in emulator.met():
            needed[barrier] = needed.get(barrier, False) or harm(cuda, emulator, name, barrier, expected)
    assert len(needed) > 15
    assert [barrier for barrier, harmful in needed.items() if not harmful] == []


# ------------------------------------------------------------------------------------------------------ stray accesses


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), *(p for p in sys.path if p)]),
    }
    command = [sys.executable, str(SUPPORT / "exercise.py"), str(library(sanitize=True)), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_no_kernel_reads_or_writes_beyond_its_arrays() -> None:
    answer = run_sanitized()
    assert answer.returncode == 0, answer.stderr[-3000:]


def test_a_write_beyond_an_array_would_be_seen() -> None:
    answer = run_sanitized("--overrun")
    assert answer.returncode != 0
    assert "heap-buffer-overflow" in answer.stderr
    assert "ssim.cu" in answer.stderr


# ------------------------------------------------------------------------------------------------------- Python's part


REGISTRATION = """
import torch
from emulated import operators
from panbench.ops.backend import load_cpu
from panbench.ops.cuda import OPERATORS, register

load_cpu()
register(operators())
assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"panbench::{name}", "CUDA") for name in OPERATORS)
"""


def test_every_operator_can_be_a_kernel_for_cuda_tensors() -> None:
    """What a machine with a GPU does after compiling; in a process of its own, which has no CUDA tensors."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SUPPORT), *(p for p in sys.path if p)])}
    subprocess.run([sys.executable, "-c", REGISTRATION], env=environment, check=True)


def test_wrong_arguments_are_told(cuda: Operators) -> None:
    geometry, features, labels = torch.rand(4, 7), torch.rand(4, 3), torch.rand(4, 5)
    lists = torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    none = (None, None, None)
    size = (16, 16)
    numbers = (0, 0, 5, False, 1e-4)
    with pytest.raises(RuntimeError, match=r"tensor \[4, 13\] on cpu, got torch\.float32 \[4, 7\]"):
        cuda.blend(geometry, features, labels, *lists, *none, *size, 1, False, NEAR, *numbers)
    with pytest.raises(RuntimeError, match="not contiguous"):
        cuda.blend(geometry, torch.rand(3, 4).T, labels, *lists, *none, *size, 0, False, NEAR, *numbers)
    with pytest.raises(RuntimeError, match=r"expected a contiguous torch\.float32"):
        cuda.blend(geometry, features.double(), labels, *lists, *none, *size, 0, False, NEAR, *numbers)
    with pytest.raises(RuntimeError, match="6 of 5 labels cannot be detached"):
        cuda.blend(geometry, features, labels, *lists, *none, *size, 0, 6, NEAR, *numbers)
    discs = torch.rand(4, 13)
    with pytest.raises(RuntimeError, match="only ellipsoids have absolute gradients"):
        cuda.blend(discs, features, labels, *lists, *none, *size, 1, 0, NEAR, *numbers, False, torch.zeros(4, 2))
    with pytest.raises(RuntimeError, match="no channel"):
        cuda.blend(geometry, features[:, :0], labels[:, :0], *lists, *none, *size, 0, False, NEAR, *numbers)
    semantic, mask, weight = label_targets(16, 16, 2, 3)
    with pytest.raises(RuntimeError, match=r"2 of 3 maps, 3 masks, 2 classes .* channel 2 on, for 5 labels"):
        cuda.blend(
            geometry, features, labels, *lists, semantic, None, weight, *size, 0, False, NEAR, 3, 2, 2, False, 1e-4
        )
    with pytest.raises(RuntimeError, match=r"expected a contiguous torch\.int32"):
        cuda.label_sums(torch.rand(16, 16, 5), semantic.long(), mask, weight, 3, 2, 2, False, 1e-4)
    with pytest.raises(RuntimeError, match="3 classes and queries from channel 2"):
        cuda.label_sums(torch.rand(16, 16, 5), semantic, mask, weight, 3, 3, 2, False, 1e-4)


def test_a_failed_launch_is_an_error_with_cudas_message(tmp_path: Path) -> None:
    source, header, path = tmp_path / "fails.cpp", tmp_path / "api.h", tmp_path / "fails.so"
    source.write_text(
        'extern "C" int pb_cuda_blend(const float*, int64_t n, float x, void*) { return n == 3 && x == 0.5f ? 35 : 0; }'
        "\n"
        'extern "C" const char* pb_cuda_error(int code) { return code == 35 ? "driver too old" : "?"; }\n'
    )
    header.write_text(
        "// One declaration (a comment).\nint pb_cuda_blend(const float* a, int64_t n,\n float x, void* stream);\n"
        "const char* pb_cuda_error(int code);\n"
    )
    subprocess.run([compiler()[0], "-include", "cstdint", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    made = Library(path, header, lambda _: nullcontext(0))
    device = torch.device("cpu")
    made.run("blend", device, torch.zeros(1), 4, 0.5)
    with pytest.raises(RuntimeError, match="panbench: CUDA operator blend failed: driver too old"):
        made.run("blend", device, torch.zeros(1), 3, 0.5)
