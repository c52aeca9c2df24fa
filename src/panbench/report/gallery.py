"""The pictures of runs: finds them, takes them into the site, and lists what can be laid side by side."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from panbench.protocol.results import SceneResult
from panbench.protocol.store import StoredResult
from panbench.report.boards import TRAINING_FREE, is_training_free, masks_in_words

log = logging.getLogger(__name__)

_Index = TypeVar("_Index", bound=BaseModel)


class _View(BaseModel):
    name: str
    kinds: dict[str, str]


class _Views(BaseModel):
    """``pictures/views/index.json``."""

    model_config = ConfigDict(extra="ignore")

    views: list[_View]
    size: tuple[int, int]


class _Instance(BaseModel):
    true_id: int
    class_name: str
    verdict: str
    coverage: float | None
    pixels: int
    frame: str
    crops: dict[str, str]


class _Instances(BaseModel):
    """``pictures/instances/index.json``."""

    model_config = ConfigDict(extra="ignore")

    instances: list[_Instance]


@dataclass(frozen=True)
class Crop:
    """One true instance that was not found, with its pictures by kind (paths in the site)."""

    true_id: int
    class_name: str
    verdict: str
    coverage: float
    pixels: int
    frame: str
    pictures: dict[str, str]

    @property
    def damage(self) -> float:
        """Pixels that the prediction does not cover."""
        return self.pixels * (1 - self.coverage / 100)


@dataclass(frozen=True)
class PicturedRun:
    """A run whose pictures are in the site.

    Attributes:
        name: method, with its seed.
        method, scene, masks, dataset: what was run.
        hash: of its result.
        views: picture (path in the site) by view and kind.
        crops: worst first.
    """

    name: str
    method: str
    dataset: str
    scene: str
    masks: str
    hash: str
    size: tuple[int, int] = (0, 0)
    views: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    crops: tuple[Crop, ...] = ()

    @property
    def ground(self) -> str:
        """Scene and masks in words; runs of one ground can be laid side by side."""
        return f"{self.scene}, {self.masks}"


def find_pictures(result: SceneResult, runs: Path) -> Path | None:
    """The folder ``pictures`` of the run that made a result; None if it is not here.

    A run directory is looked for where it was, then under ``runs``.
    """
    made, candidates = Path(result.origin.run or "."), list[Path]()
    if result.origin.run:
        candidates += [made, runs.joinpath(*made.parts[-4:])]
    config = str(result.provenance.get("config_hash", ""))
    if config and not is_training_free(result):
        candidates.append(runs / result.dataset / result.scene / result.method / f"s{result.seed}-{config[:8]}")
    for folder in candidates:
        part = folder / "anchors" / result.method if is_training_free(result) else folder
        if (part / "pictures").is_dir():
            return part / "pictures"
    return None


def take_pictures(results: Iterable[tuple[str, StoredResult]], runs: Path, site: Path) -> list[PicturedRun]:
    """Copy the pictures of results, each with the name of its row, into ``site/pictures``.

    Results of one run under several protocols share its pictures. What an index names but the folder lacks is left out.
    """
    seen: dict[Path, PicturedRun] = {}
    for name, stored in results:
        folder = find_pictures(stored.result, runs)
        if folder is None or folder.resolve() in seen:
            continue
        target = f"pictures/{stored.hash[:12]}"
        views, crops = _read(folder / "views", _Views), _read(folder / "instances", _Instances)
        if views is None and crops is None:
            continue
        result = stored.result
        seen[folder.resolve()] = PicturedRun(
            name=name if result.seed is None else f"{name}, seed {result.seed}",
            method=name,
            dataset=result.dataset,
            scene=result.scene,
            masks=masks_in_words("own" if result.labels == "own" else result.origin.masks),
            hash=stored.hash[:12],
            size=views.size if views else (0, 0),
            views={
                view.name: _copy(view.kinds, folder / "views", site, f"{target}/views")
                for view in (views.views if views else [])
            },
            crops=_crops(crops, folder / "instances", site, f"{target}/instances"),
        )
    # Trained methods before the rows that need no training.
    return sorted(seen.values(), key=lambda run: (run.method in TRAINING_FREE, run.name, run.scene))


def comparison(runs: Iterable[PicturedRun]) -> list[dict[str, Any]]:
    """What the slider needs, as plain data: grounds, their runs, the pictures of each view and kind."""
    grounds: dict[str, list[PicturedRun]] = {}
    for run in runs:
        if run.views:
            grounds.setdefault(run.ground, []).append(run)
    return [
        {
            "title": title,
            "size": members[0].size,
            "runs": [{"name": run.name, "method": run.method, "views": run.views} for run in members],
        }
        for title, members in sorted(grounds.items())
    ]


def _crops(index: _Instances | None, folder: Path, site: Path, target: str) -> tuple[Crop, ...]:
    if index is None:
        return ()
    found = [
        Crop(
            true_id=item.true_id,
            class_name=item.class_name,
            verdict=item.verdict,
            coverage=item.coverage or 0.0,
            pixels=item.pixels,
            frame=item.frame,
            pictures=_copy(item.crops, folder, site, target),
        )
        for item in index.instances
    ]
    return tuple(sorted((c for c in found if c.pictures), key=lambda c: -c.damage))


def _copy(files: Mapping[str, str], folder: Path, site: Path, target: str) -> dict[str, str]:
    """Copy files named by an index; returns their paths in the site. Only files of that very folder are taken."""
    out: dict[str, str] = {}
    for kind, name in files.items():
        source = folder / name
        if Path(name).name != name or not source.is_file():
            continue
        (site / target).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, site / target / name)
        out[kind] = f"{target}/{name}"
    return out


def _read(folder: Path, model: type[_Index]) -> _Index | None:
    path = folder / "index.json"
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        log.warning("%s: left out: %s", path, str(error).splitlines()[0])
        return None
