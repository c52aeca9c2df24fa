"""Seeds of queries on two boxes of known place, whose mask ids mean nothing from frame to frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from box_scene import BOXES, BoxFrames, box_scene, with_masks
from scipy.spatial.transform import Rotation

from panbench.heads.seeding import Seeds, seed_queries
from panbench.scene import Frame, PanopticMap


def owners_of_boxes(seeds: Seeds) -> list[set[int]]:
    """The seeds that own points on each box."""
    out: list[set[int]] = []
    for low, high in BOXES:
        inside = ((seeds.points >= np.array(low) - 0.05) & (seeds.points <= np.array(high) + 0.05)).all(axis=1)
        out.append(set(seeds.owner[inside].tolist()))
    return out


def test_there_is_one_seed_an_object_although_ids_are_permuted_in_every_frame() -> None:
    scene = box_scene()
    seeds = seed_queries(scene)
    assert len(seeds.means) == 2
    first, second = owners_of_boxes(seeds)
    assert len(first) == len(second) == 1
    assert first != second


def test_seeds_lie_in_their_objects_and_are_as_large() -> None:
    seeds = seed_queries(box_scene())
    centres = np.array([(np.array(low) + np.array(high)) / 2 for low, high in BOXES])
    nearest = np.linalg.norm(seeds.means[:, None] - centres[None], axis=-1).argmin(axis=1)
    assert sorted(nearest.tolist()) == [0, 1]
    for seed, box in enumerate(nearest):
        low, high = np.array(BOXES[box][0]), np.array(BOXES[box][1])
        assert (seeds.means[seed] > low - 0.05).all()
        assert (seeds.means[seed] < high + 0.05).all()
        deviations = np.exp(seeds.log_scales[seed])
        assert (deviations < (high - low).max()).all()
        assert deviations.max() > 0.1


def test_the_covariance_of_a_seed_is_that_of_its_points() -> None:
    seeds = seed_queries(box_scene())
    for seed in range(len(seeds.means)):
        mine = seeds.points[seeds.owner == seed].astype(np.float64)
        axes = Rotation.from_quat(seeds.quats[seed], scalar_first=True).as_matrix()
        assert np.linalg.det(axes) == pytest.approx(1, abs=1e-5)
        covariance = axes @ np.diag(np.exp(2 * seeds.log_scales[seed].astype(np.float64))) @ axes.T
        centred = mine - seeds.means[seed]
        np.testing.assert_allclose(covariance, centred.T @ centred / len(mine), atol=0.004)


def test_every_seed_owns_points_and_every_point_has_an_owner() -> None:
    seeds = seed_queries(box_scene())
    assert len(seeds.points) == len(seeds.owner)
    assert set(seeds.owner.tolist()) == set(range(len(seeds.means)))
    assert seeds.log_scales.shape == (2, 3)
    assert seeds.quats.shape == (2, 4)


@pytest.mark.parametrize("merged", [{1}, {2, 7}, {1, 4, 8}])
def test_masks_that_join_two_objects_in_a_minority_of_views_do_not_join_their_seeds(merged: set[int]) -> None:
    seeds = seed_queries(box_scene(BoxFrames(merged=frozenset(merged))))
    assert len(seeds.means) == 2
    first, second = owners_of_boxes(seeds)
    assert first.isdisjoint(second)


def test_masks_that_join_two_objects_in_all_views_give_one_seed() -> None:
    seeds = seed_queries(box_scene(BoxFrames(merged=frozenset(range(10)))))
    assert len(seeds.means) == 1


def test_frames_without_any_mask_among_others_do_no_harm() -> None:
    seeds = seed_queries(box_scene(BoxFrames(blank=frozenset({1, 3, 6}))))
    assert len(seeds.means) == 2


@pytest.mark.parametrize(
    "frames",
    [
        BoxFrames(masks=False),
        BoxFrames(depth=False),
        BoxFrames(blank=frozenset(range(10))),
    ],
    ids=["no masks", "no depth", "empty masks"],
)
def test_without_mask_points_there_are_no_seeds(frames: BoxFrames) -> None:
    seeds = seed_queries(box_scene(frames))
    assert seeds.means.shape == (0, 3)
    assert seeds.log_scales.shape == (0, 3)
    assert seeds.quats.shape == (0, 4)
    assert len(seeds.points) == len(seeds.owner) == 0


def test_the_number_of_points_is_bounded() -> None:
    seeds = seed_queries(box_scene(), max_points=60)
    assert 0 < len(seeds.points) <= 60
    assert len(seeds.means) == 2


def test_seeding_is_deterministic_and_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    one, two = seed_queries(box_scene()), seed_queries(box_scene())
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(one.means, two.means)
    np.testing.assert_array_equal(one.owner, two.owner)


class LidOfDrum(BoxFrames):
    """The drum's mask is a corner of its lid, 15 by 15 cm; the rest of it has no label."""

    def load(self, index: int) -> Frame:
        frame = super().load(index)
        assert frame.truth is not None
        assert frame.depth is not None
        points = frame.camera.unproject(frame.depth)
        low, high = torch.tensor([0.3, -0.3, 0.49]), torch.tensor([0.45, -0.15, 0.51])
        lid = ((points > low) & (points < high)).all(-1)
        kept = (frame.truth.instance == 1) | lid
        return with_masks(frame, PanopticMap(frame.truth.semantic * kept, frame.truth.instance * kept))


def test_a_small_thing_keeps_its_seed_when_few_points_are_taken() -> None:
    seeds = seed_queries(box_scene(LidOfDrum(width=160, height=120)), max_points=80)
    assert len(seeds.means) == 2
    sizes = np.bincount(seeds.owner)
    small = int(sizes.argmin())
    assert sizes[small] >= 5  # its share of the surface is 1/40, of 80 points 2
    assert (np.abs(seeds.means[small] - [0.375, -0.225, 0.5]) < 0.05).all()
