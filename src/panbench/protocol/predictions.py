"""The predictions folder: where every method, whatever it is made of, meets the one scorer.

::

    manifest.json          who made it, from what, with which labels; sha256 of every file
    semantic/NAME.png      uint16, class id of the label space, 0 = void
    instance/NAME.png      uint16, id of the object, the same in every frame of the scene, 0 = none
    color/NAME.png         optional: uint8 RGB
    depth/NAME.png         optional: uint16 z-depth in millimetres, 0 = none
    normal/NAME.png        optional: uint8 RGB, camera-space unit normal n as round(127.5 (n + 1)); black = none

NAME is the frame's name (its file stem in the dataset).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from panbench.data.images import read_color, read_integers
from panbench.errors import UserError
from panbench.scene import VOID, LabelSpace, PanopticMap, Scene

MANIFEST = "manifest.json"
LabelSource = Literal["shared", "own"]
_LABEL_KINDS = ("semantic", "instance")
_MAX_ID = 65535

log = logging.getLogger(__name__)


class Manifest(BaseModel):
    """Contents of ``manifest.json``.

    Attributes:
        format_version: of this layout.
        method, config, seed, commit: what wrote the folder; ``commit`` is "" outside a checkout.
        labels: ``shared``: supervised by the pseudo-masks that all methods of the comparison get; ``own``: by its own.
        label_space, label_hash: :meth:`panbench.scene.LabelSpace.to_dict` and its hash.
        dataset, scene, synthetic: the scene; ``synthetic`` marks rendered rooms.
        image_size: (height, width) of all maps.
        frames: frame names in the order of the scene.
        files: sha256 of every file by its path in the folder.
        provenance: anything else worth knowing (hashes of data and masks, back end, costs).
    """

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    method: str
    config: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    commit: str = ""
    labels: LabelSource = "shared"
    label_space: dict[str, Any] = Field(default_factory=dict)
    label_hash: str = ""
    dataset: str = ""
    scene: str = ""
    synthetic: bool = False
    image_size: tuple[int, int] = (0, 0)
    frames: list[str] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)


class PredictionWriter:
    """Writes a predictions folder frame by frame; the folder appears complete on :meth:`close`, or not at all.

    Files go to a hidden sibling of ``folder``; :meth:`close` puts it in the place of an older predictions folder. As a
    context manager it closes on success and leaves no trace on an exception.

    Args:
        folder: the predictions folder to make.
        method: name of the method.
        labels: label space of the maps.
        seed, config, provenance, commit, label_source, dataset, scene, synthetic: see :class:`Manifest`.

    Raises:
        UserError: if ``folder`` exists and is no predictions folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        method: str,
        labels: LabelSpace,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        commit: str = "",
        label_source: LabelSource = "shared",
        dataset: str = "",
        scene: str = "",
        synthetic: bool = False,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not _replaceable(self.folder):
            raise UserError(f"{self.folder} exists and is no predictions folder: choose another or move it away")
        self.labels = labels
        self._classes = np.asarray([VOID, *(c.id for c in labels.classes)])
        self._manifest = Manifest(
            method=method,
            config=dict(config or {}),
            seed=seed,
            commit=commit,
            labels=label_source,
            label_space=labels.to_dict(),
            label_hash=labels.hash,
            dataset=dataset,
            scene=scene,
            synthetic=synthetic,
            provenance=dict(provenance or {}),
        )
        self._work = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.partial")
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)

    @classmethod
    def for_scene(
        cls,
        folder: Path,
        scene: Scene,
        *,
        method: str,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        commit: str = "",
        label_source: LabelSource = "shared",
    ) -> PredictionWriter:
        """Writer for predictions of a :class:`~panbench.scene.Scene`: names it and records its hashes."""
        hashes = {"data_hash": scene.data_hash, "mask_hash": scene.mask_hash}
        return cls(
            folder,
            method=method,
            labels=scene.labels,
            seed=seed,
            config=config,
            provenance={**hashes, **(provenance or {})},
            commit=commit,
            label_source=label_source,
            dataset=scene.dataset,
            scene=scene.name,
            synthetic=scene.synthetic,
        )

    def write(
        self,
        name: str,
        prediction: PanopticMap,
        color: Tensor | None = None,
        depth: Tensor | None = None,
        normal: Tensor | None = None,
    ) -> None:
        """Add one frame.

        Args:
            name: frame name.
            prediction: class and scene-level object id per pixel [H, W].
            color: uint8 [H, W, 3].
            depth: z-depth [H, W], metres, 0 = none.
            normal: camera-space unit normals [H, W, 3]; zero vectors = none.

        Raises:
            ValueError: for a second frame of that name, another size, a class outside the label space, an id that is
                negative or above 65535. All are mistakes of the caller.
        """
        if name in self._manifest.frames or not name or Path(name).name != name:
            raise ValueError(f"frame name {name!r} is taken or no file stem")
        semantic, instance = _array(prediction.semantic), _array(prediction.instance)
        size = (int(semantic.shape[0]), int(semantic.shape[1]))
        if self._manifest.frames and size != self._manifest.image_size:
            raise ValueError(f"frame {name} is {size}, the frames before it {self._manifest.image_size}")
        unknown = np.setdiff1d(semantic, self._classes)
        if len(unknown):
            raise ValueError(f"frame {name}: class {int(unknown[0])} is not in label space {self.labels.name}")
        if instance.size and (int(instance.min()) < 0 or int(instance.max()) > _MAX_ID):
            raise ValueError(f"frame {name}: instance ids {instance.min()} … {instance.max()} do not fit 0 … {_MAX_ID}")
        self._manifest.image_size = size
        self._manifest.frames.append(name)
        self._save("semantic", name, semantic.astype(np.uint16))
        self._save("instance", name, instance.astype(np.uint16))
        if color is not None:
            self._save("color", name, _array(color).astype(np.uint8))
        if depth is not None:
            self._save("depth", name, np.clip(np.round(_array(depth) * 1000.0), 0, _MAX_ID).astype(np.uint16))
        if normal is not None:
            n = _array(normal)
            coded = np.clip(np.round(127.5 * (n + 1.0)), 0, 255).astype(np.uint8)
            self._save("normal", name, np.where((n == 0).all(axis=-1, keepdims=True), 0, coded).astype(np.uint8))

    def close(self) -> Path:
        """Finish the folder; returns the path of its manifest."""
        (self._work / MANIFEST).write_text(self._manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self._work.rename(self.folder)
        return self.folder / MANIFEST

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            shutil.rmtree(self._work, ignore_errors=True)

    def _save(self, kind: str, name: str, image: NDArray[Any]) -> None:
        relative = f"{kind}/{name}.png"
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
        path = self._work / relative
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        self._manifest.files[relative] = hashlib.sha256(buffer.getvalue()).hexdigest()


class PredictionSet:
    """A predictions folder, opened for reading. Make one with :meth:`open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path) -> PredictionSet:
        """Open a folder and check every file against the manifest.

        A folder of PNGs without a manifest is accepted too (somebody else's output): it is named after the folder, its
        labels count as its own, and nothing vouches for its files.

        Raises:
            UserError: if the folder holds no predictions, the manifest cannot be read, a file is missing, cut off or
                not the one that was written.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder: give a predictions folder or a run directory")
        path = folder / MANIFEST
        if not path.exists():
            return cls._without_manifest(folder)
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise UserError(f"{path}: {where}: {first['msg']}: write the predictions again") from error
        if not manifest.frames:
            raise UserError(f"{folder}: holds no frames: write the predictions again")
        for name in manifest.frames:
            for kind in _LABEL_KINDS:
                if f"{kind}/{name}.png" not in manifest.files:
                    raise UserError(f"{path}: lists no {kind} map for frame {name}: write the predictions again")
        for relative, expected in manifest.files.items():
            _verify(folder / relative, expected)
        return cls(folder, manifest)

    @classmethod
    def _without_manifest(cls, folder: Path) -> PredictionSet:
        stems = {kind: {p.stem for p in (folder / kind).glob("*.png")} for kind in _LABEL_KINDS}
        if not stems["semantic"] and not stems["instance"]:
            raise UserError(
                f"{folder}: is empty or no predictions folder: semantic/NAME.png and instance/NAME.png needed"
            )
        for kind, other in (_LABEL_KINDS, _LABEL_KINDS[::-1]):
            lost = sorted(stems[kind] - stems[other])
            if lost:
                raise UserError(
                    f"{folder / other / (lost[0] + '.png')}: missing, though {kind}/{lost[0]}.png exists: add it"
                )
        frames = sorted(stems["semantic"], key=lambda s: (len(s), s))
        semantic = read_integers(folder / "semantic" / f"{frames[0]}.png")
        log.warning("%s has no %s: nothing vouches for its files or its labels", folder, MANIFEST)
        size = (int(semantic.shape[0]), int(semantic.shape[1]))
        return cls(folder, Manifest(method=folder.resolve().name, labels="own", image_size=size, frames=frames))

    @property
    def names(self) -> list[str]:
        """Frame names in the order of the scene."""
        return list(self.manifest.frames)

    @cached_property
    def labels(self) -> LabelSpace | None:
        """The label space that the maps use; None without a manifest."""
        if not self.manifest.label_space:
            return None
        try:
            return LabelSpace.from_dict(self.manifest.label_space)
        except ValueError as error:
            raise UserError(f"{self.folder / MANIFEST}: {error}: write the predictions again") from error

    def read(self, name: str) -> PanopticMap:
        """Labels of one frame, int32 [H, W].

        Raises:
            UserError: if the frame is missing, cannot be decoded, has another size than the manifest says, or a class
                that is not in the label space.
        """
        maps: dict[str, NDArray[Any]] = {}
        for kind in _LABEL_KINDS:
            path = self.folder / kind / f"{name}.png"
            if not path.exists():
                raise UserError(f"{path}: missing: predict frame {name} and write the folder again")
            maps[kind] = read_integers(path)
            if maps[kind].shape != self.manifest.image_size:
                raise UserError(
                    f"{path}: is {_size(maps[kind].shape)}, but the folder's images are "
                    f"{_size(self.manifest.image_size)}: write all frames at one size"
                )
        labels = self.labels
        if labels is not None:
            check_classes(maps["semantic"], labels, self.folder / "semantic" / f"{name}.png")
        return PanopticMap(*(torch.from_numpy(maps[kind].astype(np.int32)) for kind in _LABEL_KINDS))

    def color(self, name: str) -> Tensor | None:
        """Rendered colours uint8 [H, W, 3], or None if the folder has none."""
        path = self.folder / "color" / f"{name}.png"
        return torch.from_numpy(read_color(path)) if path.exists() else None

    def depth(self, name: str) -> Tensor | None:
        """Rendered z-depth float32 [H, W] in metres (0 = none), or None if the folder has none."""
        path = self.folder / "depth" / f"{name}.png"
        return torch.from_numpy(read_integers(path).astype(np.float32) / 1000.0) if path.exists() else None


def check_classes(semantic: NDArray[Any], labels: LabelSpace, path: Path) -> None:
    """Check that a semantic map uses classes of the label space only.

    Raises:
        UserError: naming the file, the first other id and how many pixels have it.
    """
    unknown, pixels = np.unique(
        semantic[~np.isin(semantic, [VOID, *(c.id for c in labels.classes)])], return_counts=True
    )
    if len(unknown):
        raise UserError(
            f"{path}: class id {int(unknown[0])} ({int(pixels[0])} pixels) is not in label space {labels.name} "
            f"(ids 1 … {labels.size - 1}, 0 = void): map the classes before writing"
        )


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).exists() or not any(folder.iterdir()))


def _verify(path: Path, expected: str) -> None:
    if not path.exists():
        raise UserError(f"{path}: missing, though the manifest lists it: write the predictions again")
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: cut off or no PNG ({error}): copy or write it again") from error
        raise UserError(f"{path}: differs from the sha256 in {MANIFEST}: it was changed after writing; write it again")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _array(tensor: Tensor | NDArray[Any]) -> NDArray[Any]:
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)
