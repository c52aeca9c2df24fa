"""Association of masks by depth: two walls by hand, and the built-in room."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panbench.cli.main import run as main
from panbench.data.scannet_reader import open_scene
from panbench.errors import UserError
from panbench.masks.associate import AssociationSettings, InstanceTracker, MaskView, associate_set, id_consistency
from panbench.masks.mask_set import MaskSet
from panbench.scene import Camera, Scene

W, H = 64, 48


def wall(shift: float, numbers: tuple[int, int, int], depth: float = 2.0) -> MaskView:
    """A wall at z = 2 m seen by a camera at x = ``shift``: objects of 30 cm at x = −0.5, 0 and 0.5 m, class 1, 1, 2."""
    pose = torch.eye(4)
    pose[0, 3] = -shift
    camera = Camera(W, H, 40.0, 40.0, W / 2, H / 2, pose)
    x = np.broadcast_to((np.arange(W) + 0.5 - W / 2) / 40.0 * 2.0 + shift, (H, W))
    semantic, instance = np.zeros((2, H, W), dtype=np.int64)
    for center, number, category in zip((-0.5, 0.0, 0.5), numbers, (1, 1, 2), strict=True):
        inside = np.abs(x - center) < 0.15
        semantic[inside], instance[inside] = category, number
    return MaskView(camera, np.full((H, W), depth, dtype=np.float32), semantic, instance)


def tracked(views: list[MaskView], **settings: float) -> tuple[InstanceTracker, list[dict[int, int]]]:
    tracker = InstanceTracker(AssociationSettings(**settings))
    for view in views:
        tracker.observe(view)
    tracker.finish()
    return tracker, [tracker.relabel(view) for view in views]


def test_objects_keep_their_id_whatever_their_number_in_a_frame() -> None:
    numbers = [(1, 2, 3), (3, 1, 2), (5, 9, 7), (2, 3, 1)]
    views = [wall(shift, n) for shift, n in zip((0.0, 0.1, -0.1, 0.2), numbers, strict=True)]
    tracker, names = tracked(views)
    assert tracker.ids == [1, 2, 3]
    found = [[named[number] for number in n] for named, n in zip(names, numbers, strict=True)]
    assert all(f == found[0] for f in found)
    assert sorted(found[0]) == [1, 2, 3]


def test_objects_that_no_view_shares_are_apart() -> None:
    tracker, _ = tracked([wall(0.0, (1, 2, 3)), wall(20.0, (1, 2, 3))] + [wall(0.0, (1, 2, 3))] * 2)
    # The second camera is 20 m away, and its wall holds no objects.
    assert tracker.ids == [1, 2, 3]


def test_what_few_frames_show_is_dropped() -> None:
    views = [wall(0.0, (1, 2, 3)), wall(0.1, (1, 2, 0)), wall(0.0, (1, 2, 0)), wall(-0.1, (1, 2, 3))]
    views[0].instance[views[0].instance == 3] = 0
    tracker, names = tracked(views)
    assert tracker.ids == [1, 2]
    assert names[3][3] == 0


def test_a_part_joins_its_object_and_two_neighbours_do_not() -> None:
    views = [wall(shift, (1, 2, 3)) for shift in (0.0, 0.05, 0.1, 0.0)]
    # In the third view the middle object is cut in two masks.
    split = views[2].instance == 2
    split[: H // 2] = False
    views[2].instance[split] = 8
    tracker, names = tracked(views)
    assert tracker.ids == [1, 2, 3]
    assert names[2][8] == names[2][2] == names[0][2] != names[0][1]


def test_two_ids_of_one_object_are_merged_unless_they_are_seen_side_by_side() -> None:
    # Upper and lower half of an object, each alone in two frames, then whole.
    def half(view: MaskView, rows: slice) -> MaskView:
        gone = np.ones((H, W), dtype=bool)
        gone[rows] = False
        view.instance[gone] = 0
        return view

    views = [half(wall(0.0, (0, 1, 0)), slice(0, H // 2)) for _ in range(3)]
    views += [half(wall(0.0, (0, 1, 0)), slice(H // 2, H)) for _ in range(3)]
    whole = [wall(0.0, (0, 1, 0)) for _ in range(12)]
    assert tracked(views + whole)[0].ids == [1]
    assert len(tracked(views)[0].ids) == 2


def test_pixels_without_depth_say_nothing() -> None:
    views = [wall(0.0, (1, 2, 3), depth=0.0)] * 4
    tracker, names = tracked(views)
    assert tracker.ids == []
    assert names[0] == {1: 0, 2: 0, 3: 0}


def test_consistency_by_hand() -> None:
    truth = np.array([[1, 1, 2, 2, 0]])
    assert id_consistency([(np.array([[4, 4, 5, 5, 9]]), truth)]) == 1.0
    # Id 4 is object 1 in two pixels; id 6 would be it in two more, but is object 2 then, in one.
    assert id_consistency([(np.array([[4, 4, 0, 0, 0]]), truth), (np.array([[6, 6, 6, 0, 0]]), truth)]) == 3 / 8
    assert id_consistency([(np.zeros((1, 5), int), truth)]) == 0.0
    assert np.isnan(id_consistency([(truth, np.zeros_like(truth))]))


def brute_force(views: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> float:
    """All ways to give two objects two ids, one to one."""
    ours, truth = (np.concatenate([v[k].reshape(-1) for v in views]) for k in (0, 1))
    best = 0
    for a in range(1, 4):
        for b in {1, 2, 3} - {a}:
            best = max(best, int(((ours == a) & (truth == 1)).sum() + ((ours == b) & (truth == 2)).sum()))
    return best / int((truth > 0).sum())


def test_consistency_is_the_best_pairing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        views = [(rng.integers(0, 4, (4, 5)), rng.integers(0, 3, (4, 5))) for _ in range(3)]
        assert id_consistency(views) == pytest.approx(brute_force(views))


# ------------------------------------------------------------------------------------------------------------- the room


def consistency(scene: Scene, rename: Callable[[MaskView], dict[int, int]] | None, views: list[MaskView]) -> float:
    pairs: list[tuple[NDArray[np.integer], NDArray[np.integer]]] = []
    for index, view in zip(scene.train, views, strict=True):
        truth = scene.source.load(index).truth
        assert truth is not None
        named = view.instance.copy()
        if rename is not None:
            table = rename(view)
            named = np.vectorize(lambda n, table=table: table.get(int(n), 0))(view.instance)
        pairs.append((named, truth.instance.numpy()))
    return id_consistency(pairs)


def seen(scene: Scene) -> list[MaskView]:
    out: list[MaskView] = []
    for frame in scene.frames(scene.train):
        assert frame.masks is not None
        assert frame.depth is not None
        out.append(
            MaskView(frame.camera, frame.depth.numpy(), frame.masks.semantic.numpy(), frame.masks.instance.numpy())
        )
    return out


@pytest.mark.parametrize(("masks", "least"), [("clean", 0.85), ("medium", 0.5)])
def test_ids_of_the_room_become_those_of_the_scene(room: Path, masks: str, least: float) -> None:
    scene = open_scene(room, masks=masks)
    views = seen(scene)
    tracker, _ = tracked(views)
    before, after = consistency(scene, None, views), consistency(scene, tracker.relabel, views)
    assert after > least
    assert after > 1.5 * before


def test_the_command_writes_a_set_that_trains(room: Path) -> None:
    assert main(["masks", "associate", str(room), "--masks", "clean", "--out", "tracked", "--quiet"]) == 0
    made, source = MaskSet.open(room / "masks_tracked"), MaskSet.open(room / "masks_clean")
    assert made.manifest is not None
    assert made.manifest.associated
    scene = open_scene(room, masks="tracked")
    pairs = [
        (f.masks.instance.numpy(), f.truth.instance.numpy()) for f in scene.frames(scene.train) if f.masks and f.truth
    ]
    assert id_consistency(pairs) > 0.85
    for stem in made.stems():
        np.testing.assert_array_equal(made.read(stem).semantic, source.read(stem).semantic)
        # Masks are renamed, never reshaped: a mask's pixels have one id, or none.
        for number in np.unique(source.read(stem).instance):
            assert len(np.unique(made.read(stem).instance[source.read(stem).instance == number])) == 1


def test_a_scene_without_depth_is_told_so(room: Path, tmp_path: Path) -> None:
    bare = tmp_path / room.name
    shutil.copytree(room, bare, ignore=shutil.ignore_patterns("depth", "gt"))
    with pytest.raises(UserError, match="has no depth"):
        associate_set(bare, "clean", "tracked", AssociationSettings(), progress=False)


def test_numbers_within_frames_do_not_matter(room: Path) -> None:
    scene = open_scene(room, masks="medium")
    views = seen(scene)
    rng = np.random.default_rng(1)
    orders = [np.append(0, rng.permutation(view.instance.max()) + 1) for view in views]
    shuffled = [
        MaskView(v.camera, v.depth, v.semantic, order[v.instance]) for v, order in zip(views, orders, strict=True)
    ]
    _, one = tracked(views)
    _, two = tracked(shuffled)
    for first, second, order in zip(one, two, orders, strict=True):
        assert {int(order[k]): v for k, v in first.items()} == second
