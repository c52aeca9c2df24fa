"""2DGS: which depth it looks at, and what its two terms do to discs whose right place is known."""

from __future__ import annotations

import pytest
import torch
from placed import placed
from torch import Tensor
from torch.nn import functional

from panbench.errors import UserError
from panbench.gaussians.rotation import rotation_matrices
from panbench.heads import NoHead
from panbench.models.twodgs import TwoDGS
from panbench.scene import Camera, Frame

CAMERA = Camera(80, 60, 62.5, 60.0, 40.0, 30.0, torch.eye(4))
TOWARDS = torch.tensor([0.0, 0.0, -1.0])


def discs(means: Tensor, normals: Tensor, scale: float, opacity: float, **settings: float) -> TwoDGS:
    """A model in training, of equal discs at ``means`` [N, 3] with ``normals`` [N, 3], its terms on from the start."""
    model = TwoDGS(NoHead(), sh_degree=0, distortion_start=0, consistency_start=0, **settings)
    return placed(model.train(), means, normals, scale, opacity)


def wall(depth: float, step: float = 0.05) -> Tensor:
    """Centres [N, 3] of a grid that fills the view at ``depth``, metres."""
    x, y = torch.arange(-0.8, 0.8, step) * depth, torch.arange(-0.6, 0.6, step) * depth
    grid = torch.cartesian_prod(x, y)
    return torch.cat([grid, torch.full((len(grid), 1), depth)], dim=1)


def descend(model: TwoDGS, term: str, field: str, rate: float, steps: int) -> None:
    """Adam on one term alone, through one field alone."""
    frame = Frame("0", 0, CAMERA, torch.zeros(60, 80, 3, dtype=torch.uint8))
    optimizer = torch.optim.Adam([model.gaussians[field]], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model.regularisers(model.render(CAMERA, labels=False), frame)[term].backward()
        optimizer.step()


def test_distortion_pulls_two_layers_together_along_the_rays() -> None:
    front, back = wall(2.0), wall(2.3)
    means = torch.cat([front, back])
    model = discs(means, TOWARDS.expand_as(means), 0.08, 0.5, distortion_weight=10.0, consistency_weight=0.0)
    before = model.gaussians["means"].detach().clone()
    descend(model, "distortion", "means", rate=4e-3, steps=60)
    after = model.gaussians["means"].detach()
    # What is drawn: the middle of the view, away from the rim of the walls.
    inner = (before[:, :2] / before[:, 2:]).abs().amax(1) < 0.4
    depth = after[:, 2]
    nearer, farther = depth[: len(front)][inner[: len(front)]], depth[len(front) :][inner[len(front) :]]
    assert farther.mean() - nearer.mean() < 0.5 * 0.3
    assert nearer.mean() > 2.0
    assert farther.mean() < 2.3


def test_a_single_layer_has_next_to_no_distortion() -> None:
    means = wall(2.0)
    model = discs(means, TOWARDS.expand_as(means), 0.08, 0.9, distortion_weight=10.0, consistency_weight=0.0)
    frame = Frame("0", 0, CAMERA, torch.zeros(60, 80, 3, dtype=torch.uint8))
    with torch.no_grad():
        assert model.regularisers(model.render(CAMERA, labels=False), frame)["distortion"] < 1e-8


def test_consistency_turns_discs_into_the_plane_they_lie_on() -> None:
    generator = torch.Generator().manual_seed(0)
    means = wall(2.0)
    tilted = functional.normalize(TOWARDS + 0.4 * torch.randn(len(means), 3, generator=generator), dim=1)
    model = discs(means, tilted, 0.08, 0.9, distortion_weight=0.0, consistency_weight=0.05)
    drawn = (means[:, :2] / means[:, 2:]).abs().amax(1) < 0.4

    def angle() -> Tensor:
        normals = rotation_matrices(model.gaussians["quats"].detach())[drawn, :, 2]
        return (normals @ TOWARDS).clamp(-1, 1).arccos().rad2deg().mean()

    before = angle()
    assert before > 15
    descend(model, "consistency", "quats", rate=1e-2, steps=80)
    assert angle() < before / 3


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_depth_is_between_the_expected_and_the_median(ratio: float) -> None:
    # Two discs that fill the view: w = 0.6 at 2 m and 0.9 * 0.4 at 3 m.
    means = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    model = discs(means, TOWARDS.expand_as(means), 20.0, 0.5, depth_ratio=ratio)
    model.gaussians["opacities"].data.copy_(torch.tensor([0.6, 0.9]).logit())
    with torch.no_grad():
        depth = model.render(CAMERA, labels=False).depth[30, 40]
    expected = (0.6 * 2 + 0.36 * 3) / 0.96
    assert float(depth) == pytest.approx((1 - ratio) * expected + ratio * 2.0, abs=1e-3)


def test_distortion_sets_in_at_its_step_and_only_in_training() -> None:
    means = wall(2.0)
    model = discs(means, TOWARDS.expand_as(means), 0.08, 0.9, distortion_weight=10.0)
    assert model.distorts
    assert not model.eval().distorts
    model.train().distortion_start = 1
    assert not model.distorts
    model.distortion_start, model.distortion_weight = 0, 0.0
    assert not model.distorts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"near": 1.0, "distortion_far": 0.5}, r"near 1\.0 must be above 0 and below distortion_far 0\.5"),
        ({"near": 0.0}, r"near 0\.0 must be above 0"),
        ({"depth_ratio": 1.5}, r"depth_ratio 1\.5 must be between 0 and 1"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TwoDGS(NoHead(), **settings)
