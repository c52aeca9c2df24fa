"""What a check of a scene finds, and how it is written down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from panbench.errors import UserError

Severity = Literal["error", "warning"]
FORMAT, VERSION = "panbench-data-check", 1
_SHOWN = 6  # frames that a line names


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        kind: short name of what is wrong: "camera-axes"; docs/data.md lists them.
        severity: "error" – a run would fail, or learn from what is false; "warning" – it may be meant.
        file: the file or folder.
        what: the cause, as half a sentence.
        remedy: what to do about it.
        frames: names of the frames concerned, in order; () if it is about the scene.
    """

    kind: str
    severity: Severity
    file: str
    what: str
    remedy: str
    frames: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Place, cause and remedy in one line."""
        shown = ", ".join(self.frames[:_SHOWN]) + (", ..." if len(self.frames) > _SHOWN else "")
        frames = f" ({count(len(self.frames), 'frame')}: {shown})" if self.frames else ""
        return f"{self.file}: {self.what}{frames}: {self.remedy}"

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "kind": self.kind, "severity": self.severity, "file": self.file, "what": self.what, "remedy": self.remedy,
            "frames": list(self.frames),
        }  # fmt: skip


@dataclass
class Faults:
    """Faults in the order in which they are found. The same fault of several frames is one, with all their names."""

    found: list[Fault] = field(default_factory=list)

    def add(
        self, kind: str, severity: Severity, file: object, what: str, remedy: str, frames: Iterable[str] = ()
    ) -> None:
        """Note a fault; frames are added to one of the same kind, file and cause."""
        names = tuple(frames)
        for place, old in enumerate(self.found):
            if names and (old.kind, old.severity, old.file, old.what) == (kind, severity, str(file), what):
                self.found[place] = Fault(kind, severity, old.file, what, remedy, (*old.frames, *names))
                return
        self.found.append(Fault(kind, severity, str(file), what, remedy, names))

    def add_error(self, kind: str, error: UserError, frames: Sequence[str] = ()) -> None:
        """Note what a reader says, "file: cause: remedy"."""
        file, _, rest = str(error).partition(": ")
        what, _, remedy = rest.rpartition(": ")
        self.add(kind, "error", file, what or remedy, remedy if what else "correct it", frames)


@dataclass(frozen=True)
class Report:
    """What a check of one scene found.

    Attributes:
        scene: its name.
        folder: its folder.
        layout: see :mod:`panbench.data.detect`.
        frames: how many it has; looked_at: of how many the pictures were decoded.
        faults: what is wrong, errors first.
        measures: numbers of the scene: median depth [m], agreement of depth between frames, …; absent where unknown.
    """

    scene: str
    folder: str
    layout: str
    frames: int
    looked_at: int
    faults: tuple[Fault, ...]
    measures: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "format": FORMAT, "version": VERSION, "scene": self.scene, "folder": self.folder, "layout": self.layout,
            "frames": self.frames, "looked_at": self.looked_at, "measures": self.measures,
            "faults": [fault.to_dict() for fault in self.faults],
        }  # fmt: skip

    @property
    def errors(self) -> int:
        """How many faults are errors."""
        return sum(fault.severity == "error" for fault in self.faults)


def count(number: int, noun: str) -> str:
    """ "1 frame", "2 frames"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
