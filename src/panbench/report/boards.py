"""Sorts results into boards: what was scored alike may stand in one table, the rest is held apart with the reason."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from panbench.errors import UserError
from panbench.protocol import Protocol
from panbench.protocol.compare import Ground, ground, obstacles
from panbench.protocol.results import SceneResult
from panbench.protocol.store import StoredResult
from panbench.report.statistics import NO_SEED, SceneRule

TRAINING_FREE = ("raw-masks", "voxel-vote")


class BoardKey(NamedTuple):
    """What all results of a board share."""

    dataset: str
    synthetic: bool
    protocol: str
    protocol_hash: str
    masks: str


@dataclass(eq=False)
class Entry:
    """A method with one set of settings on one board.

    Attributes:
        method: its name.
        settings: hash of its settings; results that differ in it are two entries.
        results: by scene and seed; the newest of each.
    """

    method: str
    settings: str
    trust: str
    results: dict[str, dict[int, StoredResult]] = field(default_factory=dict)
    shared_name: bool = False

    @property
    def key(self) -> str:
        """The entry's identity."""
        return f"{self.trust}/{self.method}/{self.settings}"

    @property
    def name(self) -> str:
        """Method, with the beginning of its settings' hash if the board has several of that name."""
        return f"{self.method} [{self.settings[:6] or 'unknown'}]" if self.shared_name else self.method

    @property
    def own_labels(self) -> bool:
        """True if it used masks of its own."""
        return any(stored.result.labels == "own" for stored in self.all())

    @property
    def training_free(self) -> bool:
        """True for the rows that need no training and have no seed."""
        return is_training_free(next(iter(self.all())).result)

    @property
    def plan_names(self) -> list[str]:
        """``method of plan`` of the plans that ran it, where the plan's name for it is another."""
        cells = (stored.result.bench for stored in self.all())
        return sorted({f"{c.method} in {c.plan}" for c in cells if c is not None and c.method != self.method})

    def all(self) -> list[StoredResult]:
        """All its results, by scene and seed."""
        return [seeds[seed] for _, seeds in sorted(self.results.items()) for seed in sorted(seeds)]

    def samples(self, metric: str, scenes: Iterable[str]) -> dict[str, dict[int, float]]:
        """A metric or cost by scene and seed, of those scenes where it was run."""
        return {
            scene: {seed: value(stored.result, metric) for seed, stored in self.results[scene].items()}
            for scene in scenes
            if scene in self.results
        }


@dataclass(frozen=True, eq=False)
class Board:
    """Entries that may be compared.

    Attributes:
        key: what they share.
        scenes: sorted; every entry is on one ground in each.
        entries: with at least one result.
        rule: how the protocol averages scenes.
    """

    key: BoardKey
    scenes: tuple[str, ...]
    entries: tuple[Entry, ...]
    rule: SceneRule

    @property
    def slug(self) -> str:
        """For file names."""
        kind = "synthetic" if self.key.synthetic else ""
        parts = (self.key.dataset, kind, self.key.protocol, self.key.masks or "unknown-masks")
        return "-".join(slug(part) for part in parts if part)

    @property
    def data(self) -> str:
        """The data set in words."""
        return f"{self.key.dataset} (synthetic)" if self.key.synthetic else self.key.dataset

    @property
    def masks(self) -> str:
        """The mask set in words."""
        return masks_in_words(self.key.masks)

    @property
    def title(self) -> str:
        """Data, protocol and masks in words."""
        return f"{self.data}, {self.key.protocol}, {self.masks}"

    def complete(self, entry: Entry) -> bool:
        """True if the entry was run on every scene."""
        return set(entry.results) == set(self.scenes)

    def defined_scenes(self, metric: str) -> list[str]:
        """Scenes in which the metric is defined for any entry: one without things has no coverage for anybody."""
        return [
            scene
            for scene in self.scenes
            if any(
                not math.isnan(value(stored.result, metric))
                for entry in self.entries
                for stored in entry.results.get(scene, {}).values()
            )
        ]


@dataclass(frozen=True, eq=False)
class HeldApart:
    """A result that stands on no board, and why."""

    stored: StoredResult
    board: BoardKey
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """Results of one method, settings, scene, seed and ground: the newest counts, the others show a run's noise."""

    kept: StoredResult
    others: tuple[StoredResult, ...]


@dataclass(frozen=True, eq=False)
class Gathered:
    """All results, sorted."""

    boards: tuple[Board, ...]
    held: tuple[HeldApart, ...]
    repeats: tuple[Repeat, ...]


def is_training_free(result: SceneResult) -> bool:
    """True for the rows that panbench makes beside every run."""
    return result.seed is None and result.method in TRAINING_FREE and result.origin.trust == "verified"


def value(result: SceneResult, metric: str) -> float:
    """A metric or cost; nan without it."""
    return result.metrics.get(metric, result.cost.get(metric, math.nan))


def masks_in_words(masks: str) -> str:
    """``medium masks``, ``own masks`` or ``unknown masks``."""
    return f"{masks or 'unknown'} masks"


def slug(text: str) -> str:
    """Text as part of a file name or anchor."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def gather(results: Iterable[StoredResult], name: Callable[[SceneResult], str] | None = None) -> Gathered:
    """Sort results into boards, a board for each data set, protocol and mask set.

    In every scene of a board one ground holds: that of most methods, then of most results, then of the newest result.
    Results on another ground are held apart. A method with labels of its own joins every board whose ground it shares
    in everything but the masks; without such a board it has one of its own.

    Args:
        results: in any order.
        name: what to call the method of a result; None: as the result does.
    """
    call = name or (lambda result: result.method)
    grouped: dict[BoardKey, list[StoredResult]] = defaultdict(list)
    for stored in results:
        grouped[_key(stored.result)].append(stored)
    for key, own in [(key, members) for key, members in grouped.items() if key.masks == "own"]:
        hosts = [other for other in grouped if other[:4] == key[:4] and other.masks != "own"]
        for host in hosts:
            grouped[host].extend(own)
        if hosts:
            del grouped[key]
    boards: list[Board] = []
    held: list[HeldApart] = []
    repeats: list[Repeat] = []
    for key, members in sorted(grouped.items()):
        board, apart, again = _board(key, members, call)
        boards.append(board)
        held += apart
        repeats += again
    return Gathered(tuple(boards), tuple(held), tuple(repeats))


def _key(result: SceneResult) -> BoardKey:
    masks = "own" if result.labels == "own" else result.origin.masks
    return BoardKey(result.dataset, result.synthetic, result.protocol, result.protocol_hash, masks)


def _board(
    key: BoardKey, members: Sequence[StoredResult], call: Callable[[SceneResult], str]
) -> tuple[Board, list[HeldApart], list[Repeat]]:
    by_scene: dict[str, list[StoredResult]] = defaultdict(list)
    for stored in members:
        by_scene[stored.result.scene].append(stored)
    held: list[HeldApart] = []
    again: list[Repeat] = []
    entries: dict[str, Entry] = {}
    for scene, here in sorted(by_scene.items()):
        main = _main_ground(here)
        witness = max((s for s in here if ground(s.result) == main), key=_age).result
        cells: dict[tuple[str, int], list[StoredResult]] = defaultdict(list)
        for stored in here:
            result = stored.result
            reasons = obstacles(result, witness)
            if reasons:
                held.append(HeldApart(stored, key, tuple(reasons)))
                continue
            entry = Entry(call(result), result.origin.settings_hash, result.origin.trust)
            entry = entries.setdefault(entry.key, entry)
            cells[entry.key, NO_SEED if result.seed is None else result.seed].append(stored)
        for (name, seed), same in cells.items():
            newest, others = _newest(same)
            entries[name].results.setdefault(scene, {})[seed] = newest
            if others:
                again.append(Repeat(newest, tuple(others)))
    names = Counter((entry.trust, entry.method) for entry in entries.values())
    for entry in entries.values():
        entry.shared_name = names[entry.trust, entry.method] > 1
    scenes = {scene for entry in entries.values() for scene in entry.results}
    return Board(key, tuple(sorted(scenes)), tuple(entries.values()), _rule(key)), held, again


def _main_ground(results: Sequence[StoredResult]) -> Ground:
    by: dict[Ground, list[StoredResult]] = defaultdict(list)
    for stored in results:
        by[ground(stored.result)].append(stored)
    shared = {where: members for where, members in by.items() if where.masks != "own"} or by

    def weight(where: Ground) -> tuple[int, int, tuple[str, str]]:
        members = shared[where]
        return len({s.result.method for s in members}), len(members), max(_age(s) for s in members)

    return max(shared, key=weight)


def _age(stored: StoredResult) -> tuple[str, str]:
    """Orders results from old to new; equal times by hash, so that the order is always the same."""
    return stored.result.origin.created, stored.hash


def _newest(same: Sequence[StoredResult]) -> tuple[StoredResult, list[StoredResult]]:
    """The newest result, and the newest of every other run; one run scored or stored several times is one."""
    runs: dict[tuple[str, str], StoredResult] = {}
    for stored in sorted(same, key=_age):
        result = stored.result
        # Training-free rows are made again beside every run: equal counts are one result.
        run = "" if is_training_free(result) else result.origin.run
        runs[run, result.counts.data] = stored
    newest, *others = sorted(runs.values(), key=_age, reverse=True)
    return newest, others


def _rule(key: BoardKey) -> SceneRule:
    """How the protocol averages scenes; unrounded if panbench no longer ships these rules."""
    try:
        return Protocol.load(key.protocol).scenes
    except UserError:
        return "mean"


def verdicts(entry: Entry, scenes: Iterable[str]) -> Mapping[str, float]:
    """True instances by verdict, and switches of identity: mean over seeds, summed over scenes."""
    total: dict[str, float] = defaultdict(float)
    for scene in scenes:
        seeds = entry.results.get(scene, {})
        for stored in seeds.values():
            for instance in stored.result.instances:
                total[instance.verdict] += 1 / len(seeds)
                total["switches"] += instance.switches / len(seeds)
                total["all"] += 1 / len(seeds)
    return total
