"""Interleaved timing: every contestant has a turn in every round, so that what disturbs one round disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmark.machine import Clock

CONTENDED = 0.10
"""Cores that other processes may use during a sample that counts as clean."""


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        name: key of its samples.
        run: does the work once for the item given; what it returns is dropped.
        around: the setting of its turns (thread count, instruction set).
        rate: ``run`` returns a rate that it measured, which is the result in place of the time.
    """

    name: str
    run: Callable[[int], Any]
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    rate: bool = False


class Sample(NamedTuple):
    """One turn: the median over passes of the mean over items, and what went on meanwhile.

    Attributes:
        value: ms (or the rate). cpu: processor time of this process, ms per run. others: cores that others used.
        passes: how many passes over the items.
    """

    value: float
    cpu: float
    others: float
    passes: int

    @property
    def clean(self) -> bool:
        """Whether others left the machine alone."""
        return 0 <= self.others <= CONTENDED


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: clean samples wanted of each contestant. max_rounds: turns at most, where others keep the machine busy.
        seconds: length of a turn at least. limit: seconds that one contestant may take in all, beyond its first turn.
    """

    rounds: int = 5
    max_rounds: int = 8
    seconds: float = 0.25
    limit: float = 30.0


@dataclass
class _Turns:
    contestant: Contestant
    samples: list[Sample | None] = field(default_factory=list["Sample | None"])
    spent: float = 0.0

    def wants(self, plan: Plan) -> bool:
        taken = [s for s in self.samples if s is not None]
        if not taken:
            return True
        if sum(s.clean for s in taken) >= plan.rounds or len(self.samples) >= plan.max_rounds:
            return False
        return self.spent * (1 + 1 / len(taken)) <= plan.limit


def measure(
    contestants: Sequence[Contestant], items: int, plan: Plan, progress: Callable[[str], None] = lambda _: None
) -> dict[str, list[Sample | None]]:
    """Samples of each contestant by round; None where it had no turn, so that equal positions are equal rounds.

    Args:
        items: number of items (cameras); a pass runs each once.
        progress: told what runs now.
    """
    all_turns = [_Turns(c) for c in contestants]
    for turns in all_turns:
        progress(f"warm-up {turns.contestant.name}")
        with turns.contestant.around():
            turns.contestant.run(0)
    number = 0
    while any(turns.wants(plan) for turns in all_turns):
        # Another one starts each round: none always follows the same.
        shift = number % len(all_turns)
        for turns in all_turns[shift:] + all_turns[:shift]:
            progress(f"round {number + 1}, {turns.contestant.name}")
            if not turns.wants(plan):
                turns.samples.append(None)
                continue
            sample, seconds = _turn(turns.contestant, items, plan.seconds)
            turns.samples.append(sample)
            turns.spent += seconds
        number += 1
    return {turns.contestant.name: turns.samples for turns in all_turns}


def _turn(contestant: Contestant, items: int, seconds: float) -> tuple[Sample, float]:
    values: list[float] = []
    with contestant.around(), Clock() as clock:
        total = 0.0
        while not values or total < seconds:
            start = time.perf_counter()
            rates: list[float] = []
            for item in range(items):
                result = contestant.run(item)
                if contestant.rate:
                    rates.append(result)
                del result  # before the next one is made
            wall = time.perf_counter() - start
            values.append(statistics.fmean(rates) if contestant.rate else wall / items * 1e3)
            total += wall
    cpu = clock.cpu / (len(values) * items) * 1e3
    return Sample(statistics.median(values), cpu, clock.others, len(values)), clock.wall


class Spread(NamedTuple):
    """Median, least and largest of the samples used; whether they are clean."""

    median: float
    low: float
    high: float
    clean: bool


def summary(samples: Sequence[Sample | None], min_clean: int = 3) -> Spread | None:
    """Over the clean samples if there are enough of them, else over all and marked so; None without a sample."""
    taken = [s for s in samples if s is not None]
    return _spread([(s.value, s.clean) for s in taken], min_clean)


def ratio(above: Sequence[Sample | None], below: Sequence[Sample | None], min_clean: int = 3) -> Spread | None:
    """Spread of the ratio of two contestants, taken within each round; None if they never met."""
    pairs = [(a, b) for a, b in zip(above, below, strict=False) if a is not None and b is not None]
    return _spread([(a.value / b.value, a.clean and b.clean) for a, b in pairs], min_clean)


def _spread(values: Sequence[tuple[float, bool]], min_clean: int) -> Spread | None:
    if not values:
        return None
    clean = [value for value, ok in values if ok]
    used = clean if len(clean) >= min(min_clean, len(values)) else [value for value, _ in values]
    return Spread(statistics.median(used), min(used), max(used), used is clean)
