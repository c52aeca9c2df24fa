from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from panbench.errors import UserError
from panbench.protocol import PredictionSet, Protocol, SceneResult, rescore, score
from panbench.protocol.results import Origin
from panbench.protocol.store import ResultStore, content_hash
from panbench.scene import LabelSpace, PanopticMap

STRICT = Protocol.load("panoptic-strict@1")
GOLDEN = Path(__file__).parents[1] / "golden" / "results"


@pytest.fixture
def result(make_folder: Callable[..., Path], truth: dict[str, PanopticMap], labels: LabelSpace) -> SceneResult:
    return score(PredictionSet.open(make_folder()), truth, labels, STRICT)


def test_what_is_stored_comes_back(result: SceneResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "store")
    digest = store.add(result)
    assert digest == content_hash(result)
    assert digest in store
    assert store.get(digest[:6]).result == result
    assert [s.hash for s in store] == [digest]


def test_the_same_result_is_stored_once_and_never_written_again(result: SceneResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    digest = store.add(result)
    (path,) = store.paths()
    before = path.stat()
    assert store.add(result) == digest
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert not path.stat().st_mode & 0o222


def test_any_other_content_has_another_hash(result: SceneResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for seed in (0, 1):
        store.add(result.model_copy(update={"seed": seed}))
    store.add(result.model_copy(update={"origin": Origin(masks="heavy")}))
    assert len(store.paths()) == 3


def test_a_changed_file_is_found_out(result: SceneResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.add(result)
    assert list(store.faults()) == []
    (path,) = store.paths()
    path.chmod(0o644)
    record = json.loads(path.read_text())
    record["metrics"]["PQ"] = 99.9
    path.write_text(json.dumps(record))
    assert [(p, f) for p, f in store.faults()] == [
        (path, "was changed after it was stored: its content has another hash than its name")
    ]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda text: text[:100], "is damaged"),
        (lambda text: "{}", "is no result"),
        (lambda text: text.replace('"data":"eN', '"data":"!!'), "is damaged"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(
    result: SceneResult, tmp_path: Path, damage: Callable[[str], str], fault: str
) -> None:
    store = ResultStore(tmp_path)
    store.add(result)
    (path,) = store.paths()
    path.chmod(0o644)
    path.write_text(damage(path.read_text()))
    ((found, said),) = store.faults()
    assert found == path
    assert said.startswith(fault)


def test_a_file_in_the_wrong_folder_is_found_out(result: SceneResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.add(result)
    (path,) = store.paths()
    elsewhere = tmp_path / "scannet" / "scene9999_00" / "panoptic-strict@1" / path.name
    elsewhere.parent.mkdir(parents=True)
    path.rename(elsewhere)
    ((_, fault),) = store.faults()
    assert "wrong folder" in fault
    assert str(path.relative_to(tmp_path)) in fault


def test_merging_copies_what_is_missing_byte_for_byte(result: SceneResult, tmp_path: Path) -> None:
    a, b = ResultStore(tmp_path / "a"), ResultStore(tmp_path / "b")
    a.add(result)
    b.add(result)
    only_b = b.add(result.model_copy(update={"seed": 9}))
    assert a.merge(b) == 1
    assert a.merge(b) == 0
    assert a.get(only_b).path.read_bytes() == b.get(only_b).path.read_bytes()
    assert list(a.faults()) == []


def test_a_write_that_is_cut_off_leaves_nothing(
    result: SceneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = ResultStore(tmp_path / "store")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.add(result)
    assert [p for p in store.folder.rglob("*") if p.is_file()] == []


def test_odd_names_become_paths_inside_the_store(result: SceneResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "store")
    odd = result.model_copy(update={"method": "../../évil: a/b", "scene": "..", "dataset": ""})
    digest = store.add(odd)
    (path,) = store.paths()
    assert path.resolve().is_relative_to((tmp_path / "store").resolve())
    assert store.get(digest).result.method == "../../évil: a/b"


@pytest.mark.parametrize(("name", "message"), [("abcd", "no result abcd"), ("xyz", "is no hash"), ("ab", "is no hash")])
def test_a_hash_that_is_not_there_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ResultStore(tmp_path).get(name)


def test_results_of_schema_1_are_read(tmp_path: Path) -> None:
    result = SceneResult.load(GOLDEN / "schema_v1.json")
    old = json.loads((GOLDEN / "schema_v1.json").read_text())
    assert old["schema_version"] == 1
    assert result.schema_version == 2
    assert (result.origin.trust, result.origin.mask_hash, result.origin.data_hash) == ("verified", "masks", "data")
    assert result.metrics["PQ"] == old["metrics"]["PQ"]
    assert result.bench is None
    store = ResultStore(tmp_path)
    store.add(result)
    assert list(store.faults()) == []


def test_counting_again_keeps_where_a_result_came_from(result: SceneResult) -> None:
    result.origin = Origin(trust="verified", masks="medium", mask_hash="abc", command=["panbench", "fit"])
    assert rescore(result, Protocol.load("scannet-paper@1")).origin == result.origin


def test_a_later_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    path.write_text('{"schema_version": 3}')
    with pytest.raises(UserError, match="schema_version"):
        SceneResult.load(path)
