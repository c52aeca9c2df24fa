from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from panbench.errors import UserError
from panbench.methods.voxel_vote import VoxelVote, associate, fuse, voxel_vote
from panbench.protocol import PredictionSet, Protocol, SceneTruth, score
from panbench.scene import PanopticMap, Scene

MakeScene = Callable[..., Scene]
Relabel = Callable[..., PanopticMap]
STRICT = Protocol.load("panoptic-strict@1")


def scores(scene: Scene, folder: Path) -> dict[str, float]:
    return score(PredictionSet.open(folder), SceneTruth(scene), scene.labels, STRICT).metrics


def test_perfect_masks_give_back_the_scene(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene()
    got = scores(scene, voxel_vote(scene, tmp_path / "p"))
    assert got["RQ"] == 100
    assert min(got["PQ"], got["mIoU"], got["mCov"]) > 85


def test_the_folder_says_how_it_was_made(make_scene: MakeScene, tmp_path: Path) -> None:
    manifest = PredictionSet.open(voxel_vote(make_scene(), tmp_path / "p", voxel=0.06)).manifest
    assert (manifest.method, manifest.scene, manifest.synthetic) == ("voxel-vote", "boards", True)
    assert manifest.config["voxel"] == 0.06
    assert manifest.frames == ["0", "50", "100"]


def test_a_class_that_a_few_views_get_wrong_is_outvoted(
    make_scene: MakeScene, relabel: Relabel, tmp_path: Path
) -> None:
    scene = make_scene(masks=lambda i, m: relabel(m, m.semantic == 3, semantic=2) if i in (1, 8) else m)
    assert scores(scene, voxel_vote(scene, tmp_path / "p"))["RQ"] == 100


def test_a_board_that_one_view_splits_and_another_merges_stays_one(
    make_scene: MakeScene, relabel: Relabel, tmp_path: Path
) -> None:
    def noisy(index: int, masks: PanopticMap) -> PanopticMap:
        if index == 3:  # the lower half of everything gets ids of its own
            lower = torch.arange(72)[:, None] > 36
            return PanopticMap(masks.semantic, masks.instance + 3 * (lower & (masks.instance > 0)))
        if index == 6:  # both boards under one id
            return relabel(masks, masks.semantic == 2, instance=9)
        return masks

    scene = make_scene(masks=noisy)
    assert scores(scene, voxel_vote(scene, tmp_path / "p"))["RQ"] == 100


def test_a_thing_seen_once_is_dropped_as_hallucinated(make_scene: MakeScene, tmp_path: Path) -> None:
    def noisy(index: int, masks: PanopticMap) -> PanopticMap:
        if index != 4:
            return masks
        semantic, instance = masks.semantic.clone(), masks.instance.clone()
        semantic[:8, :8], instance[:8, :8] = 3, 7
        return PanopticMap(semantic, instance)

    voxels = fuse(make_scene(masks=noisy), VoxelVote())
    assert sorted(np.unique(voxels.instance).tolist()) == [0, 1, 2, 3]


def test_ids_of_the_masks_do_not_matter(make_scene: MakeScene) -> None:
    plain = fuse(make_scene(), VoxelVote())
    renamed = fuse(
        make_scene(masks=lambda i, m: PanopticMap(m.semantic, torch.where(m.instance > 0, 40 - m.instance, 0))),
        VoxelVote(),
    )
    assert (plain.keys == renamed.keys).all()
    assert (plain.semantic == renamed.semantic).all()
    pairs = np.unique(np.stack([plain.instance, renamed.instance]), axis=1)
    assert pairs.shape[1] == len(np.unique(plain.instance)) == len(np.unique(renamed.instance))


def test_pixels_without_depth_copy_their_neighbours(make_scene: MakeScene, tmp_path: Path) -> None:
    def holes(depth: torch.Tensor) -> torch.Tensor:
        depth[::2] = 0
        return depth

    scene = make_scene(depth=holes)
    folder = voxel_vote(scene, tmp_path / "p")
    assert (PredictionSet.open(folder).read("50").semantic > 0).all()
    assert scores(scene, folder)["RQ"] == 100


def test_a_view_without_any_depth_is_void(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(depth=lambda d: d * 0)
    assert not PredictionSet.open(voxel_vote(scene, tmp_path / "p")).read("50").semantic.any()


def test_stuff_gets_no_instance(make_scene: MakeScene, tmp_path: Path) -> None:
    predictions = PredictionSet.open(voxel_vote(make_scene(), tmp_path / "p"))
    for name in predictions.names:
        map_ = predictions.read(name)
        assert not map_.instance[map_.semantic == 1].any()


def test_masks_of_stuff_only_give_no_instances(make_scene: MakeScene, relabel: Relabel, tmp_path: Path) -> None:
    scene = make_scene(masks=lambda _, m: relabel(m, m.semantic > 0, semantic=1, instance=0))
    map_ = PredictionSet.open(voxel_vote(scene, tmp_path / "p")).read("50")
    assert (map_.semantic == 1).all()
    assert not map_.instance.any()


def test_void_masks_give_void_predictions(make_scene: MakeScene, relabel: Relabel, tmp_path: Path) -> None:
    scene = make_scene(masks=lambda _, m: relabel(m, m.semantic > 0, semantic=0, instance=0))
    assert not PredictionSet.open(voxel_vote(scene, tmp_path / "p")).read("50").semantic.any()


def test_missing_masks_or_depth_are_told(make_scene: MakeScene, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training frame 10 has no pseudo-masks"):
        voxel_vote(make_scene(masks=lambda *_: None), tmp_path / "p")
    with pytest.raises(UserError, match="frame 10 has no sensor depth"):
        voxel_vote(make_scene(depth=lambda _: None), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def one_hot(rows: list[list[int]], columns: int) -> sparse.csr_array:
    dense = np.zeros((len(rows), columns), dtype=np.float32)
    for i, row in enumerate(rows):
        dense[i, row] = 1
    return sparse.csr_array(dense)


def test_only_what_the_other_frame_saw_counts_against_joining() -> None:
    # Frame 0 sees voxels 0-9, frame 1 sees 8-19: of one long object they share two voxels only.
    masks = one_hot([list(range(10)), list(range(8, 20))], 20)
    frames = one_hot([list(range(10)), list(range(8, 20))], 20)
    joined = associate(masks, frames, np.array([0, 1]), np.array([2, 2]), VoxelVote())
    assert joined.tolist() == [1, 1]


def test_objects_seen_apart_in_one_frame_are_not_joined_by_a_mask_over_both() -> None:
    both, left, right = list(range(10)), list(range(5)), list(range(5, 10))
    masks = one_hot([left, right, left, right, both], 10)
    frames = one_hot([both, both, both], 10)
    ids = associate(masks, frames, np.array([0, 0, 1, 1, 2]), np.full(5, 2), VoxelVote())
    assert ids[0] == ids[2]
    assert ids[1] == ids[3]
    assert ids[0] != ids[1]
