from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panbench.protocol import SceneResult
from panbench.protocol.store import ResultStore

GOLDEN = Path(__file__).parents[1] / "golden" / "results" / "schema_v1.json"
Panbench = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultStore:
    """Two seeds of one method, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    out = ResultStore(Path("results"))
    for seed in (0, 1):
        result = SceneResult.load(GOLDEN)
        result.seed, result.metrics["PQ"] = seed, 80.0 + seed
        out.add(result)
    return out


def test_list_shows_every_result_on_a_line(panbench: Panbench, store: ResultStore) -> None:
    answer = panbench("results", "list")
    head, *rows, last = answer.out.splitlines()
    assert head.split()[:6] == ["result", "dataset", "scene", "protocol", "method", "seed"]
    assert sorted((row.split()[5], row.split()[7]) for row in rows) == [("0", "80.0"), ("1", "81.0")]
    assert last == "2 results; * synthetic"
    assert len(panbench("results", "list", "--method", "none").out.splitlines()) == 2


def test_diff_says_what_changed_and_refuses_other_ground(panbench: Panbench, store: ResultStore) -> None:
    a, b = sorted(store, key=lambda s: s.result.seed or 0)
    answer = panbench("results", "diff", a.hash[:8], b.hash[:8])
    assert next(line.split() for line in answer.out.splitlines() if line.startswith("PQ ")) == [
        "PQ",
        "80.0",
        "81.0",
        "+1.00",
    ]
    other = a.result.model_copy(update={"split_hash": "x", "frames": ["1", "2"]})
    other.save(Path("other.json"))
    answer = panbench("results", "diff", a.hash, "other.json")
    assert answer.status == 2
    assert "cannot be compared: test frames: 1 and 2, 3 of them in one only" in answer.err


def test_verify_names_what_was_changed(panbench: Panbench, store: ResultStore) -> None:
    assert panbench("results", "verify").out == "2 of 2 results are as they were stored\n"
    path = store.paths()[0]
    path.chmod(0o644)
    path.write_text(path.read_text().replace("80.0", "99.0").replace("81.0", "99.0"))
    answer = panbench("results", "verify")
    assert answer.status == 1
    assert f"{path}: was changed" in answer.out
    assert "1 of 2 results" in answer.out


def test_merge_takes_nothing_from_a_damaged_store(panbench: Panbench, store: ResultStore) -> None:
    assert "2 results added to new" in panbench("results", "merge", "--store", "new", "results").err
    path = store.paths()[0]
    path.chmod(0o644)
    path.write_text("{}")
    answer = panbench("results", "merge", "--store", "third", "results")
    assert answer.status == 2
    assert "nothing was merged" in answer.err
    assert not Path("third").exists()


def test_rescore_counts_again_once(panbench: Panbench, store: ResultStore) -> None:
    answer = panbench("results", "rescore", "--protocol", "panoptic-strict@1")
    assert "2 results under panoptic-strict@1 added" in answer.err
    assert (
        "0 results under panoptic-strict@1 added"
        in panbench("results", "rescore", "--protocol", "panoptic-strict@1").err
    )
    assert len(store.paths()) == 4


def test_add_takes_runs_and_files(panbench: Panbench, store: ResultStore, tmp_path: Path) -> None:
    run = tmp_path / "run"
    SceneResult.load(GOLDEN).save(run / "result.json")
    SceneResult.load(GOLDEN).model_copy(update={"method": "voxel-vote", "seed": None}).save(run / "results" / "v.json")
    assert panbench("results", "add", "run", str(GOLDEN)).status == 0
    assert len(store.paths()) == 4
    answer = panbench("results", "add", "results")
    assert answer.status == 2
    assert "neither a result nor a run directory" in answer.err


@pytest.mark.parametrize("verb", [("list",), ("verify",), ("rescore", "--protocol", "panoptic-strict@1")])
def test_a_store_that_is_not_there_is_one_line(
    panbench: Panbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = panbench("results", *verb)
    assert answer.status == 2
    assert (
        answer.err == "error: results: there is no results store; panbench bench makes one, or name it with --store\n"
    )
