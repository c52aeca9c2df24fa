"""ScanNet's label table, and the label spaces that come with panbench.

A label space is a JSON file::

    {"name": "scannet20", "gt_map_key": "nyu40id",
     "classes": [{"id": 1, "name": "wall", "thing": false, "evaluate": true, "prompts": ["wall"]}, ...],
     "gt_map": {"<id of the data set>": <class id>, ...}}

``gt_map`` maps raw ScanNet ids, or with ``gt_map_key`` "nyu40id" those of NYU40, which the label table of the release
resolves. Packaged are nyu40, scannet20, scannet200 and, by the scene's name, those of the paper's scenes. In the
generic ones stuff is what ScanNet's instance benchmarks leave out, wall and floor, and the ceiling.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from panbench.errors import UserError
from panbench.scene import LabelSpace

log = logging.getLogger(__name__)

TABLE = "scannetv2-labels.combined.tsv"
_PACKAGED = Path(__file__).parent / "label_spaces"
_OTHER_PROP = 40  # what ScanNet's own tools take an empty nyu40id for
_LARGEST_ID = 65535  # label images have 16 bits


@dataclass(frozen=True)
class LabelTable:
    """What a release says about its raw labels.

    Attributes:
        ids: raw id by raw category.
        nyu40: NYU40 id by raw id.
    """

    ids: Mapping[str, int]
    nyu40: Mapping[int, int]

    @classmethod
    def read(cls, path: Path) -> LabelTable:
        """Read ``scannetv2-labels.combined.tsv`` by the names of its columns; of a repeated id the last row holds.

        Raises:
            UserError: there is no such file, it lacks a column, or an id is no number.
        """
        remedy = "download it again (download-scannet.py --label_map)"
        try:
            rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file: {remedy}") from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: is no table of tab-separated text ({error}): {remedy}") from error
        columns = {name.strip(): place for place, name in enumerate(rows[0])} if rows else {}
        for name in ("id", "raw_category", "nyu40id"):
            if name not in columns:
                raise UserError(f"{path}: has no column {name}: {remedy}")
        ids: dict[str, int] = {}
        nyu40: dict[int, int] = {}
        for number, row in enumerate(rows[1:], 2):
            if not row:
                continue
            try:
                raw, category, nyu = (row[columns[name]].strip() for name in ("id", "raw_category", "nyu40id"))
                ids[category] = int(raw)
                nyu40[int(raw)] = int(nyu) if nyu else _OTHER_PROP
            except (ValueError, IndexError) as error:
                raise UserError(f"{path}: line {number} has no whole number as id or nyu40id: {remedy}") from error
        return cls(ids, nyu40)


def find_label_table(folder: Path) -> Path | None:
    """The label table of the release that a scene belongs to: in the scene's folder or up to two above, or ``tasks/``
    there.
    """
    for place in (folder, *folder.absolute().parents[:2]):
        for path in (place / TABLE, place / "tasks" / TABLE):
            if path.is_file():
                return path
    return None


def need_label_table(folder: Path, purpose: str) -> LabelTable:
    """Raises: UserError: there is no table; says what it is needed for."""
    path = find_label_table(folder)
    if path is None:
        raise UserError(
            f"{folder.parent / TABLE}: no such file, but {purpose}: download it (download-scannet.py --label_map) "
            "and put it beside the scenes, or above scans/"
        )
    return LabelTable.read(path)


def packaged_label_spaces() -> list[str]:
    """Names of the label spaces that come with panbench."""
    return sorted(path.stem for path in _PACKAGED.glob("*.json"))


def label_space_file(folder: Path, given: str | Path | None, default: str | None = None) -> Path:
    """The file of a scene's label space.

    Args:
        folder: the scene's folder.
        given: name of a packaged one, or a path; None: ``classes.json`` in the scene, else the packaged one of the
            scene's name, else ``default``.
        default: name of a packaged one that needs the release's label table; it is not taken where there is none.

    Raises:
        UserError: there is no such label space.
    """
    packaged = {name: _PACKAGED / f"{name}.json" for name in packaged_label_spaces()}
    if given is not None:
        # A name first: a file that happens to be called "nyu40" in the working directory must not win.
        path = packaged.get(str(given)) or Path(given).expanduser()
        if not path.is_file():
            raise UserError(
                f"{given}: no such file: give data.label_space the path of a classes.json, or one of "
                f"{', '.join(packaged)}"
            )
        return path
    own = folder / "classes.json"
    if own.is_file():
        return own
    if folder.name in packaged:
        log.info("%s: label space of the paper, which comes with panbench", folder.name)
        return packaged[folder.name]
    if default is not None and find_label_table(folder) is not None:
        log.info("%s: has no classes.json: label space %s", folder.name, default)
        return packaged[default]
    raise UserError(
        f"{own}: no such file: a scene needs its classes, "
        '{"classes": [{"id": 1, "name": "wall", "thing": false}, ...], "gt_map": {"<raw ScanNet id>": 1, ...}}; '
        f"write it, or pass one as data.label_space ({', '.join(packaged)}, or a path)"
    )


def read_labels(folder: Path, label_space: str | Path | None, default: str | None = None) -> LabelSpace:
    """The label space of a scene (:func:`label_space_file`), with raw ids of the data set; named as the scene.

    Raises:
        UserError: there is none, it is damaged, or it needs the release's label table, which is not there.
    """
    path = label_space_file(folder, label_space, default)
    try:
        data = json.loads(path.read_bytes())
        labels = LabelSpace.from_dict(data)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: cannot read the label space: {error}: correct the file") from error
    if not labels.classes:
        raise UserError(f"{path}: lists no classes: add at least one")
    largest = max(*(c.id for c in labels.classes), *labels.raw_to_class, 0)
    if largest > _LARGEST_ID or min(labels.raw_to_class, default=0) < 0:
        raise UserError(f"{path}: ids must be in 0 ... {_LARGEST_ID}, the range of label images: correct the file")
    if _key(data) == "nyu40id":
        nyu40 = need_label_table(folder, f"label space {path.stem} is made of NYU40 ids").nyu40
        known = labels.raw_to_class
        labels = replace(labels, raw_to_class={raw: known[n] for raw, n in sorted(nyu40.items()) if n in known})
    return replace(labels, name=folder.name)


def _key(data: Mapping[str, Any]) -> str:
    return str(data.get("gt_map_key", "id"))
