"""Query ids are the same object in every view, although the masks' ids are not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from box_scene import fitted

from panbench.data.scannet import ScanNetDataModule
from panbench.heads import QueryHead
from panbench.models import LiGS

STEPS = 80
SMALLEST = 40  # pixels of an object in a view that is looked at


def test_an_object_of_the_room_keeps_one_id_in_all_views(room_data: Callable[[int, int], ScanNetDataModule]) -> None:
    data = room_data(80, 60)
    head = QueryHead(semantic_lr=0.1, instance_lr=0.1, decoder_lr=0.02)
    model = fitted(LiGS(head, voxel=0.06, flat_voxel=0.06, label_start=0, label_every=1), STEPS, data).eval()
    scene = data.scene
    assert _ids_are_not_those_of_the_scene(data)
    seen: dict[int, list[int]] = {}
    for index in scene.test:
        frame = scene.source.load(index)
        assert frame.truth is not None
        got = model.predict_view(frame.camera).panoptic
        for number in frame.truth.instance.unique().tolist():
            inside = frame.truth.instance == number
            if number and inside.sum() >= SMALLEST:
                seen.setdefault(number, []).append(int(got.instance[inside].mode().values))
    shared = {number: ids for number, ids in seen.items() if len(ids) > 1}
    assert len(shared) >= 2
    kept = [ids[0] for ids in shared.values() if ids[0] > 0 and len(set(ids)) == 1]
    assert len(kept) >= 0.8 * len(shared), shared
    assert len(set(kept)) == len(kept), shared


def _ids_are_not_those_of_the_scene(data: ScanNetDataModule) -> bool:
    """Whether some object has different mask ids in different training frames."""
    ids: dict[int, set[int]] = {}
    for frame in data.scene.frames(data.scene.train):
        assert frame.truth is not None
        assert frame.masks is not None
        for number in frame.truth.instance.unique().tolist():
            inside = frame.truth.instance == number
            if number and inside.sum() >= SMALLEST:
                ids.setdefault(number, set()).add(int(torch.mode(frame.masks.instance[inside]).values))
    return any(len(found) > 1 for found in ids.values())
