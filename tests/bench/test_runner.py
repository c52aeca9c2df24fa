from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest

from panbench.bench.artifacts import upload
from panbench.bench.engine import Outcome, Task
from panbench.bench.plan import Cell, Plan, cells
from panbench.bench.runner import BenchFolder, CellRecord, estimate, run_cells
from panbench.errors import UserError
from panbench.protocol.results import SceneResult
from panbench.protocol.store import ResultStore

GOLDEN = Path(__file__).parents[1] / "golden" / "results" / "schema_v1.json"
PLAN = {
    "name": "p",
    "config": "main.yaml",
    "methods": [{"name": "ours"}],
    "scenes": [{"name": "room"}],
    "study": {"axis": "noise", "points": [{"x": 0.1}, {"x": 0.2}]},
    "seeds": [0, 1],
}


class PretendingEngine:
    """Leaves what ``panbench fit`` would: a run directory with a result and a training-free row, and a receipt."""

    def __init__(self, folder: Path, fail: Iterable[str] = ()) -> None:
        self.folder = folder
        self.fail = set(fail)
        self.seen: list[Task] = []

    def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Generator[Outcome, None, None]:
        for task in tasks:
            self.seen.append(task)
            started(task)
            if task.key in self.fail:
                yield Outcome(task.key, 2, 1.0, "here", 1, "exit status 2: no luck")
                continue
            run = self.folder / "runs" / task.key
            result = SceneResult.load(GOLDEN)
            words = dict(word[2:].split("=", 1) for word in task.commands[0] if "=" in word)
            result.method, result.seed = words["run.method"], int(words["seed_everything"])
            result.save(run / "result.json")
            anchor = result.model_copy(
                update={"method": "voxel-vote", "seed": None, "cost": {"fit_seconds": len(self.seen)}}
            )
            anchor.save(run / "results" / "voxel-vote.json")
            Path(words["run.receipt"]).write_text(json.dumps({"run": str(run)}))
            yield Outcome(task.key, 0, 2.0, "here")

    def stop(self) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


@pytest.fixture
def bench(tmp_path: Path, store: ResultStore) -> BenchFolder:
    return BenchFolder(tmp_path / "bench" / "p", store, tmp_path / "runs", Plan.model_validate(PLAN))


@pytest.fixture
def plan_cells(tmp_path: Path) -> list[Cell]:
    (tmp_path / "main.yaml").write_text("a: 1\n")
    return cells(Plan.model_validate(PLAN), tmp_path / "plan.yaml")


def run(bench: BenchFolder, todo: Iterable[Cell], engine: PretendingEngine) -> dict[str, CellRecord]:
    ended: dict[str, CellRecord] = {}
    run_cells(bench, list(todo), engine, started=lambda _: None, ended=lambda cell, r: ended.update({cell.key: r}))
    return ended


def test_results_come_to_the_store_with_their_place_in_the_plan(
    bench: BenchFolder, store: ResultStore, plan_cells: list[Cell], tmp_path: Path
) -> None:
    run(bench, plan_cells, PretendingEngine(tmp_path))
    state = bench.state(plan_cells)
    assert (len(state.done), state.failed, state.pending) == (4, {}, [])
    own = [s.result for s in store if s.result.method == "ours"]
    places = sorted((r.seed, r.bench.x, r.bench.order, r.bench.axis, r.bench.scene) for r in own if r.bench)
    assert places == [
        (0, 0.1, 0, "noise", "room"),
        (0, 0.2, 1, "noise", "room"),
        (1, 0.1, 0, "noise", "room"),
        (1, 0.2, 1, "noise", "room"),
    ]
    assert {r.bench.cell for r in own if r.bench} == {cell.key for cell in plan_cells}


def test_a_training_free_row_is_stored_once_a_point_whatever_its_cost(
    bench: BenchFolder, store: ResultStore, plan_cells: list[Cell], tmp_path: Path
) -> None:
    run(bench, plan_cells[:1], PretendingEngine(tmp_path))
    # A later runner knows what an earlier one stored.
    later = BenchFolder(tmp_path / "bench" / "p", store, tmp_path / "runs", Plan.model_validate(PLAN))
    run(later, plan_cells[1:], PretendingEngine(tmp_path))
    assert sorted(s.result.bench.x for s in store if s.result.seed is None and s.result.bench) == [0.1, 0.2]
    assert all(len(r.results) == 2 for r in later.state(plan_cells).done.values())


def test_a_failed_cell_waits_until_it_is_asked_for(bench: BenchFolder, plan_cells: list[Cell], tmp_path: Path) -> None:
    bad = plan_cells[1].key
    ended = run(bench, plan_cells, PretendingEngine(tmp_path, fail=[bad]))
    assert ended[bad].error == "exit status 2: no luck"
    state = bench.state(plan_cells)
    assert (len(state.done), list(state.failed), state.pending) == (3, [bad], [])
    assert [c.key for c in bench.state(plan_cells, retry_failed=True).pending] == [bad]


def test_a_cell_without_scores_has_failed(bench: BenchFolder, plan_cells: list[Cell], tmp_path: Path) -> None:
    class Scoreless(PretendingEngine):
        def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Generator[Outcome, None, None]:
            for outcome in super().run(tasks, started):
                (self.folder / "runs" / outcome.key / "result.json").unlink()
                (self.folder / "runs" / outcome.key / "results" / "voxel-vote.json").unlink()
                yield outcome

    (record,) = run(bench, plan_cells[:1], Scoreless(tmp_path)).values()
    assert record.status == "failed"
    assert "left no scores" in record.error


def test_a_cell_whose_results_are_gone_or_whose_record_is_damaged_runs_again(
    bench: BenchFolder, store: ResultStore, plan_cells: list[Cell], tmp_path: Path
) -> None:
    run(bench, plan_cells, PretendingEngine(tmp_path))
    first = bench.state(plan_cells).done[plan_cells[0].key]
    store.get(first.results[0]).path.unlink()
    (tmp_path / "bench" / "p" / "cells" / f"{plan_cells[3].key}.json").write_text('{"cell":')
    assert [c.key for c in bench.state(plan_cells).pending] == [plan_cells[0].key, plan_cells[3].key]


def test_a_full_disk_stops_the_bench_and_is_no_failure_of_the_cell(bench: BenchFolder, plan_cells: list[Cell]) -> None:
    outcome = Outcome(plan_cells[0].key, 2, 1.0, "here", 1, "exit status 2: /x: the disk is full; free some space")
    with pytest.raises(UserError, match="the disk is full"):
        bench.keep(plan_cells[0], outcome)
    assert bench.record(plan_cells[0].key) is None


def test_the_cost_is_judged_by_the_nearest_past(tmp_path: Path, plan_cells: list[Cell]) -> None:
    def past(plan: str, name: str, seconds: float) -> None:
        folder = tmp_path / "bench" / plan / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        record = CellRecord(cell=name, name=name, digest="", status="done", seconds=seconds)
        (folder / f"{len(list(folder.iterdir()))}.json").write_text(record.model_dump_json())

    plan = Plan.model_validate(PLAN)
    root = tmp_path / "bench"
    assert estimate(root, plan, plan_cells) == (0.0, 0)
    past("other", "theirs/room/s0", 100)
    assert estimate(root, plan, plan_cells) == (400.0, 4)
    past("other", "ours/room/s0", 50)
    assert estimate(root, plan, plan_cells) == (200.0, 4)
    past("p", "ours/0.1/room/s7", 10)
    past("p", "ours/0.1/room/s8", 20)
    past("p", "ours/0.2/room/s7", 3)
    assert estimate(root, plan, plan_cells) == (15 + 15 + 3 + 3, 4)


def test_threads_are_shared_among_cells_that_run_side_by_side(bench: BenchFolder, plan_cells: list[Cell]) -> None:
    assert bench.task(plan_cells[0], threads=3).environment["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in bench.task(plan_cells[0]).environment


def test_results_of_machines_of_their_own_come_back_through_the_artifacts(store: ResultStore, tmp_path: Path) -> None:
    class Elsewhere(PretendingEngine):
        """The run stays where no one else can read it; only its copy is left."""

        def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Generator[Outcome, None, None]:
            for outcome in super().run(tasks, started):
                python, dash_m, module, receipt, url = self.seen[-1].commands[1]
                assert (python, dash_m, module) == ("{python}", "-m", "panbench.bench.artifacts")
                run = Path(json.loads(Path(receipt).read_text())["run"])
                upload(run, url)
                shutil.rmtree(run)
                Path(receipt).unlink()
                yield outcome

    plan = Plan.model_validate({**PLAN, "artifacts": f"file://{tmp_path}/bucket"})
    (tmp_path / "main.yaml").write_text("a: 1\n")
    bench = BenchFolder(tmp_path / "bench" / "p", store, tmp_path / "runs", plan)
    todo = cells(plan, tmp_path / "plan.yaml")
    run(bench, todo, Elsewhere(tmp_path))
    state = bench.state(todo)
    assert len(state.done) == 4
    assert {r.run for r in state.done.values()} == {f"file://{tmp_path}/bucket/p/{cell.key}" for cell in todo}
    assert len([s for s in store if s.result.method == "ours"]) == 4
