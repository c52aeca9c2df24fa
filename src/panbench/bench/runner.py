"""Runs a plan: knows what is done, gives the rest to an engine, and keeps what comes back.

::

    BENCH/<plan>/plan.yaml             copy of the plan as it was run last
    BENCH/<plan>/cells/KEY.json        how a cell ended; written once it did, in one piece
    BENCH/<plan>/logs/KEY.log          what it wrote
    BENCH/<plan>/work/KEY/             lock, receipt, results on their way to the store

A cell is done when its record says so and the store has its results. Everything else is made again by the same command:
the run directory continues where it was, so a crash at any moment costs at most what a run had not saved.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from panbench.bench.artifacts import fetch
from panbench.bench.engine import PYTHON, Engine, Outcome, Resources, Task
from panbench.bench.plan import Cell, Plan
from panbench.errors import UserError
from panbench.lock import held
from panbench.protocol.results import BenchCell, SceneResult
from panbench.protocol.score import paper_protocol
from panbench.protocol.store import ResultStore
from panbench.training.files import write_text

log = logging.getLogger(__name__)

STRICT = "panoptic-strict@1"


class CellRecord(BaseModel):
    """How a cell ended.

    Attributes:
        cell, name, digest: which.
        status: ``done``, or ``failed`` with ``error``.
        error: one line.
        exit_status, seconds, host, attempts: of the engine's :class:`~panbench.bench.engine.Outcome`.
        run: folder of the run, or where its copy is; "" where there is none.
        results: hashes of its results in the store, those of the training-free rows included.
        ended: UTC, ISO 8601.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    cell: str
    name: str
    digest: str
    status: Literal["done", "failed"]
    error: str = ""
    exit_status: int = 0
    seconds: float = 0.0
    host: str = ""
    attempts: int = 1
    run: str = ""
    results: list[str] = Field(default_factory=list)
    ended: str = ""


@dataclass(frozen=True)
class State:
    """What a plan comes to at the moment.

    Attributes:
        cells: all of it, in order.
        done, failed: records by key.
        absent: cells whose data are not on this machine: the folder by key.
        pending: cells to run.
    """

    cells: Sequence[Cell]
    done: dict[str, CellRecord]
    failed: dict[str, CellRecord]
    absent: dict[str, Path]
    pending: Sequence[Cell]


class BenchFolder:
    """State of one plan on disk, and the way from its cells to tasks and from outcomes to results.

    Args:
        folder: ``BENCH/<plan>``.
        store: where results go.
        runs: root folder of run directories.
        plan: the plan.
    """

    def __init__(self, folder: Path, store: ResultStore, runs: Path, plan: Plan) -> None:
        self.folder = folder
        self._store = store
        self._runs = runs
        self._plan = plan
        self._anchors: dict[tuple[str, ...], str] | None = None

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the bench for this process; the kernel drops the lock with it.

        Raises:
            UserError: if another runner has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder, "runs this plan already"):
            yield

    def state(self, cells: Sequence[Cell], *, retry_failed: bool = False) -> State:
        """What is done, failed and still to run of ``cells``."""
        done: dict[str, CellRecord] = {}
        failed: dict[str, CellRecord] = {}
        known = {path.stem.rpartition("-")[2] for path in self._store.paths()}
        for cell in cells:
            record = self.record(cell.key)
            if record is None:
                continue
            if record.status == "failed":
                failed[cell.key] = record
            elif all(digest[:16] in known for digest in record.results):
                done[cell.key] = record
            else:
                log.warning("%s: its results are gone from %s; it runs again", cell.name, self._store.folder)
        todo = [c for c in cells if c.key not in done and (retry_failed or c.key not in failed)]
        absent = {c.key: c.data for c in todo if c.data is not None and not c.data.is_dir()}
        return State(cells, done, failed, absent, [c for c in todo if c.key not in absent])

    def record(self, key: str) -> CellRecord | None:
        """The record of a cell; None if it has none. A damaged one counts as none: the cell runs again."""
        path = self._record_path(key)
        try:
            return CellRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("%s is damaged (%s); the cell runs again", path, error.errors()[0]["msg"])
            return None

    def log_path(self, key: str) -> Path:
        """Where a cell's output is."""
        return self.folder / "logs" / f"{key}.log"

    def task(self, cell: Cell, *, threads: int | None = None) -> Task:
        """What an engine runs for a cell.

        Args:
            cell: the cell.
            threads: of each process; None leaves them at the machine's number.
        """
        work = self._work(cell.key)
        work.mkdir(parents=True, exist_ok=True)
        needs = self._plan.resources
        # A cell on a GPU needs few cores; one on cores is given all of a machine like this one.
        cpus = needs.cpus or (1.0 if needs.gpus else float(os.cpu_count() or 1))
        environment = {"COLUMNS": "120"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        return Task(
            key=cell.key,
            commands=tuple(self._commands(cell, work)),
            log=self.log_path(cell.key).resolve(),
            lock=(work / "lock").resolve(),
            folder=Path.cwd(),
            environment=environment,
            resources=Resources(cpus, needs.gpus, needs.gpu_memory_gb),
        )

    def keep(self, cell: Cell, outcome: Outcome) -> CellRecord:
        """Put the results of a cell that ended into the store, and its record into the bench folder.

        Raises:
            UserError: if the cell failed because the disk is full; it has no record then, and runs again.
            OSError: if nothing can be written.
        """
        record = CellRecord(
            cell=cell.key,
            name=cell.name,
            digest=cell.digest,
            status="done" if outcome.status == 0 else "failed",
            error=outcome.error,
            exit_status=outcome.status,
            seconds=round(outcome.seconds, 3),
            host=outcome.host,
            attempts=outcome.attempts,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if record.status == "done":
            try:
                run, results = self._results(cell)
            except UserError as error:
                record.status, record.error = "failed", str(error)
            else:
                record.run = run
                record.results = [self._put(cell, result) for result in results]
                if not record.results:
                    record.status, record.error = "failed", "it ended well but left no scores: is there ground truth?"
        elif "the disk is full" in outcome.error or "quota is used up" in outcome.error:
            raise UserError(f"{cell.name}: {outcome.error}")
        write_text(self._record_path(cell.key), record.model_dump_json(indent=1) + "\n")
        return record

    def _commands(self, cell: Cell, work: Path) -> Iterator[tuple[str, ...]]:
        if cell.options:
            receipt = work.resolve() / "receipt.json"
            place = (f"--run.root={self._runs}", f"--run.receipt={receipt}")
            yield (PYTHON, "-m", "panbench", "fit", *cell.options, *place)
            if self._plan.artifacts is not None:
                yield (PYTHON, "-m", "panbench.bench.artifacts", str(receipt), self._copy(cell))
            return
        predictions = cell.predictions or work.resolve() / "predictions"
        if cell.program:
            yield tuple(word.replace("{out}", str(predictions)) for word in cell.program)
        for i, protocol in enumerate(cell.protocols or (paper_protocol("scannet"), STRICT)):
            save = ("--save", str(work.resolve() / f"{i}.result.json"))
            yield (
                PYTHON,
                "-m",
                "panbench",
                "eval",
                str(predictions),
                "--truth",
                str(cell.data),
                "--protocol",
                protocol,
                *save,
            )

    def _copy(self, cell: Cell) -> str:
        """Where the copy of a run goes that is made on a machine of its own."""
        return f"{(self._plan.artifacts or '').rstrip('/')}/{self._plan.name}/{cell.key}"

    def _results(self, cell: Cell) -> tuple[str, list[SceneResult]]:
        """Where the run is ("" for a program's), and the results that a cell left, its own first."""
        work = self._work(cell.key)
        if not cell.options:
            found = [SceneResult.load(path) for path in sorted(work.glob("*.result.json"))]
            for result in found:
                # The name and seed of the plan: a program's manifest may lack them.
                result.method, result.seed, result.labels = cell.method.name, cell.seed, cell.method.labels
                if cell.program:
                    result.origin.trust = "verified"
                    result.origin.command = list(cell.program)
            return "", found
        if self._plan.artifacts is not None:
            fetch(self._copy(cell), work / "copy", only=("result.json", "results/*"))
            return self._copy(cell), _scores(work / "copy")
        try:
            receipt = json.loads((work / "receipt.json").read_text())
            run = Path(receipt["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{work / 'receipt.json'} does not name the run ({error}); run the cell again") from error
        return str(run), _scores(run)

    def _put(self, cell: Cell, result: SceneResult) -> str:
        """Add a result with its place in the plan; a training-free row that is there already stays one."""
        own = result.method == cell.method.name
        method = cell.method
        result.bench = BenchCell(
            plan=self._plan.name,
            cell=cell.key if own else "",
            method=result.method,
            scene=cell.scene.name,
            base=method.base[0] if own and method.base else "",
            head=method.head[0] if own and method.head else "",
            variant=str(cell.point.x) if cell.point else "",
            axis=self._plan.study.axis if self._plan.study else "",
            x=cell.point.x if cell.point else None,
            order=cell.order,
        )
        if own:
            return self._store.add(result)
        if self._anchors is None:
            self._anchors = {_anchor(s.result): s.hash for s in self._store if s.result.seed is None}
        key = _anchor(result)
        if key not in self._anchors:
            self._anchors[key] = self._store.add(result)
        return self._anchors[key]

    def _work(self, key: str) -> Path:
        return self.folder / "work" / key

    def _record_path(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"


def _scores(run: Path) -> list[SceneResult]:
    """Results of a run directory, the main one first."""
    paths = [run / "result.json", *sorted((run / "results").glob("*.json"))]
    return [SceneResult.load(path) for path in paths if path.is_file()]


def _anchor(result: SceneResult) -> tuple[str, ...]:
    """What makes two results of a training-free method the same: their counts and the place they have."""
    bench = result.bench
    place = (bench.plan, bench.scene, bench.variant) if bench else ("", "", "")
    return (result.method, result.protocol_hash, result.split_hash, result.origin.mask_hash, result.counts.data, *place)


def run_cells(
    bench: BenchFolder,
    cells: Sequence[Cell],
    engine: Engine,
    *,
    threads: int | None = None,
    started: Callable[[Cell], None],
    ended: Callable[[Cell, CellRecord], None],
) -> None:
    """Run cells on an engine and keep what comes back; one that fails does not stop the others.

    Raises:
        UserError: if the disk is full: what is done is kept, the rest stops.
        OSError: if the bench folder or the store cannot be written.
    """
    by_key = {cell.key: cell for cell in cells}
    tasks = (bench.task(cell, threads=threads) for cell in cells)
    with closing(engine.run(tasks, lambda task: started(by_key[task.key]))) as outcomes:
        for outcome in outcomes:
            if outcome.error == "stopped":
                continue  # asked for; the cell is to be run again and has no record
            ended(by_key[outcome.key], bench.keep(by_key[outcome.key], outcome))


def estimate(bench_root: Path, plan: Plan, cells: Sequence[Cell]) -> tuple[float, int]:
    """Seconds that cells will take one after another, and for how many of them a past run says so.

    A cell takes what the same method took on the same scene at the same point, else what it took on average, else what
    all did; 0 cells are known where nothing ran yet. Past cells of all plans count, those of this plan first.
    """
    past: dict[tuple[str, ...], list[float]] = {}
    for path in sorted(bench_root.glob("*/cells/*.json")):
        try:
            record = CellRecord.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        if record.status != "done":
            continue
        own = path.parent.parent.name == plan.name
        names = record.name.split("/")
        if own:
            past.setdefault(tuple(names[:-1]), []).append(record.seconds)
        past.setdefault((plan.name if own else "", names[0]), []).append(record.seconds)
        past.setdefault((), []).append(record.seconds)
    total, known = 0.0, 0
    for cell in cells:
        names = cell.name.split("/")
        for key in (tuple(names[:-1]), (plan.name, names[0]), ("", names[0]), ()):
            if key in past:
                total += sum(past[key]) / len(past[key])
                known += 1
                break
    return total, known


def free_bytes(folder: Path) -> int:
    """Free space of the file system that ``folder`` is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
