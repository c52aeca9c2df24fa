"""What a run of the rasterizer benchmark measured, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.timing import Sample, Spread, ratio, summary
from benchmark.views import STAGES, Case
from panbench.errors import UserError
from panbench.training.files import write_text

FORMAT = 3


@dataclass
class CaseResult:
    """Samples and counts of one case.

    Attributes:
        samples: by contestant, by round (None: no turn in that round).
        work: visible Gaussians, tile pairs and contributions, per image.
        agreement: relative L2 difference of each peer from us.
        skipped: peers without a turn, and why.
    """

    case: Case
    work: dict[str, float]
    samples: dict[str, list[Sample | None]]
    agreement: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    skipped: dict[str, str] = field(default_factory=dict[str, str])

    def spread(self, name: str) -> Spread | None:
        """Of a contestant's samples, ms or a rate."""
        return summary(self.samples.get(name, []))

    def median(self, name: str) -> float:
        """Of a contestant's samples; NaN without any."""
        spread = self.spread(name)
        return spread.median if spread else float("nan")

    def ratio(self, above: str, below: str) -> Spread | None:
        """Of two contestants, round by round."""
        return ratio(self.samples.get(above, []), self.samples.get(below, []))

    def stages(self) -> dict[str, float]:
        """ms of each stage; what the whole takes beyond their sum is glue: autograd, gathering, allocation."""
        out = {name: self.median(f"stage {name}") for name in STAGES}
        return out | {"glue": self.median("both") - sum(out.values())}

    def peak(self, threads: int) -> float:
        """Measured FLOP/s."""
        return max(self.median(f"peak {bits} bit {threads} thread") for bits in (512, 256))

    def roofline(self, threads: int) -> tuple[float, float] | None:
        """Shares of the roofline that blending reaches, forward and backward; None if contributions are not known.

        The floor is the longer of two times: 30 + 2 C operations forward and 62 + 4 C backward for each pixel of a
        block of 4 × 4 that a Gaussian contributes to, at the measured peak, and every array read or written once at the
        measured bandwidth.
        """
        if not self.work["contributions"]:
            return None
        c, pixels = self.case.channels, self.case.width * self.case.height
        rows = self.work["visible"] * (c + 7)
        return (
            self._floor((30 + 2 * c), pixels * (c + 3) + rows, threads) / self.median("stage blend"),
            self._floor((62 + 4 * c), pixels * (c + 3) + 2 * rows, threads) / self.median("stage blend_backward"),
        )

    def _lanes(self) -> float:
        """Pixels of all blocks of 4 × 4, one SIMD register each, that some Gaussian contributes to, once for each."""
        return self.work["contributions"] / self.work["lane_use"]

    def _floor(self, operations: float, numbers: float, threads: int) -> float:
        """ms that the operations per contribution, or moving so many float32, takes at least."""
        compute = operations * self._lanes() / self.peak(threads)
        return 1e3 * max(compute, 4 * numbers / self.median("peak copy"))

    def channel_share(self, other: CaseResult, threads: int) -> float:
        """Share of the measured FMA peak that the channel products reach: the slope of blending's time in C.

        2 operations forward and 4 backward for each channel that this case has beyond ``other`` and each pixel of the
        blocks that a Gaussian contributes to, over the time that it takes beyond it.
        """
        operations = 6.0 * (self.case.channels - other.case.channels) * self._lanes()
        blending = [r.median("stage blend") + r.median("stage blend_backward") for r in (self, other)]
        return operations / self.peak(threads) * 1e3 / (blending[0] - blending[1])


@dataclass
class Results:
    """A file of results: settings, machine, cases by key, memory curve."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    cases: dict[str, CaseResult] = field(default_factory=dict[str, CaseResult])
    memory: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def save(self, path: Path) -> None:
        """Write the file in one piece."""
        cases = {
            key: vars(result) | {"case": vars(result.case), "medians": _medians(result)}
            for key, result in self.cases.items()
        }
        whole = {"format": FORMAT, "settings": self.settings, "machine": self.machine, "cases": cases}
        write_text(path, json.dumps(whole | {"memory": self.memory}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            UserError: it is missing, or no file of this benchmark.
        """
        try:
            whole = json.loads(path.read_text())
            found = whole["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no results of this benchmark: {error}") from error
        if found != FORMAT:
            raise UserError(f"{path}: format {found}, this tool reads {FORMAT}; measure again")
        out = cls(whole["settings"], whole["machine"], memory=whole["memory"])
        for key, data in whole["cases"].items():
            samples = {
                name: [None if s is None else Sample(*s) for s in rounds] for name, rounds in data["samples"].items()
            }
            out.cases[key] = CaseResult(Case(**data["case"]), data["work"], samples, data["agreement"], data["skipped"])
        return out

    @property
    def threads(self) -> int:
        """Threads that everyone had."""
        return int(self.settings["threads"])

    def ordered(self, kind: str | None = None, channels: int | None = None) -> list[CaseResult]:
        """Cases by N, size and channels."""
        found = [
            r
            for r in self.cases.values()
            if (kind is None or r.case.kind == kind) and (channels is None or r.case.channels == channels)
        ]
        return sorted(found, key=lambda r: (r.case.kind != "ellipsoid", r.case.count, r.case.width, r.case.channels))

    def siblings(self, low: int, high: int) -> Iterator[tuple[CaseResult, CaseResult]]:
        """Pairs of ellipsoid cases that differ in the number of channels alone."""
        for wide in self.ordered("ellipsoid", high):
            for narrow in self.ordered("ellipsoid", low):
                if (wide.case.count, wide.case.width) == (narrow.case.count, narrow.case.width):
                    yield narrow, wide


def _medians(result: CaseResult) -> dict[str, Any]:
    spreads = {name: result.spread(name) for name in result.samples}
    return {name: spread._asdict() for name, spread in spreads.items() if spread}


Value = tuple[CaseResult, Spread]


@dataclass(frozen=True)
class Target:
    """Something the rasterizer should reach: every value at least (or at most) the bound."""

    name: str
    bound: float
    at_least: bool
    values: Callable[[Results], list[Value]]

    def worst(self, results: Results) -> Value | None:
        """The case farthest from the good side; None if nothing was measured for it."""
        return (min if self.at_least else max)(self.values(results), key=_median_of, default=None)

    def best(self, results: Results) -> Value | None:
        """The case farthest on the good side."""
        return (max if self.at_least else min)(self.values(results), key=_median_of, default=None)

    def met(self, value: Spread) -> bool:
        """Whether a value is on the good side."""
        return value.median >= self.bound if self.at_least else value.median <= self.bound


def _median_of(value: Value) -> float:
    return value[1].median


def _ratios(above: str, below: str, channels: int | None = None) -> Callable[[Results], list[Value]]:
    """Ratios of two contestants in all ellipsoid cases with so many channels (None: any)."""

    def values(results: Results) -> list[Value]:
        return [(r, v) for r in results.ordered("ellipsoid", channels) if (v := r.ratio(above, below))]

    return values


def _time(key: str) -> Callable[[Results], list[Value]]:
    """ms of one case."""

    def values(results: Results) -> list[Value]:
        return [(r, v) for r in results.ordered() if r.case.key == key and (v := r.spread("both"))]

    return values


def channel_shares(results: Results) -> list[Value]:
    """Per cent of the FMA peak in the channel products, from C = 32 to 128 at equal size."""
    out: list[Value] = []
    for narrow, wide in results.siblings(32, 128):
        share = 100 * wide.channel_share(narrow, results.threads)
        spreads = [r.spread(name) for r in (narrow, wide) for name in ("stage blend", "stage blend_backward")]
        clean = all(s is not None and s.clean for s in spreads)
        out.append((wide, Spread(share, share, share, clean)))
    return out


TARGETS: Sequence[Target] = (
    Target("C = 3, forward + backward, times faster than plain C++", 20, True, _ratios("plain both", "both", 3)),
    Target("C = 128, times faster than pure torch", 75, True, _ratios("torch_pairs both", "both", 128)),
    Target("C = 27, time in that of C = 3", 1.8, False, _ratios("both", "both at 3 channels", 27)),
    Target("C = 128, time in that of C = 3", 3.5, False, _ratios("both", "both at 3 channels", 128)),
    Target("50k, 320x240, C = 128, ms", 18, False, _time("ellipsoid/50k/320x240/C128")),
    Target("200k, 640x480, C = 128, ms", 80, False, _time("ellipsoid/200k/640x480/C128")),
    Target("channel products, % of the FMA peak (slope in C, 32 to 128)", 35, True, channel_shares),
    Target("two threads, times faster than one", 1.7, True, _ratios("both 1 thread", "both")),
    Target("AVX2, time in that of AVX-512", 2.0, False, _ratios("both v3", "both")),
)
