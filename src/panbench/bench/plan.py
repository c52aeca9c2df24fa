"""A plan: which methods run on which scenes with which seeds, as a YAML file; and the cells it comes to.

::

    name: quick                        names the folder of its state
    title: Bases on the built-in rooms
    config: ../ligs_scannet.yaml       of methods that name none; relative to the plan, else one that panbench ships
    set: {trainer.max_steps: 300}      for every cell; keys as on the command line of `panbench fit`
    methods:
      - {name: ligs-query}
      - {name: 3dgs-query, config: ../3dgs_scannet.yaml, set: {model.head.temperature: 2}}
      - {name: theirs, command: [python, run.py, "{scene}", "{seed}", "{out}"]}   writes a predictions folder to {out}
      - {name: sent-in, predictions: "sent/{scene}"}                              a predictions folder that is there
      - {name: to-come, unavailable: not built yet}
    bases: {3dgs: ../base/3dgs.yaml}   crossed with heads; the methods are called BASE-HEAD
    heads: {query: ../head/query.yaml}
    scenes:
      - {name: room 0, set: {data.room_seed: 0}}
      - {name: scene0628_02, set: {data.root: ~/scannet, data.scene: scene0628_02}}
    study:                             every cell once a point
      axis: mask noise
      points: [{x: clean, set: {data.masks: clean}}, {x: medium, set: {data.masks: medium}}]
    seeds: [0, 1, 2]

Where several ``set`` name one key, the study's point decides over the scene, the scene over the method, the method over
the plan.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from panbench.authored import read_mapping, validated
from panbench.errors import UserError
from panbench.protocol.protocol import Protocol
from panbench.resources import asset, find_config

Settings = dict[str, Any]

# Where the data lie, on what it runs and what is shown of it: another value is the same cell.
_IDLE = re.compile(
    r"(data\.(init_args\.)?(root|cache_mb)|trainer\.(accelerator|devices|enable_progress_bar|log_every_n_steps)"
    r"|run\.(root|receipt|finish|wandb\..+|tensorboard)|progress\..+|checkpoint\..+)"
)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodEntry(_Entry):
    """One row of the tables: a configuration of ours, or somebody's program, or a folder that it left.

    Attributes:
        name: in tables and folders.
        config: configuration file; None: the plan's.
        set: settings of it.
        base, head: files put in the place of the configuration's.
        command: program that writes a predictions folder to ``{out}``; ``{scene}`` and ``{seed}`` are filled in.
        predictions: predictions folder of each ``{scene}`` (and ``{seed}``).
        labels: whether a program had the masks of the comparison or its own.
        unavailable: why it cannot run yet; it is listed, not run.
        paper: name of its row in the paper's table.
    """

    name: str = Field(min_length=1)
    config: str | None = None
    set: Settings = Field(default_factory=dict)
    base: tuple[str, str] | None = None
    head: tuple[str, str] | None = None
    command: tuple[str, ...] | None = None
    predictions: str | None = None
    labels: Literal["shared", "own"] = "shared"
    unavailable: str | None = None
    paper: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [k for k in ("config", "command", "predictions", "unavailable") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(given)}")
        if (self.command or self.predictions) and self.set:
            raise ValueError("set is for configurations of panbench; write a program's options into its command")
        if self.command is not None and not any("{out}" in word for word in self.command):
            raise ValueError("command must say with {out} where it writes the predictions folder")
        return self


class SceneEntry(_Entry):
    """A scene: what names it on the command line, and where its truth lies for methods that only write predictions."""

    name: str = Field(min_length=1)
    set: Settings = Field(default_factory=dict)
    truth: str | None = None


class StudyPoint(_Entry):
    """One point on the axis of a study."""

    x: float | str
    set: Settings = Field(default_factory=dict)


class Study(_Entry):
    """What a study varies."""

    axis: str
    points: tuple[StudyPoint, ...] = Field(min_length=1)


class PaperTable(_Entry):
    """The paper's table whose figures stand beside the plan's."""

    table: Literal["I", "II", "III", "IV"]
    dataset: Literal["scannet", "scannetpp"] = "scannet"


class Needs(_Entry):
    """What a cell takes of a machine; see :class:`panbench.bench.engine.Resources`. ``cpus`` None: all cores."""

    cpus: float | None = Field(default=None, gt=0)
    gpus: float = Field(default=0, ge=0)
    gpu_memory_gb: float = Field(default=0, ge=0)


class Plan(_Entry):
    """A plan file; see the module."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    description: str = ""
    config: str | None = None
    set: Settings = Field(default_factory=dict)
    methods: tuple[MethodEntry, ...] = ()
    bases: dict[str, str] = Field(default_factory=dict)
    heads: dict[str, str] = Field(default_factory=dict)
    scenes: tuple[SceneEntry, ...] = Field(min_length=1)
    study: Study | None = None
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    protocols: tuple[str, ...] | None = Field(default=None, min_length=1)
    paper: PaperTable | None = None
    resources: Needs = Needs()
    artifacts: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.bases) != bool(self.heads):
            raise ValueError("bases and heads are crossed with each other: give both or neither")
        if not self.all_methods():
            raise ValueError("give methods, or bases and heads")
        for what, names in (
            ("method", [m.name for m in self.all_methods()]),
            ("scene", [s.name for s in self.scenes]),
            ("seed", [str(s) for s in self.seeds]),
            ("study point", [str(p.x) for p in self.study.points] if self.study else []),
        ):
            twice = [name for name, count in Counter(map(_slug, names)).items() if count > 1]
            if twice:
                raise ValueError(f"{what} {twice[0]} stands there twice")
        return self

    def all_methods(self) -> list[MethodEntry]:
        """The listed methods, then every base with every head."""
        crossed = [
            MethodEntry(name=f"{base}-{head}", base=(base, base_file), head=(head, head_file))
            for base, base_file in self.bases.items()
            for head, head_file in self.heads.items()
        ]
        return [*self.methods, *crossed]


@dataclass(frozen=True)
class Cell:
    """One run of a plan: a method on a scene with a seed, at a point of the study.

    Attributes:
        name: ``method/scene/s<seed>``, in a study ``method/point/scene/s<seed>``.
        digest: sha256 over everything the plan and its configuration files say that decides the result.
        method, scene, seed, point: what it is made of.
        order: position of the point.
        protocols: to score under, the main one first; () for the dataset's own.
        options: of ``panbench fit``, for a configuration of ours.
        program: for somebody else's, with ``{out}`` left to fill in.
        predictions: folder that is there already.
        data: folder that it reads, as far as the plan names it; for the latter two the scene with the truth.
    """

    name: str
    digest: str
    method: MethodEntry
    scene: SceneEntry
    seed: int
    point: StudyPoint | None
    order: int
    protocols: tuple[str, ...]
    options: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    predictions: Path | None = None
    data: Path | None = None

    @property
    def key(self) -> str:
        """``name`` and eight digits of the digest, safe as a file name: another setting is another cell."""
        return f"{'.'.join(_slug(part) for part in self.name.split('/'))}-{self.digest[:8]}"


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: with the first thing that is wrong in it.
    """
    return validated(Plan, read_mapping(path, "a plan: it needs at least name, methods and scenes"), path)


def find_plan(path: str) -> Path:
    """A plan as the user named it: from the working folder, else one that panbench ships.

    Raises:
        UserError: if there is none; names the shipped ones.
    """
    given = Path(path)
    if given.is_file():
        return given
    shipped = asset("configs") / "bench"
    name = given.name if given.suffix else f"{given.name}.yaml"
    if not given.is_absolute() and (shipped / name).is_file():
        return shipped / name
    known = ", ".join(f"configs/bench/{p.name}" for p in sorted(shipped.glob("*.yaml")))
    raise UserError(f"there is no plan {path}; shipped with panbench: {known}")


def cells(plan: Plan, path: Path) -> list[Cell]:
    """All cells that can run, in the order: scene, point, method, seed.

    Args:
        plan: the plan.
        path: its file; configurations are named relative to it.

    Raises:
        UserError: if a configuration file or a scene's truth is not known, or a protocol.
    """
    for protocol in plan.protocols or ():
        Protocol.load(protocol)
    out: list[Cell] = []
    points = list(enumerate(plan.study.points)) if plan.study else [(0, None)]
    for scene in plan.scenes:
        for order, point in points:
            for method in plan.all_methods():
                if method.unavailable is None:
                    out += [_cell(plan, path, method, scene, order, point, seed) for seed in plan.seeds]
    return out


def _cell(
    plan: Plan, path: Path, method: MethodEntry, scene: SceneEntry, order: int, point: StudyPoint | None, seed: int
) -> Cell:
    parts = [method.name, *([str(point.x)] if point else []), scene.name, f"s{seed}"]
    facts: dict[str, Any] = {
        "name": "/".join(part.replace("/", "_") for part in parts),
        "method": method,
        "scene": scene,
        "seed": seed,
        "point": point,
        "order": order,
        "protocols": plan.protocols or (),
    }
    decisive: dict[str, Any] = {"seed": seed, "protocols": plan.protocols}
    filled = {"{scene}": scene.name, "{seed}": str(seed)}
    if method.command is not None or method.predictions is not None:
        if plan.study:
            raise UserError(f"{path}: method {method.name}: a study varies settings, which only configurations have")
        if plan.artifacts is not None:
            raise UserError(
                f"{path}: method {method.name}: only runs of panbench are copied to artifacts; "
                "leave it out, on storage that all machines share"
            )
        facts["data"] = truth = _truth(scene, path)
        decisive["truth"] = str(truth)
        if method.command is not None:
            facts["program"] = decisive["program"] = tuple(_fill(word, filled) for word in method.command)
        else:
            assert method.predictions is not None
            facts["predictions"] = folder = _beside(path, _fill(method.predictions, filled))
            decisive["predictions"] = str(folder)
        return Cell(**facts, digest=_digest(decisive))
    named = method.config or plan.config
    if named is None:
        raise UserError(f"{path}: method {method.name} has no config, and the plan has none for all")
    config = _find(path, named)
    settings = {**plan.set, **method.set, **scene.set, **(point.set if point else {})}
    facts["data"] = _scene_folder(settings)
    options = ["--config", str(config)]
    decisive |= {
        "config": _authored(config),
        "set": {key: value for key, value in settings.items() if not _IDLE.fullmatch(key)},
    }
    for option, entry in (("model", method.base), ("model.head", method.head)):
        if entry is not None:
            file = _find(path, entry[1])
            options += [f"--{option}", str(file)]
            decisive[option] = _authored(file)
    for key, value in settings.items():
        options.append(f"--{key}={_text(value)}")
    options += [f"--seed_everything={seed}", f"--run.method={method.name}"]
    if plan.protocols is not None:
        options.append(f"--run.protocols={json.dumps(list(plan.protocols))}")
    return Cell(**facts, options=tuple(options), digest=_digest(decisive))


def _truth(scene: SceneEntry, path: Path) -> Path:
    if scene.truth is not None:
        return _beside(path, scene.truth)
    folder = _scene_folder(scene.set)
    if folder is None:
        raise UserError(f"{path}: scene {scene.name}: give truth, the scene's folder, to score predictions with")
    return folder


def _scene_folder(settings: Settings) -> Path | None:
    root, name = settings.get("data.root"), settings.get("data.scene")
    return None if root is None else Path(str(root)).expanduser() / str(name or "")


def _beside(path: Path, name: str) -> Path:
    """A folder named in a plan: absolute, in the home folder, or relative to the plan."""
    given = Path(name).expanduser()
    return given if given.is_absolute() else (path.parent / given).resolve()


def _find(path: Path, name: str) -> Path:
    beside = _beside(path, name)
    if beside.is_file():
        return beside
    try:
        return find_config(name).resolve()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _authored(path: Path) -> object:
    """Contents of a configuration file with those of the files that it names in their places."""
    try:
        return _inlined(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _inlined(value: object, folder: Path) -> object:
    if isinstance(value, dict):
        return {str(key): _inlined(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, folder) for item in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (folder / value).is_file():
        return _authored(folder / value)
    return value


def _digest(decisive: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def _text(value: object) -> str:
    """A YAML value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _fill(word: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        word = word.replace(key, value)
    return word


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_+-]+", "_", name)
