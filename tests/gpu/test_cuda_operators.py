"""Every operator on a GPU against the C++ back end, and one whole view against the reference in float64.

Nothing here can run without a GPU; docs/gpu.md says what has been run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from exercise import label_targets
from torch import Tensor
from views import CASES, KINDS, NEAR, Case, assert_close, random_case, random_like, singles

from panbench import ops
from panbench.ops.backend import Backend, load_cpu, load_cuda
from panbench.ops.project import KIND_CODE, Kind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
DEVICES: tuple[Backend, Backend] = ("cpu", "cuda")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()
    load_cuda()


@pytest.fixture(params=["highest", "high"])
def tolerance(request: pytest.FixtureRequest) -> Iterator[float]:
    """Relative error allowed with products in float32 and on tensor cores."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield 2e-4 if request.param == "highest" else 5e-3
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def on(device: str, tensors: list[Tensor]) -> list[Tensor]:
    return [t.to(device).requires_grad_(t.is_floating_point()) for t in singles(tensors)]


def compare(found: Tensor, expected: Tensor, tolerance: float, what: str, share: float = 5e-3) -> None:
    """Entries off by more than the tolerance must be few: those of pixels at a threshold."""
    found, expected = found.detach().cpu(), expected.detach()
    assert found.shape == expected.shape, what
    assert found.isfinite().all(), what
    if found.numel():
        off = (found - expected).abs() > tolerance * expected.abs().max() + 1e-6
        assert off.float().mean() <= share, f"{what}: {off.sum()} of {off.numel()} entries differ"


@pytest.mark.parametrize("kind", KINDS)
def test_projections_and_tile_lists_agree(case: Case, kind: Kind) -> None:
    results = []
    for device in DEVICES:
        inputs = on(device, case.parameters)
        found = ops.project(*inputs, case.camera.to(device), kind=kind, near=NEAR)
        bins = ops.bin(found.geometry, case.width, case.height, kind=kind)
        upstream = [random_like(t, k).to(device) for k, t in enumerate(found[1:])]
        grads = torch.autograd.grad(list(found[1:]), inputs, upstream) if len(found.ids) else ()
        results.append((found, bins, grads))
    (expected, lists, theirs), (found, mine_lists, mine) = results
    assert found.ids.cpu().tolist() == expected.ids.tolist()
    compare(found.geometry, expected.geometry, 1e-5, "geometry")
    # A box may just touch, or just miss, a tile.
    compare(mine_lists.tile_offsets.diff().float(), lists.tile_offsets.diff().float(), 1e-6, "tiles", share=0.05)
    for a, b in zip(mine, theirs, strict=True):
        compare(a, b, 1e-4, "gradient")


Sizes = tuple[int, int, bool | int, int, bool]
"""Features, labels, which labels are detached, classes, and whether these are logits."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 0, False, 0, False),
        (2, 1, True, 0, False),
        (3, 5, True, 2, False),
        (9, 0, False, 0, False),
        (7, 20, True, 8, True),
        (0, 64, True, 20, False),
        (7, 128, True, 20, False),
        (3, 257, False, 200, True),
        (3, 5, 2, 2, False),
        (20, 60, 40, 20, False),
        (7, 200, 150, 50, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
def test_blended_pictures_and_sums_agree(kind: Kind, sizes: Sizes, tolerance: float, options: bool) -> None:
    check_blending(random_case(1500, 200, 133, seed=14), kind, sizes, tolerance, options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
def test_awkward_pictures_agree(case: Case, kind: Kind, tolerance: float, options: bool) -> None:
    check_blending(case, kind, (3, 17, True, 5, False), tolerance, options)


@pytest.mark.parametrize("flat", [-20.0, -30.0, -1e10])
def test_flat_ellipsoids_agree(flat: float, tolerance: float) -> None:
    """Surfels: without extent along their normals."""
    case = random_case(800, 120, 90, seed=35, size=-2.0)
    scales = torch.cat([case.log_scales[:, :2], torch.full((800, 1), flat)], dim=-1)
    check_blending(replace(case, log_scales=scales), "ellipsoid", (6, 0, False, 0, False), tolerance, True)


def targets_of(height: int, width: int, classes: int, logits: bool, device: str) -> ops.LabelTargets:
    semantic, mask, weight = (t.to(device) for t in label_targets(height, width, classes, 12))
    return ops.LabelTargets(semantic, mask, weight, 12, classes, classes, logits, 1e-2)


def check_blending(case: Case, kind: Kind, sizes: Sizes, tolerance: float, options: bool) -> None:
    """options: with distortion and, of ellipsoids, absolute gradients."""
    channels, label_count, detached, classes, logits = sizes
    camera, generator = case.camera, torch.Generator().manual_seed(1)
    geometry = ops.project(*case.parameters, camera, kind=kind, near=NEAR, backend="cpu").geometry
    features, labels = (torch.rand(len(geometry), n, generator=generator) for n in (channels, label_count))
    bins = ops.bin(geometry, case.width, case.height, kind=kind, backend="cpu")
    results: list[list[Tensor]] = []
    for device in DEVICES:
        inputs = on(device, [geometry, features, labels])
        lists = ops.Bins(*(t.to(device) for t in bins))
        watched = options and kind == "ellipsoid"
        absolute = torch.zeros(len(geometry), 2, device=device, requires_grad=True) if watched else None
        blended = ops.blend(
            *inputs[:2],
            lists,
            case.width,
            case.height,
            kind=kind,
            near=NEAR,
            labels=inputs[2],
            detached=detached,
            targets=targets_of(case.height, case.width, classes, logits, device),
            distort=options,
            absolute=absolute,
        )
        assert blended.sums is not None
        out = [*blended[:5], *blended.sums, *([] if blended.distortion is None else [blended.distortion])]
        upstream = [random_like(m, seed).to(device) for seed, m in enumerate(out)]
        differentiable = [k for k, m in enumerate(out) if m.requires_grad]
        leaves = [*inputs, *([] if absolute is None else [absolute])]
        grads = torch.autograd.grad([out[k] for k in differentiable], leaves, [upstream[k] for k in differentiable])
        results.append([*out, *grads])
    names = [*ops.Blended._fields[:5], *ops.LabelSums._fields, *["distortion"] * options]
    names += ["geometry", "features", "labels", *["absolute"] * (options and kind == "ellipsoid")]
    for name, expected, found in zip(names, *results, strict=True):
        compare(found, expected, tolerance, name)


@pytest.mark.parametrize("logits", [False, True])
def test_label_sums_agree(logits: bool) -> None:
    values = torch.rand(70, 90, 60, generator=torch.Generator().manual_seed(2))
    results: list[list[Tensor]] = []
    for device in DEVICES:
        [labels] = on(device, [values])
        sums = ops.label_sums(labels, targets_of(70, 90, 15, logits, device))
        upstream = [random_like(t, k).to(device) for k, t in enumerate(sums)]
        results.append([*sums, *torch.autograd.grad(list(sums), labels, upstream)])
    for expected, found in zip(*results, strict=True):
        assert_close(found.detach().cpu(), expected.detach().double(), 2e-5, "sum or gradient")


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(("rows", "queries", "dim"), [(1, 1, 1), (0, 4, 8), (65, 33, 33), (3000, 120, 32), (20, 7, 70)])
def test_attention_agrees(rows: int, queries: int, dim: int, logarithm: bool) -> None:
    g = torch.Generator().manual_seed(rows)
    sizes = ((rows, dim), (rows, 3), (queries, dim), (queries, 3), (queries, 3), (queries, 4))
    values = [torch.randn(size, generator=g) for size in sizes]
    results = []
    for device in DEVICES:
        inputs = on(device, values)
        found = ops.attend(*inputs, logarithm=logarithm)
        results.append([found, *torch.autograd.grad(found, inputs, random_like(found, 1).to(device))])
    for expected, found in zip(*results, strict=True):
        assert_close(found.detach().cpu(), expected.detach().double(), 1e-4, "attention or gradient")


@pytest.mark.parametrize("rest", [None, -3.0])
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(("rows", "queries", "dim"), [(1, 1, 1), (0, 4, 8), (65, 33, 33), (3000, 120, 32)])
def test_shares_agree(rows: int, queries: int, dim: int, logarithm: bool, rest: float | None) -> None:
    g = torch.Generator().manual_seed(rows)
    sizes = ((rows, dim), (rows, 3), (queries, dim), (queries, 3), (queries, 3), (queries, 4))
    values = [torch.randn(size, generator=g) for size in sizes]
    results: list[list[Tensor]] = []
    for device in DEVICES:
        inputs = on(device, values)
        found = ops.attend_shares(*inputs, logarithm=logarithm, temperature=1.7, rest=rest)
        results.append([found, *torch.autograd.grad(found, inputs, random_like(found, 1).to(device))])
    for expected, found in zip(*results, strict=True):
        assert_close(found.detach().cpu(), expected.detach().double(), 2e-4, "shares or gradient")


def test_harmonics_losses_of_images_and_rows_agree() -> None:
    g = torch.Generator().manual_seed(2)
    coefficients = [torch.randn(500, *size, generator=g) for size in [(3,), (15, 3), (3,)]]
    images = [torch.rand(70, 90, 3, generator=g) for _ in "xy"]
    depth = 1 + torch.rand(70, 90, generator=g)
    camera = random_case(1, 90, 70).camera
    results: list[list[Tensor]] = []
    for device in DEVICES:
        inputs = on(device, [*coefficients, images[0], depth])
        ids, position = torch.arange(0, 500, 3, device=device), torch.tensor([5.0, -4.0, 6.0], device=device)
        target = images[1].to(device)
        normals = ops.depth_normals(inputs[4], camera.to(device))
        out = [
            ops.spherical_harmonics(*inputs[:3], position, ids, 3),
            ops.ssim(inputs[3], target),
            ops.photometric_loss(inputs[3], target, 0.2),
            ops.take_rows(inputs[0], ids),
            normals,
            ops.normal_loss(normals, torch.nn.functional.normalize(target, dim=-1)),
        ]
        upstream = [torch.ones_like(t) for t in out]
        results.append([*out, *torch.autograd.grad(out, inputs, upstream)])
    for expected, found in zip(*results, strict=True):
        assert_close(found.detach().cpu(), expected.detach().double(), 1e-4, "value or gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_work_goes_to_the_current_stream(kind: Kind) -> None:
    """On a stream of its own, behind work that makes its input."""
    case = random_case(2000, 160, 120)
    inputs = [t.cuda() for t in case.parameters]
    camera = case.camera.to("cuda")
    expected = ops.project(*inputs, camera, kind=kind, near=NEAR)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = [t + 0 for t in inputs]
        found = ops.project(*late, camera, kind=kind, near=NEAR)
    stream.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_registered_operators_pass_torchs_own_check(kind: Kind) -> None:
    case = random_case(40, 33, 20)
    geometry = ops.project(*(t.cuda() for t in case.parameters), case.camera.to("cuda"), kind=kind, near=NEAR).geometry
    bins = ops.bin(geometry, 33, 20, kind=kind)
    features, labels = (torch.rand(len(geometry), n, device="cuda") for n in (3, 9))
    targets = targets_of(20, 33, 4, False, "cuda")
    settings = (33, 20, KIND_CODE[kind], 5, NEAR)
    arguments = (geometry, features, labels, *bins, *targets[:3], *settings, *targets[3:])
    torch.library.opcheck(torch.ops.panbench.blend.default, arguments)
    absolute = torch.zeros(len(geometry), 2, device="cuda") if kind == "ellipsoid" else None
    torch.library.opcheck(torch.ops.panbench.blend.default, (*arguments, True, absolute))
    torch.library.opcheck(torch.ops.panbench.label_sums.default, (torch.rand(20, 33, 9, device="cuda"), *targets))
