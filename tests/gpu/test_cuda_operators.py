"""Every operator on a GPU against the C++ back end, and one whole view against the reference in float64.

Nothing here can run without a GPU; docs/gpu.md says what has been run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "detached"), [(1, 0), (3, 1), (9, 0), (17, 4), (64, 64), (130, 127), (260, 3)])
def test_blended_pictures_agree(kind: Kind, channels: int, detached: int, tolerance: float) -> None:
    check_blending(random_case(1500, 200, 133, seed=14), kind, channels, detached, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_awkward_pictures_agree(case: Case, kind: Kind, tolerance: float) -> None:
    check_blending(case, kind, 20, 2, tolerance)


def check_blending(case: Case, kind: Kind, channels: int, detached: int, tolerance: float) -> None:
    camera = case.camera
    geometry = ops.project(*case.parameters, camera, kind=kind, near=NEAR, backend="cpu").geometry
    features = torch.rand(len(geometry), channels, generator=torch.Generator().manual_seed(1))
    bins = ops.bin(geometry, case.width, case.height, kind=kind, backend="cpu")
    results = []
    for device in DEVICES:
        inputs = on(device, [geometry, features])
        lists = ops.Bins(*(t.to(device) for t in bins))
        out = ops.blend(*inputs, lists, case.width, case.height, kind=kind, near=NEAR, detached=detached)
        upstream = [random_like(m, seed).to(device) for seed, m in enumerate(out)]
        results.append([*out, *torch.autograd.grad(list(out), inputs, upstream)])
    names = (*ops.Blended._fields, "gradient of geometry", "gradient of features")
    for name, expected, found in zip(names, *results, strict=True):
        compare(found, expected, tolerance, name)


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


def test_harmonics_ssim_and_mask_losses_agree() -> None:
    g = torch.Generator().manual_seed(2)
    coefficients = [torch.randn(500, *size, generator=g) for size in [(3,), (15, 3), (3,)]]
    images = [torch.rand(70, 90, 3, generator=g) for _ in "xy"]
    labels = torch.rand(70, 90, 60, generator=g)
    masks = torch.randint(0, 6, (70, 90), generator=g), torch.randint(-1, 40, (70, 90), generator=g)
    columns, weight = 5 + torch.randperm(55, generator=g)[:40], torch.rand(70, 90, generator=g)
    results = []
    for device in DEVICES:
        inputs = on(device, [*coefficients, images[0], labels])
        ids, position = torch.arange(0, 500, 3, device=device), torch.tensor([5.0, -4.0, 6.0], device=device)
        out = [
            ops.spherical_harmonics(*inputs[:3], position, ids, 3),
            ops.ssim(inputs[3], images[1].to(device)),
            ops.mask_losses(inputs[4], *(t.to(device) for t in (*masks, columns, weight))),
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
    arguments = (geometry, torch.rand(len(geometry), 12, device="cuda"), *bins, 33, 20, KIND_CODE[kind], 2, NEAR)
    torch.library.opcheck(torch.ops.panbench.blend.default, arguments)
