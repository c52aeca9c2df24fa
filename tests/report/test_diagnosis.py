"""What a run's diagnosis says of a hand-made scene whose mistakes are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from panbench.metrics.functional import PairCounts
from panbench.protocol.protocol import Protocol
from panbench.protocol.results import SceneResult, StoredCounts
from panbench.protocol.score import rescore
from panbench.report.diagnosis import (
    confusion,
    crops_of,
    diagnosis,
    in_words,
    largest_confusions,
    worst_instances,
)
from panbench.scene import LabelClass, LabelSpace
from results import result

WALL, CHAIR, LAMP = 1, 2, 3
SPACE = LabelSpace(
    "s", (LabelClass(WALL, "wall", False), LabelClass(CHAIR, "chair", True), LabelClass(LAMP, "lamp", True))
)
# frame, true class, true id, predicted class, predicted id, pixels
ROWS = [
    (0, WALL, 0, WALL, 0, 900),
    (0, WALL, 0, LAMP, 9, 100),
    (0, CHAIR, 1, CHAIR, 4, 80),  # chair 1: found, under another id in the second frame
    (1, CHAIR, 1, CHAIR, 5, 20),
    (0, CHAIR, 2, LAMP, 6, 60),  # chair 2: one prediction, but a lamp
    (0, LAMP, 3, WALL, 0, 50),  # lamp 3: nobody's
    (0, CHAIR, 7, CHAIR, 10, 40),  # chair 7: in two halves
    (0, CHAIR, 7, CHAIR, 11, 40),
    (0, CHAIR, 7, CHAIR, 12, 20),
    (1, LAMP, 8, LAMP, 13, 30),  # lamps 8 and 14 are one prediction
    (1, LAMP, 14, LAMP, 13, 90),
]


@pytest.fixture
def made() -> SceneResult:
    counts = PairCounts.from_rows(np.array(ROWS))
    bare = result("m", space=SPACE, frames=["0", "5"]).model_copy(update={"counts": StoredCounts.pack(counts)})
    return rescore(bare, Protocol.load("panoptic-strict@1"))


def test_each_instance_has_its_verdict_in_words(made: SceneResult) -> None:
    words = {i.true_id: (i.verdict, in_words(i, made)) for i in made.instances}
    assert words[1] == ("found", "IoU 80 %; another id in 1 of 2 frames")
    assert words[2] == ("wrong class", "taken for lamp, IoU 100 %")
    assert words[3] == ("missed", "nothing covers it")
    assert words[7] == ("split", "shared by 3 predictions, IoU 40 %")
    assert words[8] == ("merged", "in one prediction with lamp 14, IoU 25 %")
    assert words[14][0] == "found"


def test_the_worst_are_those_with_most_pixels_that_nothing_right_explains(made: SceneResult) -> None:
    # 7 loses 60 of 100, 3 all of 50, 8 three quarters of 30, 2 nothing but its class.
    assert [i.true_id for i in worst_instances(made, 10)] == [7, 3, 8, 2]
    assert [i.true_id for i in worst_instances(made, 2)] == [7, 3]


def test_confusions_are_pixels_and_shares_of_the_true_class(made: SceneResult) -> None:
    names, matrix = confusion(made)
    assert names == ["wall", "chair", "lamp", "void"]
    assert matrix.tolist() == [[900, 0, 100, 0], [0, 200, 60, 0], [50, 0, 120, 0], [0, 0, 0, 0]]
    _, rows = largest_confusions(made, 2)
    assert rows == [["wall", "lamp", 100, pytest.approx(10.0)], ["chair", "lamp", 60, pytest.approx(100 * 60 / 260)]]


def test_the_page_names_everything_and_leads_to_the_pictures(made: SceneResult, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures" / "instances"
    pictures.mkdir(parents=True)
    entry = {"true_id": 7, "crops": {"photo": "7.photo.jpg", "error": "7.error.png"}}
    (pictures / "index.json").write_text(json.dumps({"instances": [entry]}))
    page = diagnosis(made, pictures, tmp_path)
    assert "True instances: 6 (2 found, 1 split, 1 merged, 1 wrong class, 1 missed)" in page
    assert "in 1 of 7 sightings" in page
    assert "[error](pictures/instances/7.error.png)" in page
    for heading in ("The worst instances", "Largest confusions", "Classes", "All instances", "Pixels by true"):
        assert f"## {heading}" in page
    assert "| chair | 0 | 200 | 60 |" in page


def test_without_an_index_there_are_no_pictures(made: SceneResult, tmp_path: Path) -> None:
    assert crops_of(tmp_path) == {}
    assert "error.png" not in diagnosis(made, tmp_path, tmp_path)
