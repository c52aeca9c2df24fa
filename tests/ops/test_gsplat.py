"""The gsplat back end on a stand-in for that package: what it hands over and what it makes of the answers, against the
reference, in float64. The real package needs a GPU (tests/gpu/test_gsplat.py)."""

from __future__ import annotations

import importlib.util
import types
from dataclasses import replace

import pytest
import torch
from fake_gsplat import install
from torch import Tensor
from views import KINDS, NEAR, Case, doubles, random_case, random_like, spoilt

from panbench import ops
from panbench.errors import UserError
from panbench.ops import backend, gsplat
from panbench.ops.backend import Backend
from panbench.ops.project import Kind


@pytest.fixture(autouse=True)
def _own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_state", backend._State())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The stand-in, as if a GPU were there and tensors on the CPU lay on it."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(backend._DEVICES, "gsplat", "cpu")
    return install(monkeypatch)


def tame(case: Case) -> Case:
    """Without alphas above 0.99, where gsplat's limit is another."""
    return replace(case, opacity_logits=case.opacity_logits.clamp(max=4.0))


def drawn_alike(geometry: Tensor, size: tuple[int, int]) -> Tensor:
    """The discs [M, 13] that no pixel of the picture hits in front of the near plane, where only gsplat draws them."""
    m = geometry[:, :9].unflatten(-1, (3, 3))
    x, y = (t.flatten()[:, None, None] for t in torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="xy"))
    zeta = torch.linalg.cross(x * m[:, 2] - m[:, 0], y * m[:, 2] - m[:, 1])
    hit = zeta[..., :2] / zeta[..., 2:]
    depth = (hit * m[:, 2, :2]).sum(-1) + m[:, 2, 2]
    away = geometry[:, 9:11] - torch.cat([x, y], dim=-1)
    distance = torch.minimum(hit.square().sum(-1), 2 * away.square().sum(-1))
    return geometry[~((distance < 12) & (depth < NEAR)).any(0)]


CASES = {
    "random": lambda: tame(random_case(60, 37, 21, seed=61, size=-2.5)),
    "crowded": lambda: tame(random_case(150, 20, 17, seed=62, size=-2.0, opacity=1.0)),
    "spoilt": lambda: tame(replace(spoilt(), width=23, height=19)),
    "one pixel": lambda: tame(random_case(40, 1, 1, seed=63, size=-1.5)),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def project(case: Case, kind: Kind, parameters: list[Tensor], name: Backend) -> ops.Projected:
    means, quats, log_scales, logits = parameters
    return ops.project(means, quats, log_scales, logits, case.camera, kind=kind, near=NEAR, backend=name)


def same(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("fake")
def test_projections_agree_on_what_both_see(case: Case, kind: Kind) -> None:
    mine, theirs = doubles(case.parameters), doubles(case.parameters)
    found, expected = project(case, kind, mine, "gsplat"), project(case, kind, theirs, "reference")
    # gsplat's boxes are rounded up to whole pixels, so it may keep what only just cannot be seen.
    rows = torch.searchsorted(found.ids, expected.ids)
    assert torch.equal(found.ids[rows], expected.ids)
    assert (found.ids.diff() > 0).all()
    same(found.geometry[rows], expected.geometry, "geometry")
    same(found.normals[rows], expected.normals, "normals")
    upstream = [random_like(t, seed).double() for seed, t in enumerate(expected[1:])]
    for name, a, b in zip(
        ("means", "quats", "log_scales", "opacity_logits"),
        torch.autograd.grad([found.geometry[rows], found.normals[rows]], mine, upstream),
        torch.autograd.grad([expected.geometry, expected.normals], theirs, upstream),
        strict=True,
    ):
        same(a, b, f"gradient of {name}")


@pytest.mark.parametrize(
    ("channels", "labels", "detached"), [(5, 0, False), (3, 2, True), (0, 5, True), (2, 3, False), (2, 5, 3)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("fake")
def test_blended_pictures_agree(case: Case, kind: Kind, channels: int, labels: int, detached: bool | int) -> None:
    geometry = project(case, kind, doubles(case.parameters), "reference").geometry.detach()
    size = (case.width, case.height)
    if kind == "disc":
        geometry = drawn_alike(geometry, size)
    assert len(geometry) > 5
    bins = ops.bin(geometry, *size, kind=kind, backend="gsplat")
    assert bins.tile_offsets.dtype == bins.tile_ids.dtype == torch.int32
    assert bins.tile_offsets[-1] == len(bins.tile_ids)
    results: list[list[Tensor]] = []
    for name in ("gsplat", "reference"):
        values = [random_like(torch.empty(len(geometry), count), count) for count in (channels, labels)]
        inputs = doubles([geometry, *values])
        lists = bins if name == "gsplat" else ops.bin(inputs[0], *size, kind=kind, backend="reference")
        out = ops.blend(
            *(inputs[0], inputs[1], lists, *size),
            kind=kind, near=NEAR, labels=inputs[2], detached=detached, distort=True, backend=name,
        )  # fmt: skip
        assert out.distortion is not None
        maps = [out.image, out.labels, out.alpha, out.depth, out.median, out.distortion]
        upstream = [random_like(m, seed).double() for seed, m in enumerate(maps)]
        results.append([*maps, *torch.autograd.grad(maps, inputs, upstream)])
    names = ("image", "labels", "alpha", "depth", "median", "distortion")
    names += ("gradient of geometry", "gradient of features", "gradient of labels")
    for name, found, expected in zip(names, *results, strict=True):
        same(found, expected, name)


@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.usefixtures("fake")
def test_absolute_gradients_are_the_packages_own(case: Case, channels: int) -> None:
    """Of all channels at once, though more than are drawn at once elsewhere, and none of detached labels."""
    geometry = project(case, "ellipsoid", doubles(case.parameters), "reference").geometry.detach()
    size = (case.width, case.height)
    results: list[list[Tensor]] = []
    for name in ("gsplat", "reference"):
        leaf = geometry.clone().requires_grad_()
        absolute = torch.zeros(len(leaf), 2).double().requires_grad_()
        values, labels = (random_like(torch.empty(len(leaf), count), count).double() for count in (channels, 2))
        bins = ops.bin(leaf, *size, kind="ellipsoid", backend=name)
        asked = {"labels": labels, "detached": True, "absolute": absolute, "backend": name}
        out = ops.blend(leaf, values, bins, *size, kind="ellipsoid", near=NEAR, **asked)
        maps = [out.image, out.alpha, out.depth]
        upstream = [random_like(m, seed).double() for seed, m in enumerate(maps)]
        results.append([*maps, *torch.autograd.grad(maps, [leaf, absolute], upstream)])
    for name, found, expected in zip(("image", "alpha", "depth", "gradient", "absolute"), *results, strict=True):
        same(found, expected, name)


@pytest.mark.usefixtures("fake")
def test_absolute_gradients_of_a_distortion_are_refused() -> None:
    geometry = torch.tensor([[4.0, 4, 1, 0, 1, 0.5, 1]])
    bins = ops.bin(geometry, 8, 8, kind="ellipsoid", backend="gsplat")
    asked = {"distort": True, "absolute": torch.zeros(1, 2), "backend": "gsplat"}
    with pytest.raises(UserError, match="gsplat gives no absolute gradients of a distortion"):
        ops.blend(geometry, geometry[:, :1], bins, 8, 8, kind="ellipsoid", near=NEAR, **asked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("fake")
def test_channels_are_drawn_in_parts(kind: Kind) -> None:
    case = CASES["random"]()
    geometry = project(case, kind, doubles(case.parameters), "reference").geometry.detach()
    size = (case.width, case.height)
    if kind == "disc":
        geometry = drawn_alike(geometry, size)
    features = random_like(torch.empty(len(geometry), 70), 65).double()
    images = [
        ops.blend(
            *(geometry, features, ops.bin(geometry, *size, kind=kind, backend=name), *size),
            kind=kind, near=NEAR, backend=name,
        ).image
        for name in ("gsplat", "reference")
    ]  # fmt: skip
    same(*images, "image")


@pytest.mark.usefixtures("fake")
def test_a_disc_that_reaches_behind_the_camera_counts_with_the_depth_of_its_centre() -> None:
    case = random_case(6, 18, 14, seed=66, opacity=-1.0)
    parameters = doubles(replace(case, log_scales=torch.full_like(case.log_scales, 2.0)).parameters)
    seen = project(case, "disc", parameters, "gsplat")
    bins = ops.bin(seen.geometry, 18, 14, kind="disc", backend="gsplat")
    out = ops.blend(seen.geometry, seen.normals, bins, 18, 14, kind="disc", near=NEAR, backend="gsplat")
    assert out.alpha.min() > 0.1
    assert ((out.median >= NEAR) | (out.median == 0)).all()
    assert (out.depth >= NEAR * out.alpha - 1e-9).all()
    grads = torch.autograd.grad(out.depth.sum() + out.image.sum(), parameters)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("fake")
def test_nothing_visible_is_an_empty_view(kind: Kind) -> None:
    case = random_case(4)
    parameters = doubles([p[:0] for p in case.parameters])
    seen = project(case, kind, parameters, "gsplat")
    features = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    bins = ops.bin(seen.geometry, 33, 20, kind=kind, backend="gsplat")
    assert bins.tile_offsets.tolist() == [0] * 7
    out = ops.blend(seen.geometry, features, bins, 33, 20, kind=kind, near=NEAR, backend="gsplat")
    assert out.distortion is None
    assert out.image.shape == (20, 33, 3)
    assert not out.image.any()
    (grad,) = torch.autograd.grad(out.image.sum() + out.depth.sum(), [features])
    assert grad.shape == (0, 3)


# -------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.usefixtures("fake")
def test_all_other_operators_are_the_references() -> None:
    assert backend.choose("gsplat") == "gsplat"
    assert backend.reason() == "asked for"
    assert backend.resolve(device="cpu", rasterizing=True) == "gsplat"
    assert backend.resolve(device="cpu") == "reference"
    assert ops.take_rows(torch.eye(3), torch.tensor([2])).tolist() == [[0, 0, 1]]
    assert float(ops.ssim(torch.ones(16, 16, 3), torch.ones(16, 16, 3))) == pytest.approx(1)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if the package were not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gsplat" else found(name, *a))
    return monkeypatch


def test_what_is_missing_is_said_in_one_line(nowhere: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^gsplat is not installed; install it: pip install 'gsplat>=1\.5,<2'$"):
        backend.choose("gsplat")
    nowhere.setattr(importlib.util, "find_spec", lambda *_: object())
    nowhere.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match=r"gsplat needs CUDA, and torch .* is built without it"):
        backend.choose("gsplat")
    nowhere.setattr(torch.version, "cuda", "13.0")
    nowhere.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="gsplat needs a GPU, and torch finds none"):
        backend.resolve("gsplat")


def test_an_old_package_is_refused(fake: types.ModuleType) -> None:
    fake.__dict__["__version__"] = "1.4.0"
    with pytest.raises(UserError, match=r"gsplat 1\.4\.0 is installed, this needs 1\.5 or later"):
        gsplat.load()


def test_tensors_on_the_cpu_are_refused(fake: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend._DEVICES, "gsplat", "cuda")
    with pytest.raises(UserError, match="the gsplat back end was asked for, but the tensors are on cpu; choose auto"):
        backend.resolve("gsplat", "cpu", rasterizing=True)


@pytest.mark.usefixtures("fake")
def test_it_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PANBENCH_BACKEND", raising=False)
    monkeypatch.setattr(backend, "load_cpu", lambda: None)
    monkeypatch.setattr(backend, "load_cuda", lambda: None)
    assert backend.choose(device="cpu") == "cpu"
    assert backend.choose(device="cuda") == "cuda"


def test_the_doctor_lists_it(nowhere: pytest.MonkeyPatch) -> None:
    for name in ("load_cpu", "load_cuda"):
        nowhere.setattr(backend, name, lambda: None)
    assert backend.describe()[-1] == (
        "gsplat",
        False,
        "optional: gsplat is not installed; install it: pip install 'gsplat>=1.5,<2'",
    )
