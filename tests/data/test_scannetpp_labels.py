"""Label spaces of ScanNet++: those of the paper's scenes, and the benchmark's lists as the release has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from panbench.data.scannetpp_labels import read_label_space
from panbench.errors import UserError

# Evaluated things, evaluated stuff, and what is not evaluated, of the published evaluation.
PAPER = {
    "1ada7a0617": (
        {"chair", "table", "whiteboard", "cabinet", "door", "trash can", "monitor", "keyboard"},
        {"floor", "wall", "ceiling", "blinds"}, {"object"},
    ),
    "5748ce6f01": (
        {"office chair", "table", "whiteboard", "flat panel display", "door"}, {"floor", "wall", "ceiling"}, {"object"},
    ),
    "f6659a3107": (
        {"chair", "table", "door", "tv"}, {"floor", "wall", "ceiling", "object"}, {"whiteboard", "window"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("scene", PAPER)
def test_the_papers_scenes_have_the_classes_of_its_evaluation(scene: str, tmp_path: Path) -> None:
    things, stuff, void = PAPER[scene]
    # By the scene's name, and by the name of the label space for any scene.
    (tmp_path / scene).mkdir()
    labels, raw = read_label_space(tmp_path / scene, None)
    assert labels.name == scene
    assert read_label_space(tmp_path, scene)[0].classes == labels.classes
    assert {c.name for c in labels.classes if c.evaluate and c.thing} == things
    assert {c.name for c in labels.classes if c.evaluate and not c.thing} == stuff
    assert {c.name for c in labels.classes if not c.evaluate} == void
    # Every class is met by its own name at least, and no raw label twice.
    assert all(raw[c.name] == c.id for c in labels.classes)
    assert [c.id for c in labels.classes] == list(range(1, len(labels.classes) + 1))


def test_there_are_twenty_eight_evaluated_classes() -> None:
    assert sum(len(read_label_space(Path("x"), scene)[0].evaluated_ids) for scene in PAPER) == 28


# ------------------------------------------------------------------------------------------------------- the benchmark


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    (tmp_path / "top100.txt").write_text("wall\nchair\nfloor\n\nmonitor\n")
    (tmp_path / "top100_instance.txt").write_text("chair\nmonitor\n")
    (tmp_path / "map_benchmark.csv").write_text(
        "class,count,semantic_map_to,instance_map_to\n"
        "wall,100,,None\n"
        "office chair,90,chair,chair\n"
        '"wall, painted",5,wall,None\n'
        "monitor,7,None,\n"
        "screen,6,monitor,monitor\n"
        "rug,3,,\n"
    )
    return tmp_path


def test_the_benchmarks_semantic_classes_are_those_of_its_files(metadata: Path) -> None:
    labels, raw = read_label_space(Path("scene"), metadata / "top100.txt")
    assert [(c.id, c.name, c.thing) for c in labels.classes] == [
        (1, "wall", False), (2, "chair", True), (3, "floor", False), (4, "monitor", True),
    ]  # fmt: skip
    # chair and floor are not in the table: as themselves; monitor is dropped by it; rug is none of the classes.
    assert raw == {"wall": 1, "chair": 2, "floor": 3, "office chair": 2, "wall, painted": 1, "screen": 4}


def test_the_benchmarks_instance_classes_use_its_other_column(metadata: Path) -> None:
    labels, raw = read_label_space(Path("scene"), str(metadata / "top100_instance.txt"))
    assert [(c.id, c.name, c.thing) for c in labels.classes] == [(1, "chair", True), (2, "monitor", True)]
    assert raw == {"chair": 1, "office chair": 1, "monitor": 2, "screen": 2}


def rewrite(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "top100.txt").unlink(), r"top100\.txt: no such file: correct data\.label_space"),
        (lambda f: (f / "top100_instance.txt").unlink(), r"top100_instance\.txt: no such file"),
        (lambda f: (f / "map_benchmark.csv").unlink(), r"map_benchmark\.csv: no such file"),
        (rewrite("top100.txt", b"a\nb\na\n"), r"is empty, or lists a class twice"),
        (rewrite("top100.txt", b"\n"), r"is empty, or lists a class twice"),
        (rewrite("top100.txt", b"\xff\xfe"), r"is no text file"),
        (rewrite("map_benchmark.csv", b"x,y\n1,2\n"), r"has no column class or semantic_map_to"),
        (rewrite("map_benchmark.csv", b'class,semantic_map_to\n"' + b"x" * 200_000 + b'",y\n'), r"is no table"),
    ],
    ids=["no list", "no things", "no table", "twice", "empty", "bytes", "columns", "long"],
)
def test_damaged_lists_are_refused_in_one_line(metadata: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(metadata)
    with pytest.raises(UserError, match=message) as caught:
        read_label_space(Path("scene"), metadata / "top100.txt")
    assert "\n" not in str(caught.value)
