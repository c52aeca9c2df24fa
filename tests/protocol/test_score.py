from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from panbench.errors import UserError
from panbench.protocol import PredictionSet, PredictionWriter, Protocol, SceneResult, protocol_ids, rescore, score
from panbench.protocol.results import Origin
from panbench.protocol.score import resize_labels
from panbench.scene import LabelClass, LabelSpace, PanopticMap

MakeFolder = Callable[..., Path]
Truth = dict[str, PanopticMap]
PAPER, STRICT = Protocol.load("scannet-paper@1"), Protocol.load("panoptic-strict@1")


def lose_the_table(name: str, map_: PanopticMap) -> PanopticMap:
    gone = map_.semantic == 4
    return PanopticMap(map_.semantic.masked_fill(gone, 1), map_.instance.masked_fill(gone, 0))


@pytest.mark.parametrize("name", protocol_ids())
def test_the_truth_scores_full_marks(make_folder: MakeFolder, truth: Truth, labels: LabelSpace, name: str) -> None:
    result = score(PredictionSet.open(make_folder()), truth, labels, Protocol.load(name))
    assert set(result.metrics) >= {"PQ", "SQ", "RQ", "mIoU", "mAcc", "mCov", "mWCov", "mIoU_pooled", "mIoU_frame"}
    assert list(result.metrics.values()) == pytest.approx([100.0] * len(result.metrics))
    assert {i.verdict for i in result.instances} == {"found"}


def test_the_result_says_what_was_scored_on_what(make_folder: MakeFolder, truth: Truth, labels: LabelSpace) -> None:
    folder = make_folder(provenance={"mask_hash": "m"})
    result = score(PredictionSet.open(folder), truth, labels, PAPER, cost={"fit_seconds": 2.0}, provenance={"x": 1})
    assert (result.protocol, result.protocol_hash) == (PAPER.id, PAPER.hash)
    assert (result.dataset, result.scene, result.method, result.seed) == ("scannet", "scene0000_00", "oracle", 7)
    assert (result.label_hash, result.space().hash) == (labels.hash, labels.hash)
    assert (result.source_size, result.image_size, result.frames) == ((12, 16), (12, 16), ["0", "5", "10"])
    assert result.cost == {"fit_seconds": 2.0}
    assert result.provenance["mask_hash"] == "m"
    assert result.provenance["x"] == 1


def test_a_missed_table_is_named_in_classes_and_instances(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace
) -> None:
    result = score(PredictionSet.open(make_folder(change=lose_the_table)), truth, labels, STRICT)
    table = next(c for c in result.per_class if c.name == "table")
    assert (table.PQ, table.false_negatives, table.present) == (0.0, 1, True)
    assert {i.true_id: i.verdict for i in result.instances} == {3: "found", 8: "missed"}


def test_both_mious_and_both_pqs_stand_in_every_result(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace
) -> None:
    folder = PredictionSet.open(make_folder(change=lose_the_table))
    paper, strict = (score(folder, truth, labels, p).metrics for p in (PAPER, STRICT))
    shared = ("mIoU_pooled", "mIoU_frame", "PQ_paper", "PQ_strict")
    assert [paper[k] for k in shared] == [strict[k] for k in shared]
    assert (paper["mIoU"], paper["PQ"]) == (paper["mIoU_frame"], paper["PQ_paper"])
    assert (strict["mIoU"], strict["PQ"]) == (strict["mIoU_pooled"], strict["PQ_strict"])


@pytest.mark.parametrize("name", protocol_ids())
def test_any_protocol_follows_from_the_stored_counts(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace, tmp_path: Path, name: str
) -> None:
    folder = PredictionSet.open(make_folder(change=lose_the_table))
    origin = Origin(created="2026-01-01T00:00:00+00:00")
    stored = score(folder, truth, labels, PAPER, origin=origin)
    stored.metrics["PSNR"] = 21.5
    stored.save(tmp_path / "result.json")
    again = rescore(SceneResult.load(tmp_path / "result.json"), Protocol.load(name))
    direct = score(folder, truth, labels, Protocol.load(name), origin=origin)
    direct.metrics["PSNR"] = 21.5
    assert again == direct


def test_counts_at_another_size_are_not_scored(make_folder: MakeFolder, truth: Truth, labels: LabelSpace) -> None:
    result = score(PredictionSet.open(make_folder()), truth, labels, PAPER)
    half = PAPER.model_copy(update={"size": PAPER.size.model_copy(update={"divisor": 2, "full_resolution_rows": 12})})
    with pytest.raises(UserError, match="counts 16x12 images at 8x6, the result has counts at 16x12"):
        rescore(result, half)


def test_a_function_may_give_the_truth(make_folder: MakeFolder, truth: Truth, labels: LabelSpace) -> None:
    folder = PredictionSet.open(make_folder(change=lose_the_table))
    origin = Origin(created="2026-01-01T00:00:00+00:00")
    by_function = score(folder, truth.__getitem__, labels, PAPER, origin=origin)
    assert by_function == score(folder, truth, labels, PAPER, origin=origin)


def test_every_frame_of_the_truth_must_be_predicted(make_folder: MakeFolder, truth: Truth, labels: LabelSpace) -> None:
    with pytest.raises(UserError, match="no prediction for frame 15: predict all test frames"):
        score(PredictionSet.open(make_folder()), {**truth, "15": truth["0"]}, labels, PAPER)


def test_predictions_beyond_the_truth_are_not_scored(make_folder: MakeFolder, truth: Truth, labels: LabelSpace) -> None:
    only = {"0": truth["0"]}
    result = score(PredictionSet.open(make_folder()), only, labels, PAPER)
    assert result.frames == ["0"]


def test_without_truth_there_is_nothing_to_score(make_folder: MakeFolder, labels: LabelSpace) -> None:
    with pytest.raises(UserError, match="no frame to score"):
        score(PredictionSet.open(make_folder()), {}, labels, PAPER)


def doubled(map_: PanopticMap) -> PanopticMap:
    return PanopticMap(*(m.repeat_interleave(2, 0).repeat_interleave(2, 1) for m in (map_.semantic, map_.instance)))


def test_small_predictions_are_counted_at_their_own_size(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace
) -> None:
    result = score(PredictionSet.open(make_folder()), {k: doubled(m) for k, m in truth.items()}, labels, PAPER)
    assert result.image_size == (12, 16)
    assert result.metrics["PQ"] == pytest.approx(100)


def test_full_resolution_is_counted_at_a_quarter(tmp_path: Path, labels: LabelSpace) -> None:
    semantic = torch.ones(968, 1296, dtype=torch.int64)
    semantic[:484, :648] = 2
    instance = torch.where(semantic == 2, 5, 0)
    with PredictionWriter(tmp_path / "p", method="m", labels=labels) as writer:
        writer.write("0", PanopticMap(semantic, instance))
    result = score(PredictionSet.open(tmp_path / "p"), {"0": PanopticMap(semantic, instance)}, labels, PAPER)
    assert result.image_size == (242, 324)
    assert sum(c.true_pixels for c in result.per_class) == 242 * 324


@pytest.mark.parametrize("size", [(6, 8), (12, 20)], ids=["smaller", "another field of view"])
def test_truth_of_an_unfit_size_is_told(
    make_folder: MakeFolder, labels: LabelSpace, truth: Truth, size: tuple[int, int]
) -> None:
    small = PanopticMap(torch.ones(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64))
    with pytest.raises(UserError, match=f"frame 0 is 16x12, its truth {size[1]}x{size[0]}"):
        score(PredictionSet.open(make_folder()), dict.fromkeys(truth, small), labels, PAPER)


def test_other_classes_than_the_truths_are_told(make_folder: MakeFolder, truth: Truth, labels: LabelSpace) -> None:
    renamed = replace(labels, classes=(*labels.classes[:2], LabelClass(4, "desk", True)))
    with pytest.raises(UserError, match="class 4 is 'table' \\(thing\\) in the predictions but 'desk' \\(thing\\)"):
        score(PredictionSet.open(make_folder()), truth, renamed, PAPER)


def test_other_prompts_or_raw_ids_are_no_other_label_space(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace
) -> None:
    result = score(PredictionSet.open(make_folder()), truth, replace(labels, raw_to_class={}), PAPER)
    assert result.metrics["PQ"] == pytest.approx(100)


def test_a_foreign_folder_is_held_to_the_scenes_classes(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace
) -> None:
    folder = make_folder()
    (folder / "manifest.json").unlink()
    fewer = replace(labels, classes=labels.classes[:2], raw_to_class={})
    with pytest.raises(UserError, match=r"semantic/10\.png: class id 4 \(18 pixels\) is not in label space"):
        score(PredictionSet.open(folder), truth, fewer, PAPER)


def test_a_scannetpp_result_takes_its_paper_score_from_the_scannetpp_protocol(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace
) -> None:
    # 20 % of the chair: a match at 0.1, none at 0.3.
    def fifth(name: str, map_: PanopticMap) -> PanopticMap:
        keep = torch.zeros_like(map_.instance, dtype=torch.bool)
        keep[2:8, ::5] = True
        lost = (map_.semantic == 2) & ~keep
        return PanopticMap(map_.semantic.masked_fill(lost, 1), map_.instance.masked_fill(lost, 0))

    folder = PredictionSet.open(make_folder(change=fifth))
    plain, plus = (
        score(folder, truth, labels, STRICT, dataset=dataset).metrics["PQ_paper"]
        for dataset in ("scannet", "scannetpp")
    )
    assert plain > plus


def test_scores_that_do_not_exist_survive_the_file(
    make_folder: MakeFolder, truth: Truth, labels: LabelSpace, tmp_path: Path
) -> None:
    wall = {k: PanopticMap(torch.ones_like(m.semantic), torch.zeros_like(m.instance)) for k, m in truth.items()}
    result = score(PredictionSet.open(make_folder()), wall, labels, STRICT)
    assert math.isnan(result.metrics["mCov"])
    assert "null" in result.save(tmp_path / "r.json").read_text()
    assert math.isnan(SceneResult.load(tmp_path / "r.json").metrics["mCov"])


def test_a_result_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        SceneResult.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match=r"bad\.json: schema_version"):
        SceneResult.load(tmp_path / "bad.json")


def test_damaged_counts_are_told(make_folder: MakeFolder, truth: Truth, labels: LabelSpace) -> None:
    result = score(PredictionSet.open(make_folder()), truth, labels, PAPER)
    result.counts.data = result.counts.data[:20]
    with pytest.raises(UserError, match="counts"):
        rescore(result, STRICT)


@pytest.mark.parametrize(
    ("old", "new"), [((968, 1296), (242, 324)), ((779, 1168), (194, 292)), ((480, 640), (242, 324))]
)
def test_labels_are_picked_as_pillow_picks_them(old: tuple[int, int], new: tuple[int, int]) -> None:
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 60000, old).astype(np.int32)
    wanted = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.NEAREST))
    assert (resize_labels(image, new) == wanted).all()
