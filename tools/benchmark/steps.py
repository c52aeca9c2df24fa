"""Pace of training steps, and which part of the method their time goes to."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import lightning as L
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from benchmark.machine import Clock
from benchmark.timing import Sample
from panbench import ops
from panbench.models.base import GaussianModule

PARTS = (
    "project",
    "bin",
    "blend forward",
    "blend backward",
    "project backward",
    "colour (spherical harmonics)",
    "render: joining and splitting",
    "head: channels",
    "head: pairing, losses, warping",
    "photometric loss",
    "geometric losses",
    "autograd: sums and zeros",
    "optimiser",
    "data",
    "rest: Lightning, logging, Python",
)
_REST, _AUTOGRAD = PARTS[-1], "autograd: sums and zeros"

# Operators that belong to a part wherever they are called from.
_OPERATORS = {
    "panbench::project": "project",
    "panbench::bin": "bin",
    "panbench::blend": "blend forward",
    "panbench::blend_backward": "blend backward",
    "panbench::project_backward": "project backward",
    "panbench::spherical_harmonics": "colour (spherical harmonics)",
    "panbench::spherical_harmonics_backward": "colour (spherical harmonics)",
}
_WARM_UP = 8  # steps; a multiple of 4
_BACKWARD = "autograd::engine::evaluate_function: "


class Pace(L.Callback):
    """Times windows of steps, then profiles some steps, then stops the training.

    Attributes:
        samples: ms per step of each window. parts: ms per step of each part, once finished.
        facts: what the model had become when the windows began.
    """

    def __init__(self, skip: int, windows: int, steps: int, profiled: int, told: Callable[[str], None]) -> None:
        """Args: skip: first steps that are not timed. steps: of a window. profiled: number of steps profiled."""
        self._skip, self._windows, self._steps, self._profiled = skip, windows, steps, profiled
        self._told = told
        self._clock = Clock()
        self._profile: Any = None
        self._started = 0.0
        self.samples: list[Sample] = []
        self.parts: dict[str, float] = {}
        self.facts: dict[str, int] = {}

    @property
    def finished(self) -> bool:
        """Whether all was measured."""
        return bool(self.parts)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        """Open and close windows."""
        done = trainer.global_step - self._skip
        if done < 0:
            return
        timed = self._windows * self._steps
        if done % self._steps == 0 and 0 < done <= timed:
            self._clock.__exit__()
            ms = self._clock.wall / self._steps * 1e3
            self.samples.append(Sample(ms, self._clock.cpu / self._steps * 1e3, self._clock.others, self._steps))
            self._told(f"window {len(self.samples)} of {self._windows}: {1e3 / ms:.2f} steps/s")
        if done % self._steps == 0 and done < timed:
            self._clock.__enter__()
        if done == 0:
            self.facts = _facts(cast(GaussianModule, pl_module), batch)
        if done == timed:
            self._told(f"profiling {self._profiled} steps")
            # The first steps under a new profiler take several times as long.
            plan = schedule(wait=0, warmup=_WARM_UP, active=self._profiled, repeat=1)
            self._profile = profile(activities=[ProfilerActivity.CPU], schedule=plan, acc_events=True)
            self._profile.__enter__()
            return
        if self._profile is None:
            return
        if done == timed + _WARM_UP:
            self._started = time.perf_counter()
        if done < timed + _WARM_UP + self._profiled:
            self._profile.step()
        else:
            wall = (time.perf_counter() - self._started) * 1e3
            self._profile.__exit__(None, None, None)
            self.parts = {k: v / self._profiled for k, v in parts_of(self._profile.events(), wall).items()}
            trainer.should_stop = True


def _facts(model: GaussianModule, batch: Any) -> dict[str, int]:
    head: Any = model.head
    return {
        "gaussians": len(model.gaussians),
        "width": batch.camera.width,
        "height": batch.camera.height,
        "classes": head.classes,
        "queries": int(head.active.sum()),
    }


@contextmanager
def marked(model: GaussianModule) -> Generator[None]:
    """Mark the parts of a model's step for the profiler, as long as the block lasts."""
    targets: Sequence[tuple[Any, str, str]] = (
        (model, "render", "render: joining and splitting"),
        (model, "regularisers", "geometric losses"),
        (model.head, "channels", "head: channels"),
        (model.head, "targets", "head: pairing, losses, warping"),
        (model.head, "losses", "head: pairing, losses, warping"),
        (model.head, "after_step", "head: pairing, losses, warping"),
        (ops, "photometric_loss", "photometric loss"),
    )
    patches = [mock.patch.object(owner, name, _recorded(getattr(owner, name), part)) for owner, name, part in targets]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _recorded(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return function(*args, **kwargs)

    return call


def parts_of(events: Sequence[FunctionEvent], wall: float) -> dict[str, float]:
    """Time of each part among profiled events, ms; what they do not account for of the wall time is the rest.

    An event belongs to the nearest of itself and its callers whose part is known; a step of the way back belongs to
    the part of the operation that it reverses.
    """
    forward: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _reverses(event):
            # Outer events come first: the innermost operator with the number is the one that is reversed.
            forward[event.sequence_nr] = _part(event) or _REST
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        part = _part(event)
        if part is None:
            reverses = _reverses(event)
            part = _REST if reverses is None else forward.get(reverses.sequence_nr, _AUTOGRAD)
        spent[part] += event.self_cpu_time_total / 1e3
    spent[_REST] += wall - sum(spent.values())
    return {part: spent[part] for part in PARTS}


def _callers(event: FunctionEvent) -> Generator[FunctionEvent]:
    current: FunctionEvent | None = event
    while current is not None:
        yield current
        current = current.cpu_parent


def _part(event: FunctionEvent) -> str | None:
    for caller in _callers(event):
        name = caller.name
        if name in _OPERATORS:
            return _OPERATORS[name]
        if name in PARTS:
            return name
        if name.startswith("Optimizer."):
            return "optimiser"
        if name.startswith("enumerate(DataLoader)"):
            return "data"
    return None


def _reverses(event: FunctionEvent) -> FunctionEvent | None:
    """The outermost step of the way back that an event is part of."""
    return next((c for c in _callers(event) if c.name.startswith(_BACKWARD)), None)
