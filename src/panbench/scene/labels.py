"""Label spaces: which classes a scene is scored on, and how dataset ids map to them."""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOID = 0


@dataclass(frozen=True)
class LabelClass:
    """One class. ``id`` ≥ 1 (0 is void); ``evaluate`` False means its pixels count as void in scores."""

    id: int
    name: str
    thing: bool
    evaluate: bool = True
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a scene and the map from raw dataset ids to them.

    Attributes:
        name: for messages and results.
        classes: in ascending id.
        raw_to_class: raw dataset id (ScanNet label id) → class id; raw ids not listed are void.
    """

    name: str
    classes: tuple[LabelClass, ...]
    raw_to_class: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if ids != sorted(set(ids)) or (ids and ids[0] < 1):
            raise ValueError(f"label space {self.name}: class ids {ids} must be ascending, unique and at least 1")
        unknown = sorted(set(self.raw_to_class.values()) - set(ids) - {VOID})
        if unknown:
            raise ValueError(f"label space {self.name}: the raw id map names unknown classes {unknown}")

    @property
    def size(self) -> int:
        """Number of class channels: the largest id + 1, void included at 0."""
        return 1 + max((c.id for c in self.classes), default=0)

    @property
    def thing_ids(self) -> tuple[int, ...]:
        return tuple(c.id for c in self.classes if c.thing)

    @property
    def stuff_ids(self) -> tuple[int, ...]:
        return tuple(c.id for c in self.classes if not c.thing)

    @property
    def evaluated_ids(self) -> tuple[int, ...]:
        return tuple(c.id for c in self.classes if c.evaluate)

    def names(self) -> list[str]:
        """Name of every id 0 … size − 1; "void" at 0 and at ids that no class has."""
        out = ["void"] * self.size
        for c in self.classes:
            out[c.id] = c.name
        return out

    def is_thing(self) -> NDArray[np.bool_]:
        """Table [size]: True at thing classes."""
        out = np.zeros(self.size, dtype=bool)
        out[list(self.thing_ids)] = True
        return out

    def map_raw(self, raw: NDArray[np.integer]) -> NDArray[np.uint8 | np.int32]:
        """Class ids of a map of raw dataset ids; ids that are not listed become void."""
        top = max(self.raw_to_class, default=0)
        table = np.zeros(top + 2, dtype=np.int32)
        for raw_id, class_id in self.raw_to_class.items():
            table[raw_id] = class_id
        return table[np.clip(raw, 0, top + 1)]

    def colors(self) -> NDArray[np.uint8]:
        """Display colours [size, 3]: void black, the others spread by the golden angle. Stable across runs."""
        return id_colors(self.size)

    def to_dict(self) -> dict[str, object]:
        """Plain data, JSON-able, that :meth:`from_dict` reads back."""
        return {
            "name": self.name,
            "classes": [
                {"id": c.id, "name": c.name, "thing": c.thing, "evaluate": c.evaluate, "prompts": list(c.prompts)}
                for c in self.classes
            ],
            "gt_map": {str(k): v for k, v in sorted(self.raw_to_class.items())},
        }

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON of everything but the name: equal label spaces have equal hashes."""
        data = self.to_dict()
        del data["name"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, data: Mapping[str, object], name: str | None = None) -> LabelSpace:
        """Read the ``classes.json`` form: ``{"classes": [{id, name, thing, evaluate, prompts}], "gt_map": {raw: id}}``.

        Raises:
            ValueError: with the offending key, if a field is missing or of the wrong type.
        """
        try:
            rows = data["classes"]
            if not isinstance(rows, Sequence):
                raise TypeError("classes is not a list")
            classes = tuple(
                LabelClass(
                    id=int(row["id"]),
                    name=str(row["name"]),
                    thing=bool(row["thing"]),
                    evaluate=bool(row.get("evaluate", True)),
                    prompts=tuple(row.get("prompts", ())),
                )
                for row in sorted(rows, key=lambda row: int(row["id"]))
            )
            gt_map = data.get("gt_map", {})
            if not isinstance(gt_map, Mapping):
                raise TypeError("gt_map is not an object")
            raw = {int(k): int(v) for k, v in gt_map.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"label space: {error!r} in the class table") from error
        return cls(name or str(data.get("name") or data.get("scene") or "labels"), classes, raw)

    @classmethod
    def load(cls, path: Path) -> LabelSpace:
        """Read a ``classes.json`` file; errors name the file."""
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot read the label space: {error}") from error


def id_colors(count: int) -> NDArray[np.uint8]:
    """Colours [count, 3] for ids 0 … count − 1: 0 is black, neighbours differ in hue by the golden angle."""
    out = np.zeros((count, 3), dtype=np.uint8)
    for i in range(1, count):
        value = colorsys.hsv_to_rgb((i * 0.61803398875) % 1.0, 0.55 + 0.4 * ((i // 3) % 2), 0.95 - 0.25 * (i % 3) / 2)
        out[i] = np.round(np.asarray(value) * 255)
    return out
