"""A mask set: the pseudo-masks of a scene's frames in a folder, with a manifest that says where they come from.

::

    masks_NAME/semantic_image/STEM.png    class id of the label space, 8 or 16 bit, 0 = void
               instance_image/STEM.png    16 bit, 1 ... n within the frame or, if associated, the scene; 0 = none
               score/STEM.png             8 bit, 255 x score; optional
               manifest.json              generator, settings, provenance, label space, sha256

STEM is the stem of the frame's colour image. The first two folders are those of PanopticRecon's script, except that ids
are never JPEG and never eight bits wide.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from panbench.data.images import read_integers
from panbench.errors import UserError
from panbench.scene import LabelSpace
from panbench.training.files import replacing

MANIFEST = "manifest.json"
SEMANTIC, INSTANCE, SCORE = "semantic_image", "instance_image", "score"
UNFINISHED = ".unfinished.json"  # the manifest of a set whose frames are not all there

LabelSource = Literal["shared", "own"]


class MaskManifest(BaseModel):
    """Contents of ``manifest.json``.

    Attributes:
        format, version: of this layout.
        generator: the program that made the masks.
        settings: everything their content depends on: prompts, thresholds, models and their hashes, rates, seeds.
        labels: ``shared``: the masks that all methods of a comparison get; ``own``: made for one method.
        synthetic: made from ground truth, or of a rendered scene by rule, not by a network that saw the picture.
        associated: an instance id is the same object in all frames.
        classes: the label space, as :meth:`panbench.scene.LabelSpace.to_dict` gives it.
        frames: stems, sorted.
        sha256: over names and contents of the images, see :func:`content_hash`.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["panbench-masks"] = "panbench-masks"
    version: Literal[1] = 1
    generator: str
    settings: dict[str, Any] = Field(default_factory=dict)
    labels: LabelSource = "shared"
    synthetic: bool = False
    associated: bool = False
    classes: dict[str, Any] = Field(default_factory=dict)
    frames: list[str] = Field(default_factory=list)
    sha256: str = ""


@dataclass(frozen=True, eq=False)
class FrameMasks:
    """The masks of one frame.

    Attributes:
        semantic: class id [H, W], 0 = void.
        instance: id [H, W], 0 = stuff or none.
        score: 255 × score [H, W], uint8; None: none is known.
    """

    semantic: NDArray[np.integer]
    instance: NDArray[np.integer]
    score: NDArray[np.uint8] | None = None


def set_folder(scene: Path, name: str) -> Path:
    """The folder of a scene's mask set to make.

    Raises:
        UserError: the name cannot be part of a folder's.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--out {name!r}: name the mask set with letters, digits, '.', '_', '+' and '-'")
    return scene / f"masks_{name}"


class MaskSet:
    """A mask set on disk; frames are read when they are asked for."""

    def __init__(self, folder: Path, manifest: MaskManifest | None) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> MaskSet:
        """Open a folder; sets without a manifest have ``manifest`` None.

        Raises:
            UserError: it holds no masks, it is unfinished, or its manifest is damaged.
        """
        if (folder / UNFINISHED).is_file():
            raise UserError(f"{folder}: is unfinished: run the command that makes these masks again, it goes on")
        if not any((folder / SEMANTIC).glob("*.png")):
            raise UserError(f"{folder / SEMANTIC}: holds no PNG file: make or import the masks again")
        path = folder / MANIFEST
        return cls(folder, read_manifest(path) if path.is_file() else None)

    def stems(self) -> list[str]:
        """Stems of the frames that have masks, in the order of their numbers where they are numbers."""
        found = [p.stem for p in (self.folder / SEMANTIC).glob("*.png")]
        return sorted(found, key=lambda s: (int(s), s) if s.isdecimal() else (-1, s))

    def read(self, stem: str) -> FrameMasks:
        """The masks of a frame.

        Raises:
            UserError: a file is missing, damaged, or its images differ in size.
        """
        semantic = read_integers(self.folder / SEMANTIC / f"{stem}.png")
        instance = read_integers(self.folder / INSTANCE / f"{stem}.png")
        path = self.folder / SCORE / f"{stem}.png"
        score = read_integers(path) if path.is_file() else None
        if score is not None and score.dtype != np.uint8:
            raise UserError(f"{path}: must be 8-bit (255 x score): write it again")
        if semantic.shape != instance.shape or (score is not None and score.shape != semantic.shape):
            raise UserError(
                f"{self.folder / INSTANCE / stem}.png: differs in size from the other images of its frame: "
                "make these masks again"
            )
        return FrameMasks(semantic, instance, None if score is None else score.astype(np.uint8))


class MaskWriter:
    """Writes a mask set frame by frame; what is there is kept, so that an interrupted run goes on.

    As a context manager it writes the manifest on success. On an exception the finished frames stay, and the folder
    counts as unfinished until a later writer with the same settings closes it.

    Args:
        folder: the set's folder, ``masks_NAME`` in a scene.
        generator, settings, source, synthetic, associated: see :class:`MaskManifest` (``source``: its ``labels``);
            settings must be plain JSON data.
        labels: label space of the class ids.

    Raises:
        UserError: the folder holds masks of another generator, of other settings or of unknown origin.
    """

    def __init__(
        self,
        folder: Path,
        *,
        generator: str,
        settings: Mapping[str, Any],
        labels: LabelSpace,
        source: LabelSource = "shared",
        synthetic: bool = False,
        associated: bool = False,
    ) -> None:
        self.folder = folder
        self._manifest = MaskManifest(
            generator=generator,
            settings=json.loads(json.dumps(dict(settings))),
            labels=source,
            synthetic=synthetic,
            associated=associated,
            classes=labels.to_dict(),
        )
        self._size, self._things = labels.size, labels.is_thing()
        self._check_resumable()
        self._begun = False

    def _check_resumable(self) -> None:
        known = next((p for n in (UNFINISHED, MANIFEST) if (p := self.folder / n).is_file()), None)
        if known is None:
            if any((self.folder / SEMANTIC).glob("*")):
                raise UserError(f"{self.folder}: holds masks of unknown origin: choose another name or move them away")
            return
        there, wanted = read_manifest(known).model_dump(), self._manifest.model_dump()
        flat = [{**m, **{f"settings.{k}": v for k, v in m["settings"].items()}} for m in (there, wanted)]
        for key in sorted({*flat[0], *flat[1]} - {"settings", "frames", "sha256"}):
            before, now = (f.get(key) for f in flat)
            if before != now:
                raise UserError(
                    f"{self.folder}: its masks were made with {key} {_short(before)}, not {_short(now)}: "
                    "choose another name, or move them away"
                )

    @property
    def manifest(self) -> MaskManifest:
        """The manifest; frames and hash are those of the last :meth:`close`."""
        return self._manifest

    def done(self) -> set[str]:
        """Stems that are written already."""
        kinds = ({p.stem for p in (self.folder / kind).glob("*.png")} for kind in (SEMANTIC, INSTANCE))
        return set.intersection(*kinds)

    def write(self, stem: str, masks: FrameMasks) -> None:
        """Write the masks of a frame.

        Raises:
            ValueError: the arrays do not fit each other, or hold ids that the label space or the files cannot hold.
            UserError: the files cannot be written.
        """
        semantic, instance, score = masks.semantic, masks.instance, masks.score
        if (
            semantic.ndim != 2
            or instance.shape != semantic.shape
            or (score is not None and score.shape != semantic.shape)
        ):
            raise ValueError(f"frame {stem}: the masks' images must be [H, W] and of one size")
        if semantic.min(initial=0) < 0 or semantic.max(initial=0) >= self._size:
            raise ValueError(f"frame {stem}: class ids must lie in 0 ... {self._size - 1}")
        if instance.min(initial=0) < 0 or instance.max(initial=0) > 65535:
            raise ValueError(f"frame {stem}: instance ids must lie in 0 ... 65535")
        if (instance[~self._things[semantic]] > 0).any():
            raise ValueError(f"frame {stem}: stuff and void pixels must have instance 0")
        if not self._begun:
            self._save_manifest(self.folder / UNFINISHED)
            self._begun = True
        try:
            if score is not None:
                self._save_image(SCORE, stem, score.astype(np.uint8))
            self._save_image(INSTANCE, stem, instance.astype(np.uint16))
            self._save_image(SEMANTIC, stem, semantic.astype(np.uint8 if self._size <= 256 else np.uint16))
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot write masks there ({error.strerror or error}); free space, then run this again"
            ) from error

    def _save_image(self, kind: str, stem: str, image: NDArray[np.integer]) -> None:
        with replacing(self.folder / kind / f"{stem}.png") as stream:
            Image.fromarray(image).save(stream, format="PNG")

    def close(self) -> None:
        """Write the manifest: the set is complete.

        Raises:
            UserError: no frame was written, or the manifest cannot be.
        """
        frames = sorted(self.done())
        if not frames:
            raise UserError(f"{self.folder}: no masks were made: check the frames that were asked for")
        self._manifest = self._manifest.model_copy(
            update={"frames": frames, "sha256": content_hash(self.folder, frames)}
        )
        self._save_manifest(self.folder / MANIFEST)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _save_manifest(self, path: Path) -> None:
        try:
            with replacing(path) as stream:
                stream.write(self._manifest.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); free space, then run this again"
            ) from error

    def __enter__(self) -> MaskWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


def read_manifest(path: Path) -> MaskManifest:
    """Read a manifest.

    Raises:
        UserError: it is missing, no JSON, or not of this form.
    """
    try:
        return MaskManifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path}: is no manifest of a mask set ({first}): make or import the masks again") from error


def content_hash(folder: Path, stems: list[str]) -> str:
    """sha256 over the names and contents of the images of these frames, in the order given."""
    digest = hashlib.sha256()
    for stem in stems:
        for kind in (SEMANTIC, INSTANCE, SCORE):
            path = folder / kind / f"{stem}.png"
            if path.is_file():
                digest.update(f"{kind}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
