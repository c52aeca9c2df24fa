"""The run directory ``runs/<dataset>/<scene>/<method>/s<seed>-<hash8>/``: its name, its manifest, its lock."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from panbench import __version__
from panbench.errors import UserError
from panbench.lock import held
from panbench.training.files import write_text

FORMAT_VERSION = 1

Status = Literal["training", "trained", "finished"]


class RunManifest(BaseModel):
    """``manifest.json`` of a run: what was run, on what, with what, and how far it got.

    ``tracked`` holds the settings and hashes that decide the result; their hash names the folder. ``settings_hash`` is
    over those of the method alone: the same in every scene, with every mask set and seed; ``data_settings_hash`` over
    the part of them that methods without training depend on too. ``frames`` names the training and test frames, and how
    the former were chosen. ``backend`` is empty until an operator ran.
    """

    format_version: int = FORMAT_VERSION
    status: Status = "training"
    steps: int = 0
    dataset: str
    scene: str
    method: str
    seed: int
    synthetic: bool = False
    tracked: dict[str, Any]
    frames: dict[str, Any] = Field(default_factory=dict)
    hash: str
    settings_hash: str = ""
    data_settings_hash: str = ""
    panbench: str = __version__
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, str] = Field(default_factory=dict)
    backend: str = ""
    backend_reason: str = ""
    commands: list[list[str]] = Field(default_factory=list)
    created: str = ""
    cost: dict[str, float] = Field(default_factory=dict)


def tracked_hash(tracked: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of the settings that decide a result."""
    return hashlib.sha256(json.dumps(tracked, sort_keys=True, default=str).encode()).hexdigest()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two nested mappings, one ``key: old -> new`` a leaf."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    out: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, "-"), new.get(key, "-")
        if a != b:
            out.append(f"{key}: {_short(a)} -> {_short(b)}")
    return out


class RunDirectory:
    """One run's folder.

    Raises:
        UserError: from :meth:`manifest` and :meth:`create`, if it is not a run directory or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.predictions = path / "predictions"
        self.result = path / "result.json"
        self.results = path / "results"
        self.anchors = path / "anchors"
        self.pictures = path / "pictures"
        self.diagnosis = path / "diagnosis.md"
        self._manifest = path / "manifest.json"

    def exists(self) -> bool:
        """True if a run was started here."""
        return self._manifest.is_file()

    def manifest(self) -> RunManifest:
        """Read ``manifest.json``."""
        try:
            return RunManifest.model_validate_json(self._manifest.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path} is not a run directory: it has no manifest.json") from None
        except (ValidationError, ValueError) as error:
            cause = _first_line(error)
            raise UserError(f"{self._manifest} is damaged ({cause}); --fresh starts the run over") from error

    def write_manifest(self, manifest: RunManifest) -> None:
        """Replace ``manifest.json`` in one piece."""
        write_text(self._manifest, manifest.model_dump_json(indent=2) + "\n")

    def create(self) -> None:
        """Make the folder and see that it can be written, before any work is done for it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path} ({error.strerror}); choose another folder with --run.root"
            ) from error

    def clear(self) -> None:
        """Remove what a run wrote here; other files stay."""
        logs = (self.path / "wandb", self.path / "tensorboard")
        for path in (self.checkpoint.parent, self.predictions, self.results, self.anchors, self.pictures, *logs):
            shutil.rmtree(path, ignore_errors=True)
        tables = (self.path / "metrics.csv", self.path / "table.md", self.diagnosis)
        for path in (self._manifest, self.config, self.result, *tables):
            path.unlink(missing_ok=True)

    def earlier(self, seed: int) -> RunDirectory | None:
        """The newest other run of the same scene, method and seed, if there is one."""
        siblings = [p for p in self.path.parent.glob(f"s{seed}-*/manifest.json") if p.parent != self.path]
        newest = max(siblings, key=lambda p: p.stat().st_mtime, default=None)
        return None if newest is None else RunDirectory(newest.parent)

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the run for this process. The kernel drops the lock with the process, however it ends.

        Raises:
            UserError: if another process is training in this folder.
        """
        with held(self.path, "is already working in it"):
            yield


def environment() -> dict[str, Any]:
    """The manifest's fields about this machine and installation: versions, machine, commit."""
    import torch

    names = ("torch", "lightning", "jsonargparse", "torchmetrics", "numpy", "scipy", "pillow", "embreex")
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name(0)
    return {
        "versions": {name: _version(name) for name in names},
        "machine": machine,
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commands": [sys.argv],
    }


def _leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The checkout's commit, with "+changes" if its tracked files differ; None for an installed wheel."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
