"""Mask sets made from a scene's true labels by a noise model, and the files that hold such a model's rates."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import track

from panbench.data.detect import Found, open_found
from panbench.data.mask_noise import MaskNoise, MaskNoiser
from panbench.errors import UserError
from panbench.masks.mask_set import FrameMasks, MaskManifest, MaskWriter, set_folder
from panbench.scene import Frame

_LARGEST = 1 << 20  # bytes of a noise file


class NoiseFile(BaseModel):
    """Rates of the noise model, as ``panbench masks fit-noise`` writes them and ``corrupt --noise`` reads them.

    Attributes:
        format, version: of this file.
        rates: the model.
        source: what they were fitted to.
        observed: by rate, how many cases it rests on, and what was measured before calibration; for people.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["panbench-mask-noise"] = "panbench-mask-noise"
    version: Literal[1] = 1
    rates: MaskNoise
    source: dict[str, Any] = Field(default_factory=dict)
    observed: dict[str, Any] = Field(default_factory=dict)


def read_noise(path: Path) -> MaskNoise:
    """The rates of a noise file.

    Raises:
        UserError: it is missing, no JSON, not of this form, or a rate cannot be.
    """
    remedy = "make it with panbench masks fit-noise, or correct it"
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path}: is larger than {_LARGEST >> 20} MiB, so it is no noise file: {remedy}")
        return NoiseFile.model_validate_json(path.read_bytes()).rates
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        told = " ".join(f"{place} {first['msg']}".split())
        told = "".join(c if c.isprintable() else "?" for c in told)[:200]
        raise UserError(f"{path}: is no noise file ({told.strip()}): {remedy}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): {remedy}") from error


def corrupt_scene(
    found: Found, out: str, noise: MaskNoise, *, level: str, seed: int, progress: bool = True
) -> MaskManifest:
    """Write the mask set ``masks_<out>`` of a scene: its true labels, of train and test frames, with errors.

    Frames that are there already stay; as each follows from the settings and its place among the scene's frames, the
    result is the same whether the work was interrupted or not.

    Args:
        found: the scene; it needs ground truth.
        out: NAME of the set.
        noise: the error rates.
        level: what the rates are called, for the manifest.
        seed: of all choices.

    Raises:
        UserError: the scene cannot be read or has no truth, or the masks cannot be written.
    """
    if seed < 0:
        raise UserError(f"--seed {seed} must be at least 0")
    scene = open_found(found)
    indices = sorted({*scene.train, *scene.test})
    folder = set_folder(found.folder, out)
    truth_of(scene.source.load(indices[0]), scene.name)  # before anything is written
    with MaskWriter(
        folder,
        generator="panbench masks corrupt",
        settings={**asdict(noise), "level": level, "seed": seed, "frames": len(indices)},
        labels=scene.labels,
        synthetic=True,
    ) as writer:
        noiser = MaskNoiser(noise, scene.labels, len(indices), seed)
        done = writer.done()
        console = Console(stderr=True)
        for place, index in enumerate(track(indices, f"masks {out}", console=console, disable=not progress)):
            stem = scene.source.name(index)
            if stem in done:
                continue
            made = noiser.frame(place, *truth_of(scene.source.load(index), scene.name))
            writer.write(stem, FrameMasks(made.semantic, made.instance, made.score))
    return writer.manifest


def truth_of(frame: Frame, scene: str) -> tuple[np.ndarray, np.ndarray]:
    """True class ids and object ids of a frame [H, W].

    Raises:
        UserError: it has none.
    """
    if frame.truth is None:
        raise UserError(f"{scene}: frame {frame.name} has no ground truth, which this needs: use a scene with labels")
    return frame.truth.semantic.numpy(), frame.truth.instance.numpy()
