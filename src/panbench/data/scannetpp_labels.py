"""Label spaces of ScanNet++: a class lists the raw labels of the annotation that belong to it.

A ``classes.json``, or a label space that comes with panbench, lists them as ``labels``; without, a class takes its name
and its prompts. The benchmark's own lists are read from the release::

    metadata/semantic_benchmark/top100.txt            classes, one a line; their ids here are 1, 2, ...
                                top100_instance.txt   those of them that are things; everything else is stuff
                                map_benchmark.csv     class, semantic_map_to, instance_map_to: which class a raw label
                                                      counts as; empty: as itself; None: as nothing
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from panbench.data.label_tables import label_space_file, read_labels
from panbench.errors import UserError
from panbench.scene import LabelSpace
from panbench.scene.labels import LabelClass

_THINGS = "top100_instance.txt"
_MAP = "map_benchmark.csv"
_AGAIN = "download the release's metadata again"
_LARGEST = 1 << 24  # bytes; the lists have a few kB, the table some 100


def read_label_space(folder: Path, given: str | Path | None) -> tuple[LabelSpace, dict[str, int]]:
    """The label space of a scene, and the class id of every raw label that has one.

    Args:
        folder: the scene's folder.
        given: name of a label space that comes with panbench, or the path of a ``classes.json`` or of one of the
            benchmark's lists (``.txt``); None: ``classes.json`` in the scene, else the one of the scene's name.

    Raises:
        UserError: there is none, it is damaged, or a raw label belongs to two classes.
    """
    if given is not None and Path(given).suffix == ".txt":
        return _read_benchmark(Path(given).expanduser(), folder.name)
    labels = read_labels(folder, given)
    path = label_space_file(folder, given)
    listed: dict[int, object] = {int(row["id"]): row.get("labels") for row in json.loads(path.read_bytes())["classes"]}
    out: dict[str, int] = {}
    for c in labels.classes:
        own = listed.get(c.id) or (c.name, *c.prompts)
        if not isinstance(own, (list, tuple)):
            raise UserError(f"{path}: labels of class {c.id} is no list of raw labels: correct it")
        for label in map(str, own):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            if out.setdefault(label, c.id) != c.id:
                raise UserError(f"{path}: the raw label {label!r} belongs to two classes: leave it to one")
    return labels, out


def _read_benchmark(path: Path, name: str) -> tuple[LabelSpace, dict[str, int]]:
    names = _lines(path)
    if len(set(names)) != len(names) or not 0 < len(names) < 1 << 16:
        raise UserError(f"{path}: is empty, or lists a class twice: {_AGAIN}")
    things = set(_lines(path.with_name(_THINGS)))
    ids = {label: number for number, label in enumerate(names, 1)}
    classes = tuple(LabelClass(number, label, label in things, prompts=(label,)) for label, number in ids.items())
    column = "instance_map_to" if path.name == _THINGS else "semantic_map_to"
    targets = _read_map(path.with_name(_MAP), column)
    raw = {label: ids[target] for label, target in targets.items() if target in ids}
    # Labels that the table does not have count as themselves.
    return LabelSpace(name, classes), {**{label: k for label, k in ids.items() if label not in targets}, **raw}


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _read_map(path: Path, column: str) -> Mapping[str, str]:
    """What each raw label counts as; "None" where as nothing. The first row that is not empty holds."""
    out: dict[str, str] = {}
    try:
        rows = list(csv.DictReader(_text(path).splitlines()))
    except csv.Error as error:
        raise UserError(f"{path}: is no table of comma-separated text ({error}): {_AGAIN}") from error
    if not rows or "class" not in rows[0] or column not in rows[0]:
        raise UserError(f"{path}: has no column class or {column}: {_AGAIN}")
    for row in rows:
        label, target = (row["class"] or "").strip(), (row[column] or "").strip()
        if target or label not in out:
            out[label] = target or label
    return out


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path}: has more than {_LARGEST} bytes, which no such list has: {_AGAIN}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: correct data.label_space, or {_AGAIN}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no text file ({error}): {_AGAIN}") from error
